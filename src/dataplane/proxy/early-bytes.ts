/**
 * Bytes that the calling side sends before the called side is connected, in either direction.
 *
 * An inbound stream is paused by then: only bytes that arrived together with its preface are kept here. A local
 * application may send while instances are tried: its bytes are forwarded to an instance before that has confirmed, and
 * kept, to be replayed to another one.
 */
import { MeshError } from '../../lib/errors.ts'
import { type ByteStream, IdleReceiver, type WriteResult } from '../io/byte-stream.ts'
import type { Account } from '../tunnel/accounts.ts'
import { UNCONFIRMED_LIMIT } from '../tunnel/stream.ts'

const NO_BYTES = new Uint8Array(0)

/** The receiver of the calling side until the splice. The splice receives the end of a paused stream itself. */
export class EarlyBytes extends IdleReceiver {
  /** The bytes received so far. */
  bytes: Uint8Array = NO_BYTES
  /** Called when the caller hangs up. */
  protected onGone: ((reason: Error) => void) | undefined

  /** Calls `onGone` when the caller hangs up before the splice. */
  whenGone(onGone: (reason: Error) => void): void {
    this.onGone = onGone
  }

  override onBytes(bytes: Uint8Array): WriteResult {
    const { length } = this.bytes
    const sum = length + bytes.length
    if (length === 0) {
      this.bytes = Uint8Array.prototype.slice.call(bytes)
      return 0
    }
    const { buffer, byteOffset } = this.bytes
    if (byteOffset + sum <= buffer.byteLength) this.bytes = new Uint8Array(buffer, byteOffset, sum)
    else {
      const larger = new Uint8Array(2 * sum)
      larger.set(this.bytes)
      this.bytes = larger.subarray(0, sum)
    }
    this.bytes.set(bytes, length)
    return 0
  }

  override onReset(reason: Error): void {
    this.onGone?.(reason)
  }
}

/** Early bytes of a caller that may send while instances are tried for it. */
export class ReplayableBytes extends EarlyBytes {
  /** Whether the caller has finished sending. */
  hasEnded = false
  /** Whether the source has been resumed. */
  isReading = false
  /** Monotonic: when the first bytes were read; 0 before that. */
  firstMs = 0
  private readonly source: ByteStream
  private readonly account: Account
  private target: ByteStream | undefined
  /** Number of bytes that {@link target} has received. */
  private forwarded = 0
  private gone: MeshError | undefined

  /** Becomes the receiver of `source`, which is not read before {@link forwardTo}. */
  constructor(source: ByteStream, account: Account) {
    super()
    this.source = source
    this.account = account
    source.receiver = this
  }

  /** Whether the caller has hung up, or was aborted. */
  get isGone(): boolean {
    return this.gone !== undefined
  }

  /** The error for a caller that is gone. */
  goneError(): MeshError {
    return this.gone ?? new MeshError('HM_CALLER_GONE', 'The caller hung up')
  }

  /** Aborts the caller. */
  giveUp(reason: MeshError): void {
    this.gone = reason
    this.onGone?.(reason)
    this.source.reset()
  }

  /** Lets the caller send into a stream that is not confirmed yet; replays all earlier bytes to it. */
  forwardTo(target: ByteStream, onGone: (reason: Error) => void): void {
    this.target = target
    this.forwarded = 0
    this.onGone = onGone
    this.replay(UNCONFIRMED_LIMIT)
    if (this.hasEnded && this.bytes.length <= UNCONFIRMED_LIMIT) target.end()
    this.isReading = true
    if (this.bytes.length < UNCONFIRMED_LIMIT && !this.account.isTight) this.source.resume()
  }

  /** To be called when the target has failed. */
  stopForwarding(): void {
    this.target = undefined
    this.onGone = undefined
  }

  /** The called side is connected: writes what it has not received yet. The splice handles all further bytes. */
  handOver(target: ByteStream): void {
    if (this.target !== target) this.forwarded = 0
    this.target = target
    this.onGone = undefined
    this.replay(this.bytes.length)
    if (this.hasEnded) target.end()
    this.release()
  }

  /** Releases the bytes. To be called at least once. */
  release(): void {
    this.account.hold(-this.bytes.length)
    this.bytes = NO_BYTES
  }

  override onBytes(bytes: Uint8Array): WriteResult {
    if (this.bytes.length === 0) this.firstMs = performance.now()
    super.onBytes(bytes)
    // With many callers that send to instances which do not answer, reading is postponed.
    if (this.bytes.length >= UNCONFIRMED_LIMIT || this.account.isTight) this.source.pause()
    this.account.hold(bytes.length)
    this.replay(UNCONFIRMED_LIMIT)
    return 0
  }

  override onEnd(): void {
    this.hasEnded = true
    if (this.bytes.length <= UNCONFIRMED_LIMIT) this.target?.end()
  }

  override onReset(reason: Error): void {
    this.gone = new MeshError('HM_CALLER_GONE', 'The caller hung up', { cause: reason })
    this.onGone?.(this.gone)
  }

  /** Writes what the target has not received yet, up to the offset `until`. */
  private replay(until: number): void {
    const part = this.bytes.subarray(this.forwarded, until)
    if (part.length === 0 || this.target === undefined) return
    this.forwarded += part.length
    this.target.write(part)
  }
}
