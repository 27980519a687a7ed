/**
 * Starts, updates and replaces the data-plane workers.
 *
 * All workers receive the same snapshots and certificates and accept on the same ports, each on its own sockets, which
 * the main thread keeps. A crashed worker loses only its own connections: new ones wait in its sockets until the
 * replacement accepts them. The pool keeps the current state and sends it to a replacement first.
 *
 * ```
 *   starting --'listening'--> running --drain()--> draining --'drained'--> stopped
 *       \________________ exit __/  (new one after a back-off, unless draining)
 * ```
 */
import { Worker } from 'node:worker_threads'
import type { Ejection } from '../dataplane/balance/outlier.ts'
import { localListeners, tunnelListeners } from '../dataplane/listener-plan.ts'
import type {
  FromWorker,
  PeerView,
  ToWorker,
  WorkerSettings,
  WorkerSocket,
} from '../dataplane/protocol.ts'
import type { ConnectionView } from '../dataplane/proxy/connection.ts'
import type { Pressure } from '../dataplane/proxy/pressure.ts'
import type { Refusal } from '../dataplane/proxy/refusals.ts'
import { backoffMs } from '../lib/backoff.ts'
import { systemRandom } from '../lib/clock.ts'
import { describeError, MeshError } from '../lib/errors.ts'
import type { Log } from '../lib/log.ts'
import { formatAddress, isIpv6 } from '../model/address.ts'
import type { WorkerStatus } from '../model/admin.ts'
import type { Leaf, TrustBundle } from '../model/certificate.ts'
import type { LoadFacts, OutcomeFacts, ProbeFacts } from '../model/facts.ts'
import {
  diffSnapshots,
  emptySnapshot,
  type Snapshot,
  type SnapshotDelta,
} from '../model/snapshot.ts'
import type { WorkerTotals } from '../telemetry/totals.ts'
import { ListeningSockets, type PlannedSocket } from './listening-sockets.ts'

/** Options of a pool. */
export interface WorkerPoolOptions {
  readonly count: number
  /** The settings of every worker, without the individual ones. */
  readonly settings: Omit<WorkerSettings, 'id' | 'trafficMemory' | 'workerMemory'>
  readonly totals: WorkerTotals
  readonly log: Log
  /** Maximum bytes of one TCP segment of a tunnel; the kernel's limit if undefined. */
  readonly maxSegment?: number | undefined
  /** The sockets of the host; a set owned by the pool if undefined. */
  readonly sockets?: ListeningSockets
  /** Receives the workers' reports about the use of services; must not throw. */
  readonly onUse?: (message: UseMessage) => void
}

/** An address is wanted, or services are in use. */
export type UseMessage = Extract<FromWorker, { readonly kind: 'wanted' | 'used' }>

/** Delay before a crashed worker is replaced. */
const RESTART_BACKOFF = { minMs: 50, maxMs: 5_000 }

/** A worker that has run this long starts its back-off again. */
const STABLE_MS = 30_000

/** A worker that sends nothing for this long is stuck: it is ended and replaced. Milliseconds. */
const STUCK_MS = 10_000

/** Timeout of a worker's answer for the admin API, milliseconds. */
const ASK_TIMEOUT_MS = 2_000

/** Timeout of an answer to probes, milliseconds: each probe has its own deadlines for dialing and for the answer. */
const PROBE_TIMEOUT_MS = 8_000

/**
 * Size of a worker's young generation. Most allocations of a connection are short-lived; with V8's default the
 * 99th percentile of latency doubles (docs/performance.md).
 */
const YOUNG_GENERATION_MB = 32

/** An answer of a worker. */
type Answer = Extract<FromWorker, { readonly id: number }>

/** A question to a worker, without the number that the answer repeats. */
type Question = WithoutId<Extract<ToWorker, { readonly kind: 'ask' }>>

type WithoutId<T> = T extends unknown ? Omit<T, 'id' | 'kind'> : never

/** A socket of a worker; `kept` is its unique name on the host. */
type MemberSocket = WorkerSocket & { readonly kept: string }

interface Member {
  readonly id: number
  readonly sockets: MemberSocket[]
  thread: Worker | undefined
  state: WorkerStatus['state']
  restarts: number
  failures: number
  startedAtMs: number
  aliveAtMs: number
  /** The thread's last report about its shortages. */
  pressure: Pressure | undefined
  /** Number of the thread's memory in the totals. */
  memoryId: number
}

/** With an id that is unique over the life of this daemon. */
type Identified<T extends { readonly id: number }> = Omit<T, 'id'> & { readonly id: string }

