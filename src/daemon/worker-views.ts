/**
 * What the workers report on request, for the admin API and explain. A worker that does not answer in time is left out.
 */
import type { Ejection } from '../dataplane/balance/outlier.ts'
import type { PeerView } from '../dataplane/protocol.ts'
import type { ConnectionView } from '../dataplane/proxy/connection.ts'
import type { Refusal } from '../dataplane/proxy/refusals.ts'
import type { LoadFacts, OutcomeFacts, ProbeFacts } from '../model/facts.ts'
import type { Answer, PooledWorker, Question } from './pooled-worker.ts'

/** Timeout of a worker's answer, milliseconds. */
const ASK_TIMEOUT_MS = 2_000

/** Timeout of an answer to probes, milliseconds: each probe has its own deadlines for dialing and for the answer. */
const PROBE_TIMEOUT_MS = 8_000

/** With an id that is unique over the life of this daemon. */
type Identified<T extends { readonly id: number }> = Omit<T, 'id'> & { readonly id: string }

/** Connections of all workers. */
export interface WorkerConnections {
  readonly connections: readonly Identified<ConnectionView>[]
  /** Number of open connections, listed or not, by worker id. */
  readonly countByWorker: readonly number[]
}

/** Asks the workers of a pool. */
export class WorkerViews {
  readonly #workers: readonly PooledWorker[]

  constructor(workers: readonly PooledWorker[]) {
    this.#workers = workers
  }

  /** The tunnels of all workers. */
  async peers(): Promise<readonly PeerView[]> {
    const answers = await this.#ask({ what: 'peers' })
    return answers.flatMap(({ answer }) => (answer?.kind === 'peers' ? answer.peers : []))
  }

  /** The instances that each worker has ejected. */
  async ejections(): Promise<readonly (readonly Ejection[])[]> {
    const answers = await this.#ask({ what: 'ejections' })
    return answers.flatMap(({ answer }) => (answer?.kind === 'ejections' ? [answer.ejections] : []))
  }

  /**
   * The connections of all workers, at most `limit` listed per worker. Ids are `<worker>-<number>`, or
   * `<worker>.<restarts>-<number>` for a worker that replaced another.
   */
  async connections(limit: number): Promise<WorkerConnections> {
    const answers = await this.#ask({ what: 'connections', limit })
    return {
      connections: answers.flatMap(({ worker, answer }) =>
        answer?.kind === 'connections'
          ? answer.connections.map((connection) => identified(worker, connection))
          : [],
      ),
      countByWorker: answers.map(({ answer }) =>
        answer?.kind === 'connections' ? answer.total : 0,
      ),
    }
  }

  /** One open connection; undefined when no open connection has this id. */
  async connection(id: string): Promise<Identified<ConnectionView> | undefined> {
    const worker = this.#workers.find(({ prefix }) => id.startsWith(prefix))
    const number = worker === undefined ? '' : id.slice(worker.prefix.length)
    if (worker === undefined || !/^\d{1,15}$/.test(number)) return undefined
    const question = { what: 'connection', connection: Number(number) } as const
    const answer = await worker.ask(question, ASK_TIMEOUT_MS)
    return answer?.kind === 'connection' && answer.connection !== undefined
      ? identified(worker, answer.connection)
      : undefined
  }

  /** The last connections of all workers that were refused or broken off, newest first. */
  async refusals(): Promise<readonly Identified<Refusal>[]> {
    const answers = await this.#ask({ what: 'refusals' })
    return answers
      .flatMap(({ worker, answer }) =>
        answer?.kind === 'refusals'
          ? answer.refusals.map((refusal) => identified(worker, refusal))
          : [],
      )
      .toSorted((left, right) => right.endedAtMs - left.endedAtMs)
  }

  /** What the balancers have measured of the endpoints of one service, or of all services. */
  async loads(service: string | undefined): Promise<readonly LoadFacts[]> {
    const answers = await this.#ask({ what: 'loads', service })
    return answers.flatMap(({ worker, answer }) =>
      answer?.kind === 'loads' ? answer.loads.map((load) => ({ worker: worker.id, ...load })) : [],
    )
  }

  /** The outcomes of the last connections of each pair, by worker. */
  async outcomes(): Promise<readonly OutcomeFacts[]> {
    const answers = await this.#ask({ what: 'outcomes' })
    return answers.flatMap(({ worker, answer }) =>
      answer?.kind === 'outcomes'
        ? answer.outcomes.map(({ okAtMs, failure, ...pair }) => ({
            worker: worker.id,
            ...pair,
            okAt: okAtMs === undefined ? null : timeText(okAtMs),
            failure:
              failure === undefined
                ? null
                : {
                    at: timeText(failure.atMs),
                    flag: failure.flag,
                    code: failure.code,
                    reason: failure.reason,
                  },
          }))
        : [],
    )
  }

  /** Probes: what the daemons of these instances would do with a connection of `source`. One running worker asks. */
  async probe(
    source: string,
    service: string,
    endpoints: readonly string[],
  ): Promise<readonly ProbeFacts[]> {
    const worker = this.#workers.find(({ isRunning }) => isRunning)
    if (worker === undefined) return []
    const question = { what: 'probe', source, service, endpoints } as const
    const answer = await worker.ask(question, PROBE_TIMEOUT_MS)
    return answer?.kind !== 'probes'
      ? []
      : answer.probes.map(({ answer: said, flag, code, timing, ...result }) => ({
          ...result,
          tunnel: timing.tunnel ?? null,
          dialMs: timing.dialMs ?? null,
          roundTripMs: timing.roundTripMs ?? null,
          answerMs: timing.answerMs ?? null,
          verdict: said?.verdict ?? null,
          application: said?.application ?? null,
          flag: flag ?? null,
          code: code ?? null,
        }))
  }

  /** Asks all workers; no answer where one does not answer in time. */
  #ask(
    question: Question,
  ): Promise<{ readonly worker: PooledWorker; readonly answer: Answer | undefined }[]> {
    return Promise.all(
      this.#workers.map(async (worker) => ({
        worker,
        answer: await worker.ask(question, ASK_TIMEOUT_MS),
      })),
    )
  }
}

function identified<T extends { readonly id: number }>(
  { prefix }: PooledWorker,
  view: T,
): Identified<T> {
  return { ...view, id: `${prefix}${view.id}` }
}

function timeText(wallMs: number): string {
  return new Date(wallMs).toISOString()
}
