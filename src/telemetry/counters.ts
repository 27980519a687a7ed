/**
 * Counters of one data-plane worker, in memory shared with the main thread. A new counter needs one line in the tables
 * here, and the code that counts.
 *
 * One thread writes, any thread reads: each cell is an aligned 64-bit float, so a reader sees the old or the new value,
 * never a mixture. Counting is one array write: no allocation, no message, no lock. `totals.ts` sums over workers and
 * keeps the sums of ended workers.
 *
 * The number of rows and columns is fixed. Service pairs beyond the last row share one row per reporter, with the
 * services `other`.
 */
import { type ResponseFlag, responseFlags } from '../model/response-flag.ts'
import { bucketOf, type Columns, columnsIn, Layout, type NameOf, type ValueOf } from './columns.ts'
import { bucketCount, ExponentialBuckets, type ExponentialRange } from './exponential.ts'

/** Who counted: the host of the calling service or the host of the called one. */
export type Reporter = 'source' | 'destination'

/** The labels of a row of traffic. */
export interface TrafficLabels {
  readonly reporter: Reporter
  readonly source: string
  readonly destination: string
}

/** Identifies a row among those of a host. */
export function trafficKey({ reporter, source, destination }: TrafficLabels): string {
  return `${reporter}\n${source}\n${destination}`
}

/** Maximum service pairs of one worker with a row of their own. */
export const MAX_TRAFFIC_ROWS = 1_024

/** Source and destination service of the shared rows of pairs without their own row. */
export const OTHER_SERVICE = 'other'

/** All endings of a connection. */
export const trafficFlags: readonly ResponseFlag[] = Object.keys(responseFlags).filter(isFlag)

function isFlag(text: string): text is ResponseFlag {
  return Object.hasOwn(responseFlags, text)
}

/** From 61 µs to 64 s, each bucket 9 % wider than the one before. */
const LATENCY_SECONDS: ExponentialRange = { scale: 3, fromPower: -14, toPower: 6 }

const connections = columnsIn('Connections')
const tunnels = columnsIn('Tunnels')

/** What is counted per service pair. What is counted for each chunk comes first: it shares cache lines. */
export const trafficColumns = {
  opened: connections.count(
    'hostmesh_tcp_connections_opened_total',
    'Connections accepted, by service pair',
  ),
  closed: connections.split(
    'hostmesh_tcp_connections_closed_total',
    'Connections ended, by service pair and response flag',
    { label: 'response_flags', values: trafficFlags, always: '-' },
  ),
  connectFailures: connections.count(
    'hostmesh_tcp_connect_failures_total',
    'Failed tries to reach an instance; the connection may have succeeded on another',
  ),
  sentBytes: connections.count(
    'hostmesh_tcp_sent_bytes_total',
    'Bytes towards the destination service',
  ),
  receivedBytes: connections.count(
    'hostmesh_tcp_received_bytes_total',
    'Bytes from the destination service',
  ),
  duration: connections.histogram(
    'hostmesh_tcp_connection_duration_seconds',
    'How long ended connections were open',
    // From a single exchange to a connection that is kept for a day.
    [0.001, 0.005, 0.025, 0.1, 0.5, 1, 5, 30, 60, 300, 1_800, 3_600, 86_400],
  ),
  connectLatency: connections.exponential(
    'hostmesh_tcp_connect_duration_seconds',
    "Time to reach an instance: at the source from accepting the application's connection until the instance has confirmed, at the destination from the arrival of the stream until the application is connected; only connections that got there",
    LATENCY_SECONDS,
  ),
  firstByte: connections.exponential(
    'hostmesh_tcp_first_byte_seconds',
    'From the first bytes of the caller until the first byte of the answer; only connections with both, and not if the called side speaks first',
    LATENCY_SECONDS,
  ),
} satisfies Columns

/** The cells of a service pair. */
export const trafficLayout: Layout<typeof trafficColumns> = new Layout(trafficColumns)

