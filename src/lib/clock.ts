/**
 * Time and chance as values, so that pure code can be tested with a clock that stands still and a
 * die that always falls the same way.
 */

/** Milliseconds. `monotonicMs` never goes back and is what durations are measured with. */
export interface Clock {
  /** Wall clock, milliseconds since the epoch; may jump. Only for things people or certificates date. */
  wallMs(): number
  /** Monotonic milliseconds with sub-millisecond fraction; the origin means nothing. */
  monotonicMs(): number
}

/** A number in [0, 1), uniformly. */
export type Random = () => number

/** The machine's clocks. */
export const systemClock: Clock = {
  wallMs: () => Date.now(),
  monotonicMs: () => performance.now(),
}

/** The runtime's random source; not for secrets. */
export const systemRandom: Random = () => Math.random()
