/**
 * Where the lines of a worker's access log go: to standard error, or in batches to the main thread, which has the file.
 *
 * Never more than {@link MAX_WAITING_BYTES} wait for the file: with a slow disk lines are lost, and no memory grows.
 */
import { systemClock } from '../lib/clock.ts'
import type { LineOutput } from '../lib/line-output.ts'
import type { WorkerCounters } from '../telemetry/counters.ts'
import type { FromWorker, WorkerSettings } from './protocol.ts'
import { AccessLog } from './proxy/access-log.ts'

/** Most bytes that wait, here and in the main thread. */
export const MAX_WAITING_BYTES = 1_048_576

/** A batch is sent when it has this size, or this age in milliseconds. */
const BATCH_BYTES = 65_536
const BATCH_MS = 100

/** What the lines of a worker need from it. */
export interface AccessLinesParts {
  readonly post: (message: FromWorker) => void
  /** The thread's standard error, shared with its log. */
  readonly output: LineOutput
  readonly counters: Pick<WorkerCounters, 'inc'>
}

/** The lines of one worker. */
export class AccessLines {
  /** Undefined while it is off. */
  readonly log: AccessLog | undefined
  readonly #post: (message: FromWorker) => void
  readonly #onLost: () => void
  #text = ''
  #lines = 0
  /** Sent, and not reported as written. */
  #sentBytes = 0
  #timer: NodeJS.Timeout | undefined

  constructor(
    { accessLog, idPrefix }: Pick<WorkerSettings, 'accessLog' | 'idPrefix'>,
    { post, output, counters }: AccessLinesParts,
  ) {
    this.#post = post
    this.#onLost = () => counters.inc('accessLinesLost')
    if (accessLog === undefined) return
    this.log = new AccessLog({
      settings: accessLog,
      idPrefix,
      clock: systemClock,
      write:
        accessLog.to === 'mainThread'
          ? (line) => this.#add(line)
          : (line) => output.line(line, this.#onLost),
      onLimited: () => counters.inc('accessLinesLimited'),
    })
  }

  /** Sends what there is. */
  flush(): void {
    clearTimeout(this.#timer)
    this.#timer = undefined
    const text = this.#text
    const lines = this.#lines
    if (lines === 0) return
    this.#text = ''
    this.#lines = 0
    this.#sentBytes += text.length
    this.#post({ kind: 'accessLines', text, lines })
  }

  /** The main thread is done with so many bytes; they may be those of an earlier thread. */
  written(bytes: number): void {
    this.#sentBytes = Math.max(0, this.#sentBytes - bytes)
  }

  /** Adds a line of ASCII, newline included. */
  #add(line: string): void {
    if (this.#sentBytes + this.#text.length + line.length > MAX_WAITING_BYTES) {
      this.#onLost()
      return
    }
    this.#text += line
    this.#lines += 1
    if (this.#text.length >= BATCH_BYTES) this.flush()
    else this.#timer ??= setTimeout(() => this.flush(), BATCH_MS)
  }
}
