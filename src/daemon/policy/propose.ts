/**
 * Intentions for connections that were seen: exact pairs only, so never wider than what was seen. Pure.
 */
import type { GraphEdge } from '../../model/fleet.ts'
import { isServiceName } from '../../model/spiffe-id.ts'
import { compareText, OTHER, seenOutcome } from '../simulate.ts'

/** Two services. */
export interface Pair {
  readonly source: string
  readonly destination: string
}

/** What is proposed, and what is not. All lists are sorted by destination, then source. */
export interface Proposal {
  readonly allowed: readonly Pair[]
  /** Seen, and denied by the rules in force: with the reason. */
  readonly denied: readonly (Pair & { readonly reason: string })[]
  /** One sentence each: what was left out. */
  readonly notes: readonly string[]
}

/** The allowed sources of one destination. */
export interface Group {
  readonly destination: string
  readonly sources: readonly string[]
}

/** Proposes one exact rule for each pair of which a connection has passed. */
export function propose(edges: readonly GraphEdge[]): Proposal {
  const counted = edges.filter(({ source, destination }) => ![source, destination].includes(OTHER))
  const usable = counted.filter(
    ({ source, destination }) => isServiceName(source) && isServiceName(destination),
  )
  const sorted = usable.toSorted(
    (a, b) => compareText(a.destination, b.destination) || compareText(a.source, b.source),
  )
  const denied = sorted.filter(isDenied)
  const allowed = sorted.filter((edge) => !isDenied(edge) && hasPassed(edge))
  const quiet = sorted.length - denied.length - allowed.length
  return {
    allowed: uniquePairs(allowed),
    denied: denied.map(({ source, destination, policy }) => ({
      source,
      destination,
      reason: policy?.reason ?? 'all of its connections were denied',
    })),
    notes: [
      ...note(edges.length - counted.length, 'counted as "other", beyond the limit of a host'),
      ...note(counted.length - usable.length, 'of a name that no service can have'),
      ...note(quiet, 'of which no connection was seen to pass'),
    ],
  }
}

/** The pairs by destination, in the order of the proposal. */
export function groupsOf(allowed: readonly Pair[]): Group[] {
  const groups = new Map<string, string[]>()
  for (const { source, destination } of allowed)
    groups.set(destination, [...(groups.get(destination) ?? []), source])
  return [...groups].map(([destination, sources]) => ({ destination, sources }))
}

function isDenied({ policy, traffic }: GraphEdge): boolean {
  return policy?.allow === false || seenOutcome(traffic) === 'deny'
}

function hasPassed({ traffic }: GraphEdge): boolean {
  return seenOutcome(traffic) === 'allow'
}

function uniquePairs(pairs: readonly Pair[]): Pair[] {
  const unique = new Map(
    pairs.map(({ source, destination }) => [`${source} ${destination}`, { source, destination }]),
  )
  return [...unique.values()]
}

function note(count: number, what: string): string[] {
  return count === 0 ? [] : [`Left out: ${count === 1 ? '1 pair' : `${count} pairs`} ${what}`]
}
