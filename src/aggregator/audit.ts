/**
 * The audit log: one JSON line for each use of a token and each refusal, later for each act that reads payload metadata
 * or changes something. The same act of the same caller is written once a minute, then with a count.
 *
 * Lines are appended and never changed. A full file is renamed once (`audit.log.1`), so that the log has a limit.
 */
import { closeSync, fstatSync, openSync, renameSync, writeSync } from 'node:fs'
import type { Clock } from '../lib/clock.ts'
import { describeError, MeshError } from '../lib/errors.ts'
import type { Log } from '../lib/log.ts'

/** One act. */
export interface AuditEvent {
  readonly event: 'denied' | 'token'
  /** Who it was, as far as that is known. */
  readonly caller: string
  /** The caller's address, or `unix`. */
  readonly from: string
  readonly path: string
  /** Why it was refused. */
  readonly reason?: string
}

/** Size at which the file is renamed. Two of them are the most that the log takes. */
const MAX_BYTES = 16 * 1_024 * 1_024

/** Repetitions within so long are counted, for a bounded number of acts. */
const REPEAT_MS = 60_000
const MAX_REMEMBERED = 1_000

/** Longest text of a field: paths and names come from callers. */
const MAX_TEXT = 200

/** Writes the log. A line that cannot be written is reported in the log of the process, and nothing else fails. */
export class AuditLog implements Disposable {
  readonly #path: string
  readonly #clock: Clock
  readonly #log: Log
  readonly #seen = new Map<string, { atMs: number; repeated: number }>()
  #fd: number
  #bytes: number

  /** @throws MeshError HM_AUDIT_FAILED when the file cannot be opened */
  constructor(path: string, { clock, log }: { readonly clock: Clock; readonly log: Log }) {
    this.#path = path
    this.#clock = clock
    this.#log = log
    try {
      this.#fd = openSync(path, 'a', 0o640)
      this.#bytes = fstatSync(this.#fd).size
    } catch (cause) {
      throw new MeshError('HM_AUDIT_FAILED', `Cannot open the audit log ${path}`, {
        cause,
        hint: 'Its directory must be one that the process may write to (store.directory)',
      })
    }
  }

  record({ event, caller, from, path, reason }: AuditEvent): void {
    const act = {
      event,
      caller: caller.slice(0, MAX_TEXT),
      from,
      path: path.slice(0, MAX_TEXT),
      ...(reason !== undefined && { reason: reason.slice(0, MAX_TEXT) }),
    }
    const repeated = this.#repetitions(JSON.stringify(act))
    if (repeated === undefined) return
    const time = new Date(this.#clock.wallMs()).toISOString()
    this.#append(`${JSON.stringify({ time, ...act, ...(repeated > 0 && { repeated }) })}\n`)
  }

  [Symbol.dispose](): void {
    closeSync(this.#fd)
  }

  /** Undefined for a repetition that is only counted; else how many were counted since the last line. */
  #repetitions(key: string): number | undefined {
    const nowMs = this.#clock.monotonicMs()
    const seen = this.#seen.get(key)
    if (seen !== undefined && nowMs - seen.atMs < REPEAT_MS) {
      seen.repeated += 1
      return undefined
    }
    this.#seen.delete(key)
    this.#seen.set(key, { atMs: nowMs, repeated: 0 })
    const [oldest] = this.#seen.keys()
    if (this.#seen.size > MAX_REMEMBERED && oldest !== undefined) this.#seen.delete(oldest)
    return seen?.repeated ?? 0
  }

  #append(line: string): void {
    try {
      if (this.#bytes + line.length > MAX_BYTES) {
        renameSync(this.#path, `${this.#path}.1`)
        closeSync(this.#fd)
        this.#fd = openSync(this.#path, 'a', 0o640)
        this.#bytes = 0
      }
      this.#bytes += writeSync(this.#fd, line)
    } catch (error) {
      this.#log.error('Cannot write the audit log', { error: describeError(error) })
    }
  }
}
