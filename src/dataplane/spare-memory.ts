/**
 * Gives back the memory that a worker has taken for callers who did not read.
 *
 * V8 collects buffers that nobody uses any more only when many have piled up, and the C library keeps what lies below a
 * buffer in use. A worker that was never short is left alone: there the next connection takes what the last one left.
 *
 * ```
 *   at rest --noteShort()--> short: freed pages are given back each second --5 s without--> garbage is collected
 *   --a second later--> freed pages are given back, at rest
 * ```
 */

/** Shortage is over when there was none for so long, milliseconds: what is given back sooner would be taken again. */
const CALM_MS = 5_000

/** What is done with the memory of the thread and the process. */
export interface MemoryActions {
  /** Gives freed pages back; takes a few milliseconds. */
  trim(): void
  /** Leaves what is kept for reuse, and collects garbage; takes tens of milliseconds. V8 frees buffers a while after. */
  collect(): void
}

/** Watches one worker. Clocked from outside, monotonic milliseconds. */
export class SpareMemory {
  private readonly actions: MemoryActions
  private shortMs = Number.NEGATIVE_INFINITY
  private state: 'at rest' | 'short' | 'collected' = 'at rest'

  constructor(actions: MemoryActions) {
    this.actions = actions
  }

  /** Memory for bytes that wait is short now. Costs nothing: it may be called for each chunk. */
  noteShort(nowMs: number): void {
    this.shortMs = nowMs
    this.state = 'short'
  }

  /** Milliseconds since memory was short last; infinite when it never was. */
  sinceShortMs(nowMs: number): number {
    return nowMs - this.shortMs
  }

  /** To be called once a second. */
  tick(nowMs: number): void {
    if (this.state === 'at rest') return
    if (this.state === 'short' && this.sinceShortMs(nowMs) >= CALM_MS) {
      this.state = 'collected'
      this.actions.collect()
      return
    }
    if (this.state === 'collected') this.state = 'at rest'
    this.actions.trim()
  }
}
