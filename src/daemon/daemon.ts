/**
 * The daemon of a host: builds all parts, connects them, and stops them.
 *
 * Order of start: admin API (its socket keeps out a second daemon), lock of the kernel rules (keeps out one with
 * another socket), what two daemons may run at once (`#prepare`: catalog, certificates, workers, discovery), and last
 * what only one may own (`#own`): ports, resolver, rules, registration. A stop goes in reverse: it deregisters before
 * it stops serving.
 */
import { hostname } from 'node:os'
import { localServices } from '../config/local-services.ts'
import type { Config } from '../config/schema.ts'
import type { ChosenBackend } from '../controlplane/capture/backend.ts'
import { startDiscovery } from '../controlplane/discovery/publisher.ts'
import { sleep } from '../lib/abort.ts'
import { describeError, errorCode, MeshError } from '../lib/errors.ts'
import { isPortFree } from '../lib/listening-socket.ts'
import type { Log } from '../lib/log.ts'
import { localPortRange, reservedPorts } from '../lib/port-holder.ts'
import { collectGarbage } from '../lib/return-memory.ts'
import type { Systemd } from '../lib/systemd.ts'
import { hostmeshVersion } from '../lib/version.ts'
import type { ProblemEntry, ReloadStatus } from '../model/admin.ts'
import type { Problem } from '../model/problem.ts'
import type { LocalService } from '../model/service.ts'
import { watchEventLoopLag } from '../telemetry/event-loop-lag.ts'
import { WorkerTotals } from '../telemetry/totals.ts'
import type { AccessLogFile, LinesLost } from './access-log-file.ts'
import type { Predecessor } from './hand-over.ts'
import { type ControlPlane, type Host, type MeshKnowledge, NOTHING_KNOWN } from './host.ts'
import { HostRules } from './host-rules.ts'
import { limitProblems } from './limit-problems.ts'
import { capturePorts, type ListeningSockets } from './listening-sockets.ts'
import { MainServers } from './main-servers.ts'
import { HostState } from './memory.ts'
import { hostProblems, ProblemWatch } from './problems.ts'
import { type Blocker, Readiness, untilNothingAwaited } from './readiness.ts'
import { registerWhenServed } from './register-when-served.ts'
import { NEVER_RELOADED } from './reloader.ts'
import { Reporting } from './reports/reporting.ts'
import { unreservedPorts } from './reserved-ports.ts'
import { openCatalog, openCertificates } from './sources.ts'
import { UsedCertificates } from './used-certificates.ts'
import { WorkerPool } from './worker-pool.ts'
import { workerSettings } from './worker-settings.ts'

/** Timeout of the deregistration during a stop, milliseconds. */
const STOP_STEP_TIMEOUT_MS = 6_000

/** What a starting daemon waits for that only the owner of the host's ports and rules can provide. */
const WORKERS = 'the workers'
const RESOLVER = 'the resolver'
const CAPTURE_RULES = 'the capture rules'
const OWN_PARTS = [WORKERS, RESOLVER, CAPTURE_RULES]

/** How long a successor waits for certificates and its first snapshot. Milliseconds. */
const PREPARE_MS = 15_000

/** What a daemon is built from. */
export interface DaemonOptions {
  readonly parts: AsyncDisposableStack
  readonly sockets: ListeningSockets
  readonly backend: ChosenBackend | undefined
  readonly guardsPorts: boolean
  readonly linesLost: () => LinesLost
  /** Undefined unless the access log goes to a file. */
  readonly accessLog: AccessLogFile | undefined
}

