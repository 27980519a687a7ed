/**
 * Sessions to other hosts, kept for the next connection: one per caller, destination (service and datacenter) and
 * peer address.
 *
 * A session is dialed when the first connection needs it; whoever comes meanwhile waits for the same dial, each for as long
 * as it may: when a dial takes too long, who came later dials again, one dial for all of those.
 * A peer that turns out not to speak the tunnel protocol (a sidecar) gets one connection each.
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

/** Whom a caller wants to reach. */
export interface PoolRequest {
  readonly source: string
  readonly destination: string
  readonly datacenter: string
  readonly address: SocketAddress
  readonly credential: Credential
  /** How long this caller waits at most, and a dial may take. */
  readonly timeoutMs: number
  /**
   * Asked when a dial that others share has taken too long: what to dial with once more while there is time; undefined when
   * the caller has gone, or had better go elsewhere. Without it the caller does not try again.
   */
  readonly again?: () => Credential | undefined
}

/** A way to a peer: a session that takes streams, or a connection of one's own. */
export type Reached =
  | { readonly kind: 'session'; readonly session: Session }
  | {
      readonly kind: 'connection'
      readonly socket: TLSSocket
      readonly certificates: CertificatePair
    }

/** One pooled session, for status. */
export interface PooledSession {
  readonly source: string
  readonly destination: string
  readonly address: SocketAddress
  readonly peer: PeerIdentity
  readonly session: Session
  readonly certificates: CertificatePair
  /** Wall clock; from then on new connections dial anew, so that none is cut at the end. */
  readonly renewAtMs: number
  /** Wall clock; the session must be gone by then. */
  readonly notAfterMs: number
}

/** Time before the end of a certificate in which a session takes no new streams: a quarter of what is left, at most this. */
const RENEW_BEFORE_MS = 60_000

/** Who has no more time than this does not dial again. */
const WORTH_DIALING_MS = 100

