/**
 * Limits for unauthenticated peers: concurrent handshakes and handshakes per second, for each source address. Before
 * the end of a handshake nothing else is known about the peer. An IPv6 address counts as its /64 network, which one
 * host owns completely. Time is passed in, in monotonic milliseconds.
 */
import { networkOf } from '../../model/address.ts'
import { type Share, SharedLimit } from '../io/shared-limit.ts'
import { TokenBucket } from '../io/token-bucket.ts'

/**
 * Unsuccessful handshakes of one address: each costs a signature and the verification of a chain. A host whose
 * certificate has just expired tries about this often. Above the limit, connections are reset before TLS.
 */
const UNSUCCESSFUL = { rate: 20, burst: 100 } as const

/** One address may have as many concurrent handshakes as are free: a few addresses cannot exclude the others. */
const SHARE_FACTOR = 1

/** Addresses with an entry of their own; further ones share one. */
const MAX_ADDRESSES = 10_000

/** Limits for one source address. */
export interface AddressLimits {
  readonly maxPending: number
  /** All addresses together; one address may have as many as are free. */
  readonly maxPendingOfAll: number
  readonly ratePerSecond: number
  readonly burst: number
}

/** One source address, from its first handshake until nothing is left to remember. */
export interface TrackedAddress {
  /** Concurrent handshakes. */
  readonly pending: Share
  readonly handshakes: TokenBucket
  readonly unsuccessful: TokenBucket
}

/** The source addresses of a worker's tunnel ports. */
export class AddressGuard {
  private readonly limits: AddressLimits
  private readonly pending: SharedLimit
  private readonly addresses = new Map<string, TrackedAddress>()
  private readonly others: TrackedAddress

  constructor(limits: AddressLimits, nowMs: number) {
    this.limits = limits
    this.pending = new SharedLimit(limits.maxPendingOfAll, SHARE_FACTOR)
    this.others = this.newAddress(nowMs)
  }

  /** A connection arrived from `ip`. @returns undefined when it must be reset; else the caller calls {@link leave}. */
  enter(ip: string, nowMs: number): TrackedAddress | undefined {
    const address = this.at(networkOf(ip), nowMs)
    const { pending, unsuccessful, handshakes } = address
    if (pending.used >= this.limits.maxPending || !this.pending.allows(pending, 1)) return undefined
    if (!unsuccessful.hasAny(nowMs) || !handshakes.take(nowMs)) return undefined
    this.pending.add(pending, 1)
    return address
  }

  /** The handshake has ended. Call it once for each {@link enter}. */
  leave(address: TrackedAddress): void {
    this.pending.add(address.pending, -1)
  }

  /** The handshake failed, the peer was rejected, or the tunnel ended before it carried anything. */
  noteUnsuccessful(address: TrackedAddress, nowMs: number): void {
    address.unsuccessful.drain(nowMs)
  }

  /** Call it about once a second: removes addresses with nothing left to remember. */
  tick(nowMs: number): void {
    for (const [key, { pending, handshakes, unsuccessful }] of this.addresses)
      if (pending.used === 0 && handshakes.isFull(nowMs) && unsuccessful.isFull(nowMs))
        this.addresses.delete(key)
  }

  private at(key: string, nowMs: number): TrackedAddress {
    const known = this.addresses.get(key)
    if (known !== undefined) return known
    if (this.addresses.size >= MAX_ADDRESSES) return this.others
    const address = this.newAddress(nowMs)
    this.addresses.set(key, address)
    return address
  }

  private newAddress(nowMs: number): TrackedAddress {
    const { ratePerSecond, burst } = this.limits
    return {
      pending: { used: 0 },
      handshakes: new TokenBucket(ratePerSecond, burst, nowMs),
      unsuccessful: new TokenBucket(UNSUCCESSFUL.rate, UNSUCCESSFUL.burst, nowMs),
    }
  }
}
