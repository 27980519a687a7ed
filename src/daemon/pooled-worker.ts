/**
 * One worker of the pool: its thread, the threads that replace it after a crash, and the messages in both directions.
 *
 * ```
 *   starting --'listening'--> running --end()--> draining --'drained'--> stopped
 *       \________________ exit __/  (new one after a back-off, unless ending)
 * ```
 */
import { closeSync } from 'node:fs'
import { Worker } from 'node:worker_threads'
import type { FromWorker, ToWorker, WorkerSettings, WorkerSocket } from '../dataplane/protocol.ts'
import type { Pressure } from '../dataplane/proxy/pressure.ts'
import { Retry } from '../lib/backoff.ts'
import { systemClock, systemRandom } from '../lib/clock.ts'
import { describeError, MeshError } from '../lib/errors.ts'
import type { Log } from '../lib/log.ts'
import type { WorkerStatus } from '../model/admin.ts'
import type { WorkerTotals } from '../telemetry/totals.ts'

/** What a worker is built from. */
export interface PooledWorkerOptions {
  readonly id: number
  /** The settings of every worker, without the individual ones. */
  readonly settings: Omit<WorkerSettings, 'id' | 'idPrefix' | 'trafficMemory' | 'workerMemory'>
  readonly totals: WorkerTotals
  readonly log: Log
  /** A number for the memory of a new thread, unique in the totals. */
  readonly nextMemoryId: () => number
  /** The messages that give a new thread the current state. */
  readonly state: () => readonly ToWorker[]
  /** Receives the reports about the use of services; must not throw. */
  readonly onUse: (message: UseMessage) => void
  /** Writes lines of the access log to its file; resolves when they are written or lost, never rejects. */
  readonly writeAccessLines: (text: string, lines: number) => Promise<void>
}

/** An address is wanted, or services are in use. */
export type UseMessage = Extract<FromWorker, { readonly kind: 'wanted' | 'used' }>

/** An answer of a worker. */
export type Answer = Extract<FromWorker, { readonly id: number }>

/** A question to a worker, without the number that the answer repeats. */
export type Question = WithoutId<Extract<ToWorker, { readonly kind: 'ask' }>>

type WithoutId<T> = T extends unknown ? Omit<T, 'id' | 'kind'> : never

/** How a worker is told to end. */
export type DrainOrder = Extract<ToWorker, { readonly kind: 'drain' }>

/** A message of a thread, or its end. */
type WorkerEvent = FromWorker | 'exit'

/** Delay before a crashed thread is replaced. */
const RESTART_BACKOFF = { minMs: 50, maxMs: 5_000 }

/** A thread that has run this long starts the back-off again. */
const STABLE_MS = 30_000

/**
 * Size of a worker's young generation. Most allocations of a connection are short-lived; with V8's default the
 * 99th percentile of latency doubles (docs/performance.md).
 */
const YOUNG_GENERATION_MB = 32

/** One worker; {@link PooledWorker.start} starts its first thread. */
export class PooledWorker {
  readonly id: number
  readonly #options: PooledWorkerOptions
  readonly #retry = new Retry(RESTART_BACKOFF, systemClock, systemRandom)
  readonly #listeners = new Set<(event: WorkerEvent) => void>()
  readonly #questions = new Map<number, (answer: Answer) => void>()
  #thread: Worker | undefined
  #state: WorkerStatus['state'] = 'starting'
  #restarts = 0
  /** Undefined until {@link PooledWorker.listen}. */
  #sockets: readonly WorkerSocket[] | undefined
  #isEnding = false
  #startedAtMs = 0
  #aliveAtMs = 0
  #pressure: Pressure | undefined
  /** The number of the thread's memory in the totals. */
  #memoryId = 0
  #nextQuestion = 0
  /** Descriptors that the thread will own, and has not taken yet. */
  readonly #handed = new Set<number>()

  constructor(options: PooledWorkerOptions) {
    this.id = options.id
    this.#options = options
  }

  /** The running thread; undefined while there is none. */
  get thread(): Worker | undefined {
    return this.#thread
  }

