/**
 * Limits the probes that a worker answers, so that one peer leaves room for others.
 */
import { type GroupShare, type Share, SharedLimit } from '../io/shared-limit.ts'

/** Probes per second that a worker answers: for one peer identity, and for all. */
const MAX_PER_PEER = 5
const MAX_PER_SECOND = 50

/** A peer may use as many as are left of the second. */
const SHARE_FACTOR = 1

/** Counts the probes of the current second. */
export class ProbeLimit {
  private all = new SharedLimit(MAX_PER_SECOND, SHARE_FACTOR)
  private readonly byPeer = new Map<string, Share>()
  private readonly byHost = new Map<string, GroupShare>()
  /** By peer and host. */
  private readonly shares = new Map<string, Share>()
  private second = 0

  /** Whether one more probe of this peer, on the host of that name, is answered. `nowMs` is monotonic. */
  take(peer: string, host: string, nowMs: number): boolean {
    const second = Math.floor(nowMs / 1_000)
    if (second !== this.second) {
      this.second = second
      this.all = new SharedLimit(MAX_PER_SECOND, SHARE_FACTOR)
      this.byPeer.clear()
      this.byHost.clear()
      this.shares.clear()
    }
    const share = this.shareOf(peer, host)
    if ((share.whole ?? share).used >= MAX_PER_PEER || !this.all.allows(share, 1)) return false
    this.all.add(share, 1)
    return true
  }

  private shareOf(peer: string, host: string): Share {
    const key = `${peer} ${host}`
    const known = this.shares.get(key)
    if (known !== undefined) return known
    const whole = this.byPeer.get(peer) ?? { used: 0 }
    const group = this.byHost.get(host) ?? { used: 0, users: 0 }
    const share = { used: 0, whole, group }
    this.byPeer.set(peer, whole)
    this.byHost.set(host, group)
    this.shares.set(key, share)
    return share
  }
}
