/**
 * An explanation under way: what the stations write on, one after another, and what becomes of it.
 *
 * It keeps one rule: the first failure on the road is the verdict. Stations behind it are told all the same,
 * because whoever repairs the first wants to know of the second.
 */
import type { TunnelEntry } from '../../model/admin.ts'
import type {
  DoorChoice,
  EndpointChoice,
  Explanation,
  PolicyChoice,
  Station,
  Verdict,
} from '../../model/explanation.ts'
import type { HostFacts } from '../../model/facts.ts'

/** What was asked, as the answer repeats it. */
export type Asked = Pick<Explanation, 'from' | 'to' | 'connection'>

/** Stations and findings so far; {@link Draft.finish} makes the answer of them. */
export class Draft {
  readonly stations: Station[] = []
  readonly next: string[] = []
  verdict: Verdict = 'allowed'
  summary: string | undefined
  service: string | null = null
  door: DoorChoice | null = null
  endpoints: readonly EndpointChoice[] = []
  policy: PolicyChoice | null = null
  leaf: Explanation['leaf'] = null
  expectedSpiffeId: string | null = null
  serverName: string | null = null
  tunnels: readonly TunnelEntry[] = []

  /** The next station of the road. */
  station(
    name: Station['name'],
    mark: Station['mark'],
    summary: string,
    details: readonly string[] = [],
  ): void {
    this.stations.push({ name, mark, summary, details })
  }

  /**
   * The road does not go on. The first failure is the verdict: it is what the application meets. Advice of later
   * ones is kept.
   */
  fail(verdict: Verdict, summary: string, ...next: readonly string[]): void {
    this.next.push(...next)
    if (this.verdict !== 'allowed') return
    this.verdict = verdict
    this.summary = summary
  }

  /** The answer. `allowed` is its sentence when nothing failed; who knows that something did leaves it out. */
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
      door: this.door,
      endpoints: this.endpoints,
      policy: this.policy,
      leaf: this.leaf,
      expectedSpiffeId: this.expectedSpiffeId,
      serverName: this.serverName,
      tunnels: this.tunnels,
    }
  }
}
