/**
 * All hosts, and one of them. Pure.
 */
import type { GraphEdge, HostDocument, HostEntry, HostsDocument } from '../../model/fleet.ts'
import { REPORTER_SERVICE } from '../../model/report.ts'
import type { Figures, PairFigures } from '../figures.ts'
import type { HostReading, WorkloadReading } from '../fleet-store.ts'
import { coverageOf, isoTime } from './coverage.ts'
import { compare } from './edges.ts'
import { coveredMs, Fleet, type Moment } from './fleet.ts'
import { instanceEntry } from './services.ts'
import { TrafficSum } from './traffic.ts'
import { workloadEntry } from './workloads.ts'

/** All hosts. */
export function hostsDocument(
  moment: Moment,
  workloads: readonly WorkloadReading[],
): HostsDocument {
  const fleet = new Fleet(moment)
  const daemons = new Map(
    workloads
      .filter(({ use }) => use.service === REPORTER_SERVICE)
      .map((reading) => [reading.host, reading]),
  )
  return {
    coverage: coverageOf(moment, fleet),
    hosts: [...fleet.hosts.values()]
      .toSorted((a, b) => compare(a.name, b.name))
      .map((host) => hostEntry(fleet, host, daemons.get(host.name))),
  }
}

/** What the document of one host is made from. */
export interface HostReadings {
  readonly name: string
  /** Rows that the host has counted. */
  readonly rows: readonly PairFigures[]
  readonly workloads: readonly WorkloadReading[]
  /** The host's own columns. */
  readonly figures: Figures
}

/** One host; undefined when no host of that name has reported. */
export function hostDocument(
  moment: Moment,
  { name, rows, workloads, figures }: HostReadings,
): HostDocument | undefined {
  const fleet = new Fleet(moment)
  const host = fleet.hosts.get(name)
  if (host === undefined) return undefined
  const { facts, factsAtMs = 0 } = host
  const own = workloads.filter((reading) => reading.host === name)
  const daemon = own.find(({ use }) => use.service === REPORTER_SERVICE)
  return {
    coverage: coverageOf(moment, fleet, rows.length > 0),
    host: hostEntry(fleet, host, daemon),
    startedAt: facts === undefined ? null : isoTime(factsAtMs - facts.startedMsAgo),
    nodeVersion: facts?.nodeVersion ?? null,
    workers: facts?.workers ?? null,
    capture:
      facts === undefined
        ? null
        : {
            mode: facts.capture.mode,
            backend: facts.capture.backend ?? null,
            inSync: facts.capture.inSync ?? null,
            plainInbound: facts.capture.plainInbound ?? null,
          },
    tunnels: facts === undefined ? null : { ...facts.tunnels },
    services: (facts?.services ?? []).map((service) =>
      instanceEntry(fleet, { host, service }, own),
    ),
    workloads: own.map(workloadEntry),
    edges: edgesOf(fleet, rows, coveredMs(moment)),
    counters: countersOf(figures),
  }
}

function hostEntry(
  fleet: Fleet,
  host: HostReading,
  daemon: WorkloadReading | undefined,
): HostEntry {
  const { name, lastReportAtMs, lateMs, lostRecords, clockOffsetMs, facts } = host
  const use = daemon === undefined ? undefined : workloadEntry(daemon)
  return {
    name,
    state: fleet.stateOf(host),
    lastReportAt: isoTime(lastReportAtMs),
    lateMs,
    lostRecords,
    version: facts?.version ?? null,
    datacenter: facts?.datacenter ?? null,
    zone: facts?.zone ?? null,
    services: [...new Set((facts?.services ?? []).map((service) => service.name))],
    problems: (facts?.problems ?? []).map(({ code, message, blocks }) => ({
      code,
      message,
      blocks,
    })),
    clockOffsetMs: clockOffsetMs ?? null,
    cpu: use?.cpu ?? null,
    memoryBytes: use?.memoryBytes ?? null,
  }
}

/** An edge for each side that the host has counted: a host may have both ends of a connection. */
function edgesOf(fleet: Fleet, rows: readonly PairFigures[], spanMs: number): GraphEdge[] {
  const groups = Map.groupBy(rows, (row) =>
    JSON.stringify([row.source, row.destination, row.reporter]),
  )
  return [...groups.values()]
    .flatMap((group): GraphEdge[] => {
      const [first] = group
      if (first === undefined) return []
      const sum = new TrafficSum()
      for (const row of group) sum.add(row)
      const { source, destination, reporter } = first
      const policy = fleet.policies.decide(source, destination)
      return [{ source, destination, traffic: sum.over(spanMs), reporter, policy }]
    })
    .toSorted(
      (a, b) =>
        compare(a.source, b.source) ||
        compare(a.destination, b.destination) ||
        compare(a.reporter, b.reporter),
    )
}

/** Counts by column; a split column by `column.value`. */
function countersOf({ counts, splits }: Figures): Record<string, number> {
  return Object.fromEntries([
    ...counts,
    ...[...splits].flatMap(([column, split]) =>
      Array.from(split, ([value, count]): [string, number] => [`${column}.${value}`, count]),
    ),
  ])
}
