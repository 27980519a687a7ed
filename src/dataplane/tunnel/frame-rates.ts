/**
 * What the peer of a session may do only so often in a second: docs/tunnel-protocol.md, "Limits".
 */
import { protocolError } from './frame.ts'

/** Per second and session: streams opened, frames without effect, pings answered. */
const MAX_OPENED = 50_000
const MAX_IDLE_FRAMES = 10_000
const MAX_PINGS = 10

/** What counts as a second: ticks come a second apart, give or take. Milliseconds. */
const SECOND_AT_LEAST_MS = 900

/** The counts of one session. Each throws what ends the session when it was too often. */
export class FrameRates {
  private opened = 0
  private idleFrames = 0
  private pings = 0
  private startedMs = 0

  /** Once a second or so; `nowMs` is monotonic. */
  tick(nowMs: number): void {
    // A timer of a second may come a moment early: skipping it would make the second two, and half the limits.
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

  /** A frame came that has no effect. */
  countIdle(): void {
    this.idleFrames += 1
    if (this.idleFrames > MAX_IDLE_FRAMES)
      throw protocolError('HM_TUNNEL_FLOOD', 'frames without effect')
  }

  /** A ping came. */
  countPing(): void {
    this.pings += 1
    if (this.pings > MAX_PINGS) throw protocolError('HM_TUNNEL_FLOOD', 'pings')
  }
}
