/**
 * The hosts and their runs: in memory as in the file. Changes belong to the transaction that is under way; after a
 * failed one {@link HostTable.load} begins again.
 */
import type { Database } from './database.ts'
import type { LayoutPlan } from './encode-record.ts'
import type { KnownHost } from './protocol.ts'
import { LAST_STEP, rowId, tierNames } from './steps.ts'

/** A host. */
export interface StoredHost {
  readonly id: number
  readonly name: string
  keyHash: string
  firstAtMs: number
  lastAtMs: number
  lateMs: number
  lost: number
  clockOffsetMs: number
  /** Before these times, the figures of the host are in the coarser tiers as well. */
  minutesToMs: number
  hoursToMs: number
  conflictFromMs: number | undefined
  conflictToMs: number | undefined
  readonly runs: Map<string, StoredRun>
  /** The last entry of the log; null: not read yet. */
  facts: LoggedFacts | undefined | null
}

/** The last entry of a host in the log of facts. */
export interface LoggedFacts {
  readonly atMs: number
  /** Digest of what does not change all the time. */
  readonly essence: string
  /** Moments that must stay the same, but for the drift of clocks. */
  readonly moments: readonly number[]
}

/** A process of a host's daemon. */
export interface StoredRun {
  readonly id: number
  /** The last record that is stored. */
  accepted: number
  lastAtMs: number
  plan: LayoutPlan | undefined
}

/** Runs of a host that are remembered; of more the one that was silent for longest is forgotten. */
const MAX_RUNS = 256

/** See the head of this file. */
export class HostTable {
  readonly #database: Database
  readonly #hosts = new Map<string, StoredHost>()
  #fresh: [number, string][] = []

  constructor(database: Database) {
    this.#database = database
    this.load()
  }

  /** Reads everything again. */
  load(): void {
    this.#hosts.clear()
    this.#fresh = []
    const byId = new Map<number, StoredHost>()
    const columns =
      'id, name, keyHash, firstAtMs, lastAtMs, lateMs, lost, clockOffsetMs, minutesToMs, hoursToMs, conflictFromMs, conflictToMs'
    for (const row of this.#database.rows(`SELECT ${columns} FROM host`)) {
      const [id, name, keyHash, ...rest] = row
      if (typeof id !== 'number' || typeof name !== 'string' || typeof keyHash !== 'string')
        continue
      const [
        firstAtMs = 0,
        lastAtMs = 0,
        lateMs = 0,
        lost = 0,
        offset = 0,
        minutes = 0,
        hours = 0,
      ] = rest.map(Number)
      const host: StoredHost = {
        id,
        name,
        keyHash,
        firstAtMs,
        lastAtMs,
        lateMs,
        lost,
        clockOffsetMs: offset,
        minutesToMs: minutes,
        hoursToMs: hours,
        conflictFromMs: optional(row[10]),
        conflictToMs: optional(row[11]),
        runs: new Map(),
        facts: null,
      }
      this.#hosts.set(name, host)
      byId.set(id, host)
      this.#fresh.push([id, name])
    }
    for (const row of this.#database.rows('SELECT id, host, token, accepted, lastAtMs FROM run')) {
      const [id, host, token, accepted, lastAtMs] = row
      if (typeof token !== 'string') continue
      byId.get(Number(host))?.runs.set(token, {
        id: Number(id),
        accepted: Number(accepted),
        lastAtMs: Number(lastAtMs),
        plan: undefined,
      })
    }
  }

  get size(): number {
    return this.#hosts.size
  }

  all(): IterableIterator<StoredHost> {
    return this.#hosts.values()
  }

  find(name: string): StoredHost | undefined {
    return this.#hosts.get(name)
  }

  /** Hosts that are new since the last call; to be called after the transaction. */
  takeFresh(): [number, string][] {
    const fresh = this.#fresh
    this.#fresh = []
    return fresh
  }

