/**
 * Reaches an instance of a service: picks one, dials its application on this host or opens a stream in a tunnel, and
 * tries another one when that fails and no byte has reached an application. Reports the result of each try to the
 * balancer; the receiver of the stream reports `finished` at the end.
 *
 * Independent of the connection table and of the caller's socket: gets the caller's identity and its early bytes.
 */
import { describeError, MeshError } from '../../lib/errors.ts'
import type { SocketAddress } from '../../model/address.ts'
import type { Cluster } from '../../model/cluster.ts'
import type { Endpoint } from '../../model/endpoint.ts'
import { evaluate } from '../../model/evaluate.ts'
import { dialLocal } from '../deliver/dial-local.ts'
import { localDial } from '../deliver/local-dial.ts'
import { IdleReceiver } from '../io/byte-stream.ts'
import { resetOnClose } from '../io/linger.ts'
import { SocketStream } from '../io/socket-stream.ts'
import { encodePreface } from '../tunnel/preface.ts'
import type { Session } from '../tunnel/session.ts'
import type { TunnelStream } from '../tunnel/stream.ts'
import type { CertificatePair } from '../tunnel/trust.ts'
import { addressOf, type Connection, type ReachProgress } from './connection.ts'
import type { ReplayableBytes } from './early-bytes.ts'
import { asMeshError, failureCostOf, mayTryAnother } from './ending.ts'
import { awaitPolicy, isPolicyAwaited, type WorkerContext } from './worker-context.ts'

/** Limit of instances tried for one caller. */
const MAX_TRIES = 3

/** The caller for which an instance is reached. */
export type ReachCaller = Readonly<
  Pick<Connection, 'source' | 'account' | 'from' | 'originalDestination' | 'startedMs'>
> & {
  readonly traceparent?: string | undefined
  /** Set with each try. */
  transport?: Connection['transport']
  peerSpiffeId?: string | undefined
}

/** The acceptable instances. */
export interface Target {
  /** The called service. */
  readonly service: string
  /** The cluster of the service that its routes lead to. */
  readonly cluster: Cluster
  /** The one acceptable instance, when the application dialed its address. */
  readonly pinned: Endpoint | undefined
}

/** A stream to an instance that has confirmed. */
export interface Reached {
  readonly stream: TunnelStream | SocketStream
  readonly endpoint: Endpoint
  /** Its tunnel address; undefined on this host. */
  readonly peer: SocketAddress | undefined
  /** The certificates of a TLS connection of its own; undefined for streams of a session, which checks its own. */
  readonly certificates: CertificatePair | undefined
  /** Whether the policy was applied on this host. */
  readonly decidedHere: boolean
}

/** Reaches one instance for one caller: created, run once, and asked for its progress meanwhile. */
export class Reach extends IdleReceiver implements ReachProgress {
  /** Row of the pair of caller and service in the traffic counters. */
  readonly row: number
  private readonly context: WorkerContext
  private readonly caller: ReachCaller
  private readonly early: ReplayableBytes
  readonly target: Target
  private readonly tried = new Set<string>()
  /** Monotonic: when the present try was started. */
  private askedMs = 0
  /** The instance that is being tried, once its try no longer waits for something of this host. */
  private endpoint: Endpoint | undefined
  private decidedHere = false
  /** The stream in a tunnel that is not confirmed yet. */
  private stream: TunnelStream | undefined
  /** Rejects the promise that waits for the confirmation. */
  private onFailed: ((reason: Error) => void) | undefined

  constructor(context: WorkerContext, caller: ReachCaller, early: ReplayableBytes, target: Target) {
    super()
    this.context = context
    this.caller = caller
    this.early = early
    this.target = target
    this.row = context.counters.row('source', caller.source, target.service)
  }

  get peer(): SocketAddress | undefined {
    return this.endpoint?.local === false ? this.endpoint.tunnel : undefined
  }

  get decidedFor(): string | undefined {
    return this.decidedHere ? this.endpoint?.service : undefined
  }

  get heldMemory(): number {
    return this.stream?.heldMemory ?? 0
  }

