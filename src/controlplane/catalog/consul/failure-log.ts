/**
 * Limits how often a repeated failure is logged: at most one line every {@link REPEAT_MS}, and not the same message
 * twice in a row. Within one outage the messages alternate (ports, servers), so a new message is not a new failure.
 */
import type { Clock } from '../../../lib/clock.ts'

/** Least time between two log lines about the same thing, milliseconds. */
export const REPEAT_MS = 60_000

/** Remembers the last logged message about one thing. Pure but for its clock. */
export class FailureLog {
  readonly #clock: Clock
  #lastMessage: string | undefined
  #loggedAtMs = Number.NEGATIVE_INFINITY

  constructor(clock: Clock) {
    this.#clock = clock
  }

  /** Whether a failure with this message is to be logged now; the caller logs it. */
  shouldLog(words: string): boolean {
    const nowMs = this.#clock.monotonicMs()
    if (words === this.#lastMessage || nowMs - this.#loggedAtMs < REPEAT_MS) return false
    this.#lastMessage = words
    this.#loggedAtMs = nowMs
    return true
  }

  /** Notes that it works again. @returns whether the failure was logged */
  recover(): boolean {
    const wasLogged = this.#lastMessage !== undefined
    this.#lastMessage = undefined
    return wasLogged
  }
}
