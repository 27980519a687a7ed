/**
 * The receiving side of a session: reads from TLS, decodes in place and passes the frames on before the next read. When
 * the caller's share of this turn is spent (turn-share.ts), bytes already read wait, and reading stops.
 */
import type { Socket } from 'node:net'
import {
  carriedBytes,
  type DirectReader,
  readDirect,
  setReading,
} from '../../lib/node-internals.ts'
import { noteRead } from '../io/turn.ts'
import type { PostponedWork, TurnShare } from '../io/turn-share.ts'
import type { Account } from './accounts.ts'
import { FrameDecoder, type FrameSink } from './decoder.ts'

/** Node's TLS delivers one record at a time. */
const READ_BYTES = 16_384

/** Costs, nanoseconds: to resume reading, of a TLS record read, of a frame of any kind, of a byte read. */
const READ_COST = 5_000
const RECORD_COST = 3_000
const FRAME_COST = 50
const COST_PER_READ_BYTE = 0.5

/** What TLS adds to each record: header, content type and tag. */
const RECORD_OVERHEAD = 22

/** The most bytes that the handshake may have carried; above it, other bytes have already arrived. */
const MAX_HANDSHAKE_BYTES = 32_768

/** Receives the frames. */
export interface IncomingOwner extends FrameSink {
  /** The number of bytes that wait to be decoded changed by `delta`. */
  held(delta: number): void
  /** Decoding threw an error. */
  onUnreadable(error: unknown): void
}

/** The receiving side of one session. */
export class Incoming implements DirectReader, PostponedWork {
  /** Cost of resuming to read. */
  readonly cost: number = READ_COST
  receivedBytes = 0
  /** Monotonic milliseconds. */
  lastReceivedMs: number
  private readonly socket: Socket
  private readonly account: Account
  private readonly turns: TurnShare
  private readonly owner: IncomingOwner
  private readonly decoder: FrameDecoder
  private readBuffer = Buffer.allocUnsafeSlow(READ_BYTES)
  private readBufferKept = false
  /** Bytes that were read after the share of the turn was spent. */
  private unread: Uint8Array[] = []
  private unreadBytes = 0
  /** Nothing more is read in this turn. */
  private isResting = false
  /** The handler of the connection's end, which arrived while bytes were {@link unread}. */
  private endDue: (() => void) | undefined
  private closed = false
  private records = 0
  /** The largest count so far of TLS bytes beyond data and record overhead; {@link receivedBytes} at the last check. */
  private emptyTlsBytes: number
  private receivedBefore = 0

  constructor(socket: Socket, account: Account, owner: IncomingOwner) {
    this.socket = socket
    this.account = account
    this.turns = account.turns
    this.owner = owner
    this.decoder = new FrameDecoder(owner)
    this.lastReceivedMs = performance.now()
    this.emptyTlsBytes = Math.min(carriedBytes(socket) ?? 0, MAX_HANDSHAKE_BYTES)
    if (!readDirect(socket, this.readBuffer, this))
      socket.on('data', (bytes: Buffer) => this.take(bytes))
  }

  /** Passes on no more frames. */
  close(): void {
    this.closed = true
    this.owner.held(-this.unreadBytes)
    this.unreadBytes = 0
    this.unread = []
  }

  /** The connection has ended: calls `end` when all bytes read before have been decoded. */
  whenAllIsRead(end: () => void): void {
    if (this.unread.length > 0) this.endDue ??= end
    else end()
  }

  /**
   * Whether too many of the TLS bytes are TLS's own messages, which are visible nowhere else. Padding no longer than
   * the data is accepted. Call it once a second.
   */
  wastesTls(nowMs: number): boolean {
    const carried = carriedBytes(this.socket)
    if (carried === undefined) return false
    // Bytes read and not yet decrypted are included, so only growth beyond the previous maximum counts.
    const empty = carried - this.receivedBytes - this.records * RECORD_OVERHEAD
    const more = empty - this.emptyTlsBytes - (this.receivedBytes - this.receivedBefore)
    this.emptyTlsBytes = Math.max(this.emptyTlsBytes, empty)
    this.receivedBefore = this.receivedBytes
    return more > 0 && !this.account.mayWaste(nowMs, more)
  }

  onRead(length: number): void {
    const { readBuffer } = this
    // In bulk most reads are whole records: those need no view.
    this.take(length === readBuffer.length ? readBuffer : readBuffer.subarray(0, length))
  }

  nextBuffer(): Uint8Array | undefined {
    if (!this.readBufferKept) return undefined
    this.readBufferKept = false
    this.readBuffer = Buffer.allocUnsafeSlow(READ_BYTES)
    return this.readBuffer
  }

  continueWork(): void {
    for (let bytes = this.unread.shift(); bytes !== undefined; bytes = this.unread.shift()) {
      this.unreadBytes -= bytes.length
      this.owner.held(-bytes.length)
      this.decode(bytes)
      if (!this.spendOnRead(bytes.length) || this.unread.length === 0) continue
      this.turns.postpone(this)
      return
    }
    this.isResting = false
    if (this.endDue === undefined) setReading(this.socket, true)
    else this.endDue()
  }

  private take(bytes: Uint8Array): void {
    if (this.closed) return
    this.receivedBytes += bytes.length
    this.records += 1
    this.lastReceivedMs = performance.now()
    noteRead(this.lastReceivedMs)
    if (this.isResting || this.turns.isSpent) {
      // Node delivers what it has already decrypted, even after reading has stopped.
      this.unread.push(Uint8Array.prototype.slice.call(bytes))
      this.unreadBytes += bytes.length
      this.owner.held(bytes.length)
      this.rest()
      return
    }
    if (this.decode(bytes)) this.readBufferKept = true
    if (this.spendOnRead(bytes.length) && !this.closed) this.rest()
  }

  /** A record of `bytes` bytes was decoded. @returns whether the share of this turn is spent. */
  private spendOnRead(bytes: number): boolean {
    const frames = this.decoder.takeFrames()
    return this.turns.spend(RECORD_COST + bytes * COST_PER_READ_BYTE + frames * FRAME_COST)
  }

  /** @returns whether the bytes are still in use. */
  private decode(bytes: Uint8Array): boolean {
    try {
      return this.decoder.push(bytes)
    } catch (error) {
      this.owner.onUnreadable(error)
      return false
    }
  }

  /** Stops reading for this turn. */
  private rest(): void {
    if (this.isResting) return
    this.isResting = true
    setReading(this.socket, false)
    this.turns.postpone(this)
  }
}
