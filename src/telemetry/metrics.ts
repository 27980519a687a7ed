/**
 * Every metric that a host exports: name, type, meaning and labels, in one table.
 *
 * docs/metrics.md lists the same (a test compares them); `exposition.ts` gives the values. Names are
 * `hostmesh_<noun>_<unit>[_total]` in base units. Labels are bounded: service names (a fixed number of pairs,
 * then `other`), response flags, threads; never an address, a path or anything else that a peer chooses.
 */

/** One metric. */
export interface MetricDefinition {
  readonly name: string
  readonly type: 'counter' | 'gauge' | 'histogram'
  readonly help: string
  readonly labels: readonly string[]
}

const pair = ['reporter', 'source_service', 'destination_service'] as const

/** All metrics, by the name the code uses. */
export const metrics = {
  tcpOpened: {
    name: 'hostmesh_tcp_connections_opened_total',
    type: 'counter',
    help: 'Connections accepted, by service pair',
    labels: pair,
  },
  tcpClosed: {
    name: 'hostmesh_tcp_connections_closed_total',
    type: 'counter',
    help: 'Connections ended, by service pair and response flag',
    labels: [...pair, 'response_flags'],
  },
  tcpActive: {
    name: 'hostmesh_tcp_connections_active',
    type: 'gauge',
    help: 'Connections open now, by service pair',
    labels: pair,
  },
  tcpLost: {
    name: 'hostmesh_tcp_connections_lost_total',
    type: 'counter',
    help: 'Connections that were open when their worker crashed',
    labels: pair,
  },
  tcpConnectFailures: {
    name: 'hostmesh_tcp_connect_failures_total',
    type: 'counter',
    help: 'Failed tries to reach an instance; the connection may have succeeded on another',
    labels: pair,
  },
  tcpSentBytes: {
    name: 'hostmesh_tcp_sent_bytes_total',
    type: 'counter',
    help: 'Bytes towards the destination service',
    labels: pair,
  },
  tcpReceivedBytes: {
    name: 'hostmesh_tcp_received_bytes_total',
    type: 'counter',
    help: 'Bytes from the destination service',
    labels: pair,
  },
  tcpDuration: {
    name: 'hostmesh_tcp_connection_duration_seconds',
    type: 'histogram',
    help: 'How long ended connections were open',
    labels: pair,
  },
  acceptedConnections: {
    name: 'hostmesh_accepted_connections_total',
    type: 'counter',
    help: 'TCP connections accepted on any data-plane port, before anything is known of them',
    labels: [],
  },
  captureRefused: {
    name: 'hostmesh_capture_refused_total',
    type: 'counter',
    help: 'Connections refused because their original destination is a port of hostmesh itself',
    labels: [],
  },
  overflow: {
    name: 'hostmesh_overflow_total',
    type: 'counter',
    help: 'Connections and streams refused because a limit of this host was reached',
    labels: [],
  },
  limitRefusals: {
    name: 'hostmesh_limit_refusals_total',
    type: 'counter',
    help: 'Streams, connections and handshakes refused or broken off because a caller had its share of something',
    labels: ['limit'],
  },
  heldBytes: {
    name: 'hostmesh_held_bytes',
    type: 'gauge',
    help: 'Memory for bytes on their way that a reader leaves waiting',
    labels: [],
  },
  connectionDescriptors: {
    name: 'hostmesh_connection_descriptors',
    type: 'gauge',
    help: 'File descriptors that connections, tunnels and handshakes have',
    labels: [],
  },
  barredCallers: {
    name: 'hostmesh_barred_callers',
    type: 'gauge',
    help: 'Callers that are refused at the handshake for now, by destination and worker, for breaking the tunnel protocol too often',
    labels: [],
  },
  outlierEjections: {
    name: 'hostmesh_outlier_ejections_total',
    type: 'counter',
    help: 'Times an instance was ejected because connections to it failed, each worker for itself',
    labels: [],
  },
  ejectedEndpoints: {
    name: 'hostmesh_outlier_ejected_endpoints',
    type: 'gauge',
    help: 'Instances that a data-plane worker avoids now because connections to them failed',
    labels: ['thread'],
  },
  protocolErrors: {
    name: 'hostmesh_tunnel_protocol_errors_total',
    type: 'counter',
    help: 'Tunnel sessions closed because the peer broke the protocol',
    labels: [],
  },
  tunnelHandshakes: {
    name: 'hostmesh_tunnel_handshakes_total',
    type: 'counter',
    help: 'TLS handshakes with peers that succeeded, in both directions',
    labels: [],
  },
  tunnelHandshakeFailures: {
    name: 'hostmesh_tunnel_handshake_failures_total',
    type: 'counter',
    help: 'TLS handshakes with peers that failed, in both directions',
    labels: [],
  },
  tunnelSessionsActive: {
    name: 'hostmesh_tunnel_sessions_active',
    type: 'gauge',
    help: 'Tunnel sessions open now',
    labels: [],
  },
  tunnelSessionsClosed: {
    name: 'hostmesh_tunnel_sessions_closed_total',
    type: 'counter',
    help: 'Tunnel sessions that ended, by reason',
    labels: ['reason'],
  },
  tunnelStreamsActive: {
    name: 'hostmesh_tunnel_streams_active',
    type: 'gauge',
    help: 'Tunnel streams open now',
    labels: [],
  },
  tunnelStreamsOpened: {
    name: 'hostmesh_tunnel_streams_opened_total',
    type: 'counter',
    help: 'Tunnel streams opened, in both directions',
    labels: [],
  },
  tunnelStreamsReset: {
    name: 'hostmesh_tunnel_streams_reset_total',
    type: 'counter',
    help: 'Tunnel streams that ended by a reset, from either side',
    labels: [],
  },
  tunnelRoundTrip: {
    name: 'hostmesh_tunnel_rtt_seconds',
    type: 'histogram',
    help: 'Round trips of keepalive pings to peers',
    labels: [],
  },
  certificateExpiry: {
    name: 'hostmesh_certificate_expiry_timestamp_seconds',
    type: 'gauge',
    help: 'When the certificate in use for a local service ends, seconds since the epoch',
    labels: ['service'],
  },
  catalogLastSuccess: {
    name: 'hostmesh_catalog_last_success_timestamp_seconds',
    type: 'gauge',
    help: 'When the catalog last gave a good answer, seconds since the epoch; absent before the first',
    labels: [],
  },
  catalogAge: {
    name: 'hostmesh_catalog_age_seconds',
    type: 'gauge',
    help: 'Since the last good answer of the catalog, of an earlier run if there was none in this; absent before the first',
    labels: [],
  },
  stateRemembered: {
    name: 'hostmesh_state_remembered',
    type: 'gauge',
    help: 'Services, policies and certificates that the host acts on and that nothing has confirmed since its start',
    labels: ['part'],
  },
  stateProblems: {
    name: 'hostmesh_state_problems',
    type: 'gauge',
    help: 'Reasons why something is not kept for a restart, such as a full disk; 0 when all is',
    labels: [],
  },
  consulLastContact: {
    name: 'hostmesh_consul_last_contact_seconds',
    type: 'gauge',
    help: 'Since the Consul server that answers last heard from its leader; asked every 7 s; absent without Consul',
    labels: [],
  },
  snapshotVersion: {
    name: 'hostmesh_snapshot_version',
    type: 'gauge',
    help: 'Version of the snapshot that this host acts on; 0 before the first',
    labels: [],
  },
  captureRepairs: {
    name: 'hostmesh_capture_repairs_total',
    type: 'counter',
    help: 'How often another program had changed the capture rules and they were applied again',
    labels: [],
  },
  captureRulesInSync: {
    name: 'hostmesh_capture_rules_in_sync',
    type: 'gauge',
    help: '1 when the capture rules in the kernel are the wanted ones, else 0; absent while capture is off',
    labels: [],
  },
  dnsQueries: {
    name: 'hostmesh_dns_queries_total',
    type: 'counter',
    help: 'DNS questions to the resolver, by what became of them; absent while it is off',
    labels: ['outcome'],
  },
  watchedServices: {
    name: 'hostmesh_watched_services',
    type: 'gauge',
    help: 'Services that this host follows in the catalog',
    labels: [],
  },
  unknownCallersRefused: {
    name: 'hostmesh_unknown_callers_refused_total',
    type: 'counter',
    help: 'Connections of local processes without identity that the capture rules reset, by what was dialed: a virtual address or an instance; starts over when the rules are replaced',
    labels: ['destination'],
  },
  capturePermitted: {
    name: 'hostmesh_capture_permitted_total',
    type: 'counter',
    help: 'Connections that the capture rules let out without the mesh because their service is named in capture.permissive; starts over when the rules are replaced',
    labels: [],
  },
  captureWaited: {
    name: 'hostmesh_capture_waited_total',
    type: 'counter',
    help: 'First segments of processes that had just started, dropped until it was known who they are; the kernel sends them again; by nftables only',
    labels: [],
  },
  captureFull: {
    name: 'hostmesh_capture_full_total',
    type: 'counter',
    help: 'Connections refused because more were open to instances than the sets of the kernel hold; by nftables only',
    labels: [],
  },
  captureGuarded: {
    name: 'hostmesh_capture_guarded_total',
    type: 'counter',
    help: 'Packets that the guard refused: they would have left without the mesh',
    labels: [],
  },
  plainInbound: {
    name: 'hostmesh_plain_inbound_total',
    type: 'counter',
    help: 'Connections from other hosts that reached the port of a service of this host around the mesh, refused ones too (capture.plainInbound); by nftables only; starts over when the rules are replaced',
    labels: [],
  },
  captureSpared: {
    name: 'hostmesh_capture_spared',
    type: 'gauge',
    help: 'Connections that were open before capture came and are spared',
    labels: [],
  },
  ready: {
    name: 'hostmesh_ready',
    type: 'gauge',
    help: '1 when this host does all that it is there for, else 0: a problem says why not',
    labels: [],
  },
  serving: {
    name: 'hostmesh_serving',
    type: 'gauge',
    help: '1 when this host takes traffic, else 0 (starting or draining)',
    labels: [],
  },
  problems: {
    name: 'hostmesh_problems',
    type: 'gauge',
    help: 'Problems of this host as hostmesh status shows them, by code; a code that it does not have is absent',
    labels: ['code'],
  },
  workers: {
    name: 'hostmesh_workers',
    type: 'gauge',
    help: 'Data-plane workers that are running',
    labels: [],
  },
  workerRestarts: {
    name: 'hostmesh_worker_restarts_total',
    type: 'counter',
    help: 'Data-plane workers replaced after a crash',
    labels: [],
  },
  logLinesLost: {
    name: 'hostmesh_log_lines_lost_total',
    type: 'counter',
    help: 'Lines of the log that could not be written: a full disk, or a reader that is too slow or gone',
    labels: [],
  },
  eventLoopLag: {
    name: 'hostmesh_event_loop_lag_seconds',
    type: 'gauge',
    help: 'Longest delay of the event loop in the last 15 s; main, or the number of a data-plane worker',
    labels: ['thread'],
  },
  buildInfo: {
    name: 'hostmesh_build_info',
    type: 'gauge',
    help: '1; the labels say what runs',
    labels: ['version', 'node_version'],
  },
  processCpu: {
    name: 'hostmesh_process_cpu_seconds_total',
    type: 'counter',
    help: 'CPU time of the whole process, user and system',
    labels: [],
  },
  processResidentMemory: {
    name: 'hostmesh_process_resident_memory_bytes',
    type: 'gauge',
    help: 'Resident memory of the whole process',
    labels: [],
  },
  processHeap: {
    name: 'hostmesh_process_heap_used_bytes',
    type: 'gauge',
    help: "JavaScript heap in use in the main thread; workers' heaps are not in it",
    labels: [],
  },
  processOpenFiles: {
    name: 'hostmesh_process_open_fds',
    type: 'gauge',
    help: 'Open file descriptors of the process',
    labels: [],
  },
  processStart: {
    name: 'hostmesh_process_start_time_seconds',
    type: 'gauge',
    help: 'When the process started, seconds since the epoch',
    labels: [],
  },
} as const satisfies Record<string, MetricDefinition>

/** What the code calls a metric. */
export type MetricKey = keyof typeof metrics
