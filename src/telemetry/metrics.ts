/**
 * All metrics that a host exports, and the sources of their values. The metrics of workers are derived from their
 * columns (`counters.ts`); the others are in the table here. docs/metrics.md is generated from both.
 *
 * Names are `hostmesh_<noun>_<unit>[_total]` in base units. Labels are bounded: service names (a fixed number of pairs,
 * then `other`), response flags, threads; never an address, a path or anything else that a peer chooses.
 */
import { readdir } from 'node:fs/promises'
import type { Column, Columns, Layout, MetricGroup, MetricHead } from './columns.ts'
import { type TrafficLabels, trafficLayout, workerLayout } from './counters.ts'
import type { HostReading } from './host-reading.ts'
import type { TrafficTotal } from './totals.ts'

/** The labels of one sample. */
export type Labels = Readonly<Record<string, string>>

/** One value of a metric. */
export interface Sample {
  readonly value: number
  readonly labels: Labels
  /** For the `_bucket`, `_sum` and `_count` of a histogram. */
  readonly metricName?: string
  /** More labels; an object shared by many samples is rendered once (prom-client's cache). */
  readonly sharedLabels?: Labels
}

/** All values read at the start of one scrape, so that its metrics are consistent. */
export interface Reading {
  readonly host: HostReading
  readonly traffic: readonly TrafficTotal[]
  /** Of all workers together, and of each. */
  readonly cells: Float64Array
  readonly cellsByWorker: ReadonlyMap<number, Float64Array>
  readonly version: string
}

/** One number, samples with labels, or undefined when there is no value. */
type Values = number | undefined | Iterable<Sample>

/** One metric. */
export interface Metric extends MetricHead {
  readonly type: 'counter' | 'gauge' | 'histogram'
  readonly labels: readonly string[]
  readonly collect: (reading: Reading) => Values | Promise<Values>
  /** Of a histogram: the counts that {@link collect} sums up for its series. */
  readonly distributions?: (reading: Reading) => Iterable<Distribution>
}

/** One row of a histogram, with all its buckets. */
export interface Distribution {
  readonly labels: Labels
  readonly column: HistogramColumn
  /** One for each bucket, not cumulative. */
  readonly counts: Float64Array
  /** Of all values, in seconds. */
  readonly sum: number
}

type HistogramColumn = Extract<Column, { readonly kind: 'histogram' | 'exponential' }>

const PAIR_LABELS = ['reporter', 'source_service', 'destination_service'] as const

const typeByKind = {
  count: 'counter',
  gauge: 'gauge',
  split: 'counter',
  histogram: 'histogram',
  exponential: 'histogram',
} as const

type MetricMaker = (
  name: string,
  help: string,
  collect: Metric['collect'],
  labels?: readonly string[],
) => Metric

/** Makes metrics of one section from values of the main thread. */
function metricsIn(group: MetricGroup): Readonly<Record<'gauge' | 'counter', MetricMaker>> {
  const of =
    (type: Metric['type']): MetricMaker =>
    (name, help, collect, labels = []) => ({ group, name, type, help, labels, collect })
  return { gauge: of('gauge'), counter: of('counter') }
}

const ofConnections = metricsIn('Connections')
const ofHost = metricsIn('Host')
const ofProcess = metricsIn('Process')

