/**
 * `hostmesh run`: configuration, signals, systemd and reloads around the one {@link Daemon} of a host.
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
import { chosenBackend, earlierPorts } from './capture-operations.ts'
import { Daemon } from './daemon.ts'
import { LINK_NAME, Link } from './hand-over-link.ts'
import { ListeningSockets } from './listening-sockets.ts'
import { problemLine } from './problems.ts'
import { Reloader } from './reloader.ts'
import { isRestarting } from './stop-cause.ts'

/**
 * Runs the daemon until a signal ends it. Resolves after an orderly stop.
 * @throws MeshError when it cannot start; nothing is left behind then.
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
  // Last of all: the older one takes it for the end of this process.
  using _link = link
  using systemd = connectSystemd({ log, environment, isSuccessor: link !== undefined })
  await using parts = new AsyncDisposableStack()
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
    logLinesLost: () => logLinesLost,
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
  // From the first moment: `systemctl start` waits, and whoever looks wants to know for what.
  daemon.onProblems = (problems) => systemd.status(problemLine(daemon.serviceNames(), problems))
  if (link === undefined) await daemon.start()
  else if ((await succeed(daemon, link, stopAsked)) === 'abandoned') return
  systemd.takeOver()
  daemon.onProblems(daemon.currentProblems())
  serves = true
  // A successor serves, or waits for what its predecessor waited for: systemd is not to wait again.
  void daemon.tellReady(systemd, link === undefined ? config.timeouts.ready : 0)
  const successor = await Promise.race([
    reloader.replaced,
    stopAsked.then((signal) => reloader.giveUp(signal)),
  ])
  if (successor !== undefined) {
    log.info('Handed over', { to: successor.pid })
    systemd.handOver(successor.pid)
    await reloader.retire(successor.link, stopAsked)
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

/**
 * Before the first socket: whether nobody else is to have anything of what is sent to ports of ours, also while this daemon
 * is away. Not where it only runs for once: without capture and without a unit nothing of it is to stay in the kernel.
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

/** The line to the daemon that started this one, and the sockets that came with it. */
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

/** The newer side of a reload: see hand-over.ts. Abandoned: the older one goes on, and nothing of it was touched. */
async function succeed(
  daemon: Daemon,
  link: Link,
  stopAsked: Promise<NodeJS.Signals>,
): Promise<'serving' | 'abandoned'> {
  link.tell({ kind: 'started', pid: process.pid })
  const abandoned = Promise.race([stopAsked, link.closed]).then(() => 'abandoned' as const)
  try {
    const { awaited } = await link.next('hello')
    const prepared = await Promise.race([daemon.prepareToSucceed(awaited), abandoned])
    if (prepared === 'abandoned') return daemon.abandon()
    link.tell({ kind: 'prepared' })
    const go = await Promise.race([link.next('takeOver'), abandoned])
    if (go === 'abandoned') return daemon.abandon()
    await daemon.takeOver()
    link.tell({ kind: 'serving' })
    // Should the older one be gone, this one is all there is.
    const main = await Promise.race([
      link.next('main').catch(() => 'main' as const),
      stopAsked.then(() => 'abandoned' as const),
    ])
    return main === 'abandoned' ? daemon.abandon() : 'serving'
  } catch (error) {
    link.tell({ kind: 'failed', reason: describeError(error) })
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
