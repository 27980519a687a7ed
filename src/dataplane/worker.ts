/**
 * One data-plane thread: holds the current snapshot and certificates, and starts the handling of every accepted
 * connection. Never waits for Consul, a disk or the main thread.
 *
 * This file creates the parts and passes messages of the main thread to them: listeners.ts accepts, sessions.ts has the
 * tunnels, views.ts answers questions, life-cycle.ts does periodic work and the drain.
 */
import { parentPort, workerData } from 'node:worker_threads'
import { systemClock, systemRandom } from '../lib/clock.ts'
import { describeError, errorCode, isErrorCode, MeshError } from '../lib/errors.ts'
import { createLogOn, openStandardError } from '../lib/log.ts'
import { farSocket } from '../lib/socket-pair.ts'
import { nameThread } from '../lib/thread-name.ts'
import type { SocketAddress } from '../model/address.ts'
import { evaluate } from '../model/evaluate.ts'
import type { LocalService } from '../model/service.ts'
import { applyDelta, emptySnapshot, type Snapshot } from '../model/snapshot.ts'
import { type LimitName, TrafficCounters, WorkerCounters } from '../telemetry/counters.ts'
import { watchEventLoopLag } from '../telemetry/event-loop-lag.ts'
import { AccessLines } from './access-lines.ts'
import { Balancer } from './balance/picker.ts'
import { LifeCycle } from './life-cycle.ts'
import { localListeners, tunnelListeners } from './listener-plan.ts'
import { ACCEPTORS, Listeners, type ListenersOptions } from './listeners.ts'
import { MemoryShortage } from './memory-shortage.ts'
import type { FromWorker, ToWorker, WorkerSettings, WorkerSocket } from './protocol.ts'
import { Arrivals } from './proxy/arrivals.ts'
import { decidedFor } from './proxy/connection.ts'
import { ConnectionTable } from './proxy/connection-table.ts'
import { carryConnection, carryStream } from './proxy/inbound.ts'
import { carryOutbound } from './proxy/outbound.ts'
import { Outcomes } from './proxy/outcomes.ts'
import { PressureWatch } from './proxy/pressure.ts'
import { ProbeLimit } from './proxy/probe-limit.ts'
import type { WorkerContext } from './proxy/worker-context.ts'
import { AddressIndex } from './route/by-address.ts'
import { Sessions } from './sessions.ts'
import { type Account, Accounts, createSharedLimits, type SharedLimits } from './tunnel/accounts.ts'
import { AddressGuard } from './tunnel/address-guard.ts'
import { Credentials } from './tunnel/credentials.ts'
import type { CertificatePair } from './tunnel/trust.ts'
import { answer } from './views.ts'
import { Waiting } from './waiting.ts'

/** How long a connection waits for a snapshot or certificate that has not arrived yet, milliseconds. */
const READY_TIMEOUT_MS = 5_000

/** Limit of streams of one peer identity that wait for their preface or policy. */
const MAX_UNAUTHORIZED = 4_096

/** Descriptors of a worker that belong to no connection: its event loop, its messages, its tunnel ports. */
const OWN_DESCRIPTORS = 16

/** Descriptors that are available for connections, however low the limit is. */
const LEAST_DESCRIPTORS = 16

/** A connection of the main thread arrives at no port. */
const NO_ADDRESS: SocketAddress = { ip: '127.0.0.1', port: 0 }

/** The limit that a refused handshake is counted for, by error code. */
const limitByCode: Partial<Record<string, LimitName>> = {
  HM_LIMIT_DESCRIPTORS: 'descriptors',
  HM_LIMIT_SESSIONS: 'tunnels',
  HM_TLS_TOO_MANY_HANDSHAKES: 'handshakes',
  HM_TUNNEL_BANNED: 'banned',
}

/** The parts of a worker, and its current state. */
class Worker {
  private readonly post: (message: FromWorker) => void
  private readonly routes = new AddressIndex()
  private readonly accounts: Accounts
  private readonly context: WorkerContext
  private readonly sessions: Sessions
  private readonly listeners: Listeners
  private readonly waiting: Waiting
  private readonly lifeCycle: LifeCycle
  private readonly accessLines: AccessLines
  private snapshot: Snapshot = emptySnapshot

