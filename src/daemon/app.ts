/**
 * The host daemon: builds every part, joins them, and takes them down again. The only place that knows who
 * provides what.
 *
 * Order of starting: configuration, admin API (its socket also keeps a second daemon out, and the lock of the kernel's
 * rules one with a socket of its own), catalog and certificates, workers on their ports, discovery, and only when all of that stands: capture, registration,
 * "ready". Stopping goes the other way round: nobody is sent here any more before nobody is served any more.
 *
 * ```
 *   starting --all parts up--> ready --SIGTERM, SIGINT--> draining --connections gone or deadline--> stopped
 * ```
 */
import { hostname } from 'node:os'
import { loadConfig } from '../config/load.ts'
import { localServices } from '../config/local-services.ts'
import { type Config, isDnsOn } from '../config/schema.ts'
import { configWarnings } from '../config/validate.ts'
import type { ChosenBackend, MeshAddresses } from '../controlplane/capture/backend.ts'
import { type Capture, createCapture } from '../controlplane/capture/capture.ts'
import { watchKernel } from '../controlplane/capture/kernel-changes.ts'
import { activeFamilies } from '../controlplane/capture/nft-backend.ts'
import {
  PortGuard,
  portGuardObstacle,
  removePortGuard,
} from '../controlplane/capture/port-guard.ts'
import type { CapturePlan } from '../controlplane/capture/rules.ts'
import { TableOwner } from '../controlplane/capture/table-owner.ts'
import type { Catalog } from '../controlplane/catalog/catalog.ts'
import {
  type ConsulCatalog,
  createConsulCatalog,
} from '../controlplane/catalog/consul/consul-catalog.ts'
import { createFileCatalog } from '../controlplane/catalog/file/file-catalog.ts'
import { type Discovery, startDiscovery } from '../controlplane/discovery/publisher.ts'
import { type DnsServer, startDnsServer } from '../controlplane/dns/server.ts'
import { createBuiltinSource } from '../controlplane/identity/builtin-ca.ts'
import type { CertificateSource } from '../controlplane/identity/certificate-source.ts'
import { createConsulSource } from '../controlplane/identity/consul-ca.ts'
import {
  createFilesSource,
  type FilesSourceOptions,
} from '../controlplane/identity/files-source.ts'
import { capturedService } from '../dataplane/doors.ts'
import { describeError, errorCode, MeshError } from '../lib/errors.ts'
import { duplicateDescriptor, isPortFree, setCloseOnExec } from '../lib/listening-socket.ts'
import { createLog, type Log } from '../lib/log.ts'
import { localPortRange, reservedPorts } from '../lib/port-holder.ts'
import { collectGarbage } from '../lib/return-memory.ts'
import {
  connectSystemd,
  type InheritedSocket,
  inheritedSockets,
  type Systemd,
  takeSystemdEnvironment,
} from '../lib/systemd.ts'
import { nameThread } from '../lib/thread-name.ts'
import { hostmeshVersion } from '../lib/version.ts'
import type { ProblemEntry, ReloadStatus } from '../model/admin.ts'
import type { Leaf, TrustBundle } from '../model/certificate.ts'
import type { Problem } from '../model/problem.ts'
import type { LocalService } from '../model/service.ts'
import type { Snapshot } from '../model/snapshot.ts'
import { watchEventLoopLag } from '../telemetry/event-loop-lag.ts'
import { createExposition } from '../telemetry/exposition.ts'
import type { HostReading } from '../telemetry/host-reading.ts'
import { WorkerTotals } from '../telemetry/totals.ts'
import { startAdminServer } from './admin-server.ts'
import { createAdminView, type DaemonState, readinessOf } from './admin-view.ts'
import {
  captureOptions,
  capturePlan,
  chosenBackend,
  earlierPorts,
  nftSettings,
  plainInbound,
} from './capture-operations.ts'
import { instanceSets } from './captured-instances.ts'
import type { Incumbent } from './hand-over.ts'
import { LINK_NAME, Link } from './hand-over-link.ts'
import { holdKernelRules } from './kernel-lock.ts'
import { limitProblems } from './limit-problems.ts'
import { ListeningSockets, type PlannedSocket } from './listening-sockets.ts'
import { Memory, NOTHING_KEPT } from './memory.ts'
import { type HostCondition, hostProblems, ProblemWatch, problemLine } from './problems.ts'
import { type Blocker, Readiness, untilNothingAwaited } from './readiness.ts'
import { registerWhenServed } from './register-when-served.ts'
import { NEVER_RELOADED, Reloader } from './reloader.ts'
import { unreservedPorts } from './reserved-ports.ts'
import { readProcessLimits, tunnelShare, workerShare } from './resources.ts'
import { isRestarting } from './stop-cause.ts'
import { WorkerPool } from './worker-pool.ts'

