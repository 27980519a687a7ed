/**
 * The story of a connection that a local application opens.
 *
 *   take      who calls (which door it came through) and what it asked for (the kernel knows)
 *   route     which service that is
 *   balance   which instance, and another one when that cannot be reached
 *   carry     on this host: deliver; elsewhere: a stream of the tunnel, or a Connect peer's connection
 *   splice    bytes both ways until both sides are done
 *
 * The application may speak before an instance has confirmed: what it says goes along with the opening of
 * the stream and is kept until the confirmation, so that it can be said again to another instance.
 */
import type { Socket } from 'node:net'
import { describeError, MeshError } from '../../lib/errors.ts'
import { canonicalIp, formatAddress, type SocketAddress } from '../../model/address.ts'
import type { Endpoint } from '../../model/endpoint.ts'
import type { MeshService } from '../../model/snapshot.ts'
import { type CapturedBy, destinationOf } from '../capture/original-destination.ts'
import { callerOf, endIfForgotten, forgetRedirected } from '../capture/tracking.ts'
import { dialLocal } from '../deliver/dial-local.ts'
import { localDial } from '../deliver/local-dial.ts'
import type { ByteStream } from '../io/byte-stream.ts'
import { resetOnClose } from '../io/linger.ts'
import { SocketStream } from '../io/socket-stream.ts'
import { evaluate } from '../policy/evaluate.ts'
import { encodePreface } from '../tunnel/preface.ts'
import type { Session } from '../tunnel/session.ts'
import type { TunnelStream } from '../tunnel/stream.ts'
import { addressOf, type Connection } from './connection-table.ts'
import { ReplayableBytes } from './early-bytes.ts'
import { asMeshError, failureCostOf, flagOf, isTunnelLoss, mayTryAnother } from './ending.ts'
import { awaitPolicy, type Door, isPolicyAwaited, type Plane } from './plane.ts'
import { logBrokenOff, refuse } from './refuse.ts'
import { splice } from './splice.ts'

/** Instances tried for one connection. */
const MAX_TRIES = 3

/** A service, and the one instance that is meant when the application asked for its address. */
interface Target {
  readonly service: MeshService
  readonly pinned: Endpoint | undefined
  /** The address that was asked for, when no endpoint serves the instance there. */
  readonly unserved?: SocketAddress
}

/** A way to the application at the other end. */
interface Carrier {
  readonly upstream: ByteStream
  readonly endpoint: Endpoint
  readonly service: MeshService
}

/** Carries one accepted connection (paused, half-open allowed) to its end. Never rejects. */
export async function carryOutbound(plane: Plane, socket: Socket, door: Door): Promise<void> {
  const account = plane.localAccount(door.caller)
  if (!plane.connections.hasRoom('outbound', door.caller, account)) {
    plane.workerCounters.inc('overflow')
    if (plane.connections.isShortOfDescriptors(account)) plane.noteLimit('descriptors')
    const forget = door.capturedBy === 'redirect' ? trackedEnds(socket) : undefined
    socket.resetAndDestroy()
    forget?.()
    return
  }
  const connection = plane.connections.add('outbound', door.caller, account)
  plane.connections.useDescriptors(connection, 1)
  const downstream = new SocketStream(socket, 'shared')
  downstream.chargeTo(account)
  const early = new ReplayableBytes(downstream, account)
  connection.local = downstream
  connection.caller = socket
  if (door.capturedBy === 'redirect') downstream.afterReset = trackedEnds(socket)
  // Named first, then assigned, here and below: docs/performance.md, "Garbage".
  const abort: Connection['abort'] = (_flag, reason) => {
    // The ending is recorded after the socket has gone, and that could not say its address any more.
    connection.downstream = addressOf(socket)
    early.giveUp(reason)
  }
  connection.abort = abort
  try {
    // What is there is taken without a promise: each costs more than the decision itself.
    if (plane.snapshot().version === 0) await firstSnapshot(plane)
    const wanted = wantedBy(plane, socket, door, connection)
    const target = route(plane, wanted) ?? (await routeLater(plane, door.caller, wanted))
    plane.connections.know(connection, target.service.name)
    const carrier = await reachAnInstance(plane, connection, early, target)
    connection.endpoint = carrier.endpoint.key
    connection.state = 'open'
    join(plane, connection, { downstream, early, carrier })
  } catch (error) {
    refuse(plane, connection, error)
    early.release()
    downstream.reset()
  }
}

async function firstSnapshot(plane: Plane): Promise<void> {
  await plane.until(() => plane.snapshot().version > 0 || undefined, plane.timeouts.readyMs)
}

