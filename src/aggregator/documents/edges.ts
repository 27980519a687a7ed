/**
 * Edges of graphs and of single services, and what documents have in common. Pure.
 */
import type { GraphEdge, GraphNode } from '../../model/fleet.ts'
import type { PairFigures } from '../figures.ts'
import type { Fleet } from './fleet.ts'
import { countedRows, pairsOf, reporterOf, type ServicePair } from './pairs.ts'
import { TrafficSum } from './traffic.ts'

/** A graph before its edges are stated: what is left out need not be. */
export interface GraphDraft {
  readonly nodes: readonly GraphNode[]
  readonly edges: readonly EdgeDraft[]
  readonly notes: readonly string[]
}

/** An edge with what is known of it. */
export type EdgeDraft = Omit<GraphEdge, 'traffic' | 'policy'> & { readonly sum: TrafficSum }

/** A pair of services with the sum of the figures that count. */
export interface SummedPair extends EdgeDraft {
  readonly pair: ServicePair
}

/** All pairs of some rows, with their sums; the same for the same rows, from which several documents are made. */
export function summedPairs(rows: readonly PairFigures[]): readonly SummedPair[] {
  const known = sums.get(rows)
  if (known !== undefined) return known
  const summed = pairsOf(rows).map((pair) => {
    const sum = new TrafficSum()
    for (const row of countedRows(pair)) sum.add(row)
    const { source, destination } = pair
    return { source, destination, reporter: reporterOf(pair), sum, pair }
  })
  sums.set(rows, summed)
  return summed
}

const sums = new WeakMap<readonly PairFigures[], readonly SummedPair[]>()

/** States an edge; without a fleet there is no policy. */
export function edgeOf(
  fleet: Fleet | undefined,
  { source, destination, reporter, sum }: EdgeDraft,
  spanMs: number,
): GraphEdge {
  const policy = fleet?.policies.decide(source, destination) ?? null
  return { source, destination, traffic: sum.over(spanMs), reporter, policy }
}

/** Pairs by their destination. */
export function byDestination(
  pairs: readonly SummedPair[],
): ReadonlyMap<string, readonly SummedPair[]> {
  return Map.groupBy(pairs, ({ destination }) => destination)
}

/** Order by character codes: the same on every machine. */
export function compare(a: string, b: string): number {
  if (a === b) return 0
  return a < b ? -1 : 1
}
