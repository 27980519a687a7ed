/**
 * Counters of one data-plane worker, in memory shared with the main thread.
 *
 * One thread writes, any thread reads: every cell is an aligned 64-bit float, so a reader sees the old
 * or the new value, never half of each. Adding is one array write: no allocation, no message, no lock.
 * Summing over workers, and keeping the sums of workers that are gone, is `totals.ts`'s.
 *
 * Bounded by construction: a fixed number of rows and columns. Service pairs beyond the last row share one
 * row per reporter, whose services are called `other`.
 */
import { recordOf } from '../lib/record.ts'
import { type ResponseFlag, responseFlags } from '../model/response-flag.ts'

/** Who counted: the host of the calling service or the host of the called one. */
export type Reporter = 'source' | 'destination'

/** What a row of traffic is about. */
export interface TrafficLabels {
  readonly reporter: Reporter
  readonly source: string
  readonly destination: string
}

/** Service pairs of one worker that have a row of their own. */
export const MAX_TRAFFIC_ROWS = 1_024

/** Service name, both source and destination, of the rows that the pairs without a row share. */
export const OTHER_SERVICE = 'other'

/** Upper bounds of the duration histogram, in seconds: from one exchange to a connection kept for a day. */
export const durationBucketsSeconds = [
  0.001, 0.005, 0.025, 0.1, 0.5, 1, 5, 30, 60, 300, 1_800, 3_600, 86_400,
] as const

/** Every ending of a connection, in column order. */
export const trafficFlags: readonly ResponseFlag[] = Object.keys(responseFlags).filter(isFlag)

function isFlag(text: string): text is ResponseFlag {
  return Object.hasOwn(responseFlags, text)
}

const plainColumns = ['opened', 'closed', 'sentBytes', 'receivedBytes', 'connectFailures'] as const

/**
 * The columns of a row, in order: plain counts, one closed-count per response flag (`closed:UF`), one
 * count per duration bucket (`duration:0.1`, not cumulative, the last is `duration:Inf`), seconds in total.
 */
export const trafficColumns: readonly string[] = [
  ...plainColumns,
  ...trafficFlags.map((flag) => `closed:${flag}`),
  ...durationBucketsSeconds.map((bound) => `duration:${bound}`),
  'duration:Inf',
  'durationSeconds',
]

const OPENED = 0
const CLOSED = 1
const SENT = 2
const RECEIVED = 3
const CONNECT_FAILURES = 4
const FIRST_FLAG = plainColumns.length
const FIRST_BUCKET = FIRST_FLAG + trafficFlags.length
const DURATION_SECONDS = FIRST_BUCKET + durationBucketsSeconds.length + 1
const WIDTH = DURATION_SECONDS + 1

/** The shared `other` rows come first, so that they exist whatever happens. */
const OTHER_ROWS = 2
const ROWS = OTHER_ROWS + MAX_TRAFFIC_ROWS

const columnByFlag = recordOf(trafficFlags, (_flag, index) => FIRST_FLAG + index)

const bucketBoundsMs: readonly number[] = durationBucketsSeconds.map((bound) => bound * 1_000)

/** The labels of a worker's rows before any was announced: the two `other` rows. */
export function initialTrafficLabels(): (TrafficLabels | undefined)[] {
  return [
    { reporter: 'source', source: OTHER_SERVICE, destination: OTHER_SERVICE },
    { reporter: 'destination', source: OTHER_SERVICE, destination: OTHER_SERVICE },
  ]
}

/** Connections and bytes by reporter and service pair. The worker's half; see {@link readTraffic}. */
export class TrafficCounters {
  private readonly cells: Float64Array
  private readonly announceRow: (row: number, labels: TrafficLabels) => void
  private readonly rows: Record<Reporter, Map<string, Map<string, number>>> = {
    source: new Map(),
    destination: new Map(),
  }
  private nextRow = OTHER_ROWS

  /** Zeroed memory for one worker, 270 KiB. */
  static createMemory(): SharedArrayBuffer {
    return new SharedArrayBuffer(ROWS * WIDTH * Float64Array.BYTES_PER_ELEMENT)
  }

