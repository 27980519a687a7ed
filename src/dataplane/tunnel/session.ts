/**
 * Many streams over one TLS connection: docs/tunnel-protocol.md, "Session" and "Limits".
 *
 * Sending. Frames of one turn of the event loop are collected and leave as one TLS write: that is what
 * makes a hundred small requests cost one system call. While the carrier is busy (the kernel's buffer
 * is full) small frames go on collecting, and streams with more to say stand in a round and are served in
 * quanta, so that a bulk transfer cannot starve its neighbors. At most one TLS write is under way; Node's
 * TLS takes all of it before write() returns, so the memory is ours again at once.
 *
 * Receiving. Whatever arrives is decoded in place and handed on before the next read. When enough has been done for the
 * caller in this turn of the event loop (turn-share.ts), what has been read already waits, and no more is read.
 *
 * ```
 *   open --go-away sent or received--> draining --last stream ends--> closed
 *     \--retire(): go-away sent, late streams taken--/
 *     \---- violation, carrier lost, keepalive missed ---------------> closed
 * ```
 */
import type { Socket } from 'node:net'
import { describeError, MeshError } from '../../lib/errors.ts'
import {
  carriedBytes,
  type DirectReader,
  readDirect,
  setReading,
} from '../../lib/node-internals.ts'
import { IdMap } from '../io/id-map.ts'
import { resetOnClose } from '../io/linger.ts'
import { HEADROOM, hasHeadroom, withHeadroom } from '../io/socket-stream.ts'
import { sinceLastAckMs } from '../io/tcp-info.ts'
import { noteRead, soon, type TurnTask } from '../io/turn.ts'
import type { PostponedWork, TurnShare } from '../io/turn-share.ts'
import type { Lane } from './accounts.ts'
import { FrameDecoder, type FrameSink } from './decoder.ts'
import {
  ACK,
  DATA,
  FIN,
  GO_AWAY,
  goAwayCodes,
  HEADER_BYTES,
  INITIAL_CREDIT,
  isViolation,
  MAX_PAYLOAD,
  MAX_WINDOW,
  PING,
  protocolError,
  RST,
  resetCodes,
  resetReason,
  SYN,
  WINDOW_UPDATE,
  writeHeader,
} from './frame.ts'
import { type StreamCarrier, StreamResetError, TunnelStream } from './stream.ts'

/** Limits and intervals of a session; times in milliseconds. */
export interface SessionOptions {
  /** Open streams; more are reset with code 4. */
  readonly maxStreams: number
  /** Silence after which a ping is sent; as much silence again with the ping unanswered ends the session. */
  readonly keepaliveMs: number
  /** The caller that all of the session is spent on, and its destination. */
  readonly lane: Lane
  /** Where the peer is, as violations are counted; unless given they count as those of any address. */
  readonly peerIp?: string | undefined
}

/** What a session tells its owner. */
export interface SessionOwner {
  /** Acceptor only: the peer opened a stream. Its first bytes are the preface. It is paused. */
  onStream(stream: TunnelStream): void
  /** A ping was answered after so many milliseconds. */
  onRoundTrip(tookMs: number): void
  /** A stream was reset, by either side. */
  onStreamReset(): void
  /**
   * A stream was refused unseen, because its caller opens too many that come to nothing (acceptor only), or reset because
   * too much is held for its caller.
   */
  onStreamShed(limit: 'streams' | 'memory'): void
  /** The session is over; all its streams have been reset. Called once. */
  onClosed(reason: MeshError): void
}

/** Frames up to this size are copied into the batch; larger ones are framed in place where possible. */
const SMALL_BYTES = 8_192

/** A batch holds what one turn collects. */
const BATCH_BYTES = 65_536

/** The most that one TLS write takes when streams have queued. */
const WRITE_BYTES = 262_144

/** What one stream may put into a write before it is the next one's turn. */
const QUANTUM_BYTES = MAX_PAYLOAD

/** Node's TLS hands out one record at a time. */
const READ_BYTES = 16_384

/**
 * What things cost, nanoseconds: to read on, a TLS record that is read, a frame of any kind, one with payload (often a write to
 * an application), a stream that is opened, one that is broken off (often a connection that is closed), a byte that is read,
 * and one that is sent: encrypted, and carried by the kernel as far as the next host's queue.
 */
const READ_COST = 5_000
const RECORD_COST = 3_000
const FRAME_COST = 50
const PAYLOAD_COST = 5_000
const OPEN_COST = 10_000
const RESET_COST = 50_000
const COST_PER_READ_BYTE = 0.5
const COST_PER_SENT_BYTE = 2.5

/** What TLS adds to each record: header, content type and tag. */
const RECORD_OVERHEAD = 22

/** What the handshake may have brought; beyond it something else came already. */
const MAX_HANDSHAKE_BYTES = 32_768

