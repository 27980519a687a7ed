/**
 * One file of state that outlives the process: written completely or not at all, accepted completely or not at all.
 *
 * ```
 *   line 1   {"format":"hostmesh-catalog","version":1,"writtenAt":"<RFC 3339>","bytes":<n>,"sha256":"<hex>"}
 *   line 2   the body, <n> bytes of JSON; the digest covers format, version, time and body
 * ```
 *
 * Writes are collected, asynchronous and atomic; a failed write is a problem to be shown, never an error. A file that
 * is damaged, of another version or writable by others is renamed to `<path>.broken` and counts as absent.
 */
import { createHash } from 'node:crypto'
import {
  closeSync,
  constants,
  fstatSync,
  mkdirSync,
  openSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
} from 'node:fs'
import { rm } from 'node:fs/promises'
import { dirname } from 'node:path'
import { replaceFile, temporaryOf } from './atomic-file.ts'
import { type Clock, systemClock } from './clock.ts'
import { describeError, errorCode } from './errors.ts'
import { member, parseJson } from './json-value.ts'
import type { Log } from './log.ts'

/** Options of a state file. */
export interface StateFileOptions {
  readonly path: string
  /** What the file holds; a file with another format name is rejected. */
  readonly format: string
  /** Increased with every change of the body's shape; a file of another version is rejected. */
  readonly version: number
  /** Maximum length of the body, bytes; a longer one is neither written nor read. */
  readonly maxBytes: number
  readonly log: Log
  readonly clock?: Clock
}

/** The state that an earlier run left. */
export interface StoredState {
  /** Parsed JSON; the reader must check its shape. */
  readonly body: unknown
  /** Wall clock. */
  readonly writtenAtMs: number
}

/** One file; disposing it writes what is not written yet. */
export interface StateFile extends AsyncDisposable {
  /** The content when the file was opened; undefined when there was none that could be accepted. */
  readonly stored: StoredState | undefined
  /** Schedules a write of what `render` returns at that time: JSON text without a line break. */
  save(render: () => string): void
  /** Removes the file and the content read from it. @throws Error when it exists and cannot be removed. */
  remove(): Promise<void>
  /** Sets whether another process owns the file now: saved content is written when it no longer does. */
  hold(isHeld: boolean): void
  /** Sets the file aside, for a reader that rejects its body. */
  reject(reason: string): void
  /** What is wrong with the file, in one sentence; undefined when nothing is. */
  problem(): string | undefined
}

/** Delay from a change to its write, because changes come in bursts. Milliseconds. */
const COLLECT_MS = 100

/** Minimum interval between two writes. Milliseconds. */
const PACE_MS = 1_000

/** Rendering a large text blocks its thread: maximum share of the thread's time for it. */
const DUTY_SHARE = 0.02

/** Wait after a failed write, as on a full disk. Milliseconds. */
const RETRY_MS = 10_000

/** Maximum length of the first line, in which everything is short. Bytes. */
const MAX_HEADER_BYTES = 512

/**
 * Creates the folder of state files (0700) where it is missing.
 * @returns why it cannot be used, in one sentence; undefined when it can.
 */
export function prepareStateDirectory(path: string): string | undefined {
  try {
    mkdirSync(path, { mode: 0o700 })
  } catch (thrown) {
    if (errorCode(thrown) !== 'EEXIST') return `Cannot make ${path}: ${describeError(thrown)}`
  }
  try {
    const facts = statSync(path)
    if (!facts.isDirectory()) return `Cannot keep state in ${path}: it is not a directory`
    if ((facts.mode & 0o022) !== 0)
      return `Cannot keep state in ${path}: others may write to it; run: chmod 0700 ${path}`
    return undefined
  } catch (thrown) {
    return `Cannot look at ${path}: ${describeError(thrown)}`
  }
}

/** Reads the file, if there is one. Never throws: a file that cannot be accepted is set aside and logged. */
export function openStateFile(options: StateFileOptions): StateFile {
  return new OpenStateFile(options)
}

/** For a folder that cannot be used: reads and stores nothing. */
export const noStateFile: StateFile = {
  stored: undefined,
  save: () => undefined,
  remove: async () => undefined,
  hold: () => undefined,
  reject: () => undefined,
  problem: () => undefined,
  [Symbol.asyncDispose]: async () => undefined,
}

class OpenStateFile implements StateFile {
  readonly #options: StateFileOptions
  readonly #clock: Clock
  #stored: StoredState | undefined
  #render: (() => string) | undefined
  #timer: NodeJS.Timeout | undefined
  #writing: Promise<void> | undefined
  #notBeforeMs = Number.NEGATIVE_INFINITY
  #problem: string | undefined
  #isClosed = false
  #isHeld = false

  constructor(options: StateFileOptions) {
    this.#options = options
    this.#clock = options.clock ?? systemClock
    this.#stored = this.#read()
  }

  get stored(): StoredState | undefined {
    return this.#stored
  }

  save(render: () => string): void {
    this.#render = render
    this.#schedule()
  }

