/**
 * Limits the rate of calls per caller: one token bucket for each, for a bounded number of callers. Time is passed in.
 */

/** One bucket: `burst` at once, `perSecond` in the long run. */
export interface Rate {
  readonly burst: number
  readonly perSecond: number
}

/** Most callers remembered; the one idle for longest is forgotten first. */
const MAX_CALLERS = 10_000

/** Buckets by caller: an address, or another name. */
export class RateLimiter {
  private readonly rate: Rate
  private readonly buckets = new Map<string, { level: number; atMs: number }>()

  constructor(rate: Rate) {
    this.rate = rate
  }

  /** Takes one token; false when there is none. `nowMs` is monotonic. */
  take(caller: string, nowMs: number): boolean {
    const level = this.levelOf(caller, nowMs)
    // Inserted again, so that the map is in order of last use.
    this.buckets.delete(caller)
    this.buckets.set(caller, { level: level >= 1 ? level - 1 : level, atMs: nowMs })
    if (this.buckets.size > MAX_CALLERS) {
      const [oldest] = this.buckets.keys()
      if (oldest !== undefined) this.buckets.delete(oldest)
    }
    return level >= 1
  }

  /** Whether {@link RateLimiter.take} would succeed. */
  has(caller: string, nowMs: number): boolean {
    return this.levelOf(caller, nowMs) >= 1
  }

  private levelOf(caller: string, nowMs: number): number {
    const { burst, perSecond } = this.rate
    const bucket = this.buckets.get(caller)
    if (bucket === undefined) return burst
    return Math.min(burst, bucket.level + ((nowMs - bucket.atMs) / 1_000) * perSecond)
  }
}
