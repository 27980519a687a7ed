/**
 * One call after another, for as long as something is done to the mesh: did any of them fail?
 */
import { eventually } from './eventually.ts'
import type { Answer } from './workload-protocol.ts'

/** Calls that go on until the end of the scope. */
export interface SteadyCalls extends AsyncDisposable {
  /** Calls that were answered so far. */
  answered(): number
  /** Waits until this many more were answered, or failed. */
  more(count: number): Promise<void>
  /** Ends the calls. What failed, one line each, with the number of the call. */
  failures(): Promise<readonly string[]>
  /** The instances that answered so far. */
  instances(): ReadonlySet<string>
}

/** Starts to call. A call that fails is noted, and the next one follows. */
export function keepCalling(call: () => Promise<Answer>): SteadyCalls {
  const failed: string[] = []
  const reached = new Set<string>()
  let answered = 0
  const over = new AbortController()

  async function run(): Promise<void> {
    while (!over.signal.aborted) {
      try {
        reached.add((await call()).instance)
        answered += 1
      } catch (error) {
        failed.push(`call ${answered + failed.length}: ${String(error)}`)
      }
    }
  }

  const running = run()
  const end = async (): Promise<void> => {
    over.abort()
    await running
  }
  return {
    answered: () => answered,
    async more(count) {
      const wanted = answered + failed.length + count
      await eventually(
        () => {
          if (answered + failed.length < wanted) throw new Error('Not that many calls yet')
        },
        { withinMs: 60_000 },
      )
    },
    async failures() {
      await end()
      return failed
    },
    instances: () => reached,
    [Symbol.asyncDispose]: end,
  }
}
