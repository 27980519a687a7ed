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
import type { ByteStream, Receiver, WriteResult } from '../io/byte-stream.ts'
import { resetOnClose } from '../io/linger.ts'
import { SocketStream } from '../io/socket-stream.ts'
import { evaluate } from '../policy/evaluate.ts'
import type { Account } from '../tunnel/accounts.ts'
import { encodePreface } from '../tunnel/preface.ts'
import type { Session } from '../tunnel/session.ts'
import { type TunnelStream, UNCONFIRMED_LIMIT } from '../tunnel/stream.ts'
import { addressOf, type Connection } from './connection-table.ts'
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
  const downstream = new Downstream(socket, account)
  connection.local = downstream.stream
  connection.caller = socket
  if (door.capturedBy === 'redirect') downstream.stream.afterReset = trackedEnds(socket)
  // Named first, then assigned, here and below: docs/performance.md, "Garbage".
  const abort: Connection['abort'] = (_flag, reason) => {
    // The ending is recorded after the socket has gone, and that could not say its address any more.
    connection.downstream = addressOf(socket)
    downstream.giveUp(reason)
  }
  connection.abort = abort
  try {
    // What is there is taken without a promise: each costs more than the decision itself.
    if (plane.snapshot().version === 0) await firstSnapshot(plane)
    const wanted = wantedBy(plane, socket, door, connection)
    const target = route(plane, wanted) ?? (await routeLater(plane, door.caller, wanted))
    plane.connections.know(connection, target.service.name)
    const carrier = await reachAnInstance(plane, connection, downstream, target)
    connection.endpoint = carrier.endpoint.key
    connection.state = 'open'
    join(plane, connection, downstream, carrier)
  } catch (error) {
    refuse(plane, connection, error)
    downstream.forget()
    downstream.stream.reset()
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
  downstream: Downstream,
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
        ? await deliverHere(plane, connection, endpoint)
        : await tunnelTo(plane, connection, downstream, {
            endpoint,
            service: target.service,
            mayMove,
          })
      plane.balancer.succeeded(endpoint, performance.now() - connection.askedMs)
      plane.outcomes.succeeded('outbound', connection.source, endpoint.key)
      return { upstream, endpoint, service: target.service }
    } catch (error) {
      if (!downstream.isGone) {
        noteFailure(plane, target.service, endpoint, error)
        plane.outcomes.failed('outbound', connection.source, endpoint.key, error)
      }
      plane.balancer.finished(endpoint)
      if (connection.row !== undefined) plane.counters.connectFailed(connection.row)
      if (!mayTryAnother(error) || downstream.isGone) throw error
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
  upstream.chargeTo(connection.account)
  return upstream
}

async function tunnelTo(
  plane: Plane,
  connection: Connection,
  downstream: Downstream,
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
      downstream.isGone || mayMove()
        ? undefined
        : (plane.credentials.of(connection.source) ?? credential),
  }
  const giveUpAtMs = performance.now() + plane.timeouts.connectMs
  for (;;) {
    // A leaf that arrived while we waited is the one to go on with.
    request.credential = plane.credentials.of(connection.source) ?? credential
    const reached = plane.pool.ready(request) ?? (await plane.pool.reach(request))
    if (downstream.isGone) {
      if (reached.kind === 'connection') reached.socket.destroy()
      throw downstream.goneError()
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
      return openStream(plane, connection, downstream, {
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
  downstream: Downstream,
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
      downstream.detach()
      reject(
        new MeshError(
          'HM_CONNECT_TIMEOUT',
          `Cannot reach ${target.endpoint.key}: no answer in ${plane.timeouts.connectMs} ms`,
        ),
      )
    }, plane.timeouts.connectMs)
    const confirmed = (): void => {
      clearTimeout(deadline)
      downstream.detach()
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
        downstream.detach()
        reject(asMeshError(reason))
      },
    }
    downstream.speakInto(stream, (gone) => {
      clearTimeout(deadline)
      stream.reset()
      reject(gone)
    })
  })
}

function join(
  plane: Plane,
  connection: Connection,
  downstream: Downstream,
  carrier: Carrier,
): void {
  const { upstream, endpoint, service } = carrier
  // What stays as long as the connection holds this, not the early stage around it.
  const { stream } = downstream
  const finish = (flag: Parameters<typeof plane.connections.end>[1], reason?: unknown): void => {
    plane.connections.end(connection, flag, reason)
    plane.balancer.finished(endpoint)
  }
  const abort: Connection['abort'] = (flag, reason) => {
    logBrokenOff(plane, connection, flag, reason)
    finish(flag, reason)
    upstream.reset()
    stream.reset()
  }
  connection.abort = abort
  if (downstream.isGone) {
    upstream.reset()
    throw downstream.goneError()
  }
  downstream.handOver(upstream, {
    connection,
    counters: plane.counters,
    onEnding: (ending) => {
      if (ending.kind === 'done') finish('-')
      else if (ending.side === 'downstream') finish('DC', ending.reason)
      else {
        // The application breaking off is its own affair; a tunnel that broke under it is the instance's.
        if (isTunnelLoss(ending.reason)) noteFailure(plane, service, endpoint, ending.reason)
        const flag = flagOf(ending.reason)
        logBrokenOff(plane, connection, flag, asMeshError(ending.reason))
        finish(flag, ending.reason)
      }
    },
  })
}