/** Connections of all workers. */
export interface WorkerConnections {
  readonly connections: readonly Identified<ConnectionView>[]
  /** Number of open connections, listed or not, by worker id. */
  readonly countByWorker: readonly number[]
}

/** The data plane of this host, as the control plane sees it. */
export class WorkerPool {
  private readonly options: WorkerPoolOptions
  private readonly members: Member[]
  private readonly sockets: ListeningSockets
  private readonly leaves = new Map<string, Leaf>()
  private bundle: TrustBundle | undefined
  private snapshot: Snapshot = emptySnapshot
  private draining = false
  private listens = false
  private nextMemoryId = 0
  private nextQuestion = 0
  private watchdog: NodeJS.Timeout | undefined
  private watchedAtMs = 0
  private readonly questions = new Map<number, (answer: Answer) => void>()
  private readonly listeners = new Set<(member: Member, message: FromWorker | 'exit') => void>()

  constructor(options: WorkerPoolOptions) {
    this.options = options
    this.sockets = options.sockets ?? new ListeningSockets(options.log)
    this.members = Array.from({ length: options.count }, (_, id) => ({
      id,
      sockets: [],
      thread: undefined,
      state: 'starting',
      restarts: 0,
      failures: 0,
      startedAtMs: 0,
      aliveAtMs: 0,
      pressure: undefined,
      memoryId: 0,
    }))
  }

  /** Starts all workers. They receive state and do not accept connections yet. @throws MeshError HM_WORKER_FAILED */
  async prepare(): Promise<void> {
    // Before the first await: a pool that is ended during the start must clear this timer, too.
    this.watchdog = setInterval(() => this.endStuckWorkers(), STUCK_MS / 10)
    await Promise.all(
      this.members.map(async (member) => {
        const started = this.next(member, (m) => m === 'exit' || m.kind === 'started')
        this.spawn(member)
        if ((await started) === 'exit') throw cannotStart(member)
      }),
    )
  }

  /**
   * Opens the sockets and waits until all workers accept.
   * @throws MeshError HM_LISTEN_FAILED, or another error that keeps a worker from accepting
   */
  async listen(): Promise<void> {
    const planned = plannedSockets(this.options)
    for (const { id, sockets } of this.members)
      for (const listener of planned) {
        const socket = { ...listener, name: socketName(listener.name, id) }
        const fd = this.sockets.take(socket)
        if (fd !== undefined) sockets.push({ name: listener.name, kept: socket.name, fd })
      }
    this.takeSurplus(planned)
    this.sockets.closeUnused()
    this.listens = true
    await Promise.all(this.members.map((member) => this.listenFirst(member)))
    this.options.log.info('Listening', {
      addresses: planned.map(({ address }) => formatAddress(address)),
    })
  }

  /**
   * Distributes the sockets of an earlier daemon with more workers among the workers, and keeps them like their own:
   * the kernel resets connections that wait in a closed socket or arrive at that moment.
   */
  private takeSurplus(planned: readonly PlannedSocket[]): void {
    const listeners = new Map(planned.map((listener) => [listener.name, listener]))
    for (const kept of this.sockets.inheritedPorts().keys()) {
      const { name, worker } = partsOfSocketName(kept)
      const listener = listeners.get(name)
      const member = this.members[worker % this.members.length]
      if (listener === undefined || member === undefined) continue
      const fd = this.sockets.takeInherited({ ...listener, name: kept })
      if (fd !== undefined) member.sockets.push({ name, kept, fd })
    }
  }

  /** Sends a change to all workers. `snapshot` is the full state, kept for workers that start later. */
  publish(delta: SnapshotDelta, snapshot: Snapshot): void {
    this.snapshot = snapshot
    this.broadcast({ kind: 'snapshot', delta })
  }

  /** Sends a new leaf to all workers. */
  setLeaf(leaf: Leaf): void {
    this.leaves.set(leaf.service, leaf)
    this.broadcast({ kind: 'leaf', leaf })
  }

  /** Sends new roots to all workers. */
  setRoots(bundle: TrustBundle): void {
    this.bundle = bundle
    this.broadcast({ kind: 'roots', bundle })
  }

  /** The tunnels of all workers. */
  async peers(): Promise<readonly PeerView[]> {
    const answers = await this.ask({ what: 'peers' })
    return answers.flatMap((answer) => (answer?.kind === 'peers' ? answer.peers : []))
  }

