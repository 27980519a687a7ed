/**
 * One connection inside a session: docs/tunnel-protocol.md, "Stream" and "Credit".
 *
 * Holds the bytes that the session cannot send yet (no credit, carrier busy) and those that its receiver does not
 * accept yet (paused); both are limited. Independent of TLS: it uses the session through {@link StreamCarrier}.
 *
 * ```
 *   opening --ACK--> open --FIN sent--> half closed (local) ---FIN received--> closed
 *      |              |  \--FIN received--> half closed (remote) --FIN sent--> closed
 *      \-- RST -------+--- RST or carrier lost ----------------------------> closed
 * ```
 */
import { MeshError } from '../../lib/errors.ts'
import type { ResetReason } from '../../model/ending.ts'
import { ByteQueue } from '../io/byte-queue.ts'
import {
  type ByteStream,
  FULL,
  IdleReceiver,
  KEPT,
  type Receiver,
  type WriteResult,
} from '../io/byte-stream.ts'
import { CHUNK_BYTES } from '../io/socket-stream.ts'
import {
  ACK,
  CREDIT_LIMIT,
  FIN,
  INITIAL_CREDIT,
  protocolError,
  RST,
  resetCodes,
  SYN,
} from './frame.ts'

/** The session, as its streams use it. */
export interface StreamCarrier {
  /**
   * Sends payload now if possible, all of it and in the order of the stream.
   * @returns false when the carrier is busy; the stream keeps the bytes until {@link TunnelStream.take} is called.
   */
  sendData(stream: TunnelStream, bytes: Uint8Array): boolean
  /** Whether the write in progress is this stream's own chunk; afterTake() is called when it has been written. */
  isBusyWith(stream: TunnelStream): boolean
  /** Sends a frame without payload, in order after everything that sendData accepted. */
  sendControl(stream: TunnelStream, flags: number, amount: number): void
  /** The stream has bytes (or a FIN) that it could not send: the session calls take() in turn. */
  queue(stream: TunnelStream): void
  /** The stream has ended and sends nothing more. */
  forget(stream: TunnelStream): void
  /** The present target of a receive window, bytes: at least {@link INITIAL_CREDIT}. */
  windowTarget(): number
  /** Memory that the stream holds changed by `delta` bytes. */
  held(delta: number): void
  /** Whether enough is held for the stream's caller to keep the carrier busy. */
  isAhead(): boolean
  /** Whether so much is held for the stream's caller that nothing may be taken ahead of need. */
  isTight(): boolean
}

/** Bytes that may wait for credit or carrier before write() returns FULL. */
const QUEUE_LIMIT = 131_072

/**
 * When much is held for the caller, a writer is stopped below this credit: it might read a chunk that cannot be sent.
 * At most half of any window, so that the receiver returns credit before that.
 */
const LEAST_CREDIT = CHUNK_BYTES

/** Application bytes that may be in transit before the far end has confirmed the stream. */
export const UNCONFIRMED_LIMIT = 65_536

/** A stream was reset; `reason` is the reset reason, sent by the far end or (from {@link TunnelStream.fail}) by us. */
export class StreamResetError extends MeshError {
  readonly reason: ResetReason

  constructor(reason: ResetReason) {
    super('HM_TUNNEL_STREAM_RESET', `The far end of the tunnel ended the stream: ${reason}`)
    this.reason = reason
  }
}

/** The queue of all streams that never had to wait, which is most of them. Always empty. */
const NO_BYTES = new ByteQueue()

const unsetReceiver = new IdleReceiver()

/** A stream of a session, as a byte stream. Paused until resume(). */
export class TunnelStream implements ByteStream {
  receiver: Receiver = unsetReceiver
  /** Called once, when the far end has reached the application. */
  onConfirmed: (() => void) | undefined
  /** Opener, until the stream is confirmed: whether its user can use another instance if the host is unreachable. */
  mayUseAnother: (() => boolean) | undefined
  /** Opener: monotonic milliseconds; none of its bytes was sent before. */
  readonly openedMs: number
  /** Opener: bytes written before the application's own bytes. */
  prefaceBytes = 0
  readonly id: number
  /** Flags for the next frame: SYN on the opener's first, ACK on the acceptor's first. */
  pendingFlags: number
  /** Whether it is in the session's queue of streams that wait to send. Owned by the session. */
  isQueued = false
  private readonly carrier: StreamCarrier
  private confirmed: boolean
  private sendCredit = INITIAL_CREDIT
  private outgoing = NO_BYTES
  private wantsWritable = false
  private finWanted = false
  private finSent = false
  private receiveCredit = INITIAL_CREDIT
  private window = INITIAL_CREDIT
  private uncredited = 0
  private undrained = 0
  private incoming = NO_BYTES
  private finReceived = false
  private finDelivered = false
  private paused = true
  private closed = false

