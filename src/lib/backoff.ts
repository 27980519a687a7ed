/**
 * Exponential back-off with full jitter: the wait as a value, and how often one thing has failed. No timer lives here.
 */
import type { Clock, Random } from './clock.ts'

/** How long to wait between attempts. All durations in milliseconds. */
export interface BackoffOptions {
  readonly minMs: number
  readonly maxMs: number
}

/**
 * The wait after `failures` failures in a row: uniformly between `minMs` and the exponential ceiling, so that hosts
 * that failed together do not retry together. No failure, no jitter: `minMs`.
 */
export function backoffMs(failures: number, options: BackoffOptions, random: Random): number {
  const ceiling = Math.min(options.maxMs, options.minMs * 2 ** Math.min(failures, 30))
  return options.minMs + random() * Math.max(0, ceiling - options.minMs)
}

/** The failures in a row of one thing, and when it may be tried again. */
export class Retry {
  readonly #backoff: BackoffOptions
  readonly #clock: Clock
  readonly #random: Random
  #failures = 0
  #atMs = Number.NEGATIVE_INFINITY

  constructor(backoff: BackoffOptions, clock: Clock, random: Random) {
    this.#backoff = backoff
    this.#clock = clock
    this.#random = random
  }

  /** It has failed once more. Returns how long to wait, milliseconds; by `backoff` where this failure has its own. */
  failed(backoff = this.#backoff): number {
    this.#failures += 1
    const waitMs = backoffMs(this.#failures, backoff, this.#random)
    this.#atMs = this.#clock.monotonicMs() + waitMs
    return waitMs
  }

  /** It may be tried at once; its failures still count. */
  hurry(): void {
    this.#atMs = Number.NEGATIVE_INFINITY
  }

  /** It works. */
  reset(): void {
    this.#failures = 0
    this.hurry()
  }

  /** Whether it has failed since it last worked. */
  get isFailing(): boolean {
    return this.#failures > 0
  }

  /** Whether it may be tried now. */
  get isDue(): boolean {
    return this.#clock.monotonicMs() >= this.#atMs
  }
}