/** What the application asked for: a service by name, or an address. */
function wantedBy(
  plane: Plane,
  socket: Socket,
  door: Door,
  connection: Connection,
): string | SocketAddress {
  if (door.destination !== undefined) return door.destination
  const capturedBy = door.capturedBy ?? 'redirect'
  const arrivedAt = destinationOf(socket, capturedBy)
  const address = capturedBy === 'transparent' ? untranslated(plane, socket, arrivedAt) : arrivedAt
  connection.wanted = address
  if (address === undefined || isOwn(socket, address, { capturedBy, door: door.address })) {
    plane.workerCounters.inc('captureRefused')
    throw new MeshError(
      'HM_CAPTURE_SELF',
      `Refused a connection made to the capture port ${door.address.port} itself`,
      { hint: 'Applications dial the service; only capture rules lead to a capture port' },
    )
  }
  return address
}

/**
 * Rules of others may translate what is diverted already (the published port of a container on this host): where nothing of the mesh is,
 * the kernel is asked what was dialed.
 */
function untranslated(
  plane: Plane,
  socket: Socket,
  arrivedAt: SocketAddress | undefined,
): SocketAddress | undefined {
  if (arrivedAt === undefined || plane.routes.find(arrivedAt) !== undefined) return arrivedAt
  const dialed = destinationOf(socket, 'redirect')
  return dialed !== undefined && plane.routes.find(dialed) !== undefined ? dialed : arrivedAt
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
  by: { readonly capturedBy: CapturedBy; readonly door: SocketAddress },
): boolean {
  if (address.port !== by.door.port) return false
  if (by.capturedBy === 'transparent') return address.ip === by.door.ip
  return address.ip === canonicalIp(socket.localAddress ?? '')
}

/** By the snapshot of the moment; undefined when that knows no such service. */
function route(plane: Plane, wanted: string | SocketAddress): Target | undefined {
  const { services } = plane.snapshot()
  if (typeof wanted === 'string') {
    const service = services.get(wanted)
    return service === undefined ? undefined : { service, pinned: undefined }
  }
  const found = plane.routes.find(wanted)
  const service = found === undefined ? undefined : services.get(found.service)
  if (found === undefined || service === undefined) return undefined
  if (found.isUnserved === true) return { service, pinned: undefined, unserved: wanted }
  const { endpointKey } = found
  if (endpointKey === undefined) return { service, pinned: undefined }
  const pinned = service.clusters[0].endpoints.find((endpoint) => endpoint.key === endpointKey)
  return pinned === undefined ? { service, pinned, unserved: wanted } : { service, pinned }
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
  plane: Plane,
  caller: string,
  wanted: string | SocketAddress,
): Promise<Target> {
  const later = await plane.until(() => {
    const found = route(plane, wanted)
    if (found === undefined && typeof wanted !== 'string') plane.want(caller, wanted)
    return found
  }, plane.timeouts.readyMs)
  if (later !== undefined) return later
  const text = typeof wanted === 'string' ? wanted : formatAddress(wanted)
  throw new MeshError('HM_ROUTE_UNKNOWN', `Cannot route to ${text}: no mesh service is known there`)
}

async function reachAnInstance(
  plane: Plane,
  connection: Connection,
  early: ReplayableBytes,
  target: Target,
): Promise<Carrier> {
  if (target.unserved !== undefined) throw withoutProxy(target.unserved, target.service.name)
  const tried = new Set<string>()
  let failure: unknown
  const giveUpAtMs = connection.startedMs + 2 * plane.timeouts.connectMs
  const mayMove = (): boolean =>
    target.pinned === undefined &&
    tried.size < MAX_TRIES &&
    performance.now() < giveUpAtMs &&
    plane.balancer.hasOther(target.service.clusters[0].endpoints, tried)
  while (tried.size < MAX_TRIES && (tried.size === 0 || performance.now() < giveUpAtMs)) {
    const endpoint =
      target.pinned ?? plane.balancer.pick(target.service.clusters[0].endpoints, tried)
    if (endpoint === undefined || tried.has(endpoint.key)) break
    tried.add(endpoint.key)
    connection.askedMs = performance.now()
    plane.balancer.started(endpoint)
    try {
      const upstream = endpoint.local
        ? await deliverHere(plane, connection, early, endpoint)
        : await tunnelTo(plane, connection, early, {
            endpoint,
            service: target.service,
            mayMove,
          })
      plane.balancer.succeeded(endpoint, performance.now() - connection.askedMs)
      plane.outcomes.succeeded('outbound', connection.source, endpoint.key)
      return { upstream, endpoint, service: target.service }
    } catch (error) {
      if (!early.isGone) {
        noteFailure(plane, target.service, endpoint, error)
        plane.outcomes.failed('outbound', connection.source, endpoint.key, error)
      }
      plane.balancer.finished(endpoint)
      if (connection.row !== undefined) plane.counters.connectFailed(connection.row)
      if (!mayTryAnother(error) || early.isGone) throw error
      failure = error
    }
  }
  if (failure !== undefined) throw asMeshError(failure)
  throw new MeshError(
    'HM_BALANCE_NO_ENDPOINT',
    `Cannot reach ${target.service.name}: it has no healthy instance`,
  )
}

