/**
 * Reloads the daemon: checks the configuration on disk, starts the program on disk with it, and hands over. One reload
 * at a time. Also keeps the link to the replaced process while that process has connections.
 */
import { loadConfig } from '../config/load.ts'
import { describeError } from '../lib/errors.ts'
import type { Log } from '../lib/log.ts'
import type { SystemdEnvironment } from '../lib/systemd.ts'
import type { ReloadStatus } from '../model/admin.ts'
import { Problem } from '../model/problem.ts'
import { RECORD_SPAN_MS } from '../model/report.ts'
import { handOver, type Predecessor } from './hand-over.ts'
import { type Link, startSuccessor } from './hand-over-link.ts'
import type { ListeningSockets } from './listening-sockets.ts'
import type { Reporting } from './reports/reporting.ts'

/** Options of a reloader. */
export interface ReloaderOptions {
  readonly configPath: string
  readonly environment: SystemdEnvironment
  readonly log: Log
  readonly sockets: ListeningSockets
  readonly daemon: Predecessor & {
    readonly reporting: Pick<Reporting, 'release' | 'adopt'>
    awaited(): readonly string[]
    connectionCount(): Promise<number>
    retire(deadlineMs: number): Promise<void>
  }
  /** The process that this one replaced. */
  readonly predecessor: Link | undefined
}

/** The process that has replaced this one. */
export interface Replacement {
  readonly pid: number
  readonly link: Link
}

/** The status before the first reload. */
export const NEVER_RELOADED: ReloadStatus = {
  count: 0,
  state: 'none',
  reason: null,
  earlierConnections: null,
}

/** Timeouts of preparation and take-over, milliseconds. The successor reports earlier what it waits for in vain. */
const LIMITS = { prepareMs: 30_000, takeOverMs: 20_000 }

/** How often a replaced process reports its number of connections. Milliseconds. */
const TELL_MS = 1_000

/**
 * Maximum replaced processes that still drain. Each may use as much memory as a daemon for `timeouts.reloadDrain`; a
 * further reload ends the oldest.
 */
const MAX_DRAINING = 4

/** How long the connections of a process ended for that reason may continue. Milliseconds. */
const TOO_MANY_GRACE_MS = 5_000

/** Extra time for the replaced process to send its resets when the host stops. Milliseconds. */
const END_MARGIN_MS = 3_000

/** Runs reloads, see the file's head. */
export class Reloader {
  readonly #options: ReloaderOptions
  readonly #wasReplaced = Promise.withResolvers<Replacement>()
  readonly #stopping = new AbortController()
  #current: ReloadStatus = NEVER_RELOADED
  /** Whether the reload that started this process is not finished. */
  #isSucceeding = false
  #underWay: Promise<Replacement | undefined> = Promise.resolve(undefined)
  #failure: Problem | undefined
  #drainMs = 0

