/**
 * What a simulated host reports. Pure: the figures follow from the number of the host and of the record, so that what was
 * sent can be computed without being asked for.
 *
 * Hosts are in groups of ten that run the same six services. The first half of a group counts as the caller, the second
 * half as the called side, of the same edges: with 40 pairs a host, 500 hosts have 300 services and 2,000 edges.
 */
import type {
  Interval,
  LiveView,
  ReportedFacts,
  ReportedService,
  ReportPair,
  ReportRecord,
} from '../../src/model/report.ts'
import { RECORD_SPAN_MS } from '../../src/model/report.ts'
import { reportColumns } from '../../src/telemetry/report-columns.ts'

/** The fleet. */
export interface FleetSize {
  readonly hosts: number
  /** Of each host. */
  readonly pairs: number
}

/** Counts of one row in one record. */
export interface RowCounts {
  readonly opened: number
  readonly failed: number
  readonly sentBytes: number
  readonly receivedBytes: number
}

const HOSTS_OF_GROUP = 10
const SERVICES_OF_GROUP = 6

/** The flag of endings that failed. */
const FAILED_FLAG = 'UF'

const columns = reportColumns()

/** The number of the first cell of each column of pairs. */
const cellOf = firstCells()

/** The name of a host. */
export function hostName(host: number): string {
  return `host-${String(host).padStart(5, '0')}`
}

/** Services of a pair of a host, and who counts it. */
export function pairAt(
  { hosts }: FleetSize,
  host: number,
  pair: number,
): { readonly reporter: 0 | 1; readonly source: string; readonly destination: string } {
  const groups = Math.max(1, Math.ceil(hosts / HOSTS_OF_GROUP))
  const services = Math.max(60, groups * SERVICES_OF_GROUP)
  const first = (host % groups) * SERVICES_OF_GROUP
  const own = pair % SERVICES_OF_GROUP
  const other = first + SERVICES_OF_GROUP + own + 7 * Math.floor(pair / SERVICES_OF_GROUP)
  return {
    reporter: Math.floor(host / groups) % 2 === 0 ? 0 : 1,
    source: serviceName((first + own) % services),
    destination: serviceName(other % services),
  }
}

/** What a row counts in the record of this number. */
export function countsOf(host: number, pair: number, sequence: number): RowCounts {
  const opened = 20 + ((host * 31 + pair * 17 + sequence * 7) % 50)
  const failed = (host + pair + sequence) % 20 === 0 ? 1 : 0
  return {
    opened,
    failed,
    sentBytes: opened * 1_234 + pair,
    receivedBytes: opened * 8_765 + host,
  }
}

/** The record of this number, without its age. */
export function recordOf(
  size: FleetSize,
  host: number,
  sequence: number,
): Omit<ReportRecord, 'ageMs'> {
  return {
    ...intervalOf(size, host, RECORD_SPAN_MS, (pair) => countsOf(host, pair, sequence)),
    sequence,
    merged: 1,
    workloads: [
      { service: 'hostmesh', cpuMs: 120 + (host % 40), memoryBytes: 9e7, tasks: 12, sockets: 40 },
      ...servicesOf(size, host).map((service, i) => ({
        service,
        cpuMs: 900 + 10 * i + (sequence % 7),
        memoryBytes: 2e8 + host * 4_096,
        tasks: 20,
        sockets: 64,
        pressure: { cpu: 0.01 },
      })),
    ],
    ...(sequence % 30 === 1 && { facts: factsOf(size, host) }),
  }
}

/** A live view: about a tenth of a record. */
export function liveView(size: FleetSize, host: number, second: number): LiveView {
  const interval = intervalOf(size, host, 1_000, (pair) => {
    const opened = 2 + ((host + pair + second) % 5)
    return { opened, failed: 0, sentBytes: opened * 1_234, receivedBytes: opened * 8_765 }
  })
  return { ...interval, state: 'ready', problems: [] }
}

function intervalOf(
  size: FleetSize,
  host: number,
  spanMs: number,
  countsAt: (pair: number) => RowCounts,
): Interval {
  const names: string[] = []
  const indices = new Map<string, number>()
  const indexOf = (name: string): number => {
    let index = indices.get(name)
    if (index === undefined) {
      index = names.push(name) - 1
      indices.set(name, index)
    }
    return index
  }
  const pairs = Array.from({ length: size.pairs }, (_, pair): ReportPair => {
    const { reporter, source, destination } = pairAt(size, host, pair)
    const cells = cellsOf(countsAt(pair), host + pair, spanMs >= RECORD_SPAN_MS ? 6 : 3)
    return [reporter, indexOf(source), indexOf(destination), pair % 8, 0, cells]
  })
  return { spanMs, names, pairs, host: [0, 3, 1, 12, 2, 40] }
}