/** What is counted per worker and has no service pair. */
export const workerColumns = {
  acceptedConnections: connections.count(
    'hostmesh_accepted_connections_total',
    'TCP connections accepted on any data-plane port, before anything is known of them',
  ),
  captureRefused: connections.count(
    'hostmesh_capture_refused_total',
    'Connections refused because their original destination is a port of hostmesh itself',
  ),
  outlierEjections: connections.count(
    'hostmesh_outlier_ejections_total',
    'Times an instance was ejected because connections to it failed, each worker for itself',
  ),
  ejectedEndpoints: connections.threadGauge(
    'hostmesh_outlier_ejected_endpoints',
    'Instances that a data-plane worker has ejected now because connections to them failed',
  ),
  overflow: connections.count(
    'hostmesh_overflow_total',
    'Connections and streams refused because a limit of this host was reached',
  ),
  limitRefusals: connections.split(
    'hostmesh_limit_refusals_total',
    'Streams, connections and handshakes refused or broken off because a caller had its share of something',
    {
      label: 'limit',
      values: ['banned', 'descriptors', 'handshakes', 'memory', 'streams', 'tunnels'],
    },
  ),
  heldBytes: connections.gauge(
    'hostmesh_held_bytes',
    'Memory for bytes on their way that a reader leaves waiting',
  ),
  connectionDescriptors: connections.gauge(
    'hostmesh_connection_descriptors',
    'File descriptors that connections, tunnels and handshakes have',
  ),
  bannedCallers: connections.gauge(
    'hostmesh_banned_callers',
    'Callers that are refused at the handshake for now, by destination and worker, for breaking the tunnel protocol too often',
  ),
  tunnelHandshakes: tunnels.count(
    'hostmesh_tunnel_handshakes_total',
    'TLS handshakes with peers that succeeded, in both directions',
  ),
  tunnelHandshakeFailures: tunnels.count(
    'hostmesh_tunnel_handshake_failures_total',
    'TLS handshakes with peers that failed, in both directions',
  ),
  tunnelSessionsActive: tunnels.gauge(
    'hostmesh_tunnel_sessions_active',
    'Tunnel sessions open now',
  ),
  tunnelSessionsClosed: tunnels.split(
    'hostmesh_tunnel_sessions_closed_total',
    'Tunnel sessions that ended, by reason',
    {
      label: 'reason',
      values: ['drained', 'expired', 'lost', 'revoked', 'silent', 'untrusted', 'violation'],
    },
  ),
  tunnelStreamsActive: tunnels.gauge('hostmesh_tunnel_streams_active', 'Tunnel streams open now'),
  tunnelStreamsOpened: tunnels.count(
    'hostmesh_tunnel_streams_opened_total',
    'Tunnel streams opened, in both directions',
  ),
  tunnelStreamsReset: tunnels.count(
    'hostmesh_tunnel_streams_reset_total',
    'Tunnel streams that ended by a reset, from either side',
  ),
  protocolErrors: tunnels.count(
    'hostmesh_tunnel_protocol_errors_total',
    'Tunnel sessions closed because the peer broke the protocol',
  ),
  tunnelRoundTrip: tunnels.histogram(
    'hostmesh_tunnel_rtt_seconds',
    'Round trips of keepalive pings to peers',
    [0.000_1, 0.000_5, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1],
  ),
  eventLoopDelayMs: { kind: 'gauge' as const },
  logLinesLost: { kind: 'count' as const },
  accessLinesLimited: { kind: 'count' as const },
  accessLinesLost: { kind: 'count' as const },
} satisfies Columns

/** The cells of a worker. */
export const workerLayout: Layout<typeof workerColumns> = new Layout(workerColumns)

type WorkerColumns = typeof workerColumns

/** The limit to which a refusal is counted. */
export type LimitName = ValueOf<WorkerColumns, 'limitRefusals'>

/** The reason to which the end of a tunnel session is counted. */
export type SessionEnd = ValueOf<WorkerColumns, 'tunnelSessionsClosed'>

/** The shared `other` rows come first, so that they always exist. */
const OTHER_ROWS = 2
const ROWS = OTHER_ROWS + MAX_TRAFFIC_ROWS
const WIDTH = trafficLayout.width
const {
  opened: OPENED,
  closed: CLOSED,
  sentBytes: SENT,
  receivedBytes: RECEIVED,
} = trafficLayout.start
const { connectFailures: CONNECT_FAILURES, duration: DURATION } = trafficLayout.start
const { connectLatency: CONNECT_LATENCY, firstByte: FIRST_BYTE } = trafficLayout.start
const offsetByFlag = trafficLayout.offsets('closed')

/** The labels of a worker's rows before any row is announced: the two `other` rows. */
export function initialTrafficLabels(): (TrafficLabels | undefined)[] {
  return [
    { reporter: 'source', source: OTHER_SERVICE, destination: OTHER_SERVICE },
    { reporter: 'destination', source: OTHER_SERVICE, destination: OTHER_SERVICE },
  ]
}

/** Connections and bytes by reporter and service pair. The worker's side; see {@link readTraffic}. */
export class TrafficCounters {
  private readonly cells: Float64Array
  private readonly announceRow: (row: number, labels: TrafficLabels) => void
  private readonly rows: Record<Reporter, Map<string, Map<string, number>>> = {
    source: new Map(),
    destination: new Map(),
  }
  private nextRow = OTHER_ROWS

  /** Zeroed memory for one worker: 2.8 MiB, but the kernel provides a page only when a row on it is used. */
  static createMemory(): SharedArrayBuffer {
    return new SharedArrayBuffer(ROWS * WIDTH * Float64Array.BYTES_PER_ELEMENT)
  }

  /**
   * `announceRow` is called once for each row that comes into use, before anything is counted in it, but not for the
   * rows of {@link initialTrafficLabels}.
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

  /** The called instance is connected, `tookMs` after the connection or stream arrived. */
  connected(row: number, tookMs: number): void {
    this.addLatency(row * WIDTH + CONNECT_LATENCY, tookMs / 1_000)
  }

  /** The first byte of the answer came `tookMs` after the first bytes of the caller. */
  answered(row: number, tookMs: number): void {
    this.addLatency(row * WIDTH + FIRST_BYTE, tookMs / 1_000)
  }

