/**
 * The Prometheus text of this host: joins the metric table with the values of the moment.
 *
 * The registry holds collectors, not values: nothing is kept twice, and the data plane never calls in
 * here. A slice of samples is rendered per turn of the event loop, so that a scrape of thousands of
 * service pairs does not block the main thread in one piece; scrapes that arrive meanwhile share the
 * answer.
 */
import { readdir } from 'node:fs/promises'
import { type Metric, Registry } from 'prom-client'
import {
  type BucketCounts,
  durationBucketsSeconds,
  roundTripBucketsSeconds,
  type TrafficLabels,
  trafficFlags,
} from './counters.ts'
import { type MetricDefinition, type MetricKey, metrics } from './metrics.ts'
import type { TrafficTotal, WorkerTotals } from './totals.ts'

/** What the control plane knows at the moment of a scrape. */
export interface HostReading {
  readonly ready: boolean
  readonly serving: boolean
  /** How many problems of each code there are. */
  readonly problems: ReadonlyMap<string, number>
  readonly snapshotVersion: number
  /** Wall clock; undefined before the first good answer. */
  readonly catalogLastSuccessMs: number | undefined
  /** What is only remembered, by part, and what is wrong with the files it is kept in. */
  readonly state: {
    readonly parts: readonly { readonly part: string; readonly remembered: number }[]
    readonly problems: readonly string[]
  }
  /** Undefined without Consul. */
  readonly consulLastContactMs: number | undefined
  /** Undefined while capture is off. */
  readonly captureInSync: boolean | undefined
  /** By outcome; undefined while the resolver is off. */
  readonly dnsQueries: Readonly<Record<string, number>> | undefined
  /** Services that are followed in the catalog. */
  readonly watchedServices: number
  /** From the kernel's counters; undefined while capture is off. */
  readonly unknownCallersRefused?:
    | { readonly virtual: number; readonly instance: number }
    | undefined
  /** The same of what capture lets pass or holds back; undefined while it is off, and each where nobody counts it. */
  readonly captureCounts?:
    | {
        readonly permitted: number
        readonly waited: number | undefined
        readonly full: number | undefined
        readonly guarded: number | undefined
        readonly spared: number | undefined
      }
    | undefined
  /** Connections that came around the mesh; undefined where nobody counts them. */
  readonly plainInbound?: number | undefined
  /** Undefined while capture is off. */
  readonly captureRepairs?: number | undefined
  readonly certificates: readonly { readonly service: string; readonly notAfterMs: number }[]
  readonly workersRunning: number
  readonly workerRestarts: number
  /** Of the main thread; the workers' are in their counters. */
  readonly logLinesLost: number
  /** Longest delay of the main thread's event loop, from watchEventLoopLag. */
  readonly eventLoopLagMs: number
}

/** Where the values come from. */
export interface MetricsSource {
  readonly version: string
  readonly totals: WorkerTotals
  /** Called once per scrape; must be quick and must not throw. */
  host(): HostReading
}

/** Renders metrics. */
export interface Exposition {
  /** The content type to answer with. */
  readonly contentType: string
  /** The text of all metrics, as of now or of a scrape that is being answered now. */
  metrics(): Promise<string>
}

type Labels = Readonly<Record<string, string>>

interface Sample {
  readonly value: number
  readonly labels: Labels
  /** For the `_bucket`, `_sum` and `_count` of a histogram. */
  readonly metricName?: string
  /** More labels; one object for many samples is written out once (prom-client's cache). */
  readonly sharedLabels?: Labels
}

/** Rendered without a pause: about 3 ms. */
const SLICE_SAMPLES = 1_000

/** Everything read at the start of one scrape, so that its metrics agree with one another. */
interface Reading {
  readonly host: HostReading
  readonly traffic: readonly TrafficTotal[]
  readonly totals: WorkerTotals
  readonly counters: ReturnType<WorkerTotals['counters']>
  readonly gauges: ReturnType<WorkerTotals['gauges']>
  readonly version: string
}

