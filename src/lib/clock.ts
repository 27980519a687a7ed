/**
 * Time and chance as values, so that code can be tested with a clock that stands still, or that a test
 * moves, and a die that always falls the same way.
 */
import { sleep } from './abort.ts'

/** Milliseconds. `monotonicMs` never goes back and is what durations are measured with. */
export interface Clock {
  /** Wall clock, milliseconds since the epoch; may jump. Only for things people or certificates date. */
  wallMs(): number
  /** Monotonic milliseconds with sub-millisecond fraction; the origin means nothing. */
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
