/**
 * What the Grafana dashboards show: the one table from which `scripts/dashboards.ts` makes them. Pairs are those of the
 * recording rules (`monitoring/prometheus/recording-rules.yaml`), which must be loaded.
 */

/** One query of a panel. `legend` is in Grafana's notation. */
export interface Query {
  readonly expression: string
  readonly legend: string
}

/** One panel. */
export interface Panel {
  readonly kind: 'timeseries' | 'stat' | 'table'
  readonly title: string
  readonly description: string
  /** One of Grafana's. */
  readonly unit: 'none' | 'cps' | 'percentunit' | 's' | 'Bps' | 'bytes' | 'dateTimeFromNow'
  readonly queries: readonly Query[]
}

/** One file of `monitoring/grafana`. */
export interface Dashboard {
  readonly name: 'mesh' | 'service' | 'host'
  readonly title: string
  readonly description: string
  readonly variables: readonly {
    readonly name: string
    readonly label: string
    readonly query: string
    readonly isMulti: boolean
  }[]
  readonly rows: readonly { readonly title: string; readonly panels: readonly Panel[] }[]
}

const PAIR = '{{source_service}} → {{destination_service}}'
const FLAG = '{{response_flags}}'
const HOST = '{{instance}}'

type Rest = readonly [
  unit: Panel['unit'],
  ...queries: (readonly [expression: string, legend: string])[],
]

function panel(kind: Panel['kind']) {
  return (title: string, description: string, ...[unit, ...queries]: Rest): Panel => ({
    kind,
    title,
    description,
    unit,
    queries: queries.map(([expression, legend]) => ({ expression, legend })),
  })
}

const series = panel('timeseries')
const stat = panel('stat')
const table = panel('table')

const mesh: Dashboard = {
  name: 'mesh',
  title: 'hostmesh / Mesh',
  description: 'All hosts and service pairs',
  variables: [],
  rows: [
    {
      title: 'Now',
      panels: [
        stat('Hosts', 'Hosts that answer scrapes', 'none', ['count(hostmesh_ready)', 'hosts']),
        stat('Not ready', 'Hosts that do not do all that they are there for', 'none', [
          'count(hostmesh_ready == 0) or vector(0)',
          'hosts',
        ]),
        stat('Connections', 'Opened per second', 'cps', [
          'sum(pair:hostmesh_tcp_connections_opened:rate5m)',
          'opened',
        ]),
        stat(
          'Failed',
          'Share of connections that the mesh or the called side failed',
          'percentunit',
          [
            'sum(pair:hostmesh_tcp_connections_failed:rate5m) / sum(pair:hostmesh_tcp_connections_closed:rate5m)',
            'failed',
          ],
        ),
        stat('Open', 'Connections open now', 'none', [
          'sum(hostmesh_tcp_connections_active{reporter="source"})',
          'open',
        ]),
        stat('First certificate to end', 'When the next certificate ends', 'dateTimeFromNow', [
          'min(hostmesh_certificate_expiry_timestamp_seconds) * 1000',
          'certificate',
        ]),
      ],
    },
    {
      title: 'Traffic',
      panels: [
        series('Connections by pair', 'The 20 busiest pairs', 'cps', [
          'topk(20, pair:hostmesh_tcp_connections_opened:rate5m)',
          PAIR,
        ]),
        series('Bytes by pair', 'Both directions, the 20 busiest pairs', 'Bps', [
          'topk(20, pair:hostmesh_tcp_sent_bytes:rate5m + pair:hostmesh_tcp_received_bytes:rate5m)',
          PAIR,
        ]),
      ],
    },
    {
      title: 'Failures',
      panels: [
        series('Endings that are not in order', 'By response flag, at the source', 'cps', [
          'sum by (response_flags) (rate(hostmesh_tcp_connections_closed_total{reporter="source", response_flags!="-"}[$__rate_interval]))',
          FLAG,
        ]),
        series('Failed share by pair', 'The 20 worst pairs', 'percentunit', [
          'topk(20, pair:hostmesh_tcp_connections_failed:ratio_rate5m > 0)',
          PAIR,
        ]),
        series('Denied', 'Connections denied by intentions, by pair', 'cps', [
          'sum by (source_service, destination_service) (rate(hostmesh_tcp_connections_closed_total{response_flags="DENY"}[$__rate_interval])) > 0',
          PAIR,
        ]),
      ],
    },
    {
      title: 'Latency',
      panels: [
        series('Time to connect, p99', 'The 20 slowest pairs', 's', [
          'topk(20, pair:hostmesh_tcp_connect_duration_seconds:p99_5m)',
          PAIR,
        ]),
        series('Time to the first byte, p99', 'The 20 slowest pairs', 's', [
          'topk(20, pair:hostmesh_tcp_first_byte_seconds:p99_5m)',
          PAIR,
        ]),
      ],
    },
    {
      title: 'Hosts',
      panels: [
        table('Problems', 'As hostmesh status shows them', 'none', [
          'sum by (instance, code) (hostmesh_problems) > 0',
          '',
        ]),
        table('Versions', 'Hosts by version', 'none', [
          'count by (version) (hostmesh_build_info)',
          '',
        ]),
      ],
    },
  ],
}