/** Builds the exposition of one daemon. */
export function createExposition(source: MetricsSource): Exposition {
  const registry = new Registry()
  let slice: readonly Sample[] = []
  for (const key of metricKeys()) register(registry, metrics[key], () => slice)

  const render = async (): Promise<string> => {
    const reading = read(source)
    const parts: string[] = []
    for (const key of metricKeys()) {
      const samples = await collectors[key](reading)
      for (let from = 0; from === 0 || from < samples.length; from += SLICE_SAMPLES) {
        slice = samples.slice(from, from + SLICE_SAMPLES)
        const text = await registry.getSingleMetricAsString(metrics[key].name)
        parts.push(from === 0 ? text : withoutHead(text))
        await new Promise((resolve) => setImmediate(resolve))
      }
    }
    return `${parts.join('\n')}\n`
  }

  let inFlight: Promise<string> | undefined
  return {
    contentType: registry.contentType,
    metrics: () => {
      inFlight ??= render().finally(() => {
        inFlight = undefined
      })
      return inFlight
    },
  }
}

function metricKeys(): readonly MetricKey[] {
  return Object.keys(metrics).filter((key): key is MetricKey => Object.hasOwn(metrics, key))
}

function read(source: MetricsSource): Reading {
  return {
    host: source.host(),
    traffic: source.totals.traffic(),
    totals: source.totals,
    counters: source.totals.counters(),
    gauges: source.totals.gauges(),
    version: source.version,
  }
}

function register(
  registry: Registry,
  definition: MetricDefinition,
  collect: () => readonly Sample[],
): void {
  const collector = {
    name: definition.name,
    help: definition.help,
    type: definition.type,
    get: async () => ({ ...definition, values: collect() }),
  }
  // The registry only ever calls get() (prom-client 15.1.3, lib/registry.js); its types ask for one of
  // its own classes, which would keep a second copy of every value.
  // oxlint-disable-next-line typescript/no-unsafe-type-assertion -- see above
  registry.registerMetric(collector as unknown as Metric)
}

/** The samples of a rendered metric, without its HELP and TYPE lines. */
function withoutHead(text: string): string {
  return text.split('\n').slice(2).join('\n')
}

const collectors: Record<
  MetricKey,
  (reading: Reading) => readonly Sample[] | Promise<readonly Sample[]>
