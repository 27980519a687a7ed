/**
 * What the daemon tells systemd: ready, stopping, a line of status, and that it is still alive.
 *
 * ```
 *   starting --ready()--> ready --stopping()--> stopping
 *       \_________________stopping()_______________/
 * ```
 *
 * READY=1 never follows STOPPING=1. Outside systemd (no $NOTIFY_SOCKET) all of this does nothing. Owns the
 * watchdog timer; decides nothing about restarts, that is the unit's.
 */
import { describeError } from '../lib/errors.ts'
import type { Log } from '../lib/log.ts'
import { openSystemdSocket, type SystemdSocket } from '../lib/systemd-notify.ts'

/** The service manager, as the daemon sees it. */
export interface Systemd extends Disposable {
  /** The host takes traffic. Also starts the watchdog: a stall while starting is the start timeout's. */
  ready(): void
  /** The host is going down. The watchdog is fed on, for a drain may take long. */
  stopping(): void
  /** One line for `systemctl status`; control characters become spaces. */
  status(text: string): void
}

/** The variables by which systemd speaks to a service. */
export interface SystemdEnvironment {
  readonly NOTIFY_SOCKET?: string | undefined
  readonly WATCHDOG_USEC?: string | undefined
  readonly WATCHDOG_PID?: string | undefined
}

/** What {@link connectSystemd} needs. */
export interface SystemdOptions {
  readonly log: Log
  /** Whether the daemon does its work; asked before each watchdog message. False withholds it. */
  readonly isAlive?: (() => boolean) | undefined
  readonly environment: SystemdEnvironment
}

/** Longest status line, in characters. */
const MAX_STATUS = 200

/**
 * Takes systemd's variables out of this process' environment, so that programs the daemon starts do not
 * speak in its name. Call it once, early.
 */
export function takeSystemdEnvironment(): SystemdEnvironment {
  // oxlint-disable-next-line node/no-process-env -- the protocol with systemd is these variables; they are no configuration
  const env = process.env
  const environment = {
    NOTIFY_SOCKET: env['NOTIFY_SOCKET'],
    WATCHDOG_USEC: env['WATCHDOG_USEC'],
    WATCHDOG_PID: env['WATCHDOG_PID'],
  }
  for (const name of Object.keys(environment)) delete env[name]
  return environment
}

/** Opens the way to systemd. Never throws: without it the daemon runs all the same, and the log says so. */
export function connectSystemd(options: SystemdOptions): Systemd {
  const { environment, log } = options
  const socket = openSocket(environment, log)
  if (socket === undefined) return silentSystemd

  let state: 'starting' | 'ready' | 'stopping' = 'starting'
  let watchdog: NodeJS.Timeout | undefined
  const send = (message: string): void => {
    if (!socket.send(message)) log.warn('Cannot notify systemd', { message })
  }
  const startWatchdog = (): void => {
    const periodMs = watchdogPeriodMs(environment)
    if (periodMs === undefined) return
    const feed = (): void => {
      if (options.isAlive?.() ?? true) send('WATCHDOG=1')
      else log.error('Withholding the systemd watchdog: the daemon does not do its work')
    }
    feed()
    watchdog = setInterval(feed, periodMs)
    watchdog.unref()
  }
  return {
    ready: () => {
      if (state !== 'starting') return
      state = 'ready'
      send('READY=1')
      startWatchdog()
    },
    stopping: () => {
      if (state === 'stopping') return
      state = 'stopping'
      send('STOPPING=1')
    },
    // A newline would begin another message: everything of that kind is cut out here.
    status: (text) => send(`STATUS=${text.replaceAll(/\p{Cc}+/gu, ' ').slice(0, MAX_STATUS)}`),
    [Symbol.dispose]: () => {
      clearInterval(watchdog)
      socket[Symbol.dispose]()
    },
  }
}

const silentSystemd: Systemd = {
  ready: () => undefined,
  stopping: () => undefined,
  status: () => undefined,
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

/** Half of what systemd waits for; undefined when it watches nothing, or another process. */
function watchdogPeriodMs(environment: SystemdEnvironment): number | undefined {
  const timeoutUs = Number(environment.WATCHDOG_USEC ?? '')
  if (!Number.isFinite(timeoutUs) || timeoutUs <= 0) return undefined
  const pid = environment.WATCHDOG_PID
  if (pid !== undefined && pid !== '' && Number(pid) !== process.pid) return undefined
  return Math.max(1, Math.floor(timeoutUs / 2_000))
}
