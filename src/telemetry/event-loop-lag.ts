/**
 * Measures the lag of this thread's event loop: the longest delay of a short timer in the last seconds.
 *
 * It uses its own timer and not the histogram of perf_hooks, which drops the delay in progress at each reset, so that a
 * stall that begins at a reset is never seen.
 */
import { type Clock, systemClock } from '../lib/clock.ts'

/** Interval of the timer, milliseconds. A shorter stall is seen only in part. */
const PROBE_MS = 100

/** How long a delay is reported: a scrape every 15 s misses none. */
const WINDOW_MS = 15_000

/** The delays of the last {@link WINDOW_MS}; {@link watchEventLoopLag} has the timer. */
export class LagWindow {
  private readonly slots: number[] = Array.from({ length: WINDOW_MS / 1_000 }, () => 0)
  private second = 0

  /** Records a delay seen at `nowMs` (monotonic). */
  note(nowMs: number, lagMs: number): void {
    const second = Math.floor(nowMs / 1_000)
    const skipped = Math.min(second - this.second, this.slots.length)
    for (let i = 0; i < skipped; i += 1) this.slots[(second - i) % this.slots.length] = 0
    this.second = second
    const slot = second % this.slots.length
    this.slots[slot] = Math.max(this.slots[slot] ?? 0, lagMs)
  }

  /** The longest delay in the window. */
  longestMs(): number {
    return Math.max(...this.slots)
  }
}

/**
 * Measures this thread's event loop until disposed. `report` receives the longest delay of the last 15 s, in
 * milliseconds, ten times a second, and must be cheap. Does not keep the thread alive.
 */
export function watchEventLoopLag(
  report: (longestMs: number) => void,
  clock: Clock = systemClock,
): Disposable {
  const window = new LagWindow()
  let expectedMs = clock.monotonicMs() + PROBE_MS
  const timer = setInterval(() => {
    const nowMs = clock.monotonicMs()
    window.note(nowMs, Math.max(0, nowMs - expectedMs))
    expectedMs = nowMs + PROBE_MS
    report(window.longestMs())
  }, PROBE_MS)
  timer.unref()
  return { [Symbol.dispose]: () => clearInterval(timer) }
}
