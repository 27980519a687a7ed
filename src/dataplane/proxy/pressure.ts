/**
 * How close a worker is to what it may have: for the main thread, the counters and the log. Looks once a tick; decides
 * nothing, that is done where something is taken.
 */
import type { Log } from '../../lib/log.ts'
import type { Share, SharedLimit } from '../../lib/shared-limit.ts'
import type { WorkerCounterName, WorkerCounters } from '../../telemetry/counters.ts'
import type { Account, Accounts } from '../tunnel/accounts.ts'

/** Share from which a resource counts as short. */
const SHORT = 3 / 4

/** What a refusal for want of something is counted as. */
export type LimitCounter = Extract<WorkerCounterName, `limit${string}`>

const limitCounters = {
  limitBarred: 0,
  limitDescriptors: 0,
  limitHandshakes: 0,
  limitMemory: 0,
  limitStreams: 0,
  limitTunnels: 0,
} satisfies Record<LimitCounter, 0>

/** How much of what it may have a worker uses, and what it had to refuse for that. */
export interface Pressure {
  /** Shares of 1 that are in use. */
  readonly held: number
  readonly descriptors: number
  readonly tunnels: number
  /** The caller that has most of it; undefined while it is not short. */
  readonly heaviest: {
    readonly held: string | undefined
    readonly descriptors: string | undefined
  }
  /** Refused or broken off since the last time, by limit. */
  readonly refused: Readonly<Record<LimitCounter, number>>
  /** Callers and destinations of theirs that are refused at the handshake now. */
  readonly barred: number
}

/** Watches one worker. */
export class PressureWatch {
  private readonly accounts: Accounts
  private readonly counters: WorkerCounters
  private readonly log: Log
  private refused: Record<LimitCounter, number> = { ...limitCounters }
  private readonly isShort = { held: false, descriptors: false }

  constructor(accounts: Accounts, counters: WorkerCounters, log: Log) {
    this.accounts = accounts
    this.counters = counters
    this.log = log
  }

  /** Something was refused for want of something. */
  note(limit: LimitCounter, count = 1): void {
    this.refused[limit] += count
    this.counters.inc(limit, count)
  }

  /** Looks, tells the counters and the log, and begins a new count. */
  take(nowMs: number): Pressure {
    const { held, descriptors, sessions } = this.accounts.shared
    const barred = this.accounts.tick(nowMs)
    const { refused } = this
    this.refused = { ...limitCounters }
    this.counters.set('heldBytes', held.used)
    this.counters.set('connectionDescriptors', descriptors.used)
    this.counters.set('barredCallers', barred)
    return {
      held: held.fullness,
      descriptors: descriptors.fullness,
      tunnels: sessions.fullness,
      heaviest: {
        held: this.tell('held', held, refused.limitMemory, (account) => account.held),
        descriptors: this.tell(
          'descriptors',
          descriptors,
          refused.limitDescriptors,
          (account) => account.descriptors,
        ),
      },
      refused,
      barred,
    }
  }

  /** Logs when a resource gets short, and when it is not any more. @returns who has most of it while it is. */
  private tell(
    name: 'held' | 'descriptors',
    limit: SharedLimit,
    refused: number,
    shareOf: (account: Account) => Share,
  ): string | undefined {
    const isShort = limit.fullness >= SHORT || refused > 0
    const heaviest = isShort ? this.accounts.heaviest(shareOf) : undefined
    if (isShort !== this.isShort[name]) {
      this.isShort[name] = isShort
      if (isShort)
        this.log.warn(shortage[name], {
          used: limit.used,
          limit: limit.limit,
          refused,
          heaviest: heaviest?.name,
          heaviestUses: heaviest === undefined ? undefined : shareOf(heaviest).used,
        })
      else this.log.info(enough[name], { used: limit.used, limit: limit.limit })
    }
    return heaviest?.name
  }
}

const shortage = {
  held: 'Memory for bytes on their way is short',
  descriptors:
    'File descriptors are short: new connections are refused, of the heaviest caller first',
} as const

const enough = {
  held: 'Memory for bytes on their way is enough again',
  descriptors: 'File descriptors are enough again',
} as const
