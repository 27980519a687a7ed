/**
 * Readings of a store as tests of documents need them.
 */
import type { Moment } from '../../src/aggregator/documents/fleet.ts'
import type { PairFigures } from '../../src/aggregator/figures.ts'
import type { HostReading } from '../../src/aggregator/fleet-store.ts'
import type { ReportedFacts, ReportedService } from '../../src/model/report.ts'
import { reportedFacts } from '../harness/fleet-reports.ts'

/** The time of all tests of documents. */
export const NOW: number = Date.UTC(2026, 10, 27, 10)

/** A minute that ends now, with figures of a day before it. */
export function momentOf(hosts: readonly HostReading[], more: Partial<Moment> = {}): Moment {
  return {
    atMs: NOW,
    span: { fromMs: NOW - 60_000, toMs: NOW },
    live: true,
    hosts,
    oldestMs: NOW - 86_400_000,
    ...more,
  }
}

/** A host that is well. */
export function reading(
  name: string,
  services: readonly ReportedService[] = [],
  more: Partial<Omit<HostReading, 'facts'>> & { readonly facts?: Partial<ReportedFacts> } = {},
): HostReading {
  return {
    name,
    isConflicting: false,
    firstReportAtMs: NOW - 86_400_000,
    lastReportAtMs: NOW - 500,
    state: 'ready',
    lateMs: 200,
    lostRecords: 0,
    clockOffsetMs: 3,
    factsAtMs: NOW - 10_000,
    ...more,
    facts: reportedFacts(services, more.facts),
  }
}

/** What a host counted of a pair in the minute. */
export function row(
  host: string,
  reporter: PairFigures['reporter'],
  [source, destination]: readonly [string, string],
  {
    opened = 0,
    closed = {},
    active = 0,
    lost = 0,
    connect,
  }: {
    readonly opened?: number
    readonly closed?: Readonly<Record<string, number>>
    readonly active?: number
    readonly lost?: number
    readonly connect?: readonly number[]
  } = {},
): PairFigures {
  return {
    host,
    reporter,
    source,
    destination,
    active,
    lost,
    figures: {
      counts: new Map([['opened', opened]]),
      splits: new Map([['closed', new Map(Object.entries(closed))]]),
      histograms: new Map(
        connect === undefined
          ? []
          : [['connectLatency', { bounds: [0.001, 0.01, 0.1, Infinity], counts: connect, sum: 1 }]],
      ),
    },
  }
}
