/**
 * The host daemon: builds every part, joins them, and takes them down again. The only place that knows who
 * provides what.
 *
 * Order of starting: configuration, admin API (its socket also keeps a second daemon out), catalog and
 * certificates, workers on their ports, discovery, and only when all of that stands: capture, registration,
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
import type {
  CaptureCounts,
  ChosenBackend,
  MeshAddresses,
} from '../controlplane/capture/backend.ts'
import { type Capture, createCapture } from '../controlplane/capture/capture.ts'
import { activeFamilies } from '../controlplane/capture/nft-backend.ts'
import type { CapturePlan } from '../controlplane/capture/rules.ts'
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
import { describeError, MeshError } from '../lib/errors.ts'
import { duplicateDescriptor } from '../lib/listening-socket.ts'
import { createLog, type Log } from '../lib/log.ts'
import { returnStartupMemory } from '../lib/startup-memory.ts'
import { nameThread } from '../lib/thread-name.ts'
import { hostmeshVersion } from '../lib/version.ts'
import type { ProblemEntry } from '../model/admin.ts'
import type { Leaf, TrustBundle } from '../model/certificate.ts'
import { Problem } from '../model/problem.ts'
import type { LocalService } from '../model/service.ts'
import type { Snapshot } from '../model/snapshot.ts'
import { watchEventLoopLag } from '../telemetry/event-loop-lag.ts'
import { createExposition, type HostReading } from '../telemetry/exposition.ts'
import { WorkerTotals } from '../telemetry/totals.ts'
import { startAdminServer } from './admin-server.ts'
import { createAdminView, type DaemonState, readinessOf } from './admin-view.ts'
import {
  captureOptions,
  capturePlan,
  chosenBackend,
  isPermissive,
  nftSettings,
} from './capture-operations.ts'
import { capturedInstances } from './captured-instances.ts'
import { ListeningSockets } from './listening-sockets.ts'
import { Memory, NOTHING_KEPT } from './memory.ts'
import { type HostCondition, hostProblems, ProblemWatch, problemLine } from './problems.ts'
import { type Blocker, Readiness } from './readiness.ts'
import { registerWhenServed } from './register-when-served.ts'
import { connectSystemd, takeSystemdEnvironment } from './systemd.ts'
import { WorkerPool } from './worker-pool.ts'

/** The rules in the kernel are compared with the plan this often; new cgroups are noticed faster. Milliseconds. */
const CAPTURE_UPKEEP = { verifyEveryMs: 10_000, cgroupEveryMs: 1_000 }

/** How long a question waits for what the catalog says of a service that was not followed before. Milliseconds. */
const DNS_PATIENCE_MS = 2_000

/** How long taking back the registration may hold up a stop, milliseconds. */
const STOP_STEP_TIMEOUT_MS = 6_000

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
  await using parts = new AsyncDisposableStack()
  using systemd = connectSystemd({ log, environment })
  const daemon = new Daemon(config, log, {
    parts,
    backend: await chosenBackend(config),
    logLinesLost: () => logLinesLost,
  })
  const stopAsked = stopSignal(log)
  process.on('SIGHUP', () => daemon.recheckConfig(configPath))
  await daemon.start()
  systemd.ready()
  daemon.onProblems = (problems) => systemd.status(problemLine(daemon.serviceNames(), problems))
  daemon.onProblems(daemon.currentProblems())
  const signal = await stopAsked
  log.info('Stopping', { signal, drainMs: config.timeouts.drain })
  systemd.stopping()
  await daemon.stop()
  log.info('Stopped')
}

class Daemon {
  private readonly config: Config
  private readonly log: Log
  private readonly parts: AsyncDisposableStack
  private readonly logLinesLost: () => number
  private readonly services: readonly LocalService[]
  private nodeName: string
  private readonly totals = new WorkerTotals()
  private readonly readiness = new Readiness()
  private readonly sockets: ListeningSockets
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
  private configProblem: Problem | undefined
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
  private captureInSync: boolean | undefined
  private capturePlan: CapturePlan | undefined
  private captureCounts: CaptureCounts | undefined
  private draining = false
  /** Aborted when nobody new is to be sent here any more. */
  private readonly stopping = new AbortController()
  private eventLoopLagMs = 0

