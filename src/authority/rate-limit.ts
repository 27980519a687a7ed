/**
 * Limits the rate of calls per address: one token bucket for each, for a bounded number of addresses. Pure but for its
 * memory; time is passed in.
 */
import { canonicalIp, ipBytes, isIpv6 } from '../model/address.ts'

/** One bucket: `burst` at once, `perSecond` in the long run. */
export interface Rate {
  readonly burst: number
  readonly perSecond: number
}

/** Most addresses remembered; the one idle for longest is forgotten first. */
const MAX_ADDRESSES = 10_000

/**
 * The key of one caller: an IPv4 address, or the 64 bits of an IPv6 address that name a network, within which anyone
 * can have any number of addresses.
 */
export function callerAt(remoteAddress: string | undefined): string {
  const ip = canonicalIp(remoteAddress?.split('%', 1)[0] ?? '') ?? ''
  return isIpv6(ip) ? Buffer.from(ipBytes(ip).subarray(0, 8)).toString('hex') : ip
}

/** Buckets by address. */
export class RateLimiter {
  private readonly rate: Rate
  private readonly buckets = new Map<string, { level: number; atMs: number }>()

  constructor(rate: Rate) {
    this.rate = rate
  }

  /** Takes one token; false when there is none. `nowMs` is monotonic. */
  take(address: string, nowMs: number): boolean {
    const level = this.levelOf(address, nowMs)
    // Inserted again, so that the map is in order of last use.
    this.buckets.delete(address)
    this.buckets.set(address, { level: level >= 1 ? level - 1 : level, atMs: nowMs })
    if (this.buckets.size > MAX_ADDRESSES) {
      const [oldest] = this.buckets.keys()
      if (oldest !== undefined) this.buckets.delete(oldest)
    }
    return level >= 1
  }

  /** Whether {@link RateLimiter.take} would succeed. */
  has(address: string, nowMs: number): boolean {
    return this.levelOf(address, nowMs) >= 1
  }

  private levelOf(address: string, nowMs: number): number {
    const { burst, perSecond } = this.rate
    const bucket = this.buckets.get(address)
    if (bucket === undefined) return burst
    return Math.min(burst, bucket.level + ((nowMs - bucket.atMs) / 1_000) * perSecond)
  }
}
