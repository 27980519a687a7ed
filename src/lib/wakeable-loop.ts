/**
 * A loop that alternates passes and pauses, measured by a clock. A wake-up ends the pause.
 */
import { setImmediate as nextTurn } from 'node:timers/promises'
import type { Clock } from './clock.ts'

/** Options of a loop. */
export interface WakeableLoopOptions {
  readonly clock: Clock
  /** Ends the loop: a running pass is awaited, no other begins. */
  readonly signal: AbortSignal
  /** Pause before the first pass, milliseconds; default none. */
  readonly firstPauseMs?: number
  /** Does the due work; returns the next pause in milliseconds. */
  readonly pass: () => Promise<number>
  /**
   * Called with the error of a pass if `signal` has not aborted; returns the next pause. Without it, a pass that
   * throws ends the loop, and {@link WakeableLoop.ended} rejects.
   */
  readonly onError?: (thrown: unknown) => number
}

/** A running loop; its first pass begins in a later turn, never in the constructor. */
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

  /** Ends the pause; during a pass, another pass follows at once. */
  wake(): void {
    this.#wakeSignal.abort()
  }

  /** Calls `act` while no pass and no earlier `act` is running; the next pass waits for it. */
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
