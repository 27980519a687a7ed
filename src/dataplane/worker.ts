/**
 * One data-plane thread: accepts on the host's ports, holds the current snapshot and certificates, and hands every
 * accepted connection to its story. Never waits for Consul, a disk or the main thread.
 *
 * ```
 *   started --'listen'--> serving --'drain'--> draining --connections gone or deadline--> exit
 * ```
 */
import type { Server as TlsServer } from 'node:tls'
import { parentPort, workerData } from 'node:worker_threads'
import { systemClock, systemRandom } from '../lib/clock.ts'
import { describeError, errorCode, isErrorCode, MeshError } from '../lib/errors.ts'
import { createLog, type Log } from '../lib/log.ts'
import { collectGarbage, trimFreed } from '../lib/return-memory.ts'
import { nameThread } from '../lib/thread-name.ts'
import { canonicalIp, formatAddress, type SocketAddress } from '../model/address.ts'
import type { LocalService } from '../model/service.ts'
import { applyDelta, emptySnapshot, type Snapshot } from '../model/snapshot.ts'
import {
  type LimitName,
  type SessionEnd,
  TrafficCounters,
  WorkerCounters,
} from '../telemetry/counters.ts'
import { watchEventLoopLag } from '../telemetry/event-loop-lag.ts'
import { Balancer } from './balance/picker.ts'
import { localDoors, type TunnelDoor, tunnelDoors } from './doors.ts'
import { forgetIdlePieces } from './io/byte-queue.ts'
import { resetOnClose } from './io/linger.ts'
import { forgetIdleGathers, SocketStream, shortenSocketBuffers } from './io/socket-stream.ts'
import { watchTlsEnd } from './io/tls-end.ts'
import { atEndOfTurn, type TurnTask } from './io/turn.ts'
import { ACCEPTORS, Listeners } from './listeners.ts'
import { evaluate } from './policy/evaluate.ts'
import type { FromWorker, PeerView, ToWorker, WorkerSettings, WorkerSocket } from './protocol.ts'
import { Arrivals } from './proxy/arrivals.ts'
import { decidedFor } from './proxy/connection.ts'
import { ConnectionTable } from './proxy/connection-table.ts'
import { carryConnection, carryStream } from './proxy/inbound.ts'
import { carryOutbound } from './proxy/outbound.ts'
import { Outcomes } from './proxy/outcomes.ts'
import type { Plane } from './proxy/plane.ts'
import { PressureWatch } from './proxy/pressure.ts'
import { ProbeLimit, type ProbeResult, probe } from './proxy/probe.ts'
import { AddressIndex } from './route/by-address.ts'
import { SpareMemory } from './spare-memory.ts'
import {
  type AcceptedPeer,
  type AcceptOptions,
  createTunnelServer,
  setDefaultCredential,
} from './tunnel/accept.ts'
import { type Account, Accounts, createSharedLimits } from './tunnel/accounts.ts'
import { AddressGuard } from './tunnel/address-guard.ts'
import { Credentials } from './tunnel/credentials.ts'
import { isViolation } from './tunnel/frame.ts'
import { type InboundSession, InboundSessions } from './tunnel/inbound-sessions.ts'
import { TunnelPool } from './tunnel/pool.ts'
import { Session, type SessionOptions, type SessionOwner } from './tunnel/session.ts'
import { endOf, expiry, type Footing } from './tunnel/trust.ts'

/** How long a connection waits for a snapshot or certificate that has not arrived yet, milliseconds. */
const READY_TIMEOUT_MS = 5_000

/** Keepalive, idle connections, expired certificates: looked at this often, milliseconds. */
const TICK_MS = 1_000

/** Hosts that do not answer any more: looked for this often, milliseconds. */
const WATCH_MS = 50

/** Tunnels that callers are asked to dial anew in one tick: a new leaf must not bring all their handshakes at once. */
const MAX_RETIRED_PER_TICK = 100

/** A tunnel that ends so soon without a stream was a handshake for nothing; one that lives longer is kept for later use. Milliseconds. */
const UNUSED_MS = 30_000

/** Endpoints in one answer about the balancer. */
const MAX_LOADS = 10_000

/** Addresses that one calling service may ask the main thread about in one tick; the others' turn comes in a later one. */
const WANTED_PER_TICK = 100

