/**
 * The store's file: SQLite with a write-ahead log, used by one thread of one process.
 *
 * What a finished transaction wrote survives the end of the process at any moment. A power failure may take the last
 * transactions with it, but never damages the file. A file that is damaged is set aside, and a new one is begun: the
 * figures of the past are worth less than those of now.
 */
import { closeSync, mkdirSync, openSync, renameSync, rmSync, statSync } from 'node:fs'
import { dirname } from 'node:path'
import { DatabaseSync, type SQLInputValue, type StatementSync } from 'node:sqlite'
import { errorCode, MeshError } from '../../lib/errors.ts'
import type { Log } from '../../lib/log.ts'

/** A row, as an array of its columns. */
export type Row = readonly unknown[]

/** Options of the file. */
export interface DatabaseOptions {
  readonly path: string
  /** Of the file and its log together. */
  readonly maxBytes: number
  readonly log: Log
}

/** "hmag": identifies the file for file(1) and for us. */
const APPLICATION_ID = 0x686d_6167

/** Raised with every change of the tables or of the rows in them. */
const VERSION = 1

/** A row of a host is about 2.5 KB. */
const PAGE_BYTES = 8_192

/** Part of the limit that is left to the log, of which a large transaction may need much. */
const LOG_BYTES = 32 * 1_024 * 1_024
const LOG_SHARE = 1 / 4

/** Part of the pages that is left to what makes room: a deletion may need pages before it frees more. */
const SPARE_SHARE = 1 / 32

/** A file up to this size is checked as a whole when it is opened; damage in a larger one is found when it is met. */
const CHECKED_BYTES = 64 * 1_024 * 1_024

const CACHE_KIB = 32 * 1_024

/**
 * `week`: last use, in weeks since the epoch. The ids of `seconds`, `minutes` and `hours` are host * 2^32 + number of
 * the step since the epoch; numbers of hosts and runs are never used again.
 */
const SCHEMA = `
  PRAGMA application_id = ${APPLICATION_ID};
  PRAGMA user_version = ${VERSION};
  CREATE TABLE meta (key TEXT PRIMARY KEY, value REAL NOT NULL) STRICT, WITHOUT ROWID;
  -- minutesToMs, hoursToMs: everything before is in the coarser tier.
  CREATE TABLE host (
    id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, keyHash TEXT NOT NULL,
    firstAtMs REAL NOT NULL, lastAtMs REAL NOT NULL, lateMs REAL NOT NULL, lost REAL NOT NULL,
    clockOffsetMs REAL NOT NULL, minutesToMs REAL NOT NULL, hoursToMs REAL NOT NULL,
    conflictFromMs REAL, conflictToMs REAL
  ) STRICT;
  CREATE TABLE run (
    id INTEGER PRIMARY KEY AUTOINCREMENT, host INTEGER NOT NULL, token TEXT NOT NULL, accepted REAL NOT NULL, lastAtMs REAL NOT NULL,
    UNIQUE (host, token)
  ) STRICT;
  CREATE TABLE name (id INTEGER PRIMARY KEY, text TEXT NOT NULL UNIQUE, host INTEGER NOT NULL, week INTEGER NOT NULL) STRICT;
  CREATE TABLE cell (id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, host INTEGER NOT NULL, week INTEGER NOT NULL) STRICT;
  -- The services in the pairs of a host.
  CREATE TABLE presence (
    host INTEGER NOT NULL, name INTEGER NOT NULL, week INTEGER NOT NULL, PRIMARY KEY (host, name)
  ) STRICT, WITHOUT ROWID;
  CREATE TABLE facts (
    id INTEGER PRIMARY KEY, host INTEGER NOT NULL, atMs REAL NOT NULL, json TEXT NOT NULL, UNIQUE (host, atMs)
  ) STRICT;
  CREATE INDEX factsAt ON facts (atMs);
  CREATE TABLE seconds (id INTEGER PRIMARY KEY, row BLOB NOT NULL) STRICT;
  CREATE TABLE minutes (id INTEGER PRIMARY KEY, row BLOB NOT NULL) STRICT;
  CREATE TABLE hours (id INTEGER PRIMARY KEY, row BLOB NOT NULL) STRICT;
  -- How many hosts have a row in a step.
  CREATE TABLE step (
    tier INTEGER NOT NULL, number INTEGER NOT NULL, hosts INTEGER NOT NULL, PRIMARY KEY (tier, number)
  ) STRICT, WITHOUT ROWID;
`

