/**
 * One carried connection: what is always known of it, and what only in its present stage.
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

/** A socket that can be asked where its other end is, as long as it is open: a system call. */
export interface RemoteEnd {
  readonly remoteAddress?: string | undefined
  readonly remotePort?: number | undefined
}

/** What of a connection may have bytes waiting in it. */
export interface HoldingStream {
  readonly heldMemory: number
}

/** Mutable; written by the story that has it in hand. */
export interface Connection {
  readonly id: number
  readonly direction: 'outbound' | 'inbound'
  /** The calling service. */
  readonly source: string
  /** Whom it is spent on. */
  readonly account: Account
  /** Where the calling application is: its socket, or an address; undefined when that is not known. */
  from: RemoteEnd | SocketAddress | undefined
  /** The address that the application asked for; undefined when it asked by name. */
  wanted: SocketAddress | undefined
  stage: Stage
  /** Descriptors that it has, as far as they are its own. */
  descriptors: number
  /** Wall clock, milliseconds. */
  readonly openedAtMs: number
  /** Monotonic; for durations. */
  readonly startedMs: number
  sentBytes: number
  receivedBytes: number
  /** Breaks the connection off in its present stage, with this ending. */
  abort: (flag: ResponseFlag, reason: MeshError) => void
  sweptBytes: number
  quietSinceMs: number
  /** Its neighbors in the table, by age. */
  older: Connection | undefined
  newer: Connection | undefined
}

/** How far a connection has come, and what is known of it there. */
export type Stage = Unrouted | Reaching | Refused | Delivering | Open

/** Outbound: which service is meant is not known yet. */
interface Unrouted {
  readonly state: 'unrouted'
}

/** The one object of those that have just been accepted. */
export const UNROUTED: Unrouted = { state: 'unrouted' }

/** It counts for a pair of services. */
interface Routed {
  /** The called service. */
  readonly destination: string
  /** Row of the pair in the traffic counters. */
  readonly row: number
}

/** Outbound: instances are tried. */
export interface Reaching extends Routed {
  readonly state: 'reaching'
  readonly reach: ReachProgress
}

/** What is known of the instance that is tried just now. */
export interface ReachProgress extends HoldingStream {
  /** Its tunnel address; undefined on this host. */
  readonly peer: SocketAddress | undefined
  /** The service whose policy was applied on this host; undefined where another host decides. */
  readonly decidedFor: string | undefined
}

/** Inbound: no application is dialed for it. */
export interface Refused extends Routed {
  readonly state: 'refused'
  readonly peer: SocketAddress | undefined
}

/** Inbound: the application is being connected to. */
export interface Delivering extends Routed {
  readonly state: 'delivering'
  readonly peer: SocketAddress | undefined
  /** The application's address. */
  readonly endpoint: string
  readonly stream: HoldingStream
}

/** Bytes run both ways. */
export interface Open extends Routed {
  state: 'open' | 'half-closed'
  /** Who serves it: `<node>/<service id>`, or a local address. */
  readonly endpoint: string
  /** The peer's tunnel address; undefined on the same host. */
  readonly peer: SocketAddress | undefined
  /**
   * The service whose policy was applied on this host, so that a changed intention may end the connection: another than the
   * called one after a redirect or failover. Undefined where another host decided.
   */
  readonly decidedFor: string | undefined
  /** Towards the peer, or the called application on this host. */
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
  readonly wanted: string | undefined
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
    wanted: textOf(connection.wanted),
    endpoint: endpointOf(stage),
    peer: textOf(peerOf(stage)),
    state: isOpen(stage) ? stage.state : 'opening',
    openedAtMs,
    sentBytes,
    receivedBytes,
  }
}

/** Whether bytes run. */
export function isOpen(stage: Stage): stage is Open {
  return stage.state === 'open' || stage.state === 'half-closed'
}

/** The called service; undefined until it is known. */
export function destinationOf(stage: Stage): string | undefined {
  return stage.state === 'unrouted' ? undefined : stage.destination
}

/** The peer's tunnel address, of an outbound connection that of the instance tried just now. */
export function peerOf(stage: Stage): SocketAddress | undefined {
  if (stage.state === 'unrouted') return undefined
  return stage.state === 'reaching' ? stage.reach.peer : stage.peer
}

/** Who serves it, as soon as that is decided. */
export function endpointOf(stage: Stage): string | undefined {
  return 'endpoint' in stage ? stage.endpoint : undefined
}

/** The service whose policy was applied on this host. */
export function decidedFor(stage: Stage): string | undefined {
  if (stage.state === 'unrouted') return undefined
  if (stage.state === 'reaching') return stage.reach.decidedFor
  return isOpen(stage) ? stage.decidedFor : stage.destination
}

/** Bytes that wait in it. */
export function heldBy(stage: Stage): number {
  if (stage.state === 'reaching') return stage.reach.heldMemory
  if (stage.state === 'delivering') return stage.stream.heldMemory
  return isOpen(stage) ? stage.stream.heldMemory + stage.local.heldMemory : 0
}

/** Where somebody is; undefined when it is not known, or the socket is closed. */
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