/** The rules in the kernel are compared with the plan this often; new cgroups are noticed faster. Milliseconds. */
const CAPTURE_UPKEEP = {
  verifyEveryMs: 10_000,
  cgroupEveryMs: 1_000,
  watch: watchKernel,
}

/** How long a question waits for what the catalog says of a service that was not followed before. Milliseconds. */
const DNS_PATIENCE_MS = 2_000

/** How long taking back the registration may hold up a stop, milliseconds. */
const STOP_STEP_TIMEOUT_MS = 6_000

/** What a starting daemon waits for that only the owner of the host's ports and rules has. */
const WORKERS = 'the workers'
const RESOLVER = 'the resolver'
const CAPTURE_RULES = 'the capture rules'
const OWN_PARTS = [WORKERS, RESOLVER, CAPTURE_RULES]

/** A successor waits so long for certificates and its first snapshot. Milliseconds. */
const PREPARE_MS = 15_000

/** Workers tell which services are in use so many times within the time after which unused ones are let go. */
const USES_TOLD = 10

/** They tell at least this often, milliseconds: the order of use says whose turn it is when too many are followed. */
const MAX_TELL_USE_MS = 30_000

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
  const end = await Promise.race([stopAsked, reloader.replaced])
  if (typeof end !== 'string') {
    serves = false
    log.info('Handed over', { to: end.pid })
    systemd.handOver(end.pid)
    await reloader.retire(end.link, stopAsked)
    log.info('Ended after a reload')
    return
  }
  const cause =
    environment.NOTIFY_SOCKET !== undefined && (await isRestarting(log)) ? 'restart' : 'stop'
  log.info('Stopping', { signal: end, cause })
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

class Daemon implements Incumbent {
  private readonly config: Config
  private readonly log: Log
  private readonly parts: AsyncDisposableStack
  private readonly logLinesLost: () => number
  private readonly services: readonly LocalService[]
  private nodeName: string
  private readonly totals = new WorkerTotals()
  private readonly readiness = new Readiness()
  private readonly sockets: ListeningSockets
  private readonly guardsPorts: boolean
  /** Not any more once new connections are refused: who is permitted to passes without the mesh. */
  private carries = true
  private portGuard: PortGuard | undefined
  private readonly tableOwner = new TableOwner()
  /** All of them from the beginning: nothing is ready because nobody has asked for it yet. */
  private readonly awaitedParts: {
    readonly workers: Blocker
    readonly firstSnapshot: Blocker
    readonly roots: Blocker
    readonly certificates: ReadonlyMap<string, Blocker>
    readonly dns: Blocker
    readonly capture: Blocker
  }
  private readonly problems: ProblemWatch
  /** Called with every change of the list of problems. */
  onProblems: (problems: readonly ProblemEntry[]) => void = () => undefined
  private readonly leaves = new Map<string, Leaf>()
  private readonly pool: WorkerPool
  private memory: Memory | undefined
  private readonly state: DaemonState
  private bundle: TrustBundle | undefined
  private catalog: Catalog | undefined
  private certificates: CertificateSource | undefined
  private discovery: Discovery | undefined
  private dns: DnsServer | undefined
  private capture: Capture | undefined
  private capturePlan: CapturePlan | undefined
  private draining = false
  /** Whether rules stay when this process ends: the next one takes them over. */
  private leavesRules = false
  /** The parts that a host has one of; they change hands in a reload. */
  private owned = new AsyncDisposableStack()
  /** Aborted when registration is another process'. */
  private registering = new AbortController()
  /** Whether an earlier daemon may have left rules that this one does not want. */
  private readonly hadCapture: boolean
  /** What became of reloads. */
  reloads: () => ReloadStatus = () => NEVER_RELOADED
  /** Why the last one failed. */
  reloadProblem: () => Problem | undefined = () => undefined
  /** Aborted when nobody new is to be sent here any more. */
  private readonly stopping = new AbortController()
  private eventLoopLagMs = 0

