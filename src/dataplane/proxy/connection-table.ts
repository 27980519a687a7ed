/**
 * Every connection that this worker carries: for the admin API, for deadlines, for draining.
 *
 * A connection is added when it is accepted and taken out at its one ending, which is counted under its
 * response flag here and nowhere else. Idle connections are found by looking at byte counts once per sweep,
 * so that moving bytes costs no timer.
 */
import { MeshError } from '../../lib/errors.ts'
import type { ResponseFlag } from '../../model/response-flag.ts'
import type { TrafficCounters } from '../../telemetry/counters.ts'
import { type Share, SharedLimit } from '../io/shared-limit.ts'
import type { Account } from '../tunnel/accounts.ts'
import type { CertificatePair } from '../tunnel/trust.ts'
import {
  type Connection,
  type ConnectionView,
  type Delivering,
  heldBy,
  isOpen,
  type Reaching,
  type Refused,
  UNROUTED,
  viewOf,
} from './connection.ts'
import { type Refusal, Refusals } from './refusals.ts'

/** What one connection may need: a socket at each end. */
const DESCRIPTORS_AT_MOST = 2

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

/** The connections of one worker. */
export class ConnectionTable {
  // A chain through the connections themselves, not a Map: see lib/id-map.ts for what churn does to one.
  private oldest: Connection | undefined
  private newest: Connection | undefined
  private count = 0
  private readonly outbound: Tally
  private readonly inbound: Tally
  /** The certificates of those that have a TLS connection to themselves; those of a tunnel are its session's. */
  private readonly certificates = new Map<Connection, CertificatePair>()
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
  add(
    direction: 'outbound' | 'inbound',
    source: string,
    account: Account,
    from: Connection['from'],
  ): Connection {
    const nowMs = performance.now()
    const connection: Connection = {
      id: this.nextId,
      direction,
      source,
      account,
      from,
      wanted: undefined,
      stage: UNROUTED,
      descriptors: 0,
      openedAtMs: Date.now(),
      startedMs: nowMs,
      sentBytes: 0,
      receivedBytes: 0,
      abort: () => undefined,
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
      .map((connection) => ({ connection, held: heldBy(connection.stage) }))
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
  setDestination(connection: Connection, stage: Reaching | Refused | Delivering): void {
    connection.stage = stage
    this.counters.opened(stage.row)
    if (connection.direction === 'outbound') this.called.add(stage.destination)
  }

  /** The services that were called since the last time, or have connections now. */
  takeCalled(): string[] {
    for (const { direction, stage } of this.all())
      if (direction === 'outbound' && stage.state !== 'unrouted') this.called.add(stage.destination)
    const called = [...this.called]
    this.called.clear()
    return called
  }

  /** The connection has a TLS connection to itself, and lasts no longer than the certificates of that. */
  bindCertificates(connection: Connection, certificates: CertificatePair): void {
    if (this.has(connection)) this.certificates.set(connection, certificates)
  }

  /** Breaks off the connections whose certificates `rejection` finds fault with. */
  abortUntrusted(rejection: (certificates: CertificatePair) => MeshError | undefined): void {
    for (const [connection, certificates] of Array.from(this.certificates)) {
      const reason = rejection(certificates)
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
    this.certificates.delete(connection)
    if (reason !== undefined && flag !== 'DC' && flag !== '-')
      this.refused.add(viewOf(connection), flag, reason)
    this.tally(connection.direction).change(connection.source, connection.account.connections, -1)
    if (connection.descriptors > 0) {
      const { account, descriptors } = connection
      account.shared.descriptors.add(account.descriptors, -descriptors)
    }
    this.counters.closed(this.rowOf(connection), flag, performance.now() - connection.startedMs)
  }

  /** Its row in the traffic counters; a connection that ends before its destination is known has one, too. */
  private rowOf({ direction, source, stage }: Connection): number {
    if (stage.state !== 'unrouted') return stage.row
    const reporter = direction === 'outbound' ? 'source' : 'destination'
    const row = this.counters.row(reporter, source, 'unknown')
    this.counters.opened(row)
    return row
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
      isOpen(connection.stage) && nowMs - connection.quietSinceMs >= this.quietLimitMs(connection)
    )
  }

  private quietLimitMs({ stage }: Connection): number {
    return stage.state === 'half-closed' ? this.limits.halfClosedMs : this.limits.idleMs
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