  /** @param rolledUp before this time there is nothing of the host */
  add(
    name: string,
    keyHash: string,
    atMs: number,
    rolledUp: { minutesToMs: number; hoursToMs: number },
  ): StoredHost {
    const { minutesToMs, hoursToMs } = rolledUp
    const id = this.#database.insert(
      'INSERT INTO host VALUES (NULL, ?, ?, ?, ?, 0, 0, 0, ?, ?, NULL, NULL)',
      name,
      keyHash,
      atMs,
      atMs,
      minutesToMs,
      hoursToMs,
    )
    const host: StoredHost = {
      id,
      name,
      keyHash,
      firstAtMs: atMs,
      lastAtMs: atMs,
      lateMs: 0,
      lost: 0,
      clockOffsetMs: 0,
      minutesToMs,
      hoursToMs,
      conflictFromMs: undefined,
      conflictToMs: undefined,
      runs: new Map(),
      facts: undefined,
    }
    this.#hosts.set(name, host)
    this.#fresh.push([id, name])
    return host
  }

  /** Writes what may have changed in a host. */
  save(host: StoredHost): void {
    this.#database.run(
      `UPDATE host SET keyHash = ?, lastAtMs = ?, lateMs = ?, lost = ?, clockOffsetMs = ?, minutesToMs = ?, hoursToMs = ?,
      conflictFromMs = ?, conflictToMs = ? WHERE id = ?`,
      host.keyHash,
      host.lastAtMs,
      host.lateMs,
      host.lost,
      host.clockOffsetMs,
      host.minutesToMs,
      host.hoursToMs,
      host.conflictFromMs ?? null,
      host.conflictToMs ?? null,
      host.id,
    )
  }

  /** The run of this host; a new one if there is none. */
  run(host: StoredHost, token: string, atMs: number): StoredRun {
    const known = host.runs.get(token)
    if (known !== undefined) return known
    if (host.runs.size >= MAX_RUNS) this.#forgetOldestRun(host)
    const id = this.#database.insert(
      'INSERT INTO run VALUES (NULL, ?, ?, 0, ?)',
      host.id,
      token,
      atMs,
    )
    const run: StoredRun = { id, accepted: 0, lastAtMs: atMs, plan: undefined }
    host.runs.set(token, run)
    return run
  }

  /** Writes what may have changed in a run. */
  saveRun(run: StoredRun): void {
    this.#database.run(
      'UPDATE run SET accepted = ?, lastAtMs = ? WHERE id = ?',
      run.accepted,
      run.lastAtMs,
      run.id,
    )
  }

  /** Forgets runs that were used last before this time; their rows in the file are gone already. */
  forgetRuns(beforeMs: number): void {
    for (const { runs } of this.#hosts.values())
      for (const [token, { lastAtMs }] of runs) if (lastAtMs < beforeMs) runs.delete(token)
  }

  /** Forgets a host, and what may be left of its figures. */
  remove(host: StoredHost): void {
    for (const tier of tierNames)
      this.#database.run(
        `DELETE FROM ${tier} WHERE id BETWEEN ? AND ?`,
        rowId(host.id, 0),
        rowId(host.id, LAST_STEP),
      )
    for (const table of ['run', 'presence', 'facts'])
      this.#database.run(`DELETE FROM ${table} WHERE host = ?`, host.id)
    this.#database.run('DELETE FROM host WHERE id = ?', host.id)
    this.#hosts.delete(host.name)
  }

  #forgetOldestRun(host: StoredHost): void {
    let oldest: [string, StoredRun] | undefined
    for (const entry of host.runs)
      if (oldest === undefined || entry[1].lastAtMs < oldest[1].lastAtMs) oldest = entry
    if (oldest === undefined) return
    host.runs.delete(oldest[0])
    this.#database.run('DELETE FROM run WHERE id = ?', oldest[1].id)
  }
}

/** A host as the front of the store knows it. */
export function knownHost(host: StoredHost, facts: KnownHost['facts']): KnownHost {
  const { name, keyHash, firstAtMs, lastAtMs, lateMs, lost, clockOffsetMs } = host
  const { conflictFromMs, conflictToMs } = host
  return {
    name,
    keyHash,
    firstAtMs,
    lastAtMs,
    lateMs,
    lost,
    clockOffsetMs,
    conflictFromMs,
    conflictToMs,
    facts,
  }
}

function optional(value: unknown): number | undefined {
  return typeof value === 'number' ? value : undefined
}
