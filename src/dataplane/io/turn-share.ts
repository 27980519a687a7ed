/**
 * Limits the work for one user in one turn of the event loop, so that turns stay short, however much the user has to
 * do: the other users of the thread wait no longer than that.
 *
 * Work is counted in nanoseconds, by estimates that need no clock. A user that has spent its share continues in the
 * next turn, after the events of all others; its excess is deducted from later turns. Within the share nothing is
 * postponed, and ordinary traffic pays only an addition and a comparison.
 *
 * ```
 *   spend() --within the share--> go on
 *       \------beyond it--------> postpone(work) --end of a later turn, first come first served--> continueWork()
 * ```
 */
import { atEndOfTurn, lastReadAtMs, type TurnTask } from './turn.ts'

/** Work that continues in a later turn. */
export interface PostponedWork {
  /** Approximate cost, nanoseconds. */
  readonly cost: number
  /** Continues the work. May postpone it again. */
  continueWork(): void
}

/** One user's part of a turn while others are active: 0.5 ms, about 150 KiB of bulk or 2 new connections. */
export const TURN_SHARE = 500_000

/** The same when no other user was active lately: longer turns cost less. A new user waits for one of them. */
export const TURN_SHARE_ALONE = 4_000_000

/** Part of a turn for all users of a group together, while others are active. */
const GROUP_SHARE = 2 * TURN_SHARE

/** How long other users count as active, milliseconds. */
const LATELY_MS = 1_000

/** Above this a user must wait even if each piece of work is cheap: 8 ms, about 500 small messages. */
const OVERSPENT = 8_000_000

/**
 * Part of the share above which the end of the turn is awaited. Below it the share is renewed by the clock, after a
 * millisecond: an immediate for each turn costs bulk alone 6 % of its CPU time, and a single request more.
 */
const UNNOTICED_PART = 1 / 2
const WINDOW_MS = 1

/** The most that is deducted from later turns: a burst of ordinary traffic must not wait for long. */
const MAX_DEBT = 4 * TURN_SHARE

/** Number of finished queue entries that are removed together. */
const COMPACT_FROM = 1_024

/** The user of the last work, and how often it was another one than before. */
let lastUser: TurnShare | undefined
let changes = 0

/** Users that are cheap to create, and so share one part of a turn: the services of one host. */
export class TurnGroup {
  /** Number of users that await the end of this turn. */
  busy = 0

  /** Each user's share now, nanoseconds. */
  get share(): number {
    return Math.min(TURN_SHARE, GROUP_SHARE / Math.max(1, this.busy))
  }
}

/** One user's share of turns. */
export class TurnShare implements TurnTask {
  private readonly group: TurnGroup | undefined
  private spent = 0
  private share = TURN_SHARE
  /** The value of {@link changes} at the last check, and the time at which it was last seen to change. */
  private seenChanges = 0
  private seenOthersMs = Number.NEGATIVE_INFINITY
  /** The end of this turn is awaited. */
  private isCounted = false
  /** When {@link spent} began to count, while no end of turn is awaited. */
  private sinceMs = 0
  private waiting: PostponedWork[] = []
  private next = 0

  constructor(group?: TurnGroup) {
    this.group = group
  }

  /** Whether nothing more should be done for the user in this turn. */
  get isSpent(): boolean {
    return this.spent >= this.share
  }

  /** Whether so much was done that even small pieces should wait. */
  get isOverspent(): boolean {
    return this.spent >= OVERSPENT
  }

  /** Number of postponed pieces of work. */
  get postponed(): number {
    return this.waiting.length - this.next
  }

  /** Records work of `cost` nanoseconds. @returns whether the share of this turn is spent. */
  spend(cost: number): boolean {
    if (!this.isCounted) this.renew()
    this.spent += cost
    if (lastUser !== this) {
      // oxlint-disable-next-line typescript/no-this-alias -- remembered, not captured
      lastUser = this
      changes += 1
    }
    if (!this.isCounted && this.spent > this.share * UNNOTICED_PART) this.count()
    return this.spent >= this.share
  }

  /** Whether work may be done now; its cost is then recorded. Otherwise the caller must postpone it. */
  claim(cost: number): boolean {
    if (this.isSpent) return false
    this.spend(cost)
    return true
  }

  /** Continues the work in a later turn, when the user has a share again. Call it once for each piece of work. */
  postpone(work: PostponedWork): void {
    this.waiting.push(work)
    if (!this.isCounted) this.count()
  }

  /** The same, as a promise. */
  later(cost: number): Promise<void> {
    return new Promise((resolve) => {
      this.postpone({ cost, continueWork: resolve })
    })
  }

  endOfTurn(): void {
    this.isCounted = false
    this.spent = Math.max(0, Math.min(this.spent, MAX_DEBT) - this.share)
    this.share = this.shareAt(performance.now())
    if (this.group !== undefined) this.group.busy -= 1
    while (!this.isSpent) {
      const work = this.waiting[this.next]
      if (work === undefined) break
      this.next += 1
      this.spent += work.cost
      work.continueWork()
    }
    if (this.next === this.waiting.length || this.next >= COMPACT_FROM) {
      this.waiting = this.waiting.slice(this.next)
      this.next = 0
    }
    if (!this.isCounted && (this.spent > this.share * UNNOTICED_PART || this.waiting.length > 0))
      this.count()
  }

  /** Renews the share when less than half of it was spent and a millisecond has passed. */
  private renew(): void {
    const nowMs = lastReadAtMs()
    if (nowMs - this.sinceMs < WINDOW_MS) return
    this.sinceMs = nowMs
    this.spent = 0
    this.share = this.shareAt(nowMs)
  }

  private shareAt(nowMs: number): number {
    if (this.isAlone(nowMs)) return TURN_SHARE_ALONE
    return this.group === undefined ? TURN_SHARE : this.group.share
  }

  private isAlone(nowMs: number): boolean {
    if (changes !== this.seenChanges) {
      this.seenChanges = changes
      this.seenOthersMs = nowMs
    }
    return nowMs - this.seenOthersMs > LATELY_MS
  }

  private count(): void {
    this.isCounted = true
    if (this.group !== undefined) this.group.busy += 1
    atEndOfTurn(this)
  }
}
