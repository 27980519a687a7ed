/**
 * The daemon of a host: builds every part, joins them, and takes them down again.
 *
 * Order of starting: admin API (its socket also keeps a second daemon out, and the lock of the kernel's rules one with a socket of
 * its own), what two daemons of a host may do at once (`prepare`: catalog, certificates, workers, discovery), and only when all of
 * that stands what there is one of (`own`): ports, resolver, rules, registration. Stopping goes the other way round: nobody is sent
 * here any more before nobody is served any more.
 */
import { hostname } from 'node:os'
import { localServices } from '../config/local-services.ts'
import { type Config, isDnsOn } from '../config/schema.ts'
import type { ChosenBackend } from '../controlplane/capture/backend.ts'
import { startDiscovery } from '../controlplane/discovery/publisher.ts'
import { type DnsServer, startDnsServer } from '../controlplane/dns/server.ts'
import type { CertificateSource } from '../controlplane/identity/certificate-source.ts'
import { capturedService } from '../dataplane/listener-plan.ts'
import { sleep } from '../lib/abort.ts'
import { describeError, errorCode, MeshError } from '../lib/errors.ts'
import { duplicateDescriptor, isPortFree } from '../lib/listening-socket.ts'
import type { Log } from '../lib/log.ts'
import { localPortRange, reservedPorts } from '../lib/port-holder.ts'
import { collectGarbage } from '../lib/return-memory.ts'
import type { Systemd } from '../lib/systemd.ts'
import { hostmeshVersion } from '../lib/version.ts'
import type { ProblemEntry, ReloadStatus } from '../model/admin.ts'
import type { Leaf, TrustBundle } from '../model/certificate.ts'
import type { Problem } from '../model/problem.ts'
import type { LocalService } from '../model/service.ts'
import { watchEventLoopLag } from '../telemetry/event-loop-lag.ts'
import { createExposition } from '../telemetry/exposition.ts'
import { WorkerTotals } from '../telemetry/totals.ts'
import { startAdminServer } from './admin-server.ts'
import { createAdminView } from './admin-view.ts'
import type { Incumbent } from './hand-over.ts'
import {
  type ControlPlane,
  type Host,
  type MeshKnowledge,
  NOTHING_KNOWN,
  readMetrics,
} from './host.ts'
import { HostRules } from './host-rules.ts'
import { limitProblems } from './limit-problems.ts'
import type { ListeningSockets, PlannedSocket } from './listening-sockets.ts'
import { HostState } from './memory.ts'
import { hostProblems, ProblemWatch } from './problems.ts'
import { type Blocker, Readiness, untilNothingAwaited } from './readiness.ts'
import { registerWhenServed } from './register-when-served.ts'
import { NEVER_RELOADED } from './reloader.ts'
import { unreservedPorts } from './reserved-ports.ts'
import { openCatalog, openCertificates } from './sources.ts'
import { WorkerPool } from './worker-pool.ts'
import { workerSettings } from './worker-settings.ts'

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

/** What a daemon is built from. */
export interface DaemonOptions {
  readonly parts: AsyncDisposableStack
  readonly sockets: ListeningSockets
  readonly backend: ChosenBackend | undefined
  readonly guardsPorts: boolean
  readonly logLinesLost: () => number
}

