/**
 * What a worker spends on each caller, and the limits: docs/tunnel-protocol.md, "Fair shares".
 *
 * A caller is a peer identity (the SPIFFE ID of its certificate, in whichever session) or a service of this host. It
 * has one {@link Account} for each host that it comes from, with a {@link Lane} per destination; what it has done
 * wrong there is in conduct.ts. Time is passed in, in monotonic milliseconds; there are no timers.
 *
 * ```
 *   stream opened --tokens left--> taken --comes to nothing--> an unsuccessful-stream token
 *         \--none--> reset, code 4, an excess token --none--> session closed, a violation --third--> banned for a while
 * ```
 */
import { networkOf } from '../../model/address.ts'
import { type GroupShare, type Share, SharedLimit } from '../io/shared-limit.ts'
import { TokenBucket } from '../io/token-bucket.ts'
import { TurnGroup, TurnShare } from '../io/turn-share.ts'
import { Conduct } from './conduct.ts'

/** Streams that one caller may open: the capacity of a worker that has nothing else to do. */
const OPENS = { rate: 20_000, burst: 20_000 } as const

/** Streams of one caller that are reset because another bucket is empty; beyond this the session ends. */
const EXCESS = { rate: 2_000, burst: 10_000 } as const

/** Bytes for closed streams: enough for what aborted uploads have in flight, not for a download of garbage. */
const IGNORED_BYTES = { rate: 64 * 1_048_576, burst: 128 * 1_048_576 } as const

/** TLS bytes without data: TLS's own messages (a key update costs as much CPU time as 100 frames) and padding. */
const EMPTY_TLS_BYTES = { rate: 65_536, burst: 524_288 } as const

/** Limit of accounts; further callers share one. The CA issues identities, so there are not many. */
const MAX_ACCOUNTS = 10_000

/** Limit per host; further identities share one account. A host may have this many services, but not fill the table. */
const MAX_ACCOUNTS_OF_HOST = 1_000
const OTHERS = 'others'

/** A user may hold twice the bytes that are free: two thirds of the total when it is alone. */
const HELD_FACTOR = 2

/** What each user may always hold, as a share of the total: a small user must not suffer from a large one. */
const LEAST_HELD_SHARE = 1 / 64

/** Share of the memory for held bytes above which sockets hold less and read less at once. */
const SHORT_SHARE = 1 / 8

/** A user may have as many descriptors and sessions as are free: half when it is alone. None is taken back. */
const PLACES_FACTOR = 1

/** Above this share of its allowance, nothing is taken for a caller ahead of need. */
const TIGHT_SHARE = 1 / 8

/** Connections and sessions of one caller, and of all, above which the kernel should hold less for each further one. */
const CROWD = 128
const CROWD_OF_ALL = 256

/** Above this many held bytes, a sender with data waiting accepts no more: this keeps any tunnel busy. */
const HELD_AHEAD = 4 * 1_048_576

/** Limits that all callers of a worker share. */
export interface SharedLimits {
  /** Memory for bytes in transit, of tunnels and of the connections joined to them. */
  readonly held: SharedLimit
  /** File descriptors for connections. */
  readonly descriptors: SharedLimit
  /** Sessions opened by peers. */
  readonly sessions: SharedLimit
}

/** Creates the shared limits of a worker. */
export function createSharedLimits(limits: {
  readonly heldBytes: number
  readonly descriptors: number
  readonly sessions: number
}): SharedLimits {
  return {
    held: new SharedLimit(limits.heldBytes, HELD_FACTOR, limits.heldBytes * LEAST_HELD_SHARE),
    descriptors: new SharedLimit(limits.descriptors, PLACES_FACTOR),
    sessions: new SharedLimit(limits.sessions, PLACES_FACTOR),
  }
}

