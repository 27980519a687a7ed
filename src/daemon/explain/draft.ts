/**
 * An explanation in progress: each station writes to it in order, and {@link Draft.finish} returns the result.
 *
 * The first failure on the path is the verdict. Later stations are still described: after the first repair, the user
 * needs to know the second failure.
 */
import type { TunnelEntry } from '../../model/admin.ts'
import type {
  EndpointChoice,
  EntryChoice,
  Explanation,
  PolicyChoice,
  Station,
  Verdict,
} from '../../model/explanation.ts'
import type { HostFacts } from '../../model/facts.ts'

/** The question, as the answer repeats it. */
export type Asked = Pick<Explanation, 'from' | 'to' | 'connection'>

/** The stations and findings so far. */
export class Draft {
  readonly stations: Station[] = []
  readonly next: string[] = []
  verdict: Verdict = 'allowed'
  summary: string | undefined
  service: string | null = null
  entry: EntryChoice | null = null
  endpoints: readonly EndpointChoice[] = []
  policy: PolicyChoice | null = null
  leaf: Explanation['leaf'] = null
  expectedSpiffeId: string | null = null
  serverName: string | null = null
  tunnels: readonly TunnelEntry[] = []

  /** Adds the next station of the path. */
  station(
    name: Station['name'],
    mark: Station['mark'],
    summary: string,
    details: readonly string[] = [],
  ): void {
    this.stations.push({ name, mark, summary, details })
  }

  /**
   * Ends the path. The first failure is the verdict, because the application meets it first. The advice of later
   * failures is kept.
   */
  fail(verdict: Verdict, summary: string, ...next: readonly string[]): void {
    this.next.push(...next)
    if (this.verdict !== 'allowed') return
    this.verdict = verdict
    this.summary = summary
  }

  /** The answer. `allowed` is its sentence when nothing failed; leave it out when something certainly failed. */
  finish(facts: HostFacts, asked: Asked, allowed = ''): Explanation {
    return {
      ...asked,
      node: facts.node,
      factsAt: facts.writtenAt,
      catalogAgeMs: facts.catalog.ageMs,
      verdict: this.verdict,
      summary: this.summary ?? allowed,
      next: [...new Set(this.next)],
      stations: this.stations,
      service: this.service,
      entry: this.entry,
      endpoints: this.endpoints,
      policy: this.policy,
      leaf: this.leaf,
      expectedSpiffeId: this.expectedSpiffeId,
      serverName: this.serverName,
      tunnels: this.tunnels,
    }
  }
}
