/**
 * What the colours of edges mean. Pure.
 */
import type { Colouring, EdgeClass } from './scene.ts'

/** What the colours mean, by what they say. */
export const legends: Readonly<Record<Colouring, readonly (readonly [EdgeClass, string])[]>> = {
  health: [
    ['ok', 'below 0.5% failed'],
    ['warn', '0.5% and more'],
    ['bad', '5% and more'],
    ['deny', 'denied'],
    ['idle', 'idle'],
  ],
  policy: [
    ['rule', 'allowed by a rule'],
    ['default', 'allowed by default'],
    ['deny', 'denied'],
    ['unknown', 'not reported'],
  ],
  latency: [
    ['ok', 'p99 below 10ms'],
    ['slow1', '10ms'],
    ['slow2', '100ms'],
    ['slow3', '1s and more'],
    ['unknown', 'not measured'],
  ],
}