/** Streams of one peer identity whose preface or policy is awaited. */
const MAX_UNAUTHORIZED = 4_096

/**
 * Sockets are given little for so long after memory was short: thousands that were given more again would all read at once.
 * Milliseconds.
 */
const SHORT_FOR_MS = 30_000

/** Descriptors of a worker that are no connection's: its event loop, its messages, its tunnel ports. */
const OWN_DESCRIPTORS = 16

/** Descriptors for connections, whatever the limit is. */
const LEAST_DESCRIPTORS = 16

/** How long tunnels without connections may take to be closed when the host drains, milliseconds. */
const CARRIER_DRAIN_MS = 2_000

/**
 * Before a restart those who came last have so long to finish, and then the tunnels to be closed: new ones wait already
 * for the next daemon. Milliseconds.
 */
const LAST_ACCEPTED_MS = 500

/** From asking callers to dial anew to refusing what they still send: longer than a round trip. Milliseconds. */
const RETIRE_MS = 200

/** While it drains a worker looks this often whether its connections have ended. Milliseconds. */
const DRAIN_LOOK_MS = 20

/** What the end of a session counts as; anything else is `lost`, or a violation of the protocol. */
const endByCode: Partial<Record<string, SessionEnd>> = {
  HM_TUNNEL_DRAINED: 'drained',
  HM_TUNNEL_EXPIRED: 'expired',
  HM_TLS_REVOKED: 'revoked',
  HM_TLS_UNTRUSTED: 'untrusted',
  HM_TUNNEL_SILENT: 'silent',
}

/** What a refused handshake counts as, when it was a limit that refused it. */
const limitByCode: Partial<Record<string, LimitName>> = {
  HM_LIMIT_DESCRIPTORS: 'descriptors',
  HM_LIMIT_SESSIONS: 'tunnels',
  HM_TLS_TOO_MANY_HANDSHAKES: 'handshakes',
  HM_TUNNEL_BARRED: 'barred',
}

/** A port where peers come in, and what answers there. */
interface TunnelListener {
  readonly door: TunnelDoor
  readonly options: AcceptOptions
  readonly server: TlsServer
}

/** The worker's whole state. */
class Worker {
  private readonly settings: WorkerSettings
  private readonly post: (message: FromWorker) => void
  private readonly log: Log
  private readonly credentials: Credentials
  private readonly routes = new AddressIndex()
  private readonly connections: ConnectionTable
  private readonly counters: TrafficCounters
  private readonly workerCounters: WorkerCounters
  private readonly pool: TunnelPool
  private readonly plane: Plane
  private readonly inboundSessions: InboundSessions
  private readonly accounts: Accounts
  private readonly guard: AddressGuard
  private readonly arrivals: Arrivals
  private readonly pressure: PressureWatch
  private readonly servicesByName = new Map<string, LocalService[]>()
  private readonly waiters = new Set<() => void>()
  /** Virtual addresses asked about in this tick, by the calling service. */
  private readonly wanted = new Map<string, Set<string>>()
  private ticks = 0
  private readonly tunnels: readonly TunnelListener[]
  private readonly listeners: Listeners
  private snapshot: Snapshot = emptySnapshot
  private draining = false
  private drainEndAtMs = Number.POSITIVE_INFINITY
  private nextInstance = 0
  private isSheddingDue = false
  private readonly spareMemory: SpareMemory

