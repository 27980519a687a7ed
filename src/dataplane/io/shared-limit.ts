/**
 * One resource that many users share, so that no user can take what the others want.
 *
 * A user may have at most `factor` times what is still free. One that is alone gets `factor / (factor + 1)` of
 * all, each of two half of `2 * factor / (2 * factor + 1)`, and so on: who has much is stopped first, and whoever comes
 * new always finds room (Choudhury and Hahne, "Dynamic queue length thresholds", 1998). A little is everybody's, whatever
 * the others have. Pure arithmetic.
 *
 * Users that cost nothing to make are a group (the services of one host): a group may have twice what one user may, and in it
 * the same rule holds, so that a group that is one user loses nothing. All but the one that has most may have together what one
 * user may, whatever that one took while more was free: a greedy service is no loss to the others of its host. Beside several
 * that are greedy each other one may have a little, by the square of how many they are: all those parts together stay far
 * less than what one user may have.
 */

/** What one user has of a shared resource. */
export interface Share {
  used: number
  /** What the user has in all its groups; unless given it is in this one alone. */
  readonly whole?: Share | undefined
  /** What all users of the group have. */
  readonly group?: GroupShare | undefined
}

/** What the users of a group have together. */
export interface GroupShare {
  used: number
  /** How many of them have any. */
  users: number
  /** The one that has most, or had it a moment ago. */
  most?: Share
}

/** A group may have so many times what a user may. With 2 a group that is one user may have the same as a user without one. */
const GROUP_FACTOR = 2

/** Part of what one user may have that is left for those whom the greedy ones of their group have left nothing, by the square of how many they are. */
const LITTLE = 1 / 4

/** The resource. */
export class SharedLimit {
  readonly limit: number
  private readonly factor: number
  private readonly least: number
  private taken = 0

  /** @param least what each user may have in any case. */
  constructor(limit: number, factor: number, least = 0) {
    this.limit = limit
    this.factor = factor
    this.least = least
  }

  /** What all users have. */
  get used(): number {
    return this.taken
  }

  /** Whether all have more than there should be. */
  get isExceeded(): boolean {
    return this.taken > this.limit
  }

  /** Share of the whole that is in use; above 1 when it is exceeded. */
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

  /** A user takes `amount`, or gives it back when it is negative. Nothing is checked: some things have happened already. */
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
