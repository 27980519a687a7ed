/**
 * Sums of histograms, also of different layouts: each bucket counts as that many values at its upper edge. Pure.
 */
import type { Quantiles } from '../../model/fleet.ts'
import type { Histogram } from '../figures.ts'

/** Counts of one layout. */
interface Layer {
  readonly bounds: readonly number[]
  readonly counts: Float64Array
}

/** Layouts that are kept apart; more than hosts of a few versions have. */
const MAX_LAYERS = 8

/** A sum that histograms are added to. */
export class HistogramSum {
  readonly #layers: Layer[] = []
  /** By upper bound: what has a layout that came after {@link MAX_LAYERS} others. */
  readonly #points = new Map<number, number>()

  add({ bounds, counts }: Layer | Histogram): void {
    const layer = this.#layerOf(bounds)
    if (layer === undefined) {
      for (const [i, bound] of bounds.entries())
        this.#points.set(bound, (this.#points.get(bound) ?? 0) + (counts[i] ?? 0))
      return
    }
    const sums = layer.counts
    for (let i = 0; i < sums.length; i += 1) sums[i] = (sums[i] ?? 0) + (counts[i] ?? 0)
  }

  /** Adds all of another sum. */
  addSum(other: HistogramSum): void {
    for (const layer of other.#layers) this.add(layer)
    for (const [bound, count] of other.#points)
      this.#points.set(bound, (this.#points.get(bound) ?? 0) + count)
  }

  /**
   * The quantiles; null when nothing was counted. A value above the highest bound counts as that bound: the truth is
   * above it.
   */
  quantiles(): Quantiles | null {
    const { bounds, counts } = this.#merged()
    let total = 0
    for (let i = 0; i < counts.length; i += 1) total += counts[i] ?? 0
    if (total <= 0) return null
    const at = (share: number): number => {
      // 0.9 times a number is not exact.
      let left = share * total * (1 - 1e-12)
      let i = 0
      for (; i < counts.length - 1; i += 1) {
        left -= counts[i] ?? 0
        if (left <= 0) break
      }
      while (i > 0 && !Number.isFinite(bounds[i])) i -= 1
      return toMs(bounds[i] ?? 0)
    }
    return { p50: at(0.5), p90: at(0.9), p99: at(0.99) }
  }

  #layerOf(bounds: readonly number[]): Layer | undefined {
    for (const layer of this.#layers) if (isSame(layer.bounds, bounds)) return layer
    if (this.#layers.length >= MAX_LAYERS) return undefined
    const layer = { bounds, counts: new Float64Array(bounds.length) }
    this.#layers.push(layer)
    return layer
  }

  /** All of it in one layout. */
  #merged(): Layer {
    const [first, ...others] = this.#layers
    if (first !== undefined && others.length === 0 && this.#points.size === 0) return first
    const sums = new Map(this.#points)
    for (const { bounds, counts } of this.#layers)
      for (const [i, bound] of bounds.entries())
        sums.set(bound, (sums.get(bound) ?? 0) + (counts[i] ?? 0))
    const ascending = [...sums].toSorted(([a], [b]) => a - b)
    return {
      bounds: ascending.map(([bound]) => bound),
      counts: Float64Array.from(ascending, ([, count]) => count),
    }
  }
}

function isSame(a: readonly number[], b: readonly number[]): boolean {
  // Rows of one layout usually share the array.
  if (a === b) return true
  return a.length === b.length && a.every((bound, i) => bound === b[i])
}

/** In milliseconds, to microseconds: finer than anybody asks for. A hostile bound must not be no number in JSON. */
function toMs(seconds: number): number {
  return Number.isFinite(seconds) ? Math.round(seconds * 1e6) / 1e3 : 0
}