  constructor(settings: WorkerSettings, post: (message: FromWorker) => void) {
    const { limits, timeouts } = settings
    const nowMs = performance.now()
    this.post = post
    const counters = new TrafficCounters(settings.trafficMemory, (row, labels) =>
      post({ kind: 'row', row, labels }),
    )
    const workerCounters = new WorkerCounters(settings.workerMemory)
    const output = openStandardError(settings.log, () => workerCounters.inc('logLinesLost'))
    const log = createLogOn(output, settings.log).child(`worker ${settings.id}`)
    const accessLines = new AccessLines(settings, { post, output, counters: workerCounters })
    const credentials = new Credentials(
      settings.inboundMinVersion === '1.2' ? 'TLSv1.2' : 'TLSv1.3',
    )
    const connections = new ConnectionTable({ ...limits, ...timeouts }, counters, accessLines.log)
    const waiting = new Waiting((address) => post({ kind: 'wanted', address }))
    const local = localListeners(settings)
    const memory = new MemoryShortage(() =>
      accounts.shed((account, bytes) => pressure.note('memory', connections.shed(account, bytes))),
    )
    const { shared, guard, arrivals } = createLimits(limits, local.length, nowMs)
    const accounts = new Accounts(shared, nowMs, memory)
    const pressure = new PressureWatch(accounts, workerCounters, arrivals.all)
    const sessions = new Sessions({
      settings,
      log,
      credentials,
      accounts,
      counters: workerCounters,
      pressure,
      onStream: (arrival) => carryStream(context, arrival),
      onConnection: (arrival) => void carryConnection(context, arrival),
    })
    const context: WorkerContext = {
      log,
      timeouts: {
        connectMs: timeouts.connectMs,
        handshakeMs: timeouts.handshakeMs,
        readyMs: READY_TIMEOUT_MS,
      },
      routes: this.routes,
      balancer: new Balancer(systemClock, systemRandom),
      credentials,
      pool: sessions.dialed,
      arrivals,
      connections,
      counters,
      workerCounters,
      outcomes: new Outcomes(),
      probes: new ProbeLimit(),
      snapshot: () => this.snapshot,
      noteLimit: (limit) => pressure.note(limit),
      localAccount: (service) => accounts.of(service, performance.now()),
      localInstance: chooserOf(settings.services),
      isDraining: () => sessions.isDraining,
      want: (caller, address) => waiting.want(caller, address),
      until: (look, timeoutMs) => waiting.until(look, timeoutMs),
    }
    const unauthenticated = accounts.of('handshakes under way', nowMs)
    const listeners = new Listeners({
      local,
      tunnels: tunnelListeners(settings),
      onLocal: (socket, listener) => {
        workerCounters.inc('acceptedConnections')
        void carryOutbound(context, socket, listener)
      },
      accept: acceptOptions(settings, { context, sessions, guard, unauthenticated }),
    })
    watchEventLoopLag((longestMs) => workerCounters.set('eventLoopDelayMs', longestMs))
    const { reportUseMs } = settings
    const parts = { context, sessions, listeners, waiting, accounts, guard, pressure, memory }
    this.lifeCycle = new LifeCycle({ ...parts, accessLines, reportUseMs, post })
    this.accessLines = accessLines
    this.accounts = accounts
    this.context = context
    this.sessions = sessions
    this.listeners = listeners
    this.waiting = waiting
  }

  /** Handles a message of the main thread. */
  onMessage(message: ToWorker): void {
    switch (message.kind) {
      case 'snapshot':
        this.snapshot = applyDelta(this.snapshot, message.delta)
        this.routes.apply(message.delta)
        if (message.delta.policies.length > 0 || message.delta.removedPolicies.length > 0)
          this.recheckPolicies()
        this.waiting.wake()
        return
      case 'leaf':
        this.context.credentials.setLeaf(message.leaf)
        this.sessions.dialed.renew(message.leaf.service, message.leaf.serialNumber)
        this.credentialsChanged()
        return
      case 'roots':
        this.context.credentials.setBundle(message.bundle)
        this.recheckTrust()
        this.credentialsChanged()
        return
      case 'listen':
        void this.listen(message.sockets)
        return
      case 'dial':
        this.dial(message)
        return
      case 'drain':
        void this.lifeCycle.drain(message)
        return
      case 'accessWritten':
        this.accessLines.written(message.bytes)
        return
      case 'ask':
        answer(this.context, this.sessions, message, this.post)
        return
      default:
        message satisfies never
    }
  }

  /**
   * Called last after an uncaught exception: applications must see a reset. If the kernel closed the connections when
   * the thread is gone, a truncated answer would look complete.
   */
  crash(): void {
    this.context.connections.abortWhere(
      () => true,
      'UC',
      new MeshError('HM_WORKER_FAILED', 'The data-plane worker has crashed'),
    )
    this.accessLines.flush()
  }

