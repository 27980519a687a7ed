/**
 * The story of a connection that a local application opens.
 *
 *   take      who calls (which listener it came through) and what it asked for (the kernel knows)
 *   route     which service that is
 *   reach     an instance of it, on this host or through a tunnel (reach.ts)
 *   splice    bytes both ways until both sides are done
 *
 * The application may speak before an instance has confirmed: early-bytes.ts.
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

/** What was asked for. */
interface Route extends Target {
  /** The address that was asked for, when no endpoint serves the instance there. */
  readonly unserved?: SocketAddress
}

/** Carries one accepted connection (paused, half-open allowed) to its end. Never rejects. */
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
  // Named first, then assigned, here and below: docs/performance.md, "Garbage".
  const abort: Connection['abort'] = (_flag, reason) => {
    // The ending is recorded after the socket has gone, and that could not say its address any more.
    connection.from = addressOf(socket)
    early.giveUp(reason)
  }
  connection.abort = abort
  try {
    // Fast path: no await when everything is there. Each costs more than the decision itself.
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

/** What the application asked for: a service by name, or an address. */
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
  connection.wanted = address
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
 * Rules of others may translate what is diverted already (the published port of a container on this host): where nothing of the mesh is,
 * the kernel is asked what was dialed.
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
 * Keeps connection tracking true to a redirected connection: returns what to do once we have reset it, and sees to it
 * that its caller hears of an end which tracking has caused.
 */
function trackedEnds(socket: Socket): (() => void) | undefined {
  const caller = callerOf(socket)
  const wanted = destinationOf(socket, 'redirect')
  if (caller === undefined || wanted === undefined) return undefined
  socket.on('error', () => endIfForgotten(caller, wanted))
  return () => forgetRedirected(caller, wanted)
}

/**
 * Whether the connection was made to the capture port itself. A transparent listener accepts what was dialed at its
 * own address, and what TPROXY hands it. After REDIRECT the system call is for those that could be.
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

/** By the snapshot of the moment; undefined when that knows no such service. */
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

/** Another instance is not what was asked for, and the way past the mesh is not one. */
function withoutProxy(wanted: SocketAddress, service: string): MeshError {
  return new MeshError(
    'HM_ROUTE_NO_PROXY',
    `Cannot reach ${formatAddress(wanted)}: no proxy serves this instance of ${service} now`,
    {
      hint: 'Start hostmesh, or its sidecar, on that host; or name the service in capture.permissive while it moves into the mesh',
    },
  )
}

/** Waits for a snapshot that knows it. */
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
  connection.sentBytes += early.bytes.length
  context.counters.sent(row, early.bytes.length)
  early.handOver(upstream)
  // Without a tunnel the chunk may be kept: this socket then reads into memory of its own, or what it reads is copied.
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
          // An application reset is not counted against the instance; a tunnel that broke under it is.
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
