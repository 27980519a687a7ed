/**
 * Streams that have arrived and are not connections yet: what is awaited is the preface, or the policy. They take no
 * place among the connections and have no timer. Each peer identity may have so many of them, and no more than is free: what
 * one host has leaves room for whoever comes.
 *
 * A chain by age, as in the table of connections: all have the same deadline, so that a sweep looks at the oldest ones only.
 */
import { SharedLimit } from '../io/shared-limit.ts'
import type { Account } from '../tunnel/accounts.ts'

/** An identity may have as many as are free; nothing takes them back but time. */
const SHARE_FACTOR = 1

/** A stream in its first stage. */
export interface Arriving {
  readonly account: Account
  /** Monotonic milliseconds; from then on the sweep calls {@link expire}. */
  readonly expiresAtMs: number
  /** It has taken too long. Leaves the chain. */
  expire(): void
  older: Arriving | undefined
  newer: Arriving | undefined
}

/** How many there may be. */
export interface ArrivalLimits {
  /** Of one peer identity. */
  readonly perPeer: number
  readonly all: number
}

/** The streams of a worker that are not authorized yet. */
export class Arrivals {
  private readonly perPeer: number
  /** All of them, and what each has. */
  readonly all: SharedLimit
  private oldest: Arriving | undefined
  private newest: Arriving | undefined

  constructor({ perPeer, all }: ArrivalLimits) {
    this.perPeer = perPeer
    this.all = new SharedLimit(all, SHARE_FACTOR)
  }

  /** Streams in their first stage now. */
  get size(): number {
    return this.all.used
  }

  /** Whether one more of this caller may be looked at. */
  hasRoom(account: Account): boolean {
    const { unauthorized } = account
    return (
      (unauthorized.whole ?? unauthorized).used < this.perPeer && this.all.allows(unauthorized, 1)
    )
  }

  /** Enters a stream. */
  add(arriving: Arriving): void {
    arriving.older = this.newest
    if (this.newest === undefined) this.oldest = arriving
    else this.newest.newer = arriving
    this.newest = arriving
    this.all.add(arriving.account.unauthorized, 1)
  }

  /** Takes a stream out. Later calls do nothing. */
  delete(arriving: Arriving): void {
    const { older, newer } = arriving
    if (older === undefined && this.oldest !== arriving) return
    if (older === undefined) this.oldest = newer
    else older.newer = newer
    if (newer === undefined) this.newest = older
    else newer.older = older
    arriving.older = undefined
    arriving.newer = undefined
    this.all.add(arriving.account.unauthorized, -1)
  }

  /** Ends those whose time is over. */
  sweep(nowMs: number): void {
    while (this.oldest !== undefined && this.oldest.expiresAtMs <= nowMs) {
      const { oldest } = this
      oldest.expire()
      this.delete(oldest)
    }
  }
}
