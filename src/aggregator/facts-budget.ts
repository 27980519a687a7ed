/**
 * The newest facts of all hosts, in memory. Bounded in all: beyond the limit the host with the most is without facts until
 * it reports them again, so that who reports under invented names, or invented services, takes nothing from others. Pure.
 */
import type { ReportedFacts } from '../model/report.ts'

/** Services, their destinations and intentions, of all hosts; 10,000 hosts may have 100 each. */
const MAX_ENTRIES = 1_000_000

/** What has facts. */
export interface HasFacts {
  facts: ReportedFacts | undefined
}

/** See the head of this file. */
export class FactsBudget<Host extends HasFacts> {
  readonly #maxEntries: number
  readonly #entries = new Map<Host, number>()
  #total = 0

  constructor(maxEntries: number = MAX_ENTRIES) {
    this.#maxEntries = maxEntries
  }

  /** Sets the facts of a host; this or another one may be without facts afterwards. */
  set(host: Host, facts: ReportedFacts): void {
    this.forget(host)
    host.facts = facts
    const entries = entriesOf(facts)
    this.#entries.set(host, entries)
    this.#total += entries
    while (this.#total > this.#maxEntries) this.#shed()
  }

  /** The host is gone. */
  forget(host: Host): void {
    this.#total -= this.#entries.get(host) ?? 0
    this.#entries.delete(host)
  }

  #shed(): void {
    let most = 0
    let largest: Host | undefined
    for (const [host, entries] of this.#entries)
      if (entries > most) {
        most = entries
        largest = host
      }
    if (largest === undefined) return
    largest.facts = undefined
    this.forget(largest)
  }
}

function entriesOf({ services, problems }: ReportedFacts): number {
  let entries = 1 + problems.length
  for (const { upstreams, policy } of services)
    entries += 1 + upstreams.length + (policy?.intentions.length ?? 0)
  return entries
}