  /**
   * `announceRow` is called once for each row that comes into use, before anything is counted in it;
   * the rows that {@link initialTrafficLabels} names are never announced.
   */
  constructor(
    memory: SharedArrayBuffer,
    announceRow: (row: number, labels: TrafficLabels) => void,
  ) {
    this.cells = new Float64Array(memory)
    this.announceRow = announceRow
  }

  /** The row of a service pair: look it up once per connection and keep it. */
  row(reporter: Reporter, source: string, destination: string): number {
    const bySource = this.rows[reporter]
    const known = bySource.get(source)?.get(destination)
    if (known !== undefined) return known
    if (this.nextRow >= ROWS) return reporter === 'source' ? 0 : 1
    const row = this.nextRow
    this.nextRow += 1
    const byDestination = bySource.get(source) ?? new Map<string, number>()
    byDestination.set(destination, row)
    bySource.set(source, byDestination)
    this.announceRow(row, { reporter, source, destination })
    return row
  }

  /** A connection was accepted. Pair every call with one of {@link closed}. */
  opened(row: number): void {
    this.add(row, OPENED, 1)
  }

  /** The connection ended, `durationMs` after it was accepted. */
  closed(row: number, flag: ResponseFlag, durationMs: number): void {
    this.add(row, CLOSED, 1)
    this.add(row, columnByFlag[flag], 1)
    this.add(row, FIRST_BUCKET + bucketOf(bucketBoundsMs, durationMs), 1)
    this.add(row, DURATION_SECONDS, durationMs / 1_000)
  }

  /** Bytes towards the destination service. */
  sent(row: number, bytes: number): void {
    this.add(row, SENT, bytes)
  }

  /** Bytes from the destination service. */
  received(row: number, bytes: number): void {
    this.add(row, RECEIVED, bytes)
  }

  /** One try to reach an instance failed; the connection may still succeed on another. */
  connectFailed(row: number): void {
    this.add(row, CONNECT_FAILURES, 1)
  }

  private add(row: number, column: number, amount: number): void {
    const index = row * WIDTH + column
    this.cells[index] = (this.cells[index] ?? 0) + amount
  }
}

/** One row as numbers. */
export interface TrafficRow {
  readonly labels: TrafficLabels
  readonly opened: number
  readonly closed: number
  readonly sentBytes: number
  readonly receivedBytes: number
  readonly connectFailures: number
  /** In the order of {@link trafficFlags}. */
  readonly closedByFlag: readonly number[]
  /** In the order of {@link durationBucketsSeconds}, then above the last; not cumulative. */
  readonly durationBuckets: readonly number[]
  readonly durationSeconds: number
}

/**
 * The rows of a worker that have been used, for the main thread. `labels` by row number, as announced;
 * a row whose announcement is still on its way is left out, and appears with its full counts later.
 */
export function readTraffic(
  memory: SharedArrayBuffer,
  labels: readonly (TrafficLabels | undefined)[],
): readonly TrafficRow[] {
  const cells = new Float64Array(memory)
  const rows: TrafficRow[] = []
  for (let row = 0; row < Math.min(labels.length, ROWS); row += 1) {
    const label = labels[row]
    const isUsed = row >= OTHER_ROWS || (cells[row * WIDTH] ?? 0) > 0
    if (label !== undefined && isUsed) rows.push(readRow(cells, row, label))
  }
  return rows
}

function readRow(cells: Float64Array, row: number, labels: TrafficLabels): TrafficRow {
  const start = row * WIDTH
  const cell = (column: number): number => cells[start + column] ?? 0
  return {
    labels,
    // Closed before opened: a connection that opens and closes in between must not look closed only.
    closed: cell(CLOSED),
    opened: cell(OPENED),
    sentBytes: cell(SENT),
    receivedBytes: cell(RECEIVED),
    connectFailures: cell(CONNECT_FAILURES),
    closedByFlag: Array.from(cells.subarray(start + FIRST_FLAG, start + FIRST_BUCKET)),
    durationBuckets: Array.from(cells.subarray(start + FIRST_BUCKET, start + DURATION_SECONDS)),
    durationSeconds: cell(DURATION_SECONDS),
  }
}