  constructor(
    config: Config,
    log: Log,
    given: {
      readonly parts: AsyncDisposableStack
      readonly sockets: ListeningSockets
      readonly backend: ChosenBackend | undefined
      readonly guardsPorts: boolean
      readonly logLinesLost: () => number
    },
  ) {
    const { parts, sockets } = given
    this.config = config
    this.logLinesLost = given.logLinesLost
    this.log = log
    this.parts = parts
    // Here for what is started before the rest, and again behind it: they are the first to go.
    parts.defer(() => this.owned.disposeAsync())
    this.sockets = sockets
    this.guardsPorts = given.guardsPorts
    const bound = capturePorts(sockets.inheritedPorts())
    this.hadCapture = bound.size > 0
    this.services = localServices(config, { bound, isFree: isPortFree })
    this.nodeName = config.node.name ?? hostname()
    const wait = (name: string): Blocker => this.readiness.block(name)
    this.awaitedParts = {
      workers: wait(WORKERS),
      firstSnapshot: wait('the first snapshot'),
      roots: wait('roots'),
      certificates: new Map(
        this.serviceNames().map((name) => [name, wait(`the certificate of ${name}`)]),
      ),
      dns: wait(RESOLVER),
      capture: wait(CAPTURE_RULES),
    }
    this.pool = new WorkerPool({
      count: config.workers,
      settings: workerSettings(config, this.services, given.backend),
      maxSegment: config.tunnel.maxSegment,
      totals: this.totals,
      log,
      sockets: this.sockets,
      onUse: (message) => {
        if (message.kind === 'wanted')
          this.discovery?.wanted(message.address.ip, message.address.port)
        else this.discovery?.used(message.services)
      },
    })
    this.state = {
      version: hostmeshVersion,
      node: () => this.nodeName,
      datacenter: config.datacenter,
      startedAtMs: Date.now(),
      captureMode: config.capture.mode,
      services: this.services,
      totals: this.totals,
      pool: this.pool,
      leaves: () => [...this.leaves.values()],
      bundle: () => this.bundle,
      catalog: () => this.catalog,
      certificates: () => this.certificates,
      discovery: () => this.discovery,
      dnsAddress: () => this.dns?.address,
      capture: () => ({
        condition: this.capture?.condition(),
        problems: this.capture?.problems() ?? [],
        plan: this.capture?.plan(),
      }),
      state: () => this.memory?.status() ?? NOTHING_KEPT,
      awaited: () => this.awaited(),
      problems: () => this.problems.look(),
      isDraining: () => this.draining,
      reload: () => this.reloads(),
    }
    this.problems = parts.use(
      new ProblemWatch({
        list: () => hostProblems(this.condition()),
        log: log.child('problems'),
        onChange: (problems) => this.onProblems(problems),
      }),
    )
  }

  /** What it still waits for before it is ready. */
  awaited(): readonly string[] {
    const workers = this.pool.statuses(() => 0)
    const hasWorker = workers.length === 0 || workers.some(({ state }) => state === 'running')
    const awaited = [...this.readiness.awaited(), ...(this.discovery?.awaited() ?? [])]
    return hasWorker || awaited.includes(WORKERS) ? awaited : [...awaited, 'a worker']
  }

  private condition(): HostCondition {
    const reloadProblem = this.reloadProblem()
    const ports = this.capturePlan?.ownPorts ?? []
    const portProblem = unreservedPorts(ports, localPortRange(), reservedPorts())
    return {
      awaited: this.awaited(),
      isDraining: this.draining,
      workers: this.pool.statuses(() => 0),
      captureInSync: this.capture?.condition().inSync,
      captureProblems: this.capture?.problems() ?? [],
      stateParts: this.state.state().parts,
      others: [
        ...(reloadProblem === undefined ? [] : [reloadProblem]),
        ...(portProblem === undefined ? [] : [portProblem]),
        ...this.sockets.problems(),
        ...(this.certificates?.problems() ?? []),
        ...(this.catalog?.health().problems ?? []),
        ...(this.discovery?.problems() ?? []),
        ...(this.memory?.problems() ?? []),
        ...limitProblems(this.pool.pressures()),
      ],
    }
  }

