/**
 * What is counted, as data. A column declares what is counted, its exported name, and its number of memory cells.
 * Reading, merging, the Prometheus text and docs/metrics.md are derived from the declarations in `counters.ts`.
 *
 * A reading is a plain array of cells in the order of the columns, so that sums and differences of readings do not
 * depend on their meaning.
 */
import { bucketCount, type ExponentialRange } from './exponential.ts'

/** How a column is exported; a column without it is part of a metric that `metrics.ts` assembles. */
export interface MetricHead {
  readonly group: MetricGroup
  readonly name: string
  readonly help: string
}

/** The sections of docs/metrics.md. */
export type MetricGroup = 'Connections' | 'Tunnels' | 'Host' | 'Process' | 'Istio names'

/** One kind of thing that is counted. */
export type Column =
  /** Only increases. */
  | { readonly kind: 'count'; readonly metric?: MetricHead }
  /** Increases and decreases, and ends with the worker. `thread`: exported for each worker, otherwise as a sum. */
  | { readonly kind: 'gauge'; readonly metric?: MetricHead; readonly by?: 'thread' }
  /** One count for each value of a label. With `always`, the other values have no series before they occur. */
  | {
      readonly kind: 'split'
      readonly metric: MetricHead
      readonly label: string
      readonly values: readonly string[]
      readonly always?: string
    }
  /** Counts by upper bound (the last is above all bounds; not cumulative), then the sum of all values, in seconds. */
  | {
      readonly kind: 'histogram'
      readonly metric: MetricHead
      readonly boundsSeconds: readonly number[]
    }
  /** Counts by bucket of `ExponentialBuckets` (exponential.ts), then the sum of all values, in seconds. */
  | {
      readonly kind: 'exponential'
      readonly metric: MetricHead
      readonly rangeSeconds: ExponentialRange
    }

type ColumnOf<Kind extends Column['kind']> = Extract<Column, { readonly kind: Kind }>

/** Makes columns with metrics in one section, each from the metric's name and help text. */
interface ColumnMakers {
  count(name: string, help: string): ColumnOf<'count'>
  gauge(name: string, help: string): ColumnOf<'gauge'>
  /** A gauge that is exported for each worker. */
  threadGauge(name: string, help: string): ColumnOf<'gauge'>
  split<const Value extends string>(
    name: string,
    help: string,
    by: { readonly label: string; readonly values: readonly Value[]; readonly always?: Value },
  ): ColumnOf<'split'> & { readonly values: readonly Value[] }
  histogram(name: string, help: string, boundsSeconds: readonly number[]): ColumnOf<'histogram'>
  exponential(name: string, help: string, rangeSeconds: ExponentialRange): ColumnOf<'exponential'>
}

/** The makers of one section. */
export function columnsIn(group: MetricGroup): ColumnMakers {
  return {
    count: (name, help) => ({ kind: 'count', metric: { group, name, help } }),
    gauge: (name, help) => ({ kind: 'gauge', metric: { group, name, help } }),
    threadGauge: (name, help) => ({ kind: 'gauge', by: 'thread', metric: { group, name, help } }),
    split: (name, help, by) => ({ kind: 'split', ...by, metric: { group, name, help } }),
    histogram: (name, help, boundsSeconds) => ({
      kind: 'histogram',
      boundsSeconds,
      metric: { group, name, help },
    }),
    exponential: (name, help, rangeSeconds) => ({
      kind: 'exponential',
      rangeSeconds,
      metric: { group, name, help },
    }),
  }
}

/** The columns of a row, by the name in the code. */
export type Columns = Readonly<Record<string, Column>>

/** The names of the columns of one kind. */
export type NameOf<All extends Columns, Kind extends Column['kind']> = {
  [Name in keyof All & string]: All[Name] extends { readonly kind: Kind } ? Name : never
}[keyof All & string]

/** The values of a split column. */
export type ValueOf<All extends Columns, Name extends keyof All> = All[Name] extends {
  readonly values: readonly (infer Value extends string)[]
}
  ? Value
  : never

/** A histogram of either kind: counts by bucket (not cumulative), and the sum of all values. */
export interface BucketCounts {
  readonly buckets: readonly number[]
  readonly seconds: number
}

/** A row as numbers; a split column by value. */
export type Numbers<All extends Columns> = {
  readonly [Name in keyof All]: All[Name] extends { readonly kind: 'split' }
    ? Readonly<Record<ValueOf<All, Name>, number>>
    : All[Name] extends { readonly kind: 'histogram' | 'exponential' }
      ? BucketCounts
      : number
}

