/**
 * The store in its thread: the file and the parts that work on it, and what is done about failures.
 *
 * A transaction that fails leaves the file as it was; what the parts remember is then read again. When there is no room,
 * room is made once; a damaged file is replaced by a new one.
 */
import { describeError, errorCode, MeshError } from '../../lib/errors.ts'
import type { Log } from '../../lib/log.ts'
import { ByteReader } from './bytes.ts'
import { Database, isDamage, isFull } from './database.ts'
import { RecordEncoder } from './encode-record.ts'
import { FactsLog } from './facts-log.ts'
import { HostTable, knownHost } from './host-table.ts'
import type { Answers, KnownHost, Meanings, StoredReport, StoreSettings } from './protocol.ts'
import { Reader } from './reader.ts'
import { Registry } from './registry.ts'
import { CellSums, RowJoiner } from './rows.ts'
import { Tiers } from './tiers.ts'
import { Writer } from './writer.ts'

/** The answer to one report. */
export type StoreResult = Answers['accept'] | MeshError

/** Runs that have not reported for this long are forgotten, milliseconds. */
const RUN_LIFE_MS = 7 * 86_400_000

/** Names and cells outlive the figures of the longest tier by this. */
const NAME_GRACE_MS = 15 * 86_400_000

const DAY_MS = 86_400_000

/** What works on the file. */
interface Parts {
  readonly hosts: HostTable
  readonly registry: Registry
  readonly tiers: Tiers
  readonly facts: FactsLog
  readonly writer: Writer
  readonly reader: Reader
}

/** See the head of this file. */
export class Store implements Disposable {
  readonly #settings: StoreSettings
  readonly #log: Log
  readonly #database: Database
  readonly #parts: Parts
  #cleanedAtMs = 0

  /** @throws MeshError HM_STORE_FAILED, HM_STORE_FOREIGN */
  constructor(settings: StoreSettings, log: Log) {
    const { path, maxBytes } = settings
    this.#settings = settings
    this.#log = log
    this.#database = new Database({ path, maxBytes, log })
    try {
      this.#parts = makeParts(this.#database, settings)
    } catch (thrown) {
      if (!isDamage(thrown)) throw thrown
      this.#database.replace(thrown)
      this.#parts = makeParts(this.#database, settings)
    }
  }

  get reader(): Reader {
    return this.#parts.reader
  }

  [Symbol.dispose](): void {
    this.#database[Symbol.dispose]()
  }

