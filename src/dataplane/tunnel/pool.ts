/**
 * Keeps sessions to other hosts for later connections: one per caller, destination (service and datacenter) and peer
 * address.
 *
 * The first connection that needs a session dials it. Connections that arrive meanwhile wait for the same dial, each up
 * to its own timeout. When the dial times out, those with time left dial again, one dial for all of them. A peer that
 * does not speak the tunnel protocol (a sidecar) gets one TLS connection for each connection.
 */
import type { TLSSocket } from 'node:tls'
import { type Clock, systemClock } from '../../lib/clock.ts'
import { errorCode, MeshError } from '../../lib/errors.ts'
import { formatAddress, type SocketAddress } from '../../model/address.ts'
import type { Lane } from './accounts.ts'
import type { Credential } from './credentials.ts'
import { type DialedPeer, dialPeer } from './dial.ts'
import type { PeerIdentity } from './peer.ts'
import { Session, type SessionOptions } from './session.ts'
import { type CertificatePair, endOf } from './trust.ts'

/** The caller, the instance that it wants to reach, and its credential. */
export interface PoolRequest {
  readonly source: string
  readonly destination: string
  readonly datacenter: string
  readonly address: SocketAddress
  readonly credential: Credential
  /** Timeout of this caller, and of a dial for it. */
  readonly timeoutMs: number
  /**
   * Called when a shared dial has timed out and there is time for another: returns the credential to dial with;
   * undefined when the caller has gone or should try another instance. Without it the caller does not dial again.
   */
  readonly again?: () => Credential | undefined
}

/** The way to a peer: a session that accepts streams, or a connection for this caller alone. */
export type Reached =
  | { readonly kind: 'session'; readonly session: Session; readonly peerSpiffeId: string }
  | {
      readonly kind: 'connection'
      readonly socket: TLSSocket
      readonly peerSpiffeId: string
      readonly certificates: CertificatePair
    }

/** One pooled session. */
export interface PooledSession {
  readonly source: string
  readonly destination: string
  readonly address: SocketAddress
  readonly peer: PeerIdentity
  readonly session: Session
  readonly certificates: CertificatePair
  /** Wall clock; from then on new connections dial again, so that none is interrupted when the certificate expires. */
  readonly renewAtMs: number
  /** Wall clock; the session must be closed by then. */
  readonly notAfterMs: number
}

/**
 * Time before certificate expiry in which a session accepts no new streams: a quarter of the time left when it was
 * dialed, at most this.
 */
const RENEW_BEFORE_MS = 60_000

/** A caller with less time left does not dial again. */
const WORTH_DIALING_MS = 100

/** Dependencies, limits and callbacks of the pool. */
export interface PoolOptions extends Omit<SessionOptions, 'lane'> {
  /** The lane that a local service's sessions are charged to. */
  readonly lane: (source: string, destination: string) => Lane
  /** A session without streams for this time is closed. */
  readonly idleMs: number
  /** Why a new connection must be rejected, as the roots may have changed since its handshake began; or undefined. */
  readonly rejectionReason: (
    certificates: CertificatePair,
    credential: Credential,
  ) => MeshError | undefined
  readonly onRoundTrip: (tookMs: number) => void
  readonly onStreamReset: () => void
  readonly onStreamShed: (limit: 'streams' | 'memory') => void
  readonly onDialed: (outcome: 'tunnel' | 'connection' | 'failed') => void
  readonly onClosed: (reason: MeshError) => void
  readonly clock?: Clock
  readonly dialPeer?: typeof dialPeer
}

/** The sessions that this worker has dialed. */
export class TunnelPool {
  private readonly options: PoolOptions
  private readonly clock: Clock
  private readonly dialPeer: typeof dialPeer
  private readonly sessions = new Map<string, PooledSession>()
  private readonly retiring = new Set<PooledSession>()
  private readonly dials = new Map<string, Promise<Reached>>()
  /** Peers that do not speak the tunnel protocol. It only saves waiting, so a wrong entry does no harm. */
  private readonly plainPeers = new Set<string>()

