/**
 * What a worker spends on each caller, and where that ends: docs/tunnel-protocol.md, "Fair shares".
 *
 * A caller is a peer identity (the SPIFFE ID of its certificate, whichever session it comes by) or a service of
 * this host. It has one {@link Account}, and a {@link Lane} for each destination that it floods or not. Clocked from
 * outside, in monotonic milliseconds; no timers.
 *
 * ```
 *   stream opened --tokens left--> taken --comes to nothing--> a futile token
 *         \--none--> reset, code 4, an excess token --none--> session closed, a strike --third--> barred for a while
 * ```
 */
import { networkOf } from '../../model/address.ts'
import { type GroupShare, type Share, SharedLimit } from '../io/shared-limit.ts'
import { TokenBucket } from '../io/token-bucket.ts'
import { TurnGroup, TurnShare } from '../io/turn-share.ts'

/** Streams that one caller may open: what a worker can do when it has nothing else to do. */
const OPENS = { rate: 20_000, burst: 20_000 } as const

/** Streams of one caller and destination that come to nothing: denied, malformed, unknown, reset before they stood. */
const FUTILE = { rate: 1_000, burst: 5_000 } as const

/** Streams of one caller and destination that stood and were reset by the caller. */
const RESETS = { rate: 5_000, burst: 20_000 } as const

/** Streams of one caller that are reset because one of the others is empty; beyond this the session ends. */
const EXCESS = { rate: 2_000, burst: 10_000 } as const

/** Bytes for streams that are closed: what aborted uploads have under way, and no download of garbage. */
const IGNORED_BYTES = { rate: 64 * 1_048_576, burst: 128 * 1_048_576 } as const

/** Bytes of TLS that bring nothing: messages of its own (a key update costs the processor what 100 frames do), and padding. */
const EMPTY_TLS_BYTES = { rate: 65_536, burst: 524_288 } as const

/** Violations that cost no more than the session. */
const FREE_STRIKES = 2

/** How long an identity is refused from that address after the next one; doubles up to the second. */
const BAR_MS = 5_000
const MAX_BAR_MS = 300_000

/** Strikes are forgotten when there was none for so long. */
const FORGIVEN_AFTER_MS = 300_000

/** Addresses that are remembered of one identity at one destination; those beyond it count as one. */
const MAX_OFFENDERS = 256
const OTHER_ADDRESSES = ''

/** Accounts of peers beyond this share one: identities are given out by the CA, so there are not many. */
const MAX_ACCOUNTS = 10_000

/** Identities of one host beyond this share one account: so many services a host may have, and no host can use up what there is. */
const MAX_ACCOUNTS_OF_HOST = 1_000
const OTHERS = 'others'

/** A user of held bytes may have twice what is free: two thirds when it is alone. */
const HELD_FACTOR = 2

/** What each may hold in any case, as a share of all: who has next to nothing must not suffer from who has all. */
const LEAST_HELD_SHARE = 1 / 64

/** Share of the memory for held bytes from which sockets are to hold less, and to read less at once. */
const SHORT_SHARE = 1 / 8

/** A user of descriptors and of session places may have as much as is free: half when it is alone. Nothing takes it back. */
const PLACES_FACTOR = 1

/** From this share of its allowance on a caller is given no more than what is asked of it. */
const TIGHT_SHARE = 1 / 8

/** Connections and sessions of one caller, and of all, from which on the kernel is to hold less for each further one. */
const CROWD = 128
const CROWD_OF_ALL = 256

/** Bytes from which on a sender that has something waiting takes nothing more: so much keeps any tunnel busy. */
const HELD_AHEAD = 4 * 1_048_576

/** What is shared by all callers of a worker. */
export interface SharedLimits {
  /** Memory for bytes on their way, of tunnels and what they are joined to. */
  readonly held: SharedLimit
  /** File descriptors for connections. */
  readonly descriptors: SharedLimit
  /** Sessions that peers have opened. */
  readonly sessions: SharedLimit
}

/** The limits of a worker. */
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

/** Who is told, at once and each time, that much is held. */
export interface HeldAlarms {
  /** So much that sockets are to hold less; {@link Accounts.isShort} says for how long. */
  onShort(): void
  /** More than there should be: {@link Accounts.shed} is due, soon. */
  onExceeded(): void
}

/** What several accounts have together: those of one identity, or those of one host. */
class Sum {
  readonly held: GroupShare = { used: 0, users: 0 }
  readonly descriptors: GroupShare = { used: 0, users: 0 }
  readonly places: GroupShare = { used: 0, users: 0 }
  readonly unauthorized: GroupShare = { used: 0, users: 0 }
  readonly connections: GroupShare = { used: 0, users: 0 }
  /** How many these are. */
  accounts = 0
}

