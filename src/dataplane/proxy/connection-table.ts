/**
 * Every connection that this worker carries: for the admin API, for deadlines, for draining.
 *
 * A connection is added when it is accepted and taken out at its one ending, which is counted under its
 * response flag here and nowhere else. Idle connections are found by looking at byte counts once per sweep,
 * so that moving bytes costs no timer.
 */
import { MeshError } from '../../lib/errors.ts'
import { canonicalIp, formatAddress, type SocketAddress } from '../../model/address.ts'
import type { ResponseFlag } from '../../model/response-flag.ts'
import type { Reporter, TrafficCounters } from '../../telemetry/counters.ts'
import { type Share, SharedLimit } from '../io/shared-limit.ts'
import type { Account } from '../tunnel/accounts.ts'
import type { Footing } from '../tunnel/trust.ts'
import { type Refusal, Refusals } from './refusals.ts'

/** What one connection may need: a socket at each end. */
const DESCRIPTORS_AT_MOST = 2

/** A socket that can be asked where its other end is, as long as it is open. */
export interface RemoteEnd {
  readonly remoteAddress?: string | undefined
  readonly remotePort?: number | undefined
}

/** What of a connection may have bytes waiting in it. */
export interface HoldingStream {
  readonly heldMemory: number
}

/** The same of a socket of this host. */
export interface HoldingSocket {
  readonly waitingBytes: number
}

/** One carried connection. Mutable; written by the stage that has it in hand. */
export interface Connection {
  readonly id: number
  readonly direction: 'outbound' | 'inbound'
  /** The calling service. */
  readonly source: string
  /** Whom it is spent on. */
  readonly account: Account
  /** Descriptors that it has, as far as they are its own. */
  descriptors: number
  /** The stream that carries it, and the application's socket, as soon as there is one. */
  stream: HoldingStream | undefined
  local: HoldingSocket | undefined
  /** The called service; undefined until it is known. */
  destination: string | undefined
  /** The calling application's socket, when it is on this host: a system call for whoever wants its address. */
  caller: RemoteEnd | undefined
  /** Where the calling application is, when it is on another host or its socket has gone; undefined when not known. */
  downstream: SocketAddress | undefined
  /** The service that serves it: another than the called one after a redirect or failover. */
  reached: string | undefined
  /** What the application asked for. */
  wanted: SocketAddress | undefined
  /** Who serves it: `<node>/<service id>`, or a local address. */
  endpoint: string | undefined
  /** The peer's tunnel address; undefined on the same host. */
  peer: SocketAddress | undefined
  state: 'opening' | 'open' | 'half-closed'
  /** Whether policy was decided on this host: then a changed intention may end it. */
  isDecidedHere: boolean
  /** The certificates it rests on, when it has a TLS connection to itself; those of a tunnel are its session's. */
  footing: Footing | undefined
  /** Wall clock, milliseconds. */
  readonly openedAtMs: number
  sentBytes: number
  receivedBytes: number
  /** Breaks the connection off in its present stage, with this ending. */
  abort: (flag: ResponseFlag, reason: MeshError) => void
  /** Monotonic; for durations. */
  readonly startedMs: number
  /** Monotonic: when the instance was asked that is tried now. */
  askedMs: number
  /** Row of the traffic counters; undefined until the pair is known. */
  row: number | undefined
  sweptBytes: number
  quietSinceMs: number
  /** Its neighbors in the table, by age. */
  older: Connection | undefined
  newer: Connection | undefined
}

/** Deadlines and caps of a table; milliseconds. */
export interface ConnectionLimits {
  /** Of local applications. */
  readonly connections: number
  readonly connectionsPerService: number
  /** From other hosts. */
  readonly inboundConnections: number
  readonly inboundConnectionsPerService: number
  readonly idleMs: number
  readonly halfClosedMs: number
}

/** What the admin API shows of a connection. */
export interface ConnectionView {
  readonly id: number
  readonly direction: 'outbound' | 'inbound'
  readonly source: string
  readonly destination: string | undefined
  readonly downstream: string | undefined
  readonly wanted: string | undefined
  readonly endpoint: string | undefined
  readonly peer: string | undefined
  readonly state: Connection['state']
  readonly openedAtMs: number
  readonly sentBytes: number
  readonly receivedBytes: number
}

/** The connections of one worker. */
export class ConnectionTable {
  // A chain through the connections themselves, not a Map: see lib/id-map.ts for what churn does to one.
  private oldest: Connection | undefined
  private newest: Connection | undefined
  private count = 0
  private readonly outbound: Tally
  private readonly inbound: Tally
  /** Those with a footing of their own. */
  private readonly founded = new Set<Connection>()
  /** Services called since {@link takeCalled}. */
  private readonly called = new Set<string>()
  private readonly limits: ConnectionLimits
  private readonly counters: TrafficCounters
  private readonly refused = new Refusals()
  private nextId = 1

  constructor(limits: ConnectionLimits, counters: TrafficCounters) {
    this.limits = limits
    this.counters = counters
    this.outbound = new Tally(limits.connections, limits.connectionsPerService)
    this.inbound = new Tally(limits.inboundConnections, limits.inboundConnectionsPerService)
  }