> = {
  tcpOpened: (reading) => perPair(reading, (row) => row.opened),
  tcpClosed: (reading) => reading.traffic.flatMap(closedSamples),
  tcpActive: (reading) => perPair(reading, (row) => row.active),
  tcpLost: (reading) => perPair(reading, (row) => row.lost),
  tcpConnectFailures: (reading) => perPair(reading, (row) => row.connectFailures),
  tcpSentBytes: (reading) => perPair(reading, (row) => row.sentBytes),
  tcpReceivedBytes: (reading) => perPair(reading, (row) => row.receivedBytes),
  tcpDuration: (reading) =>
    reading.traffic.flatMap((row) =>
      histogram(metrics.tcpDuration.name, pairLabels(row.labels), durationBucketsSeconds, {
        buckets: row.durationBuckets,
        seconds: row.durationSeconds,
      }),
    ),
  acceptedConnections: (reading) => single(reading.counters.acceptedConnections),
  captureRefused: (reading) => single(reading.counters.captureRefused),
  overflow: (reading) => single(reading.counters.overflow),
  limitRefusals: ({ counters }) => [
    { value: counters.limitBarred, labels: { limit: 'barred' } },
    { value: counters.limitDescriptors, labels: { limit: 'descriptors' } },
    { value: counters.limitHandshakes, labels: { limit: 'handshakes' } },
    { value: counters.limitMemory, labels: { limit: 'memory' } },
    { value: counters.limitStreams, labels: { limit: 'streams' } },
    { value: counters.limitTunnels, labels: { limit: 'tunnels' } },
  ],
  heldBytes: ({ gauges }) => single(sum(gauges.map((worker) => worker.gauges.heldBytes))),
  connectionDescriptors: ({ gauges }) =>
    single(sum(gauges.map((worker) => worker.gauges.connectionDescriptors))),
  barredCallers: ({ gauges }) => single(sum(gauges.map((worker) => worker.gauges.barredCallers))),
  outlierEjections: (reading) => single(reading.counters.outlierEjections),
  ejectedEndpoints: ({ gauges }) =>
    gauges.map((worker) => ({
      value: worker.gauges.ejectedEndpoints,
      labels: { thread: String(worker.worker) },
    })),
  protocolErrors: (reading) => single(reading.counters.protocolErrors),
  tunnelHandshakes: (reading) => single(reading.counters.tunnelHandshakes),
  tunnelHandshakeFailures: (reading) => single(reading.counters.tunnelHandshakeFailures),
  tunnelSessionsActive: (reading) =>
    single(sum(reading.gauges.map(({ gauges }) => gauges.tunnelSessionsActive))),
  tunnelSessionsClosed: ({ counters }) => [
    { value: counters.sessionsDrained, labels: { reason: 'drained' } },
    { value: counters.sessionsExpired, labels: { reason: 'expired' } },
    { value: counters.sessionsLost, labels: { reason: 'lost' } },
    { value: counters.sessionsRevoked, labels: { reason: 'revoked' } },
    { value: counters.sessionsSilent, labels: { reason: 'silent' } },
    { value: counters.sessionsUntrusted, labels: { reason: 'untrusted' } },
    { value: counters.sessionsViolated, labels: { reason: 'violation' } },
  ],
  tunnelStreamsActive: (reading) =>
    single(sum(reading.gauges.map(({ gauges }) => gauges.tunnelStreamsActive))),
  tunnelStreamsOpened: (reading) => single(reading.counters.tunnelStreamsOpened),
  tunnelStreamsReset: (reading) => single(reading.counters.tunnelStreamsReset),
  tunnelRoundTrip: (reading) =>
    histogram(
      metrics.tunnelRoundTrip.name,
      {},
      roundTripBucketsSeconds,
      reading.totals.roundTrips(),
    ),
  certificateExpiry: ({ host }) =>
    host.certificates.map(({ service, notAfterMs }) => ({
      value: notAfterMs / 1_000,
      labels: { service },
    })),
  catalogLastSuccess: ({ host }) =>
    host.catalogLastSuccessMs === undefined ? [] : single(host.catalogLastSuccessMs / 1_000),
  catalogAge: ({ host }) =>
    host.catalogLastSuccessMs === undefined
      ? []
      : single(Math.max(0, Date.now() - host.catalogLastSuccessMs) / 1_000),
  stateRemembered: ({ host }) =>
    host.state.parts.map(({ part, remembered }) => ({ value: remembered, labels: { part } })),
  stateProblems: ({ host }) => single(host.state.problems.length),
  consulLastContact: ({ host }) =>
    host.consulLastContactMs === undefined ? [] : single(host.consulLastContactMs / 1_000),
  snapshotVersion: ({ host }) => single(host.snapshotVersion),
  captureRepairs: ({ host }) =>
    host.captureRepairs === undefined ? [] : single(host.captureRepairs),
  captureRulesInSync: ({ host }) =>
    host.captureInSync === undefined ? [] : single(Number(host.captureInSync)),
  dnsQueries: ({ host }) =>
    Object.entries(host.dnsQueries ?? {}).map(([outcome, value]) => ({
      value,
      labels: { outcome: snakeCase(outcome) },
    })),
  watchedServices: ({ host }) => single(host.watchedServices),
  unknownCallersRefused: ({ host }) =>
    Object.entries(host.unknownCallersRefused ?? {}).map(([destination, value]) => ({
      value,
      labels: { destination },
    })),
  capturePermitted: ({ host }) => optional(host.captureCounts?.permitted),
  captureWaited: ({ host }) => optional(host.captureCounts?.waited),
  captureFull: ({ host }) => optional(host.captureCounts?.full),
  captureGuarded: ({ host }) => optional(host.captureCounts?.guarded),
  plainInbound: ({ host }) => optional(host.plainInbound),
  captureSpared: ({ host }) => optional(host.captureCounts?.spared),
  ready: ({ host }) => single(Number(host.ready)),
  serving: ({ host }) => single(Number(host.serving)),
  problems: ({ host }) => [...host.problems].map(([code, value]) => ({ value, labels: { code } })),
  workers: ({ host }) => single(host.workersRunning),
  workerRestarts: ({ host }) => single(host.workerRestarts),
  logLinesLost: ({ host, counters }) => single(host.logLinesLost + counters.logLinesLost),
  eventLoopLag: ({ host, gauges }) => [
    { value: host.eventLoopLagMs / 1_000, labels: { thread: 'main' } },
    ...gauges.map((worker) => ({
      value: worker.gauges.eventLoopDelayMs / 1_000,
      labels: { thread: String(worker.worker) },
    })),
  ],
  buildInfo: ({ version }) => [{ value: 1, labels: { version, node_version: process.version } }],
  processCpu: () => {
    const { user, system } = process.cpuUsage()
    return single((user + system) / 1e6)
  },
  processResidentMemory: () => single(process.memoryUsage.rss()),
  processHeap: () => single(process.memoryUsage().heapUsed),
  processOpenFiles: async () => {
    const names = await readdir('/proc/self/fd').catch(() => undefined)
    // One more than are open otherwise: the directory itself, while it is read.
    return names === undefined ? [] : single(names.length - 1)
  },
  processStart: () => single(performance.timeOrigin / 1_000),
}