  /** All hosts, for the front. */
  knownHosts(): KnownHost[] {
    return Array.from(this.#parts.hosts.all(), (host) =>
      knownHost(host, this.#parts.facts.at(host.id, Number.MAX_SAFE_INTEGER)),
    )
  }

  /** Stores reports in one transaction. Never throws: the result of a report may be an error. */
  accept(reports: readonly StoredReport[]): StoreResult[] {
    try {
      return this.#accept(reports)
    } catch (thrown) {
      if (reports.length === 1) return [failure(thrown)]
      // One of them is the reason; the others are stored.
      return reports.flatMap((report) => this.accept([report]))
    }
  }

  noteConflict(host: string, fromMs: number, toMs: number): void {
    this.attempt(toMs, () =>
      this.#database.transaction(() => this.#parts.writer.noteConflict(host, fromMs, toMs)),
    )
  }

  /** Does what is due; see {@link Tiers.maintain}. */
  maintain(nowMs: number, mayGoOn: () => boolean): boolean {
    return this.attempt(nowMs, () => {
      if (nowMs - this.#cleanedAtMs >= DAY_MS) {
        this.#clean(nowMs)
        this.#cleanedAtMs = nowMs
      }
      return this.#parts.tiers.maintain(nowMs, mayGoOn)
    })
  }

  status(): Answers['status'] {
    return {
      bytes: this.#database.bytes(),
      maxBytes: this.#settings.maxBytes,
      oldestMs: {
        seconds: this.#parts.tiers.oldestMs('seconds'),
        minutes: this.#parts.tiers.oldestMs('minutes'),
        hours: this.#parts.tiers.oldestMs('hours'),
      },
      dropped: { ...this.#parts.registry.dropped, records: this.#parts.writer.droppedRecords },
    }
  }

  /** Meanings that are new since the last call; undefined when there are none. */
  takeMeanings(): Meanings | undefined {
    const { names, cells, isReset } = this.#parts.registry.takeFresh()
    const hosts = this.#parts.hosts.takeFresh()
    if (hosts.length + names.length + cells.length === 0) return undefined
    return { isReset, hosts, names, cells }
  }

  /** Reads or writes; makes room or begins a new file when that is what it takes, and tries once more. */
  attempt<Result>(nowMs: number, act: () => Result): Result {
    try {
      return act()
    } catch (thrown) {
      if (thrown instanceof MeshError) throw thrown
      if (isDamage(thrown)) {
        this.#database.replace(thrown)
        this.#reload()
        return act()
      }
      this.#reload()
      if (!isFull(thrown) || !this.#parts.tiers.makeRoom(nowMs)) throw thrown
      return act()
    }
  }

  #accept(reports: readonly StoredReport[]): StoreResult[] {
    const nowMs = reports[0]?.receivedAtMs ?? 0
    return this.attempt(nowMs, () =>
      this.#database.transaction(() =>
        reports.map((report) => {
          try {
            return this.#parts.writer.store(report)
          } catch (thrown) {
            // It is refused before anything is changed.
            if (thrown instanceof MeshError) return thrown
            throw thrown
          }
        }),
      ),
    )
  }

  #reload(): void {
    this.#parts.hosts.load()
    this.#parts.registry.load()
    this.#parts.tiers.load()
  }

  #clean(nowMs: number): void {
    const { hoursMs } = this.#settings
    const database = this.#database
    const before = nowMs - hoursMs
    database.transaction(() => {
      database.run('DELETE FROM run WHERE lastAtMs < ?', nowMs - RUN_LIFE_MS)
      // The entry that holds at the begin of the time that is kept stays.
      database.run(
        `DELETE FROM facts WHERE atMs < ? AND EXISTS
        (SELECT 1 FROM facts later WHERE later.host = facts.host AND later.atMs > facts.atMs AND later.atMs < ?)`,
        before,
        before,
      )
      for (const host of this.#parts.hosts.all())
        if (host.lastAtMs < before - DAY_MS) this.#parts.hosts.remove(host)
    })
    this.#parts.hosts.forgetRuns(nowMs - RUN_LIFE_MS)
    database.transaction(() => this.#parts.registry.forget(before - NAME_GRACE_MS))
    this.#log.debug('Forgot what nobody uses any more')
  }
}

function makeParts(database: Database, settings: StoreSettings): Parts {
  const { secondsMs, minutesMs, hoursMs, maxHosts } = settings
  const hosts = new HostTable(database)
  const registry = new Registry(database)
  const cells = new CellSums(registry.isGauge)
  const joiner = new RowJoiner(cells, new ByteReader(new Uint8Array()))
  const keptMs = { seconds: secondsMs, minutes: minutesMs, hours: hoursMs }
  const tiers = new Tiers({ database, hosts, joiner, keptMs })
  const facts = new FactsLog(database)
  const encoder = new RecordEncoder(registry)
  return {
    hosts,
    registry,
    tiers,
    facts,
    writer: new Writer({ database, hosts, registry, tiers, facts, encoder, maxHosts }),
    reader: new Reader({ database, hosts, registry, tiers, facts, cells }),
  }
}

function failure(thrown: unknown): MeshError {
  if (thrown instanceof MeshError) return thrown
  if (isFull(thrown))
    return new MeshError('HM_STORE_FULL', 'Cannot store a report: there is no room', {
      cause: thrown,
      hint: 'Allow the store more bytes, or make room on its disk',
    })
  return new MeshError(
    'HM_STORE_FAILED',
    `Cannot store a report: ${describeError(thrown)} (${errorCode(thrown)})`,
    { cause: thrown },
  )
}
