/**
 * The CA's data except its keys, in one SQLite file: hosts, certificates, join tokens, roots, revocations.
 *
 * A change is a transaction: on disk when it returns, or not made at all, however the process ends. It uses the
 * rollback journal, not a write-ahead log, so that between changes this one file is complete and can be copied. A file
 * that is missing, damaged or from another program is rejected: a CA without it has lost its revocations.
 */
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { DatabaseSync, type SQLInputValue, type StatementSync } from 'node:sqlite'
import { pathToFileURL } from 'node:url'
import { writeFileAtomically } from '../lib/atomic-file.ts'
import { errorCode, MeshError } from '../lib/errors.ts'

/** Runs a statement and returns the number of changed rows; `values` replace its question marks. */
export type Run = (sql: string, ...values: SQLInputValue[]) => number

/** "hmca": identifies the file for file(1) and for us. */
const APPLICATION_ID = 0x686d_6361

/** Raised with every change of the tables. */
const VERSION = 1

/** How long to wait for a reader of the same file (`hostmesh ca show`), milliseconds. */
const BUSY_MS = 5_000

/** `seq` is ascending: rows are in the order in which they were added. */
const SCHEMA = `
  PRAGMA application_id = ${APPLICATION_ID};
  PRAGMA user_version = ${VERSION};
  -- Where hosts reach the server; no row until one was started.
  CREATE TABLE server (only INTEGER PRIMARY KEY CHECK (only = 1), address TEXT NOT NULL) STRICT;
  -- One root; two while one is replaced: the one that retires and its successor. One of them signs.
  -- The files of a root are <name>.pem and <name>.key.
  CREATE TABLE root (
    seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL UNIQUE CHECK (name = 'ca' OR name GLOB 'root-????????' AND name NOT GLOB 'root-*[^0-9a-f]*'),
    addedAtMs INTEGER NOT NULL, signs INTEGER NOT NULL, retires INTEGER NOT NULL
  ) STRICT;
  -- usedByKey: hash of the key that it was used for. Used tokens stay until they expire: a replay is called one,
  -- and the host whose answer was lost may ask again for the same key. Services are joined by spaces.
  CREATE TABLE token (
    id TEXT PRIMARY KEY, secretHash TEXT NOT NULL, host TEXT NOT NULL, datacenter TEXT NOT NULL,
    services TEXT NOT NULL, expiresAtMs INTEGER NOT NULL, usedByKey TEXT
  ) STRICT;
  -- services: what its token lets it ask for; the catalog may allow more.
  CREATE TABLE host (
    seq INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, datacenter TEXT NOT NULL, services TEXT NOT NULL
  ) STRICT;
  -- Every certificate that has not expired. service: NULL for that of the host itself.
  -- accepted: the host may present it; stays after its end, within which it can be renewed.
  CREATE TABLE certificate (
    seq INTEGER PRIMARY KEY, serial TEXT NOT NULL UNIQUE, host TEXT NOT NULL, service TEXT,
    issuedAtMs INTEGER NOT NULL, notAfterMs INTEGER NOT NULL, rootId TEXT NOT NULL, accepted INTEGER NOT NULL
  ) STRICT;
  CREATE INDEX certificateOfHost ON certificate (host, accepted);
  CREATE INDEX certificateEnd ON certificate (notAfterMs);
  CREATE TABLE revocation (
    seq INTEGER PRIMARY KEY, serial TEXT NOT NULL UNIQUE, notAfterMs INTEGER NOT NULL
  ) STRICT;
`

/** The path of a CA's database. */
export function databaseFile(directory: string): string {
  return join(directory, 'state.db')
}

/**
 * Creates the database of a CA that has not been used, with its root. An existing one is not changed.
 * @throws what node:fs throws
 */
export function createDatabase(
  directory: string,
  root: { readonly id: string; readonly name: string; readonly addedAtMs: number },
): void {
  const sqlite = new DatabaseSync(':memory:')
  try {
    sqlite.exec(SCHEMA)
    const { id, name, addedAtMs } = root
    sqlite.prepare('INSERT INTO root VALUES (1, ?, ?, ?, 1, 0)').run(id, name, addedAtMs)
    // Written as a whole, and never with the permissions of the umask.
    const options = { mode: 0o600, existing: 'fail' } as const
    writeFileAtomically(databaseFile(directory), sqlite.serialize(), options)
  } catch (thrown) {
    if (errorCode(thrown) !== 'EEXIST') throw thrown
  } finally {
    sqlite.close()
  }
}