function snakeCase(name: string): string {
  return name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`)
}

function optional(value: number | undefined): readonly Sample[] {
  return value === undefined ? [] : single(value)
}

function single(value: number): readonly Sample[] {
  return [{ value, labels: {} }]
}

function sum(values: readonly number[]): number {
  return values.reduce((total, value) => total + value, 0)
}

function pairLabels(labels: TrafficLabels): Labels {
  return {
    reporter: labels.reporter,
    source_service: labels.source,
    destination_service: labels.destination,
  }
}

function perPair(reading: Reading, valueOf: (row: TrafficTotal) => number): readonly Sample[] {
  return reading.traffic.map((row) => ({ value: valueOf(row), labels: pairLabels(row.labels) }))
}

/** The flag `-` always, the others once they have happened: a pair has 13 endings and sees two or three. */
function closedSamples(row: TrafficTotal): readonly Sample[] {
  const labels = pairLabels(row.labels)
  return trafficFlags.flatMap((flag, index) => {
    const value = row.closedByFlag[index] ?? 0
    if (value === 0 && flag !== '-') return []
    return [{ value, labels: { ...labels, response_flags: flag } }]
  })
}

function histogram(
  name: string,
  labels: Labels,
  bounds: readonly number[],
  counts: BucketCounts,
): readonly Sample[] {
  const samples: Sample[] = []
  let cumulative = 0
  counts.buckets.forEach((count, index) => {
    cumulative += count
    const le = index < bounds.length ? String(bounds[index]) : '+Inf'
    samples.push({
      metricName: `${name}_bucket`,
      value: cumulative,
      labels: { le },
      sharedLabels: labels,
    })
  })
  samples.push({
    metricName: `${name}_sum`,
    value: counts.seconds,
    labels: {},
    sharedLabels: labels,
  })
  samples.push({ metricName: `${name}_count`, value: cumulative, labels: {}, sharedLabels: labels })
  return samples
}