/** Queries of the pairs in which the chosen service is the called one, or the caller. */
const called = 'destination_service="$service"'
const calling = 'source_service="$service"'

const service: Dashboard = {
  name: 'service',
  title: 'hostmesh / Service',
  description: 'One service: its callers, and what it calls',
  variables: [
    {
      name: 'service',
      label: 'Service',
      query: 'label_values(hostmesh_tcp_connections_opened_total, destination_service)',
      isMulti: false,
    },
  ],
  rows: [
    {
      title: 'Callers',
      panels: [
        series('Connections', 'Opened per second, by caller', 'cps', [
          `pair:hostmesh_tcp_connections_opened:rate5m{${called}}`,
          '{{source_service}}',
        ]),
        series('Failed share', 'By caller', 'percentunit', [
          `pair:hostmesh_tcp_connections_failed:ratio_rate5m{${called}}`,
          '{{source_service}}',
        ]),
        series('Endings that are not in order', 'By response flag', 'cps', [
          `sum by (response_flags) (rate(hostmesh_tcp_connections_closed_total{reporter="source", response_flags!="-", ${called}}[$__rate_interval]))`,
          FLAG,
        ]),
      ],
    },
    {
      title: 'Latency for callers',
      panels: [
        series(
          'Time to connect',
          'Of all callers',
          's',
          ...[0.5, 0.9, 0.99].map((quantile): [string, string] => [
            `histogram_quantile(${quantile}, sum by (le) (rate(hostmesh_tcp_connect_duration_seconds_bucket{reporter="source", ${called}}[$__rate_interval])))`,
            `p${quantile * 100}`,
          ]),
        ),
        series(
          'Time to the first byte',
          'Of all callers; services that answer first are not in it',
          's',
          ...[0.5, 0.9, 0.99].map((quantile): [string, string] => [
            `histogram_quantile(${quantile}, sum by (le) (rate(hostmesh_tcp_first_byte_seconds_bucket{reporter="source", ${called}}[$__rate_interval])))`,
            `p${quantile * 100}`,
          ]),
        ),
        series('Time to the first byte, p99 by host', 'As the hosts of the service see it', 's', [
          `histogram_quantile(0.99, sum by (instance, le) (rate(hostmesh_tcp_first_byte_seconds_bucket{reporter="destination", ${called}}[$__rate_interval])))`,
          HOST,
        ]),
      ],
    },
    {
      title: 'Load',
      panels: [
        series(
          'Bytes',
          'From and to all callers',
          'Bps',
          [`sum(pair:hostmesh_tcp_sent_bytes:rate5m{${called}})`, 'to the service'],
          [`sum(pair:hostmesh_tcp_received_bytes:rate5m{${called}})`, 'from the service'],
        ),
        series('Open connections by host', 'At the hosts of the service', 'none', [
          `sum by (instance) (hostmesh_tcp_connections_active{reporter="destination", ${called}})`,
          HOST,
        ]),
        series('Failed tries by host', 'Tries to reach an instance, at the callers', 'cps', [
          `sum by (instance) (rate(hostmesh_tcp_connect_failures_total{reporter="source", ${called}}[$__rate_interval])) > 0`,
          HOST,
        ]),
      ],
    },
    {
      title: 'What it calls',
      panels: [
        series('Connections', 'Opened per second, by destination', 'cps', [
          `pair:hostmesh_tcp_connections_opened:rate5m{${calling}}`,
          '{{destination_service}}',
        ]),
        series('Failed share', 'By destination', 'percentunit', [
          `pair:hostmesh_tcp_connections_failed:ratio_rate5m{${calling}}`,
          '{{destination_service}}',
        ]),
        series('Time to the first byte, p99', 'By destination', 's', [
          `pair:hostmesh_tcp_first_byte_seconds:p99_5m{${calling}}`,
          '{{destination_service}}',
        ]),
      ],
    },
    {
      title: 'Certificates',
      panels: [
        table('Certificates', 'Seconds until they end, by host', 's', [
          'hostmesh_certificate_expiry_timestamp_seconds{service="$service"} - time()',
          '',
        ]),
      ],
    },
  ],
}

const here = 'instance=~"$instance"'