  constructor(carrier: StreamCarrier, id: number, role: 'opener' | 'acceptor', firstFlags: number) {
    this.carrier = carrier
    this.id = id
    this.openedMs = role === 'opener' ? performance.now() : 0
    this.confirmed = role === 'acceptor'
    this.pendingFlags = firstFlags
  }

  /** Whether the stream has ended, in order or by reset. */
  get isClosed(): boolean {
    return this.closed
  }

  /** Whether the far end has confirmed that it reached the application. */
  get isConfirmed(): boolean {
    return this.confirmed
  }

  /** Acceptor: whether the far end has been informed that the application is reached. */
  get hasAnswered(): boolean {
    return (this.pendingFlags & ACK) === 0
  }

  /** Bytes that wait to be sent. */
  get queuedBytes(): number {
    return this.outgoing.length
  }

  /** Opener, before confirmation: whether more than the preface was written. */
  get hasSentData(): boolean {
    return INITIAL_CREDIT - this.sendCredit + this.outgoing.length > this.prefaceBytes
  }

  /** Bytes that wait for a paused receiver. */
  get heldBytes(): number {
    return this.incoming.length
  }

  /** Memory that the stream holds, in both directions, bytes. */
  get heldMemory(): number {
    return this.incoming.memory + this.outgoing.memory
  }

  /** Whether arriving bytes would have to wait for the receiver. */
  get isReceiverBlocked(): boolean {
    return this.paused || this.incoming.length > 0
  }

  write(bytes: Uint8Array): WriteResult {
    if (this.closed || this.finWanted) return 0
    const sent = this.outgoing.length === 0 ? this.sendNow(bytes) : 0
    if (sent < bytes.length) {
      if (this.outgoing === NO_BYTES) this.outgoing = new ByteQueue()
      const { memory } = this.outgoing
      this.outgoing.push(sent === 0 ? bytes : bytes.subarray(sent))
      this.carrier.held(this.outgoing.memory - memory)
      if (this.sendCredit > 0) this.carrier.queue(this)
    }
    // A large chunk keeps the carrier busy: more reading would only mean copying into the queue.
    const isFull = this.outgoing.length >= QUEUE_LIMIT || this.carrier.isBusyWith(this)
    if (!isFull && !this.isShortOfCredit()) return 0
    this.wantsWritable = true
    return FULL
  }

  /** Whether the next chunk would have to wait here while enough already waits for the caller. */
  private isShortOfCredit(): boolean {
    if (this.outgoing.length > 0) return this.carrier.isAhead()
    return this.sendCredit < LEAST_CREDIT && this.carrier.isTight()
  }

  end(): void {
    if (this.closed || this.finWanted) return
    this.finWanted = true
    if (this.outgoing.length === 0) this.sendFin()
  }

  reset(): void {
    this.refuse('aborted')
  }

  /** Resets the stream and sends the reason to the far end. The receiver is not called. */
  refuse(reason: ResetReason): void {
    if (this.closed) return
    this.sendReset(reason)
    this.close()
  }

  /** Session: stops waiting for the far end. Sends it a reset, in case it recovers, and reports to the receiver. */
  giveUp(reason: MeshError): void {
    if (this.closed) return
    this.sendReset('aborted')
    this.abort(reason)
  }

  /** Acceptor: the application is reached; sends ACK. */
  confirm(): void {
    if (this.closed || (this.pendingFlags & ACK) === 0) return
    this.pendingFlags &= ~ACK
    this.carrier.sendControl(this, ACK, 0)
  }

  pause(): void {
    this.paused = true
  }

  resume(): void {
    if (this.closed) return
    this.paused = false
    this.credit(this.undrained)
    this.undrained = 0
    while (!this.paused) {
      const { memory } = this.incoming
      const taken = this.incoming.takeFront()
      if (taken === undefined) break
      this.carrier.held(this.incoming.memory - memory)
      if ((this.deliver(taken.bytes) & KEPT) === 0) taken.release()
    }
    this.deliverEnd()
  }

  /**
   * Session: moves up to `limit` waiting bytes into `target`, within the credit. Returns 0 when there is nothing to
   * send. A FIN that waits behind them is sent by {@link afterTake}.
   */
  take(target: Uint8Array, offset: number, limit: number): number {
    const { memory } = this.outgoing
    const length = this.outgoing.moveInto(target, offset, Math.min(limit, this.sendCredit))
    this.sendCredit -= length
    if (this.outgoing.memory !== memory) this.carrier.held(this.outgoing.memory - memory)
    return length
  }

  /** Session: called after take(), when the bytes have been written. */
  afterTake(): void {
    if (this.closed) return
    if (this.outgoing.length === 0 && this.finWanted && !this.finSent) this.sendFin()
    this.notifyWritable()
  }

  private notifyWritable(): void {
    if (!this.wantsWritable || this.outgoing.length >= QUEUE_LIMIT / 2) return
    if (this.carrier.isBusyWith(this) || this.isShortOfCredit()) return
    this.wantsWritable = false
    this.receiver.onWritable()
  }

