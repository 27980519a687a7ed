/**
 * How close a worker is to its limits: for the counters and the host's list of problems. Samples once per tick; makes
 * no decisions, those are made where a resource is taken.
 */
import type { LimitName, WorkerCounters } from '../../telemetry/counters.ts'
import type { Share, SharedLimit } from '../io/shared-limit.ts'
import type { Account, Accounts } from '../tunnel/accounts.ts'

/** Used share of the limit from which a resource counts as short. */
const SHORT = 3 / 4

/** How long a resource then counts as short, milliseconds: repeated short shortages are reported as one. */
const SHORT_FOR_MS = 30_000

/** Names in the list of banned callers. */
const MAX_BANNED_NAMES = 3

/** One resource of a worker. */
export interface ResourcePressure {
  readonly used: number
  readonly limit: number
  /** It is three quarters full, or something was refused because of it, now or in the last half minute. */
  readonly isShort: boolean
  /** Refused or aborted since it is short. */
  readonly refused: number
  /** The caller that used most of it at the last shortage; undefined while it is not short. */
  readonly heaviest: { readonly name: string; readonly used: number } | undefined
}

/** How much of each limit a worker uses, and what it had to refuse because of it. */
export interface Pressure {
  /** Bytes. */
  readonly memory: ResourcePressure
  readonly descriptors: ResourcePressure
  /** Streams of peers that wait for their preface or policy. */
  readonly streams: ResourcePressure
  /** Sessions that peers have opened. */
  readonly tunnels: ResourcePressure
  /** Callers whose handshakes are refused now, each with its destination; some of them by name. */
  readonly banned: { readonly count: number; readonly names: readonly string[] }
}

/** The recent state of one resource. */
class ResourceWatch {
  private readonly limit: SharedLimit
  private readonly shareOf: (account: Account) => Share
  private refused = 0
  private hasRefused = false
  private shortUntilMs = Number.NEGATIVE_INFINITY
  private heaviest: ResourcePressure['heaviest']

  constructor(limit: SharedLimit, shareOf: (account: Account) => Share) {
    this.limit = limit
    this.shareOf = shareOf
  }

  note(count: number): void {
    this.refused += count
    this.hasRefused = true
  }

  take(accounts: Accounts, nowMs: number): ResourcePressure {
    const { limit, shareOf } = this
    if (limit.fullness >= SHORT || this.hasRefused) {
      this.shortUntilMs = nowMs + SHORT_FOR_MS
      const heaviest = accounts.heaviest(shareOf)
      if (heaviest !== undefined) this.heaviest = describeHeaviest(heaviest, shareOf(heaviest))
    }
    this.hasRefused = false
    const isShort = nowMs < this.shortUntilMs
    if (!isShort) {
      this.refused = 0
      this.heaviest = undefined
    }
    const { refused, heaviest } = this
    return { used: limit.used, limit: limit.limit, isShort, refused, heaviest }
  }
}

/** The heaviest user: a caller, or one of several callers of the same host. */
function describeHeaviest({ name, origin }: Account, share: Share): ResourcePressure['heaviest'] {
  const used = share.group?.used ?? share.used
  return used === share.used || origin === undefined
    ? { name, used }
    : { name: `${name} and others from ${origin.name}`, used }
}

/** The resources that can be short; other limits are only counted. */
type Watched = Extract<LimitName, 'memory' | 'descriptors' | 'streams' | 'tunnels'>

/** Watches one worker. */
export class PressureWatch {
  private readonly accounts: Accounts
  private readonly counters: WorkerCounters
  private readonly watches: Readonly<Record<Watched, ResourceWatch>>

  /** @param arrivals streams that are not authorized yet. */
  constructor(accounts: Accounts, counters: WorkerCounters, arrivals: SharedLimit) {
    this.accounts = accounts
    this.counters = counters
    const { held, descriptors, sessions } = accounts.shared
    this.watches = {
      memory: new ResourceWatch(held, (account) => account.held),
      descriptors: new ResourceWatch(descriptors, (account) => account.descriptors),
      streams: new ResourceWatch(arrivals, (account) => account.unauthorized),
      tunnels: new ResourceWatch(sessions, (account) => account.places),
    }
  }

  /** Something was refused because of a limit. */
  note(limit: LimitName, count = 1): void {
    if (count === 0) return
    this.counters.refused(limit, count)
    const watches: Partial<Record<LimitName, ResourceWatch>> = this.watches
    watches[limit]?.note(count)
  }

  /** Samples the limits, and sets the counters. `nowMs` is monotonic. */
  take(nowMs: number): Pressure {
    const { accounts, counters } = this
    const { memory, descriptors, streams, tunnels } = this.watches
    const banned = accounts.tick(nowMs)
    counters.set('heldBytes', accounts.shared.held.used)
    counters.set('connectionDescriptors', accounts.shared.descriptors.used)
    counters.set('bannedCallers', banned.length)
    return {
      memory: memory.take(accounts, nowMs),
      descriptors: descriptors.take(accounts, nowMs),
      streams: streams.take(accounts, nowMs),
      tunnels: tunnels.take(accounts, nowMs),
      banned: { count: banned.length, names: banned.slice(0, MAX_BANNED_NAMES) },
    }
  }
}
