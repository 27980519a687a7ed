/**
 * Communication between the daemon and systemd: ready, stopping, a status line, the watchdog; and the listening sockets
 * that systemd keeps while no daemon runs.
 *
 * ```
 *   starting --ready()--> ready --stopping()--> stopping
 *       \_________________stopping()_______________/
 * ```
 *
 * READY=1 never follows STOPPING=1. Outside systemd (no $NOTIFY_SOCKET) all of this does nothing. Owns the
 * watchdog timer; restarts are decided by the unit.
 */
import { rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { describeError } from './errors.ts'
import type { Log } from './log.ts'
import { openSystemdSocket, type SystemdSocket } from './systemd-notify.ts'

/** The service manager, as the daemon sees it. */
export interface Systemd extends Disposable {
  /** Services ordered after this one may start. Starts the watchdog: the start timeout covers a stall before. */
  ready(): void
  /** The host serves: creates a file that hostmesh-ready.path waits for. It exists until {@link stopping}. */
  serves(): void
  /** The host is shutting down. The watchdog is still notified, because a drain may take long. */
  stopping(): void
  /** One line for `systemctl status`; control characters become spaces. */
  status(text: string): void
  /** Makes systemd keep a socket over restart and crash. Sent in order with {@link forget}; retried if necessary. */
  keep(name: string, fd: number): void
  /** Makes systemd close the sockets that it keeps under this name. */
  forget(name: string): void
  /** Makes `pid` the service's main process: systemd ignores this process from now on, and it sends nothing more. */
  handOver(pid: number): void
  /** This process is the main one now: its pending messages about sockets and readiness are sent. */
  takeOver(): void
}

/** A descriptor that this process inherited. */
export interface InheritedSocket {
  readonly name: string
  readonly fd: number
}

/** The environment variables by which systemd communicates with a service. */
export interface SystemdEnvironment {
  readonly NOTIFY_SOCKET?: string | undefined
  readonly WATCHDOG_USEC?: string | undefined
  readonly WATCHDOG_PID?: string | undefined
  readonly RUNTIME_DIRECTORY?: string | undefined
  readonly LISTEN_PID?: string | undefined
  readonly LISTEN_FDS?: string | undefined
  readonly LISTEN_FDNAMES?: string | undefined
  /** The path of the command as called, set by scripts/hostmesh: a reload starts it. */
  readonly HOSTMESH_COMMAND?: string | undefined
}

/** Options of {@link connectSystemd}. */
export interface SystemdOptions {
  readonly log: Log
  /** Whether the daemon is working; checked before each watchdog message. If false, the message is withheld. */
  readonly isAlive?: (() => boolean) | undefined
  readonly environment: SystemdEnvironment
  /** Whether another process is still the service's main one: until {@link Systemd.takeOver} nothing is sent. */
  readonly isSuccessor?: boolean
}

/** Maximum length of a status line, in characters. */
const MAX_STATUS = 200

/** A file in the runtime directory while the host serves. systemd removes the directory when the service is down. */
const SERVING_MARK = 'serving'

/** The first descriptor after standard input, output and error. */
const FIRST_INHERITED = 3

/** More than systemd ever passes. */
const MAX_INHERITED = 65_536

/** Retry interval for messages about sockets, which must not be lost: systemd's socket queues few. Milliseconds. */
const SEND_AGAIN_MS = 10

/**
 * Removes systemd's variables from this process's environment, so that programs started by the daemon do not
 * send in its name. Call it once, early.
 */
export function takeSystemdEnvironment(): SystemdEnvironment {
  // oxlint-disable-next-line node/no-process-env -- the protocol with systemd is these variables; they are no configuration
  const env = process.env
  const environment = {
    NOTIFY_SOCKET: env['NOTIFY_SOCKET'],
    WATCHDOG_USEC: env['WATCHDOG_USEC'],
    WATCHDOG_PID: env['WATCHDOG_PID'],
    RUNTIME_DIRECTORY: env['RUNTIME_DIRECTORY'],
    LISTEN_PID: env['LISTEN_PID'],
    LISTEN_FDS: env['LISTEN_FDS'],
    LISTEN_FDNAMES: env['LISTEN_FDNAMES'],
    HOSTMESH_COMMAND: env['HOSTMESH_COMMAND'],
  }
  for (const name of Object.keys(environment)) delete env[name]
  return environment
}

/** Descriptors passed to process `pid` by systemd or an earlier daemon, as in sd_listen_fds_with_names(3). */
export function inheritedSockets(
  environment: SystemdEnvironment,
  pid: number = process.pid,
): readonly InheritedSocket[] {
  const { LISTEN_PID, LISTEN_FDS, LISTEN_FDNAMES = '' } = environment
  const count = Number(LISTEN_FDS ?? '')
  if (Number(LISTEN_PID ?? '') !== pid || !Number.isInteger(count) || count < 1) return []
  if (count > MAX_INHERITED) return []
  const names = LISTEN_FDNAMES.split(':')
  return Array.from({ length: count }, (_, i) => ({
    name: names[i] ?? '',
    fd: FIRST_INHERITED + i,
  }))
}

/** Connects to systemd. Never throws: on failure the daemon runs without it, and the failure is logged. */
export function connectSystemd(options: SystemdOptions): Systemd {
  const { environment, log } = options
  const socket = openSocket(environment, log)
  if (socket === undefined) return silentSystemd
  return new NotifiedSystemd(socket, options)
}

class NotifiedSystemd implements Systemd {
  readonly #socket: SystemdSocket
  readonly #options: SystemdOptions
  /** The file that says that the host serves; undefined without a runtime directory. */
  readonly #mark: string | undefined
  #state: 'starting' | 'ready' | 'stopping' = 'starting'
  #isMain: boolean
  #isReadyHeld = false
  #watchdog: NodeJS.Timeout | undefined
  /** Messages about sockets, in order. */
  readonly #unsent: { readonly message: string; readonly fd: number | undefined }[] = []
  #sendingAgain: NodeJS.Timeout | undefined

  constructor(socket: SystemdSocket, options: SystemdOptions) {
    const { RUNTIME_DIRECTORY: folder } = options.environment
    this.#socket = socket
    this.#options = options
    this.#mark = folder === undefined ? undefined : join(folder, SERVING_MARK)
    this.#isMain = options.isSuccessor !== true
  }

  ready(): void {
    if (this.#state !== 'starting') return
    this.#isReadyHeld = !this.#isMain
    if (this.#isReadyHeld) return
    this.#state = 'ready'
    this.#send('READY=1')
    this.#startWatchdog()
  }

  serves(): void {
    const mark = this.#mark
    if (mark === undefined || !this.#isMain || this.#state === 'stopping') return
    try {
      writeFileSync(mark, '')
    } catch (error) {
      this.#options.log.error(
        'Cannot say that this host serves: hostmesh-ready.target is not reached',
        { path: mark, error: describeError(error) },
      )
    }
  }

  stopping(): void {
    if (this.#state === 'stopping') return
    this.#state = 'stopping'
    if (this.#mark !== undefined) rmSync(this.#mark, { force: true })
    this.#send('STOPPING=1')
  }

  status(text: string): void {
    // A newline would begin another message: all control characters are replaced.
    this.#send(`STATUS=${text.replaceAll(/\p{Cc}+/gu, ' ').slice(0, MAX_STATUS)}`)
  }

  keep(name: string, fd: number): void {
    // FDPOLL=0: a listening socket is kept until it is taken back, whatever its state is.
    this.#sendSurely(`FDSTORE=1\nFDNAME=${name}\nFDPOLL=0`, fd)
  }

  forget(name: string): void {
    this.#sendSurely(`FDSTOREREMOVE=1\nFDNAME=${name}`)
  }

  handOver(pid: number): void {
    this.#send(`MAINPID=${pid}`)
    this.#isMain = false
    clearInterval(this.#watchdog)
  }

  takeOver(): void {
    this.#isMain = true
    this.#sendAll()
    if (this.#isReadyHeld) this.ready()
  }

  [Symbol.dispose](): void {
    clearTimeout(this.#sendingAgain)
    clearInterval(this.#watchdog)
    this.#socket[Symbol.dispose]()
  }

  #send(message: string): void {
    if (this.#isMain && !this.#socket.send(message))
      this.#options.log.warn('Cannot notify systemd', { message })
  }

  #sendSurely(message: string, fd?: number): void {
    this.#unsent.push({ message, fd })
    if (this.#sendingAgain === undefined) this.#sendAll()
  }

  #sendAll(): void {
    this.#sendingAgain = undefined
    if (!this.#isMain) return
    for (let next = this.#unsent[0]; next !== undefined; next = this.#unsent[0]) {
      if (!this.#socket.send(next.message, next.fd)) {
        this.#sendingAgain = setTimeout(() => this.#sendAll(), SEND_AGAIN_MS).unref()
        return
      }
      this.#unsent.shift()
    }
  }

  #startWatchdog(): void {
    const { environment, log, isAlive } = this.#options
    const periodMs = watchdogPeriodMs(environment)
    if (periodMs === undefined) return
    const feed = (): void => {
      if (isAlive?.() ?? true) this.#send('WATCHDOG=1')
      else log.error('Withholding the systemd watchdog: the daemon does not do its work')
    }
    feed()
    this.#watchdog = setInterval(feed, periodMs).unref()
  }
}

const silentSystemd: Systemd = {
  ready: () => undefined,
  serves: () => undefined,
  stopping: () => undefined,
  status: () => undefined,
  keep: () => undefined,
  forget: () => undefined,
  handOver: () => undefined,
  takeOver: () => undefined,
  [Symbol.dispose]: () => undefined,
}

function openSocket(environment: SystemdEnvironment, log: Log): SystemdSocket | undefined {
  const name = environment.NOTIFY_SOCKET
  if (name === undefined || name === '') return undefined
  try {
    return openSystemdSocket(name)
  } catch (error) {
    log.error('Cannot notify systemd', { error: describeError(error) })
    return undefined
  }
}

/** Half of systemd's watchdog timeout; undefined when systemd watches nothing, or another process. */
function watchdogPeriodMs(environment: SystemdEnvironment): number | undefined {
  const timeoutUs = Number(environment.WATCHDOG_USEC ?? '')
  if (!Number.isFinite(timeoutUs) || timeoutUs <= 0) return undefined
  const pid = environment.WATCHDOG_PID
  if (pid !== undefined && pid !== '' && Number(pid) !== process.pid) return undefined
  return Math.max(1, Math.floor(timeoutUs / 2_000))
}
