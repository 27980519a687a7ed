/**
 * Exponential back-off with full jitter, as a value: no timer lives here.
 */
import type { Random } from './clock.ts'

/** How long to wait between attempts. All durations in milliseconds. */
export interface BackoffOptions {
  readonly minMs: number
  readonly maxMs: number
}

/**
 * The wait before attempt `attempt` (0 for the first retry): uniformly between `minMs` and the
 * exponential ceiling, so that hosts that failed together do not retry together.
 */
export function backoffMs(attempt: number, options: BackoffOptions, random: Random): number {
  const ceiling = Math.min(options.maxMs, options.minMs * 2 ** Math.min(attempt, 30))
  return options.minMs + random() * Math.max(0, ceiling - options.minMs)
}
