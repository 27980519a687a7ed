/**
 * Starts, feeds and replaces the data-plane workers.
 *
 * Every worker gets the same snapshots and certificates and accepts on the same ports, each from sockets of its own that the
 * main thread keeps. A worker that dies takes its own connections with it and nothing else: new ones wait in the sockets
 * until its successor, which is fed the current state first, accepts them. What was fed last is kept here, for successors.
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

/** What a pool is built from. */
export interface WorkerPoolOptions {
  readonly count: number
  /** The settings of every worker, but for what is its own. */
  readonly settings: Omit<WorkerSettings, 'id' | 'trafficMemory' | 'workerMemory'>
  readonly totals: WorkerTotals
  readonly log: Log
  /** Most bytes of one segment of a tunnel; the kernel's own limit without it. */
  readonly maxSegment?: number | undefined
  /** The sockets of the host; those of the pool alone unless given. */
  readonly sockets?: ListeningSockets
  /** What workers say of the use of services; must not throw. */
  readonly onUse?: (message: UseMessage) => void
}

/** An address is wanted, or services are in use. */
export type UseMessage = Extract<FromWorker, { readonly kind: 'wanted' | 'used' }>

/** A dead worker is replaced after this. */
const RESTART_BACKOFF = { minMs: 50, maxMs: 5_000 }

/** A worker that has run for so long starts its back-off anew. */
const STABLE_MS = 30_000

/** A worker that says nothing for so long is stuck: it is ended and replaced. Milliseconds. */
const STUCK_MS = 10_000

/** How long a worker may take to answer the admin API, milliseconds. */
const ASK_TIMEOUT_MS = 2_000

/** How long it may take for probes: each has deadlines of its own, to dial and to be answered. */
const PROBE_TIMEOUT_MS = 8_000

/**
 * Size of a worker's young generation. Most of what a connection allocates dies young; at V8's default the
 * 99th percentile of latency doubles (docs/performance.md).
 */
const YOUNG_GENERATION_MB = 32

/** What one answer of a worker looks like. */
type Answer = Extract<FromWorker, { readonly id: number }>

/** A question to a worker, without the number that its answer will carry. */
type Question = WithoutId<Extract<ToWorker, { readonly kind: 'ask' }>>

type WithoutId<T> = T extends unknown ? Omit<T, 'id' | 'kind'> : never

/** A socket of a worker; `kept` is its name among all of the host. */
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
  /** What the thread said last of what it is short of. */
  pressure: Pressure | undefined
  /** Number of the thread's memory in the totals. */
  memoryId: number
}

/** With an id that no other connection of this daemon has or had. */
type Identified<T extends { readonly id: number }> = Omit<T, 'id'> & { readonly id: string }

/** Connections of all workers. */
export interface WorkerConnections {
  readonly connections: readonly Identified<ConnectionView>[]
  /** All open ones, listed or not, by worker id. */
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