/** Pings at the start, one a tick, whatever the traffic: the first round trip is never a typical one. */
const FIRST_PINGS = 5

/** Streams share a carrier while data has arrived for more than one of them within this, milliseconds. */
const SHARING_MS = 100

/** Window of a stream whose caller has much held for it: twice what a sender needs to go on (stream.ts, LEAST_CREDIT). */
const TIGHT_WINDOW = INITIAL_CREDIT / 2

/** Window that a sharing stream gets for each millisecond of round trip: 256 MB/s for every one of them. */
const WINDOW_BYTES_PER_MS = 262_144

/** Bytes held for all receivers of a session before those that hold much are reset. */
const HELD_LIMIT = 64 * 1_048_576

/** What a stream may still hold when {@link HELD_LIMIT} is reached. */
const HELD_PER_STREAM_WHEN_FULL = 65_536

/** Streams that the opener lets wait for the acceptor's ACK. */
const MAX_UNCONFIRMED = 256

/** Credit that is worth a frame, bytes: who gives less can only do so as often as frames without effect may come. */
const LEAST_USEFUL_CREDIT = 1_024

/** Per second and session: streams opened, frames without effect, pings answered. */
const MAX_OPENED_PER_SECOND = 50_000
const MAX_IDLE_FRAMES_PER_SECOND = 10_000
const MAX_PINGS_PER_SECOND = 10

/** What counts as a second for these: ticks come a second apart, give or take. Milliseconds. */
const SECOND_AT_LEAST_MS = 900

/** Control frames that may wait for a peer that does not read, bytes: an answer to each of some 40,000 streams. */
const MAX_UNREAD_CONTROL = 524_288

/** How long one write may wait for a peer that does not read, while its caller has much held for it: so many keepalives. */
const STALLED_KEEPALIVES = 2

/** How long a peer that broke the protocol may take to read why the session ends, milliseconds. */
const GO_AWAY_MS = 1_000

/**
 * A session in which streams wait, and nothing at all has come from the peer's host for so many round trips and so long,
 * is suspect. Milliseconds; a lost packet is sent again after 200.
 */
const SUSPECT_ROUND_TRIPS = 8
const SUSPECT_AFTER_MS = 250

/** The same before the first round trip is known. */
const SUSPECT_UNMEASURED_MS = 1_000

/** How exact the kernel's word on its last acknowledgement is, milliseconds. */
const ACK_CLOCK_MS = 12

/** What waits in a suspect session that cannot be left without ending it, is worth the connections in it after this. Milliseconds. */
const DEAD_AFTER_MS = 3_000

/** The same where all the others wait for an answer, too, but may have been seen. */
const UNSURE_AFTER_MS = 1_000

/** Ids end here; the opener dials anew before. */
const MAX_STREAM_ID = 2 ** 31 - 1

/** Batches that no session uses just now; all sessions of the thread share them. */
const idleBatches: Buffer[] = []
const MAX_IDLE_BATCHES = 16

/** Where queued streams are gathered; its content is gone when write() returns. */
const gatherBuffer = Buffer.allocUnsafeSlow(WRITE_BYTES + BATCH_BYTES)

/** One session over an authenticated TLS connection that has not been read from. Owns the connection. */
export class Session implements StreamCarrier, FrameSink, TurnTask, DirectReader {
  /** Monotonic milliseconds; for status. */
  readonly openedAtMs: number = performance.now()
  /** Last measured round trip, milliseconds; undefined before the first ping was answered. */
  roundTripMs: number | undefined
  sentBytes = 0
  receivedBytes = 0
  private readonly socket: Socket
  private readonly role: 'opener' | 'acceptor'
  private readonly owner: SessionOwner
  private readonly options: SessionOptions
  private readonly turns: TurnShare
  private readonly decoder: FrameDecoder
  private readonly streams = new IdMap<TunnelStream>()
  private readBuffer = Buffer.allocUnsafeSlow(READ_BYTES)
  private readBufferKept = false
  /** What was read when enough had been done in that turn. */
  private unread: Uint8Array[] = []
  private unreadBytes = 0
  /** Nothing is read in this turn any more. */
  private isResting = false
  /** What is to be done about the end of the connection, which came while there was something {@link unread}. */
  private endDue: (() => void) | undefined
  private batch: Buffer | undefined
  private batchBytes = 0
  private round: TunnelStream[] = []
  /** Streams that the write under way has taken from. */
  private readonly drained: TunnelStream[] = []
  private isWriting = false
  private writes = 0
  /** What {@link writes} was when the write under way was first seen by a tick, and when that was. */
  private seenWrites = 0
  private seenWritingMs = 0
  /** More waits for the peer than is kept for one that does not read. */
  private isOverrun = false
  /** Whose chunk the write under way consists of, if it is a single one. */
  private writer: TunnelStream | undefined
  private isFlushDue = false
  private closed = false
  private draining = false
  /** Go-away has been sent, but what the opener sent before it arrived is taken. */
  private retiring = false
  private nextId = 1
  private highestId = 0
  private unconfirmed = 0
  /** Openers that wait for room; first come, first served. */
  private waiting: (() => void)[] = []
  private current: TunnelStream | undefined
  private pingsAnswered = 0
  private lastDataId = 0
  /** When data for another stream than the one before arrived. */
  private sharedAtMs = 0
  /** Least round trip seen: load only ever lengthens it. */
  private leastRoundTripMs: number | undefined
  private heldBytes = 0
  private openedThisSecond = 0
  private idleFramesThisSecond = 0
  private pingsThisSecond = 0
  private secondStartedMs = 0
  private lastReceivedMs: number
  private idleSinceMs: number
  private pingSentMs: number | undefined
  private pingValue = 0
  private suspectedMs: number | undefined
  private records = 0
  /** The most bytes of TLS seen so far that neither carried anything nor were a record's own; and what was received then. */
  private emptyTlsBytes: number
  private receivedBefore = 0

