/**
 * A TCP or TLS connection as a {@link ByteStream}.
 *
 * Reads go into memory chosen at construction: one buffer shared by all sockets of the thread when the
 * receiver is known to copy or consume at once (a tunnel stream), else a buffer of the socket's own that is
 * replaced whenever the receiver keeps it. Does not own the socket's deadlines.
 *
 * ```
 *   open --end/'end'--> half closed --the other--> closed (in order)
 *     \______________ error, close, reset() ______________> closed (reset)
 * ```
 */
import type { Socket } from 'node:net'
import { MeshError } from '../../lib/errors.ts'
import { type DirectReader, readDirect, setReading } from '../../lib/node-internals.ts'
import { type ByteStream, FULL, KEPT, type Receiver, type WriteResult } from './byte-stream.ts'
import { endOnClose } from './linger.ts'
import { resetSocket } from './reset-socket.ts'
import { isCutOff } from './tls-end.ts'
import { atEndOfTurn, noteRead, type TurnTask } from './turn.ts'
import type { PostponedWork, TurnShare } from './turn-share.ts'

/** Free bytes before whatever is read into shared memory: a framing may put its header there. */
export const HEADROOM = 12

/** One read takes at most this much, headroom included: four whole TLS records when framed in place. */
const READ_BYTES = 65_536

/** One read while memory is short. */
const SMALL_READ_BYTES = 8_192

/** The most that a socket reads at once. */
export const CHUNK_BYTES: number = READ_BYTES - HEADROOM

/** Node's TLS hands out at most one record at a time. */
const TLS_READ_BYTES = 16_384

/** Chunks from this size on are gathered and leave once per turn: one system call for five TLS records. */
const GATHER_FROM_BYTES = 8_192

/** What one turn can gather for one socket; more is written at once. */
const GATHER_BYTES = 131_072

/** Bytes that may wait in the socket, gathered or written, before the writer is told to stop; fewer while memory is short. */
const FULL_BYTES = 262_144
const FULL_BYTES_WHEN_SHORT = 65_536

let fullBytes = FULL_BYTES

/**
 * Whether memory is short: then less may wait in the sockets of this thread, and those that are read into shared memory are
 * read in small pieces. What is read when nobody takes it has to wait somewhere.
 */
export function shortenSocketBuffers(isShort: boolean): void {
  fullBytes = isShort ? FULL_BYTES_WHEN_SHORT : FULL_BYTES
  sharedBuffer = isShort ? smallSharedBuffer : wholeSharedBuffer
}

/** Gather buffers that no socket uses just now; all sockets of the thread share them. */
const idleGathers: Buffer[] = []
const MAX_IDLE_GATHERS = 32

const sharedMemory = Buffer.allocUnsafeSlow(READ_BYTES)
const wholeSharedBuffer = sharedMemory.subarray(HEADROOM)
const smallSharedBuffer = sharedMemory.subarray(HEADROOM, HEADROOM + SMALL_READ_BYTES)
let sharedBuffer = wholeSharedBuffer

/** Whether the {@link HEADROOM} bytes before `bytes` may be overwritten. */
export function hasHeadroom(bytes: Uint8Array): boolean {
  return bytes.buffer === sharedMemory.buffer
}

/** The memory that {@link hasHeadroom} speaks of, from the headroom on. */
export function withHeadroom(length: number): Buffer {
  return sharedMemory.subarray(0, HEADROOM + length)
}

/**
 * Where reads go: `shared` only if the receiver never answers {@link KEPT}; `private` for any receiver.
 */
export type ReadMemory = 'shared' | 'private'

/** Where it is entered what is spent on somebody. */
export interface Ledger {
  /** Memory that waits has changed by so many bytes. */
  hold(bytes: number): void
  /** Time of the thread. */
  readonly turns: TurnShare
}

/** What a read costs beside its bytes, and what a byte does, nanoseconds. */
const READ_COST = 8_000
const READ_COST_PER_BYTE = 1.2

/** What it costs beside that to read from a socket that has rested: its sender goes on within our system call. */
const GO_ON_COST = 50_000

/** Less than this was all there was to read: to stop reading would save nothing in this turn. */
const LARGE_READ_BYTES = 4_096

/** What {@link SocketStream} calls before anybody listens: nothing may be lost, so it must not happen. */
const unsetReceiver: Receiver = {
  onBytes: () => {
    throw new Error('Bytes were read before a receiver was set')
  },
  onEnd: () => undefined,
  onClosed: () => undefined,
  onReset: () => undefined,
  onWritable: () => undefined,
}

/** All that was written is with the kernel: if the other side has ended too, Node closes the socket next. */
function endIfOver(this: Socket): void {
  if (this.readableEnded) endOnClose(this)
}

/**
 * A connected socket (`allowHalfOpen`, not yet read from) as a byte stream. Owns the socket from here on. One that resets
 * when it is closed (linger.ts) does so until both sides have ended.
 */
