/**
 * The log of what hosts are: an entry when facts have changed, so that those of any moment can be told.
 *
 * What changes all the time is no change: the age of the process, how long a certificate is still valid (a new
 * certificate is one), numbers of tunnels and of connections around the mesh. Bounded for each host.
 */
import { hash } from 'node:crypto'
import type { ReportedFacts } from '../../model/report.ts'
import type { Database } from './database.ts'
import type { LoggedFacts, StoredHost } from './host-table.ts'

/** Entries of one host; of more the oldest go. */
const MAX_ENTRIES = 5_000

/** Characters of JSON of one host, in the same way. */
const MAX_CHARS = 8 * 1_024 * 1_024

/** How much a moment may move without being another one, milliseconds. */
const DRIFT_MS = 60_000

/** See the head of this file. */
export class FactsLog {
  readonly #database: Database
  readonly #loggedSinceTrim = new Map<number, number>()

  constructor(database: Database) {
    this.#database = database
  }

  /** The facts that held at this time, as JSON. */
  at(host: number, atMs: number): { readonly atMs: number; readonly json: string } | undefined {
    const row = this.#database.row(
      'SELECT atMs, json FROM facts WHERE host = ? AND atMs <= ? ORDER BY atMs DESC LIMIT 1',
      host,
      atMs,
    )
    const [foundAtMs, json] = row ?? []
    return typeof foundAtMs === 'number' && typeof json === 'string'
      ? { atMs: foundAtMs, json }
      : undefined
  }

  /** Notes facts of a host if they have changed, or if they are late: older than the last entry. */
  note(host: StoredHost, facts: ReportedFacts, atMs: number): void {
    if (host.facts === null) host.facts = this.#last(host.id)
    const logged = summaryOf(facts, atMs)
    const last = host.facts
    if (last !== undefined && atMs >= last.atMs && isSame(last, logged)) return
    const json = JSON.stringify(facts)
    this.#database.run(
      'INSERT OR REPLACE INTO facts VALUES (NULL, ?, ?, ?)',
      host.id,
      Math.round(atMs),
      json,
    )
    if (last === undefined || atMs >= last.atMs) host.facts = logged
    this.#trim(host.id, json.length)
  }

  #last(host: number): LoggedFacts | undefined {
    const entry = this.at(host, Number.MAX_SAFE_INTEGER)
    if (entry === undefined) return undefined
    // oxlint-disable-next-line typescript/no-unsafe-type-assertion -- written by note()
    return summaryOf(JSON.parse(entry.json) as ReportedFacts, entry.atMs)
  }

  /** Looks at the size of a host's log when it may have grown by an eighth of the limits. */
  #trim(host: number, chars: number): void {
    const share = 1 / MAX_ENTRIES + chars / MAX_CHARS
    const grown = (this.#loggedSinceTrim.get(host) ?? 1) + share
    if (grown < 1 / 8) {
      this.#loggedSinceTrim.set(host, grown)
      return
    }
    this.#loggedSinceTrim.set(host, 0)
    let total = 0
    let entries = 0
    const sizes = this.#database.rows(
      'SELECT atMs, length(json) FROM facts WHERE host = ? ORDER BY atMs DESC',
      host,
    )
    for (const [atMs, length] of sizes) {
      total += Number(length)
      entries += 1
      // The newest stays, whatever its size.
      if (entries === 1 || (entries <= MAX_ENTRIES && total <= MAX_CHARS)) continue
      this.#database.run('DELETE FROM facts WHERE host = ? AND atMs <= ?', host, Number(atMs))
      return
    }
  }
}

function summaryOf(facts: ReportedFacts, atMs: number): LoggedFacts {
  const { startedMsAgo, services, capture, tunnels: _, ...rest } = facts
  const moments = [atMs - startedMsAgo]
  const certificates: unknown[] = []
  for (const { certificate } of services) {
    moments.push(certificate === undefined ? 0 : atMs + certificate.leftMs)
    certificates.push(certificate?.lifeMs ?? 0)
  }
  const essence = JSON.stringify([
    rest,
    services.map(({ certificate, ...service }) => [service, certificate?.spiffeId ?? '']),
    certificates,
    [capture.mode, capture.backend ?? '', capture.inSync ?? ''],
  ])
  return { atMs, essence: hash('sha256', essence, 'base64'), moments }
}

function isSame(left: LoggedFacts, right: LoggedFacts): boolean {
  return (
    left.essence === right.essence &&
    left.moments.every((moment, index) => Math.abs(moment - (right.moments[index] ?? 0)) < DRIFT_MS)
  )
}
