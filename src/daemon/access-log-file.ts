/**
 * The file of the access log: appends the lines of the workers, and renames the file when it is full (`FILE.1` is the
 * youngest of the earlier ones).
 *
 * The file is looked at before each batch: one that was renamed or removed by somebody else is made again. After a
 * reload two processes append to it, and only the newer one renames. What cannot be written is lost, counted and
 * reported as a problem; no line is left half written.
 */
import { constants } from 'node:fs'
import { type FileHandle, lstat, open, rename, rm } from 'node:fs/promises'
import { describeError, errorCode, MeshError } from '../lib/errors.ts'
import type { Log } from '../lib/log.ts'
import { Problem } from '../model/problem.ts'

/** Lines that the main thread could not write. */
export interface LinesLost {
  /** Of its own log. */
  readonly logLinesLost: number
  /** Of the file of the access log. */
  readonly accessLinesLost: number
}

/** Where lines are written, and when the file is renamed. */
export interface AccessLogFileOptions {
  readonly path: string
  readonly maxBytes: number
  /** Earlier files that are kept. */
  readonly keep: number
  readonly log: Log
}

/** Permission bits of the file: others than its owner and group see no addresses. */
const MODE = 0o640

/** Writes the file. Owns its descriptor. */
export class AccessLogFile implements AsyncDisposable {
  readonly #options: AccessLogFileOptions
  #handle: FileHandle | undefined
  #last: Promise<void> = Promise.resolve()
  #rotates = true
  /** A line could not be finished nor removed: the next one must start on a new line. */
  #isTorn = false
  #lost = 0
  /** Lost since lines could be written last, and why; undefined while they can be. */
  #failure: { lines: number; reason: string } | undefined

  constructor(options: AccessLogFileOptions) {
    this.#options = options
  }

  /** Lines that could not be written. */
  get lost(): number {
    return this.#lost
  }

  /** Why lines cannot be written at present. */
  problems(): readonly Problem[] {
    if (this.#failure === undefined) return []
    const { lines, reason } = this.#failure
    return [
      new Problem(
        'HM_ACCESS_LOG_FAILED',
        `The access log ${this.#options.path} cannot be written (${reason}); ${lines} lines are lost so far`,
      ),
    ]
  }

  /** Appends whole lines in order of the calls. Resolves when they are written or lost; never rejects. */
  write(text: string, lines: number): Promise<void> {
    this.#last = this.#last.then(() => this.#append(Buffer.from(text), lines))
    return this.#last
  }

  /** Another process writes the file now: this one may still append, but leaves renaming to that. */
  handOver(): void {
    this.#rotates = false
  }

  /** Waits for the lines that were passed, and closes the file. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#last
    await this.#handle?.close()
    this.#handle = undefined
  }

  async #append(bytes: Uint8Array, lines: number): Promise<void> {
    try {
      await this.#writeAll(await this.#file(bytes.length), bytes)
      this.#noteWritten()
    } catch (error) {
      this.#noteLost(lines, error)
    }
  }

  /** The open file, with room for so many bytes. */
  async #file(bytes: number): Promise<FileHandle> {
    const { path, maxBytes } = this.#options
    const there = await lstat(path).catch(() => undefined)
    const own = await this.#handle?.stat()
    const isSame = own !== undefined && own.ino === there?.ino && own.dev === there.dev
    const isFull = there !== undefined && there.size > 0 && there.size + bytes > maxBytes
    if (isFull && there.isFile() && this.#rotates) await this.#rotate()
    else if (isSame && this.#handle !== undefined) return this.#handle
    await this.#handle?.close()
    this.#handle = undefined
    this.#isTorn = false
    this.#handle = await openFile(path)
    return this.#handle
  }

  /** Each file takes the name of the next older one; the oldest is replaced. */
  async #rotate(): Promise<void> {
    const { path, keep } = this.#options
    if (keep === 0) {
      await rm(path)
      return
    }
    for (let age = keep - 1; age >= 1; age -= 1)
      await rename(`${path}.${age}`, `${path}.${age + 1}`).catch((error: unknown) => {
        if (errorCode(error) !== 'ENOENT') throw error
      })
    await rename(path, `${path}.1`)
  }

  async #writeAll(handle: FileHandle, lines: Uint8Array): Promise<void> {
    const bytes = this.#isTorn ? Buffer.concat([Buffer.from('\n'), lines]) : lines
    const { size } = await handle.stat()
    let written = 0
    try {
      while (written < bytes.length) written += (await handle.write(bytes, written)).bytesWritten
      this.#isTorn = false
    } catch (error) {
      if (written > 0) await this.#takeBack(handle, size, written)
      throw error
    }
  }

  /** Removes the beginning of a batch, unless another process has written behind it. */
  async #takeBack(handle: FileHandle, size: number, written: number): Promise<void> {
    try {
      if ((await handle.stat()).size !== size + written) throw new Error('another writer')
      await handle.truncate(size)
    } catch {
      this.#isTorn = true
    }
  }

  #noteWritten(): void {
    if (this.#failure === undefined) return
    const { lines } = this.#failure
    this.#failure = undefined
    this.#options.log.warn('The access log is written again', { linesLost: lines })
  }

  #noteLost(lines: number, error: unknown): void {
    this.#lost += lines
    const reason = describeError(error)
    if (this.#failure === undefined)
      this.#options.log.error('Cannot write the access log; its lines are lost and counted', {
        path: this.#options.path,
        error: reason,
      })
    this.#failure = { lines: (this.#failure?.lines ?? 0) + lines, reason }
  }
}

/** Opens a file to append, or makes it. @throws when it cannot be written, or is no file (a link, a device) */
async function openFile(path: string): Promise<FileHandle> {
  const { O_APPEND, O_CREAT, O_NOFOLLOW, O_NONBLOCK, O_WRONLY } = constants
  const handle = await open(path, O_WRONLY | O_APPEND | O_CREAT | O_NOFOLLOW | O_NONBLOCK, MODE)
  try {
    const status = await handle.stat()
    if (!status.isFile())
      throw new MeshError('HM_ACCESS_LOG_FAILED', 'It is not a file', {
        hint: 'Give accessLog.to the path of a file, not of a device or pipe',
      })
    // Regardless of the umask; one that somebody has prepared keeps its mode.
    if (status.size === 0) await handle.chmod(MODE)
    return handle
  } catch (error) {
    await handle.close()
    throw error
  }
}