  async remove(): Promise<void> {
    this.#stored = undefined
    this.#render = undefined
    await this.#writing
    await rm(this.#options.path, { force: true })
    this.#removeUnfinished()
  }

  hold(isHeld: boolean): void {
    this.#isHeld = isHeld
    if (isHeld) {
      clearTimeout(this.#timer)
      this.#timer = undefined
      return
    }
    this.#removeUnfinished()
    if (this.#render !== undefined) this.#schedule()
  }

  /** Removes the temporary file of a process that was killed while it wrote: it may be half a file of keys. */
  #removeUnfinished(): void {
    if (this.#writing !== undefined) return
    try {
      rmSync(temporaryOf(this.#options.path), { force: true })
    } catch {
      // Then writing fails as well, and reports why.
    }
  }

  reject(reason: string): void {
    this.#stored = undefined
    this.#setAside(reason)
  }

  problem(): string | undefined {
    return this.#problem
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#isClosed = true
    clearTimeout(this.#timer)
    await this.#writing
    if (!this.#isHeld) await this.#write()
  }

  #schedule(): void {
    if (this.#isClosed || this.#isHeld) return
    if (this.#timer !== undefined || this.#writing !== undefined) return
    const waitMs = Math.max(COLLECT_MS, this.#notBeforeMs - this.#clock.monotonicMs())
    this.#timer = setTimeout(() => {
      this.#timer = undefined
      this.#writing = this.#write().finally(() => {
        this.#writing = undefined
        if (this.#render !== undefined) this.#schedule()
      })
    }, waitMs)
  }

  /** Never rejects. A failed write is tried again, unless there is newer content by then. */
  async #write(): Promise<void> {
    const render = this.#render
    if (render === undefined) return
    this.#render = undefined
    const { path, maxBytes, log } = this.#options
    const startedAtMs = this.#clock.monotonicMs()
    try {
      const body = Buffer.from(render())
      if (body.length > maxBytes)
        throw new Error(`${body.length} bytes are to be kept, and the limit is ${maxBytes}`)
      const header = Buffer.from(this.#header(new Date(this.#clock.wallMs()).toISOString(), body))
      const tookMs = this.#clock.monotonicMs() - startedAtMs
      this.#notBeforeMs = this.#clock.monotonicMs() + Math.max(PACE_MS, tookMs / DUTY_SHARE)
      await replaceFile(path, [header, body])
      if (this.#problem !== undefined) log.info('State is written again', { path })
      this.#problem = undefined
    } catch (thrown) {
      const problem = `Cannot write ${path}: ${describeError(thrown)}`
      if (problem !== this.#problem) log.warn('State is not kept for a restart', { problem })
      this.#problem = problem
      this.#render ??= render
      this.#notBeforeMs = this.#clock.monotonicMs() + RETRY_MS
    }
  }

  #header(writtenAt: string, body: Buffer): string {
    const { format, version } = this.#options
    const sha256 = createHash('sha256')
      .update(`${format}\n${version}\n${writtenAt}\n`)
      .update(body)
      .digest('hex')
    return `${JSON.stringify({ format, version, writtenAt, bytes: body.length, sha256 })}\n`
  }

  #read(): StoredState | undefined {
    let bytes: Buffer
    try {
      const found = readOwnFile(this.#options.path, this.#options.maxBytes + MAX_HEADER_BYTES)
      if (found === undefined) return undefined
      bytes = found
    } catch (thrown) {
      this.#setAside(describeError(thrown))
      return undefined
    }
    const stored = this.#decode(bytes)
    if (typeof stored !== 'string') return stored
    this.#setAside(stored)
    return undefined
  }

  /** The content, or the reason why it is rejected. */
  #decode(bytes: Buffer): StoredState | string {
    const end = bytes.subarray(0, MAX_HEADER_BYTES).indexOf('\n')
    if (end < 0) return 'it has no first line'
    const header = bytes.toString('utf8', 0, end + 1)
    const body = bytes.subarray(end + 1)
    const claimed = parseJson(header)
    const { format, version } = this.#options
    if (member(claimed, 'format') !== format) return `it does not say that it is ${format}`
    if (member(claimed, 'version') !== version) return `it is not of version ${version}`
    const writtenAt = member(claimed, 'writtenAt')
    const writtenAtMs = typeof writtenAt === 'string' ? Date.parse(writtenAt) : Number.NaN
    // The whole line is compared: there is only one way to write it, and anything else is damage.
    if (Number.isNaN(writtenAtMs) || header !== this.#header(String(writtenAt), body))
      return 'its checksum is wrong'
    const parsed = parseJson(body)
    return parsed === undefined ? 'it is not JSON' : { body: parsed, writtenAtMs }
  }

  #setAside(reason: string): void {
    const { path, log } = this.#options
    const kept = `${path}.broken`
    try {
      renameSync(path, kept)
      log.warn('State of an earlier run is rejected; continuing without it', {
        path,
        reason,
        kept,
      })
    } catch (thrown) {
      this.#problem = `Cannot use ${path} (${reason}), and cannot rename it: ${describeError(thrown)}`
      log.warn('State of an earlier run is rejected; continuing without it', {
        problem: this.#problem,
      })
    }
  }
}

/**
 * A file's bytes; undefined when there is none. It must be a regular file that belongs to us, to root or to its
 * folder's owner, and that others cannot write.
 */
function readOwnFile(path: string, maxBytes: number): Buffer | undefined {
  let descriptor: number
  try {
    // Without O_NONBLOCK, opening a FIFO waits for a writer for ever.
    descriptor = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK | constants.O_NOFOLLOW)
  } catch (thrown) {
    if (errorCode(thrown) === 'ENOENT') return undefined
    throw thrown
  }
  try {
    const facts = fstatSync(descriptor)
    if (!facts.isFile()) throw new Error('it is not a regular file')
    if (![process.geteuid?.(), 0, statSync(dirname(path)).uid].includes(facts.uid))
      throw new Error(`it belongs to user ${facts.uid}`)
    if ((facts.mode & 0o022) !== 0) throw new Error('others may write to it')
    if (facts.size > maxBytes) throw new Error(`it is larger than ${maxBytes} bytes`)
    return readFileSync(descriptor)
  } finally {
    closeSync(descriptor)
  }
}
