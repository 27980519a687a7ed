/**
 * Rate limits for what the peer of a session may do per second: docs/tunnel-protocol.md, "Limits".
 */
import { protocolError } from './frame.ts'

/** Per second and session: streams opened, frames without effect, pings answered. */
const MAX_OPENED = 50_000
const MAX_IDLE_FRAMES = 10_000
const MAX_PINGS = 10

/** The shortest interval that counts as a second: ticks come about a second apart. Milliseconds. */
const SECOND_AT_LEAST_MS = 900

/** The counters of one session. Each throws the error that ends the session when its limit is exceeded. */
export class FrameRates {
  private opened = 0
  private idleFrames = 0
  private pings = 0
  private startedMs = 0

  /** Call it about once a second; `nowMs` is monotonic. */
  tick(nowMs: number): void {
    // The timer may fire slightly early: skipping that tick would make the period two seconds and halve the limits.
    if (nowMs - this.startedMs < SECOND_AT_LEAST_MS) return
    this.startedMs = nowMs
    this.opened = 0
    this.idleFrames = 0
    this.pings = 0
  }

  /** A stream was opened. */
  countOpened(): void {
    this.opened += 1
    if (this.opened > MAX_OPENED) throw protocolError('HM_TUNNEL_FLOOD', 'opened streams')
  }

  /** A frame without effect arrived. */
  countIdle(): void {
    this.idleFrames += 1
    if (this.idleFrames > MAX_IDLE_FRAMES)
      throw protocolError('HM_TUNNEL_FLOOD', 'frames without effect')
  }

  /** A ping arrived. */
  countPing(): void {
    this.pings += 1
    if (this.pings > MAX_PINGS) throw protocolError('HM_TUNNEL_FLOOD', 'pings')
  }
}