  constructor(settings: WorkerSettings, post: (message: FromWorker) => void) {
    this.settings = settings
    this.post = post
    this.credentials = new Credentials(settings.inboundMinVersion === '1.2' ? 'TLSv1.2' : 'TLSv1.3')
    this.counters = new TrafficCounters(settings.trafficMemory, (row, labels) =>
      post({ kind: 'row', row, labels }),
    )
    this.workerCounters = new WorkerCounters(settings.workerMemory)
    this.log = createLog(settings.log, () => this.workerCounters.inc('logLinesLost')).child(
      `worker ${settings.id}`,
    )
    this.connections = new ConnectionTable(
      { ...settings.limits, ...settings.timeouts },
      this.counters,
    )
    for (const service of settings.services)
      this.servicesByName.set(service.name, [
        ...(this.servicesByName.get(service.name) ?? []),
        service,
      ])
    const { limits } = settings
    const nowMs = performance.now()
    const shared = createSharedLimits({
      heldBytes: limits.heldBytes,
      descriptors: Math.max(
        LEAST_DESCRIPTORS,
        limits.descriptors - localDoors(settings).length * (ACCEPTORS + 1) - OWN_DESCRIPTORS,
      ),
      sessions: limits.tunnels,
    })
    const shedding: TurnTask = { endOfTurn: () => this.shed() }
    this.accounts = new Accounts(shared, nowMs, {
      onShort: () => this.noteShort(performance.now()),
      onExceeded: () => {
        if (this.isSheddingDue) return
        this.isSheddingDue = true
        atEndOfTurn(shedding)
      },
    })
    this.spareMemory = new SpareMemory({
      trim: trimFreed,
      collect: () => {
        forgetIdlePieces()
        forgetIdleGathers()
        collectGarbage()
      },
    })
    this.guard = new AddressGuard(
      {
        maxPending: limits.pendingHandshakesPerAddress,
        maxPendingOfAll: limits.pendingHandshakes,
        ratePerSecond: limits.handshakesPerAddress,
        burst: limits.handshakesPerAddress * 4,
      },
      nowMs,
    )
    this.inboundSessions = new InboundSessions({
      perPlace: limits.tunnelsPerPeer,
      perHost: limits.tunnelsPerHost,
      idleMs: settings.timeouts.tunnelIdleMs,
    })
    this.arrivals = new Arrivals({
      perPeer: Math.min(MAX_UNAUTHORIZED, limits.inboundConnections),
      all: Math.max(MAX_UNAUTHORIZED, limits.inboundConnections),
    })
    this.pressure = new PressureWatch(this.accounts, this.workerCounters, this.arrivals.all)
    const sessionOptions = {
      maxStreams: settings.limits.streamsPerTunnel,
      keepaliveMs: settings.timeouts.keepaliveMs,
    }
    this.pool = new TunnelPool({
      ...sessionOptions,
      idleMs: settings.timeouts.tunnelIdleMs,
      ...this.sessionObserver(),
      objection: (footing, credential) =>
        this.credentials.objectionToNew(footing, credential.believed),
      lane: (source, destination) => this.localAccount(source).lane(destination, performance.now()),
      onDialed: (outcome) =>
        this.workerCounters.inc(
          outcome === 'failed' ? 'tunnelHandshakeFailures' : 'tunnelHandshakes',
        ),
      onClosed: (reason) => this.sessionClosed(reason),
    })
    this.plane = {
      log: this.log,
      datacenter: settings.datacenter,
      timeouts: {
        connectMs: settings.timeouts.connectMs,
        handshakeMs: settings.timeouts.handshakeMs,
        readyMs: READY_TIMEOUT_MS,
      },
      routes: this.routes,
      balancer: new Balancer(systemClock, systemRandom),
      credentials: this.credentials,
      pool: this.pool,
      arrivals: this.arrivals,
      connections: this.connections,
      counters: this.counters,
      workerCounters: this.workerCounters,
      outcomes: new Outcomes(),
      probes: new ProbeLimit(),
      snapshot: () => this.snapshot,
      noteLimit: (limit) => this.pressure.note(limit),
      localAccount: (service) => this.localAccount(service),
      localInstance: (service, id) => this.localInstance(service, id),
      isDraining: () => this.draining,
      want: (caller, address) => this.want(caller, address),
      until: (look, timeoutMs) => this.until(look, timeoutMs),
    }
    this.tunnels = tunnelDoors(settings).map((door) => this.tunnelListener(door, sessionOptions))
    this.listeners = new Listeners({
      local: localDoors(settings),
      tunnels: this.tunnels,
      onLocal: (socket, door) => {
        this.workerCounters.inc('acceptedConnections')
        void carryOutbound(this.plane, socket, door)
      },
    })
    watchEventLoopLag((longestMs) => this.workerCounters.set('eventLoopDelayMs', longestMs))
    setInterval(() => this.tick(), TICK_MS)
    setInterval(() => this.pool.watch(performance.now()), WATCH_MS)
  }