  /** Names of the services of this host. */
  serviceNames(): string[] {
    return [...new Set(this.services.map(({ name }) => name))]
  }

  async start(): Promise<void> {
    const workers = this.startWorkers()
    await this.startAdmin()
    if (this.writesRules()) await this.holdRules()
    await this.prepare(workers)
    await this.own()
  }

  /**
   * Tells systemd that the host is ready when it serves, or after `patienceMs` although it does not: what is ordered after
   * it must not hang the boot for ever, and is refused, never in plaintext. Who needs more waits for the mark of serving.
   */
  async tellReady(systemd: Systemd, patienceMs: number): Promise<void> {
    const awaited = (): readonly string[] => this.awaited()
    const { signal } = this.stopping
    try {
      const missing = await untilNothingAwaited(awaited, patienceMs, signal)
      systemd.ready()
      if (missing.length > 0) {
        this.log.warn('Not ready yet, but whatever is ordered after this daemon waits no longer', {
          missing: missing.join(', '),
        })
        await untilNothingAwaited(awaited, Number.POSITIVE_INFINITY, signal)
      }
      systemd.serves()
      // Not before: it takes longer than many a start step.
      collectGarbage()
      this.log.info('Ready', {
        node: this.nodeName,
        services: this.serviceNames(),
        version: hostmeshVersion,
      })
    } catch (error) {
      if (!signal.aborted) throw error
    }
  }

  /** For a successor: starts whatever may run twice on a host, and waits until it waits for no more than its predecessor. */
  async prepareToSucceed(awaited: readonly string[]): Promise<void> {
    await this.prepare(this.startWorkers(), { holdsMemory: true })
    const allowed = new Set([...awaited, ...OWN_PARTS])
    const missing = await untilNothingAwaited(
      () => (this.leavesRules ? [] : this.awaited().filter((what) => !allowed.has(what))),
      PREPARE_MS,
    )
    if (missing.length > 0)
      throw new MeshError('HM_RELOAD_NOT_READY', `The new process waits for ${missing.join(', ')}`)
  }

  /** For a successor: takes over what there is one of. Serves when it resolves. */
  async takeOver(): Promise<void> {
    this.leavesRules = true
    await this.startAdmin()
    if (this.writesRules()) await this.holdRules()
    this.memory?.hold(false)
    await this.own()
    this.leavesRules = false
  }

  /** For a successor that is not to be: leaves everything as it is. */
  async abandon(): Promise<'abandoned'> {
    this.leavesRules = true
    this.memory?.hold(true)
    await this.pool.retire(0)
    return 'abandoned'
  }

  async release(): Promise<void> {
    this.leavesRules = true
    this.registering.abort()
    this.catalog?.leave?.()
    await this.owned.disposeAsync()
    this.owned = new AsyncDisposableStack()
    this.dns = undefined
    this.capture = undefined
    this.memory?.hold(true)
  }

  async resume(): Promise<void> {
    await this.startAdmin()
    if (this.writesRules()) await this.holdRules()
    this.memory?.hold(false)
    // Whatever fails must not keep the rest from going on; rules are tried again by their upkeep.
    await this.takeUp('DNS', () => this.startDns())
    await this.takeUp('The rules of ports', () => this.guardPorts())
    await this.takeUp('Capture', () => this.startCapture())
    this.startRegistration()
    this.leavesRules = false
  }

  private async takeUp(what: string, start: () => Promise<void>): Promise<void> {
    try {
      await start()
    } catch (error) {
      this.log.error(`${what} could not be taken up again`, {
        code: errorCode(error),
        error: describeError(error),
      })
    }
  }

  /** For a daemon that was replaced: its connections go on until they end, or for so long. Called again it is sooner. */
  async retire(deadlineMs: number): Promise<void> {
    this.draining = true
    // Only this process' descriptors: the sockets are the successor's.
    this.sockets[Symbol.dispose]()
    await this.pool.retire(deadlineMs)
  }

  /** Connections that are open. */
  async connectionCount(): Promise<number> {
    const { countByWorker } = await this.pool.connections(0)
    return countByWorker.reduce((sum, count) => sum + count, 0)
  }

