/**
 * Handles a connection that a local application opens.
 *
 *   accept    which service calls (known from the listener) and what it dialed (known from the kernel)
 *   route     which service is called
 *   reach     an instance of it, on this host or through a tunnel (reach.ts)
 *   splice    bytes in both directions until both sides are done
 *
 * The application may send before an instance has confirmed: early-bytes.ts.
 */
import type { Socket } from 'node:net'
import { MeshError } from '../../lib/errors.ts'
import { canonicalIp, formatAddress, type SocketAddress } from '../../model/address.ts'
import { type CapturedBy, destinationOf } from '../capture/original-destination.ts'
import { callerOf, endIfForgotten, forgetRedirected } from '../capture/tracking.ts'
import { SocketStream } from '../io/socket-stream.ts'
import type { AddressRoute } from '../route/by-address.ts'
import { addressOf, type Connection, type Open } from './connection.ts'
import { ReplayableBytes } from './early-bytes.ts'
import { asMeshError, flagOf, isTunnelLoss } from './ending.ts'
import { noteFailure, Reach, type Reached, type Target } from './reach.ts'
import { logBrokenOff, refuse } from './refuse.ts'
import { splice } from './splice.ts'
import type { Listener, WorkerContext } from './worker-context.ts'

/** The called service and instance. */
interface Route extends Target {
  /** The dialed address, when no endpoint serves the instance there. */
  readonly unserved?: SocketAddress
}

/** Handles one accepted connection (paused, half-open allowed) until its end. Never rejects. */
export async function carryOutbound(
  context: WorkerContext,
  socket: Socket,
  listener: Listener,
): Promise<void> {
  const account = context.localAccount(listener.caller)
  if (!context.connections.hasRoom('outbound', listener.caller, account)) {
    context.workerCounters.inc('overflow')
    if (context.connections.isShortOfDescriptors(account)) context.noteLimit('descriptors')
    const forget = listener.capturedBy === 'redirect' ? trackedEnds(socket) : undefined
    socket.resetAndDestroy()
    forget?.()
    return
  }
  const connection = context.connections.add('outbound', listener.caller, account, socket)
  context.connections.useDescriptors(connection, 1)
  const downstream = new SocketStream(socket, 'shared')
  downstream.chargeTo(account)
  if (listener.capturedBy === 'redirect') downstream.afterReset = trackedEnds(socket)
  const early = new ReplayableBytes(downstream, account)
  // A variable first, then the assignment, here and below: docs/performance.md, "Garbage".
  const abort: Connection['abort'] = (_flag, reason) => {
    // The ending is recorded after the socket has closed, when its address is no longer available.
    connection.from = addressOf(socket)
    early.giveUp(reason)
  }
  connection.abort = abort
  try {
    // Fast path: no await when everything is loaded. Each await costs more than the decision itself.
    if (context.snapshot().version === 0) await firstSnapshot(context)
    const wanted = wantedBy(context, socket, listener, connection)
    const target = route(context, wanted) ?? (await routeLater(context, listener.caller, wanted))
    const destination = target.service
    const reach = new Reach(context, connection, early, target)
    const { row } = reach
    context.connections.setDestination(connection, { state: 'reaching', destination, row, reach })
    if (target.unserved !== undefined) throw withoutProxy(target.unserved, destination)
    join(context, connection, { downstream, early, reach, reached: await reach.run() })
  } catch (error) {
    refuse(context, connection, error)
    early.release()
    downstream.reset()
  }
}

async function firstSnapshot(context: WorkerContext): Promise<void> {
  await context.until(() => context.snapshot().version > 0 || undefined, context.timeouts.readyMs)
}

/** The destination: a service by name, or an address. */
function wantedBy(
  context: WorkerContext,
  socket: Socket,
  listener: Listener,
  connection: Connection,
): string | SocketAddress {
  if (listener.destination !== undefined) return listener.destination
  const capturedBy = listener.capturedBy ?? 'redirect'
  const arrivedAt = destinationOf(socket, capturedBy)
  const address =
    capturedBy === 'transparent' ? beforeTranslation(context, socket, arrivedAt) : arrivedAt
  connection.originalDestination = address
  if (address === undefined || isOwn(socket, address, { capturedBy, listener: listener.address })) {
    context.workerCounters.inc('captureRefused')
    throw new MeshError(
      'HM_CAPTURE_SELF',
      `Refused a connection made to the capture port ${listener.address.port} itself`,
      { hint: 'Applications dial the service; only capture rules lead to a capture port' },
    )
  }
  return address
}

/**
 * Other programs' rules may translate the address of a connection that is already diverted (a container's published
 * port on this host). If no service is known at the translated address, the kernel is asked for the dialed one.
 */
function beforeTranslation(
  context: WorkerContext,
  socket: Socket,
  arrivedAt: SocketAddress | undefined,
): SocketAddress | undefined {
  if (arrivedAt === undefined || context.routes.find(arrivedAt) !== undefined) return arrivedAt
  const dialed = destinationOf(socket, 'redirect')
  return dialed !== undefined && context.routes.find(dialed) !== undefined ? dialed : arrivedAt
}

/**
 * Keeps connection tracking in step with a redirected connection. Returns a function to be called once we have reset
 * the connection; also makes sure that the caller is notified when tracking itself has caused the end.
 */