  /** Whether it has bytes to send and credit for them. */
  get canSend(): boolean {
    return !this.closed && this.outgoing.length > 0 && this.sendCredit > 0
  }

  /** Session: a data frame of `length` bytes begins; checks the credit before anything is stored. */
  expect(length: number): void {
    if (length > this.receiveCredit)
      throw protocolError('HM_TUNNEL_CREDIT_EXCEEDED', `${length} bytes on stream ${this.id}`)
    this.receiveCredit -= length
  }

  /** Session: payload arrived. */
  receive(bytes: Uint8Array): WriteResult {
    if (this.closed) return 0
    if (this.finReceived) {
      this.fail('unspecified')
      return 0
    }
    if (!this.paused && this.incoming.length === 0) return this.deliver(bytes)
    if (this.incoming === NO_BYTES) this.incoming = new ByteQueue()
    const { memory } = this.incoming
    this.incoming.push(bytes)
    if (this.incoming.memory !== memory) this.carrier.held(this.incoming.memory - memory)
    return 0
  }

  /** Session: applies the flags of a frame, after its payload. */
  receiveFlags(flags: number): void {
    if ((flags & ACK) !== 0) {
      if (this.confirmed)
        throw protocolError('HM_TUNNEL_BAD_STREAM_ID', `second ACK on stream ${this.id}`)
      this.confirmed = true
      this.onConfirmed?.()
      this.onConfirmed = undefined
      this.mayUseAnother = undefined
    }
    if ((flags & FIN) === 0 || this.closed) return
    if (this.finReceived) {
      this.fail('unspecified')
      return
    }
    this.finReceived = true
    this.deliverEnd()
  }

  /** Session: the peer granted credit. */
  receiveCreditUpdate(amount: number): void {
    if (this.closed) return
    if (this.sendCredit + amount > CREDIT_LIMIT)
      throw protocolError('HM_TUNNEL_CREDIT_OVERFLOW', `stream ${this.id}`)
    this.sendCredit += amount
    if (this.outgoing.length > 0) this.carrier.queue(this)
    else this.notifyWritable()
  }

  /** Session: the peer violated the stream's order, or a limit was reached: both sides get a reset. */
  fail(reason: ResetReason): void {
    if (this.closed) return
    this.sendReset(reason)
    this.abort(new StreamResetError(reason))
  }

  /**
   * Session: the carrier is lost. A stream that has finished on both sides no longer needs it: held bytes are delivered
   * as the reader accepts them (the peer of a draining session closes it while we still hold bytes).
   */
  loseCarrier(reason: Error): void {
    if (!this.finSent || !this.finReceived) this.abort(reason)
  }

  /** Session: the peer reset the stream, or the carrier is lost. */
  abort(reason: Error): void {
    if (this.closed) return
    this.close()
    this.receiver.onReset(reason)
  }

  /** Sends as much as credit and carrier permit without waiting. @returns the number of bytes sent. */
  private sendNow(bytes: Uint8Array): number {
    const length = Math.min(bytes.length, this.sendCredit)
    const part = length === bytes.length ? bytes : bytes.subarray(0, length)
    if (length === 0 || !this.carrier.sendData(this, part)) return 0
    this.sendCredit -= length
    return length
  }

  private deliver(bytes: Uint8Array): WriteResult {
    const result = this.receiver.onBytes(bytes)
    // A full receiver pauses us: what it holds counts until it has room again.
    if (this.paused) this.undrained += bytes.length
    else this.credit(bytes.length)
    return result
  }

  private deliverEnd(): void {
    if (!this.finReceived || this.finDelivered || this.paused || this.incoming.length > 0) return
    this.finDelivered = true
    this.receiver.onEnd()
    this.closeIfDone()
  }

  private credit(bytes: number): void {
    this.uncredited += bytes
    if (this.uncredited < this.window / 2 || this.finReceived || this.closed) return
    // A window that has become too large shrinks by credit that is not returned.
    const amount = Math.max(0, this.uncredited + this.carrier.windowTarget() - this.window)
    this.window += amount - this.uncredited
    this.uncredited = 0
    if (amount === 0) return
    this.receiveCredit += amount
    this.carrier.sendControl(this, 0, amount)
  }

  private sendFin(): void {
    this.finSent = true
    this.carrier.sendControl(this, FIN, 0)
    this.closeIfDone()
  }

  private closeIfDone(): void {
    if (!this.finSent || !this.finDelivered || this.closed) return
    this.close()
    this.receiver.onClosed()
  }

  private sendReset(reason: ResetReason): void {
    // Before the SYN has been sent there is nothing to reset: the far end does not have the stream.
    if ((this.pendingFlags & SYN) === 0) this.carrier.sendControl(this, RST, resetCodes[reason])
  }

  private close(): void {
    if (this.closed) return
    this.closed = true
    const { heldMemory } = this
    if (heldMemory > 0) this.carrier.held(-heldMemory)
    this.incoming.clear()
    this.outgoing.clear()
    this.carrier.forget(this)
  }
}
