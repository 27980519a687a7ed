/**
 * What the two stories, outbound and inbound, have at hand in a worker: the current snapshot and the
 * stages they walk through. Built by worker.ts, the only place that knows where each part comes from.
 */
import type { Log } from '../../lib/log.ts'
import type { SocketAddress } from '../../model/address.ts'
import type { LocalService } from '../../model/service.ts'
import type { Snapshot } from '../../model/snapshot.ts'
import type { LimitName, TrafficCounters, WorkerCounters } from '../../telemetry/counters.ts'
import type { Balancer } from '../balance/picker.ts'
import type { CapturedBy } from '../capture/original-destination.ts'
import type { AddressIndex } from '../route/by-address.ts'
import type { Account } from '../tunnel/accounts.ts'
import type { Credentials } from '../tunnel/credentials.ts'
import type { TunnelPool } from '../tunnel/pool.ts'
import type { Arrivals } from './arrivals.ts'
import type { ConnectionTable } from './connection-table.ts'
import type { Outcomes } from './outcomes.ts'
import type { ProbeLimit } from './probe-limit.ts'

/** Deadlines of a connection, milliseconds. */
export interface ConnectionTimeouts {
  /** To reach one instance. */
  readonly connectMs: number
  /** For a peer's preface. */
  readonly handshakeMs: number
  /** To wait for a snapshot, a policy or a certificate that is still on its way. */
  readonly readyMs: number
}

/** The stages of one worker, and what they need of it. */
export interface WorkerContext {
  readonly log: Log
  readonly timeouts: ConnectionTimeouts
  readonly routes: AddressIndex
  readonly balancer: Balancer
  readonly credentials: Credentials
  readonly pool: TunnelPool
  readonly arrivals: Arrivals
  readonly connections: ConnectionTable
  readonly counters: TrafficCounters
  readonly workerCounters: WorkerCounters
  /** What became of the last connections. */
  readonly outcomes: Outcomes
  readonly probes: ProbeLimit
  /** The view to act on now: take it once for each decision. */
  snapshot(): Snapshot
  /** Something was refused because a limit was reached. */
  noteLimit(limit: LimitName): void
  /** The account of a calling service of this host. */
  localAccount(service: string): Account
  /** The instance of a service on this host: the one with this ID, or any when `id` is undefined. */
  localInstance(service: string, id: string | undefined): LocalService | undefined
  /** Whether the host is shutting down. */
  isDraining(): boolean
  /** Says that a local service asked for an address that the snapshot does not know: it may be followed then. */
  want(caller: string, address: SocketAddress): void
  /** Asks `look` again whenever something has changed, and once a second, until it answers or `timeoutMs` is over. */
  until<T>(look: () => T | undefined, timeoutMs: number): Promise<T | undefined>
}

/**
 * Whether somebody must wait before a connection to `destination` can be decided on. A policy that does not
 * come in time denies: see evaluate().
 */
export function isPolicyAwaited(context: WorkerContext, destination: string): boolean {
  return !context.snapshot().policies.has(destination)
}

/** Waits until the policy of `destination` is loaded, or the deadline is over. */
export async function awaitPolicy(context: WorkerContext, destination: string): Promise<void> {
  await context.until(
    () => (isPolicyAwaited(context, destination) ? undefined : true),
    context.timeouts.readyMs,
  )
}

/** How a listener on this host came by a connection. */
export interface Listener {
  /** The calling service, decided by the kernel: which rule, or which port, led here. */
  readonly caller: string
  /** The service that is meant, for explicit upstreams; undefined where the kernel knows the address. */
  readonly destination: string | undefined
  /** How connections get to a capture port; undefined for explicit upstreams. */
  readonly capturedBy: CapturedBy | undefined
  /** The listener's own address. */
  readonly address: SocketAddress
}
