/**
 * What runs where, and which pairs of services meet in several versions. Pure.
 */
import type { VersionsDocument } from '../../model/fleet.ts'
import type { PairFigures } from '../figures.ts'
import { coverageOf } from './coverage.ts'
import { compare } from './edges.ts'
import { Fleet, type Moment } from './fleet.ts'
import { pairsOf } from './pairs.ts'

/** The versions of hosts; of pairs that had traffic in the span. */
export function versionsDocument(moment: Moment, rows: readonly PairFigures[]): VersionsDocument {
  const fleet = new Fleet(moment)
  const known = moment.hosts.flatMap(({ name, facts }) =>
    facts === undefined ? [] : [{ name, version: facts.version }],
  )
  const versionsOf = (service: string): string[] =>
    fleet.instancesOf(service).flatMap(({ host }) => host.facts?.version ?? [])
  return {
    coverage: coverageOf(moment, fleet, rows.length > 0),
    versions: [...Map.groupBy(known, ({ version }) => version)]
      .map(([version, hosts]) => ({
        version,
        hosts: hosts.map(({ name }) => name).toSorted(compare),
      }))
      .toSorted((a, b) => compareVersions(b.version, a.version)),
    mixedPairs: pairsOf(rows)
      .flatMap(({ source, destination }) => {
        const versions = [...new Set([...versionsOf(source), ...versionsOf(destination)])]
        return versions.length < 2
          ? []
          : [{ source, destination, versions: versions.toSorted(compareVersions) }]
      })
      .toSorted((a, b) => compare(a.source, b.source) || compare(a.destination, b.destination)),
  }
}

/** Compares by numbers where there are numbers: 0.9.0 is before 0.10.0, and 1.0.0-rc.1 before 1.0.0. */
export function compareVersions(a: string, b: string): number {
  const [left, right] = [partsOf(a), partsOf(b)]
  for (let i = 0; i < Math.max(left.length, right.length); i += 1) {
    const order = compareParts(left[i], right[i])
    if (order !== 0) return order
  }
  return compare(a, b)
}

function partsOf(version: string): string[] {
  // Whatever a host has sent: compared in parts, and only so many of them.
  return version.split(/[.+-]/, 16)
}

function compareParts(a: string | undefined, b: string | undefined): number {
  if (a === undefined || b === undefined) {
    if (a === b) return 0
    const [present, sign] = a === undefined ? [b, -1] : [a, 1]
    // A pre-release is before the release itself.
    return /^\d+$/.test(present ?? '') ? sign : -sign
  }
  const [x, y] = [Number(a), Number(b)]
  if (Number.isInteger(x) && Number.isInteger(y)) return x - y
  return compare(a, b)
}