  constructor(
    config: Config,
    log: Log,
    given: {
      readonly parts: AsyncDisposableStack
      readonly backend: ChosenBackend | undefined
      readonly logLinesLost: () => number
    },
  ) {
    this.config = config
    const { parts } = given
    this.logLinesLost = given.logLinesLost
    this.log = log
    this.parts = parts
    this.services = localServices(config)
    this.nodeName = config.node.name ?? hostname()
    // Closed last: nothing that borrows them is left then.
    this.sockets = parts.use(new ListeningSockets(log))
    const wait = (name: string): Blocker => this.readiness.block(name)
    this.awaitedParts = {
      workers: wait('the workers'),
      firstSnapshot: wait('the first snapshot'),
      roots: wait('roots'),
      certificates: new Map(
        this.serviceNames().map((name) => [name, wait(`the certificate of ${name}`)]),
      ),
      dns: wait('the resolver'),
      capture: wait('the capture rules'),
    }
    this.pool = new WorkerPool({
      count: config.workers,
      settings: workerSettings(config, this.services, given.backend),
      totals: this.totals,
      log,
      sockets: this.sockets,
      onUse: (message) => {
        if (message.kind === 'wanted') this.discovery?.wanted(message.virtualIp)
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
        inSync: this.captureInSync,
        problems: this.capture?.problems() ?? [],
        plan: this.capture?.plan(),
      }),
      state: () => this.memory?.status() ?? NOTHING_KEPT,
      awaited: () => this.awaited(),
      problems: () => this.problems.look(),
      isDraining: () => this.draining,
    }
    this.problems = parts.use(
      new ProblemWatch({
        list: () => hostProblems(this.condition()),
        log: log.child('problems'),
        onChange: (problems) => this.onProblems(problems),
      }),
    )
  }

  private awaited(): readonly string[] {
    const workers = this.pool.statuses(() => 0)
    const hasWorker = workers.length === 0 || workers.some(({ state }) => state === 'running')
    const awaited = [...this.readiness.awaited(), ...(this.discovery?.awaited() ?? [])]
    return hasWorker || awaited.includes('the workers') ? awaited : [...awaited, 'a worker']
  }

  private condition(): HostCondition {
    const { configProblem } = this
    return {
      awaited: this.awaited(),
      isDraining: this.draining,
      workers: this.pool.statuses(() => 0),
      captureInSync: this.captureInSync,
      captureProblems: this.capture?.problems() ?? [],
      stateParts: this.state.state().parts,
      others: [
        ...(configProblem === undefined ? [] : [configProblem]),
        ...(this.certificates?.problems() ?? []),
        ...(this.catalog?.health().problems ?? []),
        ...(this.discovery?.problems() ?? []),
        ...(this.memory?.problems() ?? []),
      ],
    }
  }

  /** SIGHUP: certificates and the catalog file reload by themselves; this says what a restart would do. */
  recheckConfig(path: string): void {
    try {
      loadConfig(path)
      this.configProblem = undefined
      this.log.info('The configuration file is sound; changes to it take effect with a restart')
    } catch (error) {
      this.configProblem = Problem.of(error, 'HM_CONFIG_INVALID')
      this.log.error('The configuration file is broken; the running configuration stays', {
        error: describeError(error),
      })
    }
  }

  /** Names of the services of this host. */
  serviceNames(): string[] {
    return [...new Set(this.services.map(({ name }) => name))]
  }