  constructor(
    socket: Socket,
    role: 'opener' | 'acceptor',
    owner: SessionOwner,
    options: SessionOptions,
  ) {
    this.socket = socket
    this.role = role
    this.owner = owner
    this.options = options
    this.turns = options.lane.account.turns
    this.decoder = new FrameDecoder(this)
    this.lastReceivedMs = this.openedAtMs
    this.idleSinceMs = this.openedAtMs
    this.emptyTlsBytes = Math.min(carriedBytes(socket) ?? 0, MAX_HANDSHAKE_BYTES)
    socket.on('error', (error) => this.lose(describeError(error), error))
    socket.on('end', () => this.whenAllIsRead(() => this.peerEnded()))
    socket.on('close', () => this.whenAllIsRead(() => this.lose('it was closed')))
    if (!readDirect(socket, this.readBuffer, this))
      socket.on('data', (bytes: Buffer) => this.take(bytes))
    socket.resume()
    this.ping(this.openedAtMs)
  }

  /** Streams open now. */
  get streamCount(): number {
    return this.streams.size
  }

  /** Whether a new stream may be opened: not draining, below its limits. */
  get canOpen(): boolean {
    return (
      !this.closed &&
      !this.draining &&
      this.unconfirmed < MAX_UNCONFIRMED &&
      this.streams.size < this.options.maxStreams &&
      this.nextId < MAX_STREAM_ID
    )
  }

  /** Whether it is over, or takes no new streams any more. */
  get isRetired(): boolean {
    return this.closed || this.draining || this.retiring || this.nextId >= MAX_STREAM_ID
  }

  /** Whether its connection is closed: nothing that was sent is still on its way out of this process. */
  get isGone(): boolean {
    return this.socket.destroyed
  }

  /** Whether the peer's host may be gone: it has not been heard of since {@link watch} found it silent. */
  get isSuspect(): boolean {
    return this.suspectedMs !== undefined && this.lastReceivedMs < this.suspectedMs
  }

  /** Milliseconds without any stream, at `nowMs`; 0 while there are some. */
  idleMs(nowMs: number): number {
    return this.streams.size > 0 ? 0 : nowMs - this.idleSinceMs
  }

  /** Opens a stream whose first bytes are `preface`. Ask {@link canOpen} before. */
  open(preface: Uint8Array): TunnelStream {
    if (!this.canOpen)
      throw new MeshError('HM_TUNNEL_RETIRED', 'Cannot open a stream: the tunnel takes no more')
    const stream = new TunnelStream(this, this.nextId, 'opener', SYN)
    this.nextId += 2
    this.streams.set(stream.id, stream)
    this.unconfirmed += 1
    stream.write(preface)
    stream.prefaceBytes = preface.length
    return stream
  }

  /** No new streams; closes by itself when the open ones have ended. */
  drain(): void {
    if (this.closed || this.draining) return
    this.draining = true
    this.appendControl(GO_AWAY, 0, 0, goAwayCodes.normal)
    this.admitWaiting()
    if (this.streams.size === 0) this.finish()
  }

  /**
   * Acceptor: asks the opener to dial anew and goes on serving what it still sends, so that a certificate
   * is replaced without one refused stream. Closed by the opener, or by {@link expire} when that is due.
   */
  retire(): void {
    if (this.closed || this.draining || this.retiring) return
    this.retiring = true
    this.appendControl(GO_AWAY, 0, 0, goAwayCodes.normal)
  }

  /** Resolves when a stream may be opened, the session is retired or the time is over; the caller looks which. */
  room(timeoutMs: number): Promise<void> {
    if (this.canOpen || this.isRetired) return Promise.resolve()
    return new Promise((resolve) => {
      const resume = (): void => {
        clearTimeout(deadline)
        resolve()
      }
      const deadline = setTimeout(() => {
        const at = this.waiting.indexOf(resume)
        if (at >= 0) this.waiting.splice(at, 1)
        resolve()
      }, timeoutMs)
      this.waiting.push(resume)
    })
  }

