/**
 * The narrow waist of the data plane: something bytes go into and come out of, in both directions, with
 * half-close, reset and back-pressure. A TCP connection, a TLS connection and a tunnel stream are all one.
 *
 * Memory rule: the bytes handed to `write` and to `onBytes` belong to whoever read them and are reused for
 * the next read, unless the taker answers with {@link KEPT}. That is what saves a copy and an
 * allocation per chunk.
 */

/** write() answer bit: the bytes are still in use; the caller must not touch that memory again. */
export const KEPT = 1

/** write() answer bit: no more until {@link Receiver.onWritable}. What was given is taken all the same. */
export const FULL = 2

/** A bit set of {@link KEPT} and {@link FULL}; 0 means taken, memory free, go on. */
export type WriteResult = number

/** What a stream tells its owner. Called from the event loop, never re-entered from write(). */
export interface Receiver {
  /** Bytes arrived. The answer is that of {@link ByteStream.write}; only {@link KEPT} is looked at. */
  onBytes(bytes: Uint8Array): WriteResult
  /** The other side finished sending; it may still receive. At most once, never after onReset. */
  onEnd(): void
  /** Both sides have finished, and all that was written is on its way. At most once, last call. */
  onClosed(): void
  /** The stream is gone, in both directions, without a proper end. At most once, last call. */
  onReset(reason: Error): void
  /** There is room again after {@link FULL}. */
  onWritable(): void
}

/** Takes everything and does nothing, but for what a subclass overrides. */
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
  /** Who is told. Must be set before {@link resume} is called for the first time. */
  receiver: Receiver
  /** Whether it is over, in order or by reset: then nobody is told any more. */
  readonly isClosed: boolean
  /** Sends bytes. After end() or reset() it does nothing and answers 0. */
  write(bytes: Uint8Array): WriteResult
  /** Finishes sending after all that was written; receiving goes on. */
  end(): void
  /** Aborts both directions now; the other side sees a reset. The receiver is told nothing more. */
  reset(): void
  /** Stops onBytes (soon, not at once). */
  pause(): void
  /** Starts, or starts again, onBytes. */
  resume(): void
}