  private tunnelListener(
    door: TunnelDoor,
    sessionOptions: Omit<SessionOptions, 'lane'>,
  ): TunnelListener {
    const { settings } = this
    const options: AcceptOptions = {
      credentials: this.credentials,
      datacenter: settings.datacenter,
      services: door.services,
      handshakeTimeoutMs: settings.timeouts.handshakeMs,
      maxPending: settings.limits.pendingHandshakes,
      guard: this.guard,
      strangers: this.accounts.of('handshakes under way', performance.now()),
      until: (look, timeoutMs) => this.until(look, timeoutMs),
      objection: (accepted) => this.objectionTo(accepted),
      onPeer: (accepted) => this.onPeer(accepted, sessionOptions),
      onRefused: (code, remoteAddress, detail) => {
        this.workerCounters.inc('tunnelHandshakeFailures')
        const limit = limitByCode[code]
        if (limit !== undefined) this.pressure.note(limit)
        this.log.info('Handshake refused', { code, remoteAddress, detail })
      },
    }
    return { door, options, server: createTunnelServer(options) }
  }

  /** Acts on a message of the main thread. */
  onMessage(message: ToWorker): void {
    switch (message.kind) {
      case 'snapshot':
        this.snapshot = applyDelta(this.snapshot, message.delta)
        this.routes.apply(message.delta)
        if (message.delta.policies.length > 0 || message.delta.removedPolicies.length > 0)
          this.recheckPolicies()
        this.wake()
        return
      case 'leaf':
        this.credentials.setLeaf(message.leaf)
        this.pool.renew(message.leaf.service, message.leaf.serialNumber)
        this.credentialsChanged()
        return
      case 'roots':
        this.credentials.setBundle(message.bundle)
        this.recheckTrust()
        this.credentialsChanged()
        return
      case 'listen':
        void this.listen(message.sockets)
        return
      case 'drain':
        void this.drain(message)
        return
      case 'ask':
        this.answer(message)
        return
      default:
        message satisfies never
    }
  }

  private answer(question: Extract<ToWorker, { readonly kind: 'ask' }>): void {
    const { id } = question
    switch (question.what) {
      case 'peers':
        return this.post({ kind: 'peers', id, peers: this.listPeers() })
      case 'connections':
        return this.post({
          kind: 'connections',
          id,
          connections: this.connections.list(question.limit),
          total: this.connections.size,
        })
      case 'refusals':
        return this.post({ kind: 'refusals', id, refusals: this.connections.refusals() })
      case 'connection':
        return this.post({
          kind: 'connection',
          id,
          connection: this.connections.find(question.connection),
        })
      case 'ejections':
        return this.post({ kind: 'ejections', id, ejections: this.plane.balancer.ejections() })
      case 'loads':
        return this.post({ kind: 'loads', id, loads: this.loads(question.service) })
      case 'outcomes':
        return this.post({ kind: 'outcomes', id, outcomes: this.plane.outcomes.list() })
      case 'probe':
        void this.probe(question.source, question.service, question.endpoints).then((probes) =>
          this.post({ kind: 'probes', id, probes }),
        )
        return
      default:
        question satisfies never
    }
  }

  /** Probes those of the endpoints that there are. */
  private probe(
    source: string,
    name: string,
    endpoints: readonly string[],
  ): Promise<readonly ProbeResult[]> {
    const service = this.snapshot.services.get(name)
    const asked = service?.clusters[0].endpoints.filter(({ key }) => endpoints.includes(key)) ?? []
    return Promise.all(
      asked.flatMap((endpoint) =>
        service === undefined ? [] : probe(this.plane, source, service, endpoint),
      ),
    )
  }

  /** At most {@link MAX_LOADS}. */
  private loads(name: string | undefined): Extract<FromWorker, { kind: 'loads' }>['loads'] {
    const { services } = this.snapshot
    const asked = name === undefined ? [...services.values()] : [services.get(name)]
    const loads = []
    for (const service of asked)
      for (const endpoint of service?.clusters[0].endpoints ?? []) {
        const standing = this.plane.balancer.peek(endpoint)
        if (standing !== undefined) loads.push({ endpoint: endpoint.key, ...standing })
        if (loads.length >= MAX_LOADS) return loads
      }
    return loads
  }

  /** Intentions changed: live connections that they now deny are ended (Consul's own proxies leave them). */
  private recheckPolicies(): void {
    this.connections.abortWhere(
      ({ source, stage }) => {
        const service = decidedFor(stage)
        return service !== undefined && !evaluate(source, this.snapshot.policies.get(service)).allow
      },
      'DENY',
      new MeshError('HM_POLICY_DENIED', 'The intentions have changed and deny it now'),
    )
  }

