/**
 * The sending side of a session.
 *
 * Frames of one turn of the event loop are collected and sent as one TLS write, so that a hundred small requests cost
 * one system call. While the carrier is busy (the kernel's buffer is full), small frames are still collected; streams
 * with more to send are queued and served in quanta, so that a bulk transfer cannot starve the others. At most one TLS
 * write is in progress. Node's TLS consumes it completely before write() returns, so the memory is free at once.
 */
import type { Socket } from 'node:net'
import { HEADROOM, hasHeadroom, withHeadroom } from '../io/socket-stream.ts'
import { scheduleEarly, type TurnTask } from '../io/turn.ts'
import type { PostponedWork, TurnShare } from '../io/turn-share.ts'
import { DATA, HEADER_BYTES, MAX_PAYLOAD, writeHeader } from './frame.ts'
import type { TunnelStream } from './stream.ts'

/** Frames up to this size are copied into the batch; larger ones are framed in place where possible. */
const SMALL_BYTES = 8_192

/** Size of a batch: the frames collected in one turn. */
const BATCH_BYTES = 65_536

/** A TLS write of this size takes no further queued stream. */
const WRITE_BYTES = 262_144

/** What one stream may add to a write before the next one is served. */
const QUANTUM_BYTES = MAX_PAYLOAD

/** Cost of a sent byte, nanoseconds: encrypting it, and the kernel's work up to the next host's queue. */
const COST_PER_SENT_BYTE = 2.5

/** Control frames that may wait for a peer that does not read, bytes: answers to about 40,000 streams. */
const MAX_UNREAD_CONTROL = 524_288

/** Batches not in use; all sessions of the thread share them. */
const idleBatches: Buffer[] = []
const MAX_IDLE_BATCHES = 16

/** Where queued streams are gathered; its content may be overwritten when write() returns. */
const gatherBuffer = Buffer.allocUnsafeSlow(WRITE_BYTES + BATCH_BYTES)

/** The sending side of one session. */
export class Outgoing implements TurnTask, PostponedWork {
  readonly cost: number = 0
  sentBytes = 0
  private readonly socket: Socket
  private readonly turns: TurnShare
  private readonly onOverrun: () => void
  private batch: Buffer | undefined
  private batchBytes = 0
  private round: TunnelStream[] = []
  /** Streams whose bytes are in the write in progress. */
  private readonly drained: TunnelStream[] = []
  private isWriting = false
  private writes = 0
  /** The value of {@link writes} when a tick first saw the write in progress, and the time of that tick. */
  private seenWrites = 0
  private seenWritingMs = 0
  /** More bytes wait for the peer than are kept for one that does not read. */
  private isOverrun = false
  /** The stream whose chunk is the write in progress, if it is a single chunk. */
  private writer: TunnelStream | undefined
  private isFlushDue = false
  private closed = false

  /** @param onOverrun called when the peer reads so little that the session must end. */
  constructor(socket: Socket, turns: TurnShare, onOverrun: () => void) {
    this.socket = socket
    this.turns = turns
    this.onOverrun = onOverrun
  }

  /** Sends a stream's payload now if possible. @returns false when the carrier is busy. */
  sendData(stream: TunnelStream, bytes: Uint8Array): boolean {
    // The session has ended, and this stream has not been notified yet: the bytes are dropped.
    if (this.closed) return true
    const { length } = bytes
    const frameBytes = HEADER_BYTES + length
    if (length <= SMALL_BYTES) {
      if (this.batchBytes + frameBytes > BATCH_BYTES) {
        if (this.isWriting) return false
        this.flush()
        if (this.batchBytes + frameBytes > BATCH_BYTES) return false
      }
      const batch = this.openBatch()
      writeHeader(batch, this.batchBytes, DATA, stream.pendingFlags, stream.id, length)
      batch.set(bytes, this.batchBytes + HEADER_BYTES)
      this.batchBytes += frameBytes
      stream.pendingFlags = 0
      return true
    }
    if (length > MAX_PAYLOAD || !hasHeadroom(bytes)) return false
    // Queued streams go first: otherwise one fast writer could keep them waiting for ever.
    if (this.isWriting || this.batchBytes > 0 || this.round.length > 0) return false
    const frame = withHeadroom(length)
    writeHeader(frame, HEADROOM - HEADER_BYTES, DATA, stream.pendingFlags, stream.id, length)
    stream.pendingFlags = 0
    this.writer = stream
    this.send(frame)
    return true
  }

  /** Whether the write in progress is this stream's own chunk. */
  isBusyWith(stream: TunnelStream): boolean {
    return this.writer === stream
  }

  /** Sends a frame without payload, in order after everything that {@link sendData} accepted. */
  sendControl(type: number, flags: number, id: number, length: number): void {
    if (this.closed) return
    if (this.batchBytes + HEADER_BYTES > BATCH_BYTES && !this.growBatch()) return
    const batch = this.openBatch()
    writeHeader(batch, this.batchBytes, type, flags, id, length)
    this.batchBytes += HEADER_BYTES
  }

  /** Queues a stream that has unsent bytes; they are taken in its turn. */
  queue(stream: TunnelStream): void {
    if (stream.isQueued || this.closed) return
    stream.isQueued = true
    this.round.push(stream)
    this.scheduleFlush()
  }

