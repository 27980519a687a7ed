/**
 * Returns the memory that a worker has allocated for callers who did not read.
 *
 * V8 collects unused buffers only when many have accumulated, and the C library keeps free memory below a buffer in
 * use. A worker that was never short is left alone: there the next connection reuses the memory of the last one.
 *
 * ```
 *   at rest --noteShort()--> short: freed pages are given back each second --5 s without--> garbage is collected
 *   --a second later--> freed pages are given back, at rest
 * ```
 */

/** A shortage is over when there was none for this long, milliseconds: memory returned sooner would be needed again. */
const CALM_MS = 5_000

/** Operations on the memory of the thread and the process. */
export interface MemoryActions {
  /** Returns freed pages to the system; takes a few milliseconds. */
  trim(): void
  /**
   * Drops buffers kept for reuse, and collects garbage; takes tens of milliseconds. V8 frees buffers somewhat later.
   */
  collect(): void
}

/** Watches one worker. The caller provides the time, monotonic milliseconds. */
export class SpareMemory {
  private readonly actions: MemoryActions
  private shortMs = Number.NEGATIVE_INFINITY
  private state: 'at rest' | 'short' | 'collected' = 'at rest'

  constructor(actions: MemoryActions) {
    this.actions = actions
  }

  /** Memory for buffered bytes is short now. Cheap: it may be called for each chunk. */
  noteShort(nowMs: number): void {
    this.shortMs = nowMs
    this.state = 'short'
  }

  /** Milliseconds since memory was last short; infinite when it never was. */
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
