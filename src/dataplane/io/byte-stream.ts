/**
 * The central interface of the data plane: bytes in both directions, with half-close, reset and back-pressure. TCP
 * connections, TLS connections and tunnel streams all implement it.
 *
 * Memory rule: bytes passed to `write` and `onBytes` belong to their reader and are reused for the next read, unless
 * the callee returns {@link KEPT}. That saves a copy and an allocation per chunk.
 */

/** write() result bit: the bytes are still in use; the caller must not modify that memory again. */
export const KEPT = 1

/** write() result bit: write no more until {@link Receiver.onWritable}. The bytes passed were accepted nevertheless. */
export const FULL = 2

/** A bit set of {@link KEPT} and {@link FULL}; 0 means accepted, memory free, continue. */
export type WriteResult = number

/** Callbacks of a stream to its owner. Called from the event loop, never from within write(). */
export interface Receiver {
  /** Bytes arrived. The result is that of {@link ByteStream.write}; only {@link KEPT} is used. */
  onBytes(bytes: Uint8Array): WriteResult
  /** The other side finished sending; it may still receive. At most once, never after onReset. */
  onEnd(): void
  /** Both sides have finished, and everything written is on its way. At most once, last call. */
  onClosed(): void
  /** The stream ended in both directions without a proper end. At most once, last call. */
  onReset(reason: Error): void
  /** There is room again after {@link FULL}. */
  onWritable(): void
}

/** Accepts everything and does nothing; subclasses override what they need. */
export class IdleReceiver implements Receiver {
  onBytes(_bytes: Uint8Array): WriteResult {
    return 0
  }

  onEnd(): void {}

  onClosed(): void {}

  onReset(_reason: Error): void {}

  onWritable(): void {}
}

/** Both directions of one connection, as its user sees it. */
export interface ByteStream {
  /** Receives the callbacks. Must be set before the first {@link resume}. */
  receiver: Receiver
  /** Whether the stream has ended, in order or by reset: no more callbacks follow. */
  readonly isClosed: boolean
  /** Sends bytes. After end() or reset() it does nothing and returns 0. */
  write(bytes: Uint8Array): WriteResult
  /** Ends the sending side after everything written; receiving continues. */
  end(): void
  /** Aborts both directions now; the other side sees a reset. No more callbacks follow. */
  reset(): void
  /** Stops onBytes (soon, not at once). */
  pause(): void
  /** Starts or resumes onBytes. */
  resume(): void
}
