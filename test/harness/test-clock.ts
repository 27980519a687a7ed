/**
 * Clocks for tests: one that stands still until it is moved, one that hurries, and one that tells the wrong date.
 *
 * Code that waits by its `Clock` is tested with these, so that a test of minutes takes milliseconds. Which one:
 * {@link TestClock} where the test decides what happens when; {@link hurried} where real sockets work meanwhile and
 * only the waits are long.
 */
import { type Clock, systemClock } from '../../src/lib/clock.ts'

interface Sleeper {
  readonly dueMs: number
  readonly wake: () => void
}

/** Stands still. Both times begin at numbers that nothing else has. */
export class TestClock implements Clock {
  private wall: number
  private monotonic: number
  private readonly sleepers = new Set<Sleeper>()

  constructor(options: { readonly wallMs?: number; readonly monotonicMs?: number } = {}) {
    this.wall = options.wallMs ?? Date.UTC(2026, 0, 1)
    this.monotonic = options.monotonicMs ?? 1_000_000
  }

  wallMs(): number {
    return this.wall
  }

  monotonicMs(): number {
    return this.monotonic
  }

  sleep(ms: number, signal: AbortSignal): Promise<void> {
    if (signal.aborted || ms <= 0) return Promise.resolve()
    return new Promise((resolve) => {
      const sleeper: Sleeper = {
        dueMs: this.monotonic + ms,
        wake: () => {
          this.sleepers.delete(sleeper)
          signal.removeEventListener('abort', sleeper.wake)
          resolve()
        },
      }
      this.sleepers.add(sleeper)
      signal.addEventListener('abort', sleeper.wake)
    })
  }

  /** How many wait for this clock now. */
  get sleeping(): number {
    return this.sleepers.size
  }

  /**
   * Lets time pass: whoever is due wakes, the earliest first, each at its own time. What the woken do about it
   * happens after this has returned; who falls asleep again then sleeps from the new time on.
   */
  pass(ms: number): void {
    const endMs = this.monotonic + ms
    const due = [...this.sleepers].filter(({ dueMs }) => dueMs <= endMs)
    for (const sleeper of due.toSorted((a, b) => a.dueMs - b.dueMs)) {
      this.move(sleeper.dueMs - this.monotonic)
      sleeper.wake()
    }
    this.move(endMs - this.monotonic)
  }

  /** The date jumps, as when somebody sets it; no time passes. */
  setWall(wallMs: number): void {
    this.wall = wallMs
  }

  /** The monotonic time after a restart of the process: its origin means nothing. */
  restart(monotonicMs: number): void {
    this.monotonic = monotonicMs
  }

  private move(ms: number): void {
    this.wall += ms
    this.monotonic += ms
  }
}

/** The machine's time from now on, `factor` times as fast: a wait of a second takes 1/factor of one. */
export function hurried(factor: number): Clock {
  const startMs = systemClock.monotonicMs()
  const wallAtStartMs = systemClock.wallMs()
  const passedMs = (): number => (systemClock.monotonicMs() - startMs) * factor
  return {
    wallMs: () => wallAtStartMs + passedMs(),
    monotonicMs: () => startMs + passedMs(),
    sleep: (ms, signal) => systemClock.sleep(ms / factor, signal),
  }
}

/** The machine's clock with a date that is off by what `offsetMs` says at the moment. */
export function misdated(offsetMs: () => number): Clock {
  return { ...systemClock, wallMs: () => systemClock.wallMs() + offsetMs() }
}
