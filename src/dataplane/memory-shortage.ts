/**
 * What a worker does while memory for buffered bytes is short: sockets read and buffer less, connections of the
 * callers with most buffered bytes are ended, and freed memory is given back afterwards.
 */
import { collectGarbage, trimFreed } from '../lib/return-memory.ts'
import { forgetIdlePieces } from './io/byte-queue.ts'
import { forgetIdleGathers, shortenSocketBuffers } from './io/socket-stream.ts'
import { atEndOfTurn, type TurnTask } from './io/turn.ts'
import { SpareMemory } from './spare-memory.ts'
import type { HeldAlarms } from './tunnel/accounts.ts'

/**
 * How long sockets buffer less after memory was short, milliseconds: if thousands of sockets got larger buffers at
 * once, all would read at the same time.
 */
const SHORT_FOR_MS = 30_000

/** Watches the memory of one worker. */
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

  /** @param shed called when too many bytes are held: ends connections of the callers that hold most. */
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

  /** To be called once a second; `nowMs` is monotonic. */
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
