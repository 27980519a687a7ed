/**
 * The fleet and the aggregator itself as Prometheus text. Series are bounded: the pairs with the most connections have
 * their own, the rest is one.
 */
import { Counter, Gauge, Registry } from 'prom-client'
import { hostmeshVersion } from '../lib/version.ts'
import type { GraphEdge, HostCounts } from '../model/fleet.ts'
import type { FleetReader } from './fleet-reader.ts'

/** Pairs with series of their own. */
const MAX_PAIRS = 200

/** What stands for all other pairs. */
const OTHER = 'other'

/** How a report was taken. */
export type ReportOutcome =
  | 'accepted'
  | 'conflict'
  | 'invalid'
  | 'rate_limited'
  | 'busy'
  | 'store_failed'

/** What happened at the aggregator, counted where it happens. */
export class AggregatorCounters {
  readonly registry: Registry = new Registry()
  readonly #reports = new Counter({
    name: 'hostmesh_aggregator_reports_total',
    help: 'Reports of hosts, by what became of them',
    labelNames: ['outcome'],
    registers: [this.registry],
  })
  readonly #requests = new Counter({
    name: 'hostmesh_aggregator_requests_total',
    help: 'Requests to the API, by status',
    labelNames: ['status'],
    registers: [this.registry],
  })

  report(outcome: ReportOutcome): void {
    this.#reports.inc({ outcome })
  }

  request(status: number): void {
    this.#requests.inc({ status: String(status) })
  }
}

/** What the metrics are made of. */
export interface FleetMetricsOptions {
  readonly reader: FleetReader
  readonly counters: AggregatorCounters
  readonly listeners: () => number
}

/** The text of all metrics. */
export async function renderMetrics(options: FleetMetricsOptions): Promise<string> {
  const { reader, counters, listeners } = options
  const [overview, graph] = await Promise.all([reader.overview({}), reader.graph({})])
  const registry = new Registry()
  const gauge = gaugesIn(registry)
  gauge('hostmesh_fleet_hosts', 'Hosts by state').all(
    'state',
    hostStates.map((state) => [state, overview.hosts[state]]),
  )
  gauge('hostmesh_fleet_services', 'Services that hosts run, or that were called').one(
    overview.services,
  )
  gauge('hostmesh_fleet_pairs', 'Pairs of services with connections in the last minute').one(
    overview.pairs,
  )
  pairGauges(registry, graph.edges)
  gauge('hostmesh_aggregator_store_bytes', 'Size of the database').one(overview.store.bytes)
  gauge('hostmesh_aggregator_store_max_bytes', 'Largest size of the database').one(
    overview.store.maxBytes,
  )
  gauge('hostmesh_aggregator_live_listeners', 'Readers of the live view').one(listeners())
  gauge('hostmesh_aggregator_build_info', '1; the label says what runs').all('version', [
    [hostmeshVersion, 1],
  ])
  const { user, system } = process.cpuUsage()
  gauge('hostmesh_aggregator_cpu_seconds', 'CPU time of the process since its start').one(
    (user + system) / 1e6,
  )
  gauge('hostmesh_aggregator_resident_memory_bytes', 'Resident memory of the process').one(
    process.memoryUsage.rss(),
  )
  return `${await registry.metrics()}${await counters.registry.metrics()}`
}

const hostStates = [
  'ready',
  'degraded',
  'starting',
  'draining',
  'silent',
  'conflicting',
] as const satisfies readonly (keyof HostCounts)[]

interface GaugeWriter {
  one(value: number): void
  all(label: string, values: readonly (readonly [string, number])[]): void
}

function gaugesIn(registry: Registry): (name: string, help: string) => GaugeWriter {
  return (name, help) => ({
    one: (value) => new Gauge({ name, help, registers: [registry] }).set(value),
    all: (label, values) => {
      const gauge = new Gauge({ name, help, labelNames: [label], registers: [registry] })
      for (const [text, value] of values) gauge.set({ [label]: text }, value)
    },
  })
}

function pairGauges(registry: Registry, edges: readonly GraphEdge[]): void {
  const labelNames = ['source_service', 'destination_service']
  const of = (name: string, help: string, more: readonly string[] = []): Gauge =>
    new Gauge({ name, help, labelNames: [...labelNames, ...more], registers: [registry] })
  const opened = of(
    'hostmesh_fleet_pair_opened_per_second',
    'Connections opened a second in the last minute, by service pair; the most frequent ones, then other',
  )
  const active = of('hostmesh_fleet_pair_active', 'Connections open, by service pair')
  const closed = of(
    'hostmesh_fleet_pair_closed',
    'Connections ended in the last minute, by service pair and whether they failed, were denied or ended in order',
    ['outcome'],
  )
  const bytes = of(
    'hostmesh_fleet_pair_bytes_per_second',
    'Bytes a second in the last minute, by service pair and direction',
    ['direction'],
  )
  const ordered = edges.toSorted((a, b) => b.traffic.openedPerSecond - a.traffic.openedPerSecond)
  for (const [index, { source, destination, traffic }] of ordered.entries()) {
    const pair =
      index < MAX_PAIRS
        ? { source_service: source, destination_service: destination }
        : { source_service: OTHER, destination_service: OTHER }
    opened.inc(pair, traffic.openedPerSecond)
    active.inc(pair, traffic.active)
    bytes.inc({ ...pair, direction: 'sent' }, traffic.sentBytesPerSecond)
    bytes.inc({ ...pair, direction: 'received' }, traffic.receivedBytesPerSecond)
    const ended = Object.values(traffic.closed).reduce((sum, count) => sum + count, 0)
    const failed = ended * (traffic.errorShare ?? 0)
    const denied = traffic.closed['DENY'] ?? 0
    closed.inc({ ...pair, outcome: 'failed' }, failed)
    closed.inc({ ...pair, outcome: 'denied' }, denied)
    closed.inc({ ...pair, outcome: 'in_order' }, Math.max(0, ended - failed - denied))
  }
}
