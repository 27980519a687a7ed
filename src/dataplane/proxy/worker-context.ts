/**
 * What the handling of a connection, outbound or inbound, needs from its worker: the current snapshot and the parts
 * that it uses. Built by worker.ts, the only place that knows where each part comes from.
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
  /** For reaching one instance. */
  readonly connectMs: number
  /** For a peer's preface. */
  readonly handshakeMs: number
  /** For waiting for a snapshot, a policy or a certificate that has not arrived yet. */
  readonly readyMs: number
}

/** The parts of one worker that connections use. */
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
  /** The outcomes of the last connections. */
  readonly outcomes: Outcomes
  readonly probes: ProbeLimit
  /** The current snapshot: read it once for each decision. */
  snapshot(): Snapshot
  /** Something was refused because a limit was reached. */
  noteLimit(limit: LimitName): void
  /** The account of a calling service of this host. */
  localAccount(service: string): Account
  /** The instance of a service on this host: the one with this ID, or any when `id` is undefined. */
  localInstance(service: string, id: string | undefined): LocalService | undefined
  /** Whether the host is shutting down. */
  isDraining(): boolean
  /**
   * Reports that a local service dialed an address that the snapshot does not have: its service may then be followed.
   */
  want(caller: string, address: SocketAddress): void
  /** Calls `look` after every change, and once a second, until it returns a value or `timeoutMs` has passed. */
  until<T>(look: () => T | undefined, timeoutMs: number): Promise<T | undefined>
}

/**
 * Whether a decision for `destination` must wait for its policy. A policy that does not arrive in time denies: see
 * evaluate().
 */
export function isPolicyAwaited(context: WorkerContext, destination: string): boolean {
  return !context.snapshot().policies.has(destination)
}

/** Waits until the policy of `destination` is loaded, or the timeout has passed. */
export async function awaitPolicy(context: WorkerContext, destination: string): Promise<void> {
  await context.until(
    () => (isPolicyAwaited(context, destination) ? undefined : true),
    context.timeouts.readyMs,
  )
}

/** Where a connection of a local application was accepted. */
export interface Listener {
  /** The calling service. The kernel decides it: by the capture rule, or by the port. */
  readonly caller: string
  /** The called service, for explicit upstreams; undefined for capture, where the kernel has the dialed address. */
  readonly destination: string | undefined
  /** How connections are diverted to a capture port; undefined for explicit upstreams. */
  readonly capturedBy: CapturedBy | undefined
  /** The listener's own address. */
  readonly address: SocketAddress
}
