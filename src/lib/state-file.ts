/**
 * One file of state that outlives the process: written whole or not at all, believed whole or not at all.
 *
 * ```
 *   line 1   {"format":"hostmesh-catalog","version":1,"writtenAt":"<RFC 3339>","bytes":<n>,"sha256":"<hex>"}
 *   line 2   the body, <n> bytes of JSON; the digest covers format, version, time and body
 * ```
 *
 * Writes are collected, asynchronous and atomic; what fails is a problem to be shown, never an error. A file
 * that is damaged, of another version or open to others is set aside as `<path>.broken` and counts as absent.
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

/** What a state file is opened with. */
export interface StateFileOptions {
  readonly path: string
  /** What the file holds; a file that says another name is not believed. */
  readonly format: string
  /** Raised with every change of the body's shape: a file of another version is not believed. */
  readonly version: number
  /** Longest body, bytes; a longer one is neither written nor read. */
  readonly maxBytes: number
  readonly log: Log
  readonly clock?: Clock
}

/** What an earlier run left. */
export interface StoredState {
  /** Parsed JSON: shape is the reader's to check. */
  readonly body: unknown
  /** Wall clock. */
  readonly writtenAtMs: number
}

/** One file; disposing writes what is not written yet. */
export interface StateFile extends AsyncDisposable {
  /** What the file held when it was opened; undefined when there was nothing to believe. */
  readonly stored: StoredState | undefined
  /** Has the file replaced soon by what `render` gives then: JSON text without a line break. */
  save(render: () => string): void
  /** Takes the file away, and what was read of it. @throws Error when it is there and cannot be removed. */
  remove(): Promise<void>
  /** Whether another process owns the file now: what is saved is written when it does not any more. */
  hold(isHeld: boolean): void
  /** Sets what was read aside, for a reader that could not make sense of its body. */
  reject(reason: string): void
  /** What is wrong with the file, one sentence; undefined when nothing is. */
  problem(): string | undefined
}

/** From a change to the write that holds it: changes come in bursts. */
const COLLECT_MS = 100

/** Least time between two writes. */
const PACE_MS = 1_000

/** Making a large text holds up the thread it is made on: at most this share of its time. */
const DUTY_SHARE = 0.02

/** A disk that is full is not asked again at once. */
const RETRY_MS = 10_000

/** The longest first line: everything in it is short. */
const MAX_HEADER_BYTES = 512

/**
 * Makes the folder of state files (0700) where it is missing.
 * @returns why it cannot be used, one sentence; undefined when it can.
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

/** Reads the file, if there is one. Never throws: what cannot be believed is set aside and logged. */
export function openStateFile(options: StateFileOptions): StateFile {
  return new OpenStateFile(options)
}

/** For a folder that cannot be used: holds nothing and keeps nothing. */
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

  /** What a process left behind that was killed while it wrote: it may be half a file of keys. */
  #removeUnfinished(): void {
    if (this.#writing !== undefined) return
    try {
      rmSync(temporaryOf(this.#options.path), { force: true })
    } catch {
      // Then writing fails as well, and says why.
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

  /** Never rejects. What could not be written is tried again, unless there is something newer by then. */
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

  /** The content, or why it is not believed. */
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
    // The whole line is compared: there is one way to write it, and anything else is damage.
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
      log.warn('State of an earlier run is not believed; going on without it', {
        path,
        reason,
        kept,
      })
    } catch (thrown) {
      this.#problem = `Cannot believe ${path} (${reason}), nor set it aside: ${describeError(thrown)}`
      log.warn('State of an earlier run is not believed; going on without it', {
        problem: this.#problem,
      })
    }
  }
}

/**
 * A file's bytes; undefined when there is none. It must be a plain file of ours, of root or of its folder's
 * owner, that nobody else may write.
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
