/**
 * Time and randomness as values, so that tests can use a clock that they control and a random source with
 * fixed results.
 */
import { sleep } from './abort.ts'

/** A source of time in milliseconds. `monotonicMs` never goes back and is used to measure durations. */
export interface Clock {
  /** Wall clock, milliseconds since the epoch; may jump. Only for dates that people or certificates use. */
  wallMs(): number
  /** Monotonic milliseconds with a sub-millisecond fraction; the origin is arbitrary. */
  monotonicMs(): number
  /** Waits by the monotonic clock; resolves at once when `signal` aborts, and never rejects. */
  sleep(ms: number, signal: AbortSignal): Promise<void>
}

/** A number in [0, 1), uniformly. */
export type Random = () => number

/** The machine's clocks. */
export const systemClock: Clock = {
  wallMs: () => Date.now(),
  monotonicMs: () => performance.now(),
  sleep,
}

/** The runtime's random source; not for secrets. */
export const systemRandom: Random = () => Math.random()
