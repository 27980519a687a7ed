/**
 * A reload, as the running daemon performs it: the order in which everything is handed over.
 *
 * ```
 *   this one   serving ---------------------> release --> (both accept) --> retire: drains its connections, ends
 *   successor  starting --'prepared'--> waits --'takeOver'--> owns --'serving'--> 'main': systemd watches it
 * ```
 *
 * The parts with a single owner (admin socket, state files, capture rules, registration, resolver) belong to one
 * process at any time: this one until release(), the successor from 'takeOver' on. If the successor fails or is told to
 * stop, it is ended first, and then resume() takes everything back. One of the two accepts connections at all times.
 */
import { describeError, MeshError } from '../lib/errors.ts'

/** The process that takes over. */
export interface Successor {
  /** Resolves when it is able to serve. @throws why it is not, or that it has ended */
  prepared(): Promise<{ readonly pid: number }>
  /** Makes it take over everything. Resolves when it serves. @throws as above */
  takeOver(): Promise<void>
  /** Ends it. Resolves when it is gone. */
  end(): Promise<void>
}

/** The running daemon. */
export interface Predecessor {
  /** Releases everything with a single owner; continues to accept connections. */
  release(): Promise<void>
  /** Takes everything back. */
  resume(): Promise<void>
}

/** Timeouts in milliseconds, and cancellation. */
export interface HandOverLimits {
  readonly prepareMs: number
  readonly takeOverMs: number
  /** When aborted, the hand-over fails as after a timeout. */
  readonly signal: AbortSignal
}

/**
 * Hands over.
 * @returns the successor's process ID; the caller must then retire
 * @throws MeshError HM_RELOAD_FAILED with the reason; everything is then as before
 */
export async function handOver(
  predecessor: Predecessor,
  successor: Successor,
  limits: HandOverLimits,
): Promise<number> {
  let hasReleased = false
  try {
    const { signal } = limits
    const { pid } = await within(limits.prepareMs, 'get ready', successor.prepared(), signal)
    hasReleased = true
    await predecessor.release()
    signal.throwIfAborted()
    await within(limits.takeOverMs, 'take over', successor.takeOver(), signal)
    return pid
  } catch (error) {
    // The successor ends before anything is taken back: two owners would undo each other's work.
    await successor.end()
    if (hasReleased) await predecessor.resume()
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
