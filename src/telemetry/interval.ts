/**
 * What a host counted in a span of time, in the form in which it is reported (src/model/report.ts). Pure but for the
 * readings that a meter remembers.
 */
import type { Interval, ReportPair, SparseCells } from '../model/report.ts'
import { trafficKey, trafficLayout, workerLayout } from './counters.ts'
import { sparse } from './report-columns.ts'
import type { TrafficTotal } from './totals.ts'

/** One reading of all counters. */
export interface CounterReading {
  readonly traffic: readonly TrafficTotal[]
  /** By {@link workerLayout}. */
  readonly cells: Float64Array
}

/** A row of an interval. */
interface Row {
  readonly reporter: 0 | 1
  readonly source: string
  readonly destination: string
  readonly active: number
  readonly lost: number
  readonly cells: SparseCells
}

/** Turns readings of counters, which only increase, into intervals. */
export class IntervalMeter {
  readonly #before = new Map<string, { readonly cells: Float64Array; readonly lost: number }>()
  #hostBefore = workerLayout.empty()

  /** What was counted since the last call; since the start in the first one. */
  take({ traffic, cells }: CounterReading, spanMs: number): Interval {
    const rows = traffic.flatMap((total) => {
      const row = this.#row(total)
      return row === undefined ? [] : [row]
    })
    const host = sparse(workerLayout.since(cells, this.#hostBefore))
    this.#hostBefore = cells
    return intervalOf(spanMs, rows, host)
  }

  /** Undefined for a pair of which nothing was counted and that has no open connection. */
  #row({ labels, cells, active, lost }: TrafficTotal): Row | undefined {
    const key = trafficKey(labels)
    const before = this.#before.get(key)
    this.#before.set(key, { cells, lost })
    const changes = sparse(before === undefined ? cells : trafficLayout.since(cells, before.cells))
    const lostNow = lost - (before?.lost ?? 0)
    if (changes.length === 0 && active === 0 && lostNow === 0) return undefined
    const { reporter, source, destination } = labels
    return {
      reporter: reporter === 'source' ? 0 : 1,
      source,
      destination,
      active,
      lost: lostNow,
      cells: changes,
    }
  }
}

/** Two intervals as one; `later` follows `earlier` directly. */
export function mergeIntervals(earlier: Interval, later: Interval): Interval {
  const rows = new Map<string, Row>()
  for (const row of rowsOf(earlier)) rows.set(rowKey(row), { ...row, active: 0 })
  for (const row of rowsOf(later)) {
    const before = rows.get(rowKey(row))
    rows.set(
      rowKey(row),
      before === undefined
        ? row
        : { ...row, lost: before.lost + row.lost, cells: addSparse(before.cells, row.cells) },
    )
  }
  return intervalOf(
    earlier.spanMs + later.spanMs,
    [...rows.values()],
    addSparse(withoutGauges(earlier.host), later.host),
  )
}

/** Both lists are in order of their cells, as {@link sparse} makes them. Linear: a busy host merges 4,000 rows at once. */
function addSparse(left: SparseCells, right: SparseCells): SparseCells {
  const sums: number[] = []
  let i = 0
  let k = 0
  while (i + 1 < left.length || k + 1 < right.length) {
    const ofLeft = left[i] ?? Infinity
    const ofRight = right[k] ?? Infinity
    let sum = 0
    if (ofLeft <= ofRight) {
      sum += left[i + 1] ?? 0
      i += 2
    }
    if (ofRight <= ofLeft) {
      sum += right[k + 1] ?? 0
      k += 2
    }
    sums.push(Math.min(ofLeft, ofRight), sum)
  }
  return sums
}

function withoutGauges(cells: SparseCells): SparseCells {
  const pairs: number[] = []
  for (let i = 0; i + 1 < cells.length; i += 2)
    if (!workerLayout.gaugeCells.has(cells[i] ?? 0)) pairs.push(cells[i] ?? 0, cells[i + 1] ?? 0)
  return pairs
}

function intervalOf(spanMs: number, rows: readonly Row[], host: SparseCells): Interval {
  const positions = new Map<string, number>()
  const position = (name: string): number => {
    const known = positions.get(name)
    if (known !== undefined) return known
    positions.set(name, positions.size)
    return positions.size - 1
  }
  const pairs = rows.map(
    ({ reporter, source, destination, active, lost, cells }): ReportPair => [
      reporter,
      position(source),
      position(destination),
      active,
      lost,
      cells,
    ],
  )
  return { spanMs, names: [...positions.keys()], pairs, host }
}

function rowsOf({ names, pairs }: Interval): readonly Row[] {
  return pairs.map(([reporter, source, destination, active, lost, cells]) => ({
    reporter,
    source: names[source] ?? '',
    destination: names[destination] ?? '',
    active,
    lost,
    cells,
  }))
}

function rowKey({ reporter, source, destination }: Row): string {
  return `${reporter}\n${source}\n${destination}`
}
