/**
 * Service pairs that are idle, so that they have no series: a host that runs for months has had many callers, and a
 * monitoring system stores every series that it is shown. The counts stay: when the pair counts again, its series
 * continue where they ended.
 */
import type { Clock } from '../lib/clock.ts'
import { trafficKey, trafficLayout } from './counters.ts'
import type { TrafficTotal } from './totals.ts'

/** A pair without open connections of which nothing was counted for this long is left out. Milliseconds. */
const IDLE_PAIR_MS = 3_600_000

interface LastUse {
  readonly count: number
  readonly atMs: number
}

/** Remembers when each pair last counted; at most as many pairs as `totals.ts` counts. */
export class IdlePairs {
  readonly #clock: Pick<Clock, 'monotonicMs'>
  readonly #lastUse = new Map<string, LastUse>()

  constructor(clock: Pick<Clock, 'monotonicMs'>) {
    this.#clock = clock
  }

  /** The pairs that are in use. What is not read meanwhile counts as used when it is read. */
  withoutIdle(traffic: readonly TrafficTotal[]): readonly TrafficTotal[] {
    const nowMs = this.#clock.monotonicMs()
    return traffic.filter((total) => nowMs - this.#lastUsedMs(total, nowMs) < IDLE_PAIR_MS)
  }

  #lastUsedMs(total: TrafficTotal, nowMs: number): number {
    const key = trafficKey(total.labels)
    const count = countOf(total)
    const before = this.#lastUse.get(key)
    if (before !== undefined && total.active === 0 && before.count === count) return before.atMs
    this.#lastUse.set(key, { count, atMs: nowMs })
    return nowMs
  }
}

/** Changes with every connection; while none is open nothing else is counted. */
function countOf({ cells, lost }: TrafficTotal): number {
  return trafficLayout.total(cells, 'opened') + trafficLayout.total(cells, 'closed') + lost
}
