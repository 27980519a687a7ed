/**
 * Waiting that can be aborted. Code that has a clock waits with it instead (clock.ts), so that tests control time.
 */

/**
 * Resolves after `ms` milliseconds, or at once when `signal` aborts (it never rejects: the caller's
 * loop checks the signal). The timer does not keep the process alive.
 */
export function sleep(ms: number, signal?: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal?.aborted === true) {
      resolve()
      return
    }
    const finish = (): void => {
      clearTimeout(timer)
      signal?.removeEventListener('abort', finish)
      resolve()
    }
    // A deadline in the past means no wait; Node would warn about a negative one.
    const timer = setTimeout(finish, Math.max(0, ms))
    timer.unref()
    signal?.addEventListener('abort', finish)
  })
}
