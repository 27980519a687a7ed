/**
 * What a starting daemon still waits for, by name. When nothing is left, it serves: systemd receives READY=1, and
 * a reload continues.
 */
import { setTimeout as sleep } from 'node:timers/promises'

/** Interval of the checks, milliseconds; it grows with the time waited. */
const LOOK_MS = { first: 20, last: 1_000 }

/** Something that the start waits for. */
export interface Blocker {
  /** Ends the wait for it; further calls do nothing. */
  release(): void
}

/** The set of things that the start waits for. */
export class Readiness {
  private readonly blockers = new Set<string>()

  /** Adds something to wait for. `name` completes "waiting for …". */
  block(name: string): Blocker {
    this.blockers.add(name)
    return { release: () => this.blockers.delete(name) }
  }

  /** What is still waited for. */
  awaited(): readonly string[] {
    return [...this.blockers]
  }
}

/** Waits at most `limitMs` until nothing is waited for. Returns what is left; rejects only when aborted. */
export async function untilNothingAwaited(
  awaited: () => readonly string[],
  limitMs: number,
  signal?: AbortSignal,
): Promise<readonly string[]> {
  const startMs = performance.now()
  for (;;) {
    const left = awaited()
    const elapsedMs = performance.now() - startMs
    if (left.length === 0 || elapsedMs >= limitMs) return left
    const pauseMs = Math.min(Math.max(LOOK_MS.first, elapsedMs / 10), LOOK_MS.last)
    await sleep(pauseMs, undefined, signal && { signal })
  }
}
