/**
 * The numbers of services and cells, which rows contain in place of names.
 *
 * Bounded, in all and for each host that brings new ones: what exceeds the limits is called `other` (services) or
 * dropped (cells), and counted. What no host has used for longer than the store keeps figures is forgotten.
 *
 * Changes belong to the transaction that is under way; after a failed one {@link Registry.load} begins again.
 */
import { type CellMeaning, keyOf, MAX_CELLS, meaningOfKey } from './cells.ts'
import type { Database } from './database.ts'

/** Services without a number of their own. */
const OTHER = 'other'

/** The number of {@link OTHER}. */
const OTHER_ID = 0

/** Limits; a host may bring as many as two full reports contain. */
const MAX_NAMES = 200_000
const MAX_NAMES_OF_HOST = 8_400
const MAX_CELLS_OF_HOST = 2_048

const WEEK_MS = 7 * 86_400_000

/** A service or cell that got its number. */
export interface NewNames {
  /** All former meanings are void. */
  readonly isReset: boolean
  readonly names: [number, string][]
  readonly cells: [number, CellMeaning][]
}

interface Named {
  readonly id: number
  week: number
}

/** See the head of this file. */
export class Registry {
  readonly #database: Database
  readonly #names = new Map<string, Named>()
  readonly #texts = new Map<number, string>()
  readonly #cells = new Map<string, Named>()
  readonly #presence = new Map<number, Map<number, number>>()
  readonly #namesOfHost = new Map<number, number>()
  readonly #cellsOfHost = new Map<number, number>()
  /** 1 for each cell that is a present value. */
  readonly isGauge: Uint8Array = new Uint8Array(MAX_CELLS)
  /** What was dropped since the start. */
  readonly dropped: { names: number; cells: number } = { names: 0, cells: 0 }
  #fresh: NewNames = { isReset: false, names: [], cells: [] }
  #nextName = 1
  #freeCells: number[] = []

  constructor(database: Database) {
    this.#database = database
    this.load()
  }