  /** Everything that another daemon of this host is not disturbed by. */
  private async prepare(workers: Promise<void>, { holdsMemory = false } = {}): Promise<void> {
    const { config, log, parts } = this
    parts.defer(() => this.stopping.abort())
    parts.use(watchEventLoopLag((longestMs) => (this.eventLoopLagMs = longestMs)))
    const memory = parts.use(new Memory(config, log))
    memory.hold(holdsMemory)
    this.memory = memory
    const source = openCatalog(config, log, {
      node: this.nodeName,
      memory,
      // A reload is refused as a whole; a start has nothing to fall back on but what was kept.
      isStrict: holdsMemory,
    })
    const catalog = parts.use(memory.catalog(source))
    this.catalog = catalog
    if ('readAgentSelf' in source && config.node.name === undefined)
      this.nodeName = await memory.nodeName(source, this.nodeName)
    const certificates = parts.use(
      memory.certificates(openCertificates(config, source, this.nodeName, log)),
    )
    this.certificates = certificates
    this.followCertificates(certificates)
    this.discovery = parts.use(
      startDiscovery(
        {
          catalog,
          datacenter: config.datacenter,
          nodeName: this.nodeName,
          localServices: this.services,
          mode: config.catalog.kind === 'consul' ? config.catalog.watch : 'all',
          virtualRanges: [config.capture.virtualRange, config.capture.virtualRange6],
          virtualAddresses: memory.virtualAddresses(),
          isCapturing: config.capture.mode !== 'off',
          insistsOnDeny: config.intentions.default === 'deny',
          onDormant: () => {
            const snapshot = this.discovery?.current()
            if (snapshot !== undefined) void this.followInstances(snapshot)
          },
          onDemand: config.catalog.kind === 'consul' ? { idleMs: config.catalog.unusedAfter } : {},
          log,
        },
        (delta, snapshot) => {
          this.pool.publish(delta, snapshot)
          void this.followInstances(snapshot)
          if (this.discovery !== undefined)
            memory.keepVirtualAddresses(this.discovery.virtualAddresses())
          this.awaitedParts.firstSnapshot.release()
        },
      ),
    )
    parts.defer(() => this.owned.disposeAsync())
    await workers
  }

  /** They load while everything else starts; whoever needs them waits. */
  private startWorkers(): Promise<void> {
    // Before they start: one that cannot listen is a thread all the same, and would keep the process alive.
    this.parts.defer(() => this.pool.drainForRestart(0))
    const started = this.pool.prepare()
    started.catch(() => undefined)
    return started
  }

  /** Ports, resolver, rules and registration. */
  private async own(): Promise<void> {
    const { config } = this
    // The pool closes what nobody has taken.
    if (isDnsOn(config)) for (const socket of this.dnsSockets()) this.sockets.take(socket)
    await this.pool.listen()
    await this.guardPorts()
    this.awaitedParts.workers.release()
    await this.startDns()
    this.awaitedParts.dns.release()
    await this.startCapture()
    if (this.capture === undefined) this.awaitedParts.capture.release()
    this.startRegistration()
  }

  private async guardPorts(): Promise<void> {
    if (!this.guardsPorts) return
    const guard = this.owned.use(
      new PortGuard({ log: this.log, watch: watchKernel, owner: this.tableOwner }),
    )
    const plan = {
      ports: this.sockets.ports(),
      plainInbound: plainInbound(this.config, this.services),
    }
    await guard.apply(plan)
    this.portGuard = guard
    await this.memory?.keepPorts(plan)
  }

  private startRegistration(): void {
    const { catalog } = this
    if (catalog === undefined) return
    this.registering = new AbortController()
    void registerWhenServed({
      registry: catalog,
      services: this.services.filter(({ target }) => target !== undefined),
      tunnelPort: this.config.tunnel.port,
      canServe: ({ name }) => this.canServe(name),
      signal: AbortSignal.any([this.stopping.signal, this.registering.signal]),
    })
  }

  private canServe(service: string): boolean {
    const hasPolicy = this.discovery?.current().policies.has(service) === true
    return hasPolicy && this.bundle !== undefined && this.leaves.has(service)
  }

  async stop(): Promise<void> {
    this.draining = true
    this.stopping.abort()
    await within(STOP_STEP_TIMEOUT_MS, this.catalog?.deregister())
    await this.suspendCapture()
    await this.pool.drain(this.config.timeouts.drain)
  }

