/**
 * How often the log hears of something that fails again and again: once when it begins, and of other words for it
 * no more than every {@link REPEAT_MS}. The words of one outage alternate (ports, servers), so they cannot tell.
 */
import type { Clock } from '../../../lib/clock.ts'

/** Between two lines about the same thing, milliseconds. */
export const REPEAT_MS = 60_000

/** Remembers what was said last of one thing. Pure but for its clock. */
export class FailureLog {
  readonly #clock: Clock
  #said: string | undefined
  #saidAtMs = Number.NEGATIVE_INFINITY

  constructor(clock: Clock) {
    this.#clock = clock
  }

  /** Whether a failure in these words is to be logged now; whoever asks does so. */
  isNews(words: string): boolean {
    const nowMs = this.#clock.monotonicMs()
    if (words === this.#said || nowMs - this.#saidAtMs < REPEAT_MS) return false
    this.#said = words
    this.#saidAtMs = nowMs
    return true
  }

  /** It works again. Whether the log has heard that it did not. */
  recover(): boolean {
    const wasSaid = this.#said !== undefined
    this.#said = undefined
    return wasSaid
  }
}