/** One daemon. Starts with {@link Daemon.start}, or as the successor of another one. */
export class Daemon implements Predecessor {
  /** Called on every change of the list of problems. */
  onProblems: (problems: readonly ProblemEntry[]) => void = () => undefined
  /** State of the reloads. */
  reloads: () => ReloadStatus = () => NEVER_RELOADED
  /** Why the last reload failed. */
  reloadProblem: () => Problem | undefined = () => undefined
  /** The reports to aggregators. */
  readonly reporting: Reporting
  readonly #config: Config
  readonly #log: Log
  readonly #options: DaemonOptions
  readonly #services: readonly LocalService[]
  /** With the one as which this host reports. */
  readonly #carried: readonly LocalService[]
  readonly #totals = new WorkerTotals()
  readonly #readiness = new Readiness()
  readonly #rules: HostRules
  readonly #problems: ProblemWatch
  readonly #pool: WorkerPool
  readonly #host: Host
  readonly #servers: MainServers
  readonly #certificates: UsedCertificates
  /** All blockers exist from the beginning: a part that has not started yet must not count as ready. */
  readonly #awaitedParts: Record<'workers' | 'firstSnapshot' | 'dns' | 'capture', Blocker>
  #nodeName: string
  /** Set by `#prepare`. */
  #control: ControlPlane | undefined
  #draining = false
  /** The parts that only one daemon of a host may own; a reload hands them over. */
  #owned = new AsyncDisposableStack()
  /** Aborted when another process has taken over the registration. */
  #registering = new AbortController()
  /** Aborted when this daemon is to end: new connections must no longer be sent to it. */
  readonly #stopping = new AbortController()
  #eventLoopLagMs = 0