/** One daemon. It starts by {@link Daemon.start}, or succeeds another one. */
export class Daemon implements Incumbent {
  /** Called with every change of the list of problems. */
  onProblems: (problems: readonly ProblemEntry[]) => void = () => undefined
  /** What became of reloads. */
  reloads: () => ReloadStatus = () => NEVER_RELOADED
  /** Why the last one failed. */
  reloadProblem: () => Problem | undefined = () => undefined
  readonly #config: Config
  readonly #log: Log
  readonly #options: DaemonOptions
  readonly #services: readonly LocalService[]
  readonly #totals = new WorkerTotals()
  readonly #readiness = new Readiness()
  readonly #rules: HostRules
  readonly #problems: ProblemWatch
  readonly #pool: WorkerPool
  readonly #host: Host
  /** All of them from the beginning: nothing is ready because nobody has asked for it yet. */
  readonly #awaitedParts: {
    readonly workers: Blocker
    readonly firstSnapshot: Blocker
    readonly roots: Blocker
    readonly certificates: ReadonlyMap<string, Blocker>
    readonly dns: Blocker
    readonly capture: Blocker
  }
  readonly #leaves = new Map<string, Leaf>()
  #bundle: TrustBundle | undefined
  #nodeName: string
  /** From {@link Daemon.prepare} on. */
  #control: ControlPlane | undefined
  #dns: DnsServer | undefined
  #draining = false
  /** Whether rules stay when this process ends: the next one takes them over. */
  #leavesRules = false
  /** The parts that a host has one of; they change hands in a reload. */
  #owned = new AsyncDisposableStack()
  /** Aborted when registration is another process'. */
  #registering = new AbortController()
  /** Aborted when nobody new is to be sent here any more. */
  readonly #stopping = new AbortController()
  #eventLoopLagMs = 0

  constructor(config: Config, log: Log, options: DaemonOptions) {
    const { parts, sockets } = options
    this.#config = config
    this.#log = log
    this.#options = options
    // Here for what is started before the rest, and again behind it: they are the first to go.
    parts.defer(() => this.#owned.disposeAsync())
    const bound = capturePorts(sockets.inheritedPorts())
    this.#services = localServices(config, { bound, isFree: isPortFree })
    this.#nodeName = config.node.name ?? hostname()
    const wait = (name: string): Blocker => this.#readiness.block(name)
    this.#awaitedParts = {
      workers: wait(WORKERS),
      firstSnapshot: wait('the first snapshot'),
      roots: wait('roots'),
      certificates: new Map(
        this.serviceNames().map((name) => [name, wait(`the certificate of ${name}`)]),
      ),
      dns: wait(RESOLVER),
      capture: wait(CAPTURE_RULES),
    }
    this.#rules = new HostRules({
      config,
      services: this.#services,
      sockets,
      guardsPorts: options.guardsPorts,
      hadCapture: bound.size > 0,
      log,
      onInPlace: () => this.#awaitedParts.capture.release(),
    })
    this.#pool = new WorkerPool({
      count: config.workers,
      settings: workerSettings(config, this.#services, options.backend),
      maxSegment: config.tunnel.maxSegment,
      totals: this.#totals,
      log,
      sockets,
      onUse: (message) => {
        const { discovery } = this.#mesh
        if (message.kind === 'wanted') discovery.wanted(message.address.ip, message.address.port)
        else discovery.used(message.services)
      },
    })
    this.#host = {
      version: hostmeshVersion,
      datacenter: config.datacenter,
      startedAtMs: Date.now(),
      captureMode: config.capture.mode,
      services: this.#services,
      pool: this.#pool,
      now: () => ({
        node: this.#nodeName,
        awaited: this.awaited(),
        isDraining: this.#draining,
        problems: this.#problems.look(),
        reload: this.reloads(),
        rules: this.#rules.view(),
        leaves: [...this.#leaves.values()],
        bundle: this.#bundle,
        dns: this.#dns,
        mesh: this.#mesh,
        logLinesLost: options.logLinesLost(),
        eventLoopLagMs: this.#eventLoopLagMs,
      }),
    }
    this.#problems = parts.use(
      new ProblemWatch({
        list: () => this.#listProblems(),
        log: log.child('problems'),
        onChange: (problems) => this.onProblems(problems),
      }),
    )
  }

  /** What it still waits for before it is ready. */
  awaited(): readonly string[] {
    const workers = this.#pool.statuses(() => 0)
    const hasWorker = workers.length === 0 || workers.some(({ state }) => state === 'running')
    const awaited = [...this.#readiness.awaited(), ...this.#mesh.discovery.awaited()]
    return hasWorker || awaited.includes(WORKERS) ? awaited : [...awaited, 'a worker']
  }

  /** The list of problems now. */
  currentProblems(): readonly ProblemEntry[] {
    return this.#problems.look()
  }

  /** Names of the services of this host. */
  serviceNames(): string[] {
    return [...new Set(this.#services.map(({ name }) => name))]
  }

  /** Starts on a host that has no daemon. Serves when it resolves. */
  async start(): Promise<void> {
    const workers = this.#startWorkers()
    await this.#startAdmin()
    await this.#rules.hold(this.#owned)
    await this.#own(await this.#prepare(workers))
  }

  /**
   * Tells systemd that the host is ready when it serves, or after `patienceMs` although it does not: what is ordered after
   * it must not hang the boot for ever, and is refused, never in plaintext. Who needs more waits for the mark of serving.
   */
  async tellReady(systemd: Systemd, patienceMs: number): Promise<void> {
    const awaited = (): readonly string[] => this.awaited()
    const { signal } = this.#stopping
    try {
      const missing = await untilNothingAwaited(awaited, patienceMs, signal)
      systemd.ready()
      if (missing.length > 0) {
        this.#log.warn('Not ready yet, but whatever is ordered after this daemon waits no longer', {
          missing: missing.join(', '),
        })
        await untilNothingAwaited(awaited, Number.POSITIVE_INFINITY, signal)
      }
      systemd.serves()
      // Not before: it takes longer than many a start step.
      collectGarbage()
      this.#log.info('Ready', {
        node: this.#nodeName,
        services: this.serviceNames(),
        version: hostmeshVersion,
      })
    } catch (error) {
      if (!signal.aborted) throw error
    }
  }

  /** For a successor: starts whatever may run twice on a host, and waits until it waits for no more than its predecessor. */
  async prepareToSucceed(awaited: readonly string[]): Promise<void> {
    await this.#prepare(this.#startWorkers(), { holdsMemory: true })
    const allowed = new Set([...awaited, ...OWN_PARTS])
    const missing = await untilNothingAwaited(
      () => (this.#leavesRules ? [] : this.awaited().filter((what) => !allowed.has(what))),
      PREPARE_MS,
    )
    if (missing.length > 0)
      throw new MeshError('HM_RELOAD_NOT_READY', `The new process waits for ${missing.join(', ')}`)
  }

  /** For a successor that has prepared: takes over what there is one of. Serves when it resolves. */
  async takeOver(): Promise<void> {
    const control = this.#prepared()
    this.#leavesRules = true
    await this.#startAdmin()
    await this.#rules.hold(this.#owned)
    control.memory.hold(false)
    await this.#own(control)
    this.#leavesRules = false
  }

  /** For a successor that is not to be: leaves everything as it is. */
  async abandon(): Promise<'abandoned'> {
    this.#leavesRules = true
    this.#control?.memory.hold(true)
    await this.#pool.retire(0)
    return 'abandoned'
  }

  async release(): Promise<void> {
    const control = this.#prepared()
    this.#leavesRules = true
    this.#registering.abort()
    control.catalog.leave?.()
    await this.#owned.disposeAsync()
    this.#owned = new AsyncDisposableStack()
    this.#dns = undefined
    this.#rules.letGo()
    control.memory.hold(true)
  }

  async resume(): Promise<void> {
    const control = this.#prepared()
    await this.#startAdmin()
    await this.#rules.hold(this.#owned)
    control.memory.hold(false)
    // Whatever fails must not keep the rest from going on; rules are tried again by their upkeep.
    await this.#takeUp('DNS', () => this.#startDns(control))
    await this.#takeUp('The rules of ports', () =>
      this.#rules.guardPorts(this.#owned, control.memory),
    )
    await this.#takeUp('Capture', () => this.#rules.capture(this.#owned, control))
    this.#startRegistration(control)
    this.#leavesRules = false
  }

  /** For a daemon that was replaced: its connections go on until they end, or for so long. Called again it is sooner. */
  async retire(deadlineMs: number): Promise<void> {
    this.#draining = true
    // Only this process' descriptors: the sockets are the successor's.
    this.#options.sockets[Symbol.dispose]()
    await this.#pool.retire(deadlineMs)
  }

  /** Connections that are open. */
  async connectionCount(): Promise<number> {
    const { countByWorker } = await this.#pool.connections(0)
    return countByWorker.reduce((sum, count) => sum + count, 0)
  }

  /** Takes back what was registered, refuses whoever is new, and waits for connections to end. */
  async stop(): Promise<void> {
    this.#draining = true
    this.#stopping.abort()
    const control = this.#prepared()
    await Promise.race([control.catalog.deregister(), sleep(STOP_STEP_TIMEOUT_MS)])
    await this.#rules.suspend(control)
    await this.#pool.drain(this.#config.timeouts.drain)
  }

  /** Hands everything that outlives this process to the next one: sockets, rules and registration stay. */
  async endForRestart(): Promise<void> {
    this.#draining = true
    this.#stopping.abort()
    this.#leavesRules = true
    await this.#pool.drainForRestart(this.#config.timeouts.restartGrace)
  }

  get #mesh(): MeshKnowledge {
    return this.#control ?? NOTHING_KNOWN
  }

  #prepared(): ControlPlane {
    if (this.#control === undefined) throw new Error('The daemon is not prepared')
    return this.#control
  }

  #listProblems(): readonly Problem[] {
    const { sockets } = this.#options
    const { ownPorts, condition, problems } = this.#rules.view()
    const reloadProblem = this.reloadProblem()
    const portProblem = unreservedPorts(ownPorts, localPortRange(), reservedPorts())
    const { memory, catalog, certificates, discovery } = this.#mesh
    return hostProblems({
      awaited: this.awaited(),
      isDraining: this.#draining,
      workers: this.#pool.statuses(() => 0),
      captureInSync: condition?.inSync,
      captureProblems: problems,
      stateParts: memory.status().parts,
      others: [
        ...(reloadProblem === undefined ? [] : [reloadProblem]),
        ...(portProblem === undefined ? [] : [portProblem]),
        ...sockets.problems(),
        ...certificates.problems(),
        ...catalog.health().problems,
        ...discovery.problems(),
        ...memory.problems(),
        ...limitProblems(this.#pool.pressures()),
      ],
    })
  }

  async #takeUp(what: string, start: () => Promise<void>): Promise<void> {
    try {
      await start()
    } catch (error) {
      this.#log.error(`${what} could not be taken up again`, {
        code: errorCode(error),
        error: describeError(error),
      })
    }
  }

  /** They load while everything else starts; whoever needs them waits. */
  #startWorkers(): Promise<void> {
    // Before they start: one that cannot listen is a thread all the same, and would keep the process alive.
    this.#options.parts.defer(() => this.#pool.drainForRestart(0))
    const started = this.#pool.prepare()
    started.catch(() => undefined)
    return started
  }

  /** Everything that another daemon of this host is not disturbed by. */
  async #prepare(workers: Promise<void>, { holdsMemory = false } = {}): Promise<ControlPlane> {
    const config = this.#config
    const log = this.#log
    const { parts } = this.#options
    parts.defer(() => this.#stopping.abort())
    parts.use(watchEventLoopLag((longestMs) => (this.#eventLoopLagMs = longestMs)))
    const memory = parts.use(new HostState(config, log))
    memory.hold(holdsMemory)
    const source = openCatalog(config, log, {
      node: this.#nodeName,
      memory,
      // A reload is refused as a whole; a start has nothing to fall back on but what was kept.
      isStrict: holdsMemory,
    })
    const catalog = parts.use(memory.catalog(source))
    if ('readAgentSelf' in source && config.node.name === undefined)
      this.#nodeName = await memory.nodeName(source, this.#nodeName)
    const certificates = parts.use(
      memory.certificates(openCertificates(config, source, this.#nodeName, log)),
    )
    this.#followCertificates(certificates)
    const discovery = parts.use(
      startDiscovery(
        {
          catalog,
          datacenter: config.datacenter,
          nodeName: this.#nodeName,
          localServices: this.#services,
          mode: config.catalog.kind === 'consul' ? config.catalog.watch : 'all',
          virtualRanges: [config.capture.virtualRange, config.capture.virtualRange6],
          virtualAddresses: memory.virtualAddresses(),
          isCapturing: config.capture.mode !== 'off',
          insistsOnDeny: config.intentions.default === 'deny',
          onDormant: () => {
            const control = this.#control
            if (control !== undefined) void this.#rules.follow(control.discovery.current(), control)
          },
          onDemand: config.catalog.kind === 'consul' ? { idleMs: config.catalog.unusedAfter } : {},
          log,
        },
        (delta, snapshot) => {
          this.#pool.publish(delta, snapshot)
          const control = this.#control
          if (control !== undefined) {
            void this.#rules.follow(snapshot, control)
            memory.keepVirtualAddresses(control.discovery.virtualAddresses())
          }
          this.#awaitedParts.firstSnapshot.release()
        },
      ),
    )
    parts.defer(() => this.#owned.disposeAsync())
    const control: ControlPlane = { memory, catalog, certificates, discovery }
    this.#control = control
    await workers
    return control
  }

  /** Ports, resolver, rules and registration. */
  async #own(control: ControlPlane): Promise<void> {
    const { sockets } = this.#options
    // The pool closes what nobody has taken.
    if (isDnsOn(this.#config)) for (const socket of this.#dnsSockets()) sockets.take(socket)
    await this.#pool.listen()
    await this.#rules.guardPorts(this.#owned, control.memory)
    this.#awaitedParts.workers.release()
    await this.#startDns(control)
    this.#awaitedParts.dns.release()
    await this.#rules.capture(this.#owned, control)
    if (!this.#rules.isCapturing) this.#awaitedParts.capture.release()
    this.#startRegistration(control)
  }

  #startRegistration({ catalog, discovery }: ControlPlane): void {
    this.#registering = new AbortController()
    void registerWhenServed({
      registry: catalog,
      services: this.#services.filter(({ target }) => target !== undefined),
      tunnelPort: this.#config.tunnel.port,
      canServe: ({ name }) =>
        discovery.current().policies.has(name) &&
        this.#bundle !== undefined &&
        this.#leaves.has(name),
      signal: AbortSignal.any([this.#stopping.signal, this.#registering.signal]),
    })
  }

  async #startAdmin(): Promise<void> {
    const { admin, metrics } = this.#config
    const { address, port } = metrics
    const exposition = createExposition({
      version: hostmeshVersion,
      totals: this.#totals,
      host: () => readMetrics(this.#host),
    })
    this.#owned.use(
      await startAdminServer({
        socketPath: admin.socket,
        group: admin.group,
        metrics:
          port === undefined
            ? undefined
            : {
                ip: address,
                port,
                open: () => this.#borrow(ownSocket('metrics', 'tcp', address, port)),
              },
        view: createAdminView(this.#host, exposition),
        log: this.#log,
      }),
    )
  }

  #followCertificates(source: CertificateSource): void {
    const { parts } = this.#options
    const rootsWatch = source.watchRoots((bundle) => {
      this.#bundle = bundle
      this.#pool.setRoots(bundle)
      this.#awaitedParts.roots.release()
    })
    parts.use(rootsWatch)
    for (const name of this.serviceNames()) {
      const watch = source.watchLeaf(name, (leaf) => {
        this.#leaves.set(name, leaf)
        this.#pool.setLeaf(leaf)
        this.#awaitedParts.certificates.get(name)?.release()
      })
      parts.use(watch)
    }
  }

  #dnsSockets(): readonly [tcp: OwnSocket, udp: OwnSocket] {
    const { address, port } = this.#config.dns
    return [ownSocket('dns/tcp', 'tcp', address, port), ownSocket('dns/udp', 'udp', address, port)]
  }

  /** A descriptor of a socket of the main thread, to be closed by whoever asked for it. */
  #borrow(socket: OwnSocket): number {
    return duplicateDescriptor(this.#options.sockets.take(socket))
  }

  async #startDns({ discovery }: ControlPlane): Promise<void> {
    const { dns, datacenter } = this.#config
    if (!isDnsOn(this.#config)) return
    const [tcp, udp] = this.#dnsSockets()
    this.#dns = this.#owned.use(
      await startDnsServer({
        address: { ip: dns.address, port: dns.port },
        sockets: { tcp: this.#borrow(tcp), udp: this.#borrow(udp) },
        datacenter,
        ttlS: Math.floor(dns.ttl / 1_000),
        lookup: (service, needs, { wait }) =>
          discovery.lookup(service, wait ? DNS_PATIENCE_MS : 0, needs),
        log: this.#log.child('dns'),
      }),
    )
  }
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
