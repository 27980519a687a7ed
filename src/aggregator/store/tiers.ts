/**
 * The rows of all tiers: adds records, rolls up, deletes what is old or too much.
 *
 * Per host there are two marks. What ends before `minutesToMs` is in the minutes, what ends before `hoursToMs` in the
 * hours. A roll-up adds the rows between the mark and a later time to the coarser tier and moves the mark, in one
 * transaction; a record from before a mark is added to the coarser tier at once. So every record is in every tier once,
 * whenever it comes and wherever the process ends.
 */
import type { Database } from './database.ts'
import type { HostTable, StoredHost } from './host-table.ts'
import type { RowJoiner } from './rows.ts'
import {
  floorTo,
  type Reach,
  rowId,
  stepMs,
  stepOf,
  stepOfRow,
  type TierName,
  tierNames,
} from './steps.ts'

/** What the tiers need. */
interface TierOptions {
  readonly database: Database
  readonly hosts: HostTable
  readonly joiner: RowJoiner
  readonly keptMs: Readonly<Record<TierName, number>>
}

/** How long after its end a minute is rolled up, milliseconds: later records are added one by one. */
const ROLL_UP_AFTER_MS = 15_000

/** Figures are deleted, a little at a time, while more than this share of the pages is used. */
const CROWDED_SHARE = 0.92

/** When a report has found no room, figures are deleted until no more than this share is used. */
const ROOMY_SHARE = 0.9

/** How much of a tier goes at once then: this share of the time that it covers, at least a step of the next tier. */
const EVICTED_SHARE = 1 / 32

/** How many entries of the log of facts go at once, when there are no figures to delete. */
const EVICTED_FACTS = 200

/** Figures of the last minutes are never deleted to make room. */
const ALWAYS_KEPT_MS = 600_000

/** See the head of this file. */
export class Tiers {
  readonly #options: TierOptions
  /** A multiple of the step of the next tier, so that this has all that the finer one lost. */
  #keptFromMs: Record<TierName, number> = { seconds: 0, minutes: 0, hours: 0 }
  /** Hosts whose rows before `keptFromMs` are still to be deleted. */
  readonly #undeleted: Record<TierName, StoredHost[]> = { seconds: [], minutes: [], hours: [] }

  constructor(options: TierOptions) {
    this.#options = options
    this.load()
  }

  /** Reads the marks of all tiers again; rows before them are deleted once more. */
  load(): void {
    const { database, hosts } = this.#options
    for (const tier of tierNames) {
      this.#keptFromMs[tier] =
        database.number('SELECT value FROM meta WHERE key = ?', `${tier}FromMs`) ?? 0
      this.#undeleted[tier] = this.#keptFromMs[tier] > 0 ? [...hosts.all()] : []
    }
  }

