/**
 * Waiting for something that becomes true on its own: polled with a deadline, never slept for.
 *
 * All deadlines of the harness are multiplied by HOSTMESH_TEST_PATIENCE (1 unless set), so that a slow
 * machine can be given more time without touching a test.
 */
import { setTimeout as sleep } from 'node:timers/promises'

const patience = Math.max(0.1, Number(process.env['HOSTMESH_TEST_PATIENCE'] ?? '1') || 1)

/** `ms` multiplied by the patience of this run. */
export function patient(ms: number): number {
  return ms * patience
}

/** How long and how often {@link eventually} tries. Milliseconds, before patience. */
export interface EventuallyOptions {
  readonly withinMs?: number
  readonly everyMs?: number
}

/**
 * Tries `claim` until it neither throws nor rejects, and returns what it returned.
 * @throws the claim's last failure, with the time it was given, when the deadline passes.
 */
export async function eventually<T>(
  claim: () => T | Promise<T>,
  options: EventuallyOptions = {},
): Promise<T> {
  const withinMs = patient(options.withinMs ?? 10_000)
  const deadline = performance.now() + withinMs
  for (;;) {
    try {
      return await claim()
    } catch (error) {
      if (performance.now() >= deadline)
        throw new Error(`Still not so after ${withinMs} ms: ${String(error)}`, { cause: error })
    }
    await sleep(options.everyMs ?? 25)
  }
}

/** The promise's value, or an error saying that `what` did not happen within `ms` (before patience). */
export async function within<T>(ms: number, what: string, promise: Promise<T>): Promise<T> {
  const expired = new AbortController()
  const deadline = sleep(patient(ms), undefined, { signal: expired.signal }).then(
    () => {
      throw new Error(`${what}: not within ${patient(ms)} ms`)
    },
    // Called off below, when the promise was faster.
    () => undefined as never,
  )
  try {
    return await Promise.race([promise, deadline])
  } finally {
    expired.abort()
  }
}