  /** Roots or revocations changed: what rests on a certificate that is not believed any more ends now. */
  private recheckTrust(): void {
    const nowMs = Date.now()
    const objection = (footing: Footing): MeshError | undefined =>
      this.credentials.objection(footing, nowMs)
    for (const { session, footing } of [...this.pool.list(), ...this.inboundSessions]) {
      const reason = objection(footing)
      if (reason !== undefined) session.disown(reason)
    }
    this.connections.abortUntrusted(objection)
  }

  /**
   * The last act after a failure that nobody caught: applications must see a reset. Closed by the kernel
   * when the thread is gone, a cut-off answer would look like a complete one.
   */
  crash(): void {
    this.connections.abortWhere(
      () => true,
      'UC',
      new MeshError('HM_WORKER_FAILED', 'The data-plane worker has crashed'),
    )
  }

  private async listen(sockets: readonly WorkerSocket[]): Promise<void> {
    try {
      const surplus = await this.listeners.open(sockets)
      this.accounts.shared.descriptors.add({ used: 0 }, surplus)
      this.post({ kind: 'listening' })
    } catch (error) {
      const code = errorCode(error)
      this.post({
        kind: 'cannotListen',
        code: isErrorCode(code) ? code : 'HM_LISTEN_FAILED',
        message: describeError(error),
        hint: error instanceof MeshError ? error.hint : undefined,
      })
    }
  }

  /** Why a peer may not come in just now: it has done too much damage, or has tunnels enough. */
  private objectionTo({
    peer,
    destination,
    socket,
    isTunnel,
  }: AcceptedPeer): MeshError | undefined {
    const nowMs = performance.now()
    const ip = canonicalIp(socket.remoteAddress ?? '')
    const lane = this.accounts.of(peer.spiffeId, nowMs, ip ?? '').lane(destination, nowMs)
    const barredMs = lane.barredForMs(nowMs, ip)
    if (barredMs > 0)
      return new MeshError(
        'HM_TUNNEL_BARRED',
        `Refused ${peer.service} -> ${destination} from ${ip ?? 'there'} for ${Math.ceil(barredMs / 1_000)} s more: it broke the tunnel protocol too often`,
      )
    if (!isTunnel) return undefined
    return this.inboundSessions.objection({ peer, destination, lane, ip }, nowMs)
  }

  private onPeer(accepted: AcceptedPeer, sessionOptions: Omit<SessionOptions, 'lane'>): void {
    const { socket, peer, destination } = accepted
    const footing: Footing = { peer, own: accepted.own.proof }
    const ip = canonicalIp(socket.remoteAddress ?? '')
    const address = ip === undefined ? undefined : { ip, port: socket.remotePort ?? 0 }
    const nowMs = performance.now()
    const lane = this.accounts.of(peer.spiffeId, nowMs, ip ?? '').lane(destination, nowMs)
    this.workerCounters.inc('tunnelHandshakes')
    if (!accepted.isTunnel) {
      resetOnClose(socket)
      watchTlsEnd(socket)
      const stream = new SocketStream(socket, 'private')
      stream.chargeTo(lane.account)
      void carryConnection(this.plane, { stream, peer, lane, address, destination, footing })
      return
    }
    let isUsed = false
    const session = new Session(
      socket,
      'acceptor',
      {
        ...this.sessionObserver(),
        onStream: (stream) => {
          isUsed = true
          this.workerCounters.inc('tunnelStreamsOpened')
          carryStream(this.plane, {
            stream,
            peer,
            lane,
            address,
            destination,
            footing: undefined,
          })
        },
        onClosed: (reason) => {
          this.inboundSessions.delete(inbound)
          if (!isUsed && performance.now() - session.openedAtMs < UNUSED_MS) accepted.wasFutile()
          this.sessionClosed(reason)
        },
      },
      { ...sessionOptions, lane, peerIp: ip },
    )
    const inbound: InboundSession = {
      session,
      peer,
      destination,
      address,
      lane,
      footing,
      notAfterMs: endOf(footing),
    }
    this.inboundSessions.add(inbound)
    if (this.draining) session.drain()
  }