  /** @throws MeshError: the error of the last try, HM_BALANCE_NO_ENDPOINT, or why the caller is gone. */
  async run(): Promise<Reached> {
    const { context, caller, early, tried } = this
    const { service, cluster, pinned } = this.target
    let failure: unknown
    while (tried.size === 0 || (tried.size < MAX_TRIES && this.hasTime())) {
      const endpoint = pinned ?? context.balancer.pick(cluster.endpoints, tried)
      if (endpoint === undefined || tried.has(endpoint.key)) break
      tried.add(endpoint.key)
      this.askedMs = performance.now()
      context.balancer.started(endpoint)
      try {
        const reached = await (endpoint.local
          ? this.deliverHere(endpoint)
          : this.tunnelTo(endpoint))
        context.balancer.succeeded(endpoint, performance.now() - this.askedMs)
        context.outcomes.succeeded('outbound', caller.source, endpoint.key)
        return reached
      } catch (error) {
        if (!early.isGone) {
          noteFailure(context, this.target, endpoint, error)
          context.outcomes.failed('outbound', caller.source, endpoint.key, error)
        }
        context.balancer.finished(endpoint)
        context.counters.connectFailed(this.row)
        if (!mayTryAnother(error) || early.isGone) throw error
        failure = error
      }
    }
    if (failure !== undefined) throw asMeshError(failure)
    throw new MeshError(
      'HM_BALANCE_NO_ENDPOINT',
      `Cannot reach ${service}: it has no healthy instance`,
    )
  }

  private hasTime(): boolean {
    const { caller, context } = this
    return performance.now() < caller.startedMs + 2 * context.timeouts.connectMs
  }

  /** Whether another instance can be tried if this one does not answer. */
  private mayUseAnother(): boolean {
    const { cluster, pinned } = this.target
    return (
      pinned === undefined &&
      this.tried.size < MAX_TRIES &&
      this.hasTime() &&
      this.context.balancer.hasOther(cluster.endpoints, this.tried)
    )
  }

  /** Delivers on this host: without a tunnel, but under the same policy. */
  private async deliverHere(endpoint: Endpoint): Promise<Reached> {
    const { context, caller, early } = this
    const { source, account } = caller
    this.endpoint = endpoint
    this.decidedHere = false
    caller.transport = 'local'
    caller.peerSpiffeId = undefined
    // The policy is that of the instance's service, which may differ from the called one.
    if (isPolicyAwaited(context, endpoint.service)) await awaitPolicy(context, endpoint.service)
    const decision = evaluate(source, context.snapshot().policies.get(endpoint.service))
    if (!decision.allow)
      throw new MeshError(
        'HM_POLICY_DENIED',
        `Denied ${source} -> ${endpoint.service}: ${decision.reason}`,
      )
    const local = context.localInstance(endpoint.service, endpoint.id)
    const dial =
      local &&
      localDial(local, {
        service: source,
        // A system call: only where the address is needed.
        address: local.delivery?.proxyHeader === true ? addressOf(caller.from) : undefined,
        originalDestination: caller.originalDestination,
      })
    if (dial === undefined)
      throw new MeshError(
        'HM_DELIVER_UNKNOWN',
        `Cannot deliver to ${endpoint.id}: this host's configuration has no such service`,
      )
    this.decidedHere = true
    const { descriptors } = account.shared
    descriptors.add(account.descriptors, 1)
    try {
      const hasSmallBuffers = account.isShared
      const stream = await dialLocal(
        { ...dial, hasSmallBuffers },
        context.timeouts.connectMs,
        'private',
      )
      if (early.isGone) {
        stream.reset()
        throw early.goneError()
      }
      stream.chargeTo(account)
      return { stream, endpoint, peer: undefined, certificates: undefined, decidedHere: true }
    } finally {
      // From here on the receiver of the stream counts its descriptor.
      descriptors.add(account.descriptors, -1)
    }
  }