  /** The connection ended, `durationMs` after it was accepted. */
  closed(row: number, flag: ResponseFlag, durationMs: number): void {
    this.add(row, CLOSED + offsetByFlag[flag], 1)
    addToHistogram(this.cells, row * WIDTH + DURATION, durationBounds, durationMs / 1_000)
  }

  /** Bytes towards the destination service. */
  sent(row: number, bytes: number): void {
    this.add(row, SENT, bytes)
  }

  /** Bytes from the destination service. */
  received(row: number, bytes: number): void {
    this.add(row, RECEIVED, bytes)
  }

  /** One attempt to reach an instance failed; the connection may still succeed on another. */
  connectFailed(row: number): void {
    this.add(row, CONNECT_FAILURES, 1)
  }

  private add(row: number, column: number, amount: number): void {
    const index = row * WIDTH + column
    this.cells[index] = (this.cells[index] ?? 0) + amount
  }

  private addLatency(start: number, seconds: number): void {
    const { cells } = this
    const bucket = start + latencyBuckets.bucketOf(seconds)
    const sum = start + LATENCY_BUCKETS
    cells[bucket] = (cells[bucket] ?? 0) + 1
    cells[sum] = (cells[sum] ?? 0) + seconds
  }
}

const latencyBuckets = new ExponentialBuckets(LATENCY_SECONDS)
const LATENCY_BUCKETS = bucketCount(LATENCY_SECONDS)

const durationBounds: readonly number[] = trafficColumns.duration.boundsSeconds
const roundTripBounds: readonly number[] = workerColumns.tunnelRoundTrip.boundsSeconds

function addToHistogram(
  cells: Float64Array,
  start: number,
  bounds: readonly number[],
  seconds: number,
): void {
  const bucket = start + bucketOf(bounds, seconds)
  const sum = start + bounds.length + 1
  cells[bucket] = (cells[bucket] ?? 0) + 1
  cells[sum] = (cells[sum] ?? 0) + seconds
}

/** One row as numbers. */
export interface TrafficRow {
  readonly labels: TrafficLabels
  /** By {@link trafficLayout}. */
  readonly cells: Float64Array
}

/**
 * The used rows of a worker, for the main thread. `labels` by row number, as announced; a row whose announcement has
 * not arrived yet is left out, and appears with its full counts later.
 */
export function readTraffic(
  memory: SharedArrayBuffer,
  labels: readonly (TrafficLabels | undefined)[],
): readonly TrafficRow[] {
  const all = new Float64Array(memory)
  const rows: TrafficRow[] = []
  for (let row = 0; row < Math.min(labels.length, ROWS); row += 1) {
    const label = labels[row]
    const start = row * WIDTH
    const isUsed = row >= OTHER_ROWS || (all[start + OPENED] ?? 0) > 0
    if (label === undefined || !isUsed) continue
    const cells = new Float64Array(all.subarray(start, start + WIDTH))
    // Read last: otherwise a connection that opens and closes during the read would count as closed only.
    cells[OPENED] = all[start + OPENED] ?? 0
    rows.push({ labels: label, cells })
  }
  return rows
}

/** Numbers of one worker without a service pair. The worker's side; see {@link readWorker}. */
export class WorkerCounters {
  private readonly cells: Float64Array

  /** Zeroed memory for one worker. */
  static createMemory(): SharedArrayBuffer {
    return new SharedArrayBuffer(workerLayout.width * Float64Array.BYTES_PER_ELEMENT)
  }

  constructor(memory: SharedArrayBuffer) {
    this.cells = new Float64Array(memory)
  }

  /** Adds to a count. */
  inc(name: NameOf<WorkerColumns, 'count'>, by = 1): void {
    this.add(workerLayout.start[name], by)
  }

  /** Something was refused or broken off because a caller had reached its limit. */
  refused(limit: LimitName, by = 1): void {
    this.add(workerLayout.start.limitRefusals + offsetByLimit[limit], by)
  }

  /** A tunnel session ended. */
  sessionClosed(reason: SessionEnd): void {
    this.add(workerLayout.start.tunnelSessionsClosed + offsetBySessionEnd[reason], 1)
  }

  /** A peer answered a ping after `ms`. */
  roundTrip(ms: number): void {
    addToHistogram(this.cells, workerLayout.start.tunnelRoundTrip, roundTripBounds, ms / 1_000)
  }

  /** Sets a gauge. */
  set(name: NameOf<WorkerColumns, 'gauge'>, value: number): void {
    this.cells[workerLayout.start[name]] = value
  }

  private add(index: number, amount: number): void {
    this.cells[index] = (this.cells[index] ?? 0) + amount
  }
}

const offsetByLimit = workerLayout.offsets('limitRefusals')
const offsetBySessionEnd = workerLayout.offsets('tunnelSessionsClosed')

/** The current cells of a worker's {@link WorkerCounters}, by {@link workerLayout}, for the main thread. */
export function readWorker(memory: SharedArrayBuffer): Float64Array {
  return new Float64Array(new Float64Array(memory))
}
