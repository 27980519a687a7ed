/**
 * A loop that does one thing after the other: a pass, a pause by the clock, the next pass. Who wakes it ends the pause.
 */
import { setImmediate as nextTurn } from 'node:timers/promises'
import type { Clock } from './clock.ts'

/** What a loop is built from. */
export interface WakeableLoopOptions {
  readonly clock: Clock
  /** Ends the loop: a pass that is under way is waited for, no other begins. */
  readonly signal: AbortSignal
  /** How long to pause before the first pass, milliseconds; not at all unless given. */
  readonly firstPauseMs?: number
  /** Does what is due; returns how long to pause, milliseconds. */
  readonly pass: () => Promise<number>
  /**
   * Gets what a pass throws before `signal` has aborted; returns how long to pause. Without it a pass that throws
   * ends the loop, and {@link WakeableLoop.ended} rejects.
   */
  readonly onError?: (thrown: unknown) => number
}

/** A running loop; its first pass begins in a later turn, never inside the constructor. */
export class WakeableLoop {
  readonly #options: WakeableLoopOptions
  #wakeSignal = new AbortController()
  #last: Promise<unknown> = Promise.resolve()
  /** Resolves when the loop has ended. */
  readonly ended: Promise<void>

  constructor(options: WakeableLoopOptions) {
    this.#options = options
    options.signal.addEventListener('abort', () => this.wake())
    this.ended = this.#run()
  }

  /** Ends the pause; while a pass is under way, another follows it at once. */
  wake(): void {
    this.#wakeSignal.abort()
  }

  /** Calls `act` when no pass and no earlier `act` is under way; the next pass waits for it. */
  serialize<Result>(act: () => Promise<Result>): Promise<Result> {
    const result = this.#last.then(act)
    this.#last = result.catch(() => undefined)
    return result
  }

  async #run(): Promise<void> {
    const { clock, signal, firstPauseMs = 0 } = this.#options
    let pauseMs = firstPauseMs
    await nextTurn()
    for (;;) {
      // No timer where there is nothing to wait for.
      if (pauseMs > 0) await clock.sleep(pauseMs, this.#wakeSignal.signal)
      if (signal.aborted) return
      this.#wakeSignal = new AbortController()
      pauseMs = await this.serialize(() => this.#pass())
    }
  }

  async #pass(): Promise<number> {
    const { signal, pass, onError } = this.#options
    if (signal.aborted) return 0
    try {
      return await pass()
    } catch (thrown) {
      if (signal.aborted) return 0
      if (onError === undefined) throw thrown
      return onError(thrown)
    }
  }
}