  /** Connections open now. */
  get size(): number {
    return this.count
  }

  /** Whether one more connection of this caller is within the caps of its direction, and has descriptors left. */
  hasRoom(direction: 'outbound' | 'inbound', source: string, account: Account): boolean {
    if (this.isShortOfDescriptors(account)) return false
    return this.tally(direction).hasRoom(source, account.connections)
  }

  /** Whether the caller has as many descriptors as it may have just now. */
  isShortOfDescriptors(account: Account): boolean {
    return !account.shared.descriptors.allows(account.descriptors, DESCRIPTORS_AT_MOST)
  }

  /** Enters a connection that has been accepted. */
  add(direction: 'outbound' | 'inbound', source: string, account: Account): Connection {
    const nowMs = performance.now()
    const connection: Connection = {
      id: this.nextId,
      direction,
      source,
      account,
      descriptors: 0,
      stream: undefined,
      local: undefined,
      destination: undefined,
      reached: undefined,
      caller: undefined,
      downstream: undefined,
      wanted: undefined,
      endpoint: undefined,
      peer: undefined,
      state: 'opening',
      isDecidedHere: direction === 'inbound',
      footing: undefined,
      openedAtMs: Date.now(),
      sentBytes: 0,
      receivedBytes: 0,
      abort: () => undefined,
      startedMs: nowMs,
      askedMs: nowMs,
      row: undefined,
      sweptBytes: 0,
      quietSinceMs: nowMs,
      older: this.newest,
      newer: undefined,
    }
    this.nextId += 1
    this.enter(connection)
    this.tally(direction).change(source, account.connections, 1)
    return connection
  }

  /** The connection has `count` descriptors of its own now; they are given back at its end. */
  useDescriptors(connection: Connection, count: number): void {
    if (!this.has(connection) || connection.descriptors >= count) return
    const { account, descriptors } = connection
    account.shared.descriptors.add(account.descriptors, count - descriptors)
    connection.descriptors = count
  }

  /** Breaks off the connections of a caller for which most is held, until so many bytes are free. @returns how many. */
  shed(account: Account, bytes: number): number {
    const heavy = [...this.all()]
      .filter((connection) => connection.account === account)
      .map((connection) => ({ connection, held: heldBy(connection) }))
      .filter(({ held }) => held > 0)
      .toSorted((left, right) => right.held - left.held)
    let freed = 0
    let count = 0
    for (const { connection, held } of heavy) {
      if (freed >= bytes) break
      freed += held
      count += 1
      connection.abort(
        'UO',
        new MeshError(
          'HM_LIMIT_MEMORY',
          `Broken off: memory is short, and most of it is held for ${connection.source}`,
        ),
      )
    }
    return count
  }

  /** The destination is known: from here on the connection counts for its service pair. */
  know(connection: Connection, destination: string): void {
    if (connection.row !== undefined) return
    const reporter: Reporter = connection.direction === 'outbound' ? 'source' : 'destination'
    connection.destination = destination
    connection.row = this.counters.row(reporter, connection.source, destination)
    this.counters.opened(connection.row)
    if (connection.direction === 'outbound') this.called.add(destination)
  }

  /** The services that were called since the last time, or have connections now. */
  takeCalled(): string[] {
    for (const { direction, destination } of this.all())
      if (direction === 'outbound' && destination !== undefined) this.called.add(destination)
    const called = [...this.called]
    this.called.clear()
    return called
  }

  /** The connection has a TLS connection to itself, and lasts no longer than the certificates of that. */
  rest(connection: Connection, footing: Footing): void {
    connection.footing = footing
    if (this.has(connection)) this.founded.add(connection)
  }

  /** Breaks off the connections whose certificates `objection` finds fault with. */
  abortUnfounded(objection: (footing: Footing) => MeshError | undefined): void {
    for (const connection of Array.from(this.founded)) {
      const reason = connection.footing === undefined ? undefined : objection(connection.footing)
      if (reason !== undefined) connection.abort('TLS', reason)
    }
  }

  /**
   * The one ending of a connection. Later calls do nothing. With a `reason` it is remembered for a while,
   * unless the caller itself hung up.
   */
  end(connection: Connection, flag: ResponseFlag, reason?: unknown): void {
    if (!this.has(connection)) return
    this.leave(connection)
    if (connection.footing !== undefined) this.founded.delete(connection)
    if (reason !== undefined && flag !== 'DC' && flag !== '-')
      this.refused.add(viewOf(connection), flag, reason)
    this.tally(connection.direction).change(connection.source, connection.account.connections, -1)
    if (connection.descriptors > 0) {
      const { account, descriptors } = connection
      account.shared.descriptors.add(account.descriptors, -descriptors)
    }
    if (connection.row === undefined) this.know(connection, 'unknown')
    if (connection.row !== undefined)
      this.counters.closed(connection.row, flag, performance.now() - connection.startedMs)
  }