  /** Hands everything that outlives this process to the next one: sockets, rules and registration stay. */
  async endForRestart(): Promise<void> {
    this.draining = true
    this.stopping.abort()
    this.leavesRules = true
    await this.pool.drainForRestart(this.config.timeouts.restartGrace)
  }

  private async startAdmin(): Promise<void> {
    const { admin, metrics } = this.config
    const { address, port } = metrics
    const view = createAdminView(
      this.state,
      createExposition({
        version: hostmeshVersion,
        totals: this.totals,
        host: () => ({
          ...problemReading(this.state),
          snapshotVersion: this.discovery?.current().version ?? 0,
          catalogLastSuccessMs: wallClockOf(this.catalog?.health().lastGoodAtMs),
          state: this.state.state(),
          consulLastContactMs: this.catalog?.health().lastContactMs,
          captureInSync: this.capture?.condition().inSync,
          dnsQueries: this.dns?.counts(),
          watchedServices: this.discovery?.watchedServices() ?? 0,
          unknownCallersRefused: refusedBy(this.capture),
          captureCounts: this.capture?.condition().counts,
          plainInbound: this.portGuard?.plainInbound,
          captureRepairs: this.capture?.condition().repairs,
          certificates: [...this.leaves.values()],
          workersRunning: this.pool.statuses(() => 0).filter(({ state }) => state === 'running')
            .length,
          workerRestarts: this.pool
            .statuses(() => 0)
            .reduce((sum, { restarts }) => sum + restarts, 0),
          logLinesLost: this.logLinesLost(),
          eventLoopLagMs: this.eventLoopLagMs,
        }),
      }),
    )
    this.owned.use(
      await startAdminServer({
        socketPath: admin.socket,
        group: admin.group,
        metrics:
          port === undefined
            ? undefined
            : {
                ip: address,
                port,
                open: () => this.borrow(ownSocket('metrics', 'tcp', address, port)),
              },
        view,
        log: this.log,
      }),
    )
  }

  private followCertificates(source: CertificateSource): void {
    const rootsWatch = source.watchRoots((bundle) => {
      this.bundle = bundle
      this.pool.setRoots(bundle)
      this.awaitedParts.roots.release()
    })
    this.parts.defer(() => rootsWatch.close())
    for (const name of this.serviceNames()) {
      const watch = source.watchLeaf(name, (leaf) => {
        this.leaves.set(name, leaf)
        this.pool.setLeaf(leaf)
        this.awaitedParts.certificates.get(name)?.release()
      })
      this.parts.defer(() => watch.close())
    }
  }

  private dnsSockets(): readonly [tcp: OwnSocket, udp: OwnSocket] {
    const { address, port } = this.config.dns
    return [ownSocket('dns/tcp', 'tcp', address, port), ownSocket('dns/udp', 'udp', address, port)]
  }

  /** A descriptor of a socket of the main thread, to be closed by whoever asked for it. */
  private borrow(socket: OwnSocket): number {
    return duplicateDescriptor(this.sockets.take(socket))
  }

  /** The list of problems now. */
  currentProblems(): readonly ProblemEntry[] {
    return this.problems.look()
  }

  private async startDns(): Promise<void> {
    const { dns, datacenter } = this.config
    if (!isDnsOn(this.config)) return
    const [tcp, udp] = this.dnsSockets()
    this.dns = this.owned.use(
      await startDnsServer({
        address: { ip: dns.address, port: dns.port },
        sockets: { tcp: this.borrow(tcp), udp: this.borrow(udp) },
        datacenter,
        ttlS: Math.floor(dns.ttl / 1_000),
        lookup: async (service, needs, { wait }) =>
          (await this.discovery?.lookup(service, wait ? DNS_PATIENCE_MS : 0, needs)) ?? {
            kind: 'unavailable',
          },
        log: this.log.child('dns'),
      }),
    )
  }

  /** Whether rules in the kernel are kept by this daemon, and not only removed once. */
  private writesRules(): boolean {
    return this.config.capture.mode !== 'off' || this.guardsPorts
  }

  /** @throws MeshError HM_CAPTURE_HELD when another daemon of this network namespace has them */
  private async holdRules(): Promise<void> {
    const lock = await holdKernelRules(this.log)
    if (lock !== undefined) this.owned.use(lock)
  }