/** Tells the balancer what a failure says against the instance. */
function noteFailure(plane: Plane, service: MeshService, endpoint: Endpoint, error: unknown): void {
  const cost = failureCostOf(error)
  if (cost === undefined && !mayTryAnother(error)) return
  const reason = describeError(error)
  const failure = cost === undefined ? undefined : { cost, reason }
  if (!plane.balancer.failed(endpoint, service.clusters[0].endpoints, failure)) return
  plane.workerCounters.inc('outlierEjections')
  plane.log.warn('Instance is avoided', { service: service.name, endpoint: endpoint.key, reason })
}

/** The instance runs on this host: no tunnel, but the same policy. */
async function deliverHere(
  plane: Plane,
  connection: Connection,
  early: ReplayableBytes,
  endpoint: Endpoint,
): Promise<ByteStream> {
  // Decided before anything is looked up: the policy is that of the service which is reached.
  connection.reached = endpoint.service
  if (isPolicyAwaited(plane, endpoint.service)) await awaitPolicy(plane, endpoint.service)
  const decision = evaluate(connection.source, plane.snapshot().policies.get(endpoint.service))
  if (!decision.allow)
    throw new MeshError(
      'HM_POLICY_DENIED',
      `Denied ${connection.source} -> ${endpoint.service}: ${decision.reason}`,
    )
  const local = plane.localInstance(endpoint.service, endpoint.id)
  const dial =
    local &&
    localDial(local, {
      service: connection.source,
      // Asked of the kernel only where somebody wants to know.
      address: local.delivery?.proxyHeader === true ? addressOf(connection.caller) : undefined,
      wanted: connection.wanted,
    })
  if (dial === undefined)
    throw new MeshError(
      'HM_DELIVER_UNKNOWN',
      `Cannot deliver to ${endpoint.id}: this host's configuration has no such service`,
    )
  connection.peer = undefined
  connection.isDecidedHere = true
  plane.connections.useDescriptors(connection, 2)
  const isFrugal = connection.account.isCrowd
  const upstream = await dialLocal({ ...dial, isFrugal }, plane.timeouts.connectMs, 'private')
  if (early.isGone) {
    upstream.reset()
    throw early.goneError()
  }
  upstream.chargeTo(connection.account)
  return upstream
}

async function tunnelTo(
  plane: Plane,
  connection: Connection,
  early: ReplayableBytes,
  target: { endpoint: Endpoint; service: MeshService; mayMove: () => boolean },
): Promise<ByteStream> {
  const { endpoint, service, mayMove } = target
  const credential =
    plane.credentials.of(connection.source) ??
    (await plane.until(() => plane.credentials.of(connection.source), plane.timeouts.readyMs))
  if (credential === undefined)
    throw new MeshError(
      'HM_TLS_NOT_READY',
      `Cannot call as ${connection.source}: ${plane.credentials.lacks(connection.source)}`,
      { hint: 'hostmesh certs shows what is missing' },
    )
  connection.peer = endpoint.tunnel
  connection.reached = endpoint.service
  connection.isDecidedHere = false
  const request = {
    source: connection.source,
    destination: endpoint.service,
    datacenter: endpoint.datacenter,
    address: endpoint.tunnel,
    credential,
    timeoutMs: Math.min(plane.timeouts.connectMs, service.clusters[0].connectTimeoutMs),
    again: () =>
      early.isGone || mayMove()
        ? undefined
        : (plane.credentials.of(connection.source) ?? credential),
  }
  const giveUpAtMs = performance.now() + plane.timeouts.connectMs
  for (;;) {
    // A leaf that arrived while we waited is the one to go on with.
    request.credential = plane.credentials.of(connection.source) ?? credential
    const reached = plane.pool.ready(request) ?? (await plane.pool.reach(request))
    if (early.isGone) {
      if (reached.kind === 'connection') reached.socket.destroy()
      throw early.goneError()
    }
    if (reached.kind === 'connection') {
      plane.connections.rest(connection, reached.footing)
      resetOnClose(reached.socket)
      plane.connections.useDescriptors(connection, 2)
      const upstream = new SocketStream(reached.socket, 'private')
      upstream.chargeTo(connection.account)
      return upstream
    }
    if (reached.session.isSuspect && mayMove())
      throw new MeshError(
        'HM_TUNNEL_UNANSWERED',
        `Cannot reach ${endpoint.key}: its host does not answer just now`,
      )
    if (reached.session.canOpen) {
      plane.workerCounters.inc('tunnelStreamsOpened')
      // Dialing the tunnel was a matter of this one connection; it says nothing of the next ones.
      connection.askedMs = performance.now()
      return openStream(plane, connection, early, {
        session: reached.session,
        endpoint,
        mayMove,
      })
    }
    // The session is at a limit, or was retired just now: then the pool dials another.
    const leftMs = giveUpAtMs - performance.now()
    if (leftMs <= 0)
      throw new MeshError(
        'HM_TUNNEL_FULL',
        `Cannot reach ${endpoint.key}: the tunnel had no room for ${plane.timeouts.connectMs} ms`,
      )
    await reached.session.room(leftMs)
  }
}

