/**
 * What a caller did wrong at one destination, and the consequences: docs/tunnel-protocol.md, "Fair shares".
 *
 * Unsuccessful streams use up one bucket, streams that the caller resets another one. Violations of the protocol are
 * counted by the address that they come from, and ban it for a while. Time is passed in, in monotonic milliseconds.
 */
import { TokenBucket } from '../io/token-bucket.ts'

/** Unsuccessful streams of one caller and destination: denied, malformed, unknown, or reset before confirmation. */
const UNSUCCESSFUL = { rate: 1_000, burst: 5_000 } as const

/** Confirmed streams of one caller and destination that the caller reset. */
const RESETS = { rate: 5_000, burst: 20_000 } as const

/** Violations that have no consequence beyond the end of the session. */
const FREE_VIOLATIONS = 2

/** How long the next violation bans an identity from that address; doubles each time, up to the second value. */
const BAN_MS = 5_000
const MAX_BAN_MS = 300_000

/** Violations are forgotten after this time without a new one. */
const FORGIVEN_AFTER_MS = 300_000

/** Addresses remembered per identity and destination; all further ones share one entry. */
const MAX_OFFENDERS = 256
const OTHER_ADDRESSES = ''

/** The conduct of one identity at one destination, from all its hosts. */
export class Conduct {
  private readonly unsuccessful: TokenBucket
  private readonly resets: TokenBucket
  /** By address: the violations of one compromised host must not ban the other hosts of the service. */
  private readonly offenders = new Map<string, ViolationRecord>()

  constructor(nowMs: number) {
    this.unsuccessful = new TokenBucket(UNSUCCESSFUL.rate, UNSUCCESSFUL.burst, nowMs)
    this.resets = new TokenBucket(RESETS.rate, RESETS.burst, nowMs)
  }

  /** Whether both buckets have something left. */
  mayOpen(nowMs: number): boolean {
    return this.unsuccessful.hasAny(nowMs) && this.resets.hasAny(nowMs)
  }

  /** A stream was unsuccessful, and the caller caused it. */
  noteUnsuccessful(nowMs: number): void {
    this.unsuccessful.drain(nowMs)
  }

  /** The caller reset a confirmed stream. */
  noteReset(nowMs: number): void {
    this.resets.drain(nowMs)
  }

  /** A session from `ip` broke the protocol. */
  noteViolation(nowMs: number, ip: string | undefined): void {
    this.offender(ip ?? OTHER_ADDRESSES, nowMs).noteViolation(nowMs)
  }

  /** How long `ip` is still banned, milliseconds; 0 when it is not. */
  bannedForMs(nowMs: number, ip: string | undefined): number {
    const known = this.offenders.get(ip ?? OTHER_ADDRESSES)
    const isOneOfMany = known === undefined && this.offenders.size >= MAX_OFFENDERS
    const offender = isOneOfMany ? this.offenders.get(OTHER_ADDRESSES) : known
    return offender?.bannedForMs(nowMs) ?? 0
  }

  /** Whether any address is banned. */
  isBanned(nowMs: number): boolean {
    for (const offender of this.offenders.values()) if (offender.bannedForMs(nowMs) > 0) return true
    return false
  }

  private offender(ip: string, nowMs: number): ViolationRecord {
    const known = this.offenders.get(ip)
    if (known !== undefined) return known
    if (this.offenders.size >= MAX_OFFENDERS) {
      for (const [address, offender] of this.offenders)
        if (offender.isForgiven(nowMs)) this.offenders.delete(address)
      if (this.offenders.size >= MAX_OFFENDERS && ip !== OTHER_ADDRESSES)
        return this.offender(OTHER_ADDRESSES, nowMs)
    }
    const offender = new ViolationRecord()
    this.offenders.set(ip, offender)
    return offender
  }

  /** Whether the record is in the same state as a new one. */
  isForgettable(nowMs: number): boolean {
    if (!this.unsuccessful.isFull(nowMs) || !this.resets.isFull(nowMs)) return false
    for (const offender of this.offenders.values()) if (!offender.isForgiven(nowMs)) return false
    return true
  }
}

/** Violations of one identity at one destination from one address. */
class ViolationRecord {
  private violations = 0
  private lastViolationAtMs = 0
  private bannedUntilMs = 0

  /** While the address is banned, a violation does not extend the time: its session was open before. */
  noteViolation(nowMs: number): void {
    if (nowMs < this.bannedUntilMs) return
    if (nowMs - this.lastViolationAtMs > FORGIVEN_AFTER_MS) this.violations = 0
    this.violations += 1
    this.lastViolationAtMs = nowMs
    const beyond = this.violations - FREE_VIOLATIONS
    if (beyond > 0)
      this.bannedUntilMs = nowMs + Math.min(MAX_BAN_MS, BAN_MS * 2 ** Math.min(beyond - 1, 10))
  }

  bannedForMs(nowMs: number): number {
    return Math.max(0, this.bannedUntilMs - nowMs)
  }

  isForgiven(nowMs: number): boolean {
    return nowMs >= this.bannedUntilMs && nowMs - this.lastViolationAtMs > FORGIVEN_AFTER_MS
  }
}
