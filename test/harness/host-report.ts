/**
 * Reports of hosts for tests of the aggregator.
 */
import type {
  HostReport,
  ReportColumns,
  ReportedFacts,
  ReportRecord,
} from '../../src/model/report.ts'

/** Columns of every kind. Cells of a pair: opened 0, closed 1-2, speed 3, connect 4-9, wait 10-13. */
export const reportColumns: ReportColumns = {
  pair: [
    { name: 'opened', kind: 'count' },
    { name: 'closed', kind: 'split', label: 'response_flags', values: ['-', 'UF'] },
    { name: 'speed', kind: 'gauge' },
    { name: 'connect', kind: 'exponential', scale: 1, offset: -3, cells: 6 },
    { name: 'wait', kind: 'histogram', boundsSeconds: [0.1, 1] },
  ],
  host: [
    { name: 'handshakes', kind: 'count' },
    { name: 'sessions', kind: 'gauge' },
  ],
}

/** A report; what is left out is that of host `a` without records. */
export function hostReport(parts: Partial<HostReport> = {}): HostReport {
  const host = parts.host ?? 'a'
  return {
    version: 1,
    host,
    key: keyOf(host),
    run: runOf('one'),
    clockMs: 1_000,
    layout: 'layout',
    columns: reportColumns,
    records: [],
    ...parts,
  }
}

/** A record of 10 s in which `web` opened `opened` connections to `db`. */
export function reportRecord(
  sequence: number,
  opened: number,
  parts: Partial<ReportRecord> = {},
): ReportRecord {
  return {
    sequence,
    ageMs: 0,
    merged: 1,
    spanMs: 10_000,
    names: ['web', 'db'],
    pairs: [[0, 0, 1, sequence, 0, [0, opened, 1, opened, 5, opened, 9, opened / 8]]],
    host: [0, opened, 1, sequence],
    workloads: [],
    ...parts,
  }
}

/** Facts of a host with one service. */
export function reportedFacts(parts: Partial<ReportedFacts> = {}): ReportedFacts {
  return {
    version: '1.2.3',
    nodeVersion: '24.21.0',
    datacenter: 'dc1',
    startedMsAgo: 60_000,
    state: 'ready',
    workers: 1,
    problems: [],
    services: [
      {
        name: 'web',
        id: 'web-1',
        target: '127.0.0.1:8080',
        protocol: 'tcp',
        captured: true,
        certificate: {
          leftMs: 3_600_000,
          lifeMs: 7_200_000,
          spiffeId: 'spiffe://mesh.example/ns/default/dc/dc1/svc/web',
        },
        upstreams: ['db'],
        policy: {
          defaultAction: 'deny',
          intentions: [{ source: '*', destination: 'web', action: 'allow', precedence: 8 }],
        },
      },
    ],
    capture: { mode: 'on', backend: 'nftables', inSync: true, plainInbound: 0 },
    tunnels: { sessions: 2, peers: 2 },
    ...parts,
  }
}

/** A key that belongs to a text. */
export function keyOf(text: string): string {
  return text
    .replaceAll(/[^\w-]/g, '_')
    .padEnd(43, 'k')
    .slice(0, 43)
}

/** A run that belongs to a text. */
export function runOf(text: string): string {
  return text
    .replaceAll(/[^\w-]/g, '_')
    .padEnd(22, 'r')
    .slice(0, 22)
}