  /** A certificate of this connection is no longer valid: ends the session now. */
  expire(): void {
    this.disown(
      new MeshError('HM_TUNNEL_EXPIRED', 'The tunnel was closed: a certificate of it has expired'),
    )
  }

  /** A certificate of this connection is not believed any more: ends the session now, streams see `reason`. */
  disown(reason: MeshError): void {
    this.fail(reason)
  }

  /** Once a second or so: keepalive and rate windows. Times are monotonic milliseconds. */
  tick(nowMs: number): void {
    if (this.closed) return
    // A timer of a second may come a moment early: skipping it would make the second two, and half the limits.
    if (nowMs - this.secondStartedMs >= SECOND_AT_LEAST_MS) {
      this.secondStartedMs = nowMs
      this.openedThisSecond = 0
      this.idleFramesThisSecond = 0
      this.pingsThisSecond = 0
    }
    if (this.wastesTls(nowMs)) {
      this.fail(protocolError('HM_TUNNEL_FLOOD', 'TLS records that carry nothing'))
      return
    }
    if (this.isStalled(nowMs)) {
      this.fail(new MeshError('HM_TUNNEL_STALLED', 'The tunnel was closed: the peer does not read'))
      return
    }
    // A woken opener may have lost interest; the next one must not wait for another event.
    this.admitWaiting()
    const { keepaliveMs } = this.options
    if (this.pingSentMs === undefined) {
      if (nowMs - this.lastReceivedMs >= keepaliveMs || this.pingsAnswered < FIRST_PINGS)
        this.ping(nowMs)
    } else if (nowMs - Math.max(this.pingSentMs, this.lastReceivedMs) >= keepaliveMs) {
      // A ping may wait behind bulk; what arrives meanwhile is as good as its answer.
      this.fail(
        new MeshError('HM_TUNNEL_SILENT', `The tunnel broke: no answer for ${keepaliveMs} ms`),
      )
    }
  }

  /**
   * Opener, many times a second: whether streams wait for a host that is gone. Then those that have somewhere else to go
   * (`mayMove`) are let go, but none of which the peer may have seen a byte of the application: docs/tunnel-protocol.md,
   * "Silent peers".
   */
  watch(nowMs: number): void {
    const silentMs = nowMs - this.lastReceivedMs
    const patienceMs = this.patienceMs()
    if (this.closed || this.unconfirmed === 0 || silentMs < patienceMs) return
    const streams = this.streams.list()
    const waitsTooLong = (stream: TunnelStream): boolean =>
      !stream.isConfirmed && nowMs - stream.openedMs >= patienceMs
    if (!streams.some(waitsTooLong)) return
    if (this.pingSentMs === undefined) this.ping(nowMs)
    const sinceAckMs = sinceLastAckMs(this.socket)
    if (sinceAckMs === undefined) return
    // A host that lives acknowledges: then its daemon is slow, or does not run, and may still read what was sent.
    const arrivedMs = nowMs - sinceAckMs + ACK_CLOCK_MS
    if (!streams.some((stream) => waitsTooLong(stream) && stream.openedMs > arrivedMs)) return
    this.suspectedMs = nowMs
    this.letGo(streams, arrivedMs, silentMs)
  }

  /** What was opened after `arrivedMs` has not reached the peer's host. */
  private letGo(streams: readonly TunnelStream[], arrivedMs: number, silentMs: number): void {
    const unseen = streams.filter(
      (stream) => !stream.isConfirmed && stream.openedMs > arrivedMs && stream.mayMove?.() === true,
    )
    if (unseen.length === 0) return
    const text = `no answer, and no sign of life from the host for ${Math.round(silentMs)} ms`
    const isUnsure = (stream: TunnelStream): boolean =>
      !stream.isConfirmed && stream.openedMs <= arrivedMs
    const unsure = streams.filter(isUnsure).length
    const isWorthAll =
      silentMs >= (unseen.length + unsure < streams.length ? DEAD_AFTER_MS : UNSURE_AFTER_MS)
    if (unseen.length < streams.length && !isWorthAll) {
      // Were the host to come back, it would read what was said before it reads that nobody wants an answer.
      for (const stream of unseen)
        if (!stream.hasSpoken)
          stream.giveUp(new MeshError('HM_TUNNEL_UNANSWERED', `The stream was left: ${text}`))
      return
    }
    for (const stream of streams)
      if (isUnsure(stream) && stream.hasSpoken)
        stream.giveUp(
          new MeshError(
            'HM_TUNNEL_UNSURE',
            `The tunnel broke, the instance may be reached: ${text}`,
          ),
        )
    // The kernel must not send again what was not acknowledged: it was for this instance, and another gets it now.
    resetOnClose(this.socket)
    this.fail(new MeshError('HM_TUNNEL_SILENT', `The tunnel broke: ${text}`))
  }