/** The positions of the cells of a row's columns. */
export class Layout<All extends Columns> {
  readonly columns: All
  /** Number of cells in one row. */
  readonly width: number
  /** The first cell of each column. */
  readonly start: { readonly [Name in keyof All]: number }
  /** The cells that hold present values. */
  readonly gaugeCells: ReadonlySet<number>

  constructor(columns: All) {
    this.columns = columns
    const start: Record<string, number> = {}
    const gaugeCells = new Set<number>()
    let width = 0
    for (const [name, column] of Object.entries(columns)) {
      start[name] = width
      if (column.kind === 'gauge') gaugeCells.add(width)
      width += cellsOf(column)
    }
    this.width = width
    // oxlint-disable-next-line typescript/no-unsafe-type-assertion -- it has just got every key of the columns
    this.start = start as { [Name in keyof All]: number }
    this.gaugeCells = gaugeCells
  }

  /** Zeros: the reading of a row in which nothing was counted. */
  empty(): Float64Array {
    return new Float64Array(this.width)
  }

  /** The cell of each value of a split column, relative to the first cell of the column. */
  offsets<Name extends NameOf<All, 'split'>>(name: Name): Record<ValueOf<All, Name>, number>
  offsets(name: string): Record<string, number> {
    const column = this.columns[name]
    if (column?.kind !== 'split') return {}
    return Object.fromEntries(column.values.map((value, index) => [value, index]))
  }

  /** The number of a count or gauge; for a split column or histogram the sum of its counts. */
  total(cells: Float64Array, name: keyof All & string): number {
    const counts = this.counts(cells, name)
    return counts.reduce((sum, count) => sum + count, 0)
  }

  /** The counts of a column, one for each value or bucket. */
  counts(cells: Float64Array, name: keyof All & string): Float64Array {
    const column = this.columns[name]
    const start = this.start[name]
    if (column === undefined) return new Float64Array(0)
    const count = isHistogram(column) ? cellsOf(column) - 1 : cellsOf(column)
    return cells.subarray(start, start + count)
  }

  /** The sum of the values in a histogram, in seconds. */
  seconds(cells: Float64Array, name: keyof All & string): number {
    const column = this.columns[name]
    return column === undefined ? 0 : (cells[this.start[name] + cellsOf(column) - 1] ?? 0)
  }

  /** The numbers of a whole row. */
  read(cells: Float64Array): Numbers<All> {
    const numbers = Object.entries(this.columns).map(([name, column]) => {
      const counts = this.counts(cells, name)
      if (column.kind === 'split')
        return [name, Object.fromEntries(column.values.map((value, i) => [value, counts[i] ?? 0]))]
      if (isHistogram(column))
        return [name, { buckets: [...counts], seconds: this.seconds(cells, name) }]
      return [name, counts[0] ?? 0]
    })
    // oxlint-disable-next-line typescript/no-unsafe-type-assertion -- the type is made from the same columns
    return Object.fromEntries(numbers) as Numbers<All>
  }

  /** What was counted since an earlier reading. A gauge is a present value: it stays as it is. */
  since(cells: Float64Array, earlier: Float64Array): Float64Array {
    const difference = cells.map((cell, at) => cell - (earlier[at] ?? 0))
    for (const cell of this.gaugeCells) difference[cell] = cells[cell] ?? 0
    return difference
  }

  /** Clears the gauges of a worker that has ended. */
  endGauges(cells: Float64Array): void {
    for (const cell of this.gaugeCells) cells[cell] = 0
  }
}

/** Adds one reading to another of the same layout. */
export function addCells(sum: Float64Array, cells: Float64Array): void {
  for (let i = 0; i < sum.length; i += 1) sum[i] = (sum[i] ?? 0) + (cells[i] ?? 0)
}

/** The bucket of a value: the first whose bound is at least the value. */
export function bucketOf(bounds: readonly number[], value: number): number {
  let bucket = 0
  while (bucket < bounds.length && value > (bounds[bucket] ?? 0)) bucket += 1
  return bucket
}

function isHistogram(column: Column): boolean {
  return column.kind === 'histogram' || column.kind === 'exponential'
}

function cellsOf(column: Column): number {
  if (column.kind === 'split') return column.values.length
  if (column.kind === 'exponential') return bucketCount(column.rangeSeconds) + 1
  return column.kind === 'histogram' ? column.boundsSeconds.length + 2 : 1
}
