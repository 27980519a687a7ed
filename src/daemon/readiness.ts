/**
 * What a starting daemon still waits for, by name. It serves when nothing is left; that is what systemd is told as READY=1,
 * and what a reload waits for.
 */
import { setTimeout as sleep } from 'node:timers/promises'

/** It is looked this often whether something is still waited for, and less often the longer that takes. Milliseconds. */
const LOOK_MS = { first: 20, last: 1_000 }

/** One thing that is waited for. */
export interface Blocker {
  /** It has come; further calls do nothing. */
  release(): void
}

/** The set of things that are waited for. */
export class Readiness {
  private readonly blockers = new Set<string>()

  /** Enters something to wait for. `name` completes "waiting for …". */
  block(name: string): Blocker {
    this.blockers.add(name)
    return { release: () => this.blockers.delete(name) }
  }

  /** What is still waited for. */
  awaited(): readonly string[] {
    return [...this.blockers]
  }
}

/** Waits until nothing is waited for any more, for so long at most. Returns what is; never rejects but when it is aborted. */
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