  private patienceMs(): number {
    return this.roundTripMs === undefined
      ? SUSPECT_UNMEASURED_MS
      : Math.max(SUSPECT_AFTER_MS, SUSPECT_ROUND_TRIPS * this.roundTripMs)
  }

  sendData(stream: TunnelStream, bytes: Uint8Array): boolean {
    // Streams that have yet to be told that it is over have nowhere to send to.
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
    // Streams that stand in the round go first: else one quick writer could keep them there for ever.
    if (this.isWriting || this.batchBytes > 0 || this.round.length > 0) return false
    const frame = withHeadroom(length)
    writeHeader(frame, HEADROOM - HEADER_BYTES, DATA, stream.pendingFlags, stream.id, length)
    stream.pendingFlags = 0
    this.writer = stream
    this.send(frame)
    return true
  }

  isBusyWith(stream: TunnelStream): boolean {
    return this.writer === stream
  }

  sendControl(stream: TunnelStream, flags: number, amount: number): void {
    if (this.closed) return
    if ((flags & RST) !== 0) this.owner.onStreamReset()
    if ((flags & FIN) !== 0) this.appendControl(DATA, flags | stream.pendingFlags, stream.id, 0)
    else this.appendControl(WINDOW_UPDATE, flags | stream.pendingFlags, stream.id, amount)
    stream.pendingFlags = 0
  }

  queue(stream: TunnelStream): void {
    if (stream.isQueued || this.closed) return
    stream.isQueued = true
    this.round.push(stream)
    this.scheduleFlush()
  }

  forget(stream: TunnelStream): void {
    if (!this.streams.delete(stream.id)) return
    if (this.role === 'opener' && !stream.isConfirmed) this.unconfirmed -= 1
    this.admitWaiting()
    if (this.streams.size > 0) return
    this.idleSinceMs = performance.now()
    if (this.draining && !this.closed) this.finish()
  }

  /**
   * The window must cover what is under way between two applications, and no more when streams share the
   * carrier: a small answer waits behind every byte that bulk transfers have been allowed to send. So
   * sharing streams get what the network's round trip asks for, a stream that is alone gets plenty.
   */
  windowTarget(): number {
    if (this.isTight()) return TIGHT_WINDOW
    if (performance.now() - this.sharedAtMs > SHARING_MS) return MAX_WINDOW
    const forRoundTrip = Math.floor((this.leastRoundTripMs ?? 0) * WINDOW_BYTES_PER_MS)
    return Math.min(MAX_WINDOW, Math.max(INITIAL_CREDIT, forRoundTrip))
  }

  held(delta: number): void {
    this.heldBytes += delta
    this.options.lane.account.hold(delta)
  }

  isAhead(): boolean {
    return this.options.lane.account.isAhead
  }

  isTight(): boolean {
    return this.options.lane.account.isTight
  }

  endOfTurn(): void {
    if (this.round.length > 0 && this.turns.isSpent && !this.isOverrun) {
      this.turns.postpone(this.flushing)
      return
    }
    this.isFlushDue = false
    if (this.isOverrun) this.fail(protocolError('HM_TUNNEL_FLOOD', 'answers that are not read'))
    if (!this.isWriting) this.flush()
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

  onData(id: number, flags: number, length: number): void {
    if ((flags & SYN) !== 0) this.accept(id)
    const stream = this.streams.get(id)
    this.current = stream
    if (id !== this.lastDataId) {
      this.lastDataId = id
      this.sharedAtMs = this.lastReceivedMs
    }
    if (stream === undefined) {
      // One that has just been refused is no frame without effect.
      if ((flags & SYN) === 0) this.ignoreFrameFor(id)
      this.ignoreBytes(length)
      return
    }
    if (length > 0) this.turns.spend(PAYLOAD_COST)
    stream.expect(length)
    if (length === 0 && flags === 0) this.countIdleFrame()
    if (length === 0 || !stream.isHeldUp || this.mayHold(stream, length)) return
    this.owner.onStreamShed('memory')
    stream.fail('overloaded')
  }

  onPayload(bytes: Uint8Array): number {
    return this.current === undefined ? 0 : this.current.receive(bytes)
  }

  onDataEnd(_id: number, flags: number): void {
    const stream = this.current
    this.current = undefined
    if (stream === undefined || flags === 0 || flags === SYN) return
    this.applyFlags(stream, flags, resetCodes.unspecified)
  }

  onWindowUpdate(id: number, flags: number, amount: number): void {
    if ((flags & SYN) !== 0) this.accept(id)
    const stream = this.streams.get(id)
    if (stream === undefined) {
      this.ignoreFrameFor(id)
      return
    }
    if (amount < LEAST_USEFUL_CREDIT && flags === 0) this.countIdleFrame()
    if ((flags & RST) === 0) stream.receiveCreditUpdate(amount)
    this.applyFlags(stream, flags, amount)
  }

  onPing(flags: number, value: number): void {
    if ((flags & ACK) !== 0) {
      if (this.pingSentMs === undefined || value !== this.pingValue) {
        this.countIdleFrame()
        return
      }
      this.roundTripMs = performance.now() - this.pingSentMs
      this.pingsAnswered += 1
      this.leastRoundTripMs = Math.min(this.leastRoundTripMs ?? this.roundTripMs, this.roundTripMs)
      this.pingSentMs = undefined
      this.owner.onRoundTrip(this.roundTripMs)
      return
    }
    this.pingsThisSecond += 1
    if (this.pingsThisSecond > MAX_PINGS_PER_SECOND) throw protocolError('HM_TUNNEL_FLOOD', 'pings')
    this.appendControl(PING, ACK, 0, value)
  }

  onGoAway(code: number): void {
    if (code !== goAwayCodes.normal)
      throw new MeshError(
        'HM_TUNNEL_REJECTED',
        `The peer ended the tunnel with go-away code ${code}`,
      )
    if (this.draining) this.countIdleFrame()
    this.draining = true
    this.admitWaiting()
    if (this.streams.size === 0) this.finish()
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
      this.held(bytes.length)
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
      this.fail(error instanceof MeshError ? error : internalError(error))
      return false
    }
  }