/** Called synchronously each time that held memory grows while much is held. */
export interface HeldAlarms {
  /** Sockets should hold less; {@link Accounts.isShort} tells for how long. */
  onShort(): void
  /** The limit is exceeded: the owner must call {@link Accounts.shed} soon. */
  onExceeded(): void
}

/** The totals of several accounts: those of one identity, or those of one host. */
class Sum {
  readonly held: GroupShare = { used: 0, users: 0 }
  readonly descriptors: GroupShare = { used: 0, users: 0 }
  readonly places: GroupShare = { used: 0, users: 0 }
  readonly unauthorized: GroupShare = { used: 0, users: 0 }
  readonly connections: GroupShare = { used: 0, users: 0 }
  /** Number of accounts in the total. */
  accounts = 0
}

/** A host that callers come from. Its owner may have the certificates of many services. */
class Origin extends Sum {
  readonly name: string
  /** The work for all of them in one turn of the event loop. */
  readonly turns: TurnGroup = new TurnGroup()

  constructor(name: string) {
    super()
    this.name = name
  }
}

/** One identity, from whichever hosts. */
class Identity extends Sum {
  readonly opens: TokenBucket
  readonly excess: TokenBucket
  readonly ignored: TokenBucket
  readonly emptyTls: TokenBucket
  readonly records = new Map<string, Conduct>()

  constructor(nowMs: number) {
    super()
    this.opens = new TokenBucket(OPENS.rate, OPENS.burst, nowMs)
    this.excess = new TokenBucket(EXCESS.rate, EXCESS.burst, nowMs)
    this.ignored = new TokenBucket(IGNORED_BYTES.rate, IGNORED_BYTES.burst, nowMs)
    this.emptyTls = new TokenBucket(EMPTY_TLS_BYTES.rate, EMPTY_TLS_BYTES.burst, nowMs)
  }

  at(destination: string, nowMs: number): Conduct {
    const known = this.records.get(destination)
    if (known !== undefined) return known
    const record = new Conduct(nowMs)
    this.records.set(destination, record)
    return record
  }

  isForgettable(nowMs: number): boolean {
    const { opens, excess, ignored, emptyTls } = this
    if (!opens.isFull(nowMs) || !excess.isFull(nowMs)) return false
    if (!ignored.isFull(nowMs) || !emptyTls.isFull(nowMs)) return false
    for (const record of this.records.values()) if (!record.isForgettable(nowMs)) return false
    return true
  }
}

/** One caller: an identity from one host, or a service of this host. */
export class Account {
  readonly name: string
  /** The caller's host; undefined for a service of this host. */
  readonly origin: Origin | undefined
  /** Bytes held for the caller. */
  readonly held: Share
  readonly descriptors: Share
  readonly places: Share
  /** Streams whose preface has not been read, or whose policy has not been loaded. */
  readonly unauthorized: Share
  readonly connections: Share
  readonly shared: SharedLimits
  /** The work for the caller in one turn of the event loop. */
  readonly turns: TurnShare
  readonly identity: Identity
  private readonly lanes = new Map<string, Lane>()
  private readonly alarms: HeldAlarms

  constructor(
    name: string,
    shared: SharedLimits,
    alarms: HeldAlarms,
    of: { readonly identity: Identity; readonly origin: Origin | undefined },
  ) {
    const { identity, origin } = of
    this.name = name
    this.shared = shared
    this.alarms = alarms
    this.identity = identity
    this.origin = origin
    this.held = { used: 0, whole: identity.held, group: origin?.held }
    this.descriptors = { used: 0, whole: identity.descriptors, group: origin?.descriptors }
    this.places = { used: 0, whole: identity.places, group: origin?.places }
    this.unauthorized = { used: 0, whole: identity.unauthorized, group: origin?.unauthorized }
    this.connections = { used: 0, whole: identity.connections, group: origin?.connections }
    this.turns = new TurnShare(origin?.turns)
  }

