/**
 * A map from small positive numbers to objects that are added and removed thousands of times a second.
 *
 * V8's Map is unsuitable for that: every few dozen insertions and deletions it moves to a new table, and the old one
 * points to the new one. Once one of them has been promoted, all later ones, with the entries that were in them,
 * survive each scavenge until the next full collection (docs/performance.md, "Garbage"). This map keeps its table: open
 * addressing, linear probing, no tombstones.
 */
import { randomInt } from 'node:crypto'

const LEAST_SLOTS = 16

/**
 * Fibonacci hashing: consecutive ids, also odd ones only, spread over all slots. The low bits are random for each
 * process: a peer that chooses ids cannot predict which of them collide.
 */
const SPREAD = 0x9e3779b1 ^ (randomInt(0x8000) << 1)

/** A map whose keys are integers from 1 to 2^31 - 1. */
export class IdMap<T extends object> {
  private ids = new Uint32Array(LEAST_SLOTS)
  private values: (T | undefined)[] = empty<T>(LEAST_SLOTS)
  private shift = Math.clz32(LEAST_SLOTS - 1)
  private count = 0

  get size(): number {
    return this.count
  }

  get(id: number): T | undefined {
    return this.values[this.slotOf(id)]
  }

  /** Stores `value`; replaces an existing one. */
  set(id: number, value: T): void {
    const slot = this.slotOf(id)
    this.values[slot] = value
    if (this.ids[slot] === id) return
    this.ids[slot] = id
    this.count += 1
    if (this.count * 2 > this.ids.length) this.resize(this.ids.length * 2)
  }

  /** @returns whether there was an entry. */
  delete(id: number): boolean {
    const { ids, values } = this
    let hole = this.slotOf(id)
    if (ids[hole] !== id) return false
    this.count -= 1
    const mask = ids.length - 1
    // Entries that probing placed behind the hole move up, unless that would put them before their own slot.
    for (let at = (hole + 1) & mask; ids[at] !== 0; at = (at + 1) & mask) {
      const home = this.homeOf(ids[at] ?? 0)
      if (((at - home) & mask) < ((at - hole) & mask)) continue
      ids[hole] = ids[at] ?? 0
      values[hole] = values[at]
      hole = at
    }
    ids[hole] = 0
    values[hole] = undefined
    // Far below the size at which it grows, so that a varying count does not resize each time.
    if (ids.length > LEAST_SLOTS && this.count * 16 < ids.length) this.resize(ids.length / 4)
    return true
  }

  /** All values, in no order; a copy, so that entries may be deleted while iterating. */
  list(): T[] {
    return this.values.filter((value) => value !== undefined)
  }

  clear(): void {
    this.values.fill(undefined)
    this.ids = new Uint32Array(LEAST_SLOTS)
    this.values = empty(LEAST_SLOTS)
    this.shift = Math.clz32(LEAST_SLOTS - 1)
    this.count = 0
  }

  /** The slot of the id, or the free one for it. There is always a free slot, which ends the search. */
  private slotOf(id: number): number {
    const { ids } = this
    const mask = ids.length - 1
    let slot = this.homeOf(id)
    while (ids[slot] !== 0 && ids[slot] !== id) slot = (slot + 1) & mask
    return slot
  }

  private homeOf(id: number): number {
    return Math.imul(id, SPREAD) >>> this.shift
  }

  private resize(slots: number): void {
    const { ids, values } = this
    this.ids = new Uint32Array(slots)
    this.values = empty(slots)
    this.shift = Math.clz32(slots - 1)
    for (let at = 0; at < ids.length; at += 1) {
      if (ids[at] === 0) continue
      const slot = this.slotOf(ids[at] ?? 0)
      this.ids[slot] = ids[at] ?? 0
      this.values[slot] = values[at]
    }
    // The old array may be in the old generation: it must not keep references.
    values.fill(undefined)
  }
}

function empty<T>(slots: number): (T | undefined)[] {
  return Array.from<T | undefined>({ length: slots }).fill(undefined)
}