  /** The instances that each worker has ejected. A worker that does not answer is left out. */
  async ejections(): Promise<readonly (readonly Ejection[])[]> {
    const answers = await this.ask({ what: 'ejections' })
    return answers.flatMap((answer) => (answer?.kind === 'ejections' ? [answer.ejections] : []))
  }

  /**
   * The connections of all workers, at most `limit` listed per worker. Ids are `<worker>-<number>`, or
   * `<worker>.<restarts>-<number>` for a worker that replaced another.
   */
  async connections(limit: number): Promise<WorkerConnections> {
    const answers = await this.ask({ what: 'connections', limit })
    const counted = answers.map((answer) => (answer?.kind === 'connections' ? answer.total : 0))
    return {
      connections: answers.flatMap((answer, worker) =>
        answer?.kind === 'connections'
          ? answer.connections.map((connection) => this.identified(worker, connection))
          : [],
      ),
      countByWorker: counted,
    }
  }

  /** One open connection; undefined when no open connection has this id. */
  async connection(id: string): Promise<Identified<ConnectionView> | undefined> {
    const member = this.members.find((each) => id.startsWith(prefixOf(each)))
    const number = member === undefined ? '' : id.slice(prefixOf(member).length)
    if (member === undefined || !/^\d{1,15}$/.test(number)) return undefined
    const answer = await this.askOne(member, { what: 'connection', connection: Number(number) })
    return answer?.kind === 'connection' && answer.connection !== undefined
      ? this.identified(member.id, answer.connection)
      : undefined
  }

  /** The last connections of all workers that were refused or broken off, newest first. */
  async refusals(): Promise<readonly Identified<Refusal>[]> {
    const answers = await this.ask({ what: 'refusals' })
    return answers
      .flatMap((answer, worker) =>
        answer?.kind === 'refusals'
          ? answer.refusals.map((refusal) => this.identified(worker, refusal))
          : [],
      )
      .toSorted((left, right) => right.endedAtMs - left.endedAtMs)
  }

  /** What the balancers have measured of the endpoints of one service, or of all services. */
  async loads(service: string | undefined): Promise<readonly LoadFacts[]> {
    const answers = await this.ask({ what: 'loads', service })
    return answers.flatMap((answer, worker) =>
      answer?.kind === 'loads' ? answer.loads.map((load) => ({ worker, ...load })) : [],
    )
  }

