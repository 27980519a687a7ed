/**
 * The sessions opened by peers: how many each peer may have, and how long an idle one stays.
 *
 * A host needs one session for each of its workers, callers and destinations, and a few more while certificates change.
 * At the limit of a place or a host, a new session replaces the oldest idle one there, or is refused. When the worker
 * has no free place, it closes an idle session of the same host, or else one of the host with the most sessions.
 */
import { MeshError } from '../../lib/errors.ts'
import type { SocketAddress } from '../../model/address.ts'
import type { Lane } from './accounts.ts'
import type { PeerIdentity } from './peer.ts'
import type { Session } from './session.ts'
import type { CertificatePair } from './trust.ts'

/** A session that a peer has opened. */
export interface InboundSession {
  readonly session: Session
  readonly peer: PeerIdentity
  readonly destination: string
  readonly address: SocketAddress | undefined
  readonly lane: Lane
  readonly certificates: CertificatePair
  /** Wall clock; the session must be closed by then. */
  readonly notAfterMs: number
}

/** The place of a session: peer, destination and address. */
export type SessionPlace = Pick<InboundSession, 'peer' | 'destination' | 'lane'> & {
  readonly ip: string | undefined
}

/**
 * How long a session must have been without streams before it may be closed for a new one, milliseconds. A new session
 * is about to be used, and a peer that opens sessions every second must not make us close them every second.
 */
const LEAST_IDLE_MS = 30_000

/** How much longer than its opener the acceptor keeps an idle session, milliseconds: the opener closes it in order. */
const IDLE_GRACE_MS = 60_000

/** Limits for inbound sessions. */
export interface InboundSessionLimits {
  /** Sessions of one peer identity from one address to one destination. */
  readonly perPlace: number
  /** Sessions of all identities of one host; each costs about 130 KiB, used or not. */
  readonly perHost: number
  /** How long an opener keeps a session without streams. */
  readonly idleMs: number
}

/** The inbound sessions of a worker. */
export class InboundSessions implements Iterable<InboundSession> {
  private readonly limits: InboundSessionLimits
  private readonly all = new Set<InboundSession>()
  private readonly byPlace = new Map<string, Set<InboundSession>>()
  private readonly byHost = new Map<string, Set<InboundSession>>()

  constructor(limits: InboundSessionLimits) {
    this.limits = limits
  }

  /** Number of sessions. */
  get size(): number {
    return this.all.size
  }

  [Symbol.iterator](): Iterator<InboundSession> {
    return this.all[Symbol.iterator]()
  }

  /** Why a peer may not open another session now; undefined when it may. Closes an idle session where that helps. */
  rejectionReason(place: SessionPlace, nowMs: number): MeshError | undefined {
    const { account } = place.lane
    const { sessions } = account.shared
    const there = this.byPlace.get(keyOf(place)) ?? none
    const ofHost = this.byHost.get(hostOf(place)) ?? none
    const isPlaceFull = there.size >= this.limits.perPlace
    const isHostFull = ofHost.size >= this.limits.perHost
    if (!isPlaceFull && !isHostFull && sessions.allows(account.places, 1)) return undefined
    const idle =
      oldestIdle(isPlaceFull ? there : ofHost, nowMs) ??
      (isPlaceFull || isHostFull || sessions.allowance >= 1
        ? undefined
        : oldestIdle(this.ofLargestHost(), nowMs))
    if (idle === undefined)
      return new MeshError(
        'HM_LIMIT_SESSIONS',
        `Refused another tunnel of ${place.peer.service} to ${place.destination}: it has ${account.places.used} to this host, and its host ${ofHost.size}`,
      )
    idle.session.drain()
    return undefined
  }

  private ofLargestHost(): ReadonlySet<InboundSession> {
    let largest: ReadonlySet<InboundSession> = none
    for (const sessions of this.byHost.values())
      if (sessions.size > largest.size) largest = sessions
    return largest
  }

  /** Registers a session. */
  add(inbound: InboundSession): void {
    this.all.add(inbound)
    enter(this.byPlace, keyOfSession(inbound), inbound)
    enter(this.byHost, hostOf(inbound), inbound)
    const { account } = inbound.lane
    account.shared.sessions.add(account.places, 1)
    account.shared.descriptors.add(account.descriptors, 1)
  }

  /** Removes a session that has ended. */
  delete(inbound: InboundSession): void {
    if (!this.all.delete(inbound)) return
    leave(this.byPlace, keyOfSession(inbound), inbound)
    leave(this.byHost, hostOf(inbound), inbound)
    const { account } = inbound.lane
    account.shared.sessions.add(account.places, -1)
    account.shared.descriptors.add(account.descriptors, -1)
  }

  /** Closes idle sessions that their openers have not closed. */
  tick(nowMs: number): void {
    for (const { session } of this.all)
      if (session.idleMs(nowMs) > this.limits.idleMs + IDLE_GRACE_MS) session.drain()
  }
}

const none: ReadonlySet<InboundSession> = new Set()

function enter(by: Map<string, Set<InboundSession>>, key: string, inbound: InboundSession): void {
  const there = by.get(key)
  if (there === undefined) by.set(key, new Set([inbound]))
  else there.add(inbound)
}

function leave(by: Map<string, Set<InboundSession>>, key: string, inbound: InboundSession): void {
  const there = by.get(key)
  there?.delete(inbound)
  if (there?.size === 0) by.delete(key)
}

function hostOf({ lane }: Pick<InboundSession, 'lane'>): string {
  return lane.account.origin?.name ?? ''
}

function oldestIdle(sessions: Iterable<InboundSession>, nowMs: number): InboundSession | undefined {
  let oldest: InboundSession | undefined
  let oldestMs = LEAST_IDLE_MS
  for (const inbound of sessions) {
    const idleMs = inbound.session.idleMs(nowMs)
    if (idleMs < oldestMs) continue
    oldest = inbound
    oldestMs = idleMs
  }
  return oldest
}

function keyOfSession(inbound: InboundSession): string {
  return keyOf({ ...inbound, ip: inbound.address?.ip })
}

function keyOf({ peer, destination, ip }: SessionPlace): string {
  return `${peer.spiffeId} ${destination} ${ip ?? ''}`
}
