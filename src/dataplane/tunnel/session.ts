/**
 * Many streams over one TLS connection: docs/tunnel-protocol.md, "Session" and "Limits". This file acts on the frames;
 * outgoing.ts sends, incoming.ts receives, liveness.ts detects whether the peer is alive.
 *
 * ```
 *   open --go-away sent or received--> draining --last stream ends--> closed
 *     \--retire(): go-away sent--> retiring: late streams are taken --/
 *   each of them --violation, carrier lost, keepalive missed--> closed
 * ```
 */
import type { Socket } from 'node:net'
import { describeError, MeshError } from '../../lib/errors.ts'
import { IdMap } from '../io/id-map.ts'
import { resetOnClose } from '../io/linger.ts'
import type { TurnShare } from '../io/turn-share.ts'
import type { Lane } from './accounts.ts'
import { BreakingOff, RESET_COST } from './breaking-off.ts'
import {
  drained,
  expired,
  goAwayCodeOf,
  lost,
  readableForMs,
  refused,
  rejected,
  stalled,
  unreadable,
} from './close-reasons.ts'
import { Credit } from './credit.ts'
import {
  ACK,
  DATA,
  FIN,
  GO_AWAY,
  goAwayCodes,
  isViolation,
  PING,
  protocolError,
  RST,
  resetCodes,
  resetReason,
  SYN,
  WINDOW_UPDATE,
} from './frame.ts'
import { FrameRates } from './frame-rates.ts'
import { Incoming, type IncomingOwner } from './incoming.ts'
import { Liveness } from './liveness.ts'
import { Outgoing } from './outgoing.ts'
import { type StreamCarrier, StreamResetError, TunnelStream } from './stream.ts'

/** Limits and intervals of a session; times in milliseconds. */
export interface SessionOptions {
  /** Limit of open streams; further ones are reset with code 4. */
  readonly maxStreams: number
  /** Silence after which a ping is sent; the same time again without an answer ends the session. */
  readonly keepaliveMs: number
  /** The lane that the session is charged to: its caller and destination. */
  readonly lane: Lane
  /** The peer's address, for counting violations; sessions without one are counted together. */
  readonly peerIp?: string | undefined
}

/** Callbacks of a session to its owner. */
export interface SessionOwner {
  /** Acceptor only: the peer opened a stream. It is paused, and its first bytes are the preface. */
  onStream(stream: TunnelStream): void
  /** A ping was answered after `tookMs` milliseconds. */
  onRoundTrip(tookMs: number): void
  /** A stream was reset, by either side. */
  onStreamReset(): void
  /**
   * A stream was refused without an inspection, because its caller opens too many unsuccessful ones (acceptor only), or
   * reset, because too much is held for its caller.
   */
  onStreamShed(limit: 'streams' | 'memory'): void
  /** The session has ended; its streams are reset in this and the following turns. Called once. */
  onClosed(reason: MeshError): void
}

/** Costs, nanoseconds: of a frame with payload (often a write to an application), and of opening a stream. */
const PAYLOAD_COST = 5_000
const OPEN_COST = 10_000

/** Streams of an opener that may wait for the acceptor's ACK. */
const MAX_UNCONFIRMED = 256

/** Smallest useful credit update, bytes: smaller ones count as frames without effect. */
const LEAST_USEFUL_CREDIT = 1_024

/** Keepalive times that one write may wait for a peer that does not read, while its caller has much held. */
const STALLED_KEEPALIVES = 2

/** Largest stream ID; the opener dials a new session before it is reached. */
const MAX_STREAM_ID = 2 ** 31 - 1

