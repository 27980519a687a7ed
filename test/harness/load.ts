/**
 * Calls from one service to another without a pause, while something is done to the mesh.
 */
import type { RunningService } from './service.ts'

/** What became of the calls. */
export interface LoadOutcome {
  readonly calls: number
  readonly failures: readonly string[]
}

/** Opens one connection after the other, two at a time, from before `act` begins until after it ends. */
export async function underLoad(
  from: RunningService,
  destination: string,
  act: () => Promise<void>,
): Promise<LoadOutcome> {
  const failures: string[] = []
  let calls = 0
  const over = new AbortController()
  const caller = async (): Promise<void> => {
    while (!over.signal.aborted) {
      calls += 1
      try {
        await from.call(destination)
      } catch (error) {
        failures.push(`${new Date().toISOString()} ${String(error)}`)
      }
    }
  }
  const callers = [caller(), caller()]
  try {
    await act()
  } finally {
    over.abort()
    await Promise.all(callers)
  }
  return { calls, failures }
}
