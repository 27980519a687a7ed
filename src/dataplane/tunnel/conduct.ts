/**
 * What a caller has done wrong at one destination, and the consequences: docs/tunnel-protocol.md, "Fair shares".
 *
 * Streams that come to nothing use up one bucket, streams that the caller resets another one. Violations of the protocol
 * are counted by the address that they come from, and bar it for a while. Time is passed in, in monotonic milliseconds; there are no timers.
 */
import { TokenBucket } from '../io/token-bucket.ts'

/** Futile streams of one caller and destination: denied, malformed, unknown, or reset before they were confirmed. */
const FUTILE = { rate: 1_000, burst: 5_000 } as const

/** Confirmed streams of one caller and destination that the caller reset. */
const RESETS = { rate: 5_000, burst: 20_000 } as const

/** Violations that have no consequence beyond the end of the session. */
const FREE_STRIKES = 2

/** How long the next violation bars an identity from that address; doubles each time, up to the second value. */
const BAR_MS = 5_000
const MAX_BAR_MS = 300_000

/** Strikes are forgotten after this time without a new one. */
const FORGIVEN_AFTER_MS = 300_000

/** Addresses remembered per identity and destination; all further ones share one entry. */
const MAX_OFFENDERS = 256
const OTHER_ADDRESSES = ''

/** The conduct of one identity at one destination, from all its hosts. */
export class Conduct {
  private readonly futile: TokenBucket
  private readonly resets: TokenBucket
  /** By address: the violations of one compromised host must not bar the other hosts of the service. */
  private readonly offenders = new Map<string, Offender>()

  constructor(nowMs: number) {
    this.futile = new TokenBucket(FUTILE.rate, FUTILE.burst, nowMs)
    this.resets = new TokenBucket(RESETS.rate, RESETS.burst, nowMs)
  }

  /** Whether both buckets have something left. */
  mayOpen(nowMs: number): boolean {
    return this.futile.hasAny(nowMs) && this.resets.hasAny(nowMs)
  }

  /** A stream was futile, and the caller caused it. */
  wasFutile(nowMs: number): void {
    this.futile.drain(nowMs)
  }

  /** The caller reset a confirmed stream. */
  wasReset(nowMs: number): void {
    this.resets.drain(nowMs)
  }

  /** A session from `ip` broke the protocol. */
  strike(nowMs: number, ip: string | undefined): void {
    this.offender(ip ?? OTHER_ADDRESSES, nowMs).strike(nowMs)
  }

  /** How long `ip` is still barred, milliseconds; 0 when it is not. */
  barredForMs(nowMs: number, ip: string | undefined): number {
    const known = this.offenders.get(ip ?? OTHER_ADDRESSES)
    const isOneOfMany = known === undefined && this.offenders.size >= MAX_OFFENDERS
    const offender = isOneOfMany ? this.offenders.get(OTHER_ADDRESSES) : known
    return offender?.barredForMs(nowMs) ?? 0
  }

  /** Whether any address is barred. */
  isBarred(nowMs: number): boolean {
    for (const offender of this.offenders.values()) if (offender.barredForMs(nowMs) > 0) return true
    return false
  }

  private offender(ip: string, nowMs: number): Offender {
    const known = this.offenders.get(ip)
    if (known !== undefined) return known
    if (this.offenders.size >= MAX_OFFENDERS) {
      for (const [address, offender] of this.offenders)
        if (offender.isForgiven(nowMs)) this.offenders.delete(address)
      if (this.offenders.size >= MAX_OFFENDERS && ip !== OTHER_ADDRESSES)
        return this.offender(OTHER_ADDRESSES, nowMs)
    }
    const offender = new Offender()
    this.offenders.set(ip, offender)
    return offender
  }

  /** Whether the record is in the same state as a new one. */
  isForgettable(nowMs: number): boolean {
    if (!this.futile.isFull(nowMs) || !this.resets.isFull(nowMs)) return false
    for (const offender of this.offenders.values()) if (!offender.isForgiven(nowMs)) return false
    return true
  }
}

/** Violations of one identity at one destination from one address. */
class Offender {
  private strikes = 0
  private struckAtMs = 0
  private barredUntilMs = 0

  /** While the address is barred, a violation does not extend the time: its session was open before. */
  strike(nowMs: number): void {
    if (nowMs < this.barredUntilMs) return
    if (nowMs - this.struckAtMs > FORGIVEN_AFTER_MS) this.strikes = 0
    this.strikes += 1
    this.struckAtMs = nowMs
    const beyond = this.strikes - FREE_STRIKES
    if (beyond > 0)
      this.barredUntilMs = nowMs + Math.min(MAX_BAR_MS, BAR_MS * 2 ** Math.min(beyond - 1, 10))
  }

  barredForMs(nowMs: number): number {
    return Math.max(0, this.barredUntilMs - nowMs)
  }

  isForgiven(nowMs: number): boolean {
    return nowMs >= this.barredUntilMs && nowMs - this.struckAtMs > FORGIVEN_AFTER_MS
  }
}
