/**
 * What a stored number is: the aggregator's own list of cells, so that hosts whose columns differ are summed. Pure.
 *
 * A cell is one number of one column: the count, the count of one value of a label, of one bucket, or the sum of a
 * histogram. Rows name cells by number. A column of the same name and another kind is another column.
 */
import type { ReportColumn } from '../../model/report.ts'
import type { Figures, Histogram } from '../figures.ts'
import type { ByteReader } from './bytes.ts'

/** The most cells of all hosts; further ones are dropped and counted. */
export const MAX_CELLS = 8_192

/** What one cell is. */
export type CellMeaning =
  | { readonly kind: 'count' | 'gauge'; readonly column: string }
  | {
      readonly kind: 'split'
      readonly column: string
      readonly label: string
      readonly value: string
    }
  /** `bound`: upper edge in seconds, Infinity for what is above all. */
  | { readonly kind: 'bucket'; readonly column: string; readonly bound: number }
  /** The bucket of an exponential histogram: up to 2^((index + 1) / 2^scale) seconds. */
  | {
      readonly kind: 'exponential'
      readonly column: string
      readonly scale: number
      readonly index: number
    }
  /** The sum of a histogram, seconds. */
  | { readonly kind: 'sum'; readonly column: string }

/** The cells of a column, in the order of a report. */
export function meaningsOf(column: ReportColumn): CellMeaning[] {
  const { name } = column
  switch (column.kind) {
    case 'count':
    case 'gauge':
      return [{ kind: column.kind, column: name }]
    case 'split':
      return column.values.map((value) => ({
        kind: 'split',
        column: name,
        label: column.label,
        value,
      }))
    case 'histogram':
      return [
        ...[...column.boundsSeconds, Infinity].map(
          (bound): CellMeaning => ({ kind: 'bucket', column: name, bound }),
        ),
        { kind: 'sum', column: name },
      ]
    case 'exponential':
      return [
        ...Array.from(
          { length: column.cells - 1 },
          (_, i): CellMeaning => ({
            kind: 'exponential',
            column: name,
            scale: column.scale,
            index: column.offset + i,
          }),
        ),
        { kind: 'sum', column: name },
      ]
  }
}

/** Text that is unique to a cell. */
export function keyOf(meaning: CellMeaning): string {
  return JSON.stringify(Object.values(meaning).map((part) => (part === Infinity ? 'inf' : part)))
}

/** The inverse of {@link keyOf}; undefined for other text. */
export function meaningOfKey(key: string): CellMeaning | undefined {
  const parts: unknown = JSON.parse(key)
  if (!Array.isArray(parts)) return undefined
  const [kind, column, first, second]: unknown[] = parts
  if (typeof column !== 'string') return undefined
  if (kind === 'count' || kind === 'gauge' || kind === 'sum') return { kind, column }
  if (kind === 'split' && typeof first === 'string' && typeof second === 'string')
    return { kind, column, label: first, value: second }
  if (kind === 'bucket' && (typeof first === 'number' || first === 'inf'))
    return { kind, column, bound: first === 'inf' ? Infinity : first }
  if (kind === 'exponential' && typeof first === 'number' && typeof second === 'number')
    return { kind, column, scale: first, index: second }
  return undefined
}

/** The upper edge of a bucket of an exponential histogram, seconds. */
function upperEdge(scale: number, index: number): number {
  // Powers are slow, and the same few hundred are asked for all the time.
  const key = index * 64 + scale
  let edge = edges.get(key)
  if (edge === undefined) {
    edge = 2 ** ((index + 1) / 2 ** scale)
    if (edges.size >= MAX_CELLS) edges.clear()
    edges.set(key, edge)
  }
  return edge
}

const edges = new Map<number, number>()

/** Sums numbers by column. */
export class FiguresBuilder {
  readonly #counts = new Map<string, number>()
  readonly #splits = new Map<string, Map<string, number>>()
  readonly #histograms = new Map<string, Buckets>()
  // Cells of a column follow each other.
  #column = ''
  #buckets: Buckets | undefined

  add(meaning: CellMeaning, value: number): void {
    if (value === 0) return
    const { column } = meaning
    switch (meaning.kind) {
      case 'count':
      case 'gauge':
        increase(this.#counts, column, value)
        return
      case 'split': {
        const values = this.#splits.get(column)
        if (values === undefined) this.#splits.set(column, new Map([[meaning.value, value]]))
        else increase(values, meaning.value, value)
        return
      }
      case 'sum':
        this.#histogram(column).sum += value
        return
      case 'bucket':
        push(this.#histogram(column), meaning.bound, value)
        return
      case 'exponential':
        push(this.#histogram(column), upperEdge(meaning.scale, meaning.index), value)
    }
  }

  finish(): Figures {
    const histograms = new Map<string, Histogram>()
    for (const [column, buckets] of this.#histograms) histograms.set(column, toHistogram(buckets))
    return { counts: this.#counts, splits: this.#splits, histograms }
  }

  #histogram(column: string): Buckets {
    if (this.#buckets !== undefined && column === this.#column) return this.#buckets
    let histogram = this.#histograms.get(column)
    if (histogram === undefined)
      this.#histograms.set(column, (histogram = { bounds: [], counts: [], isSorted: true, sum: 0 }))
    this.#column = column
    this.#buckets = histogram
    return histogram
  }
}

/** Reads cells up to `end`. Numbers without a meaning are left out. */
export function readFigures(
  reader: ByteReader,
  end: number,
  meanings: readonly (CellMeaning | undefined)[],
): Figures {
  const figures = new FiguresBuilder()
  let cell = 0
  while (reader.at < end) {
    cell += reader.signed()
    const value = reader.value()
    const meaning = meanings[cell]
    if (meaning !== undefined) figures.add(meaning, value)
  }
  return figures.finish()
}

/** Counts by upper bound, and the sum of the values. */
interface Buckets {
  readonly bounds: number[]
  readonly counts: number[]
  /** Whether the bounds ascend, none twice. */
  isSorted: boolean
  sum: number
}

function push(buckets: Buckets, bound: number, count: number): void {
  const { bounds, counts } = buckets
  if (bounds.length > 0 && bound <= (bounds[bounds.length - 1] ?? 0)) buckets.isSorted = false
  bounds.push(bound)
  counts.push(count)
}

function toHistogram(buckets: Buckets): Histogram {
  const { bounds, counts, isSorted, sum } = buckets
  if (isSorted) return { bounds, counts, sum }
  const byBound = new Map<number, number>()
  for (const [index, bound] of bounds.entries())
    byBound.set(bound, (byBound.get(bound) ?? 0) + (counts[index] ?? 0))
  const sorted = [...byBound].toSorted(([left], [right]) => (left < right ? -1 : 1))
  return { bounds: sorted.map(([bound]) => bound), counts: sorted.map(([, count]) => count), sum }
}

function increase(sums: Map<string, number>, key: string, value: number): void {
  sums.set(key, (sums.get(key) ?? 0) + value)
}
