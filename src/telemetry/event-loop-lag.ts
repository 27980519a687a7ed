/**
 * How late the event loop of this thread is: the longest delay of a short timer in the last seconds.
 *
 * A timer of our own and not perf_hooks' histogram: that one forgets the delay in progress whenever it
 * is reset, so a stall that begins at a reset is never seen.
 */
import { type Clock, systemClock } from '../lib/clock.ts'

/** How often the timer looks, milliseconds. A shorter stall is seen with its share of this. */
const PROBE_MS = 100

/** A delay is reported for this long, so that a scrape every 15 s misses none. */
const WINDOW_MS = 15_000

/** The delays of the last {@link WINDOW_MS}, as a value: the timer is {@link watchEventLoopLag}'s. */
export class LagWindow {
  private readonly slots: number[] = Array.from({ length: WINDOW_MS / 1_000 }, () => 0)
  private second = 0

  /** Notes a delay seen at `nowMs` (monotonic). */
  note(nowMs: number, lagMs: number): void {
    const second = Math.floor(nowMs / 1_000)
    const skipped = Math.min(second - this.second, this.slots.length)
    for (let i = 0; i < skipped; i += 1) this.slots[(second - i) % this.slots.length] = 0
    this.second = second
    const slot = second % this.slots.length
    this.slots[slot] = Math.max(this.slots[slot] ?? 0, lagMs)
  }

  /** The longest delay noted in the window. */
  longestMs(): number {
    return Math.max(...this.slots)
  }
}

/**
 * Measures this thread's event loop until disposed. `report` gets the longest delay of the last 15 s, in
 * milliseconds, ten times a second: make it cheap. Does not keep the thread alive.
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