  /** The caller's lane for one destination. */
  lane(destination: string, nowMs: number): Lane {
    const known = this.lanes.get(destination)
    if (known !== undefined) return known
    const lane = new Lane(this, this.identity.at(destination, nowMs))
    this.lanes.set(destination, lane)
    return lane
  }

  /** Whether the caller may open a stream now. */
  mayOpen(nowMs: number): boolean {
    return this.identity.opens.take(nowMs)
  }

  /** A stream was refused without an inspection. @returns false when there are too many and the session must end. */
  mayExceed(nowMs: number): boolean {
    return this.identity.excess.take(nowMs)
  }

  /** Bytes arrived for a closed stream. @returns false when there are too many and the session must end. */
  mayIgnore(nowMs: number, bytes: number): boolean {
    return this.identity.ignored.take(nowMs, bytes)
  }

  /** TLS used `bytes` without data. @returns false when there are too many and the session must end. */
  mayWaste(nowMs: number, bytes: number): boolean {
    return this.identity.emptyTls.take(nowMs, bytes)
  }

  /** Memory held for the caller changed by `bytes`. Raises the alarms when all callers together hold much. */
  hold(bytes: number): void {
    if (bytes === 0) return
    const { held } = this.shared
    held.add(this.held, bytes)
    if (bytes < 0) return
    if (held.isExceeded) this.alarms.onExceeded()
    if (held.fullness > SHORT_SHARE) this.alarms.onShort()
  }

  /** Whether `bytes` more may be held for the caller. */
  mayHold(bytes: number): boolean {
    return this.shared.held.allows(this.held, bytes)
  }

  /** Whether enough is held for the caller to keep its tunnels busy. */
  get isAhead(): boolean {
    return this.held.used > HELD_AHEAD
  }

  /** Whether so much is held for the caller that nothing more may be taken ahead of need. */
  get isTight(): boolean {
    const { held } = this.shared
    return this.held.used > held.allowance * TIGHT_SHARE || held.fullness > 1 / 2
  }

  /** Whether the caller, or all callers, have so many connections that each further one should use little memory. */
  get isShared(): boolean {
    return this.descriptors.used > CROWD || this.shared.descriptors.used > CROWD_OF_ALL
  }

  /** Whether the account is in the same state as a new one. */
  isForgettable(nowMs: number): boolean {
    if (this.unauthorized.used > 0 || this.connections.used > 0 || this.turns.postponed > 0)
      return false
    if (this.held.used !== 0 || this.descriptors.used !== 0 || this.places.used !== 0) return false
    return this.identity.isForgettable(nowMs)
  }
}

/** One caller at one destination: what it does there must not affect its other destinations. */
export class Lane {
  readonly account: Account
  private readonly record: Conduct

  constructor(account: Account, record: Conduct) {
    this.account = account
    this.record = record
  }

  /** Whether a stream is accepted now; otherwise it must be reset without an inspection. */
  mayOpen(nowMs: number): boolean {
    return this.record.mayOpen(nowMs) && this.account.mayOpen(nowMs)
  }

  /** A stream was unsuccessful, and the caller caused it. */
  noteUnsuccessful(nowMs: number): void {
    this.record.noteUnsuccessful(nowMs)
  }

  /** The caller reset a confirmed stream. */
  noteReset(nowMs: number): void {
    this.record.noteReset(nowMs)
  }

  /** A session of the caller from `ip` broke the protocol. The third time bans the address, each further one longer. */
  noteViolation(nowMs: number, ip: string | undefined): void {
    this.record.noteViolation(nowMs, ip)
  }

  /** How long handshakes of the caller from `ip` are still refused, milliseconds; 0 when they are accepted. */
  bannedForMs(nowMs: number, ip: string | undefined): number {
    return this.record.bannedForMs(nowMs, ip)
  }

  /** Whether the caller is banned from any address. */
  isBanned(nowMs: number): boolean {
    return this.record.isBanned(nowMs)
  }
}