  async start(): Promise<void> {
    const { config, log, parts } = this
    parts.defer(() => this.stopping.abort())
    parts.use(watchEventLoopLag((longestMs) => (this.eventLoopLagMs = longestMs)))
    await this.startAdmin()
    const memory = parts.use(new Memory(config, log))
    this.memory = memory
    const source = openCatalog(config, this.nodeName, log)
    const catalog = parts.use(memory.catalog(source))
    this.catalog = catalog
    if ('readAgentSelf' in source && config.node.name === undefined)
      this.nodeName = await memory.nodeName(source, this.nodeName)
    const certificates = parts.use(
      memory.certificates(openCertificates(config, source, this.nodeName, log)),
    )
    this.certificates = certificates
    this.followCertificates(certificates)
    // Before they start: one that cannot listen is a thread all the same, and would keep the process alive.
    parts.defer(() => this.pool.drain(0))
    await this.pool.start()
    this.awaitedParts.workers.release()
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
          insistsOnDeny: config.intentions.default === 'deny',
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
    await this.startDns()
    this.awaitedParts.dns.release()
    await this.startCapture()
    if (this.capture === undefined) this.awaitedParts.capture.release()
    void registerWhenServed({
      registry: catalog,
      services: this.services.filter(({ target }) => target !== undefined),
      tunnelPort: config.tunnel.port,
      canServe: ({ name }) => this.canServe(name),
      signal: this.stopping.signal,
    })
    log.info('Ready', {
      node: this.nodeName,
      services: this.serviceNames(),
      version: hostmeshVersion,
    })
    returnStartupMemory()
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
          captureInSync: this.captureInSync,
          dnsQueries: this.dns?.counts(),
          watchedServices: this.discovery?.watchedServices() ?? 0,
          unknownCallersRefused: this.captureCounts && {
            virtual: this.captureCounts.refusedVirtual,
            instance: this.captureCounts.refusedInstance,
          },
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
    this.parts.use(
      await startAdminServer({
        socketPath: admin.socket,
        group: admin.group,
        metrics:
          port === undefined
            ? undefined
            : { ip: address, port, open: () => this.socket('metrics', 'tcp', address, port) },
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

  /** A descriptor of a socket of the main thread, to be closed by whoever asked for it. */
  private socket(name: string, kind: 'tcp' | 'udp', ip: string, port: number): number {
    const planned = {
      name,
      kind,
      address: { ip, port },
      transparent: false,
      isOptional: false,
    } as const
    return duplicateDescriptor(this.sockets.take(planned))
  }

  /** The list of problems now. */
  currentProblems(): readonly ProblemEntry[] {
    return this.problems.look()
  }

  private async startDns(): Promise<void> {
    const { dns, datacenter } = this.config
    if (!isDnsOn(this.config)) return
    this.dns = this.parts.use(
      await startDnsServer({
        address: { ip: dns.address, port: dns.port },
        sockets: {
          tcp: this.socket('dns/tcp', 'tcp', dns.address, dns.port),
          udp: this.socket('dns/udp', 'udp', dns.address, dns.port),
        },
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

  private async startCapture(): Promise<void> {
    if (this.config.capture.mode === 'off') return
    const capture = createCapture({
      log: this.log,
      maintain: CAPTURE_UPKEEP,
      ...captureOptions(this.config),
    })
    this.capture = capture
    this.parts.use(capture)
    const plan = await capturePlan(this.config, this.services)
    this.capturePlan = plan
    // What was captured before the start is captured at once, whatever the catalog takes to say.
    const kept = this.memory?.keptCapture()?.addresses.instances ?? []
    await capture.updateAddresses({ instances: kept, permitted: [] })
    await capture.apply(plan)
    const snapshot = this.discovery?.current()
    if (snapshot !== undefined && snapshot.version > 0) await this.followInstances(snapshot)
    this.captureInSync = true
    const timer = setInterval(() => void this.lookAtCapture(capture), CAPTURE_UPKEEP.verifyEveryMs)
    this.parts.defer(() => clearInterval(timer))
  }

  private async lookAtCapture(capture: Capture): Promise<void> {
    try {
      const state = await capture.show()
      this.captureInSync = state.inSync
      this.captureCounts = state.counts
    } catch (error) {
      this.captureInSync = false
      this.log.warn('Cannot look at the capture rules', { error: describeError(error) })
    }
  }

  private async followInstances(snapshot: Snapshot): Promise<void> {
    const { capture } = this
    if (capture === undefined) return
    const addresses = {
      instances: capturedInstances(snapshot.services.values()),
      permitted: [],
    }
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
    if (this.capturePlan === undefined) return
    this.memory?.keepCapture({
      plan: this.capturePlan,
      settings: nftSettings(this.config),
      addresses,
    })
  }

  /** The rules stay and refuse; only what is permissive passes while nobody carries it. */
  private async suspendCapture(): Promise<void> {
    const services = [...(this.discovery?.current().services.values() ?? [])]
    const permissive = services.filter(({ name }) => isPermissive(this.config, name))
    try {
      await this.capture?.suspend(capturedInstances(permissive))
    } catch (error) {
      this.log.error('Cannot let connections to permissive services pass', {
        error: describeError(error),
      })
    }
  }
}

function openCatalog(config: Config, node: string, log: Log): Catalog | ConsulCatalog {
  if (config.catalog.kind === 'file')
    return createFileCatalog({ path: config.catalog.path, node }, log.child('catalog'))
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
    limits,
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