  private async tunnelTo(endpoint: Endpoint): Promise<Reached> {
    const { context, caller, early } = this
    const { source } = caller
    const credential =
      context.credentials.of(source) ??
      (await context.until(() => context.credentials.of(source), context.timeouts.readyMs))
    if (credential === undefined)
      throw new MeshError(
        'HM_TLS_NOT_READY',
        `Cannot call as ${source}: ${context.credentials.unavailableReason(source)}`,
        { hint: 'hostmesh certs shows what is missing' },
      )
    this.endpoint = endpoint
    this.decidedHere = false
    caller.transport = undefined
    caller.peerSpiffeId = undefined
    const peer = endpoint.tunnel
    const request = {
      source,
      destination: endpoint.service,
      datacenter: endpoint.datacenter,
      address: peer,
      credential,
      timeoutMs: Math.min(context.timeouts.connectMs, this.target.cluster.connectTimeoutMs),
      again: () =>
        early.isGone || this.mayUseAnother()
          ? undefined
          : (context.credentials.of(source) ?? credential),
    }
    const giveUpAtMs = performance.now() + context.timeouts.connectMs
    for (;;) {
      // If a new leaf has arrived meanwhile, use that.
      request.credential = context.credentials.of(source) ?? credential
      const way = context.pool.ready(request) ?? (await context.pool.reach(request))
      caller.peerSpiffeId = way.peerSpiffeId
      caller.transport = way.kind === 'connection' ? 'connect' : 'tunnel'
      if (early.isGone) {
        if (way.kind === 'connection') way.socket.destroy()
        throw early.goneError()
      }
      if (way.kind === 'connection') {
        resetOnClose(way.socket)
        const stream = new SocketStream(way.socket, 'private')
        stream.chargeTo(caller.account)
        const { certificates } = way
        return { stream, endpoint, peer, certificates, decidedHere: false }
      }
      if (way.session.isSuspect && this.mayUseAnother())
        throw new MeshError(
          'HM_TUNNEL_UNANSWERED',
          `Cannot reach ${endpoint.key}: its host does not answer just now`,
        )
      if (way.session.canOpen) {
        context.workerCounters.inc('tunnelStreamsOpened')
        // The time for dialing the tunnel concerned this caller only; it does not predict that of the next ones.
        this.askedMs = performance.now()
        const stream = await this.openStream(way.session, endpoint)
        return { stream, endpoint, peer, certificates: undefined, decidedHere: false }
      }
      // The session is at a limit, or was retired just now: then the pool dials another.
      const leftMs = giveUpAtMs - performance.now()
      if (leftMs <= 0)
        throw new MeshError(
          'HM_TUNNEL_FULL',
          `Cannot reach ${endpoint.key}: the tunnel had no room for ${context.timeouts.connectMs} ms`,
        )
      await way.session.room(leftMs)
    }
  }

  /** Resolves when the far end has connected to the application. */
  private openStream(session: Session, endpoint: Endpoint): Promise<TunnelStream> {
    const { caller, early } = this
    const { connectMs } = this.context.timeouts
    const stream = session.open(
      encodePreface({
        source: caller.originalDestination === undefined ? undefined : addressOf(caller.from),
        destination: caller.originalDestination,
        instance: endpoint.id,
        traceparent: caller.traceparent,
      }),
    )
    this.stream = stream
    return new Promise((resolve, reject) => {
      const fail = (reason: Error): void => {
        clearTimeout(deadline)
        early.stopForwarding()
        reject(reason)
      }
      const deadline = setTimeout(() => {
        stream.refuse('timeout')
        fail(
          new MeshError(
            'HM_CONNECT_TIMEOUT',
            `Cannot reach ${endpoint.key}: no answer in ${connectMs} ms`,
          ),
        )
      }, connectMs)
      const confirmed = (): void => {
        clearTimeout(deadline)
        resolve(stream)
      }
      const mayUseAnother = (): boolean => this.mayUseAnother()
      stream.onConfirmed = confirmed
      stream.mayUseAnother = mayUseAnother
      stream.receiver = this
      this.onFailed = fail
      early.forwardTo(stream, (gone) => {
        stream.reset()
        fail(gone)
      })
    })
  }

  /** Called for a stream that is not confirmed yet. */
  override onReset(reason: Error): void {
    this.onFailed?.(asMeshError(reason))
  }
}

/** Reports to the balancer what a failure counts against the instance. */
export function noteFailure(
  context: WorkerContext,
  { service, cluster }: Target,
  endpoint: Endpoint,
  error: unknown,
): void {
  const cost = failureCostOf(error)
  if (cost === undefined && !mayTryAnother(error)) return
  const reason = describeError(error)
  const failure = cost === undefined ? undefined : { cost, reason }
  if (!context.balancer.failed(endpoint, cluster.endpoints, failure)) return
  context.workerCounters.inc('outlierEjections')
  context.log.warn('Instance is ejected', { service, endpoint: endpoint.key, reason })
}