/** The open database of one CA. Whoever changes it holds the lock of the directory. */
export class CaDatabase implements Disposable {
  readonly #path: string
  readonly #sqlite: DatabaseSync
  readonly #statements = new Map<string, StatementSync>()

  /** @throws MeshError HM_CA_STATE_INVALID */
  constructor(directory: string) {
    this.#path = databaseFile(directory)
    const url = pathToFileURL(this.#path)
    // Never created here: an empty database would be a CA that has lost everything.
    url.searchParams.set('mode', 'rw')
    try {
      this.#sqlite = new DatabaseSync(url, { timeout: BUSY_MS })
    } catch (thrown) {
      throw invalid(
        this.#path,
        existsSync(this.#path) ? 'it cannot be opened' : 'it is missing',
        thrown,
      )
    }
    try {
      this.#check()
      // TRUNCATE syncs the end of a transaction; with DELETE a power failure may undo it.
      this.#sqlite.exec('PRAGMA journal_mode = TRUNCATE; PRAGMA synchronous = FULL')
    } catch (thrown) {
      this.#sqlite.close()
      throw thrown instanceof MeshError ? thrown : invalid(this.#path, 'it is damaged', thrown)
    }
  }

  [Symbol.dispose](): void {
    if (this.#sqlite.isOpen) this.#sqlite.close()
  }

  /** All rows that a SELECT finds; `Row` has the types of its columns. `values` replace its question marks. */
  rows<Row extends object>(sql: string, ...values: SQLInputValue[]): Row[] {
    // oxlint-disable-next-line typescript/no-unsafe-type-assertion -- tables are STRICT: columns have the types of the schema
    return this.#prepare(sql).all(...values) as Row[]
  }

  /** The same, read one by one. */
  *iterate<Row extends object>(sql: string): Generator<Row> {
    // oxlint-disable-next-line typescript/no-unsafe-type-assertion -- as above
    yield* this.#prepare(sql).iterate() as Iterable<Row>
  }

  /** The first of {@link CaDatabase.rows}. */
  // oxlint-disable-next-line typescript/no-unnecessary-type-parameters -- says what the columns are, as in rows()
  row<Row extends object>(sql: string, ...values: SQLInputValue[]): Row | undefined {
    // oxlint-disable-next-line typescript/no-unsafe-type-assertion -- as above
    return this.#prepare(sql).get(...values) as Row | undefined
  }

  /** The number in the one row and column of a SELECT. */
  count(sql: string, ...values: SQLInputValue[]): number {
    return Number(Object.values(this.#prepare(sql).get(...values) ?? {})[0])
  }

  /**
   * Makes all changes that `write` makes with `run`, or none if it throws.
   * @throws MeshError HM_CA_UNWRITABLE
   */
  change<Result>(write: (run: Run) => Result): Result {
    const run: Run = (sql, ...values) => Number(this.#prepare(sql).run(...values).changes)
    try {
      this.#sqlite.exec('BEGIN IMMEDIATE')
      const result = write(run)
      this.#sqlite.exec('COMMIT')
      return result
    } catch (thrown) {
      // Some failures end the transaction by themselves.
      if (this.#sqlite.isTransaction) this.#sqlite.exec('ROLLBACK')
      if (errorCode(thrown) !== 'ERR_SQLITE_ERROR') throw thrown
      throw new MeshError('HM_CA_UNWRITABLE', `Cannot write ${this.#path}`, { cause: thrown })
    }
  }

  #prepare(sql: string): StatementSync {
    const known = this.#statements.get(sql)
    if (known !== undefined) return known
    const statement = this.#sqlite.prepare(sql)
    this.#statements.set(sql, statement)
    return statement
  }

  #check(): void {
    if (this.count('PRAGMA application_id') !== APPLICATION_ID)
      throw invalid(this.#path, 'it is not the database of a CA')
    const version = this.count('PRAGMA user_version')
    if (version !== VERSION)
      throw invalid(this.#path, `it is of version ${version}, not ${VERSION}`)
    const [found] = this.rows<{ quick_check: string }>('PRAGMA quick_check(1)')
    if (found?.quick_check !== 'ok')
      throw invalid(this.#path, `it is damaged (${found?.quick_check ?? 'no answer'})`)
  }
}

function invalid(path: string, reason: string, cause?: unknown): MeshError {
  return new MeshError('HM_CA_STATE_INVALID', `Cannot use ${path}: ${reason}`, {
    cause,
    hint: 'Restore the whole directory of the CA from a backup (docs/certificates.md)',
  })
}
