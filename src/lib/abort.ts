/**
 * Waiting that can be called off. Whatever has a clock waits by it (clock.ts): tests then move the time.
 */

/**
 * Resolves after `ms` milliseconds, or at once when `signal` aborts (it never rejects: the caller's
 * loop looks at the signal). The timer does not keep the process alive.
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
    // A deadline that has passed is no time at all; Node would warn of a negative one.
    const timer = setTimeout(finish, Math.max(0, ms))
    timer.unref()
    signal?.addEventListener('abort', finish)
  })
}
