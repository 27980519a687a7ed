/**
 * How much the peer of a session may send, and how much of it is held: docs/tunnel-protocol.md, "Credit" and "Limits".
 */
import type { Account } from './accounts.ts'
import { INITIAL_CREDIT, MAX_WINDOW, protocolError } from './frame.ts'
import type { Liveness } from './liveness.ts'
import type { TunnelStream } from './stream.ts'

/** Streams count as sharing the carrier while data of more than one of them has arrived within this, milliseconds. */
const SHARING_MS = 100

/** Window of a stream whose caller has much held: twice the credit that a sender needs (stream.ts, LEAST_CREDIT). */
const TIGHT_WINDOW = INITIAL_CREDIT / 2

/** Window of a sharing stream for each millisecond of round trip: 256 MB/s for each of them. */
const WINDOW_BYTES_PER_MS = 262_144

/** Bytes held for all receivers of a session; above this, streams that hold much are reset. */
const HELD_LIMIT = 64 * 1_048_576

/** What a stream may still hold above {@link HELD_LIMIT}. */
const HELD_PER_STREAM_WHEN_FULL = 65_536

/** The credit of one session. */
export class Credit {
  private readonly account: Account
  private readonly liveness: Liveness
  private lastDataId = 0
  /** When data of a different stream than before last arrived. */
  private sharedAtMs = 0
  private heldBytes = 0

  constructor(account: Account, liveness: Liveness) {
    this.account = account
    this.liveness = liveness
  }

  /** Data of a stream has arrived. */
  noteData(id: number, nowMs: number): void {
    if (id === this.lastDataId) return
    this.lastDataId = id
    this.sharedAtMs = nowMs
  }

  /**
   * The window must cover what is in transit between two applications. When streams share the carrier it must not be
   * larger, because a small answer waits behind all bytes that bulk transfers may send. So a sharing stream gets what
   * the round trip requires, and a stream that is alone gets {@link MAX_WINDOW}.
   */
  windowTarget(): number {
    if (this.account.isTight) return TIGHT_WINDOW
    if (performance.now() - this.sharedAtMs > SHARING_MS) return MAX_WINDOW
    const forRoundTrip = Math.floor((this.liveness.leastRoundTripMs ?? 0) * WINDOW_BYTES_PER_MS)
    return Math.min(MAX_WINDOW, Math.max(INITIAL_CREDIT, forRoundTrip))
  }

  /** Held memory changed by `delta` bytes. */
  hold(delta: number): void {
    this.heldBytes += delta
    this.account.hold(delta)
  }

  /** Whether `length` more bytes may wait for a stream's receiver. */
  mayHold(stream: TunnelStream, length: number): boolean {
    if (this.heldBytes > HELD_LIMIT && stream.heldBytes > HELD_PER_STREAM_WHEN_FULL) return false
    return this.account.mayHold(length)
  }

  /** Payload arrived for a closed stream. @throws MeshError for more than any window permits, or too much of it. */
  ignore(length: number, nowMs: number): void {
    if (length === 0) return
    if (length > MAX_WINDOW) throw protocolError('HM_TUNNEL_CREDIT_EXCEEDED', `${length} bytes`)
    if (!this.account.mayIgnore(nowMs, length))
      throw protocolError('HM_TUNNEL_FLOOD', 'bytes for closed streams')
  }
}