  /** Starts all workers, which take what they are fed and accept nothing yet. @throws MeshError HM_WORKER_FAILED */
  async prepare(): Promise<void> {
    // Before anything is waited for: a pool that is ended meanwhile ends it, too.
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
   * @throws MeshError HM_LISTEN_FAILED, or what else keeps one from it
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
   * The sockets of an earlier daemon that had more workers are dealt out to those of this one, and kept like their own: the
   * kernel resets who waits in one that is closed, and who connects in that moment.
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

  /** Feeds what changed. `snapshot` is the whole, kept for workers that start later. */
  publish(delta: SnapshotDelta, snapshot: Snapshot): void {
    this.snapshot = snapshot
    this.tell({ kind: 'snapshot', delta })
  }

  /** Feeds a new leaf. */
  setLeaf(leaf: Leaf): void {
    this.leaves.set(leaf.service, leaf)
    this.tell({ kind: 'leaf', leaf })
  }

  /** Feeds new roots. */
  setRoots(bundle: TrustBundle): void {
    this.bundle = bundle
    this.tell({ kind: 'roots', bundle })
  }

  /** The tunnels of all workers. */
  async peers(): Promise<readonly PeerView[]> {
    const answers = await this.ask({ what: 'peers' })
    return answers.flatMap((answer) => (answer?.kind === 'peers' ? answer.peers : []))
  }

  /** The instances that each worker avoids. A worker that does not answer is left out. */
  async ejections(): Promise<readonly (readonly Ejection[])[]> {
    const answers = await this.ask({ what: 'ejections' })
    return answers.flatMap((answer) => (answer?.kind === 'ejections' ? [answer.ejections] : []))
  }

  /**
   * The connections of all workers, at most `limit` listed of each. Ids are `<worker>-<number>`, and
   * `<worker>.<restarts>-<number>` of a worker that replaced one.
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

  /** One open connection; undefined when there is none of that id. */
  async connection(id: string): Promise<Identified<ConnectionView> | undefined> {
    const member = this.members.find((each) => id.startsWith(prefixOf(each)))
    const number = member === undefined ? '' : id.slice(prefixOf(member).length)
    if (member === undefined || !/^\d{1,15}$/.test(number)) return undefined
    const answer = await this.askOne(member, { what: 'connection', connection: Number(number) })
    return answer?.kind === 'connection' && answer.connection !== undefined
      ? this.identified(member.id, answer.connection)
      : undefined
  }

  /** The last connections that were refused or broken off, of all workers, newest first. */
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

  /** What the balancers have learned of the endpoints of a service, or of all services. */
  async loads(service: string | undefined): Promise<readonly LoadFacts[]> {
    const answers = await this.ask({ what: 'loads', service })
    return answers.flatMap((answer, worker) =>
      answer?.kind === 'loads' ? answer.loads.map((load) => ({ worker, ...load })) : [],
    )
  }

  /** What became of the last connections of each pair, in each worker. */
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

  /** What the daemons of these instances say now of a connection of `source`; by one worker that runs. */
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

  /** State of each worker, with the connections that the caller counts for it. */
  statuses(connectionsOf: (worker: number) => number): WorkerStatus[] {
    return this.members.map((member) => ({
      id: member.id,
      state: member.state,
      connections: connectionsOf(member.id),
      restarts: member.restarts,
    }))
  }

  /** What the workers that run have said last of what they are short of. */
  pressures(): readonly Pressure[] {
    return this.members.flatMap(({ pressure }) => (pressure === undefined ? [] : [pressure]))
  }

  /** No new connections; open ones may go on for `deadlineMs`, then they are reset. Resolves when all are gone. */
  async drain(deadlineMs: number): Promise<void> {
    // Before the workers close theirs: otherwise new connections would wait for nobody.
    for (const { sockets } of this.members)
      for (const { kept } of sockets) this.sockets.giveUp(kept)
    await this.end({ kind: 'drain', deadlineMs, why: 'stop' })
  }

  /**
   * For a restart: the sockets stay, and new connections are served until the open ones have ended or `graceMs` is
   * over; from then on they wait for the next process. Resolves when all are gone.
   */
  async drainForRestart(graceMs: number): Promise<void> {
    await this.end({ kind: 'drain', deadlineMs: graceMs, why: 'restart' })
  }

  /**
   * After another process has taken the sockets over: no new connections, and open ones may go on for `deadlineMs`.
   * Said again it brings the deadline forward. Resolves when all are gone.
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
        // The first start reports it to its caller; a replacement tries again.
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
    // If this thread itself was stuck, the workers' messages are still unread.
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

  private tell(message: ToWorker): void {
    for (const { thread } of this.members) if (thread !== undefined) send(thread, message)
  }

  /** By worker; undefined for one that does not answer in time. */
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

  /** The next message of a worker that is looked for. */
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

/** One for each listener; each worker has them all, under a name of its own. */
function plannedSockets({ settings, maxSegment }: WorkerPoolOptions): readonly PlannedSocket[] {
  return [
    ...localListeners(settings).map(({ name, address, kind }) => ({
      name,
      address,
      kind: 'tcp' as const,
      // TPROXY needs it; rules of iptables know the daemon's own socket by it.
      transparent: kind === 'capture',
      // Without IPv6 nothing is diverted there either.
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

/** Of a worker's socket among all of the host. */
function socketName(listener: string, worker: number): string {
  return `${listener}/${worker}`
}

/** The other way round; a worker that is no number for what is no worker's. */
function partsOfSocketName(name: string): { readonly name: string; readonly worker: number } {
  const end = name.lastIndexOf('/')
  return { name: name.slice(0, Math.max(0, end)), worker: Number(name.slice(end + 1)) }
}

function timeText(wallMs: number): string {
  return new Date(wallMs).toISOString()
}

/** What the ids of a worker's connections begin with; a successor counts from 1 again. */
function prefixOf({ id, restarts }: Member): string {
  return restarts === 0 ? `${id}-` : `${id}.${restarts}-`
}

function send(thread: Worker, message: ToWorker): void {
  thread.postMessage(message)
}

/** The worker's program: beside this one, in the language this one is in. */
function workerFile(): URL {
  const extension = import.meta.url.endsWith('.ts') ? 'ts' : 'js'
  return new URL(`../dataplane/worker.${extension}`, import.meta.url)
}
