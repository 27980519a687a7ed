/**
 * A reload, seen from the daemon that runs: the order in which everything changes hands.
 *
 * ```
 *   this one   serving ---------------------> release --> (both accept) --> retire: drains its connections, ends
 *   successor  starting --'prepared'--> waits --'takeOver'--> owns --'serving'--> 'main': systemd watches it
 * ```
 *
 * Whatever there is one of (admin socket, state files, capture rules, registration, resolver) has one owner at any time:
 * this one until release(), the successor from 'takeOver' on. If the successor fails it is ended first, and resume() takes
 * everything back. Connections are accepted throughout, by either.
 */
import { describeError, MeshError } from '../lib/errors.ts'

/** The process that is to take over. */
export interface Successor {
  /** Resolves when it is able to serve. @throws why it is not, or that it has ended */
  prepared(): Promise<{ readonly pid: number }>
  /** Has it take everything over. Resolves when it serves. @throws as above */
  takeOver(): Promise<void>
  /** Ends it. Resolves when it is gone. */
  end(): Promise<void>
}

/** The daemon that runs. */
export interface Incumbent {
  /** Lets go of whatever there is one of; connections go on being accepted. */
  release(): Promise<void>
  /** Takes it back. */
  resume(): Promise<void>
}

/** Until when, in milliseconds, and whether at all. */
export interface HandOverLimits {
  readonly prepareMs: number
  readonly takeOverMs: number
  /** Once aborted, a hand-over fails as one does that takes too long. */
  readonly signal: AbortSignal
}

/**
 * Hands over.
 * @returns the successor's number; what is left is to retire
 * @throws MeshError HM_RELOAD_FAILED with the reason; everything is then as it was
 */
export async function handOver(
  incumbent: Incumbent,
  successor: Successor,
  limits: HandOverLimits,
): Promise<number> {
  let hasReleased = false
  try {
    const { signal } = limits
    const { pid } = await within(limits.prepareMs, 'get ready', successor.prepared(), signal)
    hasReleased = true
    await incumbent.release()
    signal.throwIfAborted()
    await within(limits.takeOverMs, 'take over', successor.takeOver(), signal)
    return pid
  } catch (error) {
    // Before anything is taken back: two owners would undo each other's work.
    await successor.end()
    if (hasReleased) await incumbent.resume()
    throw new MeshError(
      'HM_RELOAD_FAILED',
      `Cannot reload; this daemon goes on as it is: ${describeError(error)}`,
      { hint: 'Mend what is named, then reload again; the log has what the new process said' },
    )
  }
}

async function within<T>(
  limitMs: number,
  what: string,
  work: Promise<T>,
  signal: AbortSignal,
): Promise<T> {
  const { promise: never, reject } = Promise.withResolvers<never>()
  const timer = setTimeout(
    () => reject(new Error(`the new process did not ${what} within ${limitMs / 1_000} s`)),
    limitMs,
  )
  const onAbort = (): void => reject(signal.reason)
  signal.addEventListener('abort', onAbort)
  if (signal.aborted) onAbort()
  try {
    return await Promise.race([work, never])
  } finally {
    clearTimeout(timer)
    signal.removeEventListener('abort', onAbort)
  }
}