/** @param buckets how many buckets of each histogram are in use */
function cellsOf(counts: RowCounts, seed: number, buckets: number): number[] {
  const { opened, failed, sentBytes, receivedBytes } = counts
  const cells = [cellOf.opened, opened, cellOf.closed, opened - failed]
  if (failed > 0) cells.push(cellOf.failed, failed, cellOf.connectFailures, failed)
  cells.push(cellOf.sentBytes, sentBytes, cellOf.receivedBytes, receivedBytes)
  cells.push(cellOf.duration + 2, Math.ceil(opened / 2), cellOf.duration + 3, opened >> 1)
  cells.push(cellOf.durationSum, opened * 0.05)
  for (const first of [cellOf.connectLatency, cellOf.firstByte]) {
    const from = 30 + (seed % 25)
    for (let i = 0; i < buckets; i += 1)
      cells.push(first + from + 2 * i, 1 + Math.floor(opened / buckets))
    const sum = first === cellOf.connectLatency ? cellOf.connectSum : cellOf.firstByteSum
    cells.push(sum, opened * 0.001)
  }
  return cells
}

function factsOf(size: FleetSize, host: number): ReportedFacts {
  return {
    version: '0.2.0',
    nodeVersion: '24.21.0',
    datacenter: 'dc1',
    zone: `zone-${host % 3}`,
    startedMsAgo: 3_600_000,
    state: 'ready',
    workers: 1,
    trustDomain: 'fleet.example',
    problems: [],
    services: servicesOf(size, host).map(
      (name, i): ReportedService => ({
        name,
        id: `${name}-${host}`,
        target: `127.0.0.1:${8_000 + i}`,
        protocol: 'tcp',
        captured: true,
        certificate: {
          leftMs: 20 * 3_600_000,
          lifeMs: 24 * 3_600_000,
          spiffeId: `spiffe://fleet.example/ns/default/dc/dc1/svc/${name}`,
        },
        health: 'passing',
        upstreams: [],
        policy: {
          defaultAction: 'deny',
          intentions: Array.from({ length: 8 }, (_, rule) => ({
            source: rule === 7 ? '*' : serviceName((host % 40) + rule * 30),
            destination: name,
            action: 'allow',
            precedence: rule === 7 ? 8 : 9,
          })),
        },
      }),
    ),
    capture: { mode: 'on', backend: 'nft', inSync: true, plainInbound: 0 },
    tunnels: { sessions: 40, peers: 38 },
  }
}

function servicesOf({ hosts }: FleetSize, host: number): string[] {
  const groups = Math.max(1, Math.ceil(hosts / HOSTS_OF_GROUP))
  const first = (host % groups) * SERVICES_OF_GROUP
  return Array.from({ length: SERVICES_OF_GROUP }, (_, i) => serviceName(first + i))
}

function serviceName(number: number): string {
  return `service-${String(number).padStart(4, '0')}`
}

function firstCells(): Readonly<
  Record<
    | 'opened'
    | 'closed'
    | 'failed'
    | 'connectFailures'
    | 'sentBytes'
    | 'receivedBytes'
    | 'duration'
    | 'durationSum'
    | 'connectLatency'
    | 'connectSum'
    | 'firstByte'
    | 'firstByteSum',
    number
  >
> {
  const first: Record<string, number> = {}
  const last: Record<string, number> = {}
  let failed = 0
  let at = 0
  for (const column of columns.pair) {
    first[column.name] = at
    if (column.kind === 'split') {
      if (column.name === 'closed') failed = at + column.values.indexOf(FAILED_FLAG)
      at += column.values.length
    } else if (column.kind === 'histogram') at += column.boundsSeconds.length + 2
    else at += column.kind === 'exponential' ? column.cells : 1
    last[column.name] = at - 1
  }
  return {
    opened: first['opened'] ?? 0,
    closed: first['closed'] ?? 0,
    failed,
    connectFailures: first['connectFailures'] ?? 0,
    sentBytes: first['sentBytes'] ?? 0,
    receivedBytes: first['receivedBytes'] ?? 0,
    duration: first['duration'] ?? 0,
    durationSum: last['duration'] ?? 0,
    connectLatency: first['connectLatency'] ?? 0,
    connectSum: last['connectLatency'] ?? 0,
    firstByte: first['firstByte'] ?? 0,
    firstByteSum: last['firstByte'] ?? 0,
  }
}
