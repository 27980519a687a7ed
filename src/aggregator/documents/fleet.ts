/**
 * The hosts at a moment, with what follows from their facts: who runs which service, which rules hold, who is silent.
 * Pure.
 */
import type { HostCounts, HostEntry } from '../../model/fleet.ts'
import type { ReportedService } from '../../model/report.ts'
import type { HostReading, Span } from '../fleet-store.ts'
import { PolicyBook } from './policy-book.ts'

/** A host without a report for so long is silent. */
export const SILENT_MS = 30_000

/** What a document is about. */
export interface Moment {
  /** When hosts are looked at: now, or the end of a span of the past. */
  readonly atMs: number
  readonly span: Span
  /** Whether the span ends now. */
  readonly live: boolean
  readonly hosts: readonly HostReading[]
  /** The time of the oldest figures that are stored; undefined when there are none. */
  readonly oldestMs: number | undefined
}

/**
 * Length of the part of the span for which there are figures, milliseconds: what a rate is of. A store that is younger
 * than the span must not make traffic look less than it is.
 */
export function coveredMs({ span, oldestMs }: Pick<Moment, 'span' | 'oldestMs'>): number {
  const { fromMs, toMs } = span
  const isPart = oldestMs !== undefined && oldestMs > fromMs && oldestMs < toMs
  return toMs - (isPart ? oldestMs : fromMs)
}

/** An instance of a service on a host. */
export interface Instance {
  readonly host: HostReading
  readonly service: ReportedService
}

/** The hosts of a {@link Moment}. */
export class Fleet {
  readonly atMs: number
  /** By name. */
  readonly hosts: ReadonlyMap<string, HostReading>
  readonly policies: PolicyBook
  readonly #instances = new Map<string, Instance[]>()

  constructor({ atMs, hosts }: Pick<Moment, 'atMs' | 'hosts'>) {
    this.atMs = atMs
    this.hosts = new Map(hosts.map((host) => [host.name, host]))
    for (const host of hosts)
      for (const service of host.facts?.services ?? []) {
        const instances = this.#instances.get(service.name)
        if (instances === undefined) this.#instances.set(service.name, [{ host, service }])
        else instances.push({ host, service })
      }
    this.policies = new PolicyBook(hosts)
  }

  /** Services that a host has reported as its own. */
  get services(): Iterable<string> {
    return this.#instances.keys()
  }

  instancesOf(service: string): readonly Instance[] {
    return this.#instances.get(service) ?? []
  }

  /** The hosts that run a service, sorted. */
  hostsOf(service: string): readonly string[] {
    return [...new Set(this.instancesOf(service).map(({ host }) => host.name))].toSorted()
  }

  isSilent(host: HostReading): boolean {
    return this.atMs - host.lastReportAtMs > SILENT_MS
  }

  stateOf(host: HostReading): HostEntry['state'] {
    if (host.isConflicting) return 'conflicting'
    if (this.isSilent(host)) return 'silent'
    return host.state ?? host.facts?.state ?? 'starting'
  }

  counts(): HostCounts {
    const counts = {
      total: this.hosts.size,
      ready: 0,
      degraded: 0,
      starting: 0,
      draining: 0,
      silent: 0,
      conflicting: 0,
    }
    for (const host of this.hosts.values()) counts[this.stateOf(host)] += 1
    return counts
  }
}
