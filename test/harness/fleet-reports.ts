/**
 * Reports of hosts as tests need them: what a host is, what it counted, in the form in which it is posted.
 */
import {
  type HostReport,
  REPORT_VERSION,
  type ReportColumns,
  type ReportedFacts,
  type ReportedService,
  type ReportPair,
} from '../../src/model/report.ts'

/** Columns as the daemon has them: what documents know, and one that they do not. */
const reportColumns: ReportColumns = {
  pair: [
    { name: 'opened', kind: 'count' },
    {
      name: 'closed',
      kind: 'split',
      label: 'response_flags',
      values: ['-', 'DENY', 'UF', 'UH', 'DC', 'TLS'],
    },
    { name: 'connectFailures', kind: 'count' },
    { name: 'sentBytes', kind: 'count' },
    { name: 'receivedBytes', kind: 'count' },
    { name: 'duration', kind: 'histogram', boundsSeconds: [0.001, 0.01, 0.1, 1] },
    { name: 'connectLatency', kind: 'exponential', scale: 3, offset: -120, cells: 121 },
    { name: 'firstByte', kind: 'exponential', scale: 3, offset: -120, cells: 121 },
    { name: 'futureCount', kind: 'count' },
  ],
  host: [
    { name: 'acceptedConnections', kind: 'count' },
    {
      name: 'limitRefusals',
      kind: 'split',
      label: 'limit',
      values: ['memory', 'streams'],
    },
  ],
}

/** First cells of the columns above. */
const CELL = { opened: 0, closed: 1, connectFailures: 7, sent: 8, received: 9, duration: 10 }
const CONNECT = 16
const FIRST_BYTE = CONNECT + 121
const FUTURE = FIRST_BYTE + 121
const flags = ['-', 'DENY', 'UF', 'UH', 'DC', 'TLS'] as const

/** What was counted of one pair. */
export interface CountedPair {
  readonly reporter: 'source' | 'destination'
  readonly source: string
  readonly destination: string
  readonly opened: number
  readonly closed?: Partial<Record<(typeof flags)[number], number>>
  readonly active?: number
  readonly lost?: number
  readonly sent?: number
  readonly received?: number
  /** Bucket of connect and first byte, 0 to 119. */
  readonly bucket?: number
  readonly future?: number
}

/** A service of a host. */
export function reportedService(
  name: string,
  more: Partial<ReportedService> = {},
): ReportedService {
  return {
    name,
    id: name,
    target: '127.0.0.1:8080',
    protocol: 'tcp',
    captured: true,
    certificate: { leftMs: 20 * 3_600_000, lifeMs: 24 * 3_600_000, spiffeId: `spiffe://t/${name}` },
    health: 'passing',
    upstreams: [],
    ...more,
  }
}

/** The facts of a host that is well. */
export function reportedFacts(
  services: readonly ReportedService[],
  more: Partial<ReportedFacts> = {},
): ReportedFacts {
  return {
    version: '0.2.0',
    nodeVersion: '24.21.0',
    datacenter: 'dc1',
    startedMsAgo: 3_600_000,
    state: 'ready',
    workers: 1,
    problems: [],
    services,
    capture: { mode: 'on', backend: 'nft', inSync: true, plainInbound: 0 },
    tunnels: { sessions: 3, peers: 2 },
    ...more,
  }
}

/** One report of a host: a record, and the same as live view. */
export function hostReport(
  host: string,
  {
    pairs = [],
    facts,
    sequence = 1,
    ageMs = 100,
    spanMs = 10_000,
    clockMs = 0,
    key = 'k',
    live = true,
  }: {
    readonly pairs?: readonly CountedPair[]
    readonly facts?: ReportedFacts | undefined
    readonly sequence?: number
    readonly ageMs?: number
    readonly spanMs?: number
    readonly clockMs?: number
    readonly key?: string
    readonly live?: boolean
  } = {},
): HostReport {
  const names = [...new Set(pairs.flatMap(({ source, destination }) => [source, destination]))]
  const interval = {
    spanMs,
    names,
    pairs: pairs.map((pair): ReportPair => reportPair(pair, names)),
    host: [0, 7, 2, 3],
  }
  return {
    version: REPORT_VERSION,
    host,
    key: `${host}-${key}`.padEnd(43, 'x'),
    run: 'r'.repeat(22),
    clockMs,
    layout: 'a',
    columns: reportColumns,
    ...(live && { live: { ...interval, state: facts?.state ?? 'ready', problems: [] } }),
    records: [
      {
        ...interval,
        sequence,
        ageMs,
        merged: 1,
        workloads: [
          { service: 'hostmesh', cpuMs: spanMs / 10, memoryBytes: 80e6, tasks: 12, sockets: 40 },
          ...(facts?.services ?? []).map(({ name }) => ({
            service: name,
            cpuMs: spanMs / 2,
            memoryBytes: 200e6,
            pressure: { cpu: 0.1 },
          })),
        ],
        ...(facts !== undefined && { facts }),
      },
    ],
  }
}

function reportPair(pair: CountedPair, names: readonly string[]): ReportPair {
  const { reporter, source, destination, opened, active = 0, lost = 0 } = pair
  const { closed = {}, sent = 0, received = 0, bucket, future = 0 } = pair
  const cells = [CELL.opened, opened, CELL.sent, sent, CELL.received, received, FUTURE, future]
  for (const [flag, count] of Object.entries(closed)) {
    cells.push(CELL.closed + flags.findIndex((one) => one === flag), count)
    cells.push(CELL.duration + 1, count)
  }
  if (bucket !== undefined)
    for (const start of [CONNECT, FIRST_BYTE]) cells.push(start + bucket, opened)
  return [
    reporter === 'source' ? 0 : 1,
    names.indexOf(source),
    names.indexOf(destination),
    active,
    lost,
    merged(cells),
  ]
}

/** Cells that occur twice, summed. */
function merged(cells: readonly number[]): number[] {
  const sums = new Map<number, number>()
  for (let i = 0; i + 1 < cells.length; i += 2)
    sums.set(cells[i] ?? 0, (sums.get(cells[i] ?? 0) ?? 0) + (cells[i + 1] ?? 0))
  return [...sums].filter(([, value]) => value !== 0).flat()
}