  constructor(options: PoolOptions) {
    this.options = options
    this.clock = options.clock ?? systemClock
    this.dialPeer = options.dialPeer ?? dialPeer
  }

  /** The open session to the peer; undefined when one must be dialed. */
  ready(request: PoolRequest): Reached | undefined {
    return this.usable(keyOf(request), request.credential)
  }

  /**
   * Returns a way to the peer; dials if necessary.
   * @throws MeshError as {@link dialPeer}; HM_DIAL_TIMEOUT also when the caller's timeout ends before the dial's.
   */
  async reach(request: PoolRequest): Promise<Reached> {
    const key = keyOf(request)
    const giveUpAtMs = this.clock.monotonicMs() + request.timeoutMs
    let { credential } = request
    for (;;) {
      const ready = this.usable(key, credential)
      if (ready !== undefined) return ready
      const leftMs = giveUpAtMs - this.clock.monotonicMs()
      if (this.plainPeers.has(key))
        return this.dial(key, { ...request, credential, timeoutMs: leftMs })
      const underWay = this.dials.get(key)
      const dial = underWay ?? this.share(key, { ...request, credential })
      try {
        const reached = await this.within(leftMs, dial, request)
        if (reached.kind === 'session' || underWay === undefined) return reached
      } catch (error) {
        // A connection that is not a session has no other user.
        if (underWay === undefined) dial.then(discard, () => undefined)
        const hasTime = giveUpAtMs - this.clock.monotonicMs() >= WORTH_DIALING_MS
        const next =
          hasTime && errorCode(error) === 'HM_DIAL_TIMEOUT' ? request.again?.() : undefined
        if (next === undefined) throw error
        credential = next
      }
    }
  }

  /** The live sessions, including draining ones. */
  list(): PooledSession[] {
    return [...this.sessions.values(), ...this.retiring]
  }

  /** Call it about once a second: keepalive, idle and expired sessions. `nowMs` is monotonic, `wallMs` wall clock. */
  tick(nowMs: number, wallMs: number): void {
    for (const [key, pooled] of this.sessions) {
      const isIdle = pooled.session.idleMs(nowMs) > this.options.idleMs
      if (pooled.session.isRetired || isIdle || wallMs >= pooled.renewAtMs) this.retire(key, pooled)
      else pooled.session.tick(nowMs)
    }
    for (const pooled of this.retiring) pooled.session.tick(nowMs)
    for (const pooled of this.list()) if (wallMs >= pooled.notAfterMs) pooled.session.expire()
  }

  /** Call it many times a second: detects hosts that do not answer. `nowMs` is monotonic. */
  watch(nowMs: number): void {
    for (const { session } of this.sessions.values()) session.watch(nowMs)
    for (const { session } of this.retiring) session.watch(nowMs)
  }

  /** A service has a new leaf: its sessions with another leaf accept no new streams. */
  renew(service: string, serialNumber: string): void {
    for (const [key, pooled] of this.sessions)
      if (pooled.source === service && pooled.certificates.own.serialNumber !== serialNumber)
        this.retire(key, pooled)
  }

  /** Opens no more streams on the pooled sessions; each closes when its streams have ended. */
  drain(): void {
    for (const [key, pooled] of this.sessions) this.retire(key, pooled)
  }

  private usable(key: string, credential: Credential): Reached | undefined {
    const pooled = this.sessions.get(key)
    if (pooled === undefined) return undefined
    const isCurrent =
      pooled.certificates.own.serialNumber === credential.leaf.serialNumber &&
      Date.now() < pooled.renewAtMs
    if (!pooled.session.isRetired && isCurrent) return wayOf(pooled)
    this.retire(key, pooled)
    return undefined
  }

  /** Starts a dial that later callers wait for too. */
  private share(key: string, request: PoolRequest): Promise<Reached> {
    const dial = this.dial(key, request).finally(() => this.dials.delete(key))
    // All waiting callers may have timed out before it fails.
    dial.catch(() => undefined)
    this.dials.set(key, dial)
    return dial
  }