  /** Whether it accepts connections. */
  get isRunning(): boolean {
    return this.#state === 'running'
  }

  /** The thread's last report about its shortages. */
  get pressure(): Pressure | undefined {
    return this.#pressure
  }

  /** Prefix of the ids of its connections: a replacement counts from 1 again. */
  get prefix(): string {
    return this.#restarts === 0 ? `${this.id}-` : `${this.id}.${this.#restarts}-`
  }

  /** Its state, with a number of connections that the caller knows. */
  status(connections: number): WorkerStatus {
    return { id: this.id, state: this.#state, connections, restarts: this.#restarts }
  }

  /** Starts the first thread, which does not accept connections yet. @throws MeshError HM_WORKER_FAILED */
  async start(): Promise<void> {
    const started = this.#next((event) => event === 'exit' || event.kind === 'started')
    this.#spawn()
    if ((await started) === 'exit') throw this.#cannotStart()
  }

  /**
   * Accepts connections from these sockets, as every later thread does. Resolves when the first thread accepts.
   * @throws MeshError HM_WORKER_FAILED, or another error that keeps it from accepting
   */
  async listen(sockets: readonly WorkerSocket[]): Promise<void> {
    this.#sockets = sockets
    const listening = this.#next(
      (event) => event === 'exit' || event.kind === 'listening' || event.kind === 'cannotListen',
    )
    if (this.#thread === undefined) throw this.#cannotStart()
    this.send({ kind: 'listen', sockets })
    const event = await listening
    if (event === 'exit') throw this.#cannotStart()
    if (event.kind === 'cannotListen')
      throw new MeshError(event.code, event.message, {
        ...(event.hint !== undefined && { hint: event.hint }),
      })
  }

  /** Sends a message; does nothing while there is no thread. */
  send(message: ToWorker): void {
    this.#thread?.postMessage(message)
  }

  /** Sends a connection; its descriptor is closed if there is no thread, or the thread ends before it takes it. */
  dial(message: Extract<ToWorker, { kind: 'dial' }>): void {
    this.#handed.add(message.fd)
    if (this.#thread === undefined) this.#closeHanded()
    else this.send(message)
  }

  /** The answer; undefined when it does not come within `timeoutMs`. */
  ask(question: Question, timeoutMs: number): Promise<Answer | undefined> {
    return new Promise((resolve) => {
      const id = this.#nextQuestion
      this.#nextQuestion += 1
      const settle = (answer: Answer | undefined): void => {
        clearTimeout(deadline)
        this.#questions.delete(id)
        resolve(answer)
      }
      const deadline = setTimeout(() => settle(undefined), timeoutMs)
      this.#questions.set(id, settle)
      if (this.#thread === undefined) settle(undefined)
      else this.send({ kind: 'ask', id, ...question })
    })
  }

  /** Ends its thread, which will be replaced, when that is running and has sent nothing for `stuckMs`. */
  endIfStuck(stuckMs: number): void {
    const silentMs = performance.now() - this.#aliveAtMs
    if (this.#thread === undefined || !this.isRunning || silentMs < stuckMs) return
    this.#options.log.error('Data-plane worker is stuck and is ended', {
      worker: this.id,
      silentMs: Math.round(silentMs),
    })
    void this.#thread.terminate()
  }

  /** Ends it. A later order can bring the deadline forward. Resolves when it is gone. */
  async end(order: DrainOrder): Promise<void> {
    this.#isEnding = true
    const thread = this.#thread
    if (thread === undefined) return
    this.#state = 'draining'
    const drained = this.#next((event) => event === 'exit' || event.kind === 'drained')
    this.send(order)
    await drained
    this.#state = 'stopped'
    await thread.terminate()
  }

  #spawn(): void {
    const { id, settings, totals, log, nextMemoryId, state } = this.#options
    this.#memoryId = nextMemoryId()
    const memory = totals.attach(this.#memoryId)
    const workerData: WorkerSettings = {
      ...settings,
      id,
      idPrefix: this.prefix,
      trafficMemory: memory.traffic,
      workerMemory: memory.counters,
    }
    const thread = new Worker(workerFile(), {
      workerData,
      resourceLimits: { maxYoungGenerationSizeMb: YOUNG_GENERATION_MB },
    })
    this.#thread = thread
    this.#state = 'starting'
    this.#startedAtMs = performance.now()
    this.#aliveAtMs = this.#startedAtMs
    thread.on('message', (message: FromWorker) => this.#onMessage(message))
    thread.on('error', (error) => {
      log.error('Data-plane worker crashed', {
        worker: id,
        error: describeError(error),
        stack: error instanceof Error ? error.stack : undefined,
      })
    })
    thread.on('exit', (code) => this.#onExit(code))
    for (const message of state()) this.send(message)
    if (this.#sockets !== undefined) this.send({ kind: 'listen', sockets: this.#sockets })
  }

  #onMessage(message: FromWorker): void {
    const { totals, log, onUse, writeAccessLines } = this.#options
    switch (message.kind) {
      case 'row':
        totals.announce(this.#memoryId, message.row, message.labels)
        break
      case 'listening':
        this.#state = 'running'
        log.info('Data-plane worker is listening', { worker: this.id })
        break
      case 'cannotListen':
        log.error(message.message, { worker: this.id, code: message.code })
        // The first start reports the error to its caller; a replacement is ended and started again.
        if (this.#restarts > 0) void this.#thread?.terminate()
        break
      case 'peers':
      case 'ejections':
      case 'connections':
      case 'refusals':
      case 'connection':
      case 'loads':
      case 'outcomes':
      case 'probes':
        this.#questions.get(message.id)?.(message)
        break
      case 'wanted':
      case 'used':
        onUse(message)
        break
      case 'dialed':
        this.#handed.delete(message.fd)
        break
      case 'accessLines': {
        const { text, lines } = message
        const written = (): void => this.send({ kind: 'accessWritten', bytes: text.length })
        void writeAccessLines(text, lines).then(written)
        break
      }
      case 'alive':
        this.#aliveAtMs = performance.now()
        this.#pressure = message.pressure
        break
      case 'started':
      case 'drained':
        break
      default:
        message satisfies never
    }
    for (const listener of this.#listeners) listener(message)
  }

  #onExit(code: number): void {
    const { totals, log } = this.#options
    totals.retire(this.#memoryId)
    const wasRunning = this.isRunning
    this.#thread = undefined
    // All that the thread sent has been received: nobody owns what it has not taken.
    this.#closeHanded()
    this.#pressure = undefined
    this.#state = 'stopped'
    for (const listener of this.#listeners) listener('exit')
    if (this.#isEnding || (!wasRunning && this.#restarts === 0)) return
    if (performance.now() - this.#startedAtMs > STABLE_MS) this.#retry.reset()
    const waitMs = this.#retry.failed()
    this.#restarts += 1
    log.error('Data-plane worker is gone and will be replaced', {
      worker: this.id,
      code,
      waitMs: Math.round(waitMs),
    })
    setTimeout(() => {
      if (!this.#isEnding) this.#spawn()
    }, waitMs)
  }

  #closeHanded(): void {
    for (const fd of this.#handed) closeSync(fd)
    this.#handed.clear()
  }

  /** The next event that `wanted` accepts. */
  #next(wanted: (event: WorkerEvent) => boolean): Promise<WorkerEvent> {
    return new Promise((resolve) => {
      const listener = (event: WorkerEvent): void => {
        if (!wanted(event)) return
        this.#listeners.delete(listener)
        resolve(event)
      }
      this.#listeners.add(listener)
    })
  }

  #cannotStart(): MeshError {
    return new MeshError('HM_WORKER_FAILED', `Cannot start data-plane worker ${this.id}`)
  }
}

/** The worker's program: next to this file, as TypeScript or JavaScript like this file. */
function workerFile(): URL {
  const extension = import.meta.url.endsWith('.ts') ? 'ts' : 'js'
  return new URL(`../dataplane/worker.${extension}`, import.meta.url)
}