  /** Reads no more in this turn. */
  private rest(): void {
    if (this.isResting) return
    this.isResting = true
    setReading(this.socket, false)
    this.turns.postpone(this.reading)
  }

  private readonly flushing: PostponedWork = {
    cost: 0,
    continueWork: () => this.endOfTurn(),
  }

  private readonly reading: PostponedWork = {
    cost: READ_COST,
    continueWork: () => this.goOnReading(),
  }

  private goOnReading(): void {
    for (let bytes = this.unread.shift(); bytes !== undefined; bytes = this.unread.shift()) {
      this.unreadBytes -= bytes.length
      this.held(-bytes.length)
      this.decode(bytes)
      if (!this.spendOnRead(bytes.length) || this.unread.length === 0) continue
      this.turns.postpone(this.reading)
      return
    }
    this.isResting = false
    if (this.endDue === undefined) setReading(this.socket, true)
    else this.endDue()
  }

  private accept(id: number): void {
    if (this.role === 'opener' || id % 2 === 0 || id <= this.highestId)
      throw protocolError('HM_TUNNEL_BAD_STREAM_ID', `SYN on stream ${id}`)
    this.highestId = id
    this.turns.spend(OPEN_COST)
    this.openedThisSecond += 1
    if (this.openedThisSecond > MAX_OPENED_PER_SECOND)
      throw protocolError('HM_TUNNEL_FLOOD', 'opened streams')
    const { lane } = this.options
    if (!lane.mayOpen(this.lastReceivedMs)) {
      this.shed(id)
      return
    }
    const stream = new TunnelStream(this, id, 'acceptor', ACK)
    if (this.draining || this.streams.size >= this.options.maxStreams) {
      stream.refuse(this.draining ? 'draining' : 'overloaded')
      return
    }
    this.streams.set(id, stream)
    this.owner.onStream(stream)
  }

  private applyFlags(stream: TunnelStream, flags: number, code: number): void {
    if ((flags & RST) !== 0) {
      this.owner.onStreamReset()
      if (this.role === 'acceptor') this.noteReset(stream)
      const reason = new StreamResetError(resetReason(code))
      if (this.turns.claim(RESET_COST)) stream.abort(reason)
      else this.turns.postpone({ cost: RESET_COST, continueWork: () => stream.abort(reason) })
      return
    }
    if (stream.isClosed) return
    if ((flags & ACK) !== 0) {
      if (this.role === 'acceptor')
        throw protocolError('HM_TUNNEL_BAD_STREAM_ID', `ACK from the opener on stream ${stream.id}`)
      if (!stream.isConfirmed) this.unconfirmed -= 1
    }
    stream.receiveFlags(flags)
    this.admitWaiting()
  }

  /** A stream that its caller gives up cost a look at it; one that stood, a connection as well. */
  private noteReset(stream: TunnelStream): void {
    const { lane } = this.options
    if (stream.hasAnswered) lane.wasReset(this.lastReceivedMs)
    else lane.wasFutile(this.lastReceivedMs)
  }

  /** Refuses a stream that there is no object for: a frame, and nothing else. */
  private shed(id: number): void {
    if (!this.options.lane.account.mayExceed(this.lastReceivedMs))
      throw protocolError('HM_TUNNEL_FLOOD', 'streams that come to nothing')
    this.appendControl(WINDOW_UPDATE, RST, id, resetCodes.overloaded)
    this.owner.onStreamShed('streams')
  }

