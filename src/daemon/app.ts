/**
 * `hostmesh run`: loads the configuration and connects signals, systemd and reloads to the {@link Daemon} of the host.
 *
 * ```
 *   starting --all parts up--> ready --SIGTERM, SIGINT--> draining --connections gone or deadline--> stopped
 *                               \--SIGHUP--> a successor takes over --> draining --> stopped
 * ```
 */
import { loadConfig } from '../config/load.ts'
import type { Config } from '../config/schema.ts'
import { configWarnings } from '../config/validate.ts'
import { portGuardObstacle } from '../controlplane/capture/port-guard.ts'
import { describeError } from '../lib/errors.ts'
import { setCloseOnExec } from '../lib/listening-socket.ts'
import { createLog, type Log } from '../lib/log.ts'
import {
  connectSystemd,
  type InheritedSocket,
  inheritedSockets,
  takeSystemdEnvironment,
} from '../lib/systemd.ts'
import { nameThread } from '../lib/thread-name.ts'
import { AccessLogFile } from './access-log-file.ts'
import { chosenBackend, earlierPorts } from './capture-operations.ts'
import { Daemon } from './daemon.ts'
import { LINK_NAME, Link } from './hand-over-link.ts'
import { ListeningSockets } from './listening-sockets.ts'
import { problemLine } from './problems.ts'
import { Reloader } from './reloader.ts'
import { isRestarting } from './stop-cause.ts'

/**
 * Runs the daemon until a signal ends it. Resolves after an orderly stop.
 * @throws MeshError when the daemon cannot start; nothing is left behind then.
 */
export async function runDaemon(configPath: string): Promise<void> {
  nameThread('hostmesh')
  const environment = takeSystemdEnvironment()
  const config = loadConfig(configPath)
  let logLinesLost = 0
  const log = createLog(config.log, () => {
    logLinesLost += 1
  })
  for (const warning of configWarnings(config)) log.warn(warning)
  const { link, inherited } = predecessorAmong(inheritedSockets(environment))
  // Closed last: the predecessor treats a closed link as the end of this process.
  using _link = link
  using systemd = connectSystemd({ log, environment, isSuccessor: link !== undefined })
  await using parts = new AsyncDisposableStack()
  const accessLog = openAccessLog(config, log)
  if (accessLog !== undefined) parts.use(accessLog)
  const sockets = parts.use(new ListeningSockets(log, { keeper: systemd, inherited }))
  const isUnit = environment.NOTIFY_SOCKET !== undefined
  const [backend, guardsPorts] = await Promise.all([
    chosenBackend(config),
    canGuardPorts(config, { isUnit, log }),
  ])
  if (guardsPorts) sockets.guard(earlierPorts(config))
  const daemon = new Daemon(config, log, {
    parts,
    sockets,
    backend,
    guardsPorts,
    linesLost: () => ({ logLinesLost, accessLinesLost: accessLog?.lost ?? 0 }),
    accessLog,
  })
  const stopAsked = stopSignal(log)
  const reloader = new Reloader({
    configPath,
    environment,
    log,
    sockets,
    daemon,
    predecessor: link,
  })
  daemon.reloads = () => reloader.status()
  daemon.reloadProblem = () => reloader.problem()
  let serves = false
  process.on('SIGHUP', () => {
    if (serves) void reloader.reload()
    else log.warn('Too early to reload: the daemon is still starting')
  })
  // From the start: `systemctl start` waits, and an operator wants to see for what.
  daemon.onProblems = (problems) => systemd.status(problemLine(daemon.serviceNames(), problems))
  if (link === undefined) await daemon.start()
  else if ((await succeed(daemon, link, stopAsked)) === 'abandoned') return
  systemd.takeOver()
  daemon.onProblems(daemon.currentProblems())
  serves = true
  // A successor serves already, or waits for what its predecessor waited for: systemd must not wait again.
  void daemon.notifyReady(systemd, link === undefined ? config.timeouts.ready : 0)
  const replacement = await Promise.race([
    reloader.replaced,
    stopAsked.then(() => reloader.giveUp()),
  ])
  if (replacement !== undefined) {
    log.info('Handed over', { to: replacement.pid })
    accessLog?.handOver()
    systemd.handOver(replacement.pid)
    await reloader.retire(stopAsked)
    log.info('Ended after a reload')
    return
  }
  const cause =
    environment.NOTIFY_SOCKET !== undefined && (await isRestarting(log)) ? 'restart' : 'stop'
  log.info('Stopping', { signal: await stopAsked, cause })
  systemd.stopping()
  const graceMs = cause === 'restart' ? config.timeouts.restartGrace : config.timeouts.drain
  const predecessorGone = reloader.endPredecessor(graceMs)
  if (cause === 'restart') await daemon.endForRestart()
  else await daemon.stop()
  await predecessorGone
  log.info('Stopped')
}