export class SocketStream implements ByteStream, DirectReader, TurnTask, PostponedWork {
  receiver: Receiver = unsetReceiver
  /** Called once a reset of ours is on its way. */
  afterReset: (() => void) | undefined = undefined
  /** Of its next read, as far as the last one tells. Spent when it may go on, not once more when it has read. */
  cost: number = GO_ON_COST + READ_COST
  readonly socket: Socket
  /** TLS encrypts what it is given before write returns, so the plaintext is never kept. */
  private readonly encrypts: boolean
  private memory: ReadMemory
  private buffer: Uint8Array
  private bufferKept = false
  private started = false
  private readsDirectly = false
  private ended = false
  private closed = false
  /** Closed by end(), with nothing left to flush. */
  private closedInOrder = false
  private failure: Error | undefined
  private gather: Buffer | undefined
  private gatheredBytes = 0
  private toldFull = false
  private ledger: Ledger | undefined
  private isPaused = true
  /** Not read from in this turn: enough has been done for whom it is charged to. */
  private isResting = false
  /** What of its next read has been spent. */
  private prepaid = 0
  /** Bytes in the socket that the ledger knows of. */
  private waiting = 0

  constructor(socket: Socket, memory: ReadMemory) {
    this.socket = socket
    this.memory = memory
    this.encrypts = 'encrypted' in socket && socket.encrypted === true
    this.buffer = sharedBuffer
    socket.on('error', (error) => {
      this.failure = error
    })
    socket.on('end', () => {
      if (this.encrypts && isCutOff(socket)) return this.breakOff()
      if (socket.writableFinished) endOnClose(socket)
      if (this.closed) return
      this.ended = true
      this.receiver.onEnd()
    })
    socket.on('drain', () => {
      this.noteWaiting()
      this.tellWritable()
    })
    socket.on('close', () => {
      this.noteWaiting(0)
      const isDone = this.ended && socket.writableFinished && this.failure === undefined
      if (this.closed ? this.closedInOrder : isDone) {
        this.closed = true
        this.receiver.onClosed()
        return
      }
      if (this.closed) return
      this.closed = true
      this.receiver.onReset(
        this.failure ??
          new MeshError('HM_CONNECTION_BROKEN', 'The connection closed without a proper end'),
      )
    })
  }

  get isClosed(): boolean {
    return this.closed
  }

  /** Any receiver may follow from here on. Only before the first resume(). */
  useOwnMemory(): void {
    if (this.started) throw new Error('Reading has begun into shared memory')
    this.memory = 'private'
  }

  /** Bytes that the reader of the socket has left waiting, as far as the ledger knows. */
  get heldMemory(): number {
    return this.waiting
  }

  /** From here on what waits in the socket, and reading from it, is charged to somebody. At most once. */
  chargeTo(ledger: Ledger): void {
    this.ledger = ledger
  }

  write(bytes: Uint8Array): WriteResult {
    const { socket } = this
    if (this.closed || socket.writableEnded) return 0
    const { length } = bytes
    if (length <= GATHER_BYTES && (length >= GATHER_FROM_BYTES || this.gatheredBytes > 0))
      return this.gatherUp(bytes)
    if (this.gatheredBytes > 0) this.flushGather()
    const wasIdle = socket.writableLength === 0
    // Behind a busy socket a few bytes must not keep the whole buffer that they were read into.
    const copies = !wasIdle && length < GATHER_FROM_BYTES
    // What an idle socket is given is with the kernel at once, or no more than a few bytes.
    const hasRoom = copies
      ? socket.write(Uint8Array.prototype.slice.call(bytes), this.onWritten)
      : socket.write(bytes)
    if (copies) this.noteWaiting()
    const isKept = !copies && (this.encrypts ? !wasIdle : socket.writableLength > 0)
    if (!hasRoom) this.toldFull = true
    return (isKept ? KEPT : 0) | (hasRoom ? 0 : FULL)
  }

  endOfTurn(): void {
    if (this.gatheredBytes > 0) this.flushGather()
    if (!this.socket.writableNeedDrain) this.tellWritable()
  }

  end(): void {
    if (this.closed || this.socket.writableEnded) return
    if (this.gatheredBytes > 0) this.flushGather()
    // Both directions are done and all is with the kernel: closing says FIN, without a shutdown before it.
    if (this.ended && !this.encrypts && this.socket.writableLength === 0) {
      this.closed = true
      this.closedInOrder = true
      endOnClose(this.socket)
      this.socket.destroy()
    } else {
      this.socket.once('finish', endIfOver)
      this.socket.end()
    }
  }

  reset(): void {
    if (this.closed) return
    this.closed = true
    resetSocket(this.socket)
    if (this.socket.destroyed) this.afterReset?.()
    this.noteWaiting(0)
  }

  pause(): void {
    this.isPaused = true
    if (!this.isResting) this.setFlowing(false)
  }

  resume(): void {
    if (this.closed) return
    this.isPaused = false
    if (this.isResting) return
    if (this.started) {
      if (this.ledger?.turns.isSpent === true) this.rest(this.ledger.turns)
      else this.setFlowing(true)
    } else {
      this.start()
      this.socket.resume()
    }
  }

