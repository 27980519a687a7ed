/**
 * The counts of connections under the names and labels that Istio gives them, for dashboards and tools that know only
 * these (https://istio.io/latest/docs/reference/config/metrics/). Copies of the columns of a service pair: as many
 * series again, so they are an option.
 *
 * What a host does not know has the value `unknown`, as in Istio. That includes `connection_security_policy`: a
 * connection between two services of one host has no TLS, and its counts are in the same row.
 */
import { type Reporter, type TrafficLabels, trafficLayout } from './counters.ts'
import type { Labels, Metric, Sample } from './metrics.ts'
import type { TrafficTotal } from './totals.ts'

const UNKNOWN = 'unknown'

/** Services have no namespaces here; certificates name this one. */
const NAMESPACE = 'default'

const SIDE_LABELS = [
  'workload',
  'workload_namespace',
  'app',
  'version',
  'canonical_service',
  'canonical_revision',
  'cluster',
  'principal',
] as const

/** The labels of every metric here. */
const LABELS = [
  'reporter',
  ...SIDE_LABELS.map((label) => `source_${label}`),
  ...SIDE_LABELS.map((label) => `destination_${label}`),
  'destination_service',
  'destination_service_name',
  'destination_service_namespace',
  'request_protocol',
  'response_flags',
  'connection_security_policy',
]

/** The metrics of a host in this datacenter, which is the `cluster` of its own side of a pair. */
export function istioMetrics(datacenter: string): readonly Metric[] {
  const counter = (
    name: string,
    help: string,
    samples: (row: TrafficTotal, labels: Labels) => readonly Sample[],
  ): Metric => ({
    group: 'Istio names',
    name,
    type: 'counter',
    help,
    labels: LABELS,
    collect: ({ traffic }) => eachPair(traffic, datacenter, samples),
  })
  const count =
    (column: 'opened' | 'sentBytes' | 'receivedBytes') =>
    ({ cells }: TrafficTotal, labels: Labels): readonly Sample[] => [
      { value: trafficLayout.total(cells, column), labels: { ...labels, response_flags: '-' } },
    ]
  return [
    counter('istio_tcp_connections_opened_total', 'Connections accepted', count('opened')),
    counter('istio_tcp_connections_closed_total', 'Connections ended, by flag', closed),
    counter('istio_tcp_sent_bytes_total', 'Bytes towards the destination', count('sentBytes')),
    counter('istio_tcp_received_bytes_total', 'Bytes from the destination', count('receivedBytes')),
  ]
}

function* eachPair(
  traffic: readonly TrafficTotal[],
  datacenter: string,
  samples: (row: TrafficTotal, labels: Labels) => readonly Sample[],
): Iterable<Sample> {
  for (const row of traffic) yield* samples(row, pairLabels(row.labels, datacenter))
}

function closed({ cells }: TrafficTotal, labels: Labels): readonly Sample[] {
  const { values, always } = trafficLayout.columns.closed
  const counts = trafficLayout.counts(cells, 'closed')
  return values.flatMap((flag, at) => {
    const value = counts[at] ?? 0
    if (value === 0 && flag !== always) return []
    return [{ value, labels: { ...labels, response_flags: flag } }]
  })
}

function pairLabels({ reporter, source, destination }: TrafficLabels, datacenter: string): Labels {
  return {
    reporter,
    ...sideLabels('source', source, reporter === 'source' ? datacenter : UNKNOWN),
    ...sideLabels('destination', destination, reporter === 'destination' ? datacenter : UNKNOWN),
    destination_service: destination,
    destination_service_name: destination,
    destination_service_namespace: NAMESPACE,
    request_protocol: 'tcp',
    connection_security_policy: UNKNOWN,
  }
}

function sideLabels(side: Reporter, service: string, cluster: string): Labels {
  const values: Readonly<Record<(typeof SIDE_LABELS)[number], string>> = {
    workload: service,
    workload_namespace: NAMESPACE,
    app: service,
    version: UNKNOWN,
    canonical_service: service,
    canonical_revision: UNKNOWN,
    cluster,
    principal: UNKNOWN,
  }
  return Object.fromEntries(SIDE_LABELS.map((label) => [`${side}_${label}`, values[label]]))
}