  /** Waits for a dial for at most `leftMs`; the dial continues for other callers. */
  private async within(
    leftMs: number,
    dial: Promise<Reached>,
    { destination, address, timeoutMs }: PoolRequest,
  ): Promise<Reached> {
    const over = new AbortController()
    try {
      const late = this.clock.sleep(leftMs, over.signal).then(() => 'late' as const)
      const first = await Promise.race([dial, late])
      if (first !== 'late') return first
      throw new MeshError(
        'HM_DIAL_TIMEOUT',
        `Cannot reach ${destination} at ${formatAddress(address)} in ${timeoutMs} ms`,
      )
    } finally {
      over.abort()
    }
  }

  private async dial(key: string, request: PoolRequest): Promise<Reached> {
    let dialed: DialedPeer
    try {
      dialed = await this.dialPeer({
        address: request.address,
        credential: request.credential,
        destination: { datacenter: request.datacenter, service: request.destination },
        timeoutMs: request.timeoutMs,
      })
    } catch (error) {
      this.options.onDialed('failed')
      throw error
    }
    const certificates: CertificatePair = { peer: dialed.peer, own: request.credential.proof }
    const rejection = this.options.rejectionReason(certificates, request.credential)
    if (rejection !== undefined) {
      this.options.onDialed('failed')
      drop(dialed.socket)
      throw rejection
    }
    if (!dialed.isTunnel) {
      this.options.onDialed('connection')
      if (this.plainPeers.size > 10_000) this.plainPeers.clear()
      this.plainPeers.add(key)
      const { socket, peer } = dialed
      return { kind: 'connection', socket, certificates, peerSpiffeId: peer.spiffeId }
    }
    this.options.onDialed('tunnel')
    this.plainPeers.delete(key)
    return wayOf(this.pool(key, request, { dialed, certificates }))
  }

  private pool(
    key: string,
    request: PoolRequest,
    {
      dialed,
      certificates,
    }: { readonly dialed: DialedPeer; readonly certificates: CertificatePair },
  ): PooledSession {
    const notAfterMs = endOf(certificates)
    const leftMs = notAfterMs - Date.now()
    const lane = this.options.lane(request.source, request.destination)
    const { descriptors } = lane.account.shared
    descriptors.add(lane.account.descriptors, 1)
    const session = new Session(
      dialed.socket,
      'opener',
      {
        onStream: () => undefined,
        onRoundTrip: this.options.onRoundTrip,
        onStreamReset: this.options.onStreamReset,
        onStreamShed: this.options.onStreamShed,
        onClosed: (reason) => {
          if (this.sessions.get(key) === pooled) this.sessions.delete(key)
          this.retiring.delete(pooled)
          descriptors.add(lane.account.descriptors, -1)
          this.options.onClosed(reason)
        },
      },
      { ...this.options, lane },
    )
    const pooled: PooledSession = {
      source: request.source,
      destination: request.destination,
      address: request.address,
      peer: dialed.peer,
      session,
      certificates,
      renewAtMs: notAfterMs - Math.min(RENEW_BEFORE_MS, leftMs / 4),
      notAfterMs,
    }
    const before = this.sessions.get(key)
    if (before !== undefined) this.retire(key, before)
    this.sessions.set(key, pooled)
    return pooled
  }

  private retire(key: string, pooled: PooledSession): void {
    if (this.sessions.get(key) === pooled) this.sessions.delete(key)
    this.retiring.add(pooled)
    // This may close the session at once; onClosed then removes it from `retiring`.
    pooled.session.drain()
  }
}

function wayOf({ session, peer }: PooledSession): Reached {
  return { kind: 'session', session, peerSpiffeId: peer.spiffeId }
}

/** Closes a connection whose caller has given up. A session stays for the next caller. */
function discard(reached: Reached): void {
  if (reached.kind === 'connection') drop(reached.socket)
}

function drop(socket: TLSSocket): void {
  socket.on('error', () => undefined)
  socket.destroy()
}

/** One session for each caller, destination and place. */
function keyOf({ source, destination, datacenter, address }: PoolRequest): string {
  return `${source} ${destination} ${datacenter} ${formatAddress(address)}`
}