  constructor(options: ReloaderOptions) {
    this.#options = options
    options.predecessor?.listen((message) => {
      if (message === 'closed') {
        // The predecessor ended before it sent `main`: this is the main process, or it has given up by itself.
        if (this.#isSucceeding) this.#succeeded()
        this.#current = { ...this.#current, earlierConnections: null }
      } else if (message.kind === 'draining')
        this.#current = { ...this.#current, earlierConnections: message.connections }
      else if (message.kind === 'reports') options.daemon.reporting.adopt(message.kept)
      else if (message.kind === 'hello') {
        this.#isSucceeding = true
        this.#current = { ...this.#current, count: message.reloads, state: 'running' }
      } else if (message.kind === 'main') {
        this.#succeeded()
        this.#current = { ...this.#current, earlierConnections: 0 }
      }
    })
  }

  /** Resolves when another process has taken over. */
  get replaced(): Promise<Replacement> {
    return this.#wasReplaced.promise
  }

  status(): ReloadStatus {
    return this.#current
  }

  /** Why the last reload failed; undefined when it succeeded. */
  problem(): Problem | undefined {
    return this.#failure
  }

  /** Never rejects: log and status report a failure, and the daemon continues as before. */
  async reload(): Promise<void> {
    const { log } = this.#options
    if (this.#stopping.signal.aborted) log.warn('This process ends: it does not reload')
    else if (this.#current.state === 'running') log.warn('A reload is under way already')
    else await (this.#underWay = this.#replace())
  }

  /**
   * Called when the daemon must stop: ends the successor of a reload in progress, and this process owns everything
   * again. If the take-over is complete, tells the replacement to stop instead and returns it.
   */
  async giveUp(): Promise<Replacement | undefined> {
    if (this.#stopping.signal.aborted) return undefined
    this.#stopping.abort(new Error('the daemon was told to stop'))
    const replacement = await this.#underWay
    if (replacement !== undefined) process.kill(replacement.pid, 'SIGTERM')
    return replacement
  }

  #succeeded(): void {
    this.#isSucceeding = false
    this.#current = { ...this.#current, state: 'done' }
  }

  async #replace(): Promise<Replacement | undefined> {
    const { log, sockets, daemon, environment, configPath } = this.#options
    const count = this.#current.count + 1
    this.#current = { ...this.#current, count, state: 'running', reason: null }
    log.info('Reloading', { configPath })
    try {
      const { timeouts } = loadConfig(configPath)
      this.#drainMs = timeouts.reloadDrain
      const successor = startSuccessor({
        command: ownCommand(environment, configPath),
        sockets: sockets.all(),
        environment,
        hello: { kind: 'hello', awaited: daemon.awaited(), reloads: count },
      })
      const pid = await handOver(daemon, successor, {
        ...LIMITS,
        signal: this.#stopping.signal,
      })
      this.#current = { ...this.#current, state: 'done' }
      const replacement = { pid, link: successor.link }
      this.#wasReplaced.resolve(replacement)
      return replacement
    } catch (error) {
      const reason = describeError(error)
      // The reason is the subject: a new reason makes a new problem, which the log and systemd report.
      this.#failure = Problem.of(error, 'HM_RELOAD_FAILED', { subject: reason })
      this.#current = { ...this.#current, state: 'failed', reason }
      log.error('The reload has failed; the running configuration stays', { error: reason })
      return undefined
    }
  }

  /** After a reload: lets connections continue until they end, their time is over, or the host stops. */
  async retire(stopAsked: Promise<unknown>): Promise<void> {
    const { daemon, predecessor, log } = this.#options
    const { link: successor } = await this.replaced
    this.#stopping.abort()
    successor.send({ kind: 'main' })
    predecessor?.send({ kind: 'mayGoOn', processes: MAX_DRAINING - 1 })
    successor.listen((message) => {
      if (message === 'closed') return
      if (message.kind === 'end') {
        predecessor?.send(message)
        void daemon.retire(message.deadlineMs)
      } else if (message.kind === 'mayGoOn') {
        const { processes } = message
        predecessor?.send({ kind: 'mayGoOn', processes: Math.max(0, processes - 1) })
        if (processes > 0) return
        log.warn('Too many reloads: the connections that this process still has are ended', {
          pid: process.pid,
          processes: MAX_DRAINING,
          graceMs: TOO_MANY_GRACE_MS,
        })
        void daemon.retire(TOO_MANY_GRACE_MS)
      }
    })
    void stopAsked.then(() => daemon.retire(0))
    const timer = setInterval(() => {
      void daemon
        .connectionCount()
        .then((connections) => successor.send({ kind: 'draining', connections }))
    }, TELL_MS)
    const handReports = async (isLast: boolean): Promise<void> => {
      const kept = await daemon.reporting.release(isLast)
      if (Object.values(kept).some(({ length }) => length > 0))
        successor.send({ kind: 'reports', kept })
    }
    void handReports(false)
    const reportTimer = setInterval(() => void handReports(false), RECORD_SPAN_MS)
    await daemon.retire(this.#drainMs)
    clearInterval(timer)
    // This link also passes on a stop, and reports, to and from the process that this one replaced: wait for it.
    await predecessor?.closed
    clearInterval(reportTimer)
    await handReports(true)
    successor[Symbol.dispose]()
  }

  /** The host stops: ends the replaced process. Resolves when it is gone. */
  async endPredecessor(graceMs: number): Promise<void> {
    const { predecessor } = this.#options
    if (predecessor === undefined) return
    predecessor.send({ kind: 'end', deadlineMs: graceMs })
    const timer = setTimeout(() => predecessor[Symbol.dispose](), graceMs + END_MARGIN_MS)
    await predecessor.closed
    clearTimeout(timer)
  }
}

/** The command of the installed program; the command of this process if it was not started by the installed script. */
function ownCommand(environment: SystemdEnvironment, configPath: string): readonly string[] {
  const { HOSTMESH_COMMAND } = environment
  const program =
    HOSTMESH_COMMAND === undefined
      ? [process.execPath, ...process.execArgv, process.argv[1] ?? '']
      : [HOSTMESH_COMMAND]
  return [...program, 'run', '--config', configPath]
}