/** One session over an authenticated TLS connection that has not been read from. Owns the connection. */
export class Session implements StreamCarrier, IncomingOwner {
  /** Monotonic milliseconds; for status. */
  readonly openedAtMs: number = performance.now()
  private readonly socket: Socket
  private readonly role: 'opener' | 'acceptor'
  private readonly owner: SessionOwner
  private readonly options: SessionOptions
  private readonly turns: TurnShare
  private readonly incoming: Incoming
  private readonly outgoing: Outgoing
  private readonly liveness: Liveness
  private readonly credit: Credit
  private readonly streams = new IdMap<TunnelStream>()
  private state: 'open' | 'retiring' | 'draining' | 'closed' = 'open'
  private nextId = 1
  private highestId = 0
  private unconfirmed = 0
  /** Callers that wait for room for a stream, in order of arrival. */
  private waiting: (() => void)[] = []
  private current: TunnelStream | undefined
  private readonly rates = new FrameRates()
  private idleSinceMs: number

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
    this.idleSinceMs = this.openedAtMs
    const overrun = (): void =>
      this.close(protocolError('HM_TUNNEL_FLOOD', 'answers that are not read'))
    this.outgoing = new Outgoing(socket, this.turns, overrun)
    socket.on('error', (error) => this.lose(describeError(error), error))
    socket.on('end', () => this.incoming.whenAllIsRead(() => this.peerEnded()))
    socket.on('close', () => this.incoming.whenAllIsRead(() => this.lose('it was closed')))
    this.incoming = new Incoming(socket, options.lane.account, this)
    this.liveness = new Liveness(socket, this.incoming, this.outgoing, options.keepaliveMs)
    this.credit = new Credit(options.lane.account, this.liveness)
    socket.resume()
    this.liveness.ping(this.openedAtMs)
  }

  /** Last measured round trip, milliseconds; undefined before the first ping was answered. */
  get roundTripMs(): number | undefined {
    return this.liveness.roundTripMs
  }

  /** Bytes of frames sent. */
  get sentBytes(): number {
    return this.outgoing.sentBytes
  }

  /** Bytes of frames received. */
  get receivedBytes(): number {
    return this.incoming.receivedBytes
  }

  /** Streams open now. */
  get streamCount(): number {
    return this.streams.size
  }

  /** Whether a new stream may be opened: the session is not draining and is below its limits. */
  get canOpen(): boolean {
    return (
      !this.isOver &&
      this.unconfirmed < MAX_UNCONFIRMED &&
      this.streams.size < this.options.maxStreams &&
      this.nextId < MAX_STREAM_ID
    )
  }

  /** Whether the session has ended or opens no more streams. */
  get isRetired(): boolean {
    return this.state !== 'open' || this.nextId >= MAX_STREAM_ID
  }

  /** Whether the connection is closed: no sent bytes are still in this process. */
  get isGone(): boolean {
    return this.socket.destroyed
  }

  /** Whether the peer's host may be unreachable: nothing has arrived since {@link watch} found it silent. */
  get isSuspect(): boolean {
    return this.liveness.isSuspect
  }

  /** Milliseconds without any stream, at `nowMs`; 0 while streams are open. */
  idleMs(nowMs: number): number {
    return this.streams.size > 0 ? 0 : nowMs - this.idleSinceMs
  }

  /** Opens a stream whose first bytes are `preface`. Check {@link canOpen} first: else it throws HM_TUNNEL_RETIRED. */
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

  /** No more streams are opened or accepted; the session closes when the open ones have ended. */
  drain(): void {
    if (this.isOver) return
    this.state = 'draining'
    this.outgoing.sendControl(GO_AWAY, 0, 0, goAwayCodes.normal)
    this.endWhenUnused()
  }

  /**
   * Acceptor: asks the opener to dial again, and still serves what it sends, so that a certificate is replaced without
   * a refused stream. The opener closes the session, or {@link expire} does when the time has come.
   */
  retire(): void {
    if (this.state !== 'open') return
    this.state = 'retiring'
    this.outgoing.sendControl(GO_AWAY, 0, 0, goAwayCodes.normal)
  }

  /** Resolves when a stream may be opened, the session is retired or the timeout ends; the caller checks which. */
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

  /** A certificate of this connection has expired: ends the session now. */
  expire(): void {
    this.close(expired())
  }

  /** Call it about once a second: keepalive and rate limits. Times are monotonic milliseconds. */
  tick(nowMs: number): void {
    if (this.state === 'closed') return
    this.rates.tick(nowMs)
    if (this.incoming.wastesTls(nowMs)) {
      this.close(protocolError('HM_TUNNEL_FLOOD', 'TLS records that carry nothing'))
      return
    }
    if (this.isStalled(nowMs)) {
      this.close(stalled())
      return
    }
    // A resumed caller may not open a stream after all; the next one must not wait for another event.
    this.admitWaiting()
    const silent = this.liveness.tick(nowMs)
    if (silent !== undefined) this.close(silent)
  }

  /** Opener; call it many times a second: detects streams that wait for an unreachable host. */
  watch(nowMs: number): void {
    if (this.state === 'closed' || this.unconfirmed === 0) return
    const silent = this.liveness.watch(nowMs, this.streams)
    if (silent === undefined) return
    // The kernel must not retransmit unacknowledged bytes: another instance gets the connection now.
    resetOnClose(this.socket)
    this.close(silent)
  }

  sendData(stream: TunnelStream, bytes: Uint8Array): boolean {
    return this.outgoing.sendData(stream, bytes)
  }

  isBusyWith(stream: TunnelStream): boolean {
    return this.outgoing.isBusyWith(stream)
  }

  sendControl(stream: TunnelStream, flags: number, amount: number): void {
    if (this.state === 'closed') return
    if ((flags & RST) !== 0) this.owner.onStreamReset()
    if ((flags & FIN) !== 0)
      this.outgoing.sendControl(DATA, flags | stream.pendingFlags, stream.id, 0)
    else this.outgoing.sendControl(WINDOW_UPDATE, flags | stream.pendingFlags, stream.id, amount)
    stream.pendingFlags = 0
  }

  queue(stream: TunnelStream): void {
    this.outgoing.queue(stream)
  }

  forget(stream: TunnelStream): void {
    if (!this.streams.delete(stream.id)) return
    if (this.role === 'opener' && !stream.isConfirmed) this.unconfirmed -= 1
    this.admitWaiting()
    if (this.streams.size > 0) return
    this.idleSinceMs = performance.now()
    if (this.state === 'draining') this.close(drained())
  }

  windowTarget(): number {
    return this.credit.windowTarget()
  }

  held(delta: number): void {
    this.credit.hold(delta)
  }

  isAhead(): boolean {
    return this.options.lane.account.isAhead
  }

  isTight(): boolean {
    return this.options.lane.account.isTight
  }

  onData(id: number, flags: number, length: number): void {
    if ((flags & SYN) !== 0) this.accept(id)
    const stream = this.streams.get(id)
    this.current = stream
    this.credit.noteData(id, this.incoming.lastReceivedMs)
    if (stream === undefined) {
      // A frame that opened a stream just refused does not count as one without effect.
      if ((flags & SYN) === 0) this.ignoreFrameFor(id)
      this.credit.ignore(length, this.incoming.lastReceivedMs)
      return
    }
    if (length > 0) this.turns.spend(PAYLOAD_COST)
    stream.expect(length)
    if (length === 0 && flags === 0) this.rates.countIdle()
    if (length === 0 || !stream.isReceiverBlocked || this.credit.mayHold(stream, length)) return
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
    if (amount < LEAST_USEFUL_CREDIT && flags === 0) this.rates.countIdle()
    if ((flags & RST) === 0) stream.receiveCreditUpdate(amount)
    this.applyFlags(stream, flags, amount)
  }

  onPing(flags: number, value: number): void {
    if ((flags & ACK) !== 0) {
      const tookMs = this.liveness.answered(value)
      if (tookMs === undefined) this.rates.countIdle()
      else this.owner.onRoundTrip(tookMs)
      return
    }
    this.rates.countPing()
    this.outgoing.sendControl(PING, ACK, 0, value)
  }

  onGoAway(code: number): void {
    if (code !== goAwayCodes.normal) throw rejected(code)
    if (this.isOver) this.rates.countIdle()
    if (this.state === 'closed') return
    this.state = 'draining'
    this.endWhenUnused()
  }

  onUnreadable(error: unknown): void {
    this.close(unreadable(error))
  }

  /** Whether no new stream may begin. */
  private get isOver(): boolean {
    return this.state === 'draining' || this.state === 'closed'
  }

  private accept(id: number): void {
    if (this.role === 'opener' || id % 2 === 0 || id <= this.highestId)
      throw protocolError('HM_TUNNEL_BAD_STREAM_ID', `SYN on stream ${id}`)
    this.highestId = id
    this.turns.spend(OPEN_COST)
    this.rates.countOpened()
    const { lane } = this.options
    if (!lane.mayOpen(this.incoming.lastReceivedMs)) {
      this.shed(id)
      return
    }
    const stream = new TunnelStream(this, id, 'acceptor', ACK)
    if (this.isOver || this.streams.size >= this.options.maxStreams) {
      stream.refuse(this.isOver ? 'draining' : 'overloaded')
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

  /** A stream that its caller reset cost an inspection; a confirmed one also a connection. */
  private noteReset(stream: TunnelStream): void {
    const { lane } = this.options
    if (stream.hasAnswered) lane.noteReset(this.incoming.lastReceivedMs)
    else lane.noteUnsuccessful(this.incoming.lastReceivedMs)
  }

  /** Refuses a stream without creating an object: sends one frame. */
  private shed(id: number): void {
    if (!this.options.lane.account.mayExceed(this.incoming.lastReceivedMs))
      throw protocolError('HM_TUNNEL_FLOOD', 'streams that come to nothing')
    this.outgoing.sendControl(WINDOW_UPDATE, RST, id, resetCodes.overloaded)
    this.owner.onStreamShed('streams')
  }

  /** Whether the peer has stopped reading while much is held for its caller. */
  private isStalled(nowMs: number): boolean {
    const limitMs = this.options.keepaliveMs * STALLED_KEEPALIVES
    return this.outgoing.stalledMs(nowMs) > limitMs && this.isTight()
  }

  private admitWaiting(): void {
    if (this.waiting.length === 0) return
    if (this.isRetired) for (const resume of this.waiting.splice(0)) resume()
    else if (this.canOpen) this.waiting.shift()?.()
  }

  /** Frames for a stream closed recently may still arrive; frames for any other unknown stream are a violation. */
  private ignoreFrameFor(id: number): void {
    const firstUnused = this.role === 'opener' ? this.nextId : this.highestId + 1
    if (id % 2 === 0 || id >= firstUnused)
      throw protocolError('HM_TUNNEL_BAD_STREAM_ID', `frame on stream ${id}`)
    this.rates.countIdle()
  }

  /** Draining has begun. */
  private endWhenUnused(): void {
    this.admitWaiting()
    if (this.streams.size === 0) this.close(drained())
  }

  private peerEnded(): void {
    if (this.state === 'retiring' && this.streams.size === 0) this.close(drained())
    else this.lose('the peer ended it')
  }

  /** The connection broke, or ended without an orderly close. */
  private lose(how: string, cause?: Error): void {
    const isRefused = this.role === 'opener' && this.receivedBytes === 0
    this.close(isRefused ? refused(how, cause) : lost(how, cause))
  }

  /** Ends the session now; its streams get `reason`. */
  close(reason: MeshError): void {
    if (this.state === 'closed') return
    const goAway = goAwayCodeOf(reason)
    if (goAway !== undefined) this.outgoing.sendControl(GO_AWAY, 0, 0, goAway)
    this.outgoing.close(readableForMs(reason, this.options.keepaliveMs))
    this.state = 'closed'
    if (this.role === 'acceptor' && isViolation(reason.code))
      this.options.lane.noteViolation(this.incoming.lastReceivedMs, this.options.peerIp)
    this.incoming.close()
    new BreakingOff(this.streams.list(), this.turns, reason).begin()
    this.streams.clear()
    for (const resume of this.waiting.splice(0)) resume()
    this.owner.onClosed(reason)
  }
}
