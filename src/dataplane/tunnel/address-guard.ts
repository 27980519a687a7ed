/**
 * What strangers may cost: handshakes under way and handshakes a second, for each source address. Before a handshake
 * is over nothing else is known of who dials. An IPv6 address counts as its network of 64 bits, which one host has to itself.
 *
 * Clocked from outside, in monotonic milliseconds.
 */
import { TokenBucket } from '../../lib/token-bucket.ts'
import { ipBytes, isIpv6 } from '../../model/address.ts'

/** What a handshake that comes to nothing costs more than one that does: somebody who has no business here tries again. */
const FAILURE_TOKENS = 4

/** Addresses with a place of their own; more share one. */
const MAX_ADDRESSES = 10_000

/** Limits for one source address. */
export interface AddressLimits {
  readonly maxPending: number
  readonly ratePerSecond: number
  readonly burst: number
}

/** One source address, from its first handshake until nothing of it is left to remember. */
export interface Visitor {
  pending: number
  readonly bucket: TokenBucket
}

/** The source addresses of a worker's tunnel ports. */
export class AddressGuard {
  private readonly limits: AddressLimits
  private readonly visitors = new Map<string, Visitor>()
  private readonly others: Visitor

  constructor(limits: AddressLimits, nowMs: number) {
    this.limits = limits
    this.others = this.newVisitor(nowMs)
  }

  /** A connection has come from `ip`. @returns undefined when it is to be reset; else whoever gets it calls {@link leave}. */
  enter(ip: string, nowMs: number): Visitor | undefined {
    const visitor = this.visitor(networkOf(ip), nowMs)
    if (visitor.pending >= this.limits.maxPending || !visitor.bucket.take(nowMs)) return undefined
    visitor.pending += 1
    return visitor
  }

  /** The handshake is over. Once for each {@link enter}. */
  leave(visitor: Visitor): void {
    visitor.pending -= 1
  }

  /** The handshake came to nothing, or was followed by a refusal. */
  failed(visitor: Visitor, nowMs: number): void {
    visitor.bucket.drain(nowMs, FAILURE_TOKENS)
  }

  /** Once a second or so: forgets who has gone. */
  tick(nowMs: number): void {
    for (const [key, { pending, bucket }] of this.visitors)
      if (pending === 0 && bucket.isFull(nowMs)) this.visitors.delete(key)
  }

  private visitor(key: string, nowMs: number): Visitor {
    const known = this.visitors.get(key)
    if (known !== undefined) return known
    if (this.visitors.size >= MAX_ADDRESSES) return this.others
    const visitor = this.newVisitor(nowMs)
    this.visitors.set(key, visitor)
    return visitor
  }

  private newVisitor(nowMs: number): Visitor {
    const { ratePerSecond, burst } = this.limits
    return { pending: 0, bucket: new TokenBucket(ratePerSecond, burst, nowMs) }
  }
}

function networkOf(ip: string): string {
  return isIpv6(ip) ? Buffer.from(ipBytes(ip).subarray(0, 8)).toString('hex') : ip
}
