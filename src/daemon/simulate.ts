/**
 * What a set of intentions would do to connections that were seen. Pure.
 */
import { evaluate } from '../model/evaluate.ts'
import type { GraphEdge, Traffic } from '../model/fleet.ts'
import type { IntentionSet } from './intention-file.ts'

/** A pair of services that was seen, and what becomes of it. */
export interface SimulatedPair {
  readonly source: string
  readonly destination: string
  readonly openedPerSecond: number
  /** What the rules in force say; where nobody reported them, what became of its connections. */
  readonly today: 'allow' | 'deny' | 'unknown'
  /** What the set says. */
  readonly proposed: 'allow' | 'deny'
  /** `cut`: it would not pass any more. `opened`: it does not pass today. */
  readonly change: 'cut' | 'opened' | 'same'
  /** The rule of the set that decides, such as `intention web -> db (precedence 9) says allow`. */
  readonly because: string
  /** The rule that decides today; null where it was not reported. */
  readonly becauseToday: string | null
}

/** The outcome of a set. */
export interface Simulation {
  readonly defaultPolicy: 'allow' | 'deny'
  /** Those that would be cut first, then those that would be opened. */
  readonly pairs: readonly SimulatedPair[]
  readonly cut: number
  readonly opened: number
  readonly allowed: number
  readonly denied: number
  /** What keeps the outcome from being complete: one sentence each. */
  readonly problems: readonly string[]
}

/** The name under which hosts count pairs beyond their limit together. */
export const OTHER = 'other'

const CHANGES: readonly SimulatedPair['change'][] = ['cut', 'opened', 'same']

/** Decides for every pair. `set` has the rules of all their destinations. */
export function simulate(set: IntentionSet, edges: readonly GraphEdge[]): Simulation {
  const known = edges.filter(({ source, destination }) => ![source, destination].includes(OTHER))
  const pairs = known
    .map((edge) => simulatePair(set, edge))
    .toSorted(
      (a, b) =>
        CHANGES.indexOf(a.change) - CHANGES.indexOf(b.change) ||
        compareText(a.destination, b.destination) ||
        compareText(a.source, b.source),
    )
  const count = (isCounted: (pair: SimulatedPair) => boolean): number =>
    pairs.filter(isCounted).length
  const left = edges.length - known.length
  return {
    defaultPolicy: set.defaultPolicy,
    pairs,
    cut: count(({ change }) => change === 'cut'),
    opened: count(({ change }) => change === 'opened'),
    allowed: count(({ proposed }) => proposed === 'allow'),
    denied: count(({ proposed }) => proposed === 'deny'),
    problems: [
      ...set.problems,
      ...(left === 0
        ? []
        : [`Not judged: pairs beyond the limit of a host, which are counted as "${OTHER}"`]),
    ],
  }
}

function simulatePair(set: IntentionSet, edge: GraphEdge): SimulatedPair {
  const { source, destination, traffic, policy } = edge
  const { allow, reason } = evaluate(source, set.policyByDestination.get(destination))
  const today = policy === null ? seenOutcome(traffic) : actionOf(policy.allow)
  const proposed = actionOf(allow)
  return {
    source,
    destination,
    openedPerSecond: traffic.openedPerSecond,
    today,
    proposed,
    change: changeOf(today, proposed),
    because: reason,
    becauseToday: policy?.reason ?? null,
  }
}

/** What was seen at all is cut if it is denied, unless it is denied already. */
function changeOf(
  today: SimulatedPair['today'],
  proposed: SimulatedPair['proposed'],
): SimulatedPair['change'] {
  if (proposed === 'deny') return today === 'deny' ? 'same' : 'cut'
  return today === 'deny' ? 'opened' : 'same'
}

/** Whether connections have passed; all that ended denied have not. */
export function seenOutcome({ active, closed }: Traffic): SimulatedPair['today'] {
  const flags = Object.entries(closed).flatMap(([flag, count]) => (count > 0 ? [flag] : []))
  if (active > 0 || flags.some((flag) => flag !== 'DENY')) return 'allow'
  return flags.length > 0 ? 'deny' : 'unknown'
}

function actionOf(isAllowed: boolean): 'allow' | 'deny' {
  return isAllowed ? 'allow' : 'deny'
}

/** Order of texts by their code units. */
export function compareText(left: string, right: string): number {
  if (left === right) return 0
  return left < right ? -1 : 1
}