function openStream(
  plane: Plane,
  connection: Connection,
  early: ReplayableBytes,
  target: { session: Session; endpoint: Endpoint; mayMove: () => boolean },
): Promise<TunnelStream> {
  const stream: TunnelStream = target.session.open(
    encodePreface({
      source: connection.wanted === undefined ? undefined : addressOf(connection.caller),
      destination: connection.wanted,
      instance: target.endpoint.id,
      traceparent: undefined,
    }),
  )
  connection.stream = stream
  return new Promise((resolve, reject) => {
    const deadline = setTimeout(() => {
      stream.refuse('timeout')
      early.stopForwarding()
      reject(
        new MeshError(
          'HM_CONNECT_TIMEOUT',
          `Cannot reach ${target.endpoint.key}: no answer in ${plane.timeouts.connectMs} ms`,
        ),
      )
    }, plane.timeouts.connectMs)
    const confirmed = (): void => {
      clearTimeout(deadline)
      resolve(stream)
    }
    stream.onConfirmed = confirmed
    stream.mayMove = target.mayMove
    stream.receiver = {
      onBytes: () => 0,
      onEnd: () => undefined,
      onClosed: () => undefined,
      onWritable: () => undefined,
      onReset: (reason) => {
        clearTimeout(deadline)
        early.stopForwarding()
        reject(asMeshError(reason))
      },
    }
    early.forwardTo(stream, (gone) => {
      clearTimeout(deadline)
      stream.reset()
      reject(gone)
    })
  })
}

function join(
  plane: Plane,
  connection: Connection,
  parts: { downstream: SocketStream; early: ReplayableBytes; carrier: Carrier },
): void {
  const { downstream, early, carrier } = parts
  const { upstream, endpoint, service } = carrier
  const finish = (flag: Parameters<typeof plane.connections.end>[1], reason?: unknown): void => {
    plane.connections.end(connection, flag, reason)
    plane.balancer.finished(endpoint)
  }
  const abort: Connection['abort'] = (flag, reason) => {
    logBrokenOff(plane, connection, flag, reason)
    finish(flag, reason)
    upstream.reset()
    downstream.reset()
  }
  connection.abort = abort
  connection.sentBytes += early.bytes.length
  plane.counters.sent(connection.row ?? 0, early.bytes.length)
  early.handOver(upstream)
  // Without a tunnel the chunk may be kept: this socket then reads into memory of its own, or what it reads is copied.
  const mayKeep = upstream instanceof SocketStream
  if (mayKeep && !early.isReading) downstream.useOwnMemory()
  splice(
    {
      connection,
      counters: plane.counters,
      downstream,
      upstream,
      copies: mayKeep && early.isReading,
      onEnding: (ending) => {
        if (ending.kind === 'done') finish('-')
        else if (ending.side === 'downstream') finish('DC', ending.reason)
        else {
          // An application reset is not counted against the instance; a tunnel that broke under it is.
          if (isTunnelLoss(ending.reason)) noteFailure(plane, service, endpoint, ending.reason)
          const flag = flagOf(ending.reason)
          logBrokenOff(plane, connection, flag, asMeshError(ending.reason))
          finish(flag, ending.reason)
        }
      },
    },
    early.hasEnded,
  )
}
