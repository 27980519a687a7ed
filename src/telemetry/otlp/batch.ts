/**
 * The metrics in OpenTelemetry's data model (https://opentelemetry.io/docs/specs/otel/metrics/data-model/), in batches
 * of limited size. Counts are cumulative since the start of the daemon.
 */
import { setImmediate as nextTurn } from 'node:timers/promises'
import type { Distribution, Labels, Metric, Reading, Sample } from '../metrics.ts'

/** One number with its attributes. */
export interface NumberPoint {
  readonly attributes: Labels
  readonly value: number
}

/** Counts by bucket, and the count and sum of all values. */
export interface BucketPoint {
  readonly attributes: Labels
  readonly count: number
  readonly sum: number
  readonly bucketCounts: readonly number[]
}

/** Bucket `i` of an exponential histogram has the values in (2^((offset + i) / 2^scale), next]. */
export interface ExponentialPoint extends BucketPoint {
  readonly scale: number
  readonly offset: number
}

/** The points of one metric; `sum` only increases. */
export type MetricData =
  | { readonly kind: 'gauge' | 'sum'; readonly points: readonly NumberPoint[] }
  | {
      readonly kind: 'histogram'
      readonly bounds: readonly number[]
      readonly points: readonly BucketPoint[]
    }
  | { readonly kind: 'exponential'; readonly points: readonly ExponentialPoint[] }

/** One metric with some of its points. */
export interface OtlpMetric {
  readonly name: string
  readonly description: string
  /** In UCUM; empty for a plain count. */
  readonly unit: string
  readonly data: MetricData
}

/** The content of one request. */
export interface OtlpBatch {
  /** Attributes of the host. */
  readonly resource: Labels
  readonly version: string
  /** Since when counts are cumulative, and when they were read; milliseconds since the epoch. */
  readonly startMs: number
  readonly timeMs: number
  readonly metrics: readonly OtlpMetric[]
}

/** Most points of one request: less than 1 MB with the longest names and all buckets in use. */
export const MAX_BATCH_POINTS = 500

/** All points of a reading. Each batch is made in a turn of the event loop of its own: 500 points take about 5 ms. */
export async function* batchesOf(
  metrics: readonly Metric[],
  reading: Reading,
): AsyncGenerator<readonly OtlpMetric[]> {
  let batch: OtlpMetric[] = []
  let room = MAX_BATCH_POINTS
  for (const metric of metrics)
    for await (const part of partsOf(metric, reading, () => room)) {
      batch.push(part)
      room -= part.data.points.length
      if (room > 0) continue
      yield batch
      await nextTurn()
      batch = []
      room = MAX_BATCH_POINTS
    }
  if (batch.length > 0) yield batch
}

/** A metric in parts of at most as many points as there is room for. */
async function* partsOf(
  metric: Metric,
  reading: Reading,
  room: () => number,
): AsyncGenerator<OtlpMetric> {
  const { name, help, type, distributions } = metric
  const head = { name, description: help, unit: unitOf(name) }
  if (distributions !== undefined) {
    for (const part of slices(distributions(reading), room)) yield { ...head, data: dataOf(part) }
    return
  }
  const kind = type === 'gauge' ? 'gauge' : 'sum'
  for (const part of slices(await samplesOf(metric, reading), room))
    yield {
      ...head,
      data: { kind, points: part.map(({ labels, value }) => ({ attributes: labels, value })) },
    }
}

async function samplesOf(metric: Metric, reading: Reading): Promise<Iterable<Sample>> {
  const values = await metric.collect(reading)
  if (values === undefined) return []
  return typeof values === 'number' ? [{ value: values, labels: {} }] : values
}

function* slices<Item>(items: Iterable<Item>, room: () => number): Iterable<readonly Item[]> {
  let slice: Item[] = []
  for (const item of items) {
    slice.push(item)
    if (slice.length < room()) continue
    yield slice
    slice = []
  }
  if (slice.length > 0) yield slice
}

/** The rows of one metric all have the same column. */
function dataOf(rows: readonly Distribution[]): MetricData {
  const column = rows[0]?.column
  if (column?.kind === 'exponential') {
    const { scale, fromPower } = column.rangeSeconds
    return {
      kind: 'exponential',
      points: rows.map((row) => ({
        ...withoutOuterZeros(bucketPoint(row), fromPower * 2 ** scale),
        scale,
      })),
    }
  }
  return { kind: 'histogram', bounds: column?.boundsSeconds ?? [], points: rows.map(bucketPoint) }
}

function bucketPoint({ labels, counts, sum }: Distribution): BucketPoint {
  const bucketCounts = [...counts]
  const count = bucketCounts.reduce((total, one) => total + one, 0)
  return { attributes: labels, count, sum, bucketCounts }
}

/** Most buckets of a histogram are empty: only those from the first to the last that is not are sent. */
function withoutOuterZeros(
  point: BucketPoint,
  offset: number,
): BucketPoint & { readonly offset: number } {
  const { bucketCounts } = point
  const first = bucketCounts.findIndex((count) => count > 0)
  if (first < 0) return { ...point, bucketCounts: [], offset: 0 }
  const end = bucketCounts.findLastIndex((count) => count > 0) + 1
  return { ...point, bucketCounts: bucketCounts.slice(first, end), offset: offset + first }
}

function unitOf(name: string): string {
  if (/_seconds(_total)?$/.test(name)) return 's'
  return /_bytes(_total)?$/.test(name) ? 'By' : ''
}