  endOfTurn(): void {
    if (this.round.length > 0 && this.turns.isSpent && !this.isOverrun) {
      this.turns.postpone(this)
      return
    }
    this.isFlushDue = false
    if (this.isOverrun) this.onOverrun()
    if (!this.isWriting) this.flush()
  }

  continueWork(): void {
    this.endOfTurn()
  }

  /** How long the peer has not accepted the write in progress, milliseconds; 0 without one. Call it once a second. */
  stalledMs(nowMs: number): number {
    if (!this.isWriting || this.writes !== this.seenWrites) {
      this.seenWrites = this.writes
      this.seenWritingMs = nowMs
    }
    return nowMs - this.seenWritingMs
  }

  /**
   * Sends no more frames. Collected frames are sent, then the connection is ended; the peer has `timeoutMs` to read
   * them and to end its side. Without a timeout nothing is sent and the connection is destroyed.
   */
  close(timeoutMs: number | undefined): void {
    const { batch, batchBytes, socket } = this
    if (timeoutMs === undefined) socket.destroy()
    else {
      // Another write may be in progress: then Node keeps the chunk, so it must not be pooled memory.
      if (batch !== undefined) socket.write(Buffer.from(batch.subarray(0, batchBytes)))
      socket.end()
      const deadline = setTimeout(() => socket.destroy(), timeoutMs).unref()
      socket.once('close', () => clearTimeout(deadline))
    }
    this.closed = true
    this.round = []
    this.batch = undefined
    this.batchBytes = 0
    if (batch !== undefined) recycle(batch)
  }

  /**
   * Enlarges a full batch while the carrier is busy, because control frames must not be lost.
   * @returns false when the peer reads so little that the session ends; later, so that the sender is not called back.
   */
  private growBatch(): boolean {
    const batch = this.openBatch()
    if (this.batchBytes + HEADER_BYTES <= batch.length) return true
    if (batch.length >= MAX_UNREAD_CONTROL) {
      this.isOverrun = true
      if (!this.isFlushDue) {
        this.isFlushDue = true
        scheduleEarly(this)
      }
      return false
    }
    const larger = Buffer.allocUnsafeSlow(batch.length * 2)
    batch.copy(larger, 0, 0, this.batchBytes)
    this.batch = larger
    return true
  }

  private openBatch(): Buffer {
    if (this.batch === undefined) {
      this.batch = idleBatches.pop() ?? Buffer.allocUnsafeSlow(BATCH_BYTES)
      this.batchBytes = 0
    }
    this.scheduleFlush()
    return this.batch
  }

  private scheduleFlush(): void {
    if (this.isFlushDue || this.isWriting) return
    this.isFlushDue = true
    scheduleEarly(this)
  }

  private flush(): void {
    if (this.closed) return
    const { batch, batchBytes } = this
    // A batch larger than usual does not fit into the gather buffer; the queued streams wait for the next write.
    this.batch = undefined
    this.batchBytes = 0
    if (batch !== undefined && (this.round.length === 0 || batchBytes > BATCH_BYTES)) {
      // Frames appended by callbacks of send() go into a new batch.
      if (batchBytes > 0) this.send(batch.subarray(0, batchBytes))
      recycle(batch)
      return
    }
    batch?.copy(gatherBuffer, 0, 0, batchBytes)
    const bytes = this.gatherRound(batchBytes)
    if (batch !== undefined) recycle(batch)
    if (bytes > 0) this.send(gatherBuffer.subarray(0, bytes))
  }

  /** Takes one quantum of each queued stream in turn, until the write is full. */
  private gatherRound(start: number): number {
    let at = start
    const visited = this.round
    this.round = []
    let index = 0
    for (; index < visited.length && at < WRITE_BYTES; index += 1) {
      const stream = visited[index]
      if (stream === undefined) continue
      stream.isQueued = false
      let quantum = QUANTUM_BYTES
      while (quantum > 0) {
        const room = gatherBuffer.length - at - HEADER_BYTES
        if (room <= 0) break
        const length = stream.take(gatherBuffer, at + HEADER_BYTES, Math.min(quantum, room))
        if (length === 0) break
        writeHeader(gatherBuffer, at, DATA, stream.pendingFlags, stream.id, length)
        stream.pendingFlags = 0
        at += HEADER_BYTES + length
        quantum -= length
      }
      if (stream.canSend) {
        stream.isQueued = true
        visited.push(stream)
      }
      this.drained.push(stream)
    }
    // Streams that were not reached, or have more, are served next time, in the same order.
    for (; index < visited.length; index += 1) {
      const stream = visited[index]
      if (stream !== undefined) this.round.push(stream)
    }
    return at
  }

  private send(bytes: Uint8Array): void {
    this.isWriting = true
    this.writes += 1
    this.sentBytes += bytes.length
    this.turns.spend(bytes.length * COST_PER_SENT_BYTE)
    this.socket.write(bytes, this.onWritten)
    if (this.drained.length === 0) return
    // After the write: pending FINs are sent, and waiting writers may append and queue again.
    for (const stream of this.drained.splice(0)) stream.afterTake()
  }

  private readonly onWritten = (): void => {
    this.isWriting = false
    const { writer } = this
    this.writer = undefined
    if (this.closed) return
    writer?.afterTake()
    if (this.batchBytes > 0 || this.round.length > 0) this.scheduleFlush()
  }
}

function recycle(batch: Buffer): void {
  if (batch.length === BATCH_BYTES && idleBatches.length < MAX_IDLE_BATCHES) idleBatches.push(batch)
}
