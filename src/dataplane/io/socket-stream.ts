/**
 * A TCP or TLS connection as a {@link ByteStream}.
 *
 * Reads use memory chosen at construction: one buffer shared by all sockets of the thread when the receiver copies or
 * consumes at once (a tunnel stream); otherwise the socket's own buffer, replaced whenever the receiver keeps it. Does
 * not own the socket's deadlines.
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

/** Free bytes before those read into shared memory: a framing may put its header there. */
export const HEADROOM = 12

/** Memory for one read, including the headroom of shared memory: four whole TLS records when framed in place. */
const READ_BYTES = 65_536

/** Memory for one read while memory is short. */
const SMALL_READ_BYTES = 8_192

/** The most that one read into shared memory returns, bytes. */
export const CHUNK_BYTES: number = READ_BYTES - HEADROOM

/** Node's TLS delivers at most one record at a time. */
const TLS_READ_BYTES = 16_384

/** Chunks from this size on are gathered and sent once per turn: one system call for five TLS records. */
const GATHER_FROM_BYTES = 8_192

/** Size of the memory for gathering; when it is full, it is written at once. */
const GATHER_BYTES = 131_072

/**
 * Bytes waiting in the socket, gathered or written, at which write() returns FULL for a gathered chunk. The second
 * limit applies while memory is short.
 */
const FULL_BYTES = 262_144
const FULL_BYTES_WHEN_SHORT = 65_536

let fullBytes = FULL_BYTES

/**
 * Sets whether memory is short: then less may wait in the sockets of this thread, and reads into shared memory are
 * small, because bytes that are read and not accepted must wait somewhere.
 */
export function shortenSocketBuffers(isShort: boolean): void {
  fullBytes = isShort ? FULL_BYTES_WHEN_SHORT : FULL_BYTES
  sharedBuffer = isShort ? smallSharedBuffer : wholeSharedBuffer
}

/** Gather buffers not in use; all sockets of the thread share them. */
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

/** The memory of {@link hasHeadroom}, from the headroom on. */
export function withHeadroom(length: number): Buffer {
  return sharedMemory.subarray(0, HEADROOM + length)
}

/** Where reads go: `shared` only if the receiver never returns {@link KEPT}; `private` for any receiver. */
export type ReadMemory = 'shared' | 'private'

/** Records what is spent on a user. */
export interface ChargedAccount {
  /** Waiting memory changed by `bytes`. */
  hold(bytes: number): void
  /** The user's time on the thread. */
  readonly turns: TurnShare
}

/** Costs of a read and of each of its bytes, nanoseconds. */
const READ_COST = 8_000
const READ_COST_PER_BYTE = 1.2

/** Additional cost of reading from a socket that rested: its sender continues within our system call. */
const GO_ON_COST = 50_000

/** A smaller read has emptied the socket: to stop reading would save nothing in this turn. */
const LARGE_READ_BYTES = 4_096

/** The receiver before the owner sets one: bytes must not be lost, so reading then is an error. */
const unsetReceiver: Receiver = {
  onBytes: () => {
    throw new Error('Bytes were read before a receiver was set')
  },
  onEnd: () => undefined,
  onClosed: () => undefined,
  onReset: () => undefined,
  onWritable: () => undefined,
}

/** The kernel has all written bytes: if the other side has ended too, Node closes the socket next. */
function endIfOver(this: Socket): void {
  if (this.readableEnded) endOnClose(this)
}

/**
 * A connected socket (`allowHalfOpen`, not yet read from) as a byte stream. Owns the socket from then on. A socket that
 * resets when closed (linger.ts) does so until both sides have ended.
 */
export class SocketStream implements ByteStream, DirectReader, TurnTask, PostponedWork {
  receiver: Receiver = unsetReceiver
  /** Called once a reset of ours has been sent. */
  afterReset: (() => void) | undefined = undefined
  /** Estimated cost of its next read, from the last one. Charged when reading resumes, not again after the read. */
  cost: number = GO_ON_COST + READ_COST
  readonly socket: Socket
  /** TLS encrypts its input before write() returns, so the plaintext is never kept. */
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
  private isFullReported = false
  private account: ChargedAccount | undefined
  private isPaused = true
  /** Not read in this turn: the share of the charged user is spent. */
  private isResting = false
  /** Cost of its next read that is already charged. */
  private prepaid = 0
  /** Bytes in the socket that are charged to the account. */
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
      this.notifyWritable()
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

