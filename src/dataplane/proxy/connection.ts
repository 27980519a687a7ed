/**
 * One carried connection: what is known of it in every stage, and what only in its present stage.
 *
 * ```
 *   outbound: unrouted --> reaching ---> open --> half-closed
 *   inbound:  refused, or delivering --> open --> half-closed
 * ```
 *
 * It may end in any stage.
 */
import type { MeshError } from '../../lib/errors.ts'
import { canonicalIp, formatAddress, type SocketAddress } from '../../model/address.ts'
import type { ResponseFlag } from '../../model/response-flag.ts'
import type { Account } from '../tunnel/accounts.ts'
import type { Transport } from './access-log-line.ts'

/** An open socket that can be asked for its remote address: a system call. */
export interface RemoteEnd {
  readonly remoteAddress?: string | undefined
  readonly remotePort?: number | undefined
}

/** The part of a connection that may buffer bytes. */
export interface HoldingStream {
  readonly heldMemory: number
}

/** Mutable; written by the code that handles the connection at present. */
export interface Connection {
  readonly id: number
  readonly direction: 'outbound' | 'inbound'
  /** The calling service. */
  readonly source: string
  /** The account that the connection is charged to. */
  readonly account: Account
  /** The calling application: its socket, or its address; undefined when unknown. */
  from: RemoteEnd | SocketAddress | undefined
  /** The address that the application dialed; undefined when it called a service by name, or is unknown. */
  originalDestination: SocketAddress | undefined
  stage: Stage
  /** How bytes reach the other side, of the last instance that was tried; undefined before the first. */
  transport: Transport | undefined
  /** The identity of the other host's end, verified by its certificate. */
  peerSpiffeId: string | undefined
  /** Inbound: the server name of the TLS handshake. */
  serverName: string | undefined
  /** W3C trace context: of the caller's preface, or our own; undefined while the access log is off. */
  traceparent: string | undefined
  /** Number of descriptors that belong to this connection alone. */
  descriptors: number
  /** Wall clock, milliseconds. */
  readonly openedAtMs: number
  /** Monotonic; for durations. */
  readonly startedMs: number
  /** Monotonic: when the first bytes of the calling side could be passed on; 0 before that. */
  firstSentMs: number
  /** Monotonic: when the instance had confirmed; 0 before that. */
  connectedMs: number
  /** Milliseconds from the first bytes of the calling side to the first ones of the called side; -1 before these. */
  firstByteMs: number
  sentBytes: number
  receivedBytes: number
  /** Aborts the connection in its present stage, with this ending. */
  abort: (flag: ResponseFlag, reason: MeshError) => void
  sweptBytes: number
  quietSinceMs: number
  /** Its neighbors in the table, in order of age. */
  older: Connection | undefined
  newer: Connection | undefined
}

/** The stage of a connection, with what is known in it. */
export type Stage = Unrouted | Reaching | Refused | Delivering | Open

/** Outbound: the called service is not known yet. */
interface Unrouted {
  readonly state: 'unrouted'
}

/** Shared by all connections that have just been accepted. */
export const UNROUTED: Unrouted = { state: 'unrouted' }

/** The connection counts for a pair of services. */
interface Routed {
  /** The called service. */
  readonly destination: string
  /** Row of the pair in the traffic counters. */
  readonly row: number
}

/** Outbound: an instance is being reached. */
export interface Reaching extends Routed {
  readonly state: 'reaching'
  readonly reach: ReachProgress
}

/** The instance that is being tried. */
export interface ReachProgress extends HoldingStream {
  /** Its tunnel address; undefined on this host. */
  readonly peer: SocketAddress | undefined
  /** The service whose policy was applied on this host; undefined when another host decides. */
  readonly decidedFor: string | undefined
}

/** Inbound: refused, no application is dialed. */
export interface Refused extends Routed {
  readonly state: 'refused'
  readonly peer: SocketAddress | undefined
}

