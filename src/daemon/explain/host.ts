/**
 * Station `host`: the problems of this host that concern the connection. A host without problems has no such station.
 */
import type { ProblemEntry } from '../../model/admin.ts'
import type { HostFacts } from '../../model/facts.ts'
import type { Draft } from './draft.ts'

/** Without these no connection is accepted. */
const NEEDED: ReadonlySet<string> = new Set(['the workers', 'a worker', 'the capture rules'])

/** Adds the problems; ends the path when the host accepts no connections. */
export function describeHost(draft: Draft, facts: HostFacts): void {
  const { node, draining, awaited, problems } = facts
  const missing = awaited.filter((name) => NEEDED.has(name))
  const lines = problems.map(problemText)
  const hints = problems.filter(({ blocks }) => blocks).map(({ hint }) => hint)
  if (draining || missing.length > 0) {
    const why = draining ? 'is draining' : `still waits for ${missing.join(', ')}`
    draft.station('host', 'bad', `${node} ${why}: it takes no new connection`, lines)
    draft.fail('unreachable', `${node} ${why} and takes no new connection`, ...hints)
  } else if (problems.length > 0)
    draft.station(
      'host',
      'warning',
      `${node} has ${problems.length === 1 ? 'a problem' : `${problems.length} problems`} (hostmesh status)`,
      lines,
    )
}

/** Why peers will not trust this host; undefined when it knows no reason. */
export function membershipProblem(facts: HostFacts): ProblemEntry | undefined {
  return facts.problems.find(({ code }) => code === 'HM_CA_HOST_REFUSED')
}

function problemText({ code, message }: ProblemEntry): string {
  return `${code}: ${message}`
}