  /** The outcomes of the last connections of each pair, by worker. */
  async outcomes(): Promise<readonly OutcomeFacts[]> {
    const answers = await this.ask({ what: 'outcomes' })
    return answers.flatMap((answer, worker) =>
      answer?.kind === 'outcomes'
        ? answer.outcomes.map(({ okAtMs, failure, ...pair }) => ({
            worker,
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
    const member = this.members.find(({ state }) => state === 'running')
    if (member === undefined) return []
    const question = { what: 'probe', source, service, endpoints } as const
    const answer = await this.askOne(member, question, PROBE_TIMEOUT_MS)
    return answer?.kind !== 'probes'
      ? []
      : answer.probes.map(({ answer: said, flag, code, ...result }) => ({
          ...result,
          verdict: said?.verdict ?? null,
          application: said?.application ?? null,
          flag: flag ?? null,
          code: code ?? null,
        }))
  }

  /** State of each worker, with the number of connections that `connectionsOf` returns for it. */
  statuses(connectionsOf: (worker: number) => number): WorkerStatus[] {
    return this.members.map((member) => ({
      id: member.id,
      state: member.state,
      connections: connectionsOf(member.id),
      restarts: member.restarts,
    }))
  }

  /** The last reports of the running workers about their shortages. */
  pressures(): readonly Pressure[] {
    return this.members.flatMap(({ pressure }) => (pressure === undefined ? [] : [pressure]))
  }

  /** Accepts no new connections; open ones are reset after `deadlineMs`. Resolves when all are gone. */
  async drain(deadlineMs: number): Promise<void> {
    // Before the workers close their duplicates: otherwise new connections would wait in a socket that nobody serves.
    for (const { sockets } of this.members)
      for (const { kept } of sockets) this.sockets.giveUp(kept)
    await this.end({ kind: 'drain', deadlineMs, why: 'stop' })
  }

  /**
   * For a restart: the sockets stay open. New connections are accepted until all open ones have ended or `graceMs` is
   * over; later ones wait for the next process. Resolves when all are gone.
   */
  async drainForRestart(graceMs: number): Promise<void> {
    await this.end({ kind: 'drain', deadlineMs: graceMs, why: 'restart' })
  }

  /**
   * After another process has taken over the sockets: no new connections; open ones may continue for `deadlineMs`.
   * A second call shortens the deadline. Resolves when all are gone.
   */
  async retire(deadlineMs: number): Promise<void> {
    await this.end({ kind: 'drain', deadlineMs, why: 'handOver' })
  }

  private async end(order: Extract<ToWorker, { readonly kind: 'drain' }>): Promise<void> {
    this.draining = true
    clearInterval(this.watchdog)
    await Promise.all(
      this.members.map(async (member) => {
        const { thread } = member
        if (thread === undefined) return
        member.state = 'draining'
        const drained = this.next(
          member,
          (message) => message === 'exit' || message.kind === 'drained',
        )
        send(thread, order)
        await drained
        member.state = 'stopped'
        await thread.terminate()
      }),
    )
  }

  private async listenFirst(member: Member): Promise<void> {
    const listening = this.next(
      member,
      (message) =>
        message === 'exit' || message.kind === 'listening' || message.kind === 'cannotListen',
    )
    if (member.thread === undefined) throw cannotStart(member)
    send(member.thread, { kind: 'listen', sockets: member.sockets })
    const message = await listening
    if (message === 'exit') throw cannotStart(member)
    if (message.kind === 'cannotListen')
      throw new MeshError(message.code, message.message, {
        ...(message.hint !== undefined && { hint: message.hint }),
      })
  }

  private spawn(member: Member): void {
    const memoryId = this.nextMemoryId
    this.nextMemoryId += 1
    const memory = this.options.totals.attach(memoryId)
    const settings: WorkerSettings = {
      ...this.options.settings,
      id: member.id,
      trafficMemory: memory.traffic,
      workerMemory: memory.counters,
    }
    const thread = new Worker(workerFile(), {
      workerData: settings,
      resourceLimits: { maxYoungGenerationSizeMb: YOUNG_GENERATION_MB },
    })
    member.thread = thread
    member.memoryId = memoryId
    member.state = 'starting'
    member.startedAtMs = performance.now()
    member.aliveAtMs = member.startedAtMs
    thread.on('message', (message: FromWorker) => this.onMessage(member, message))
    thread.on('error', (error) => {
      this.options.log.error('Data-plane worker crashed', {
        worker: member.id,
        error: describeError(error),
        stack: error instanceof Error ? error.stack : undefined,
      })
    })
    thread.on('exit', (code) => this.onExit(member, code))
    send(thread, { kind: 'snapshot', delta: diffSnapshots(emptySnapshot, this.snapshot) })
    if (this.bundle !== undefined) send(thread, { kind: 'roots', bundle: this.bundle })
    for (const leaf of this.leaves.values()) send(thread, { kind: 'leaf', leaf })
    if (this.listens) send(thread, { kind: 'listen', sockets: member.sockets })
  }

  private onMessage(member: Member, message: FromWorker): void {
    switch (message.kind) {
      case 'row':
        this.options.totals.announce(member.memoryId, message.row, message.labels)
        break
      case 'listening':
        member.state = 'running'
        this.options.log.info('Data-plane worker is listening', { worker: member.id })
        break
      case 'cannotListen':
        this.options.log.error(message.message, { worker: member.id, code: message.code })
        // The first start reports the error to its caller; a replacement is ended and started again.
        if (member.restarts > 0) void member.thread?.terminate()
        break
      case 'peers':
      case 'ejections':
      case 'connections':
      case 'refusals':
      case 'connection':
      case 'loads':
      case 'outcomes':
      case 'probes':
        this.questions.get(message.id)?.(message)
        break
      case 'wanted':
      case 'used':
        this.options.onUse?.(message)
        break
      case 'alive':
        member.aliveAtMs = performance.now()
        member.pressure = message.pressure
        break
      case 'started':
      case 'drained':
        break
      default:
        message satisfies never
    }
    for (const listener of this.listeners) listener(member, message)
  }

  private onExit(member: Member, code: number): void {
    this.options.totals.retire(member.memoryId)
    const wasRunning = member.state === 'running'
    member.thread = undefined
    member.pressure = undefined
    member.state = 'stopped'
    for (const listener of this.listeners) listener(member, 'exit')
    if (this.draining || (!wasRunning && member.restarts === 0)) return
    if (performance.now() - member.startedAtMs > STABLE_MS) member.failures = 0
    const waitMs = backoffMs(member.failures, RESTART_BACKOFF, systemRandom)
    member.failures += 1
    member.restarts += 1
    this.options.log.error('Data-plane worker is gone and will be replaced', {
      worker: member.id,
      code,
      waitMs: Math.round(waitMs),
    })
    setTimeout(() => {
      if (!this.draining) this.spawn(member)
    }, waitMs)
  }

  private endStuckWorkers(): void {
    const nowMs = performance.now()
    // If this thread itself was blocked, the workers' messages are still unread.
    const wasLate = nowMs - this.watchedAtMs > STUCK_MS / 2
    this.watchedAtMs = nowMs
    if (wasLate) return
    for (const { id, thread, state, aliveAtMs } of this.members) {
      if (thread === undefined || state !== 'running' || nowMs - aliveAtMs < STUCK_MS) continue
      this.options.log.error('Data-plane worker is stuck and is ended', {
        worker: id,
        silentMs: Math.round(nowMs - aliveAtMs),
      })
      void thread.terminate()
    }
  }

  private broadcast(message: ToWorker): void {
    for (const { thread } of this.members) if (thread !== undefined) send(thread, message)
  }

  /** Answers by worker; undefined for a worker that does not answer in time. */
  private ask(question: Question): Promise<(Answer | undefined)[]> {
    return Promise.all(this.members.map((member) => this.askOne(member, question)))
  }

  private askOne(
    { thread }: Member,
    question: Question,
    timeoutMs: number = ASK_TIMEOUT_MS,
  ): Promise<Answer | undefined> {
    return new Promise((resolve) => {
      const id = this.nextQuestion
      this.nextQuestion += 1
      const settle = (answer: Answer | undefined): void => {
        clearTimeout(deadline)
        this.questions.delete(id)
        resolve(answer)
      }
      const deadline = setTimeout(() => settle(undefined), timeoutMs)
      this.questions.set(id, settle)
      if (thread === undefined) settle(undefined)
      else send(thread, { kind: 'ask', id, ...question })
    })
  }

  private identified<T extends { readonly id: number }>(worker: number, view: T): Identified<T> {
    const member = this.members[worker]
    return { ...view, id: `${member === undefined ? worker : prefixOf(member)}${view.id}` }
  }

  /** The next message of this worker that `wanted` accepts. */
  private next(
    member: Member,
    wanted: (message: FromWorker | 'exit') => boolean,
  ): Promise<FromWorker | 'exit'> {
    return new Promise((resolve) => {
      const listener = (from: Member, message: FromWorker | 'exit'): void => {
        if (from !== member || !wanted(message)) return
        this.listeners.delete(listener)
        resolve(message)
      }
      this.listeners.add(listener)
    })
  }
}

/** One per listener; each worker has its own copy of each, under its own name. */
function plannedSockets({ settings, maxSegment }: WorkerPoolOptions): readonly PlannedSocket[] {
  return [
    ...localListeners(settings).map(({ name, address, kind }) => ({
      name,
      address,
      kind: 'tcp' as const,
      // TPROXY needs it; iptables rules recognize the daemon's own sockets by it.
      transparent: kind === 'capture',
      // Without IPv6 nothing is diverted to these addresses.
      isOptional: kind === 'capture' && isIpv6(address.ip),
    })),
    ...tunnelListeners(settings).map(({ name, address }) => ({
      name,
      address,
      kind: 'tcp' as const,
      transparent: false,
      maxSegment,
      isOptional: false,
    })),
  ]
}

function cannotStart({ id }: Member): MeshError {
  return new MeshError('HM_WORKER_FAILED', `Cannot start data-plane worker ${id}`)
}

/** The unique name on the host of a worker's socket. */
function socketName(listener: string, worker: number): string {
  return `${listener}/${worker}`
}

/** The inverse of {@link socketName}; `worker` is NaN for a socket that belongs to no worker. */
function partsOfSocketName(name: string): { readonly name: string; readonly worker: number } {
  const end = name.lastIndexOf('/')
  return { name: name.slice(0, Math.max(0, end)), worker: Number(name.slice(end + 1)) }
}

function timeText(wallMs: number): string {
  return new Date(wallMs).toISOString()
}

/** Prefix of the ids of a worker's connections: a replacement counts from 1 again. */
function prefixOf({ id, restarts }: Member): string {
  return restarts === 0 ? `${id}-` : `${id}.${restarts}-`
}

function send(thread: Worker, message: ToWorker): void {
  thread.postMessage(message)
}

/** The worker's program: next to this file, as TypeScript or JavaScript like this file. */
function workerFile(): URL {
  const extension = import.meta.url.endsWith('.ts') ? 'ts' : 'js'
  return new URL(`../dataplane/worker.${extension}`, import.meta.url)
}