  onRead(length: number): void {
    if (this.closed) return
    noteRead(performance.now())
    const bytes = length === this.buffer.length ? this.buffer : this.buffer.subarray(0, length)
    if ((this.receiver.onBytes(bytes) & KEPT) !== 0) this.bufferKept = true
    this.spend(length)
  }

  continueWork(): void {
    this.isResting = false
    if (this.isPaused || this.closed || this.ended) return
    this.prepaid = this.cost
    this.setFlowing(true)
  }

  nextBuffer(): Uint8Array | undefined {
    if (this.memory === 'shared') {
      if (this.bufferKept) throw new Error('A receiver kept memory that is shared by all sockets')
      if (this.buffer === sharedBuffer) return undefined
      // Memory has become short, or is not any more.
      this.buffer = sharedBuffer
      return sharedBuffer
    }
    if (!this.bufferKept) return undefined
    this.bufferKept = false
    this.buffer = Buffer.allocUnsafeSlow(this.buffer.length)
    return this.buffer
  }

  private setFlowing(wanted: boolean): void {
    if (this.readsDirectly) setReading(this.socket, wanted)
    else if (wanted) this.socket.resume()
    else this.socket.pause()
  }

  /** Something was read: when that is enough for this turn, the socket rests. */
  private spend(length: number): void {
    const { ledger } = this
    if (ledger === undefined) return
    const cost = READ_COST + length * READ_COST_PER_BYTE
    const isEnough = ledger.turns.spend(Math.max(0, cost - this.prepaid))
    this.prepaid = 0
    this.cost = GO_ON_COST + cost
    if (!isEnough || this.isResting || this.isPaused || this.closed) return
    if (length >= LARGE_READ_BYTES || ledger.turns.isOverspent) this.rest(ledger.turns)
  }

  private rest(turns: TurnShare): void {
    this.isResting = true
    this.setFlowing(false)
    turns.postpone(this)
  }

  /** The peer's last word is missing: what came may be half of what it said. */
  private breakOff(): void {
    if (this.closed) return
    this.reset()
    this.receiver.onReset(
      new MeshError('HM_TLS_CUT_OFF', 'The connection was cut off: it ended without close_notify'),
    )
  }

  private gatherUp(bytes: Uint8Array): WriteResult {
    if (this.gatheredBytes + bytes.length > GATHER_BYTES) this.flushGather()
    if (this.gather === undefined) {
      this.gather = idleGathers.pop() ?? Buffer.allocUnsafeSlow(GATHER_BYTES)
      atEndOfTurn(this)
    }
    this.gather.set(bytes, this.gatheredBytes)
    this.gatheredBytes += bytes.length
    if (this.gatheredBytes + this.socket.writableLength < fullBytes) return 0
    this.toldFull = true
    return FULL
  }

  private flushGather(): void {
    const { gather, gatheredBytes, socket } = this
    this.gather = undefined
    this.gatheredBytes = 0
    if (gather === undefined || this.closed) return
    const bytes = gather.subarray(0, gatheredBytes)
    // Free again once it is written; left to the collector, such buffers would keep it busy.
    if (socket.writableLength === 0 || gatheredBytes * 2 > GATHER_BYTES)
      socket.write(bytes, () => {
        recycleGather(gather)
        this.noteWaiting()
      })
    else {
      // Behind a busy socket a few bytes must not keep a whole buffer for as long as the reader likes.
      socket.write(Uint8Array.prototype.slice.call(bytes), this.onWritten)
      recycleGather(gather)
    }
    this.noteWaiting()
  }

  private readonly onWritten = (): void => this.noteWaiting()

  /** Tells the ledger what waits in the socket, when that has changed. */
  private noteWaiting(waiting: number = this.closed ? 0 : this.socket.writableLength): void {
    const { ledger } = this
    if (ledger === undefined || waiting === this.waiting) return
    const change = waiting - this.waiting
    this.waiting = waiting
    ledger.hold(change)
  }

  private tellWritable(): void {
    if (this.closed || !this.toldFull) return
    this.toldFull = false
    this.receiver.onWritable()
  }

  private start(): void {
    this.started = true
    if (this.memory === 'private')
      this.buffer = Buffer.allocUnsafeSlow(this.encrypts ? TLS_READ_BYTES : READ_BYTES)
    else this.buffer = sharedBuffer
    // What a peer sent along with its handshake lies in Node's stream already: a direct read passes it by.
    const early: unknown = this.socket.readableLength > 0 ? this.socket.read() : null
    if (early instanceof Uint8Array) this.receiver.onBytes(early)
    this.readsDirectly = readDirect(this.socket, this.buffer, this)
    if (this.readsDirectly) return
    this.socket.on('data', (bytes: Buffer) => {
      if (this.closed) return
      this.receiver.onBytes(bytes)
      this.spend(bytes.length)
    })
  }
}

function recycleGather(gather: Buffer): void {
  if (idleGathers.length < MAX_IDLE_GATHERS) idleGathers.push(gather)
}

/** Leaves gather buffers that are kept for reuse to the garbage collector. */
export function forgetIdleGathers(): void {
  idleGathers.length = 0
}