const host: Dashboard = {
  name: 'host',
  title: 'hostmesh / Host',
  description: 'The daemon of a host: health, tunnels, capture, and what it costs',
  variables: [
    {
      name: 'instance',
      label: 'Host',
      query: 'label_values(hostmesh_ready, instance)',
      isMulti: true,
    },
  ],
  rows: [
    {
      title: 'Now',
      panels: [
        stat('Ready', '1 when the host does all that it is there for', 'none', [
          `min(hostmesh_ready{${here}})`,
          'ready',
        ]),
        stat('Problems', 'As hostmesh status shows them', 'none', [
          `sum(hostmesh_problems{${here}}) or vector(0)`,
          'problems',
        ]),
        stat('Workers', 'Data-plane workers that are running', 'none', [
          `sum(hostmesh_workers{${here}})`,
          'workers',
        ]),
        stat('Started', 'When the newest daemon started', 'dateTimeFromNow', [
          `max(hostmesh_process_start_time_seconds{${here}}) * 1000`,
          'started',
        ]),
        stat('Catalog', 'Age of the last good answer', 's', [
          `max(hostmesh_catalog_age_seconds{${here}})`,
          'age',
        ]),
      ],
    },
    {
      title: 'Traffic',
      panels: [
        series('Connections', 'Accepted per second', 'cps', [
          `rate(hostmesh_accepted_connections_total{${here}}[$__rate_interval])`,
          HOST,
        ]),
        series('Open connections', 'By host', 'none', [
          `sum by (instance) (hostmesh_tcp_connections_active{${here}})`,
          HOST,
        ]),
        series('Bytes', 'Both directions', 'Bps', [
          `sum by (instance) (rate(hostmesh_tcp_sent_bytes_total{${here}}[$__rate_interval])) + sum by (instance) (rate(hostmesh_tcp_received_bytes_total{${here}}[$__rate_interval]))`,
          HOST,
        ]),
      ],
    },
    {
      title: 'Tunnels',
      panels: [
        series(
          'Sessions and streams',
          'Open now',
          'none',
          [`hostmesh_tunnel_sessions_active{${here}}`, `sessions ${HOST}`],
          [`hostmesh_tunnel_streams_active{${here}}`, `streams ${HOST}`],
        ),
        series(
          'Handshakes',
          'TLS handshakes with peers',
          'cps',
          [
            `rate(hostmesh_tunnel_handshakes_total{${here}}[$__rate_interval])`,
            `succeeded ${HOST}`,
          ],
          [
            `rate(hostmesh_tunnel_handshake_failures_total{${here}}[$__rate_interval])`,
            `failed ${HOST}`,
          ],
        ),
        series('Round trip, p99', 'Of keepalive pings to peers', 's', [
          `histogram_quantile(0.99, sum by (instance, le) (rate(hostmesh_tunnel_rtt_seconds_bucket{${here}}[$__rate_interval])))`,
          HOST,
        ]),
        series('Ended sessions', 'By reason', 'cps', [
          `sum by (reason) (rate(hostmesh_tunnel_sessions_closed_total{${here}}[$__rate_interval]))`,
          '{{reason}}',
        ]),
      ],
    },
    {
      title: 'Limits',
      panels: [
        series('Refused because of a limit of the host', 'Connections and streams', 'cps', [
          `rate(hostmesh_overflow_total{${here}}[$__rate_interval])`,
          HOST,
        ]),
        series('Refused because of a share of a caller', 'By limit', 'cps', [
          `sum by (limit) (rate(hostmesh_limit_refusals_total{${here}}[$__rate_interval]))`,
          '{{limit}}',
        ]),
        series('Bytes on their way', 'Memory that slow readers hold', 'bytes', [
          `hostmesh_held_bytes{${here}}`,
          HOST,
        ]),
        series('Ejected instances', 'Avoided because connections to them failed', 'none', [
          `sum by (instance) (hostmesh_outlier_ejected_endpoints{${here}})`,
          HOST,
        ]),
      ],
    },
    {
      title: 'Capture',
      panels: [
        series('Rules in sync', '1 when the rules in the kernel are the wanted ones', 'none', [
          `hostmesh_capture_rules_in_sync{${here}}`,
          HOST,
        ]),
        series('Repairs', 'The rules had been changed by another program', 'none', [
          `increase(hostmesh_capture_repairs_total{${here}}[$__rate_interval])`,
          HOST,
        ]),
        series('Unknown callers refused', 'By what they dialed', 'cps', [
          `sum by (instance, destination) (rate(hostmesh_unknown_callers_refused_total{${here}}[$__rate_interval]))`,
          `{{destination}} ${HOST}`,
        ]),
        series('Around the mesh', 'Connections that reached a service without the mesh', 'cps', [
          `rate(hostmesh_plain_inbound_total{${here}}[$__rate_interval])`,
          HOST,
        ]),
      ],
    },
    {
      title: 'Cost',
      panels: [
        series('Processors', 'Used by the daemon', 'none', [
          `rate(hostmesh_process_cpu_seconds_total{${here}}[$__rate_interval])`,
          HOST,
        ]),
        series('Memory', 'Resident', 'bytes', [
          `hostmesh_process_resident_memory_bytes{${here}}`,
          HOST,
        ]),
        series('Event loop', 'Longest delay in 15 s, by thread', 's', [
          `hostmesh_event_loop_lag_seconds{${here}}`,
          `{{thread}} ${HOST}`,
        ]),
        series('File descriptors', 'Open', 'none', [`hostmesh_process_open_fds{${here}}`, HOST]),
      ],
    },
  ],
}

/** All dashboards. */
export const dashboards: readonly Dashboard[] = [mesh, service, host]
