/**
 * The graph of groups of hosts: single hosts, zones or datacenters. Pure.
 *
 * A row says which host counted, and the service at the other end, not the host there. Where the services of a pair run
 * in one group each, the edge is exact. Else the figures are divided among the groups at the other end by the connections
 * that hosts there have counted; the sum stays exact, and a note says that the division is an estimate. Quantiles are of what need not be divided. Ends that nobody has reported are in the group `unknown`.
 */
import type { GraphNode, GroupBy } from '../../model/fleet.ts'
import type { PairFigures } from '../figures.ts'
import type { HostReading } from '../fleet-store.ts'
import type { EdgeDraft, GraphDraft } from './edges.ts'
import type { Fleet } from './fleet.ts'
import { hostHealth, type Judgement, worstOf } from './health.ts'
import { countedRows, reporterOf, type ServicePair } from './pairs.ts'
import { TrafficSum } from './traffic.ts'

/** The group of what nobody has reported. */
const UNKNOWN_GROUP = 'unknown'

type HostGroup = Exclude<GroupBy, 'service'>

/** Shares of groups, which sum up to 1. */
type Shares = ReadonlyMap<string, number>

/** The nodes and edges of the graph. */
export function groupedGraph(
  fleet: Fleet,
  pairs: readonly ServicePair[],
  group: HostGroup,
): GraphDraft {
  const groupOf = (host: string): string => groupOfHost(fleet.hosts.get(host), group)
  const edges = new GroupEdges()
  let divided = 0
  for (const pair of pairs) {
    const other = otherSide(fleet, pair, groupOf)
    if (other.size > 1) divided += 1
    const isCalled = reporterOf(pair) === 'destination'
    const rowsByGroup = Map.groupBy(countedRows(pair), ({ host }) => groupOf(host))
    for (const [own, rows] of rowsByGroup) {
      const ends = (name: string): [string, string] => (isCalled ? [name, own] : [own, name])
      const [only] = other.keys()
      if (other.size === 1 && only !== undefined) {
        const edge = edges.between(...ends(only), reporterOf(pair))
        for (const row of rows) edge.add(row)
        continue
      }
      const sum = new TrafficSum()
      for (const row of rows) sum.add(row)
      for (const [name, share] of other)
        edges.between(...ends(name), reporterOf(pair)).addShare(sum, share)
    }
  }
  const drafts = edges.drafts()
  return {
    nodes: groupNodes(fleet, group, drafts),
    edges: drafts,
    notes:
      divided === 0
        ? []
        : [
            `${divided} pairs of services have several groups at one end; their figures are divided by what each of these has counted, which is an estimate, and they are not in the quantiles`,
          ],
  }
}

interface GroupEdge {
  readonly sum: TrafficSum
  reporter: PairFigures['reporter']
}

/** The edges between groups. */
class GroupEdges {
  readonly #bySource = new Map<string, Map<string, GroupEdge>>()

  /** The sum of an edge. Its reporter is `source` as soon as figures of a caller are in it. */
  between(source: string, destination: string, reporter: PairFigures['reporter']): TrafficSum {
    let byDestination = this.#bySource.get(source)
    if (byDestination === undefined) {
      byDestination = new Map()
      this.#bySource.set(source, byDestination)
    }
    let edge = byDestination.get(destination)
    if (edge === undefined) {
      edge = { sum: new TrafficSum(), reporter }
      byDestination.set(destination, edge)
    }
    if (reporter === 'source') edge.reporter = 'source'
    return edge.sum
  }

  drafts(): EdgeDraft[] {
    return [...this.#bySource].flatMap(([source, edges]) =>
      Array.from(edges, ([destination, edge]) => ({ source, destination, ...edge })),
    )
  }
}

/** The groups at the end that did not count the figures. */
function otherSide(fleet: Fleet, pair: ServicePair, groupOf: (host: string) => string): Shares {
  const isCalled = reporterOf(pair) === 'destination'
  const opened = new Map<string, number>()
  for (const { host, figures, active } of pair.rows[isCalled ? 'source' : 'destination']) {
    const name = groupOf(host)
    opened.set(name, (opened.get(name) ?? 0) + (figures.counts.get('opened') ?? 0) + active)
  }
  const shares = sharesOf(opened)
  if (shares.size > 0) return shares
  const service = isCalled ? pair.source : pair.destination
  const groups = new Set(fleet.instancesOf(service).map(({ host }) => groupOf(host.name)))
  const [only] = groups
  // Nothing says how much each of several groups had.
  return new Map([[groups.size === 1 && only !== undefined ? only : UNKNOWN_GROUP, 1]])
}

function sharesOf(weights: ReadonlyMap<string, number>): Shares {
  const total = weights.values().reduce((sum, weight) => sum + weight, 0)
  if (total > 0)
    return new Map([...weights].flatMap(([name, w]) => (w > 0 ? [[name, w / total]] : [])))
  const [only] = weights.keys()
  return weights.size === 1 && only !== undefined ? new Map([[only, 1]]) : new Map()
}

/** The group of a host. */
function groupOfHost(host: HostReading | undefined, group: HostGroup): string {
  if (host === undefined) return UNKNOWN_GROUP
  switch (group) {
    case 'host':
      return host.name
    case 'datacenter':
      return host.facts?.datacenter ?? UNKNOWN_GROUP
    case 'zone':
      return host.facts?.zone ?? UNKNOWN_GROUP
    default:
      return group satisfies never
  }
}

function groupNodes(fleet: Fleet, group: HostGroup, edges: readonly EdgeDraft[]): GraphNode[] {
  const hostsByGroup = Map.groupBy(fleet.hosts.values(), (host) => groupOfHost(host, group))
  const names = new Set(hostsByGroup.keys())
  for (const { source, destination } of edges) names.add(source).add(destination)
  return Array.from(names, (id) => {
    const hosts = hostsByGroup.get(id) ?? []
    const services = new Set(
      hosts.flatMap(({ facts }) => (facts?.services ?? []).map(({ name }) => name)),
    )
    const { health, reasons }: Judgement = worstOf(hosts.map((host) => hostHealth(fleet, host)))
    return {
      id,
      health,
      instances: services.size,
      hosts: hosts.map(({ name }) => name).toSorted(),
      reasons,
    }
  })
}