  private sessionObserver(): Pick<SessionOwner, 'onRoundTrip' | 'onStreamReset' | 'onStreamShed'> {
    return {
      onStreamShed: (limit) => this.pressure.note(limit),
      onRoundTrip: (tookMs) => this.workerCounters.roundTrip(tookMs),
      onStreamReset: () => this.workerCounters.inc('tunnelStreamsReset'),
    }
  }

  private sessionClosed(reason: MeshError): void {
    const violates = isViolation(reason.code)
    this.workerCounters.sessionClosed(endByCode[reason.code] ?? (violates ? 'violation' : 'lost'))
    if (reason.code === 'HM_TUNNEL_DRAINED') return
    if (violates) this.workerCounters.inc('protocolErrors')
    this.log.info('Tunnel closed', { code: reason.code, reason: reason.message })
  }

  private localAccount(service: string): Account {
    return this.accounts.of(service, performance.now())
  }

  /** More is held than there should be: whoever has most of it gives some up. */
  private shed(): void {
    this.isSheddingDue = false
    this.accounts.shed((account, bytes) =>
      this.pressure.note('memory', this.connections.shed(account, bytes)),
    )
  }

  private localInstance(service: string, id: string | undefined): LocalService | undefined {
    const instances = this.servicesByName.get(service)?.filter(({ target }) => target !== undefined)
    if (instances === undefined || instances.length === 0) return undefined
    if (id !== undefined) return instances.find((instance) => instance.id === id)
    this.nextInstance = (this.nextInstance + 1) % instances.length
    return instances[this.nextInstance]
  }

  private credentialsChanged(): void {
    for (const { server, options } of this.tunnels) setDefaultCredential(server, options)
    this.wake()
  }

  private wake(): void {
    for (const look of this.waiters) look()
  }

  private until<T>(look: () => T | undefined, timeoutMs: number): Promise<T | undefined> {
    return new Promise((resolve) => {
      const finish = (found: T | undefined): void => {
        clearTimeout(deadline)
        this.waiters.delete(again)
        resolve(found)
      }
      const again = (): void => {
        const found = look()
        if (found !== undefined) finish(found)
      }
      const deadline = setTimeout(() => finish(undefined), timeoutMs)
      this.waiters.add(again)
      again()
    })
  }

  /** Once an address and tick, however many connections wait for it. */
  private want(caller: string, address: SocketAddress): void {
    const asked = this.wanted.get(caller) ?? new Set()
    const key = formatAddress(address)
    if (asked.has(key) || asked.size >= WANTED_PER_TICK) return
    this.wanted.set(caller, asked.add(key))
    this.post({ kind: 'wanted', address })
  }

  private tick(): void {
    this.wanted.clear()
    // Those who wait ask again: the main thread may have known nothing of their address the last time.
    this.wake()
    this.ticks += 1
    if (this.ticks % Math.max(1, Math.floor(this.settings.tellUseMs / TICK_MS)) === 0) {
      const services = this.connections.takeCalled()
      if (services.length > 0) this.post({ kind: 'used', services })
    }
    const nowMs = performance.now()
    const wallMs = Date.now()
    this.arrivals.sweep(nowMs)
    this.guard.tick(nowMs)
    this.connections.sweep(nowMs)
    this.connections.abortUntrusted((footing) =>
      wallMs >= endOf(footing) ? expiry(footing, wallMs) : undefined,
    )
    this.pool.tick(nowMs, wallMs)
    this.inboundSessions.tick(nowMs)
    this.plane.balancer.tick()
    let streams = 0
    let retired = 0
    for (const { session, destination, footing, notAfterMs } of this.inboundSessions) {
      session.tick(nowMs)
      streams += session.streamCount
      if (wallMs >= notAfterMs) session.expire()
      else if (
        retired < MAX_RETIRED_PER_TICK &&
        !session.isRetired &&
        !this.credentials.isCurrent(destination, footing.own.serialNumber)
      ) {
        session.retire()
        retired += 1
      }
    }
    const outbound = this.pool.list()
    for (const { session } of outbound) streams += session.streamCount
    this.workerCounters.set('tunnelSessionsActive', this.inboundSessions.size + outbound.length)
    this.workerCounters.set('tunnelStreamsActive', streams)
    this.workerCounters.set('ejectedEndpoints', this.plane.balancer.ejectedCount)
    const pressure = this.pressure.take(nowMs)
    if (this.accounts.isShort) this.noteShort(nowMs)
    else shortenSocketBuffers(this.spareMemory.sinceShortMs(nowMs) < SHORT_FOR_MS)
    this.spareMemory.tick(nowMs)
    this.post({ kind: 'alive', pressure })
  }

