/**
 * Exponential back-off with full jitter: computes waits and counts failures. It sets no timers.
 */
import type { Clock, Random } from './clock.ts'

/** Limits of the wait between attempts, in milliseconds. */
export interface BackoffOptions {
  readonly minMs: number
  readonly maxMs: number
}

/**
 * The wait after `failures` consecutive failures: random between `minMs` and the exponential ceiling, so that hosts
 * that failed together do not retry together. Without failures there is no jitter: `minMs`.
 */
export function backoffMs(failures: number, options: BackoffOptions, random: Random): number {
  const ceiling = Math.min(options.maxMs, options.minMs * 2 ** Math.min(failures, 30))
  return options.minMs + random() * Math.max(0, ceiling - options.minMs)
}

/** Consecutive failures of one operation, and the time of its next attempt. */
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

  /** Counts a failure. Returns the wait in milliseconds, by `backoff` if this failure has its own. */
  failed(backoff = this.#backoff): number {
    this.#failures += 1
    const waitMs = backoffMs(this.#failures, backoff, this.#random)
    this.#atMs = this.#clock.monotonicMs() + waitMs
    return waitMs
  }

  /** Makes a retry due at once; the failures still count. */
  makeDue(): void {
    this.#atMs = Number.NEGATIVE_INFINITY
  }

  /** Resets after a success. */
  reset(): void {
    this.#failures = 0
    this.makeDue()
  }

  /** Whether the operation has failed since its last success. */
  get isFailing(): boolean {
    return this.#failures > 0
  }

  /** Whether the next attempt is due. */
  get isDue(): boolean {
    return this.#clock.monotonicMs() >= this.#atMs
  }
}