/** Counts of a worker that have no service pair. They only grow. */
export const workerCounterNames = [
  'sessionsDrained',
  'sessionsExpired',
  'sessionsLost',
  'sessionsRevoked',
  'sessionsSilent',
  'sessionsUntrusted',
  'sessionsViolated',
  'acceptedConnections',
  'captureRefused',
  'limitBarred',
  'limitDescriptors',
  'limitHandshakes',
  'limitMemory',
  'limitStreams',
  'limitTunnels',
  'logLinesLost',
  'overflow',
  'outlierEjections',
  'protocolErrors',
  'tunnelHandshakes',
  'tunnelHandshakeFailures',
  'tunnelStreamsOpened',
  'tunnelStreamsReset',
] as const

/** States of a worker that go up and down. They end with the worker. */
export const workerGaugeNames = [
  'tunnelSessionsActive',
  'tunnelStreamsActive',
  'ejectedEndpoints',
  'eventLoopDelayMs',
  'heldBytes',
  'connectionDescriptors',
  'barredCallers',
] as const

/** Upper bounds of the histogram of tunnel round trips, in seconds. */
export const roundTripBucketsSeconds = [
  0.000_1, 0.000_5, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1,
] as const

/** A count of {@link workerCounterNames}. */
export type WorkerCounterName = (typeof workerCounterNames)[number]

/** A state of {@link workerGaugeNames}. */
export type WorkerGaugeName = (typeof workerGaugeNames)[number]

const workerCells: readonly (WorkerCounterName | WorkerGaugeName)[] = [
  ...workerCounterNames,
  ...workerGaugeNames,
]

const workerCellByName = recordOf(workerCells, (_name, index) => index)

const ROUND_TRIP_BUCKETS = workerCells.length
const ROUND_TRIP_SECONDS = ROUND_TRIP_BUCKETS + roundTripBucketsSeconds.length + 1
const roundTripBoundsMs: readonly number[] = roundTripBucketsSeconds.map((bound) => bound * 1_000)

/** Single numbers of one worker. The worker's half; see {@link readWorker}. */
export class WorkerCounters {
  private readonly cells: Float64Array

  /** Zeroed memory for one worker. */
  static createMemory(): SharedArrayBuffer {
    return new SharedArrayBuffer((ROUND_TRIP_SECONDS + 1) * Float64Array.BYTES_PER_ELEMENT)
  }

  constructor(memory: SharedArrayBuffer) {
    this.cells = new Float64Array(memory)
  }

  /** Adds to a count; for a gauge `by` may be negative. */
  inc(name: WorkerCounterName | WorkerGaugeName, by = 1): void {
    this.add(workerCellByName[name], by)
  }

  /** A peer answered a ping after `ms`. */
  roundTrip(ms: number): void {
    this.add(ROUND_TRIP_BUCKETS + bucketOf(roundTripBoundsMs, ms), 1)
    this.add(ROUND_TRIP_SECONDS, ms / 1_000)
  }

  /** Sets a gauge. */
  set(name: WorkerGaugeName, value: number): void {
    this.cells[workerCellByName[name]] = value
  }

  private add(index: number, amount: number): void {
    this.cells[index] = (this.cells[index] ?? 0) + amount
  }
}

/** All single numbers of one worker. */
export interface WorkerReading {
  readonly counters: Readonly<Record<WorkerCounterName, number>>
  readonly gauges: Readonly<Record<WorkerGaugeName, number>>
  readonly roundTrips: BucketCounts
}

/** A histogram: counts by upper bound, then above the last (not cumulative), and the sum of all values. */
export interface BucketCounts {
  readonly buckets: readonly number[]
  readonly seconds: number
}

/** Reads what a worker's {@link WorkerCounters} holds now, for the main thread. */
export function readWorker(memory: SharedArrayBuffer): WorkerReading {
  const cells = new Float64Array(memory)
  const cell = (name: WorkerCounterName | WorkerGaugeName): number =>
    cells[workerCellByName[name]] ?? 0
  return {
    counters: recordOf(workerCounterNames, cell),
    gauges: recordOf(workerGaugeNames, cell),
    roundTrips: {
      buckets: Array.from(cells.subarray(ROUND_TRIP_BUCKETS, ROUND_TRIP_SECONDS)),
      seconds: cells[ROUND_TRIP_SECONDS] ?? 0,
    },
  }
}

function bucketOf(bounds: readonly number[], value: number): number {
  let bucket = 0
  while (bucket < bounds.length && value > (bounds[bucket] ?? 0)) bucket += 1
  return bucket
}