/** A host that callers come from: whoever has it may have the certificates of many services. */
class Origin extends Sum {
  readonly name: string
  /** What is done for all of them in one turn of the event loop. */
  readonly turns: TurnGroup = new TurnGroup()

  constructor(name: string) {
    super()
    this.name = name
  }
}

/** One identity, wherever it comes from. */
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

/** One caller: an identity that comes from one host, or a service of this host. */
export class Account {
  readonly name: string
  /** Where it comes from; undefined for a service of this host. */
  readonly origin: Origin | undefined
  /** Bytes held for it. */
  readonly held: Share
  readonly descriptors: Share
  readonly places: Share
  /** Streams whose preface has not been read, or whose policy has not been loaded. */
  readonly unauthorized: Share
  readonly connections: Share
  readonly shared: SharedLimits
  /** What is done for it in one turn of the event loop. */
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

  /** What it may do at one destination. */
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

  /** A stream was refused unseen. @returns false when that happens too often for the session to go on. */
  mayExceed(nowMs: number): boolean {
    return this.identity.excess.take(nowMs)
  }

  /** Bytes arrived for a stream that is closed. @returns false when they are too many for the session to go on. */
  mayIgnore(nowMs: number, bytes: number): boolean {
    return this.identity.ignored.take(nowMs, bytes)
  }

  /** TLS brought so many bytes that carry nothing. @returns false when they are too many for the session to go on. */
  mayWaste(nowMs: number, bytes: number): boolean {
    return this.identity.emptyTls.take(nowMs, bytes)
  }

  /** Memory held for the caller changed by `bytes`. When all have too much, the heaviest is shed at the end of the turn. */
  hold(bytes: number): void {
    if (bytes === 0) return
    const { held } = this.shared
    held.add(this.held, bytes)
    if (bytes < 0) return
    if (held.isExceeded) this.alarms.onExceeded()
    if (held.fullness > SHORT_SHARE) this.alarms.onShort()
  }

  /** Whether `bytes` more may be held for it. */
  mayHold(bytes: number): boolean {
    return this.shared.held.allows(this.held, bytes)
  }

  /** Whether enough is held for it to keep its tunnels busy. */
  get isAhead(): boolean {
    return this.held.used > HELD_AHEAD
  }

  /** Whether so much is held for it that nothing is to be taken ahead of need any more. */
  get isTight(): boolean {
    const { held } = this.shared
    return this.held.used > held.allowance * TIGHT_SHARE || held.fullness > 1 / 2
  }

  /** Whether it has so many connections, or all have, that each further one should have little. */
  get isCrowd(): boolean {
    return this.descriptors.used > CROWD || this.shared.descriptors.used > CROWD_OF_ALL
  }

  /** Whether a new account would be the same. */
  isForgettable(nowMs: number): boolean {
    if (this.unauthorized.used > 0 || this.connections.used > 0 || this.turns.postponed > 0)
      return false
    if (this.held.used !== 0 || this.descriptors.used !== 0 || this.places.used !== 0) return false
    return this.identity.isForgettable(nowMs)
  }
}

/** One caller at one destination: what it does there must not cost it its other destinations. */
export class Lane {
  readonly account: Account
  private readonly record: Conduct

  constructor(account: Account, record: Conduct) {
    this.account = account
    this.record = record
  }

  /** Whether a stream may be taken now; if not it is to be reset without a look at it. */
  mayOpen(nowMs: number): boolean {
    return this.record.mayOpen(nowMs) && this.account.mayOpen(nowMs)
  }

  /** A stream came to nothing by the caller's doing. */
  wasFutile(nowMs: number): void {
    this.record.wasFutile(nowMs)
  }

  /** The caller reset a stream that stood. */
  wasReset(nowMs: number): void {
    this.record.wasReset(nowMs)
  }

  /** A session of the caller from `ip` broke the protocol. The third time that address is barred, each time for longer. */
  strike(nowMs: number, ip: string | undefined): void {
    this.record.strike(nowMs, ip)
  }

  /** How long the caller is still refused at the handshake from `ip`; 0 when it is not. */
  barredForMs(nowMs: number, ip: string | undefined): number {
    return this.record.barredForMs(nowMs, ip)
  }

  /** Whether it is refused from any address. */
  isBarred(nowMs: number): boolean {
    return this.record.isBarred(nowMs)
  }
}

/** What one identity has done at one destination, from all its hosts. */
class Conduct {
  private readonly futile: TokenBucket
  private readonly resets: TokenBucket
  /** By address: whoever has taken over one host of a service must not cost its other hosts theirs. */
  private readonly offenders = new Map<string, Offender>()

