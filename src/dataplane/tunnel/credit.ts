/**
 * What the peer of a session may send, and what is held of it: docs/tunnel-protocol.md, "Credit" and "Limits".
 */
import type { Account } from './accounts.ts'
import { INITIAL_CREDIT, MAX_WINDOW, protocolError } from './frame.ts'
import type { Liveness } from './liveness.ts'
import type { TunnelStream } from './stream.ts'

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

/** The credit of one session. */
export class Credit {
  private readonly account: Account
  private readonly liveness: Liveness
  private lastDataId = 0
  /** When data for another stream than the one before arrived. */
  private sharedAtMs = 0
  private heldBytes = 0

  constructor(account: Account, liveness: Liveness) {
    this.account = account
    this.liveness = liveness
  }

  /** Data for a stream arrives. */
  noteData(id: number, nowMs: number): void {
    if (id === this.lastDataId) return
    this.lastDataId = id
    this.sharedAtMs = nowMs
  }

  /**
   * The window must cover what is under way between two applications, and no more when streams share the
   * carrier: a small answer waits behind every byte that bulk transfers have been allowed to send. So
   * sharing streams get what the network's round trip asks for, a stream that is alone gets plenty.
   */
  windowTarget(): number {
    if (this.account.isTight) return TIGHT_WINDOW
    if (performance.now() - this.sharedAtMs > SHARING_MS) return MAX_WINDOW
    const forRoundTrip = Math.floor((this.liveness.leastRoundTripMs ?? 0) * WINDOW_BYTES_PER_MS)
    return Math.min(MAX_WINDOW, Math.max(INITIAL_CREDIT, forRoundTrip))
  }

  /** Memory that is held changed by `delta` bytes. */
  hold(delta: number): void {
    this.heldBytes += delta
    this.account.hold(delta)
  }

  /** Whether so many bytes more may wait for a stream's receiver. */
  mayHold(stream: TunnelStream, length: number): boolean {
    if (this.heldBytes > HELD_LIMIT && stream.heldBytes > HELD_PER_STREAM_WHEN_FULL) return false
    return this.account.mayHold(length)
  }

  /** Payload for a stream that has been closed; more than any window can hold was never allowed. */
  ignore(length: number, nowMs: number): void {
    if (length === 0) return
    if (length > MAX_WINDOW) throw protocolError('HM_TUNNEL_CREDIT_EXCEEDED', `${length} bytes`)
    if (!this.account.mayIgnore(nowMs, length))
      throw protocolError('HM_TUNNEL_FLOOD', 'bytes for closed streams')
  }
}