/** The file of the access log; undefined when it is off, or the workers write it to standard error themselves. */
function openAccessLog({ accessLog }: Config, log: Log): AccessLogFile | undefined {
  const { mode, to, maxBytes, keep } = accessLog
  if (mode === 'off' || to === 'journal') return undefined
  return new AccessLogFile({ path: to, maxBytes, keep, log: log.child('access log') })
}

/**
 * Whether the kernel can keep this daemon's ports from other programs, also while the daemon is stopped. Called before
 * the first socket is opened. False with capture off and no systemd unit: such a run must leave nothing in the kernel.
 */
async function canGuardPorts(
  { capture }: Config,
  { isUnit, log }: { readonly isUnit: boolean; readonly log: Log },
): Promise<boolean> {
  if (capture.mode === 'off' && !isUnit) return false
  const obstacle = await portGuardObstacle()
  if (obstacle !== undefined)
    log.warn('Whoever takes a port of ours while the daemon is stopped has it', { obstacle })
  return obstacle === undefined
}

/** Separates the link to the predecessor from the other inherited sockets. */
function predecessorAmong(all: readonly InheritedSocket[]): {
  readonly link: Link | undefined
  readonly inherited: readonly InheritedSocket[]
} {
  const fd = all.find(({ name }) => name === LINK_NAME)?.fd
  const inherited = all.filter(({ name }) => name !== LINK_NAME)
  if (fd === undefined) return { link: undefined, inherited }
  setCloseOnExec(fd, true)
  return { link: Link.of(fd), inherited }
}

/**
 * The successor's side of a reload, see hand-over.ts. `abandoned`: the predecessor continues unchanged.
 *
 * Until it reports that it serves, a stop ends this process alone, and the predecessor takes everything back. After
 * that report only the predecessor knows which of the two is the daemon: a stop waits until it has decided.
 */
async function succeed(
  daemon: Daemon,
  link: Link,
  stopAsked: Promise<NodeJS.Signals>,
): Promise<'serving' | 'abandoned'> {
  link.send({ kind: 'started', pid: process.pid })
  let isStopAsked = false
  void stopAsked.then(() => {
    isStopAsked = true
  })
  const abandoned = Promise.race([stopAsked, link.closed]).then(() => 'abandoned' as const)
  try {
    const { awaited } = await link.next('hello')
    const prepared = await Promise.race([daemon.prepareToSucceed(awaited), abandoned])
    if (prepared === 'abandoned') return daemon.abandon()
    link.send({ kind: 'prepared' })
    const go = await Promise.race([link.next('takeOver'), abandoned])
    if (go === 'abandoned') return daemon.abandon()
    await daemon.takeOver()
    // If the predecessor has ended, this process is the only daemon left, and stops as such.
    if (isStopAsked && !link.isClosed) {
      link.send({ kind: 'failed', reason: 'the new process was told to stop' })
      return await daemon.abandon()
    }
    link.send({ kind: 'serving' })
    const decided = await link.next('main', 'cancelled').catch(() => ({ kind: 'main' }))
    return decided.kind === 'main' ? 'serving' : await daemon.abandon()
  } catch (error) {
    link.send({ kind: 'failed', reason: describeError(error) })
    await daemon.abandon()
    throw error
  }
}

function stopSignal(log: Log): Promise<NodeJS.Signals> {
  return new Promise((resolve) => {
    let asked = 0
    const onSignal = (signal: NodeJS.Signals): void => {
      asked += 1
      if (asked === 1) resolve(signal)
      else log.warn('Already stopping', { signal })
    }
    process.on('SIGTERM', onSignal)
    process.on('SIGINT', onSignal)
  })
}