  /** From now on any receiver may be set. Only before the first resume(). */
  useOwnMemory(): void {
    if (this.started) throw new Error('Reading has begun into shared memory')
    this.memory = 'private'
  }

  /** Bytes that wait for the reader of the socket, as recorded by the account. */
  get heldMemory(): number {
    return this.waiting
  }

  /** Charges reads, and bytes waiting in the socket, to a user from now on. At most once. */
  chargeTo(account: ChargedAccount): void {
    this.account = account
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
    // The kernel gets the bytes of an idle socket at once, except a few.
    const hasRoom = copies
      ? socket.write(Uint8Array.prototype.slice.call(bytes), this.onWritten)
      : socket.write(bytes)
    if (copies) this.noteWaiting()
    const isKept = !copies && (this.encrypts ? !wasIdle : socket.writableLength > 0)
    if (!hasRoom) this.isFullReported = true
    return (isKept ? KEPT : 0) | (hasRoom ? 0 : FULL)
  }

  endOfTurn(): void {
    if (this.gatheredBytes > 0) this.flushGather()
    if (!this.socket.writableNeedDrain) this.notifyWritable()
  }

  end(): void {
    if (this.closed || this.socket.writableEnded) return
    if (this.gatheredBytes > 0) this.flushGather()
    // Both directions have ended and the kernel has everything: closing sends the FIN, without a shutdown.
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
      if (this.account?.turns.isSpent === true) this.rest(this.account.turns)
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
      // Memory has become short, or is no longer short.
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

  /** Charges a read; when the share of this turn is spent, the socket rests. */
  private spend(length: number): void {
    const { account } = this
    if (account === undefined) return
    const cost = READ_COST + length * READ_COST_PER_BYTE
    const isEnough = account.turns.spend(Math.max(0, cost - this.prepaid))
    this.prepaid = 0
    this.cost = GO_ON_COST + cost
    if (!isEnough || this.isResting || this.isPaused || this.closed) return
    if (length >= LARGE_READ_BYTES || account.turns.isOverspent) this.rest(account.turns)
  }

  private rest(turns: TurnShare): void {
    this.isResting = true
    this.setFlowing(false)
    turns.postpone(this)
  }

  /** close_notify is missing: the data may be incomplete. */
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
    this.isFullReported = true
    return FULL
  }

  private flushGather(): void {
    const { gather, gatheredBytes, socket } = this
    this.gather = undefined
    this.gatheredBytes = 0
    if (gather === undefined || this.closed) return
    const bytes = gather.subarray(0, gatheredBytes)
    // Reused once it is written: these buffers would burden the garbage collector.
    if (socket.writableLength === 0 || gatheredBytes * 2 > GATHER_BYTES)
      socket.write(bytes, () => {
        recycleGather(gather)
        this.noteWaiting()
      })
    else {
      // Behind a busy socket a few bytes must not keep a whole buffer for as long as the reader wants.
      socket.write(Uint8Array.prototype.slice.call(bytes), this.onWritten)
      recycleGather(gather)
    }
    this.noteWaiting()
  }

  private readonly onWritten = (): void => this.noteWaiting()

  /** Reports the bytes that wait in the socket to the account, if the number changed. */
  private noteWaiting(waiting: number = this.closed ? 0 : this.socket.writableLength): void {
    const { account } = this
    if (account === undefined || waiting === this.waiting) return
    const change = waiting - this.waiting
    this.waiting = waiting
    account.hold(change)
  }

  private notifyWritable(): void {
    if (this.closed || !this.isFullReported) return
    this.isFullReported = false
    this.receiver.onWritable()
  }

  private start(): void {
    this.started = true
    if (this.memory === 'private')
      this.buffer = Buffer.allocUnsafeSlow(this.encrypts ? TLS_READ_BYTES : READ_BYTES)
    else this.buffer = sharedBuffer
    // Bytes that a peer sent with its handshake are already in Node's stream: a direct read would miss them.
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

/** Discards the gather buffers kept for reuse. */
export function forgetIdleGathers(): void {
  idleGathers.length = 0
}
