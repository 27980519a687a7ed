/**
 * Writes lines to a descriptor that may be full, slow or closed. Never waits for it and never fails because of it.
 *
 * Output that the descriptor does not accept now is kept up to a limit and retried; the rest is lost
 * and counted, and one line reports how many lines were lost as soon as a line can be written again.
 */
import { closeSync, constants, fstatSync, openSync, writeSync } from 'node:fs'
import { errorCode } from './errors.ts'
import { nativeCalls } from './native.ts'

/** Writes bytes from `offset` on and returns how many were accepted. @throws with an errno code. */
export type WriteBytes = (bytes: Uint8Array, offset: number) => number

/** How lines are written. */
export interface LineOutputOptions {
  readonly write: WriteBytes
  /** The line, newline included, that reports `lost` lines, the last one lost for `reason` (an errno code). */
  readonly report: (lost: number, reason: string) => string
  /** Called for every line that is lost. */
  readonly onLost: () => void
}

/** Maximum number of bytes kept for a slow reader. */
export const MAX_KEPT_BYTES = 256 * 1024

/** Retry interval for a slow reader, milliseconds. */
const SLOW_RETRY_MS = 50

/** Retry interval for a descriptor that failed (full disk, closed reader), milliseconds. */
const FAILED_RETRY_MS = 2_000

/** At the end of the process, a slow reader has this long to accept the kept lines, milliseconds. */
const LAST_PATIENCE_MS = 200

/** A line that is not written yet. */
interface KeptLine {
  readonly bytes: Uint8Array
  /** Lost lines that this one reports; 0 for any other. */
  readonly reports: number
  /** Called if it is lost. */
  readonly onLost: () => void
}

/** Writes lines in order to one descriptor. Never throws, and waits only in {@link finish}. */
export class LineOutput {
  private readonly options: LineOutputOptions
  private kept: KeptLine[] = []
  private keptBytes = 0
  /** Bytes of the first kept line that have been written. */
  private written = 0
  /** Whether a line was cut off: the next one must start on a new line. */
  private torn = false
  /** Number of lines that were lost and not reported yet. */
  private lost = 0
  private reason = ''
  /** Whether the reader has not accepted everything; the timer retries. */
  private isSlow = false
  private retry: NodeJS.Timeout | undefined

  constructor(options: LineOutputOptions) {
    this.options = options
  }

  /** Writes a line, newline included; what cannot be written now is kept or lost. */
  line(text: string, onLost: () => void = this.options.onLost): void {
    this.keepReport()
    const line = { bytes: Buffer.from(text), reports: 0, onLost }
    // A line after lost lines that are not reported yet would hide the gap.
    if (this.lost > 0 || !this.hasRoom(line)) return this.lose(line, 'EAGAIN')
    this.keep(line)
    // A slow reader is left to the timer: an attempt for every line would cost more than the line.
    if (!this.isSlow) this.flush()
  }

  /** Writes the kept lines, waiting shortly for a slow reader. For the end of the process. */
  finish(): void {
    clearTimeout(this.retry)
    this.keepReport()
    this.flush()
    const pause = new Int32Array(new SharedArrayBuffer(4))
    for (let waitedMs = 0; this.kept.length > 0 && waitedMs < LAST_PATIENCE_MS; waitedMs += 10) {
      Atomics.wait(pause, 0, 0, 10)
      this.flush()
    }
  }

  private flush(): void {
    this.isSlow = false
    try {
      let first = this.kept[0]
      while (first !== undefined) {
        if (this.torn) this.options.write(NEWLINE, 0)
        this.torn = false
        this.written += this.options.write(first.bytes, this.written)
        if (this.written < first.bytes.length) continue
        this.kept.shift()
        this.keptBytes -= first.bytes.length
        this.written = 0
        // The reader accepts everything now: report losses here, since no line may follow soon and no timer is set.
        if (this.kept.length === 0) this.keepReport()
        first = this.kept[0]
      }
    } catch (error) {
      const code = errorCode(error)
      this.isSlow = code === 'EAGAIN'
      if (!this.isSlow) this.loseAll(code)
      this.tryAgainIn(this.isSlow ? SLOW_RETRY_MS : FAILED_RETRY_MS)
    }
  }

  private hasRoom({ bytes }: KeptLine): boolean {
    return this.keptBytes + bytes.length <= MAX_KEPT_BYTES
  }

  private keep(line: KeptLine): void {
    this.kept.push(line)
    this.keptBytes += line.bytes.length
  }

  private keepReport(): void {
    if (this.lost === 0) return
    const text = this.options.report(this.lost, this.reason)
    const line = { bytes: Buffer.from(text), reports: this.lost, onLost: () => undefined }
    if (!this.hasRoom(line)) return
    this.keep(line)
    this.lost = 0
  }

  private loseAll(reason: string): void {
    const lines = this.kept
    this.torn ||= this.written > 0
    this.kept = []
    this.keptBytes = 0
    this.written = 0
    for (const line of lines) this.lose(line, reason)
  }

  private lose(line: KeptLine, reason: string): void {
    this.reason = reason
    this.lost += line.reports === 0 ? 1 : line.reports
    line.onLost()
  }

  private tryAgainIn(ms: number): void {
    clearTimeout(this.retry)
    this.retry = setTimeout(() => {
      this.keepReport()
      this.flush()
    }, ms).unref()
  }
}

const NEWLINE = Buffer.from('\n')

const STANDARD_ERROR = 2

/** Writes to standard error as {@link WriteBytes}; {@link makeStandardErrorNonBlocking} must have been called. */
export function writeStandardError(bytes: Uint8Array, offset: number): number {
  keepNonBlocking()
  return writeSync(STANDARD_ERROR, bytes, offset)
}

/**
 * Makes standard error non-blocking for all threads of the process, including output of Node and V8.
 * A pipe or terminal is opened again, because its mode is shared with other processes; a
 * socket cannot be. Where native calls are unavailable nothing changes.
 */
export function makeStandardErrorNonBlocking(): void {
  try {
    const status = fstatSync(STANDARD_ERROR)
    if (!status.isFIFO() && !status.isCharacterDevice()) return
    const { O_WRONLY, O_NONBLOCK, O_NOCTTY } = constants
    const own = openSync(`/proc/self/fd/${STANDARD_ERROR}`, O_WRONLY | O_NONBLOCK | O_NOCTTY)
    nativeCalls()?.dup2(own, STANDARD_ERROR)
    closeSync(own)
  } catch {
    // Another user's pipe, a closed one, or no koffi: keepNonBlocking() is the fallback.
  }
}

/**
 * Called before each write: a process that shares the descriptor (a predecessor that ends) may have changed its mode.
 * On a host without koffi a write can wait for a slow reader.
 */
function keepNonBlocking(): void {
  const calls = nativeCalls()
  const flags = calls?.fcntl(STANDARD_ERROR, F_GETFL, 'int', 0) ?? -1
  if (flags >= 0 && (flags & constants.O_NONBLOCK) === 0)
    calls?.fcntl(STANDARD_ERROR, F_SETFL, 'int', flags | constants.O_NONBLOCK)
}

const F_GETFL = 3
const F_SETFL = 4
