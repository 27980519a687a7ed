/**
 * What is done for one user in one turn of the event loop, so that a turn stays short however much that user has to do:
 * whoever shares the thread waits for no longer than that.
 *
 * Work is counted in nanoseconds, by estimates that need no clock. A user that has spent its share goes on in the next
 * turn, after the events of all others; what it spent beyond it is taken off what it may do then. Nothing is postponed below
 * the share, and all that ordinary traffic pays is an addition and a comparison.
 *
 * ```
 *   spend() --within the share--> go on
 *       \------beyond it--------> postpone(work) --end of a later turn, first come first served--> continueWork()
 * ```
 */
import { atEndOfTurn, lastReadAtMs, type TurnTask } from './turn.ts'

/** Work that goes on in a later turn. */
export interface PostponedWork {
  /** What it will cost, roughly. */
  readonly cost: number
  /** Goes on. May postpone itself again. */
  continueWork(): void
}

/** One user's part of a turn while others want theirs: 0.5 ms, some 150 KiB of bulk or 2 new connections. */
export const TURN_SHARE = 500_000

/** The same when nobody else has done anything lately: longer turns cost less. Whoever comes waits for one of them. */
export const TURN_SHARE_ALONE = 4_000_000

/** Part of a turn of all users of a group together, while others want theirs. */
const GROUP_SHARE = 2 * TURN_SHARE

/** Others count as active for so long, milliseconds. */
const LATELY_MS = 1_000

/** From here on a user is held up also where each single thing costs little: 8 ms, some 500 small messages. */
const OVERSPENT = 8_000_000

/**
 * Part of the share that is spent before the end of the turn is waited for. Less than it within a millisecond is left to the
 * clock: an immediate for each turn costs bulk alone 6 % of its CPU time, and a lone request more.
 */
const UNNOTICED_PART = 1 / 2
const WINDOW_MS = 1

/** The most that is taken off later turns: ordinary traffic that comes in a heap must not wait for long. */
const MAX_DEBT = 4 * TURN_SHARE

/** Finished entries of the queue that are dropped together. */
const COMPACT_FROM = 1_024

/** Who spent something last, and how often that was somebody else than before. */
let lastUser: TurnShare | undefined
let changes = 0

/** Users that cost nothing to make, and so have one part of a turn together: the services of one host. */
export class TurnGroup {
  /** How many of them have spent theirs in this turn. */
  busy = 0

  /** What each may do now. */
  get share(): number {
    return Math.min(TURN_SHARE, GROUP_SHARE / Math.max(1, this.busy))
  }
}

/** The shares of one user. */
export class TurnShare implements TurnTask {
  private readonly group: TurnGroup | undefined
  private spent = 0
  private share = TURN_SHARE
  /** What {@link changes} was when it was looked at last, and when there was a change last. */
  private seenChanges = 0
  private seenOthersMs = Number.NEGATIVE_INFINITY
  /** The end of this turn is waited for. */
  private isCounted = false
  /** When {@link spent} began to count while nobody waits for the end of a turn. */
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

  /** Whether so much was done that not even small things should. */
  get isOverspent(): boolean {
    return this.spent >= OVERSPENT
  }

  /** Pieces of work that wait for a later turn. */
  get postponed(): number {
    return this.waiting.length - this.next
  }

  /** Something was done for the user. @returns whether that was enough for this turn. */
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

  /** Whether something may be done now; it is spent then. Else it is to be postponed. */
  claim(cost: number): boolean {
    if (this.isSpent) return false
    this.spend(cost)
    return true
  }

  /** Lets the work go on when the user has something to spend again, in a later turn. The caller does so once. */
  postpone(work: PostponedWork): void {
    this.waiting.push(work)
    if (!this.isCounted) this.count()
  }

  /** The same as a promise. */
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

  /** Little was done for so long that the turn of it is over. */
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