/** The open file. */
export class Database implements Disposable {
  readonly #options: DatabaseOptions
  readonly #allPages: number
  readonly #maxPages: number
  readonly #logBytes: number
  #sqlite: DatabaseSync
  readonly #statements = new Map<string, StatementSync>()

  /** @throws MeshError HM_STORE_FAILED, HM_STORE_FOREIGN */
  constructor(options: DatabaseOptions) {
    this.#options = options
    this.#logBytes = Math.min(LOG_BYTES, options.maxBytes * LOG_SHARE)
    this.#allPages = Math.floor((options.maxBytes - this.#logBytes) / PAGE_BYTES)
    this.#maxPages = Math.floor(this.#allPages * (1 - SPARE_SHARE))
    this.#sqlite = this.#openOrReplace()
  }

  get maxPages(): number {
    return this.#maxPages
  }

  [Symbol.dispose](): void {
    if (this.#sqlite.isOpen) this.#sqlite.close()
  }

  /** Sets the damaged file aside and begins a new one. @throws MeshError HM_STORE_FAILED */
  replace(cause: unknown): void {
    this[Symbol.dispose]()
    this.#statements.clear()
    this.#setAside(cause)
    this.#sqlite = this.#open()
  }

  /** All rows that a SELECT finds. `values` replace its question marks. */
  rows(sql: string, ...values: SQLInputValue[]): Row[] {
    // oxlint-disable-next-line typescript/no-unsafe-type-assertion -- #prepare asks for arrays
    return this.#prepare(sql).all(...values) as unknown as Row[]
  }

  /** The first of {@link Database.rows}. */
  row(sql: string, ...values: SQLInputValue[]): Row | undefined {
    // oxlint-disable-next-line typescript/no-unsafe-type-assertion -- as above
    return this.#prepare(sql).get(...values) as unknown as Row | undefined
  }

  /** The number in the first column of the first row; undefined when there is none. */
  number(sql: string, ...values: SQLInputValue[]): number | undefined {
    const value = this.row(sql, ...values)?.[0]
    return typeof value === 'number' ? value : undefined
  }

  /** Changes rows; returns how many. */
  run(sql: string, ...values: SQLInputValue[]): number {
    return Number(this.#prepare(sql).run(...values).changes)
  }

  /** Adds a row; returns its id. */
  insert(sql: string, ...values: SQLInputValue[]): number {
    return Number(this.#prepare(sql).run(...values).lastInsertRowid)
  }

  /** Makes all changes that `change` makes, or none if it throws. */
  transaction<Result>(change: () => Result): Result {
    this.#sqlite.exec('BEGIN IMMEDIATE')
    try {
      const result = change()
      this.#sqlite.exec('COMMIT')
      return result
    } catch (thrown) {
      // Some failures end the transaction by themselves.
      if (this.#sqlite.isTransaction) this.#sqlite.exec('ROLLBACK')
      throw thrown
    }
  }

  /** Lets `change`, which makes room, use the pages that are spared for it. */
  withSpare<Result>(change: () => Result): Result {
    this.#sqlite.exec(`PRAGMA max_page_count = ${this.#allPages}`)
    try {
      return change()
    } finally {
      this.#sqlite.exec(`PRAGMA max_page_count = ${this.#maxPages}`)
    }
  }

  /** Pages that hold something. */
  usedPages(): number {
    return (this.number('PRAGMA page_count') ?? 0) - (this.number('PRAGMA freelist_count') ?? 0)
  }

  /** Bytes of the file and its log. */
  bytes(): number {
    const log = statSync(`${this.#options.path}-wal`, { throwIfNoEntry: false })?.size ?? 0
    return (this.number('PRAGMA page_count') ?? 0) * PAGE_BYTES + log
  }

  #openOrReplace(): DatabaseSync {
    try {
      return this.#open()
    } catch (thrown) {
      if (!isDamage(thrown)) throw failed(this.#options.path, thrown)
      this.#setAside(thrown)
      return this.#open()
    }
  }

  #open(): DatabaseSync {
    const { path } = this.#options
    mkdirSync(dirname(path), { recursive: true, mode: 0o700 })
    // SQLite would create it with the permissions of the umask; its log gets those of the file.
    closeSync(openSync(path, 'a', 0o600))
    const sqlite = new DatabaseSync(path, { timeout: 0 })
    try {
      // Exclusive: a second process is refused, and the index of the log is in memory of our own.
      sqlite.exec('PRAGMA locking_mode = EXCLUSIVE')
      const isNew = pragma(sqlite, 'schema_version') === 0
      // Before anything is changed: the file may belong to another program.
      if (!isNew) this.#checkContent(sqlite)
      sqlite.exec(
        `PRAGMA page_size = ${PAGE_BYTES}; PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;
        PRAGMA journal_size_limit = ${Math.floor(this.#logBytes / 2)};
        PRAGMA wal_autocheckpoint = ${Math.floor(this.#logBytes / 4 / PAGE_BYTES)};
        PRAGMA cache_size = -${CACHE_KIB}; PRAGMA temp_store = MEMORY; PRAGMA max_page_count = ${this.#maxPages}`,
      )
      if (isNew) sqlite.exec(`BEGIN IMMEDIATE; ${SCHEMA} COMMIT`)
      return sqlite
    } catch (thrown) {
      sqlite.close()
      throw thrown
    }
  }

  #checkContent(sqlite: DatabaseSync): void {
    const { path } = this.#options
    if (pragma(sqlite, 'application_id') !== APPLICATION_ID)
      throw new MeshError('HM_STORE_FOREIGN', `Cannot use ${path}: it is of another program`, {
        hint: 'Name another file for the store of the aggregator',
      })
    const version = pragma(sqlite, 'user_version')
    if (version !== VERSION)
      throw new MeshError(
        'HM_STORE_FOREIGN',
        `Cannot use ${path}: it is of version ${version}, not ${VERSION}`,
        { hint: 'Move the file away, or start the version of hostmesh that wrote it' },
      )
    if (pragma(sqlite, 'page_count') * PAGE_BYTES > CHECKED_BYTES) return
    const found = Object.values(sqlite.prepare('PRAGMA quick_check(1)').get() ?? {})[0]
    if (found !== 'ok') throw new Damage(String(found))
  }

  /** One damaged file is kept, so that damage again and again does not fill the disk. */
  #setAside(cause: unknown): void {
    const { path, log } = this.#options
    const aside = `${path}.damaged`
    log.error('The store is damaged: it is set aside and a new one is begun', {
      path,
      aside,
      error: cause instanceof Error ? cause.message : String(cause),
    })
    try {
      renameSync(path, aside)
      for (const end of ['-wal', '-shm']) rmSync(path + end, { force: true })
    } catch (thrown) {
      throw failed(path, thrown)
    }
  }

  #prepare(sql: string): StatementSync {
    const known = this.#statements.get(sql)
    if (known !== undefined) return known
    const statement = this.#sqlite.prepare(sql)
    statement.setReturnArrays(true)
    this.#statements.set(sql, statement)
    return statement
  }
}