/** The accounts of a worker. */
export class Accounts {
  readonly shared: SharedLimits
  private readonly byName = new Map<string, Account>()
  private readonly identities = new Map<string, Identity>()
  private readonly origins = new Map<string, Origin>()
  private readonly others: Account
  private readonly alarms: HeldAlarms

  constructor(shared: SharedLimits, nowMs: number, alarms: HeldAlarms) {
    this.shared = shared
    this.alarms = alarms
    const identity = new Identity(nowMs)
    this.others = new Account(OTHERS, shared, alarms, { identity, origin: undefined })
  }

  /** Whether so much is held that sockets should hold less. */
  get isShort(): boolean {
    return this.shared.held.fullness > SHORT_SHARE
  }

  /** The account of a caller; `ip` is the peer's address, undefined for a service of this host. */
  of(name: string, nowMs: number, ip?: string): Account {
    const network = ip === undefined ? undefined : networkOf(ip)
    const key = network === undefined ? name : `${name} ${network}`
    const known = this.byName.get(key)
    if (known !== undefined) return known
    if (this.byName.size >= MAX_ACCOUNTS) return this.others
    const origin = network === undefined ? undefined : this.originOf(network)
    if (origin !== undefined && origin.accounts >= MAX_ACCOUNTS_OF_HOST && name !== OTHERS)
      return this.of(OTHERS, nowMs, ip)
    const identity = this.identities.get(name) ?? new Identity(nowMs)
    this.identities.set(name, identity)
    identity.accounts += 1
    if (origin !== undefined) origin.accounts += 1
    const account = new Account(name, this.shared, this.alarms, { identity, origin })
    this.byName.set(key, account)
    return account
  }

  private originOf(network: string): Origin {
    const origin = this.origins.get(network) ?? new Origin(network)
    this.origins.set(network, origin)
    return origin
  }

  /**
   * Has `free` release half of the bytes held for the heaviest caller, until the total is within the limit or nothing
   * more is freed.
   * @param free resets what holds most for the caller, until `bytes` are free.
   */
  shed(free: (account: Account, bytes: number) => void): void {
    while (this.shared.held.isExceeded) {
      const heaviest = this.heaviest((account) => account.held)
      if (heaviest === undefined) return
      const before = heaviest.held.used
      free(heaviest, before / 2)
      if (heaviest.held.used >= before) return
    }
  }

  /** Call it about once a second: removes idle accounts. @returns the banned callers, each as "name at destination". */
  tick(nowMs: number): string[] {
    const banned = []
    for (const [name, { records }] of this.identities)
      for (const [destination, record] of records)
        if (record.isBanned(nowMs)) banned.push(`${name} at ${destination}`)
    for (const [key, account] of this.byName)
      if (account.isForgettable(nowMs)) this.forget(key, account)
    return banned
  }

  private forget(key: string, { name, identity, origin }: Account): void {
    this.byName.delete(key)
    identity.accounts -= 1
    if (identity.accounts === 0) this.identities.delete(name)
    if (origin === undefined) return
    origin.accounts -= 1
    if (origin.accounts === 0) this.origins.delete(origin.name)
  }

  /** Number of accounts. */
  get size(): number {
    return this.byName.size
  }

  /**
   * Of the host with the largest sum of the shares that `shareOf` selects, the caller with the largest share; undefined
   * when no caller has one.
   */
  heaviest(shareOf: (account: Account) => Share): Account | undefined {
    const weightOf = (account: Account): number => {
      const share = shareOf(account)
      return (share.group ?? share).used
    }
    let heaviest: Account = this.others
    for (const account of this.byName.values()) {
      const ahead = weightOf(account) - weightOf(heaviest)
      if (ahead > 0 || (ahead === 0 && shareOf(account).used > shareOf(heaviest).used))
        heaviest = account
    }
    return shareOf(heaviest).used > 0 ? heaviest : undefined
  }
}