/** The parts of a splice that {@link Downstream.handOver} does not know by itself. */
type HandOver = Pick<Parameters<typeof splice>[0], 'connection' | 'counters' | 'onEnding'>

/**
 * The application's side until an instance has confirmed: notices when it hangs up, lets it speak early, and
 * remembers what it said.
 */
class Downstream implements Receiver {
  readonly stream: SocketStream
  private readonly account: Account
  private gone: MeshError | undefined
  private said: Uint8Array[] = []
  private saidBytes = 0
  /** What of it the account knows of. */
  private heldBytes = 0
  private hasEnded = false
  private isReading = false
  private listener: TunnelStream | undefined
  private onGone: ((reason: MeshError) => void) | undefined

  constructor(socket: Socket, account: Account) {
    this.stream = new SocketStream(socket, 'shared')
    this.stream.receiver = this
    this.stream.chargeTo(account)
    this.account = account
  }

  /** Whether the application has hung up, or the connection was broken off. */
  get isGone(): boolean {
    return this.gone !== undefined
  }

  /** Why there is nobody to serve any more. */
  goneError(): MeshError {
    return this.gone ?? new MeshError('HM_CALLER_GONE', 'The caller hung up')
  }

  /** Ends the attempt from outside. */
  giveUp(reason: MeshError): void {
    this.gone = reason
    this.onGone?.(reason)
    this.stream.reset()
  }

  /** Lets the application speak into a stream that is not confirmed yet; all it said before is said again. */
  speakInto(stream: TunnelStream, onGone: (reason: MeshError) => void): void {
    this.listener = stream
    this.onGone = onGone
    this.say(stream, 0, UNCONFIRMED_LIMIT)
    if (this.hasEnded && this.saidBytes <= UNCONFIRMED_LIMIT) stream.end()
    this.isReading = true
    if (this.saidBytes < UNCONFIRMED_LIMIT && !this.account.isTight) this.stream.resume()
  }

  /** The attempt is over, either way. */
  detach(): void {
    this.listener = undefined
    this.onGone = undefined
  }

  /** An instance has confirmed: from here on the bytes run by themselves. */
  handOver(upstream: ByteStream, parts: HandOver): void {
    const saysAgain = this.isReading && upstream instanceof SocketStream
    parts.connection.sentBytes += this.saidBytes
    parts.counters.sent(parts.connection.row ?? 0, this.saidBytes)
    if (this.isReading) this.say(upstream, saysAgain ? 0 : UNCONFIRMED_LIMIT, this.saidBytes)
    if (this.hasEnded) upstream.end()
    this.forget()
    // Without a tunnel the chunk may be kept; this socket then reads into memory of its own.
    if (!this.isReading && upstream instanceof SocketStream) this.stream.useOwnMemory()
    splice({ ...parts, downstream: this.stream, upstream, copies: saysAgain }, this.hasEnded)
  }

  /** What was said is not needed any more. Called at least once, whatever becomes of the connection. */
  forget(): void {
    this.said = []
    this.account.hold(-this.heldBytes)
    this.heldBytes = 0
  }

  /** Writes what was said from one offset to another. */
  private say(to: ByteStream, from: number, until: number): void {
    let at = 0
    for (const bytes of this.said) {
      const part = bytes.subarray(Math.max(0, from - at), Math.max(0, until - at))
      if (part.length > 0) to.write(part)
      at += bytes.length
    }
  }

  onBytes(bytes: Uint8Array): WriteResult {
    const copy = Uint8Array.prototype.slice.call(bytes)
    this.said.push(copy)
    this.saidBytes += copy.length
    // Many that speak to somebody who does not answer are listened to later.
    if (this.saidBytes >= UNCONFIRMED_LIMIT || this.account.isTight) this.stream.pause()
    this.heldBytes += copy.length
    this.account.hold(copy.length)
    if (this.listener !== undefined)
      this.say(this.listener, this.saidBytes - copy.length, UNCONFIRMED_LIMIT)
    return 0
  }

  onEnd(): void {
    this.hasEnded = true
    if (this.saidBytes <= UNCONFIRMED_LIMIT) this.listener?.end()
  }

  onClosed(): void {
    // Our side has not finished, so it cannot be over in order.
  }

  onReset(reason: Error): void {
    this.gone = new MeshError('HM_CALLER_GONE', 'The caller hung up', { cause: reason })
    this.onGone?.(this.gone)
  }

  onWritable(): void {
    // Nothing is written to the application before the splice.
  }
}