  /** Breaks off what has been quiet for too long. `nowMs` is monotonic. */
  sweep(nowMs: number): void {
    const quiet: Connection[] = []
    for (let at = this.oldest; at !== undefined; at = at.newer)
      if (this.isQuietTooLong(at, nowMs)) quiet.push(at)
    for (const connection of quiet)
      connection.abort(
        'UT',
        new MeshError(
          'HM_CONNECTION_IDLE',
          `The connection was quiet for ${this.quietLimitMs(connection)} ms`,
        ),
      )
  }

  /** Breaks off the connections that `condemned` picks. */
  abortWhere(
    condemned: (connection: Connection) => boolean,
    flag: ResponseFlag,
    reason: MeshError,
  ): number {
    let count = 0
    for (const connection of Array.from(this.all())) {
      if (!condemned(connection)) continue
      count += 1
      connection.abort(flag, reason)
    }
    return count
  }

  /** Whether a connection is open that was opened at or before this wall-clock time. */
  hasOlderThan(timeMs: number): boolean {
    return this.oldest !== undefined && this.oldest.openedAtMs <= timeMs
  }

  /** An open connection as the admin API shows it. */
  find(id: number): ConnectionView | undefined {
    for (const connection of this.all()) if (connection.id === id) return viewOf(connection)
    return undefined
  }

  /** The last connections that were refused or broken off, newest first. */
  refusals(): Refusal[] {
    return this.refused.list()
  }

  /** At most `limit` connections as the admin API shows them, oldest first. */
  list(limit: number): ConnectionView[] {
    const views: ConnectionView[] = []
    for (const connection of this.all()) {
      if (views.length >= limit) break
      views.push(viewOf(connection))
    }
    return views
  }

  private tally(direction: Connection['direction']): Tally {
    return direction === 'outbound' ? this.outbound : this.inbound
  }

  /** Oldest first. Nothing may be broken off while it is walked. */
  private *all(): Iterable<Connection> {
    for (let at = this.oldest; at !== undefined; at = at.newer) yield at
  }

  private isQuietTooLong(connection: Connection, nowMs: number): boolean {
    const bytes = connection.sentBytes + connection.receivedBytes
    if (bytes !== connection.sweptBytes) {
      connection.sweptBytes = bytes
      connection.quietSinceMs = nowMs
      return false
    }
    return (
      connection.state !== 'opening' &&
      nowMs - connection.quietSinceMs >= this.quietLimitMs(connection)
    )
  }

  private quietLimitMs({ state }: Connection): number {
    return state === 'half-closed' ? this.limits.halfClosedMs : this.limits.idleMs
  }

  private has(connection: Connection): boolean {
    return connection.older !== undefined || this.oldest === connection
  }

  private enter(connection: Connection): void {
    if (this.newest === undefined) this.oldest = connection
    else this.newest.newer = connection
    this.newest = connection
    this.count += 1
  }

  /** What has ended points to nothing: were it old to the collector, it would keep what came after it. */
  private leave(connection: Connection): void {
    const { older, newer } = connection
    if (older === undefined) this.oldest = newer
    else older.newer = newer
    if (newer === undefined) this.newest = older
    else newer.older = older
    connection.older = undefined
    connection.newer = undefined
    this.count -= 1
  }
}

/**
 * How many connections there are in one direction, and of each caller. One that is alone may have the cap of one caller; several
 * share the whole, so that whoever comes finds room.
 */
class Tally {
  private readonly all: SharedLimit
  private readonly mostOfSource: number
  /** Zeros stay: callers are few, and deleting is churn. */
  private readonly bySource = new Map<string, number>()

  constructor(most: number, mostOfSource: number) {
    this.all = new SharedLimit(most, mostOfSource / Math.max(1, most - mostOfSource))
    this.mostOfSource = mostOfSource
  }

  hasRoom(source: string, share: Share): boolean {
    return (this.bySource.get(source) ?? 0) < this.mostOfSource && this.all.allows(share, 1)
  }

  change(source: string, share: Share, by: number): void {
    this.all.add(share, by)
    this.bySource.set(source, (this.bySource.get(source) ?? 0) + by)
  }
}

function heldBy({ stream, local }: Connection): number {
  return (stream?.heldMemory ?? 0) + (local?.waitingBytes ?? 0)
}

/** The other end of a socket; undefined when it is closed. */
export function addressOf(socket: RemoteEnd | undefined): SocketAddress | undefined {
  const ip = canonicalIp(socket?.remoteAddress ?? '')
  const port = socket?.remotePort
  return ip === undefined || port === undefined ? undefined : { ip, port }
}

function viewOf(connection: Connection): ConnectionView {
  const text = (address: SocketAddress | undefined): string | undefined =>
    address === undefined ? undefined : formatAddress(address)
  return {
    id: connection.id,
    direction: connection.direction,
    source: connection.source,
    destination: connection.destination,
    downstream: text(connection.downstream ?? addressOf(connection.caller)),
    wanted: text(connection.wanted),
    endpoint: connection.endpoint,
    peer: text(connection.peer),
    state: connection.state,
    openedAtMs: connection.openedAtMs,
    sentBytes: connection.sentBytes,
    receivedBytes: connection.receivedBytes,
  }
}