  private async startCapture(): Promise<void> {
    const { config, log } = this
    // What an earlier daemon with capture left behind refuses for good.
    const isLeftOver = this.hadCapture || this.memory?.keptCapture() !== undefined
    if (config.capture.mode === 'off' && !isLeftOver) return
    // Another daemon may capture here: its rules are not ours to clear.
    await using _ = this.writesRules() ? undefined : await holdKernelRules(log)
    const capture = this.owned.use(
      createCapture({
        log,
        maintain: { ...CAPTURE_UPKEEP, owner: this.tableOwner },
        ...captureOptions(config),
      }),
    )
    if (config.capture.mode === 'off') {
      await capture.clear()
      await this.memory?.forgetCapture()
      if (!this.guardsPorts) {
        await removePortGuard()
        await this.memory?.keepPorts(undefined)
      }
      return
    }
    this.capture = capture
    const plan = await capturePlan(config, this.services)
    this.capturePlan = plan
    // What was captured before the start is captured at once, whatever the catalog takes to say.
    const kept = this.memory?.keptCapture()?.addresses.instances ?? []
    await capture.updateAddresses({ instances: kept, permitted: [] })
    await capture.apply(plan)
    const snapshot = this.discovery?.current()
    if (snapshot !== undefined && snapshot.version > 0) await this.followInstances(snapshot)
  }

  private async followInstances(snapshot: Snapshot): Promise<void> {
    const { capture } = this
    if (capture === undefined) return
    const addresses = this.meshAddresses(snapshot)
    try {
      await capture.updateAddresses(addresses)
      this.keepCapture(addresses)
      // Whoever is ready has what the catalog said first in its sets.
      if (snapshot.version > 0) this.awaitedParts.capture.release()
    } catch (error) {
      this.log.error('Cannot update the captured addresses', { error: describeError(error) })
    }
  }

  private keepCapture(addresses: MeshAddresses): void {
    const backend = this.capture?.backend()?.kind
    if (this.capturePlan === undefined || backend === undefined) return
    this.memory?.keepCapture({
      backend,
      plan: this.capturePlan,
      settings: nftSettings(this.config),
      addresses,
    })
  }

  /** The rules stay and refuse; only what is permissive passes while nobody carries it. */
  private async suspendCapture(): Promise<void> {
    const { capture } = this
    if (capture === undefined) return
    this.carries = false
    const snapshot = this.discovery?.current()
    if (snapshot !== undefined && snapshot.version > 0) await this.followInstances(snapshot)
    try {
      await capture.suspend()
    } catch (error) {
      this.log.error('Cannot have who starts now refused', { error: describeError(error) })
    }
  }

  private meshAddresses(snapshot: Snapshot): MeshAddresses {
    const { captured, permitted } = instanceSets(snapshot.services.values(), {
      permissive: this.config.capture.permissive,
      dormant: this.discovery?.dormant(),
      carries: this.carries,
    })
    return { instances: [...captured, ...permitted], permitted }
  }
}

function openCatalog(
  config: Config,
  log: Log,
  {
    node,
    memory,
    isStrict,
  }: { readonly node: string; readonly memory: Memory; readonly isStrict: boolean },
): Catalog | ConsulCatalog {
  if (config.catalog.kind === 'file') {
    const state = memory.catalogFile()
    return createFileCatalog(
      { path: config.catalog.path, node, state, isStrict },
      log.child('catalog'),
    )
  }
  return createConsulCatalog(
    {
      ...config.catalog,
      node: config.node.name,
      nodeAddress: config.node.address,
      datacenter: config.datacenter,
    },
    log.child('consul'),
  )
}

function openCertificates(
  config: Config,
  catalog: Catalog | ConsulCatalog,
  node: string,
  parentLog: Log,
): CertificateSource {
  const { certificates, datacenter } = config
  const log = parentLog.child('certificates')
  if (certificates.kind === 'files')
    return createFilesSource({ files: fileLayout(certificates), log, datacenter })
  if (certificates.kind === 'builtin')
    return createBuiltinSource({ ...certificates, host: node, log, datacenter })
  if (!('follower' in catalog))
    throw new MeshError(
      'HM_CONFIG_INVALID',
      'Cannot take certificates from Consul: catalog.kind is not consul',
    )
  return createConsulSource({ follower: catalog.follower, log, datacenter })
}

