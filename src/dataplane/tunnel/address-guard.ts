/**
 * What strangers may cost: handshakes under way and handshakes a second, for each source address. Before a handshake
 * is over nothing else is known of who dials. An IPv6 address counts as its network of 64 bits, which one host has to itself.
 *
 * Clocked from outside, in monotonic milliseconds.
 */
import { networkOf } from '../../model/address.ts'
import { type Share, SharedLimit } from '../io/shared-limit.ts'
import { TokenBucket } from '../io/token-bucket.ts'

/**
 * Handshakes that come to nothing, of one address: a signature and a chain to verify for somebody who has no business here. A
 * host whose certificate has just ended tries so often and no more; beyond it, it is reset before TLS.
 */
const FUTILE = { rate: 20, burst: 100 } as const

/** An address may have as many handshakes under way as are free: few addresses cannot keep others out. */
const SHARE_FACTOR = 1

/** Addresses with a place of their own; more share one. */
const MAX_ADDRESSES = 10_000

/** Limits for one source address. */
export interface AddressLimits {
  readonly maxPending: number
  /** Of all addresses together: one may have as many as are free. */
  readonly maxPendingOfAll: number
  readonly ratePerSecond: number
  readonly burst: number
}

/** One source address, from its first handshake until nothing of it is left to remember. */
export interface TrackedAddress {
  /** Handshakes under way. */
  readonly pending: Share
  readonly handshakes: TokenBucket
  readonly futile: TokenBucket
}

/** The source addresses of a worker's tunnel ports. */
export class AddressGuard {
  private readonly limits: AddressLimits
  private readonly pending: SharedLimit
  private readonly trackedByAddress = new Map<string, TrackedAddress>()
  private readonly others: TrackedAddress

  constructor(limits: AddressLimits, nowMs: number) {
    this.limits = limits
    this.pending = new SharedLimit(limits.maxPendingOfAll, SHARE_FACTOR)
    this.others = this.newTrackedAddress(nowMs)
  }

  /** A connection has come from `ip`. @returns undefined when it is to be reset; else whoever gets it calls {@link leave}. */
  enter(ip: string, nowMs: number): TrackedAddress | undefined {
    const trackedOf = this.visitor(networkOf(ip), nowMs)
    const { pending, futile, handshakes } = trackedOf
    if (pending.used >= this.limits.maxPending || !this.pending.allows(pending, 1)) return undefined
    if (!futile.hasAny(nowMs) || !handshakes.take(nowMs)) return undefined
    this.pending.add(pending, 1)
    return trackedOf
  }

  /** The handshake is over. Once for each {@link enter}. */
  leave(visitor: TrackedAddress): void {
    this.pending.add(visitor.pending, -1)
  }

  /** The handshake came to nothing: it failed, a refusal followed, or the tunnel ended before anything went through it. */
  wasFutile(visitor: TrackedAddress, nowMs: number): void {
    visitor.futile.drain(nowMs)
  }

  /** Once a second or so: forgets who has gone. */
  tick(nowMs: number): void {
    for (const [key, { pending, handshakes, futile }] of this.trackedByAddress)
      if (pending.used === 0 && handshakes.isFull(nowMs) && futile.isFull(nowMs))
        this.trackedByAddress.delete(key)
  }

  private visitor(key: string, nowMs: number): TrackedAddress {
    const known = this.trackedByAddress.get(key)
    if (known !== undefined) return known
    if (this.trackedByAddress.size >= MAX_ADDRESSES) return this.others
    const visitor = this.newTrackedAddress(nowMs)
    this.trackedByAddress.set(key, visitor)
    return visitor
  }

  private newTrackedAddress(nowMs: number): TrackedAddress {
    const { ratePerSecond, burst } = this.limits
    return {
      pending: { used: 0 },
      handshakes: new TokenBucket(ratePerSecond, burst, nowMs),
      futile: new TokenBucket(FUTILE.rate, FUTILE.burst, nowMs),
    }
  }
}
