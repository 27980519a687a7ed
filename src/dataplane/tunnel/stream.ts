/**
 * One connection inside a session: docs/tunnel-protocol.md, "Stream" and "Credit".
 *
 * Holds what the session cannot send yet (no credit, carrier busy) and what its receiver does not take yet
 * (paused), each bounded. Knows nothing of TLS; the session is seen through {@link StreamCarrier}.
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

/** What a stream asks of its session. */
export interface StreamCarrier {
  /**
   * Sends payload now if it can: all of it and within the order of the stream.
   * @returns false when the carrier is busy; the stream keeps the bytes and is asked later by {@link TunnelStream.take}.
   */
  sendData(stream: TunnelStream, bytes: Uint8Array): boolean
  /** Whether the write under way is this stream's own chunk: it is told by afterTake() when that has left. */
  isBusyWith(stream: TunnelStream): boolean
  /** Sends a frame without payload, in order after all that sendData took. */
  sendControl(stream: TunnelStream, flags: number, amount: number): void
  /** The stream has bytes (or a FIN) that it could not send: ask it in turn. */
  queue(stream: TunnelStream): void
  /** The stream is over; nothing more comes from it. */
  forget(stream: TunnelStream): void
  /** How large a receive window should be just now, bytes: at least {@link INITIAL_CREDIT}. */
  windowTarget(): number
  /** Memory that the stream holds changed by `delta` bytes. */
  held(delta: number): void
  /** Whether enough is held for the stream's caller to keep the carrier busy. */
  isAhead(): boolean
  /** Whether the stream's caller has so much held for it that nothing is to be taken ahead of need. */
  isTight(): boolean
}

/** Bytes that may wait for credit or carrier before the writer is told to stop. */
const QUEUE_LIMIT = 131_072

/**
 * Credit below which a writer whose caller has much held is told to stop: it might read a chunk that cannot be sent.
 * At most half of any window, so that the receiver has given back credit before it comes to that.
 */
const LEAST_CREDIT = CHUNK_BYTES

/** Application bytes that may be under way before the far end has confirmed the stream. */
export const UNCONFIRMED_LIMIT = 65_536

/** Why a stream ended early; `reason` says what the far end answered. */
export class StreamResetError extends MeshError {
  readonly reason: ResetReason

  constructor(reason: ResetReason) {
    super('HM_TUNNEL_STREAM_RESET', `The far end of the tunnel ended the stream: ${reason}`)
    this.reason = reason
  }
}

/** What all streams share that never had to wait: most of them. Nothing is ever put into it. */
const NO_BYTES = new ByteQueue()

const unsetReceiver = new IdleReceiver()

/** A stream of a session, as a byte stream. Paused until resume(). */
export class TunnelStream implements ByteStream {
  receiver: Receiver = unsetReceiver
  /** Called once when the far end has reached the application. */
  onConfirmed: (() => void) | undefined
  /** Opener: whether its user has somewhere else to go, should the far end's host be gone. Asked until it is confirmed. */
  mayMove: (() => boolean) | undefined
  /** Opener, monotonic milliseconds: nothing of it was sent before. */
  readonly openedMs: number
  /** Opener: what was written before the application's own bytes. */
  prefaceBytes = 0
  readonly id: number
  /** Flags that must go out with the next frame: SYN before the first, ACK on the acceptor's first. */
  pendingFlags: number
  /** Whether it stands in the session's round of streams that wait to send. Owned by the session. */
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

  /** Whether the stream has ended, either way. */
  get isClosed(): boolean {
    return this.closed
  }

  /** Whether the far end has confirmed that it reached the application. */
  get isConfirmed(): boolean {
    return this.confirmed
  }

  /** Acceptor: whether the far end has been told that the application is reached. */
  get hasAnswered(): boolean {
    return (this.pendingFlags & ACK) === 0
  }

  /** Bytes that wait here to be sent. */
  get queuedBytes(): number {
    return this.outgoing.length
  }

  /** Opener, before the far end has confirmed: whether more than the preface was written. */
  get hasSpoken(): boolean {
    return INITIAL_CREDIT - this.sendCredit + this.outgoing.length > this.prefaceBytes
  }

  /** Bytes that wait here for a paused receiver. */
  get heldBytes(): number {
    return this.incoming.length
  }

  /** Memory that the stream holds, in both directions. */
  get heldMemory(): number {
    return this.incoming.memory + this.outgoing.memory
  }