function pragma(sqlite: DatabaseSync, name: string): number {
  return Number(Object.values(sqlite.prepare(`PRAGMA ${name}`).get() ?? {})[0])
}

/** The check of the file found damage. */
class Damage extends Error {
  readonly errcode = CORRUPT
}

const CORRUPT = 11
const FULL = 13
const NOT_A_DATABASE = 26

/** Whether an error says that the file is damaged. */
export function isDamage(thrown: unknown): boolean {
  const code = sqliteCode(thrown)
  return code === CORRUPT || code === NOT_A_DATABASE
}

/** Whether an error says that there is no room: the limit is reached, or the disk is full. */
export function isFull(thrown: unknown): boolean {
  return sqliteCode(thrown) === FULL
}

function sqliteCode(thrown: unknown): number | undefined {
  if (!(thrown instanceof Error) || !('errcode' in thrown)) return undefined
  return typeof thrown.errcode === 'number' ? thrown.errcode & 0xff : undefined
}

function failed(path: string, thrown: unknown): MeshError {
  if (thrown instanceof MeshError) return thrown
  const isBusy = errorCode(thrown) === 'ERR_SQLITE_ERROR' && sqliteCode(thrown) === 5
  return new MeshError('HM_STORE_FAILED', `Cannot use the store ${path}`, {
    cause: thrown,
    hint: isBusy
      ? 'Another process uses this file: stop it, or name another file'
      : 'See whether the disk is writable and has room',
  })
}