  reach({ minutesToMs, hoursToMs }: StoredHost): Reach {
    return { keptFromMs: this.#keptFromMs, minutesToMs, hoursToMs }
  }

  /** The marks of a host that begins now. */
  marksAt(nowMs: number): { readonly minutesToMs: number; readonly hoursToMs: number } {
    return { minutesToMs: floorTo('minutes', nowMs), hoursToMs: floorTo('hours', nowMs) }
  }

  /** Adds a record that ends at this time. Returns false if it is older than all that is kept. */
  add(host: StoredHost, endMs: number, row: Uint8Array): boolean {
    const startMs = stepOf('seconds', endMs) * stepMs.seconds
    if (startMs < this.#keptFromMs.hours) return false
    if (startMs >= this.#keptFromMs.seconds) this.#addRow('seconds', host, endMs, row)
    if (startMs < host.minutesToMs && startMs >= this.#keptFromMs.minutes)
      this.#addRow('minutes', host, endMs, row)
    if (startMs < host.hoursToMs) this.#addRow('hours', host, endMs, row)
    return true
  }

  /** The oldest time of which a tier has figures. */
  oldestMs(tier: TierName): number | undefined {
    const step = this.#options.database.number(
      'SELECT min(number) FROM step WHERE tier = ? AND number >= ?',
      tierNames.indexOf(tier),
      Math.ceil(this.#keptFromMs[tier] / stepMs[tier]),
    )
    return step === undefined ? undefined : step * stepMs[tier]
  }

  /**
   * Does what is due: roll-ups, then deletions; each host is a transaction. Returns false when it was stopped.
   * @param mayGoOn asked after each host
   */
  maintain(nowMs: number, mayGoOn: () => boolean): boolean {
    if (!this.#rollUpAll(nowMs - ROLL_UP_AFTER_MS, mayGoOn)) return false
    const { database, keptMs } = this.#options
    for (const tier of tierNames) {
      const fromMs = alignedFrom(tier, nowMs - keptMs[tier])
      if (fromMs > this.#keptFromMs[tier]) this.#keepFrom(tier, fromMs)
    }
    if (!this.#deleteAll(mayGoOn)) return false
    while (database.usedPages() > database.maxPages * CROWDED_SHARE) {
      if (!database.withSpare(() => this.#evictOldest(nowMs, 0))) break
      if (!mayGoOn()) return false
    }
    return true
  }

  /** Deletes what is oldest until there is room again. Returns false when there was nothing to delete. */
  makeRoom(nowMs: number): boolean {
    const { database } = this.#options
    return database.withSpare(() => {
      let hasDeleted = false
      while (database.usedPages() > database.maxPages * ROOMY_SHARE) {
        if (!this.#evictOldest(nowMs, EVICTED_SHARE)) break
        hasDeleted = true
      }
      return hasDeleted
    })
  }

  /** Deletes the oldest figures of the finest tier that has some to spare, else old facts. */
  #evictOldest(nowMs: number, share: number): boolean {
    return tierNames.some((tier) => this.#evict(tier, nowMs, share)) || this.#evictFacts()
  }

  /** Deletes the oldest facts; the last ones of each host stay. */
  #evictFacts(): boolean {
    const deleted = this.#options.database.run(
      `DELETE FROM facts WHERE id IN (
        SELECT id FROM facts WHERE EXISTS
        (SELECT 1 FROM facts later WHERE later.host = facts.host AND later.atMs > facts.atMs) ORDER BY atMs LIMIT ?
      )`,
      EVICTED_FACTS,
    )
    return deleted > 0
  }

  #evict(tier: TierName, nowMs: number, share: number): boolean {
    const oldestMs = this.oldestMs(tier)
    const latestMs = alignedFrom(tier, nowMs - ALWAYS_KEPT_MS)
    if (oldestMs === undefined || oldestMs >= latestMs) return false
    const partMs = (nowMs - oldestMs) * share
    const fromMs = Math.min(latestMs, alignedFrom(tier, oldestMs + partMs + nextStepMs(tier)))
    this.#rollUpAll(fromMs, () => true)
    this.#keepFrom(tier, fromMs)
    return this.#deleteAll(() => true)
  }

  /** From now on the tier has nothing from before this time. */
  #keepFrom(tier: TierName, fromMs: number): void {
    const { database, hosts } = this.#options
    database.transaction(() => {
      database.run('INSERT OR REPLACE INTO meta VALUES (?, ?)', `${tier}FromMs`, fromMs)
      database.run(
        'DELETE FROM step WHERE tier = ? AND number < ?',
        tierNames.indexOf(tier),
        Math.ceil(fromMs / stepMs[tier]),
      )
    })
    this.#keptFromMs[tier] = fromMs
    this.#undeleted[tier] = [...hosts.all()]
  }

  #deleteAll(mayGoOn: () => boolean): boolean {
    const { database } = this.#options
    for (const tier of tierNames) {
      const hosts = this.#undeleted[tier]
      const last = Math.ceil(this.#keptFromMs[tier] / stepMs[tier]) - 1
      for (let host = hosts.at(-1); host !== undefined; host = hosts.at(-1)) {
        const { id } = host
        database.transaction(() =>
          database.run(
            `DELETE FROM ${tier} WHERE id BETWEEN ? AND ?`,
            rowId(id, 0),
            rowId(id, last),
          ),
        )
        hosts.pop()
        if (!mayGoOn()) return false
      }
    }
    return true
  }

  /** @param toMs what ends before is rolled up */
  #rollUpAll(toMs: number, mayGoOn: () => boolean): boolean {
    const { database, hosts } = this.#options
    const minutesToMs = floorTo('minutes', toMs)
    const hoursToMs = floorTo('hours', toMs)
    for (const host of hosts.all()) {
      if (host.minutesToMs >= minutesToMs && host.hoursToMs >= hoursToMs) continue
      const before = { minutesToMs: host.minutesToMs, hoursToMs: host.hoursToMs }
      try {
        database.transaction(() => this.#rollUp(host, minutesToMs, hoursToMs))
      } catch (thrown) {
        Object.assign(host, before)
        throw thrown
      }
      if (!mayGoOn()) return false
    }
    return true
  }

  #rollUp(host: StoredHost, minutesToMs: number, hoursToMs: number): void {
    if (host.minutesToMs < minutesToMs) {
      this.#fold('seconds', 'minutes', host, { fromMs: host.minutesToMs, toMs: minutesToMs })
      host.minutesToMs = minutesToMs
    }
    if (host.hoursToMs < hoursToMs) {
      this.#fold('minutes', 'hours', host, { fromMs: host.hoursToMs, toMs: hoursToMs })
      host.hoursToMs = hoursToMs
    }
    this.#options.hosts.save(host)
  }

  /** Adds all rows of a span to the rows of a coarser tier. */
  #fold(
    from: TierName,
    to: TierName,
    host: StoredHost,
    span: { readonly fromMs: number; readonly toMs: number },
  ): void {
    const found = this.#options.database.rows(
      `SELECT id, row FROM ${from} WHERE id BETWEEN ? AND ? ORDER BY id`,
      rowId(host.id, span.fromMs / stepMs[from]),
      rowId(host.id, span.toMs / stepMs[from] - 1),
    )
    const groups = new Map<number, Uint8Array[]>()
    for (const [id, row] of found) {
      if (typeof id !== 'number' || !(row instanceof Uint8Array)) continue
      const endMs = (stepOfRow(id) + 1) * stepMs[from]
      const step = stepOf(to, endMs)
      const group = groups.get(step)
      if (group === undefined) groups.set(step, [row])
      else group.push(row)
    }
    for (const [step, rows] of groups)
      this.#addRow(to, host, (step + 1) * stepMs[to], this.#options.joiner.join(rows))
  }

  #addRow(tier: TierName, host: StoredHost, endMs: number, row: Uint8Array): void {
    const { database, joiner } = this.#options
    const step = stepOf(tier, endMs)
    const id = rowId(host.id, step)
    const known = database.row(`SELECT row FROM ${tier} WHERE id = ?`, id)?.[0]
    if (known instanceof Uint8Array) {
      database.run(`UPDATE ${tier} SET row = ? WHERE id = ?`, joiner.join([known, row]), id)
      return
    }
    database.run(`INSERT INTO ${tier} VALUES (?, ?)`, id, row)
    database.run(
      'INSERT INTO step VALUES (?, ?, 1) ON CONFLICT DO UPDATE SET hosts = hosts + 1',
      tierNames.indexOf(tier),
      step,
    )
  }
}

/** The step of the next tier. */
function nextStepMs(tier: TierName): number {
  return tier === 'seconds' ? stepMs.minutes : stepMs.hours
}

function alignedFrom(tier: TierName, timeMs: number): number {
  const next = nextStepMs(tier)
  return Math.max(0, Math.floor(timeMs / next) * next)
}
