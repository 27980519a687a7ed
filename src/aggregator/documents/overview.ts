/**
 * The fleet in one look, and the event of the live view. Pure.
 */
import type { OverviewDocument, StoreStatus } from '../../model/fleet.ts'
import type { PairFigures } from '../figures.ts'
import type { FleetStore } from '../fleet-store.ts'
import { coverageOf, isoTime } from './coverage.ts'
import { compare, summedPairs } from './edges.ts'
import { coveredMs, Fleet, type Moment } from './fleet.ts'
import { TrafficSum } from './traffic.ts'

/** What the store says of itself. */
export type StoreReading = Awaited<ReturnType<FleetStore['status']>>

/** The overview. */
export function overviewDocument(
  moment: Moment,
  rows: readonly PairFigures[],
  { version, store }: { readonly version: string; readonly store: StoreReading },
): OverviewDocument {
  const fleet = new Fleet(moment)
  const pairs = summedPairs(rows)
  const total = new TrafficSum()
  const services = new Set(fleet.services)
  for (const { source, destination, sum } of pairs) {
    services.add(source).add(destination)
    total.addSum(sum)
  }
  return {
    coverage: coverageOf(moment, fleet, rows.length > 0),
    version,
    hosts: fleet.counts(),
    services: services.size,
    pairs: pairs.length,
    traffic: total.over(coveredMs(moment)),
    problems: problemsOf(fleet),
    store: storeStatus(store),
  }
}

/** Problems of hosts that are not silent. */
function problemsOf(fleet: Fleet): OverviewDocument['problems'] {
  const hosts = new Map<string, number>()
  for (const host of fleet.hosts.values()) {
    if (fleet.isSilent(host)) continue
    for (const code of new Set((host.facts?.problems ?? []).map((problem) => problem.code)))
      hosts.set(code, (hosts.get(code) ?? 0) + 1)
  }
  return Array.from(hosts, ([code, count]) => ({ code, hosts: count })).toSorted(
    (a, b) => b.hosts - a.hosts || compare(a.code, b.code),
  )
}

function storeStatus({ bytes, maxBytes, oldestMs }: StoreReading): StoreStatus {
  const time = (ms: number | undefined): string | null => (ms === undefined ? null : isoTime(ms))
  return {
    bytes,
    maxBytes,
    oldest: {
      seconds: time(oldestMs.seconds),
      minutes: time(oldestMs.minutes),
      hours: time(oldestMs.hours),
    },
  }
}