/** What the pool needs and tells. */
export interface PoolOptions extends Omit<SessionOptions, 'lane'> {
  /** Whom the sessions of a local service are spent on. */
  readonly lane: (source: string, destination: string) => Lane
  /** A session without streams for so long is closed. */
  readonly idleMs: number
  /** Why a connection may not go on that has just been made; roots may have changed since its handshake began. */
  readonly rejection: (
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
  /** Peers known not to speak the tunnel protocol; only saves waiting, so a wrong entry does no harm. */
  private readonly plainPeers = new Set<string>()

  constructor(options: PoolOptions) {
    this.options = options
    this.clock = options.clock ?? systemClock
    this.dialPeer = options.dialPeer ?? dialPeer
  }

  /** The session that is open to the peer; undefined when one has to be dialed. */
  ready(request: PoolRequest): Reached | undefined {
    const session = this.usable(keyOf(request), request.credential)
    return session === undefined ? undefined : { kind: 'session', session }
  }

  /**
   * A way to the peer, dialing if need be.
   * @throws MeshError of {@link dialPeer}, HM_DIAL_TIMEOUT also when the caller's own time is over before that of the dial.
   */
  async reach(request: PoolRequest): Promise<Reached> {
    const key = keyOf(request)
    const giveUpAtMs = this.clock.monotonicMs() + request.timeoutMs
    let { credential } = request
    for (;;) {
      const ready = this.usable(key, credential)
      if (ready !== undefined) return { kind: 'session', session: ready }
      const leftMs = giveUpAtMs - this.clock.monotonicMs()
      if (this.plainPeers.has(key))
        return this.dial(key, { ...request, credential, timeoutMs: leftMs })
      const underWay = this.dials.get(key)
      const dial = underWay ?? this.share(key, { ...request, credential })
      try {
        const reached = await this.within(leftMs, dial, request)
        if (reached.kind === 'session' || underWay === undefined) return reached
      } catch (error) {
        // Nobody else takes a connection of one's own.
        if (underWay === undefined) dial.then(discard, () => undefined)
        const hasTime = giveUpAtMs - this.clock.monotonicMs() >= WORTH_DIALING_MS
        const next =
          hasTime && errorCode(error) === 'HM_DIAL_TIMEOUT' ? request.again?.() : undefined
        if (next === undefined) throw error
        credential = next
      }
    }
  }

  /** The live sessions, draining ones included. */
  list(): PooledSession[] {
    return [...this.sessions.values(), ...this.retiring]
  }

  /** Once a second or so: keepalive, idle and expired sessions. `nowMs` monotonic, `wallMs` wall clock. */
  tick(nowMs: number, wallMs: number): void {
    for (const [key, pooled] of this.sessions) {
      const isIdle = pooled.session.idleMs(nowMs) > this.options.idleMs
      if (pooled.session.isRetired || isIdle || wallMs >= pooled.renewAtMs) this.retire(key, pooled)
      else pooled.session.tick(nowMs)
    }
    for (const pooled of this.retiring) pooled.session.tick(nowMs)
    for (const pooled of this.list()) if (wallMs >= pooled.notAfterMs) pooled.session.expire()
  }

  /** Many times a second: are there hosts that do not answer? `nowMs` monotonic. */
  watch(nowMs: number): void {
    for (const { session } of this.sessions.values()) session.watch(nowMs)
    for (const { session } of this.retiring) session.watch(nowMs)
  }

  /** A service has a new leaf: sessions that show another one take no new streams. */
  renew(service: string, serialNumber: string): void {
    for (const [key, pooled] of this.sessions)
      if (pooled.source === service && pooled.certificates.own.serialNumber !== serialNumber)
        this.retire(key, pooled)
  }

  /** No new streams anywhere; sessions close as their streams end. */
  drain(): void {
    for (const [key, pooled] of this.sessions) this.retire(key, pooled)
  }

  private usable(key: string, credential: Credential): Session | undefined {
    const pooled = this.sessions.get(key)
    if (pooled === undefined) return undefined
    const isCurrent =
      pooled.certificates.own.serialNumber === credential.leaf.serialNumber &&
      Date.now() < pooled.renewAtMs
    if (!pooled.session.isRetired && isCurrent) return pooled.session
    this.retire(key, pooled)
    return undefined
  }

  /** A dial that whoever comes meanwhile waits for, too. */
  private share(key: string, request: PoolRequest): Promise<Reached> {
    const dial = this.dial(key, request).finally(() => this.dials.delete(key))
    // Everybody who waits for it may have given up before.
    dial.catch(() => undefined)
    this.dials.set(key, dial)
    return dial
  }

  /** What becomes of a dial, as seen by a caller who waits no longer than this; the dial goes on for the others. */
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
    const rejection = this.options.rejection(certificates, request.credential)
    if (rejection !== undefined) {
      this.options.onDialed('failed')
      drop(dialed.socket)
      throw rejection
    }
    if (!dialed.isTunnel) {
      this.options.onDialed('connection')
      if (this.plainPeers.size > 10_000) this.plainPeers.clear()
      this.plainPeers.add(key)
      return { kind: 'connection', socket: dialed.socket, certificates }
    }
    this.options.onDialed('tunnel')
    this.plainPeers.delete(key)
    return { kind: 'session', session: this.pool(key, request, { dialed, certificates }) }
  }

  private pool(
    key: string,
    request: PoolRequest,
    {
      dialed,
      certificates,
    }: { readonly dialed: DialedPeer; readonly certificates: CertificatePair },
  ): Session {
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
    return session
  }

  private retire(key: string, pooled: PooledSession): void {
    if (this.sessions.get(key) === pooled) this.sessions.delete(key)
    this.retiring.add(pooled)
    // May close at once, and onClosed then takes it out again.
    pooled.session.drain()
  }
}

/** Ends what came for a caller that has given up. A session stays for the next one. */
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
