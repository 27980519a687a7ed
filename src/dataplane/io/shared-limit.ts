/**
 * A resource that many users share, so that no user can take what the others need. Pure arithmetic.
 *
 * A user may have at most `factor` times what is free. A single user gets `factor / (factor + 1)` of the total, each of
 * two half of `2 * factor / (2 * factor + 1)`, and so on: the largest is limited first, and a new one always finds room
 * (Choudhury and Hahne, "Dynamic queue length thresholds", 1998). A small minimum is permitted to each user.
 *
 * Users that are cheap to create form a group (the services of one host). A group may have twice what one user may, by
 * the same rule inside, so that a group of one user loses nothing. All except its largest user may together have what
 * one user may, however much the largest took while more was free: a greedy service takes nothing from the others of
 * its host. Beside several greedy users each other one may have a little, divided by the square of the number of users:
 * all these parts together stay far below what one user may have.
 */

/** One user's part of a shared resource. */
export interface Share {
  used: number
  /** What the user has in all its groups; by default it is only in this one. */
  readonly whole?: Share | undefined
  /** What all users of the group have together. */
  readonly group?: GroupShare | undefined
}

/** What the users of a group have together. */
export interface GroupShare {
  used: number
  /** Number of users with a part. */
  users: number
  /** The user with the largest part, now or a moment ago. */
  most?: Share
}

/** A group may have this many times one user's part. With 2, a group of one user may have what a user alone may. */
const GROUP_FACTOR = 2

/** Part of one user's allowance left for the other users of a group with several greedy ones, before the division. */
const LITTLE = 1 / 4

/** The shared resource. */
export class SharedLimit {
  readonly limit: number
  private readonly factor: number
  private readonly least: number
  private taken = 0

  /** @param least what each user may always have. */
  constructor(limit: number, factor: number, least = 0) {
    this.limit = limit
    this.factor = factor
    this.least = least
  }

  /** What all users have together. */
  get used(): number {
    return this.taken
  }

  /** Whether all users together exceed the limit. */
  get isExceeded(): boolean {
    return this.taken > this.limit
  }

  /** Share of the limit in use; above 1 when it is exceeded. */
  get fullness(): number {
    return this.limit === 0 ? 1 : this.taken / this.limit
  }

  /** The most that one user may have now. */
  get allowance(): number {
    return Math.max(this.least, this.factor * (this.limit - this.taken))
  }

  /** Whether a user may have `amount` more. */
  allows(share: Share, amount: number): boolean {
    const { allowance } = this
    const { whole, group } = share
    if ((whole ?? share).used + amount > allowance) return false
    if (group === undefined) return true
    if (share.used + amount <= GROUP_FACTOR * allowance - group.used) return true
    const { most } = group
    if (most !== undefined && most !== share && group.used - most.used + amount <= allowance)
      return true
    const users = share.used > 0 ? group.users : group.users + 1
    return (share.used + amount) * users ** 2 <= LITTLE * allowance
  }

  /** Adds `amount` to a user's part; a negative one is given back. Not checked: some use has already happened. */
  add(share: Share, amount: number): void {
    const { whole, group } = share
    if (group !== undefined) {
      group.used += amount
      group.users += Number(share.used + amount > 0) - Number(share.used > 0)
    }
    share.used += amount
    if (group !== undefined && share.used > (group.most?.used ?? 0)) group.most = share
    if (whole !== undefined) whole.used += amount
    this.taken += amount
  }
}
