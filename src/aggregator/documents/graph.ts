/**
 * The graph: services, or groups of hosts, and the connections between them. Pure.
 */
import type { GraphDocument, GraphNode, GroupBy } from '../../model/fleet.ts'
import type { PairFigures } from '../figures.ts'
import { coverageOf } from './coverage.ts'
import {
  byDestination,
  compare,
  type EdgeDraft,
  edgeOf,
  type GraphDraft,
  type SummedPair,
  summedPairs,
} from './edges.ts'
import { coveredMs, Fleet, type Moment } from './fleet.ts'
import { groupedGraph } from './grouped-graph.ts'
import { serviceHealth } from './health.ts'
import { pairsOf } from './pairs.ts'

/** Most nodes and edges of one graph; those with the least traffic are left out. */
const MAX_NODES = 2_000
const MAX_EDGES = 10_000

/** The graph of a span. */
export function graphDocument(
  moment: Moment,
  rows: readonly PairFigures[],
  group: GroupBy,
): GraphDocument {
  const fleet = new Fleet(moment)
  const draft =
    group === 'service'
      ? serviceGraph(fleet, summedPairs(rows))
      : groupedGraph(fleet, pairsOf(rows), group)
  const spanMs = coveredMs(moment)
  const coverage = coverageOf(moment, fleet, rows.length > 0)
  const { nodes, edges, omitted } = bounded(draft)
  return {
    coverage: { ...coverage, notes: [...coverage.notes, ...draft.notes] },
    group,
    nodes,
    // Services of one group may have different rules.
    edges: edges.map((edge) => edgeOf(group === 'service' ? fleet : undefined, edge, spanMs)),
    omitted,
  }
}

function serviceGraph(fleet: Fleet, pairs: readonly SummedPair[]): GraphDraft {
  const inbound = byDestination(pairs)
  const names = new Set(fleet.services)
  for (const { source, destination } of pairs) names.add(source).add(destination)
  const nodes = Array.from(names, (id): GraphNode => {
    const { health, reasons } = serviceHealth(fleet, id, inbound.get(id) ?? [])
    const instances = fleet.instancesOf(id).length
    return { id, health, instances, hosts: fleet.hostsOf(id), reasons }
  })
  return { nodes, edges: pairs, notes: [] }
}

/** In a stable order, and without what exceeds the limits. */
function bounded({ nodes, edges }: GraphDraft): {
  readonly nodes: readonly GraphNode[]
  readonly edges: readonly EdgeDraft[]
  readonly omitted: number
} {
  const weights = new Map<string, number>()
  const weightOf = ({ sum }: EdgeDraft): number => sum.count('opened') + sum.active
  for (const edge of edges)
    for (const id of [edge.source, edge.destination])
      weights.set(id, (weights.get(id) ?? 0) + weightOf(edge))
  const keptNodes = heaviest(nodes, MAX_NODES, ({ id }) => weights.get(id) ?? 0)
  const ids = new Set(keptNodes.map(({ id }) => id))
  const between = edges.filter(({ source, destination }) => ids.has(source) && ids.has(destination))
  const keptEdges = heaviest(between, MAX_EDGES, weightOf)
  return {
    nodes: keptNodes.toSorted((a, b) => compare(a.id, b.id)),
    edges: keptEdges.toSorted(
      (a, b) => compare(a.source, b.source) || compare(a.destination, b.destination),
    ),
    omitted: nodes.length - keptNodes.length + (edges.length - keptEdges.length),
  }
}

function heaviest<T>(all: readonly T[], max: number, weightOf: (one: T) => number): readonly T[] {
  if (all.length <= max) return all
  return all
    .map((one): [number, T] => [weightOf(one), one])
    .toSorted(([a], [b]) => b - a)
    .slice(0, max)
    .map(([, one]) => one)
}