const hostMetrics: readonly Metric[] = [
  ofConnections.gauge(
    'hostmesh_tcp_connections_active',
    'Connections open now, by service pair',
    ({ traffic }) => traffic.map((row) => ({ value: row.active, labels: pairLabels(row.labels) })),
    PAIR_LABELS,
  ),
  ofConnections.counter(
    'hostmesh_tcp_connections_lost_total',
    'Connections that were open when their worker crashed',
    ({ traffic }) => traffic.map((row) => ({ value: row.lost, labels: pairLabels(row.labels) })),
    PAIR_LABELS,
  ),
  ofHost.gauge(
    'hostmesh_ready',
    '1 when this host does all that it is there for, else 0: a problem says why not',
    ({ host }) => Number(host.ready),
  ),
  ofHost.gauge(
    'hostmesh_serving',
    '1 when this host takes traffic, else 0 (starting or draining)',
    ({ host }) => Number(host.serving),
  ),
  ofHost.gauge(
    'hostmesh_problems',
    'Problems of this host as hostmesh status shows them, by code; a code that it does not have is absent',
    ({ host }) => [...host.problems].map(([code, value]) => ({ value, labels: { code } })),
    ['code'],
  ),
  ofHost.gauge(
    'hostmesh_snapshot_version',
    'Version of the snapshot that this host acts on; 0 before the first',
    ({ host }) => host.snapshotVersion,
  ),
  ofHost.gauge(
    'hostmesh_catalog_last_success_timestamp_seconds',
    'When the catalog last gave a good answer, seconds since the epoch; absent before the first',
    ({ host }) => secondsOf(host.catalogLastSuccessMs),
  ),
  ofHost.gauge(
    'hostmesh_catalog_age_seconds',
    'Since the last good answer of the catalog, of an earlier run if there was none in this; absent before the first',
    ({ host: { catalogLastSuccessMs: ms } }) =>
      secondsOf(ms === undefined ? ms : Math.max(0, Date.now() - ms)),
  ),
  ofHost.gauge(
    'hostmesh_consul_last_contact_seconds',
    'Since the Consul server that answers last heard from its leader; asked every 7 s; absent without Consul',
    ({ host }) => secondsOf(host.consulLastContactMs),
  ),
  ofHost.gauge(
    'hostmesh_state_remembered',
    'Services, policies and certificates that the host acts on and that nothing has confirmed since its start',
    ({ host }) =>
      host.state.parts.map(({ part, remembered }) => ({ value: remembered, labels: { part } })),
    ['part'],
  ),
  ofHost.gauge(
    'hostmesh_state_problems',
    'Reasons why something is not kept for a restart, such as a full disk; 0 when all is',
    ({ host }) => host.state.problems.length,
  ),
  ofHost.gauge(
    'hostmesh_certificate_expiry_timestamp_seconds',
    'When the certificate in use for a local service ends, seconds since the epoch',
    ({ host }) =>
      host.certificates.map(({ service, notAfterMs }) => ({
        value: notAfterMs / 1_000,
        labels: { service },
      })),
    ['service'],
  ),
  ofHost.counter(
    'hostmesh_capture_repairs_total',
    'How often another program had changed the capture rules and they were applied again',
    ({ host }) => host.captureRepairs,
  ),
  ofHost.gauge(
    'hostmesh_capture_rules_in_sync',
    '1 when the capture rules in the kernel are the wanted ones, else 0; absent while capture is off',
    ({ host: { captureInSync } }) =>
      captureInSync === undefined ? captureInSync : Number(captureInSync),
  ),
  ofHost.counter(
    'hostmesh_dns_queries_total',
    'DNS questions to the resolver, by what became of them; absent while it is off',
    ({ host }) =>
      Object.entries(host.dnsQueries ?? {}).map(([outcome, value]) => ({
        value,
        labels: { outcome: snakeCase(outcome) },
      })),
    ['outcome'],
  ),
  ofHost.gauge(
    'hostmesh_watched_services',
    'Services that this host follows in the catalog',
    ({ host }) => host.watchedServices,
  ),
  ofHost.counter(
    'hostmesh_unknown_callers_refused_total',
    'Connections of local processes without identity that the capture rules reset, by what was dialed: a virtual address or an instance; starts over when the rules are replaced',
    ({ host }) =>
      Object.entries(host.unknownCallersRefused ?? {}).map(([destination, value]) => ({
        value,
        labels: { destination },
      })),
    ['destination'],
  ),
  ofHost.counter(
    'hostmesh_capture_permitted_total',
    'Connections that the capture rules let out without the mesh because their service is named in capture.permissive; starts over when the rules are replaced',
    ({ host }) => host.captureCounts?.permitted,
  ),
  ofHost.counter(
    'hostmesh_capture_waited_total',
    'First segments of processes that had just started, dropped until it was known who they are; the kernel sends them again; by nftables only',
    ({ host }) => host.captureCounts?.waited,
  ),
  ofHost.counter(
    'hostmesh_capture_full_total',
    'Connections refused because more were open to instances than the sets of the kernel hold; by nftables only',
    ({ host }) => host.captureCounts?.full,
  ),
  ofHost.counter(
    'hostmesh_capture_guarded_total',
    'Packets that the guard refused: they would have left without the mesh',
    ({ host }) => host.captureCounts?.guarded,
  ),
  ofHost.counter(
    'hostmesh_plain_inbound_total',
    'Connections from other hosts that reached the port of a service of this host around the mesh, refused ones too (capture.plainInbound); by nftables only; starts over when the rules are replaced',
    ({ host }) => host.plainInbound,
  ),
  ofHost.gauge(
    'hostmesh_capture_spared',
    'Connections that were open before capture came and are spared',
    ({ host }) => host.captureCounts?.spared,
  ),
  ofHost.gauge(
    'hostmesh_report_records_waiting',
    'Records that an aggregator has not accepted yet; absent while this host reports to none',
    ({ host }) =>
      host.reports.map(({ aggregator, waiting }) => ({ value: waiting, labels: { aggregator } })),
    ['aggregator'],
  ),
  ofHost.counter(
    'hostmesh_report_spans_dropped_total',
    'Spans of 10 s whose counts an aggregator will never have: it refused them, or there was no room to keep them',
    ({ host }) =>
      host.reports.map(({ aggregator, dropped }) => ({ value: dropped, labels: { aggregator } })),
    ['aggregator'],
  ),
  ofHost.gauge(
    'hostmesh_report_last_success_timestamp_seconds',
    'When an aggregator last took a report, seconds since the epoch; absent before the first',
    ({ host }) =>
      host.reports.flatMap(({ aggregator, lastSuccessMs }) =>
        lastSuccessMs === undefined
          ? []
          : [{ value: lastSuccessMs / 1_000, labels: { aggregator } }],
      ),
    ['aggregator'],
  ),
  ofHost.counter(
    'hostmesh_otlp_requests_total',
    'Requests to the OTLP endpoint, by outcome; absent while metrics are not exported there',
    ({ host }) =>
      Object.entries(host.otlp?.requests ?? {}).map(([outcome, value]) => ({
        value,
        labels: { outcome },
      })),
    ['outcome'],
  ),
  ofHost.counter(
    'hostmesh_otlp_rejected_points_total',
    'Values that the OTLP endpoint did not take from requests that it accepted; absent while metrics are not exported there',
    ({ host }) => host.otlp?.rejectedPoints,
  ),
  ofHost.gauge(
    'hostmesh_workers',
    'Data-plane workers that are running',
    ({ host }) => host.workersRunning,
  ),
  ofHost.counter(
    'hostmesh_worker_restarts_total',
    'Data-plane workers replaced after a crash',
    ({ host }) => host.workerRestarts,
  ),
  ofHost.counter(
    'hostmesh_log_lines_lost_total',
    'Lines of the log that could not be written: a full disk, or a reader that is too slow or gone',
    ({ host, cells }) => host.logLinesLost + workerLayout.total(cells, 'logLinesLost'),
  ),
  ofHost.counter(
    'hostmesh_access_log_lines_lost_total',
    'Lines of the access log that were not written. `limit`: more than accessLog.linesPerSecond; `slow`: its reader or its disk is too slow or gone; `failed`: the file could not be written',
    ({ host, cells }) => [
      { value: workerLayout.total(cells, 'accessLinesLimited'), labels: { reason: 'limit' } },
      { value: workerLayout.total(cells, 'accessLinesLost'), labels: { reason: 'slow' } },
      { value: host.accessLinesLost, labels: { reason: 'failed' } },
    ],
    ['reason'],
  ),
  ofHost.gauge(
    'hostmesh_event_loop_lag_seconds',
    'Longest delay of the event loop in the last 15 s; main, or the number of a data-plane worker',
    ({ host, cellsByWorker }) => [
      { value: host.eventLoopLagMs / 1_000, labels: { thread: 'main' } },
      ...[...cellsByWorker].map(([worker, cells]) => ({
        value: workerLayout.total(cells, 'eventLoopDelayMs') / 1_000,
        labels: { thread: String(worker) },
      })),
    ],
    ['thread'],
  ),
  ofHost.gauge(
    'hostmesh_build_info',
    '1; the labels say what runs',
    ({ version }) => [{ value: 1, labels: { version, node_version: process.version } }],
    ['version', 'node_version'],
  ),
  ofProcess.counter(
    'hostmesh_process_cpu_seconds_total',
    'CPU time of the whole process, user and system',
    () => {
      const { user, system } = process.cpuUsage()
      return (user + system) / 1e6
    },
  ),
  ofProcess.gauge(
    'hostmesh_process_resident_memory_bytes',
    'Resident memory of the whole process',
    () => process.memoryUsage.rss(),
  ),
  ofProcess.gauge(
    'hostmesh_process_heap_used_bytes',
    "JavaScript heap in use in the main thread; workers' heaps are not in it",
    () => process.memoryUsage().heapUsed,
  ),
  ofProcess.gauge('hostmesh_process_open_fds', 'Open file descriptors of the process', async () => {
    const names = await readdir('/proc/self/fd').catch(() => undefined)
    // Without the descriptor of the directory itself, which is open while it is read.
    return names === undefined ? undefined : names.length - 1
  }),
  ofProcess.gauge(
    'hostmesh_process_start_time_seconds',
    'When the process started, seconds since the epoch',
    () => performance.timeOrigin / 1_000,
  ),
]

