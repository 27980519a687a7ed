/**
 * Resets the streams of a session that has ended, over several turns: each may close a connection.
 */
import type { MeshError } from '../../lib/errors.ts'
import type { PostponedWork, TurnShare } from '../io/turn-share.ts'
import type { TunnelStream } from './stream.ts'

/** Cost of resetting one stream, nanoseconds. */
export const RESET_COST = 50_000

/** Reports the end of the session to its streams, in each turn as many as the caller's time allows. */
export class BreakingOff implements PostponedWork {
  readonly cost: number = RESET_COST
  private readonly streams: readonly TunnelStream[]
  private readonly turns: TurnShare
  private readonly reason: MeshError
  private resetCount = 0

  constructor(streams: readonly TunnelStream[], turns: TurnShare, reason: MeshError) {
    this.streams = streams
    this.turns = turns
    this.reason = reason
  }

  /** Reports to as many as there is time for now, and postpones the rest. */
  begin(): void {
    while (this.resetCount < this.streams.length && this.turns.claim(RESET_COST)) this.resetNext()
    if (this.resetCount < this.streams.length) this.turns.postpone(this)
  }

  continueWork(): void {
    this.resetNext()
    if (this.resetCount < this.streams.length) this.turns.postpone(this)
  }

  private resetNext(): void {
    const stream = this.streams[this.resetCount]
    this.resetCount += 1
    stream?.loseCarrier(this.reason)
  }
}
