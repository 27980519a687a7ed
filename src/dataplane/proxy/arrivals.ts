/**
 * Inbound streams that are not connections yet: they wait for their preface or their policy. They do not count as
 * connections and have no timers. Each peer identity may have a limited number, and no more than are free, so that one
 * host leaves room for others.
 *
 * Kept as a chain by age, as in the table of connections: all have the same deadline, so a sweep visits only the
 * oldest.
 */
import { SharedLimit } from '../io/shared-limit.ts'
import type { Account } from '../tunnel/accounts.ts'

/** One identity may have as many as are free; only their deadline takes them back. */
const SHARE_FACTOR = 1

/** A stream that is not authorized yet. */
export interface Arriving {
  readonly account: Account
  /** Monotonic milliseconds; after this time the sweep calls {@link expire}. */
  readonly expiresAtMs: number
  /** Called when the deadline has passed; the stream leaves the chain. */
  expire(): void
  older: Arriving | undefined
  newer: Arriving | undefined
}

/** Limits of their number. */
export interface ArrivalLimits {
  /** For one peer identity. */
  readonly perPeer: number
  readonly all: number
}

/** The streams of a worker that are not authorized yet. */
export class Arrivals {
  private readonly perPeer: number
  /** The limit of all streams, and how many are in use. */
  readonly all: SharedLimit
  private oldest: Arriving | undefined
  private newest: Arriving | undefined

  constructor({ perPeer, all }: ArrivalLimits) {
    this.perPeer = perPeer
    this.all = new SharedLimit(all, SHARE_FACTOR)
  }

  /** Number of streams that are not authorized yet. */
  get size(): number {
    return this.all.used
  }

  /** Whether one more stream of this caller is accepted. */
  hasRoom(account: Account): boolean {
    const { unauthorized } = account
    return (
      (unauthorized.whole ?? unauthorized).used < this.perPeer && this.all.allows(unauthorized, 1)
    )
  }

  /** Adds a stream. */
  add(arriving: Arriving): void {
    arriving.older = this.newest
    if (this.newest === undefined) this.oldest = arriving
    else this.newest.newer = arriving
    this.newest = arriving
    this.all.add(arriving.account.unauthorized, 1)
  }

  /** Removes a stream. Further calls do nothing. */
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

  /** Expires the streams whose deadline has passed. */
  sweep(nowMs: number): void {
    while (this.oldest !== undefined && this.oldest.expiresAtMs <= nowMs) {
      const { oldest } = this
      oldest.expire()
      this.delete(oldest)
    }
  }
}