/** Inbound: the application is being dialed. */
export interface Delivering extends Routed {
  readonly state: 'delivering'
  readonly peer: SocketAddress | undefined
  /** The application's address. */
  readonly endpoint: string
  readonly stream: HoldingStream
}

/** Bytes move in both directions. */
export interface Open extends Routed {
  state: 'open' | 'half-closed'
  /** The serving instance: `<node>/<service id>`, or a local address. */
  readonly endpoint: string
  /** The peer's tunnel address; undefined on the same host. */
  readonly peer: SocketAddress | undefined
  /**
   * The service whose policy was applied on this host, so that a changed intention can end the connection. Differs from
   * the called service after a redirect or failover. Undefined when another host decided.
   */
  readonly decidedFor: string | undefined
  /** The side of the peer, or of the called application on this host. */
  readonly stream: HoldingStream
  /** The application's socket on this host. */
  readonly local: HoldingStream
}

/** What the admin API shows of a connection. */
export interface ConnectionView {
  readonly id: number
  readonly direction: 'outbound' | 'inbound'
  readonly source: string
  readonly destination: string | undefined
  readonly downstream: string | undefined
  readonly originalDestination: string | undefined
  readonly endpoint: string | undefined
  readonly peer: string | undefined
  readonly state: 'opening' | 'open' | 'half-closed'
  readonly openedAtMs: number
  readonly sentBytes: number
  readonly receivedBytes: number
}

/** The connection as the admin API shows it. */
export function viewOf(connection: Connection): ConnectionView {
  const { id, direction, source, stage, openedAtMs, sentBytes, receivedBytes } = connection
  return {
    id,
    direction,
    source,
    destination: destinationOf(stage),
    downstream: textOf(addressOf(connection.from)),
    originalDestination: textOf(connection.originalDestination),
    endpoint: endpointOf(stage),
    peer: textOf(peerOf(stage)),
    state: isOpen(stage) ? stage.state : 'opening',
    openedAtMs,
    sentBytes,
    receivedBytes,
  }
}

/** Whether bytes can move. */
export function isOpen(stage: Stage): stage is Open {
  return stage.state === 'open' || stage.state === 'half-closed'
}

/** The called service; undefined until it is known. */
export function destinationOf(stage: Stage): string | undefined {
  return stage.state === 'unrouted' ? undefined : stage.destination
}

/** The peer's tunnel address; for an outbound connection that is being reached, of the instance tried at present. */
export function peerOf(stage: Stage): SocketAddress | undefined {
  if (stage.state === 'unrouted') return undefined
  return stage.state === 'reaching' ? stage.reach.peer : stage.peer
}

/** The serving instance, as soon as it is chosen. */
export function endpointOf(stage: Stage): string | undefined {
  return 'endpoint' in stage ? stage.endpoint : undefined
}

/** The service whose policy was applied on this host. */
export function decidedFor(stage: Stage): string | undefined {
  if (stage.state === 'unrouted') return undefined
  if (stage.state === 'reaching') return stage.reach.decidedFor
  return isOpen(stage) ? stage.decidedFor : stage.destination
}

/** Buffered bytes. */
export function heldBy(stage: Stage): number {
  if (stage.state === 'reaching') return stage.reach.heldMemory
  if (stage.state === 'delivering') return stage.stream.heldMemory
  return isOpen(stage) ? stage.stream.heldMemory + stage.local.heldMemory : 0
}

/** The address of a remote end; undefined when it is unknown, or the socket is closed. */
export function addressOf(end: RemoteEnd | SocketAddress | undefined): SocketAddress | undefined {
  if (end === undefined || 'ip' in end) return end
  const ip = canonicalIp(end.remoteAddress ?? '')
  const port = end.remotePort
  return ip === undefined || port === undefined ? undefined : { ip, port }
}

/** An address as logs and the admin API show it. */
export function textOf(address: SocketAddress | undefined): string | undefined {
  return address === undefined ? undefined : formatAddress(address)
}