/** All metrics, in the order of docs/metrics.md. */
export const metrics: readonly Metric[] = [
  ...metricsOf(trafficLayout, PAIR_LABELS, ({ traffic }, render) => eachPair(traffic, render)),
  ...metricsOf(workerLayout, [], ({ cells, cellsByWorker }, render, column) =>
    column.kind === 'gauge' && column.by === 'thread'
      ? [...cellsByWorker].flatMap(([worker, own]) => render(own, { thread: String(worker) }))
      : render(cells, {}),
  ),
  ...hostMetrics,
]

/** The samples, or the distribution, of one column of a row with these labels. */
type Render<Item> = (cells: Float64Array, labels: Labels) => readonly Item[]

/** Finds the rows of a reading. */
type ReadRows = <Item>(reading: Reading, render: Render<Item>, column: Column) => Iterable<Item>

/** One pair after the other, as the samples are asked for: those of all pairs at once would block for long. */
function* eachPair<Item>(traffic: readonly TrafficTotal[], render: Render<Item>): Iterable<Item> {
  for (const { labels, cells } of traffic) yield* render(cells, pairLabels(labels))
}

/** The metrics of the columns of one kind of row; `read` finds the rows. */
function metricsOf<All extends Columns>(
  layout: Layout<All>,
  rowLabels: readonly string[],
  read: ReadRows,
): readonly Metric[] {
  return Object.entries(layout.columns).flatMap(([name, column]) => {
    const { metric } = column
    if (metric === undefined) return []
    const ownLabels = labelsOf(column)
    return {
      ...metric,
      type: typeByKind[column.kind],
      labels: [...rowLabels, ...ownLabels],
      collect: (reading) =>
        read(reading, (cells, labels) => samplesOf(layout, name, cells, labels), column),
      ...(isHistogram(column) && {
        distributions: (reading) =>
          read(
            reading,
            (cells, labels) => {
              const [counts, sum] = [layout.counts(cells, name), layout.seconds(cells, name)]
              return [{ labels, column, counts, sum }]
            },
            column,
          ),
      }),
    } satisfies Metric
  })
}

