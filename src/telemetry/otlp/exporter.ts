/**
 * Exports the metrics of a host to an OTLP endpoint, at an interval.
 *
 * Counts are cumulative, so what an endpoint does not take is not kept: the next export contains it. One export runs at
 * a time, and it ends when the next one is due.
 */
import { promisify } from 'node:util'
import { gzip as gzipWithCallback } from 'node:zlib'
import { backoffMs } from '../../lib/backoff.ts'
import { type Clock, type Random, systemClock, systemRandom } from '../../lib/clock.ts'
import { describeError } from '../../lib/errors.ts'
import type { Log } from '../../lib/log.ts'
import { WakeableLoop } from '../../lib/wakeable-loop.ts'
import type { OtlpCounts } from '../host-reading.ts'
import { type Labels, type Metric, metrics, type Reading } from '../metrics.ts'
import { batchesOf, type OtlpBatch } from './batch.ts'
import { OtlpClient, type OtlpEndpoint, type OtlpOutcome } from './client.ts'
import { encodeJson } from './encode-json.ts'
import { encodeProtobuf } from './encode-protobuf.ts'

/** What is exported, and where. */
export interface OtlpExportOptions extends Omit<OtlpEndpoint, 'deadlineMs'> {
  readonly intervalMs: number
  readonly version: string
  /** Since when counts are cumulative, milliseconds since the epoch. */
  readonly startMs: number
  /** Attributes of the host; read at each export. */
  readonly resource: () => Labels
  readonly read: () => Reading
  /** Exported after {@link metrics}. */
  readonly others?: readonly Metric[]
  readonly log: Log
  readonly clock?: Clock
  readonly random?: Random
}

/** Waits between two tries of one request. */
const RETRY = { minMs: 1_000, maxMs: 30_000 }

/** Longest time for one request, milliseconds. */
const MAX_DEADLINE_MS = 10_000

const gzip = promisify(gzipWithCallback)

/** The export to one endpoint. Disposing it ends it; nothing is sent last. */
export class OtlpExport implements Disposable {
  readonly #options: OtlpExportOptions
  readonly #clock: Clock
  readonly #random: Random
  readonly #client: OtlpClient
  readonly #closing = new AbortController()
  readonly #requests = { accepted: 0, failed: 0, refused: 0 }
  #rejectedPoints = 0
  #isFailing = false

  constructor(options: OtlpExportOptions) {
    const { clock = systemClock, random = systemRandom, intervalMs } = options
    this.#options = options
    this.#clock = clock
    this.#random = random
    this.#client = new OtlpClient({
      ...options,
      deadlineMs: Math.min(MAX_DEADLINE_MS, intervalMs),
    })
    void new WakeableLoop({
      clock,
      signal: this.#closing.signal,
      // Hosts that were started together do not export together.
      firstPauseMs: random() * intervalMs,
      pass: () => this.#export(),
      onError: (thrown) => {
        this.#note('failed', describeError(thrown))
        return intervalMs
      },
    }).ended
  }

  /** What became of the requests so far. */
  counts(): OtlpCounts {
    return { requests: { ...this.#requests }, rejectedPoints: this.#rejectedPoints }
  }

  [Symbol.dispose](): void {
    this.#closing.abort()
    this.#client[Symbol.dispose]()
  }

  /** One export; returns the pause until the next. */
  async #export(): Promise<number> {
    const { read, resource, version, protocol, others = [], intervalMs, startMs } = this.#options
    const endMs = this.#clock.monotonicMs() + intervalMs
    const reading = read()
    const head = {
      resource: resource(),
      version,
      startMs,
      timeMs: this.#clock.wallMs(),
    }
    let askedMs = 0
    for await (const batch of batchesOf([...metrics, ...others], reading)) {
      const body = encode({ ...head, metrics: batch }, protocol)
      const outcome = await this.#send(await gzip(body), endMs)
      if (outcome.kind === 'accepted') continue
      if (outcome.kind === 'later') askedMs = outcome.waitMs
      break
    }
    return Math.max(0, askedMs, endMs - this.#clock.monotonicMs())
  }

  /** Sends one request, again if the endpoint asks for that and there is time. */
  async #send(body: Buffer, endMs: number): Promise<OtlpOutcome> {
    const { signal } = this.#closing
    for (let failures = 1; ; failures += 1) {
      const outcome = await this.#client.post(body, this.#clock.wallMs())
      if (signal.aborted) return outcome
      if (outcome.kind === 'accepted') {
        this.#accepted(outcome.rejectedPoints)
        return outcome
      }
      const waitMs =
        outcome.kind === 'later' ? outcome.waitMs + backoffMs(failures, RETRY, this.#random) : 0
      const isLast = outcome.kind !== 'later' || this.#clock.monotonicMs() + waitMs >= endMs
      this.#note(outcome.kind === 'refused' ? 'refused' : 'failed', outcome.reason)
      if (isLast) return outcome
      await this.#clock.sleep(waitMs, signal)
      if (signal.aborted) return outcome
    }
  }

  #accepted(rejectedPoints: number): void {
    this.#requests.accepted += 1
    this.#rejectedPoints += rejectedPoints
    if (this.#isFailing) this.#options.log.info('The OTLP endpoint takes metrics again')
    this.#isFailing = false
  }

  #note(outcome: 'failed' | 'refused', reason: string): void {
    this.#requests[outcome] += 1
    if (!this.#isFailing)
      this.#options.log.warn('The OTLP endpoint does not take metrics', {
        endpoint: this.#options.url,
        reason,
      })
    this.#isFailing = true
  }
}

function encode(batch: OtlpBatch, protocol: OtlpEndpoint['protocol']): Buffer {
  return protocol === 'http/json' ? Buffer.from(encodeJson(batch)) : encodeProtobuf(batch)
}
