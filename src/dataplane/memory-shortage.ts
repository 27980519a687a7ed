/**
 * What a worker does while memory for bytes on their way is short: sockets are given little, callers for whom most is held give
 * some up, and what was taken is given back afterwards.
 */
import { collectGarbage, trimFreed } from '../lib/return-memory.ts'
import { forgetIdlePieces } from './io/byte-queue.ts'
import { forgetIdleGathers, shortenSocketBuffers } from './io/socket-stream.ts'
import { atEndOfTurn, type TurnTask } from './io/turn.ts'
import { SpareMemory } from './spare-memory.ts'
import type { HeldAlarms } from './tunnel/accounts.ts'

/**
 * Sockets are given little for so long after memory was short: thousands that were given more again would all read at once.
 * Milliseconds.
 */
const SHORT_FOR_MS = 30_000

/** Watches one worker. */
export class MemoryShortage implements HeldAlarms, TurnTask {
  private readonly shed: () => void
  private isSheddingDue = false
  private readonly spare = new SpareMemory({
    trim: trimFreed,
    collect: () => {
      forgetIdlePieces()
      forgetIdleGathers()
      collectGarbage()
    },
  })

  /** @param shed more is held than there should be: whoever has most of it gives some up. */
  constructor(shed: () => void) {
    this.shed = shed
  }

  onShort(): void {
    this.note(performance.now())
  }

  onExceeded(): void {
    if (this.isSheddingDue) return
    this.isSheddingDue = true
    atEndOfTurn(this)
  }

  endOfTurn(): void {
    this.isSheddingDue = false
    this.shed()
  }

  /** Once a second; `nowMs` is monotonic. */
  tick(isShort: boolean, nowMs: number): void {
    if (isShort) this.note(nowMs)
    else shortenSocketBuffers(this.spare.sinceShortMs(nowMs) < SHORT_FOR_MS)
    this.spare.tick(nowMs)
  }

  private note(nowMs: number): void {
    this.spare.noteShort(nowMs)
    shortenSocketBuffers(true)
  }
}
