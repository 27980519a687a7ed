/**
 * What the streams of a session that is over are told, and when: each may cost a connection that is closed.
 */
import type { MeshError } from '../../lib/errors.ts'
import type { PostponedWork, TurnShare } from '../io/turn-share.ts'
import type { TunnelStream } from './stream.ts'

/** What it costs to break off a stream, nanoseconds. */
export const RESET_COST = 50_000

/** Tells streams that their session is over, as many in a turn as there is time for. */
export class BreakingOff implements PostponedWork {
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