function fileLayout(
  certificates: Extract<Config['certificates'], { kind: 'files' }>,
): FilesSourceOptions['files'] {
  const { directory, certificate, key, roots, trustDomain } = certificates
  if (directory !== undefined) return { directory }
  if (certificate !== undefined && key !== undefined && roots !== undefined)
    return { certificate, key, roots, trustDomain }
  throw new MeshError('HM_CONFIG_INVALID', 'Cannot find certificates: no directory and no paths')
}

function workerSettings(
  config: Config,
  services: readonly LocalService[],
  backend: ChosenBackend | undefined,
): ConstructorParameters<typeof WorkerPool>[0]['settings'] {
  const { timeouts, limits } = config
  const processLimits = readProcessLimits()
  const isTransparent = backend?.kind === 'nftables'
  // REDIRECT leads containers to the address of their bridge; everybody else comes to loopback.
  const needsAnyAddress =
    !isTransparent && services.some(({ selector }) => selector?.kind === 'sourceAddress')
  return {
    datacenter: config.datacenter,
    services,
    captures: config.capture.mode === 'on',
    captureAddresses: needsAnyAddress ? ['::'] : loopbackAddresses(),
    capturesTransparently: isTransparent,
    tunnel: { ip: config.tunnel.address, port: config.tunnel.port },
    inboundMinVersion: config.tunnel.inboundMinVersion,
    timeouts: {
      connectMs: timeouts.connect,
      handshakeMs: timeouts.handshake,
      idleMs: timeouts.idle,
      halfClosedMs: timeouts.halfClosed,
      tunnelIdleMs: timeouts.tunnelIdle,
      keepaliveMs: timeouts.keepalive,
    },
    limits: {
      ...limits,
      ...workerShare(processLimits, config.workers, limits.heldMiB),
      ...tunnelShare(processLimits, config.workers, limits),
    },
    tellUseMs:
      config.catalog.kind === 'consul'
        ? Math.min(MAX_TELL_USE_MS, config.catalog.unusedAfter / USES_TOLD)
        : MAX_TELL_USE_MS,
    log: config.log,
  }
}

function problemReading(state: DaemonState): Pick<HostReading, 'ready' | 'serving' | 'problems'> {
  const problems = state.problems()
  const counts = new Map<string, number>()
  for (const { code } of problems) counts.set(code, (counts.get(code) ?? 0) + 1)
  return { ...readinessOf(state, problems), problems: counts }
}

/** Callers without identity that the kernel has refused, as far as it was asked. */
function refusedBy(
  capture: Capture | undefined,
): { readonly virtual: number; readonly instance: number } | undefined {
  const counts = capture?.condition().counts
  return counts && { virtual: counts.refusedVirtual, instance: counts.refusedInstance }
}

/** Where capture ports listen; IPv6 may be switched off. */
function loopbackAddresses(): string[] {
  return activeFamilies().map((family) => (family === 'v4' ? '127.0.0.1' : '::1'))
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

/** A socket that the main thread itself serves. */
type OwnSocket = PlannedSocket & { readonly isOptional: false }

function ownSocket(name: string, kind: 'tcp' | 'udp', ip: string, port: number): OwnSocket {
  return { name, kind, address: { ip, port }, transparent: false, isOptional: false }
}

/** By service ID: which capture ports the sockets of an earlier daemon have. */
function capturePorts(inherited: ReadonlyMap<string, number>): ReadonlyMap<string, number> {
  const ports = new Map<string, number>()
  for (const [name, port] of inherited) {
    const service = capturedService(name)
    if (service !== undefined) ports.set(service, port)
  }
  return ports
}

function wallClockOf(monotonicMs: number | undefined): number | undefined {
  return monotonicMs === undefined ? undefined : Date.now() - (performance.now() - monotonicMs)
}

async function within(timeoutMs: number, work: Promise<void> | undefined): Promise<void> {
  if (work === undefined) return
  let timer: NodeJS.Timeout | undefined
  const deadline = new Promise<void>((resolve) => {
    timer = setTimeout(resolve, timeoutMs)
  })
  await Promise.race([work, deadline])
  clearTimeout(timer)
}
