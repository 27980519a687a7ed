/**
 * Every certificate that the CA has issued and that has not expired: an append-only file with one JSON line each,
 * and an index of it in memory.
 *
 * A line is on the disk before its certificate is handed out, so that whatever is in use can be revoked. Bounded
 * by what hosts may hold (the office counts): expired lines go when more than half of the file is such.
 */
import {
  closeSync,
  existsSync,
  fdatasyncSync,
  fstatSync,
  ftruncateSync,
  openSync,
  readFileSync,
  writeFileSync,
} from 'node:fs'
import { dirname } from 'node:path'
import { z } from 'zod'
import { syncFolder, writeFileAtomically } from '../controlplane/identity/atomic-file.ts'
import { MeshError } from '../lib/errors.ts'

const line = z.strictObject({
  serial: z.string().regex(/^[0-9A-F]+$/),
  host: z.string(),
  /** null: the certificate of the host itself. */
  service: z.string().nullable(),
  issuedAtMs: z.number(),
  notAfterMs: z.number(),
  rootId: z.string(),
})

/** One certificate that was issued. */
export type Issue = z.output<typeof line>

/** Expired lines that a file may hold before it is worth writing it again. */
const MIN_WASTE = 10_000

/** The open journal of one CA. */
export class Journal implements Disposable {
  private readonly path: string
  private readonly bySerial = new Map<string, Issue>()
  private readonly byHost = new Map<string, Set<Issue>>()
  private descriptor: number
  private lines = 0
  /** Of the whole lines in the file. */
  private bytes = 0
  private isClosed = false

  /**
   * Opens the journal at `path`, drops what expired before `nowMs`, and mends what a crash left half written.
   * @throws MeshError HM_CA_JOURNAL_INVALID when a line in its midst is damaged
   */
  constructor(path: string, nowMs: number) {
    this.path = path
    const text = existsSync(path) ? readFileSync(path, 'utf8') : ''
    const rows = text.split('\n')
    // Nobody was given a certificate whose line is not complete.
    rows.pop()
    for (const [index, row] of rows.entries()) {
      const issue = parseLine(row)
      if (issue === undefined)
        throw new MeshError(
          'HM_CA_JOURNAL_INVALID',
          `Cannot read ${path}: line ${index + 1} is damaged`,
          { hint: 'Restore the whole directory of the CA from a backup' },
        )
      if (issue.notAfterMs > nowMs) this.index(issue)
    }
    this.descriptor = this.rewrite()
  }

  /** How many certificates have not expired (as of the last {@link Journal.prune}). */
  get size(): number {
    return this.bySerial.size
  }

  /** Those of one host, or all. */
  issues(host?: string): readonly Issue[] {
    return host === undefined ? [...this.bySerial.values()] : [...(this.byHost.get(host) ?? [])]
  }

  find(serial: string): Issue | undefined {
    return this.bySerial.get(serial)
  }

  countOf(host: string): number {
    return this.byHost.get(host)?.size ?? 0
  }

  /** Writes a line and returns when it is on the disk. @throws what node:fs throws, nothing is recorded then */
  record(issue: Issue): void {
    const text = Buffer.from(`${JSON.stringify(issue)}\n`)
    // A full disk must not leave half a line for the next one to be glued to.
    const mend = (): void => ftruncateSync(this.descriptor, this.bytes)
    if (fstatSync(this.descriptor).size !== this.bytes) mend()
    try {
      // Not writeSync(): on a disk that is nearly full it writes a part and calls that a success.
      writeFileSync(this.descriptor, text)
      fdatasyncSync(this.descriptor)
    } catch (thrown) {
      mend()
      throw thrown
    }
    this.bytes += text.length
    this.lines += 1
    this.index(issue)
  }

  /** Forgets what has expired. */
  prune(nowMs: number): void {
    for (const issue of this.bySerial.values()) {
      if (issue.notAfterMs > nowMs) continue
      this.bySerial.delete(issue.serial)
      const ofHost = this.byHost.get(issue.host)
      ofHost?.delete(issue)
      if (ofHost?.size === 0) this.byHost.delete(issue.host)
    }
    if (this.lines - this.bySerial.size < Math.max(MIN_WASTE, this.bySerial.size)) return
    const old = this.descriptor
    this.descriptor = this.rewrite()
    closeSync(old)
  }

  [Symbol.dispose](): void {
    if (this.isClosed) return
    this.isClosed = true
    closeSync(this.descriptor)
  }

  private index(issue: Issue): void {
    this.bySerial.set(issue.serial, issue)
    const ofHost = this.byHost.get(issue.host) ?? new Set()
    this.byHost.set(issue.host, ofHost.add(issue))
  }

  private rewrite(): number {
    const text = [...this.bySerial.values()].map((issue) => `${JSON.stringify(issue)}\n`).join('')
    writeFileAtomically(this.path, text, { mode: 0o600, existing: 'replace' })
    // Lines are added to this file and to no other that has its name.
    syncFolder(dirname(this.path))
    this.lines = this.bySerial.size
    this.bytes = Buffer.byteLength(text)
    return openSync(this.path, 'a')
  }
}

function parseLine(row: string): Issue | undefined {
  try {
    return line.parse(JSON.parse(row))
  } catch {
    return undefined
  }
}