  /** Intentions changed: ends open connections that they now deny (Consul's own proxies keep them). */
  private recheckPolicies(): void {
    this.context.connections.abortWhere(
      ({ source, stage }) => {
        const service = decidedFor(stage)
        return service !== undefined && !evaluate(source, this.snapshot.policies.get(service)).allow
      },
      'DENY',
      new MeshError('HM_POLICY_DENIED', 'The intentions have changed and deny it now'),
    )
  }

  /** Roots or revocations changed: ends tunnels and connections with certificates that are no longer trusted. */
  private recheckTrust(): void {
    const nowMs = Date.now()
    const rejectionReason = (certificates: CertificatePair): MeshError | undefined =>
      this.context.credentials.rejectionReason(certificates, nowMs)
    this.sessions.endWhere(rejectionReason)
    this.context.connections.abortUntrusted(rejectionReason)
  }

  /** Handles a connection of the main thread as one that an application makes to an upstream port. */
  private dial({ fd, caller, destination }: Extract<ToWorker, { kind: 'dial' }>): void {
    // Said first: if this thread ends in between, a descriptor stays open, and none is closed twice.
    this.post({ kind: 'dialed', fd })
    void carryOutbound(this.context, farSocket(fd), {
      caller,
      destination,
      capturedBy: undefined,
      address: NO_ADDRESS,
    })
  }

  private credentialsChanged(): void {
    this.listeners.renewCertificates()
    this.waiting.wake()
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
}

/** The limits that do not depend on other parts of the worker; `localListeners` is the number of its local ports. */
function createLimits(
  limits: WorkerSettings['limits'],
  localListenerCount: number,
  nowMs: number,
): {
  readonly shared: SharedLimits
  readonly guard: AddressGuard
  readonly arrivals: Arrivals
} {
  const localDescriptors = localListenerCount * (ACCEPTORS + 1)
  return {
    shared: createSharedLimits({
      heldBytes: limits.heldBytes,
      descriptors: Math.max(
        LEAST_DESCRIPTORS,
        limits.descriptors - localDescriptors - OWN_DESCRIPTORS,
      ),
      sessions: limits.tunnels,
    }),
    guard: new AddressGuard(
      {
        maxPending: limits.pendingHandshakesPerAddress,
        maxPendingOfAll: limits.pendingHandshakes,
        ratePerSecond: limits.handshakesPerAddress,
        burst: limits.handshakesPerAddress * 4,
      },
      nowMs,
    ),
    arrivals: new Arrivals({
      perPeer: Math.min(MAX_UNAUTHORIZED, limits.inboundConnections),
      all: Math.max(MAX_UNAUTHORIZED, limits.inboundConnections),
    }),
  }
}

/** How the tunnel ports accept peers. */
function acceptOptions(
  { datacenter, limits, timeouts }: WorkerSettings,
  parts: {
    readonly context: WorkerContext
    readonly sessions: Sessions
    readonly guard: AddressGuard
    readonly unauthenticated: Account
  },
): ListenersOptions['accept'] {
  const { context, sessions, guard, unauthenticated } = parts
  return {
    credentials: context.credentials,
    datacenter,
    handshakeTimeoutMs: timeouts.handshakeMs,
    maxPending: limits.pendingHandshakes,
    guard,
    unauthenticated,
    until: (look, timeoutMs) => context.until(look, timeoutMs),
    rejectionReason: (accepted) => sessions.rejectionReason(accepted),
    onPeer: (accepted) => sessions.accept(accepted),
    onRefused: (code, remoteAddress, detail) => {
      context.workerCounters.inc('tunnelHandshakeFailures')
      const limit = limitByCode[code]
      if (limit !== undefined) context.noteLimit(limit)
      context.log.info('Handshake refused', { code, remoteAddress, detail })
    },
  }
}

/** Finds the instance of a service on this host: the one with the given ID, or the next in turn. */
function chooserOf(services: readonly LocalService[]): WorkerContext['localInstance'] {
  const called = services.filter(({ target }) => target !== undefined)
  const byName = Map.groupBy(called, ({ name }) => name)
  let next = 0
  return (service, id) => {
    const instances = byName.get(service)
    if (instances === undefined) return undefined
    if (id !== undefined) return instances.find((instance) => instance.id === id)
    next = (next + 1) % instances.length
    return instances[next]
  }
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
      // Without a listener the exception ends the thread, and the main thread is notified.
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
