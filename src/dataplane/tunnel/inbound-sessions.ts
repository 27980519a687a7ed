/**
 * The sessions that peers have opened: how many each may have, and how long an idle one stays.
 *
 * A host needs one session for each of its workers, callers and destinations, and a few more while certificates
 * change. What one address opens beyond that, or one host with all its callers, replaces its own oldest idle session, or is
 * refused. When there are as many as there may be, the host that has most gives up an idle one.
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
  /** Wall clock; the session must be gone by then. */
  readonly notAfterMs: number
}

/** Whose session it would be. */
export type SessionPlace = Pick<InboundSession, 'peer' | 'destination' | 'lane'> & {
  readonly ip: string | undefined
}

/**
 * How long a session must have been without streams to be closed for a new one: one just made is about to be used, and
 * making sessions by the second must not make us close them by the second.
 */
const LEAST_IDLE_MS = 30_000

/** How much longer than its opener the acceptor keeps an idle session, milliseconds: the opener closes it, in order. */
const IDLE_GRACE_MS = 60_000

/** Limits for inbound sessions. */
export interface InboundSessionLimits {
  /** Sessions of one peer identity from one address to one destination. */
  readonly perPlace: number
  /** Sessions of all identities of one host: one costs some 130 KiB, used or not. */
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

  /** Sessions now. */
  get size(): number {
    return this.all.size
  }

  [Symbol.iterator](): Iterator<InboundSession> {
    return this.all[Symbol.iterator]()
  }

  /** Why a peer may have no further session now, after what can be closed for it has been; undefined when it may. */
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

  /** Enters a session. */
  add(inbound: InboundSession): void {
    this.all.add(inbound)
    enter(this.byPlace, keyOfSession(inbound), inbound)
    enter(this.byHost, hostOf(inbound), inbound)
    const { account } = inbound.lane
    account.shared.sessions.add(account.places, 1)
    account.shared.descriptors.add(account.descriptors, 1)
  }

  /** Takes a session out that has ended. */
  delete(inbound: InboundSession): void {
    if (!this.all.delete(inbound)) return
    leave(this.byPlace, keyOfSession(inbound), inbound)
    leave(this.byHost, hostOf(inbound), inbound)
    const { account } = inbound.lane
    account.shared.sessions.add(account.places, -1)
    account.shared.descriptors.add(account.descriptors, -1)
  }

  /** Closes those that their openers have forgotten. */
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
