/**
 * Sums of what hosts counted, as the documents state them. Pure.
 *
 * Columns are known by name: those of `src/telemetry/counters.ts`. What a host of a later version counts beyond them is
 * carried in `more`.
 */
import type { Quantiles, Traffic } from '../../model/fleet.ts'
import { failureFlags } from '../../model/response-flag.ts'
import type { PairFigures } from '../figures.ts'
import { HistogramSum } from './histogram-sum.ts'

/** The column of endings, which is split by response flag. */
const CLOSED = 'closed'

/** The count columns that a member of {@link Traffic} states. */
const KNOWN_COUNTS: ReadonlySet<string> = new Set([
  'opened',
  'connectFailures',
  'sentBytes',
  'receivedBytes',
])

/**
 * What stands for the response flag of connections that were cut because a worker of the host crashed. They are
 * failures.
 */
const LOST_FLAG = 'LOST'

/** A row of a pair, as far as a sum needs it. */
export type Row = Pick<PairFigures, 'active' | 'lost' | 'figures'>

/** How many connections have ended, and how many of them failed. */
export interface Endings {
  readonly ended: number
  readonly failed: number
}

/** The endings of rows, without anything else of them. */
export function endingsOf(rows: readonly Row[]): Endings {
  let ended = 0
  let failed = 0
  for (const { lost, figures } of rows) {
    ended += lost
    failed += lost
    // Here and below: entries of maps as pairs would be an object each, a million of them for a large fleet.
    figures.splits.get(CLOSED)?.forEach((count, flag) => {
      ended += count
      if (failureFlags.has(flag)) failed += count
    })
  }
  return { ended, failed }
}

/** A sum of rows. */
export class TrafficSum {
  readonly #counts = new Map<string, number>()
  readonly #closed = new Map<string, number>()
  readonly #histograms = new Map<string, HistogramSum>()
  #active = 0

  add({ active, lost, figures }: Row): void {
    this.#active += active
    if (lost > 0) increase(this.#closed, LOST_FLAG, lost)
    figures.counts.forEach((count, column) => increase(this.#counts, column, count))
    figures.splits.forEach((split, column) => {
      if (column === CLOSED) split.forEach((count, flag) => increase(this.#closed, flag, count))
      else split.forEach((count) => increase(this.#counts, column, count))
    })
    figures.histograms.forEach((histogram, column) => {
      let sum = this.#histograms.get(column)
      if (sum === undefined) {
        sum = new HistogramSum()
        this.#histograms.set(column, sum)
      }
      sum.add(histogram)
    })
  }

  /** Adds all of another sum. */
  addSum(other: TrafficSum): void {
    this.addShare(other, 1)
    other.#histograms.forEach((histogram, column) => {
      let sum = this.#histograms.get(column)
      if (sum === undefined) this.#histograms.set(column, (sum = new HistogramSum()))
      sum.addSum(histogram)
    })
  }

  /** Adds a share of another sum, without its histograms: what was measured of a whole says nothing of a part. */
  addShare(other: TrafficSum, share: number): void {
    this.#active += other.#active * share
    other.#counts.forEach((count, column) => increase(this.#counts, column, count * share))
    other.#closed.forEach((count, flag) => increase(this.#closed, flag, count * share))
  }

  /** The number of a count column. */
  count(column: string): number {
    return this.#counts.get(column) ?? 0
  }

  get active(): number {
    return this.#active
  }

  /** Ended connections with this flag. */
  closed(flag: string): number {
    return this.#closed.get(flag) ?? 0
  }

  endings(): Endings {
    let ended = 0
    let failed = 0
    this.#closed.forEach((count, flag) => {
      ended += count
      if (flag === LOST_FLAG || failureFlags.has(flag)) failed += count
    })
    return { ended, failed }
  }

  quantiles(column: string): Quantiles | null {
    return this.#histograms.get(column)?.quantiles() ?? null
  }

  /** The sum as documents state it, over a span of this length. */
  over(spanMs: number): Traffic {
    const seconds = spanMs / 1_000
    const { ended, failed } = this.endings()
    const more = [...this.#counts].filter(([column]) => !KNOWN_COUNTS.has(column))
    return {
      openedPerSecond: this.count('opened') / seconds,
      active: this.#active,
      closed: Object.fromEntries([...this.#closed].filter(([, count]) => count > 0)),
      errorShare: ended > 0 ? failed / ended : null,
      connectFailures: this.count('connectFailures'),
      sentBytesPerSecond: this.count('sentBytes') / seconds,
      receivedBytesPerSecond: this.count('receivedBytes') / seconds,
      connectMs: this.quantiles('connectLatency'),
      firstByteMs: this.quantiles('firstByte'),
      durationMs: this.quantiles('duration'),
      ...(more.length > 0 && { more: Object.fromEntries(more) }),
    }
  }
}

function increase(sums: Map<string, number>, key: string, by: number): void {
  sums.set(key, (sums.get(key) ?? 0) + by)
}