  /** Whether what arrives now would have to wait for the receiver. */
  get isHeldUp(): boolean {
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
    // A large chunk keeps the carrier busy: reading on would only mean copying into the queue.
    const isFull = this.outgoing.length >= QUEUE_LIMIT || this.carrier.isBusyWith(this)
    if (!isFull && !this.isShortOfCredit()) return 0
    this.wantsWritable = true
    return FULL
  }

  /** Whether the next chunk would have to wait here, and the caller has enough waiting already. */
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

  /** Resets the stream and tells the far end why. The receiver is told nothing. */
  refuse(reason: ResetReason): void {
    if (this.closed) return
    this.sendReset(reason)
    this.close()
  }

  /** Session: there is no waiting for the far end any more. It is told, should it ever read it; so is the receiver. */
  giveUp(reason: MeshError): void {
    if (this.closed) return
    this.sendReset('aborted')
    this.abort(reason)
  }

  /** Acceptor: the application is reached. Sends ACK. */
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
   * Session: moves up to `limit` bytes that waited into `target`, as far as credit goes. 0 when there is
   * nothing to send. A FIN that waited behind them is sent as soon as they are gone.
   */
  take(target: Uint8Array, offset: number, limit: number): number {
    const { memory } = this.outgoing
    const length = this.outgoing.moveInto(target, offset, Math.min(limit, this.sendCredit))
    this.sendCredit -= length
    if (this.outgoing.memory !== memory) this.carrier.held(this.outgoing.memory - memory)
    return length
  }

  /** Session: called after take(), when the bytes are on their way. */
  afterTake(): void {
    if (this.closed) return
    if (this.outgoing.length === 0 && this.finWanted && !this.finSent) this.sendFin()
    this.tellWritable()
  }

  private tellWritable(): void {
    if (!this.wantsWritable || this.outgoing.length >= QUEUE_LIMIT / 2) return
    if (this.carrier.isBusyWith(this) || this.isShortOfCredit()) return
    this.wantsWritable = false
    this.receiver.onWritable()
  }

  /** Whether it has something to send and the credit for it. */
  get canSend(): boolean {
    return !this.closed && this.outgoing.length > 0 && this.sendCredit > 0
  }

  /** Session: a data frame of `length` bytes begins; checks credit before anything is stored. */
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

  /** Session: flags of a frame, after its payload. */
  receiveFlags(flags: number): void {
    if ((flags & ACK) !== 0) {
      if (this.confirmed)
        throw protocolError('HM_TUNNEL_BAD_STREAM_ID', `second ACK on stream ${this.id}`)
      this.confirmed = true
      this.onConfirmed?.()
      this.onConfirmed = undefined
      this.mayMove = undefined
    }
    if ((flags & FIN) === 0 || this.closed) return
    if (this.finReceived) {
      this.fail('unspecified')
      return
    }
    this.finReceived = true
    this.deliverEnd()
  }

  /** Session: the peer gave credit. */
  receiveCreditUpdate(amount: number): void {
    if (this.closed) return
    if (this.sendCredit + amount > CREDIT_LIMIT)
      throw protocolError('HM_TUNNEL_CREDIT_OVERFLOW', `stream ${this.id}`)
    this.sendCredit += amount
    if (this.outgoing.length > 0) this.carrier.queue(this)
    else this.tellWritable()
  }

  /** Session: the peer broke the order of the stream, or a limit was reached: both sides see a reset. */
  fail(reason: ResetReason): void {
    if (this.closed) return
    this.sendReset(reason)
    this.abort(new StreamResetError(reason))
  }

  /**
   * Session: the carrier is gone. A stream on which both sides have finished needs it no more: what is held is
   * delivered as its reader takes it (the peer of a draining session closes it while we still hold bytes).
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

  /** As much as credit and carrier take without waiting. */
  private sendNow(bytes: Uint8Array): number {
    const length = Math.min(bytes.length, this.sendCredit)
    const part = length === bytes.length ? bytes : bytes.subarray(0, length)
    if (length === 0 || !this.carrier.sendData(this, part)) return 0
    this.sendCredit -= length
    return length
  }

  private deliver(bytes: Uint8Array): WriteResult {
    const result = this.receiver.onBytes(bytes)
    // A receiver that is full pauses us: what it holds counts until it has room again.
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
    // A window that has become too large shrinks by credit that is not given back.
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
    // Before its SYN has left there is nothing to reset: the far end has never heard of the stream.
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