  private noteShort(nowMs: number): void {
    this.spareMemory.noteShort(nowMs)
    shortenSocketBuffers(true)
  }

  private async drain({
    deadlineMs,
    why,
  }: Extract<ToWorker, { readonly kind: 'drain' }>): Promise<void> {
    const isAskedAgain = this.drainEndAtMs !== Number.POSITIVE_INFINITY
    this.drainEndAtMs = Math.min(this.drainEndAtMs, performance.now() + deadlineMs)
    if (isAskedAgain) return
    if (why === 'restart') {
      const asked = Date.now()
      while (this.connections.hasOlderThan(asked) && performance.now() < this.drainEndAtMs)
        await sleep(DRAIN_LOOK_MS)
      this.drainEndAtMs = performance.now() + LAST_ACCEPTED_MS
    }
    this.listeners.close()
    if (why !== 'stop') {
      // Callers dial the next process from now on; what they have sent already is served.
      for (const { session } of this.inboundSessions) session.retire()
      await sleep(RETIRE_MS)
    }
    this.draining = true
    const sessions = [...this.pool.list(), ...this.inboundSessions].map(({ session }) => session)
    this.pool.drain()
    for (const session of sessions) session.drain()
    while (this.connections.size > 0 && performance.now() < this.drainEndAtMs)
      await sleep(DRAIN_LOOK_MS)
    this.connections.abortWhere(
      () => true,
      'DR',
      new MeshError('HM_DRAINING', 'The host is shutting down and the drain deadline is over'),
    )
    // Last bytes, resets and go-aways may still be on their way out of the tunnels.
    const goneAtMs = performance.now() + (why === 'restart' ? LAST_ACCEPTED_MS : CARRIER_DRAIN_MS)
    do await sleep(DRAIN_LOOK_MS)
    while (sessions.some(({ isGone }) => !isGone) && performance.now() < goneAtMs)
    this.post({ kind: 'drained' })
  }

  private listPeers(): PeerView[] {
    const nowMs = performance.now()
    const view = (
      direction: 'outbound' | 'inbound',
      session: Session,
      rest: Pick<PeerView, 'source' | 'destination' | 'spiffeId' | 'address'>,
    ): PeerView => ({
      direction,
      ...rest,
      state: session.isRetired ? 'draining' : 'open',
      streams: session.streamCount,
      roundTripMs: session.roundTripMs,
      sentBytes: session.sentBytes,
      receivedBytes: session.receivedBytes,
      ageMs: nowMs - session.openedAtMs,
    })
    return [
      ...this.pool.list().map(({ session, peer, ...pooled }) =>
        view('outbound', session, {
          source: pooled.source,
          destination: pooled.destination,
          spiffeId: peer.spiffeId,
          address: formatAddress(pooled.address),
        }),
      ),
      ...[...this.inboundSessions].map(({ session, peer, destination, address }) =>
        view('inbound', session, {
          source: peer.service,
          destination,
          spiffeId: peer.spiffeId,
          address: address === undefined ? undefined : formatAddress(address),
        }),
      ),
    ]
  }
}

function sleep(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms))
}

function isSettings(data: unknown): data is WorkerSettings {
  return typeof data === 'object' && data !== null && 'trafficMemory' in data
}

function isMessage(data: unknown): data is ToWorker {
  return typeof data === 'object' && data !== null && 'kind' in data
}

if (parentPort !== null && isSettings(workerData)) {
  nameThread(`hostmesh-w${workerData.id}`)
  const port = parentPort
  const worker = new Worker(workerData, (message) => port.postMessage(message))
  process.on('uncaughtException', (error) => {
    try {
      worker.crash()
    } finally {
      // Without a listener the exception ends the thread, and the main thread hears of it.
      process.removeAllListeners('uncaughtException')
      setImmediate(() => {
        throw error
      })
    }
  })
  port.on('message', (message: unknown) => {
    if (isMessage(message)) worker.onMessage(message)
  })
  port.postMessage({ kind: 'started' } satisfies FromWorker)
}
