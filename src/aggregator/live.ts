/**
 * The live view: server-sent events, one a second, made once for all listeners and only while there are any. A listener
 * that does not take events is left out, and dropped when that lasts.
 */
import type { ServerResponse } from 'node:http'
import { describeError, MeshError } from '../lib/errors.ts'
import type { Log } from '../lib/log.ts'
import type { LiveEvent } from '../model/fleet.ts'

/** What the hub needs. */
export interface LiveOptions {
  readonly read: () => Promise<LiveEvent>
  readonly log: Log
  /** From one event to the next; tests make it shorter. */
  readonly everyMs?: number | undefined
}

/** Most listeners at once. */
const MAX_LISTENERS = 100

const EVERY_MS = 1_000

/** Events that a listener may miss in a row, because it has not taken an earlier one. */
const MAX_MISSED = 5

/** Sends events to all listeners. */
export class LiveHub implements Disposable {
  readonly #options: LiveOptions
  readonly #missed = new Map<ServerResponse, number>()
  #timer: NodeJS.Timeout | undefined
  #isReading = false
  #isOver = false
  /** The last event, for who comes before the next one; undefined while nobody listens. */
  #last: Buffer | undefined

  constructor(options: LiveOptions) {
    this.#options = options
  }

  get listeners(): number {
    return this.#missed.size
  }

  /**
   * Answers with events until the caller goes. Headers that are set are sent.
   * @throws MeshError HM_API_BUSY
   */
  add(response: ServerResponse): void {
    if (this.#isOver || this.#missed.size >= MAX_LISTENERS)
      throw new MeshError('HM_API_BUSY', `The live view has ${MAX_LISTENERS} listeners already`)
    response.writeHead(200, {
      'content-type': 'text/event-stream; charset=utf-8',
      'cache-control': 'no-store',
      // For proxies that would wait for the end of the answer.
      'x-accel-buffering': 'no',
    })
    response.write('retry: 2000\n\n')
    if (this.#last !== undefined) response.write(this.#last)
    this.#missed.set(response, 0)
    response.once('close', () => this.#remove(response))
    if (this.#timer === undefined && !this.#isReading) void this.#send()
  }

  [Symbol.dispose](): void {
    this.#isOver = true
    clearTimeout(this.#timer)
    for (const response of this.#missed.keys()) response.destroy()
    this.#missed.clear()
  }

  #remove(response: ServerResponse): void {
    this.#missed.delete(response)
    if (this.#missed.size > 0) return
    clearTimeout(this.#timer)
    this.#timer = undefined
    this.#last = undefined
  }

  /** Sends one event, and plans the next. */
  async #send(): Promise<void> {
    const { read, log, everyMs = EVERY_MS } = this.#options
    const startedAt = performance.now()
    this.#isReading = true
    try {
      const event = Buffer.from(`data: ${JSON.stringify(await read())}\n\n`)
      this.#last = event
      for (const [response, missed] of this.#missed) this.#give(response, missed, event)
    } catch (error) {
      log.warn('Cannot make an event of the live view', { error: describeError(error) })
    } finally {
      this.#isReading = false
    }
    if (this.#missed.size === 0 || this.#isOver) {
      this.#timer = undefined
      this.#last = undefined
      return
    }
    const restMs = Math.max(everyMs / 10, everyMs - (performance.now() - startedAt))
    this.#timer = setTimeout(() => {
      void this.#send()
    }, restMs)
  }

  #give(response: ServerResponse, missed: number, event: Buffer): void {
    if (response.writableLength === 0) {
      response.write(event)
      if (missed > 0) this.#missed.set(response, 0)
    } else if (missed < MAX_MISSED) this.#missed.set(response, missed + 1)
    else response.destroy()
  }
}