  private mayHold(stream: TunnelStream, length: number): boolean {
    if (this.heldBytes > HELD_LIMIT && stream.heldBytes > HELD_PER_STREAM_WHEN_FULL) return false
    return this.options.lane.account.mayHold(length)
  }

  /** Payload for a stream that has been closed; more than any window can hold was never allowed. */
  private ignoreBytes(length: number): void {
    if (length === 0) return
    if (length > MAX_WINDOW) throw protocolError('HM_TUNNEL_CREDIT_EXCEEDED', `${length} bytes`)
    if (!this.options.lane.account.mayIgnore(this.lastReceivedMs, length))
      throw protocolError('HM_TUNNEL_FLOOD', 'bytes for closed streams')
  }

  /** Whether the peer has stopped reading while its caller has much held for it. */
  private isStalled(nowMs: number): boolean {
    if (!this.isWriting || this.writes !== this.seenWrites) {
      this.seenWrites = this.writes
      this.seenWritingMs = nowMs
    }
    const limitMs = this.options.keepaliveMs * STALLED_KEEPALIVES
    return nowMs - this.seenWritingMs > limitMs && this.isTight()
  }

  /** Whether too much of what TLS brings is messages of its own, which are nowhere else seen; padding as long as the data is no matter. */
  private wastesTls(nowMs: number): boolean {
    const carried = carriedBytes(this.socket)
    if (carried === undefined) return false
    // What has been read and is not decrypted yet is in it too: only what it was never before counts.
    const empty = carried - this.receivedBytes - this.records * RECORD_OVERHEAD
    const more = empty - this.emptyTlsBytes - (this.receivedBytes - this.receivedBefore)
    this.emptyTlsBytes = Math.max(this.emptyTlsBytes, empty)
    this.receivedBefore = this.receivedBytes
    return more > 0 && !this.options.lane.account.mayWaste(nowMs, more)
  }

  private admitWaiting(): void {
    if (this.waiting.length === 0) return
    if (this.isRetired) for (const resume of this.waiting.splice(0)) resume()
    else if (this.canOpen) this.waiting.shift()?.()
  }

  /** Frames for a stream that has just been closed may still be on their way; others are a violation. */
  private ignoreFrameFor(id: number): void {
    const firstUnused = this.role === 'opener' ? this.nextId : this.highestId + 1
    if (id % 2 === 0 || id >= firstUnused)
      throw protocolError('HM_TUNNEL_BAD_STREAM_ID', `frame on stream ${id}`)
    this.countIdleFrame()
  }

  private countIdleFrame(): void {
    this.idleFramesThisSecond += 1
    if (this.idleFramesThisSecond > MAX_IDLE_FRAMES_PER_SECOND)
      throw protocolError('HM_TUNNEL_FLOOD', 'frames without effect')
  }

  private ping(nowMs: number): void {
    this.pingSentMs = nowMs
    this.pingValue = (this.pingValue + 1) >>> 0
    this.appendControl(PING, SYN, 0, this.pingValue)
  }

  private appendControl(type: number, flags: number, id: number, length: number): void {
    if (this.closed) return
    if (this.batchBytes + HEADER_BYTES > BATCH_BYTES && !this.growBatch()) return
    const batch = this.openBatch()
    writeHeader(batch, this.batchBytes, type, flags, id, length)
    this.batchBytes += HEADER_BYTES
  }