  /** Reads everything again. All names are fresh afterwards. */
  load(): void {
    for (const map of [
      this.#names,
      this.#cells,
      this.#presence,
      this.#namesOfHost,
      this.#cellsOfHost,
    ])
      map.clear()
    this.#fresh = { isReset: true, names: [[OTHER_ID, OTHER]], cells: [] }
    this.#texts.clear()
    this.#texts.set(OTHER_ID, OTHER)
    this.#names.set(OTHER, { id: OTHER_ID, week: Infinity })
    this.#nextName = 1
    for (const row of this.#database.rows('SELECT id, text, host, week FROM name')) {
      const [id, text, host, week] = row
      if (typeof id !== 'number' || typeof text !== 'string') continue
      this.#names.set(text, { id, week: Number(week) })
      this.#texts.set(id, text)
      this.#nextName = Math.max(this.#nextName, id + 1)
      increase(this.#namesOfHost, Number(host))
      this.#fresh.names.push([id, text])
    }
    const usedCells = new Set<number>()
    for (const [id, key, host, week] of this.#database.rows(
      'SELECT id, key, host, week FROM cell',
    )) {
      const meaning = typeof key === 'string' ? meaningOfKey(key) : undefined
      if (typeof id !== 'number' || typeof key !== 'string' || meaning === undefined) continue
      this.#cells.set(key, { id, week: Number(week) })
      this.isGauge[id] = meaning.kind === 'gauge' ? 1 : 0
      usedCells.add(id)
      increase(this.#cellsOfHost, Number(host))
      this.#fresh.cells.push([id, meaning])
    }
    this.#freeCells = []
    for (let id = MAX_CELLS - 1; id >= 0; id -= 1) if (!usedCells.has(id)) this.#freeCells.push(id)
    for (const [host, name, week] of this.#database.rows('SELECT host, name, week FROM presence'))
      this.#presenceOf(Number(host)).set(Number(name), Number(week))
  }

  /** The names that are new since the last call; to be called after the transaction. */
  takeFresh(): NewNames {
    const fresh = this.#fresh
    this.#fresh = { isReset: false, names: [], cells: [] }
    return fresh
  }

  /** The number of a service that `host` has named. */
  name(text: string, host: number, nowMs: number): number {
    const known = this.#names.get(text)
    const week = Math.floor(nowMs / WEEK_MS)
    if (known !== undefined) {
      if (known.week < week) {
        known.week = week
        this.#database.run('UPDATE name SET week = ? WHERE id = ?', week, known.id)
      }
      return known.id
    }
    const ofHost = this.#namesOfHost.get(host) ?? 0
    if (this.#names.size >= MAX_NAMES || ofHost >= MAX_NAMES_OF_HOST) {
      this.dropped.names += 1
      return OTHER_ID
    }
    const id = this.#nextName
    this.#database.run('INSERT INTO name VALUES (?, ?, ?, ?)', id, text, host, week)
    this.#nextName += 1
    this.#namesOfHost.set(host, ofHost + 1)
    this.#names.set(text, { id, week })
    this.#texts.set(id, text)
    this.#fresh.names.push([id, text])
    return id
  }

  /** The number of a service, if it has one. */
  findName(text: string): number | undefined {
    return this.#names.get(text)?.id
  }

  /** The service with this number. */
  textOf(name: number): string {
    return this.#texts.get(name) ?? OTHER
  }

  /** The number of a cell of `host`; -1 when there are too many. */
  cell(meaning: CellMeaning, host: number, nowMs: number): number {
    const key = keyOf(meaning)
    const known = this.#cells.get(key)
    const week = Math.floor(nowMs / WEEK_MS)
    if (known !== undefined) {
      if (known.week < week) {
        known.week = week
        this.#database.run('UPDATE cell SET week = ? WHERE id = ?', week, known.id)
      }
      return known.id
    }
    const ofHost = this.#cellsOfHost.get(host) ?? 0
    const id = ofHost >= MAX_CELLS_OF_HOST ? undefined : this.#freeCells.pop()
    if (id === undefined) {
      this.dropped.cells += 1
      return -1
    }
    this.#database.run('INSERT INTO cell VALUES (?, ?, ?, ?)', id, key, host, week)
    this.#cellsOfHost.set(host, ofHost + 1)
    this.#cells.set(key, { id, week })
    this.isGauge[id] = meaning.kind === 'gauge' ? 1 : 0
    this.#fresh.cells.push([id, meaning])
    return id
  }

  /** Notes that a pair of the host names this service. */
  notePresence(host: number, name: number, nowMs: number): void {
    const week = Math.floor(nowMs / WEEK_MS)
    const ofHost = this.#presenceOf(host)
    const known = ofHost.get(name)
    if (known === week || (known === undefined && ofHost.size >= MAX_NAMES_OF_HOST)) return
    ofHost.set(name, week)
    this.#database.run('INSERT OR REPLACE INTO presence VALUES (?, ?, ?)', host, name, week)
  }

  /** Whether the rows of the host may have pairs with all these services. */
  mayHave(host: number, names: readonly (number | undefined)[]): boolean {
    const ofHost = this.#presence.get(host)
    if (ofHost === undefined) return false
    if (ofHost.size >= MAX_NAMES_OF_HOST) return true
    return names.every((name) => name === undefined || ofHost.has(name))
  }

  /** Forgets what was used last before this time. Returns whether there was anything; the registry is loaded again then. */
  forget(beforeMs: number): boolean {
    const week = Math.floor(beforeMs / WEEK_MS)
    const gone = ['name', 'cell', 'presence'].reduce(
      (sum, table) => sum + this.#database.run(`DELETE FROM ${table} WHERE week < ?`, week),
      0,
    )
    if (gone > 0) this.load()
    return gone > 0
  }

  #presenceOf(host: number): Map<number, number> {
    let ofHost = this.#presence.get(host)
    if (ofHost === undefined) this.#presence.set(host, (ofHost = new Map()))
    return ofHost
  }
}

function increase(counts: Map<number, number>, key: number): void {
  counts.set(key, (counts.get(key) ?? 0) + 1)
}