function trackedEnds(socket: Socket): (() => void) | undefined {
  const caller = callerOf(socket)
  const wanted = destinationOf(socket, 'redirect')
  if (caller === undefined || wanted === undefined) return undefined
  socket.on('error', () => endIfForgotten(caller, wanted))
  return () => forgetRedirected(caller, wanted)
}

/**
 * Whether the connection was made to the capture port itself. A transparent listener accepts connections dialed to its
 * own address, and those that TPROXY diverts. After REDIRECT the local address (a system call) is read only when the
 * port matches.
 */
function isOwn(
  socket: Socket,
  address: SocketAddress,
  by: { readonly capturedBy: CapturedBy; readonly listener: SocketAddress },
): boolean {
  if (address.port !== by.listener.port) return false
  if (by.capturedBy === 'transparent') return address.ip === by.listener.ip
  return address.ip === canonicalIp(socket.localAddress ?? '')
}

/** Looks the destination up in the current snapshot; undefined when that has no such service. */
function route(context: WorkerContext, wanted: string | SocketAddress): Route | undefined {
  const found: AddressRoute | undefined =
    typeof wanted === 'string'
      ? { service: wanted, endpointKey: undefined }
      : context.routes.find(wanted)
  const known = found === undefined ? undefined : context.snapshot().services.get(found.service)
  if (found === undefined || known === undefined) return undefined
  const service = known.name
  const [cluster] = known.clusters
  const { endpointKey, isUnserved } = found
  if (typeof wanted === 'string' || (endpointKey === undefined && isUnserved !== true))
    return { service, cluster, pinned: undefined }
  const pinned = cluster.endpoints.find((endpoint) => endpoint.key === endpointKey)
  return pinned === undefined
    ? { service, cluster, pinned, unserved: wanted }
    : { service, cluster, pinned }
}

/** Neither another instance nor a connection past the mesh would be what the application asked for. */
function withoutProxy(wanted: SocketAddress, service: string): MeshError {
  return new MeshError(
    'HM_ROUTE_NO_PROXY',
    `Cannot reach ${formatAddress(wanted)}: no proxy serves this instance of ${service} now`,
    {
      hint: 'Start hostmesh, or its sidecar, on that host; or name the service in capture.permissive while it moves into the mesh',
    },
  )
}

/** Waits for a snapshot that has the service. */
async function routeLater(
  context: WorkerContext,
  caller: string,
  wanted: string | SocketAddress,
): Promise<Route> {
  const later = await context.until(() => {
    const found = route(context, wanted)
    if (found === undefined && typeof wanted !== 'string') context.want(caller, wanted)
    return found
  }, context.timeouts.readyMs)
  if (later !== undefined) return later
  const text = typeof wanted === 'string' ? wanted : formatAddress(wanted)
  throw new MeshError('HM_ROUTE_UNKNOWN', `Cannot route to ${text}: no mesh service is known there`)
}

function join(
  context: WorkerContext,
  connection: Connection,
  parts: { downstream: SocketStream; early: ReplayableBytes; reach: Reach; reached: Reached },
): void {
  const { downstream, early } = parts
  const { row, target } = parts.reach
  const { stream: upstream, endpoint, peer, certificates, decidedHere } = parts.reached
  const stage: Open = {
    state: 'open',
    destination: target.service,
    row,
    endpoint: endpoint.key,
    peer,
    decidedFor: decidedHere ? endpoint.service : undefined,
    stream: upstream,
    local: downstream,
  }
  connection.stage = stage
  connection.connectedMs = performance.now()
  context.counters.connected(row, connection.connectedMs - connection.startedMs)
  if (certificates !== undefined) context.connections.bindCertificates(connection, certificates)
  if (upstream instanceof SocketStream) context.connections.useDescriptors(connection, 2)
  const finish = (flag: Parameters<typeof context.connections.end>[1], reason?: unknown): void => {
    context.connections.end(connection, flag, reason)
    context.balancer.finished(endpoint)
  }
  const abort: Connection['abort'] = (flag, reason) => {
    logBrokenOff(context, connection, flag, reason)
    finish(flag, reason)
    upstream.reset()
    downstream.reset()
  }
  connection.abort = abort
  connection.firstSentMs = early.firstMs
  connection.sentBytes += early.bytes.length
  context.counters.sent(row, early.bytes.length)
  early.handOver(upstream)
  // Without a tunnel the other socket may keep the chunk: this one then reads into memory of its own, or chunks are
  // copied.
  const mayKeep = upstream instanceof SocketStream
  if (mayKeep && !early.isReading) downstream.useOwnMemory()
  splice(
    {
      connection,
      stage,
      counters: context.counters,
      downstream,
      upstream,
      copies: mayKeep && early.isReading,
      onEnding: (ending) => {
        if (ending.kind === 'done') finish('-')
        else if (ending.side === 'downstream') finish('DC', ending.reason)
        else {
          // A reset by the application is not counted against the instance; the loss of its tunnel is.
          if (isTunnelLoss(ending.reason)) noteFailure(context, target, endpoint, ending.reason)
          const flag = flagOf(ending.reason)
          logBrokenOff(context, connection, flag, asMeshError(ending.reason))
          finish(flag, ending.reason)
        }
      },
    },
    early.hasEnded,
  )
}
