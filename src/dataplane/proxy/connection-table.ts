/**
 * All connections that this worker carries: for the admin API, for deadlines, for draining.
 *
 * A connection is added when it is accepted, and removed when it ends; its ending is counted under its response flag
 * here and nowhere else. Idle connections are found by comparing byte counts once per sweep, so that moving bytes needs
 * no timer.
 */
import { MeshError } from '../../lib/errors.ts'
import type { ResponseFlag } from '../../model/response-flag.ts'
import type { TrafficCounters } from '../../telemetry/counters.ts'
import { type Share, SharedLimit } from '../io/shared-limit.ts'
import type { Account } from '../tunnel/accounts.ts'
import type { CertificatePair } from '../tunnel/trust.ts'
import type { AccessLog } from './access-log.ts'
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

/** The most descriptors that one connection needs: a socket at each end. */
const DESCRIPTORS_AT_MOST = 2

/** Limits and deadlines of a table; times in milliseconds. */
export interface ConnectionLimits {
  /** For connections of local applications. */
  readonly connections: number
  readonly connectionsPerService: number
  /** For connections from other hosts. */
  readonly inboundConnections: number
  readonly inboundConnectionsPerService: number
  readonly idleMs: number
  readonly halfClosedMs: number
}

/** The connections of one worker. */
export class ConnectionTable {
  // A chain through the connections themselves, not a Map: lib/id-map.ts explains what churn costs a Map.
  private oldest: Connection | undefined
  private newest: Connection | undefined
  private count = 0
  private readonly outbound: Tally
  private readonly inbound: Tally
  /** The certificates of connections that have a TLS connection of their own; a tunnel's session holds the others. */
  private readonly certificates = new Map<Connection, CertificatePair>()
  /** Services called since the last {@link takeCalled}. */
  private readonly called = new Set<string>()
  private readonly limits: ConnectionLimits
  private readonly counters: TrafficCounters
  /** Undefined while it is off. */
  private readonly accessLog: AccessLog | undefined
  private readonly refused = new Refusals()
  private nextId = 1

  constructor(limits: ConnectionLimits, counters: TrafficCounters, accessLog?: AccessLog) {
    this.limits = limits
    this.counters = counters
    this.accessLog = accessLog
    this.outbound = new Tally(limits.connections, limits.connectionsPerService)
    this.inbound = new Tally(limits.inboundConnections, limits.inboundConnectionsPerService)
  }

  /** Connections open now. */
  get size(): number {
    return this.count
  }

  /** Whether one more connection of this caller is within the limits of its direction and of descriptors. */
  hasRoom(direction: 'outbound' | 'inbound', source: string, account: Account): boolean {
    if (this.isShortOfDescriptors(account)) return false
    return this.tally(direction).hasRoom(source, account.connections)
  }

  /** Whether the caller has as many descriptors as it may have at present. */
  isShortOfDescriptors(account: Account): boolean {
    return !account.shared.descriptors.allows(account.descriptors, DESCRIPTORS_AT_MOST)
  }

  /** Adds a connection that has been accepted. */
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
      originalDestination: undefined,
      stage: UNROUTED,
      transport: undefined,
      peerSpiffeId: undefined,
      serverName: undefined,
      traceparent: undefined,
      descriptors: 0,
      openedAtMs: Date.now(),
      startedMs: nowMs,
      firstSentMs: 0,
      connectedMs: 0,
      firstByteMs: -1,
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
    if (this.accessLog !== undefined) this.accessLog.begin(connection)
    return connection
  }

  /** Charges the connection for `count` descriptors of its own in total; they are released when it ends. */
  useDescriptors(connection: Connection, count: number): void {
    if (!this.has(connection) || connection.descriptors >= count) return
    const { account, descriptors } = connection
    account.shared.descriptors.add(account.descriptors, count - descriptors)
    connection.descriptors = count
  }

  /** Aborts the caller's connections, those that hold most bytes first, until `bytes` are freed. @returns how many. */
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

  /** Sets the destination: from here on the connection counts for its pair of services. */
  setDestination(connection: Connection, stage: Reaching | Refused | Delivering): void {
    connection.stage = stage
    this.counters.opened(stage.row)
    if (connection.direction === 'outbound') this.called.add(stage.destination)
  }

  /** The services that were called since the last call, or have open connections now. */
  takeCalled(): string[] {
    for (const { direction, stage } of this.all())
      if (direction === 'outbound' && stage.state !== 'unrouted') this.called.add(stage.destination)
    const called = [...this.called]
    this.called.clear()
    return called
  }

  /** For a connection with a TLS connection of its own: it is aborted when these certificates are no longer valid. */
  bindCertificates(connection: Connection, certificates: CertificatePair): void {
    if (this.has(connection)) this.certificates.set(connection, certificates)
  }

  /** Aborts the connections for whose certificates `rejectionReason` returns an error. */
  abortUntrusted(rejectionReason: (certificates: CertificatePair) => MeshError | undefined): void {
    for (const [connection, certificates] of Array.from(this.certificates)) {
      const reason = rejectionReason(certificates)
      if (reason !== undefined) connection.abort('TLS', reason)
    }
  }

  /**
   * Ends and removes a connection. Further calls do nothing. With a `reason` the ending is listed among the refusals
   * for a while, unless the caller itself hung up; the access log has `cause`.
   */
  end(connection: Connection, flag: ResponseFlag, reason?: unknown, cause: unknown = reason): void {
    if (!this.has(connection)) return
    const nowMs = performance.now()
    this.leave(connection)
    this.certificates.delete(connection)
    if (reason !== undefined && flag !== 'DC' && flag !== '-')
      this.refused.add(viewOf(connection), flag, reason)
    this.tally(connection.direction).change(connection.source, connection.account.connections, -1)
    if (connection.descriptors > 0) {
      const { account, descriptors } = connection
      account.shared.descriptors.add(account.descriptors, -descriptors)
    }
    this.counters.closed(this.rowOf(connection), flag, nowMs - connection.startedMs)
    if (this.accessLog !== undefined) this.accessLog.end(connection, flag, cause, nowMs)
  }

  /** Its row in the traffic counters. A connection that ends before its destination is known has one, too. */
  private rowOf({ direction, source, stage }: Connection): number {
    if (stage.state !== 'unrouted') return stage.row
    const reporter = direction === 'outbound' ? 'source' : 'destination'
    const row = this.counters.row(reporter, source, 'unknown')
    this.counters.opened(row)
    return row
  }

  /** Aborts connections that were quiet for too long. `nowMs` is monotonic. */
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

  /** Aborts the connections that `condemned` selects. @returns how many. */
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

  /** Whether a connection is open that was accepted at or before this wall-clock time. */
  hasOlderThan(timeMs: number): boolean {
    return this.oldest !== undefined && this.oldest.openedAtMs <= timeMs
  }

  /** An open connection as the admin API shows it. */
  find(id: number): ConnectionView | undefined {
    for (const connection of this.all()) if (connection.id === id) return viewOf(connection)
    return undefined
  }

  /** The last connections that were refused or aborted, newest first. */
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

  /** Oldest first. No connection may be aborted during the iteration. */
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

  /**
   * Clears its links: if the ended object were in the old generation of the heap, it would keep its successors alive.
   */
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
 * Number of connections in one direction, in total and by caller. A single caller may reach the limit for one caller;
 * several share the total, so that a new caller finds room.
 */
class Tally {
  private readonly all: SharedLimit
  private readonly mostOfSource: number
  /** Zero entries are kept: callers are few, and deleting them would be churn. */
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