  /**
   * A busy carrier with a full batch: control frames must not be lost, so the batch grows past its size.
   * @returns false when the peer reads so little that the session ends, soon: whoever sends must not be called back.
   */
  private growBatch(): boolean {
    const batch = this.openBatch()
    if (this.batchBytes + HEADER_BYTES <= batch.length) return true
    if (batch.length >= MAX_UNREAD_CONTROL) {
      this.isOverrun = true
      if (!this.isFlushDue) {
        this.isFlushDue = true
        soon(this)
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
    soon(this)
  }

  private flush(): void {
    if (this.closed) return
    const { batch, batchBytes } = this
    // A grown batch has no room beside it in the gather buffer; the round waits for the next write.
    this.batch = undefined
    this.batchBytes = 0
    if (batch !== undefined && (this.round.length === 0 || batchBytes > BATCH_BYTES)) {
      // What send() lets others append goes into a batch of its own.
      if (batchBytes > 0) this.send(batch.subarray(0, batchBytes))
      recycle(batch)
      return
    }
    batch?.copy(gatherBuffer, 0, 0, batchBytes)
    const bytes = this.gatherRound(batchBytes)
    if (batch !== undefined) recycle(batch)
    if (bytes > 0) this.send(gatherBuffer.subarray(0, bytes))
  }

  /** One quantum of each waiting stream in turn, until a write is full. */
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
    // Whoever was not reached, or has more, goes on next time, in the same order.
    for (; index < visited.length; index += 1) {
      const stream = visited[index]
      if (stream !== undefined) this.round.push(stream)
    }
    return at
  }

  private returnBatch(): void {
    const { batch } = this
    if (batch === undefined) return
    this.batch = undefined
    this.batchBytes = 0
    recycle(batch)
  }

  private send(bytes: Uint8Array): void {
    this.isWriting = true
    this.writes += 1
    this.sentBytes += bytes.length
    this.turns.spend(bytes.length * COST_PER_SENT_BYTE)
    this.socket.write(bytes, this.onWritten)
    if (this.drained.length === 0) return
    // FINs that waited, and writers that wait for room: after the write, they may append and queue again.
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

  private finish(): void {
    this.fail(new MeshError('HM_TUNNEL_DRAINED', 'The tunnel was closed in order'))
  }

  /** Sends what is in the batch and ends the connection; the peer has `timeoutMs` to take it and to do the same. */
  private endSoon(timeoutMs: number): void {
    const { batch, batchBytes, socket } = this
    // Another write may be under way: then Node keeps the chunk, so it must not be pooled memory.
    if (batch !== undefined) socket.write(Buffer.from(batch.subarray(0, batchBytes)))
    socket.end()
    const deadline = setTimeout(() => socket.destroy(), timeoutMs).unref()
    socket.once('close', () => clearTimeout(deadline))
  }

  /** The connection is gone; what came before that is read first. */
  private whenAllIsRead(end: () => void): void {
    if (this.unread.length > 0) this.endDue ??= end
    else end()
  }

  private peerEnded(): void {
    if (this.retiring && this.streams.size === 0) this.finish()
    else this.lose('the peer ended it')
  }

  /** The connection is gone, in no order. */
  private lose(how: string, cause?: Error): void {
    // In TLS 1.3 the opener's handshake is over before the acceptor has seen the opener's certificate.
    const isRefused = this.role === 'opener' && this.receivedBytes === 0
    this.fail(
      isRefused
        ? new MeshError(
            'HM_TUNNEL_REFUSED',
            `The tunnel broke before the peer's first word: ${how}`,
            {
              cause,
              hint: 'The peer may have refused the certificate of the caller; its log says why',
            },
          )
        : new MeshError('HM_TUNNEL_LOST', `The tunnel broke: ${how}`, { cause }),
    )
  }

  private fail(reason: MeshError): void {
    if (this.closed) return
    const goAway = goAwayCodeOf(reason)
    if (goAway !== undefined) this.appendControl(GO_AWAY, 0, 0, goAway)
    const isDrained = reason.code === 'HM_TUNNEL_DRAINED'
    if (isDrained || goAway !== undefined)
      this.endSoon(isDrained ? this.options.keepaliveMs : GO_AWAY_MS)
    else this.socket.destroy()
    this.closed = true
    if (this.role === 'acceptor' && isViolation(reason.code))
      this.options.lane.strike(this.lastReceivedMs, this.options.peerIp)
    this.round = []
    this.returnBatch()
    this.held(-this.unreadBytes)
    this.unreadBytes = 0
    this.unread = []
    new BreakingOff(this.streams.list(), this.turns, reason).begin()
    this.streams.clear()
    for (const resume of this.waiting.splice(0)) resume()
    this.owner.onClosed(reason)
  }
}

/** Tells streams that their session is over, as many in a turn as there is time for. */
class BreakingOff implements PostponedWork {
  readonly cost: number = RESET_COST
  private readonly streams: readonly TunnelStream[]
  private readonly turns: TurnShare
  private readonly reason: MeshError
  private told = 0

  constructor(streams: readonly TunnelStream[], turns: TurnShare, reason: MeshError) {
    this.streams = streams
    this.turns = turns
    this.reason = reason
  }

  /** As many as there is time for now. */
  begin(): void {
    while (this.told < this.streams.length && this.turns.claim(RESET_COST)) this.tellNext()
    if (this.told < this.streams.length) this.turns.postpone(this)
  }

  continueWork(): void {
    this.tellNext()
    if (this.told < this.streams.length) this.turns.postpone(this)
  }

  private tellNext(): void {
    const stream = this.streams[this.told]
    this.told += 1
    stream?.loseCarrier(this.reason)
  }
}

/** What a violation, or a mistake of ours, is answered with. */
function goAwayCodeOf(reason: MeshError): number | undefined {
  if (reason.code === 'HM_TUNNEL_INTERNAL') return goAwayCodes.internalError
  return isViolation(reason.code) ? goAwayCodes.protocolError : undefined
}

function recycle(batch: Buffer): void {
  if (batch.length === BATCH_BYTES && idleBatches.length < MAX_IDLE_BATCHES) idleBatches.push(batch)
}

function internalError(error: unknown): MeshError {
  return new MeshError('HM_TUNNEL_INTERNAL', `The tunnel broke: ${describeError(error)}`, {
    cause: error,
  })
}
