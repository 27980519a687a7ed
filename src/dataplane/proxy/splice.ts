/**
 * Joins two byte streams: the output of each goes into the other, with half-close, reset and back-pressure in both
 * directions. The hottest code of the program: no promise, no closure and no allocation per chunk.
 */
import { MeshError } from '../../lib/errors.ts'
import type { TrafficCounters } from '../../telemetry/counters.ts'
import { type ByteStream, FULL, type Receiver, type WriteResult } from '../io/byte-stream.ts'
import type { Connection, Open } from './connection.ts'

/** How a splice ended; the caller maps it to a response flag. */
export type SpliceEnding =
  /** Both sides finished in order. */
  | { readonly kind: 'done' }
  /** One side broke off. */
  | { readonly kind: 'broken'; readonly side: 'downstream' | 'upstream'; readonly reason: Error }

/** The streams and the connection that a splice joins. */
export interface SpliceOptions {
  readonly connection: Connection
  /** The present stage of the connection. */
  readonly stage: Open
  readonly counters: TrafficCounters
  /** The calling side. */
  readonly downstream: ByteStream
  /** The called side. */
  readonly upstream: ByteStream
  /** Whether downstream reads into memory that upstream must not keep: then each chunk is copied. */
  readonly copies: boolean
  /** Called once. */
  readonly onEnding: (ending: SpliceEnding) => void
}

/**
 * Joins the streams and resumes both. Replaces their receivers.
 * @param ended whether downstream has already finished sending (and upstream has been ended).
 */
export function splice(options: SpliceOptions, ended = false): void {
  const state = new SpliceState(options, ended)
  const { downstream, upstream } = options
  downstream.receiver = new SendLeg(state, options)
  upstream.receiver = new ReceiveLeg(state, options)
  // A stream that broke before it had this receiver has not reported it.
  if (upstream.isClosed) {
    downstream.reset()
    state.broken('upstream', new MeshError('HM_CONNECTION_BROKEN', 'The instance hung up'))
    return
  }
  if (downstream.isClosed) {
    upstream.reset()
    state.broken('downstream', new MeshError('HM_CALLER_GONE', 'The caller hung up'))
    return
  }
  upstream.resume()
  downstream.resume()
}

/** The state that both legs share: how many sides are still open. */
class SpliceState {
  private readonly options: SpliceOptions
  private open = 2
  private over = false

  constructor(options: SpliceOptions, ended: boolean) {
    this.options = options
    if (ended) this.ended()
  }

  ended(): void {
    this.options.stage.state = 'half-closed'
  }

  /** One side has finished in order. The connection is done when both have, with all bytes passed on. */
  closed(): void {
    this.open -= 1
    if (this.open === 0) this.finish({ kind: 'done' })
  }

  broken(side: 'downstream' | 'upstream', reason: Error): void {
    this.finish({ kind: 'broken', side, reason })
  }

  private finish(ending: SpliceEnding): void {
    if (this.over) return
    this.over = true
    this.options.onEnding(ending)
  }
}

/** From the caller to the called side. */
class SendLeg implements Receiver {
  private readonly state: SpliceState
  private readonly connection: Connection
  private readonly counters: TrafficCounters
  private readonly row: number
  private readonly from: ByteStream
  private readonly to: ByteStream
  private readonly copies: boolean

  constructor(state: SpliceState, options: SpliceOptions) {
    this.state = state
    this.connection = options.connection
    this.counters = options.counters
    this.row = options.stage.row
    this.from = options.downstream
    this.to = options.upstream
    this.copies = options.copies
  }

  onBytes(bytes: Uint8Array): WriteResult {
    const { connection } = this
    if (connection.sentBytes === 0) connection.firstSentMs = performance.now()
    connection.sentBytes += bytes.length
    this.counters.sent(this.row, bytes.length)
    if (!this.copies) {
      const result = this.to.write(bytes)
      if ((result & FULL) !== 0) this.from.pause()
      return result
    }
    if ((this.to.write(Uint8Array.prototype.slice.call(bytes)) & FULL) !== 0) this.from.pause()
    return 0
  }

  onEnd(): void {
    this.state.ended()
    this.to.end()
  }

  onClosed(): void {
    this.state.closed()
  }

  onReset(reason: Error): void {
    this.state.broken('downstream', reason)
    this.to.reset()
  }

  onWritable(): void {
    this.to.resume()
  }
}

/** From the called side to the caller. */
class ReceiveLeg implements Receiver {
  private readonly state: SpliceState
  private readonly connection: Connection
  private readonly counters: TrafficCounters
  private readonly row: number
  private readonly from: ByteStream
  private readonly to: ByteStream

  constructor(state: SpliceState, options: SpliceOptions) {
    this.state = state
    this.connection = options.connection
    this.counters = options.counters
    this.row = options.stage.row
    this.from = options.upstream
    this.to = options.downstream
  }

  onBytes(bytes: Uint8Array): WriteResult {
    if (this.connection.receivedBytes === 0) this.noteAnswer()
    this.connection.receivedBytes += bytes.length
    this.counters.received(this.row, bytes.length)
    const result = this.to.write(bytes)
    if ((result & FULL) !== 0) this.from.pause()
    return result
  }

  onEnd(): void {
    this.state.ended()
    this.to.end()
  }

  onClosed(): void {
    this.state.closed()
  }

  onReset(reason: Error): void {
    // First the ending, then the reset: recording the ending may still need the other socket's address.
    this.state.broken('upstream', reason)
    this.to.reset()
  }

  onWritable(): void {
    this.to.resume()
  }

  /** The first byte from the called side: an answer, unless that speaks first. */
  private noteAnswer(): void {
    const { firstSentMs } = this.connection
    if (firstSentMs === 0) return
    this.connection.firstByteMs = performance.now() - firstSentMs
    this.counters.answered(this.row, this.connection.firstByteMs)
  }
}