function isHistogram(column: Column): column is HistogramColumn {
  return column.kind === 'histogram' || column.kind === 'exponential'
}

function labelsOf(column: Column): readonly string[] {
  if (column.kind === 'split') return [column.label]
  return column.kind === 'gauge' && column.by !== undefined ? [column.by] : []
}

/** The samples of one column of one row. */
function samplesOf<All extends Columns>(
  layout: Layout<All>,
  name: keyof All & string,
  cells: Float64Array,
  labels: Labels,
): readonly Sample[] {
  const column: Column | undefined = layout.columns[name]
  if (column?.kind === 'split') {
    const { label, values, always } = column
    const counts = layout.counts(cells, name)
    return values.flatMap((text, index) => {
      const value = counts[index] ?? 0
      if (value === 0 && always !== undefined && text !== always) return []
      return [{ value, labels: { ...labels, [label]: text } }]
    })
  }
  if (column !== undefined && isHistogram(column))
    return histogram(layout, name, column, cells, labels)
  return [{ value: layout.total(cells, name), labels }]
}

function histogram<All extends Columns>(
  layout: Layout<All>,
  name: keyof All & string,
  column: HistogramColumn,
  cells: Float64Array,
  sharedLabels: Labels,
): readonly Sample[] {
  const metricName = `${column.metric.name}_bucket`
  const { boundsSeconds, bucketsPerBound } = exportedBounds(column)
  const counts = layout.counts(cells, name)
  const samples: Sample[] = []
  let cumulative = 0
  for (let bound = 0; bound <= boundsSeconds.length; bound += 1) {
    const end = (bound + 1) * bucketsPerBound
    for (let at = end - bucketsPerBound; at < end; at += 1) cumulative += counts[at] ?? 0
    const le = bound < boundsSeconds.length ? String(boundsSeconds[bound]) : '+Inf'
    samples.push({ metricName, value: cumulative, labels: { le }, sharedLabels })
  }
  const single = (suffix: string, value: number): Sample => ({
    metricName: `${column.metric.name}_${suffix}`,
    value,
    labels: {},
    sharedLabels,
  })
  samples.push(single('sum', layout.seconds(cells, name)), single('count', cumulative))
  return samples
}

/**
 * The finite bounds of a histogram's series. The buckets of an exponential one have one bound for each doubling, to
 * limit the number of series; its last bucket has all greater values, so its upper bound is none.
 */
function exportedBounds(column: HistogramColumn): {
  readonly boundsSeconds: readonly number[]
  readonly bucketsPerBound: number
} {
  if (column.kind === 'histogram')
    return { boundsSeconds: column.boundsSeconds, bucketsPerBound: 1 }
  const { scale, fromPower, toPower } = column.rangeSeconds
  const boundsSeconds = Array.from(
    { length: toPower - fromPower - 1 },
    (_, at) => 2 ** (fromPower + at + 1),
  )
  return { boundsSeconds, bucketsPerBound: 2 ** scale }
}

function pairLabels({ reporter, source, destination }: TrafficLabels): Labels {
  return { reporter, source_service: source, destination_service: destination }
}

function secondsOf(ms: number | undefined): number | undefined {
  return ms === undefined ? undefined : ms / 1_000
}

function snakeCase(name: string): string {
  return name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`)
}