  constructor(nowMs: number) {
    this.futile = new TokenBucket(FUTILE.rate, FUTILE.burst, nowMs)
    this.resets = new TokenBucket(RESETS.rate, RESETS.burst, nowMs)
  }

  mayOpen(nowMs: number): boolean {
    return this.futile.hasAny(nowMs) && this.resets.hasAny(nowMs)
  }

  wasFutile(nowMs: number): void {
    this.futile.drain(nowMs)
  }

  wasReset(nowMs: number): void {
    this.resets.drain(nowMs)
  }

  strike(nowMs: number, ip: string | undefined): void {
    this.offender(ip ?? OTHER_ADDRESSES, nowMs).strike(nowMs)
  }

  barredForMs(nowMs: number, ip: string | undefined): number {
    const known = this.offenders.get(ip ?? OTHER_ADDRESSES)
    const isOneOfMany = known === undefined && this.offenders.size >= MAX_OFFENDERS
    const offender = isOneOfMany ? this.offenders.get(OTHER_ADDRESSES) : known
    return offender?.barredForMs(nowMs) ?? 0
  }

  isBarred(nowMs: number): boolean {
    for (const offender of this.offenders.values()) if (offender.barredForMs(nowMs) > 0) return true
    return false
  }

  private offender(ip: string, nowMs: number): Offender {
    const known = this.offenders.get(ip)
    if (known !== undefined) return known
    if (this.offenders.size >= MAX_OFFENDERS) {
      for (const [address, offender] of this.offenders)
        if (offender.isForgiven(nowMs)) this.offenders.delete(address)
      if (this.offenders.size >= MAX_OFFENDERS && ip !== OTHER_ADDRESSES)
        return this.offender(OTHER_ADDRESSES, nowMs)
    }
    const offender = new Offender()
    this.offenders.set(ip, offender)
    return offender
  }

  /** Whether a new record would be the same. */
  isForgettable(nowMs: number): boolean {
    if (!this.futile.isFull(nowMs) || !this.resets.isFull(nowMs)) return false
    for (const offender of this.offenders.values()) if (!offender.isForgiven(nowMs)) return false
    return true
  }
}

/** Violations of one identity at one destination from one address. */
class Offender {
  private strikes = 0
  private struckAtMs = 0
  private barredUntilMs = 0

  /** Sessions that were open when the bar came down are part of what it is for: they do not make it longer. */
  strike(nowMs: number): void {
    if (nowMs < this.barredUntilMs) return
    if (nowMs - this.struckAtMs > FORGIVEN_AFTER_MS) this.strikes = 0
    this.strikes += 1
    this.struckAtMs = nowMs
    const beyond = this.strikes - FREE_STRIKES
    if (beyond > 0)
      this.barredUntilMs = nowMs + Math.min(MAX_BAR_MS, BAR_MS * 2 ** Math.min(beyond - 1, 10))
  }

  barredForMs(nowMs: number): number {
    return Math.max(0, this.barredUntilMs - nowMs)
  }

  isForgiven(nowMs: number): boolean {
    return nowMs >= this.barredUntilMs && nowMs - this.struckAtMs > FORGIVEN_AFTER_MS
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

  /** Whether so much is held that sockets are to hold less. */
  get isShort(): boolean {
    return this.shared.held.fullness > SHORT_SHARE
  }

  /** The account of a caller; `ip` is where a peer comes from, undefined for a service of this host. */
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
   * Lets `free` give up half of what is held for the heaviest caller, until all is within the limit or it cannot.
   * @param free breaks off what holds most for the caller until so many bytes are free.
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

  /** Once a second or so: forgets callers that have gone. @returns who is barred, and where. */
  tick(nowMs: number): string[] {
    const barred = []
    for (const [name, { records }] of this.identities)
      for (const [destination, record] of records)
        if (record.isBarred(nowMs)) barred.push(`${name} at ${destination}`)
    for (const [key, account] of this.byName)
      if (account.isForgettable(nowMs)) this.forget(key, account)
    return barred
  }

  private forget(key: string, { name, identity, origin }: Account): void {
    this.byName.delete(key)
    identity.accounts -= 1
    if (identity.accounts === 0) this.identities.delete(name)
    if (origin === undefined) return
    origin.accounts -= 1
    if (origin.accounts === 0) this.origins.delete(origin.name)
  }

  /** Accounts now. */
  get size(): number {
    return this.byName.size
  }

  /**
   * The caller with the largest of the shares that `shareOf` picks, of the host with the largest of them; undefined when
   * nobody has any.
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
