/**
 * Bytes on their way into a session: read from TLS, decoded in place and handed on before the next read. When enough has been
 * done for the caller in this turn of the event loop (turn-share.ts), what has been read already waits, and no more is read.
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

/** Node's TLS hands out one record at a time. */
const READ_BYTES = 16_384

/** What things cost, nanoseconds: to read on, a TLS record that is read, a frame of any kind, a byte that is read. */
const READ_COST = 5_000
const RECORD_COST = 3_000
const FRAME_COST = 50
const COST_PER_READ_BYTE = 0.5

/** What TLS adds to each record: header, content type and tag. */
const RECORD_OVERHEAD = 22

/** What the handshake may have brought; beyond it something else came already. */
const MAX_HANDSHAKE_BYTES = 32_768

/** Who takes the frames. */
export interface IncomingOwner extends FrameSink {
  /** So many bytes more, or less, wait to be decoded. */
  held(delta: number): void
  /** Something was thrown while frames were read. */
  onUnreadable(error: unknown): void
}

/** What one session receives. */
export class Incoming implements DirectReader, PostponedWork {
  /** Of reading on. */
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
  /** What was read when enough had been done in that turn. */
  private unread: Uint8Array[] = []
  private unreadBytes = 0
  /** Nothing is read in this turn any more. */
  private isResting = false
  /** What is to be done about the end of the connection, which came while there was something {@link unread}. */
  private endDue: (() => void) | undefined
  private closed = false
  private records = 0
  /** The most bytes of TLS seen so far that neither carried anything nor were a record's own; and what was received then. */
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

  /** Hands on no more. */
  close(): void {
    this.closed = true
    this.owner.held(-this.unreadBytes)
    this.unreadBytes = 0
    this.unread = []
  }

  /** The connection is gone; what came before that is read first. */
  whenAllIsRead(end: () => void): void {
    if (this.unread.length > 0) this.endDue ??= end
    else end()
  }

  /**
   * Whether too much of what TLS brings is messages of its own, which are nowhere else seen; padding as long as the data is no
   * matter. Asked once a second.
   */
  wastesTls(nowMs: number): boolean {
    const carried = carriedBytes(this.socket)
    if (carried === undefined) return false
    // What has been read and is not decrypted yet is in it too: only what it was never before counts.
    const empty = carried - this.receivedBytes - this.records * RECORD_OVERHEAD
    const more = empty - this.emptyTlsBytes - (this.receivedBytes - this.receivedBefore)
    this.emptyTlsBytes = Math.max(this.emptyTlsBytes, empty)
    this.receivedBefore = this.receivedBytes
    return more > 0 && !this.account.mayWaste(nowMs, more)
  }

  onRead(length: number): void {
    const { readBuffer } = this
    // In bulk most reads are whole records: no view is made for those.
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
      // Node hands out what it has decrypted, also to those who have stopped to read.
      this.unread.push(Uint8Array.prototype.slice.call(bytes))
      this.unreadBytes += bytes.length
      this.owner.held(bytes.length)
      this.rest()
      return
    }
    if (this.decode(bytes)) this.readBufferKept = true
    if (this.spendOnRead(bytes.length) && !this.closed) this.rest()
  }

  /** A record of so many bytes was decoded. @returns whether that was enough for this turn. */
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

  /** Reads no more in this turn. */
  private rest(): void {
    if (this.isResting) return
    this.isResting = true
    setReading(this.socket, false)
    this.turns.postpone(this)
  }
}