  constructor(config: Config, log: Log, options: DaemonOptions) {
    const { parts, sockets } = options
    this.#config = config
    this.#log = log
    this.#options = options
    // Deferred here for parts owned before `#prepare`, and again after it, so that owned parts are disposed first.
    parts.defer(() => this.#owned.disposeAsync())
    const bound = capturePorts(sockets)
    this.#services = localServices(config, { bound, isFree: isPortFree })
    this.reporting = new Reporting(config)
    const { service: reporter } = this.reporting
    this.#carried = reporter === undefined ? this.#services : [...this.#services, reporter]
    this.#nodeName = config.node.name ?? hostname()
    this.#pool = new WorkerPool({
      count: config.workers,
      settings: workerSettings(config, this.#carried, options.backend),
      maxSegment: config.tunnel.maxSegment,
      totals: this.#totals,
      log,
      sockets,
      writeAccessLines: async (text, lines) => options.accessLog?.write(text, lines),
      onUse: (message) => {
        const { discovery } = this.#mesh
        if (message.kind === 'wanted') discovery.wanted(message.address.ip, message.address.port)
        else discovery.used(message.services)
      },
    })
    const wait = (name: string): Blocker => this.#readiness.block(name)
    const workers = wait(WORKERS)
    const firstSnapshot = wait('the first snapshot')
    this.#certificates = new UsedCertificates({
      services: this.serviceNames(),
      unawaited: reporter?.name,
      pool: this.#pool,
      readiness: this.#readiness,
    })
    const [dns, capture] = [wait(RESOLVER), wait(CAPTURE_RULES)]
    this.#awaitedParts = { workers, firstSnapshot, dns, capture }
    this.#rules = new HostRules({
      config,
      services: this.#services,
      sockets,
      guardsPorts: options.guardsPorts,
      hadCapture: bound.size > 0,
      log,
      onInPlace: () => this.#awaitedParts.capture.release(),
    })
    this.#host = this.#createHost()
    this.#servers = new MainServers({
      config,
      sockets,
      totals: this.#totals,
      host: this.#host,
      log,
    })
    this.#problems = parts.use(
      new ProblemWatch({
        list: () => this.#listProblems(),
        log: log.child('problems'),
        onChange: (problems) => this.onProblems(problems),
      }),
    )
  }

  /** What the daemon still waits for before it is ready. */
  awaited(): readonly string[] {
    const workers = this.#pool.statuses(() => 0)
    const hasWorker = workers.length === 0 || workers.some(({ state }) => state === 'running')
    const awaited = [...this.#readiness.awaited(), ...this.#mesh.discovery.awaited()]
    return hasWorker || awaited.includes(WORKERS) ? awaited : [...awaited, 'a worker']
  }

  /** The current list of problems. */
  currentProblems(): readonly ProblemEntry[] {
    return this.#problems.check()
  }

  /** Names of the services of this host. */
  serviceNames(): string[] {
    return [...new Set(this.#services.map(({ name }) => name))]
  }

  /** Starts on a host without a running daemon. The daemon serves when this resolves. */
  async start(): Promise<void> {
    const workers = this.#startWorkers()
    await this.#servers.startAdmin(this.#owned)
    await this.#rules.hold(this.#owned)
    await this.#own(await this.#prepare(workers), true)
  }

  /**
   * Reports READY to systemd when the host serves, or after `patienceMs` even if it does not: units ordered after this
   * one must not block the boot; their connections are refused, never sent in plaintext. A unit that needs a serving
   * host waits for the mark of serving.
   */
  async notifyReady(systemd: Systemd, patienceMs: number): Promise<void> {
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
      // Only now: it takes longer than many start steps.
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

  /**
   * For a successor: starts what may run twice on a host. Resolves when it waits for no more than its predecessor.
   * @throws MeshError HM_RELOAD_NOT_READY; an AbortError after {@link Daemon.abandon}
   */
  async prepareToSucceed(awaited: readonly string[]): Promise<void> {
    await this.#prepare(this.#startWorkers(), { holdsMemory: true })
    const allowed = new Set([...awaited, ...OWN_PARTS])
    const missing = await untilNothingAwaited(
      () => this.awaited().filter((what) => !allowed.has(what)),
      PREPARE_MS,
      this.#stopping.signal,
    )
    if (missing.length > 0)
      throw new MeshError('HM_RELOAD_NOT_READY', `The new process waits for ${missing.join(', ')}`)
  }

  /** For a prepared successor: takes over the parts with a single owner. The daemon serves when this resolves. */
  async takeOver(): Promise<void> {
    const control = this.#prepared()
    await this.#servers.startAdmin(this.#owned)
    await this.#rules.hold(this.#owned)
    control.memory.hold(false)
    // The predecessor hands over what it could not deliver.
    await this.#own(control, false)
  }

  /** For a successor whose hand-over is cancelled: ends its workers and changes nothing else. */
  async abandon(): Promise<'abandoned'> {
    this.#stopping.abort()
    this.#control?.memory.hold(true)
    await this.#pool.retire(0)
    return 'abandoned'
  }

  async release(): Promise<void> {
    const control = this.#prepared()
    this.#registering.abort()
    this.reporting.suspend()
    control.catalog.leave?.()
    await this.#owned.disposeAsync()
    this.#owned = new AsyncDisposableStack()
    this.#servers.release()
    this.#rules.release()
    control.memory.hold(true)
  }

  async resume(): Promise<void> {
    const control = this.#prepared()
    await this.#servers.startAdmin(this.#owned)
    await this.#rules.hold(this.#owned)
    control.memory.hold(false)
    // A failure must not stop the other steps; the maintenance of the rules retries them.
    await this.#takeUp('DNS', () => this.#servers.startDns(this.#owned, control.discovery))
    await this.#takeUp('The rules of ports', () =>
      this.#rules.guardPorts(this.#owned, control.memory),
    )
    await this.#takeUp('Capture', () => this.#rules.capture(this.#owned, control))
    this.#startRegistration(control)
    this.reporting.resume()
  }

  /** For a replaced daemon: connections continue until they end or the deadline passes. A later call can shorten it. */
  async retire(deadlineMs: number): Promise<void> {
    this.#draining = true
    // Closes only the descriptors of this process: the sockets belong to the successor.
    this.#options.sockets[Symbol.dispose]()
    this.reporting.suspend()
    await this.#pool.retire(deadlineMs)
  }

  /** Number of open connections. */
  async connectionCount(): Promise<number> {
    const { countByWorker } = await this.#pool.views.connections(0)
    return countByWorker.reduce((sum, count) => sum + count, 0)
  }

  /** Deregisters, refuses new connections, and waits until the open ones end. */
  async stop(): Promise<void> {
    this.#draining = true
    this.#stopping.abort()
    const control = this.#prepared()
    await Promise.race([control.catalog.deregister(), sleep(STOP_STEP_TIMEOUT_MS)])
    await this.#rules.suspend(control)
    this.reporting.suspend()
    await this.#pool.drain(this.#config.timeouts.drain)
  }

  /** Ends this process and leaves sockets, rules and registration to the next one. */
  async endForRestart(): Promise<void> {
    this.#draining = true
    this.#stopping.abort()
    this.reporting.suspend()
    await this.#pool.drainForRestart(this.#config.timeouts.restartGrace)
  }

  get #mesh(): MeshKnowledge {
    return this.#control ?? NOTHING_KNOWN
  }

  #createHost(): Host {
    return {
      version: hostmeshVersion,
      datacenter: this.#config.datacenter,
      startedAtMs: Date.now(),
      captureMode: this.#config.capture.mode,
      services: this.#services,
      pool: this.#pool,
      now: () => ({
        node: this.#nodeName,
        awaited: this.awaited(),
        isDraining: this.#draining,
        problems: this.#problems.check(),
        reload: this.reloads(),
        rules: this.#rules.view(),
        leaves: this.#certificates.leaves,
        bundle: this.#certificates.bundle,
        dns: this.#servers.dns,
        mesh: this.#mesh,
        reports: this.reporting.statuses(),
        ...this.#options.linesLost(),
        eventLoopLagMs: this.#eventLoopLagMs,
      }),
    }
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
      others: this.reporting.withoutOwnBlocking([
        ...(reloadProblem === undefined ? [] : [reloadProblem]),
        ...(portProblem === undefined ? [] : [portProblem]),
        ...sockets.problems(),
        ...certificates.problems(),
        ...catalog.health().problems,
        ...discovery.problems(),
        ...memory.problems(),
        ...this.reporting.problems(),
        ...limitProblems(this.#pool.pressures()),
        ...(this.#options.accessLog?.problems() ?? []),
      ]),
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

  /** Workers load while everything else starts; a step that needs them awaits the result. */
  #startWorkers(): Promise<void> {
    // Deferred before the start: a worker that cannot listen is still a thread and would keep the process alive.
    this.#options.parts.defer(() => this.#pool.drainForRestart(0))
    const started = this.#pool.prepare()
    started.catch(() => undefined)
    return started
  }

  /** Starts everything that does not disturb another daemon of this host. */
  async #prepare(workers: Promise<void>, { holdsMemory = false } = {}): Promise<ControlPlane> {
    const config = this.#config
    const log = this.#log
    const { parts } = this.#options
    parts.defer(() => this.#stopping.abort())
    parts.use(watchEventLoopLag((longestMs) => (this.#eventLoopLagMs = longestMs)))
    const memory = parts.use(new HostState(config, log))
    memory.hold(holdsMemory)
    parts.use(this.reporting)
    const source = openCatalog(config, log, {
      node: this.#nodeName,
      memory,
      // A reload with an invalid file is rejected as a whole; a start can only fall back on the kept catalog.
      isStrict: holdsMemory,
    })
    const catalog = parts.use(memory.catalog(source))
    if ('readAgentSelf' in source && config.node.name === undefined)
      this.#nodeName = await memory.nodeName(source, this.#nodeName)
    // What starts after the end of `parts` would have no owner.
    this.#stopping.signal.throwIfAborted()
    const certificates = parts.use(
      memory.certificates(openCertificates(config, source, this.#nodeName, log)),
    )
    this.#certificates.follow(certificates, parts)
    const discovery = parts.use(
      startDiscovery(
        {
          catalog,
          datacenter: config.datacenter,
          nodeName: this.#nodeName,
          localServices: this.#carried,
          mode: config.catalog.kind === 'consul' ? config.catalog.watch : 'all',
          virtualRanges: [config.capture.virtualRange, config.capture.virtualRange6],
          virtualAddresses: memory.virtualAddresses(),
          isCapturing: config.capture.mode !== 'off',
          forcesDefaultDeny: config.intentions.default === 'deny',
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

  /** Takes ports, resolver, rules and registration; `takesKept`: reports too, which a former process kept. */
  async #own(control: ControlPlane, takesKept: boolean): Promise<void> {
    // Before listen(), which closes every inherited socket that was not taken.
    this.#servers.takeDnsSockets()
    await this.#pool.listen()
    await this.#rules.guardPorts(this.#owned, control.memory)
    this.#awaitedParts.workers.release()
    await this.#servers.startDns(this.#owned, control.discovery)
    this.#awaitedParts.dns.release()
    await this.#rules.capture(this.#owned, control)
    if (!this.#rules.isCapturing) this.#awaitedParts.capture.release()
    this.#startRegistration(control)
    await this.reporting.start({
      host: this.#host,
      totals: this.#totals,
      backend: this.#options.backend?.kind,
      ...control.memory.reports(),
      takesKept,
      log: this.#log,
    })
  }

  #startRegistration({ catalog, discovery }: ControlPlane): void {
    this.#registering = new AbortController()
    void registerWhenServed({
      registry: catalog,
      services: this.#services.filter(({ target }) => target !== undefined),
      tunnelPort: this.#config.tunnel.port,
      canServe: ({ name }) =>
        discovery.current().policies.has(name) && this.#certificates.has(name),
      signal: AbortSignal.any([this.#stopping.signal, this.#registering.signal]),
    })
  }
}
