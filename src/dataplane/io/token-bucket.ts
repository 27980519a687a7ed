/**
 * Rate limit: `ratePerSecond` in the long run, up to `burst` at once.
 *
 * The caller passes the time, in monotonic milliseconds, so that a bucket costs a few additions on the hot path and can
 * be tested with a stopped clock.
 */
export class TokenBucket {
  private readonly ratePerMs: number
  private readonly burst: number
  private tokens: number
  private filledAtMs: number

  /** A full bucket. */
  constructor(ratePerSecond: number, burst: number, nowMs: number) {
    this.ratePerMs = ratePerSecond / 1_000
    this.burst = burst
    this.tokens = burst
    this.filledAtMs = nowMs
  }

  /** Takes `amount` tokens. @returns false, with nothing taken, when there are fewer. */
  take(nowMs: number, amount = 1): boolean {
    this.fill(nowMs)
    if (this.tokens < amount) return false
    this.tokens -= amount
    return true
  }

  /** Takes `amount` tokens for past events, also tokens not yet available: the debt is at most one burst. */
  drain(nowMs: number, amount = 1): void {
    this.fill(nowMs)
    this.tokens = Math.max(-this.burst, this.tokens - amount)
  }

  /** Whether a token is available now. */
  hasAny(nowMs: number): boolean {
    this.fill(nowMs)
    return this.tokens >= 1
  }

  /** Whether the bucket is in the same state as a new one. */
  isFull(nowMs: number): boolean {
    this.fill(nowMs)
    return this.tokens >= this.burst
  }

  private fill(nowMs: number): void {
    if (nowMs <= this.filledAtMs) return
    this.tokens = Math.min(this.burst, this.tokens + (nowMs - this.filledAtMs) * this.ratePerMs)
    this.filledAtMs = nowMs
  }
}
