/**
 * Which figures of a pair of services count. Both ends of a connection count it, so the two are never added. The callers'
 * are taken, which have every ending, unless the called side has counted more connections: then the hosts of some callers
 * do not report. Pure.
 */
import type { PairFigures } from '../figures.ts'

/** A pair of services, with the rows of each side. */
export interface ServicePair {
  readonly source: string
  readonly destination: string
  readonly rows: Readonly<Record<PairFigures['reporter'], readonly PairFigures[]>>
}

/** All pairs of some rows, each once. */
export function pairsOf(rows: readonly PairFigures[]): readonly ServicePair[] {
  const bySource = new Map<string, Map<string, MutablePair>>()
  const pairs: MutablePair[] = []
  for (const row of rows) {
    const { source, destination } = row
    let byDestination = bySource.get(source)
    if (byDestination === undefined) {
      byDestination = new Map()
      bySource.set(source, byDestination)
    }
    let pair = byDestination.get(destination)
    if (pair === undefined) {
      pair = { source, destination, rows: { source: [], destination: [] } }
      byDestination.set(destination, pair)
      pairs.push(pair)
    }
    pair.rows[row.reporter].push(row)
  }
  return pairs
}

interface MutablePair extends ServicePair {
  readonly rows: Record<PairFigures['reporter'], PairFigures[]>
}

/** The side whose figures count. */
export function reporterOf({ rows }: ServicePair): PairFigures['reporter'] {
  if (rows.source.length === 0) return 'destination'
  return openedIn(rows.destination) > openedIn(rows.source) ? 'destination' : 'source'
}

function openedIn(rows: readonly PairFigures[]): number {
  return rows.reduce((sum, { figures }) => sum + (figures.counts.get('opened') ?? 0), 0)
}

/** By source and destination: the side whose figures count. */
export type Sides = ReadonlyMap<string, ReadonlyMap<string, PairFigures['reporter']>>

/** The side of each pair of some rows. */
export function sidesOf(rows: readonly PairFigures[]): Sides {
  const sides = new Map<string, Map<string, PairFigures['reporter']>>()
  for (const pair of pairsOf(rows)) {
    const ofSource = sides.get(pair.source) ?? new Map<string, PairFigures['reporter']>()
    sides.set(pair.source, ofSource.set(pair.destination, reporterOf(pair)))
  }
  return sides
}

/** The rows that count. */
export function countedRows(pair: ServicePair): readonly PairFigures[] {
  return pair.rows[reporterOf(pair)]
}
