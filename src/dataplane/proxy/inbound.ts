/**
 * Handles a connection that arrives for an application on this host.
 *
 *   accept    a peer whose service is verified by its certificate; over a tunnel, one of its streams
 *   preface   over a tunnel: which instance is called, and who the real client is
 *   policy    whether that service may reach ours: decided here, at the destination; a policy that is not loaded yet is
 *             awaited, and denies on timeout. Until here an arrival costs next to nothing (arrivals.ts)
 *   deliver   to the application's own address, only ever from our configuration
 *   splice    bytes in both directions until both sides are done
 *
 * Early bytes of the caller wait in the stream, and are dropped when it is refused.
 */
import { errorCode, MeshError } from '../../lib/errors.ts'
import { formatAddress, type SocketAddress } from '../../model/address.ts'
import { evaluate } from '../../model/evaluate.ts'
import { type LocalDial, startLocalDial } from '../deliver/dial-local.ts'
import { localDial } from '../deliver/local-dial.ts'
import type { ByteStream, WriteResult } from '../io/byte-stream.ts'
import type { SocketStream } from '../io/socket-stream.ts'
import type { Account, Lane } from '../tunnel/accounts.ts'
import type { PeerIdentity } from '../tunnel/peer.ts'
import { MAX_PREFACE_BYTES, type Preface, readPreface } from '../tunnel/preface.ts'
import { TunnelStream } from '../tunnel/stream.ts'
import type { CertificatePair } from '../tunnel/trust.ts'
import type { Arriving } from './arrivals.ts'
import type { Connection, Delivering, Open, Refused } from './connection.ts'
import { EarlyBytes } from './early-bytes.ts'
import { inboundFlagOf, resetReasonOf } from './ending.ts'
import { answerProbe } from './probe.ts'
import { isCutOff, logBrokenOff, refuse } from './refuse.ts'
import { splice } from './splice.ts'
import { awaitPolicy, isPolicyAwaited, type WorkerContext } from './worker-context.ts'

/**
 * Work per connection: deciding on it and connecting to the application; and refusing one that was unsuccessful before
 * that. Nanoseconds.
 */
const CONNECTION_COST = 200_000
const REFUSAL_COST = 25_000

/** One inbound connection: a stream of a tunnel, or a Connect peer's whole TLS connection. */
export interface Arrival {
  readonly stream: TunnelStream | SocketStream
  readonly peer: PeerIdentity
  /** The lane that the connection is charged to. */
  readonly lane: Lane
  /** The peer's address. */
  readonly address: SocketAddress | undefined
  /** The local service whose certificate the peer accepted. */
  readonly destination: string
  /** The server name of its TLS handshake. */
  readonly serverName: string | undefined
  /** The certificates of a Connect peer's connection; undefined for a stream, whose session checks them. */
  readonly certificates: CertificatePair | undefined
  /** Monotonic: when the stream was opened, or the TLS connection was. */
  readonly arrivedMs: number
}

/** A stream of a tunnel; it has a preface. */
export type ArrivingStream = Arrival & { readonly stream: TunnelStream }

/** Handles a stream that a peer has just opened. Never throws. */
export function carryStream(context: WorkerContext, arrival: ArrivingStream): void {
  const { account } = arrival.lane
  if (!context.isDraining() && context.arrivals.hasRoom(account)) {
    new StreamArrival(context, arrival).begin()
    return
  }
  if (!context.isDraining()) {
    arrival.lane.noteUnsuccessful(arrival.arrivedMs)
    context.noteLimit('streams')
  }
  context.workerCounters.inc('overflow')
  resetWith(arrival.stream, context.isDraining() ? 'DR' : 'UO')
}

/** Handles the connection of a Connect peer until its end. Never rejects. */
export async function carryConnection(context: WorkerContext, arrival: Arrival): Promise<void> {
  const early = new EarlyBytes()
  arrival.stream.receiver = early
  if (context.isDraining()) resetWith(arrival.stream, 'DR')
  else await carry(context, arrival, undefined, early)
}

/** Handles an arrival from the policy on. Only allowed arrivals count towards the limits of connections. */
async function carry(
  context: WorkerContext,
  arrival: Arrival,
  preface: Preface | undefined,
  early: EarlyBytes,
): Promise<void> {
  const { stream, lane, destination, address: peer } = arrival
  const source = arrival.peer.service
  const denial = denialOf(context, arrival)
  if (denial === undefined && !context.connections.hasRoom('inbound', source, lane.account)) {
    context.workerCounters.inc('overflow')
    if (context.connections.isShortOfDescriptors(lane.account)) context.noteLimit('descriptors')
    resetWith(stream, 'UO')
    return
  }
  const dial = denial === undefined ? dialFor(context, arrival, preface) : undefined
  if (dial === undefined) {
    lane.noteUnsuccessful(performance.now())
    refuseArrival(context, arrival, preface, denial ?? notHere(preface?.instance ?? destination))
    return
  }
  const row = rowOf(context, arrival)
  const endpoint = formatAddress(dial.target)
  const stage: Delivering = { state: 'delivering', destination, row, peer, endpoint, stream }
  const connection = enter(context, arrival, preface, stage)
  try {
    context.connections.useDescriptors(connection, arrival.certificates === undefined ? 1 : 2)
    const dialing = startLocalDial(
      { ...dial, hasSmallBuffers: lane.account.isShared },
      context.timeouts.connectMs,
      stream instanceof TunnelStream ? 'shared' : 'private',
    )
    early.whenGone(dialing.cancel)
    const local = await dialing.connected
    local.chargeTo(lane.account)
    context.outcomes.delivered(endpoint)
    if (stream.isClosed) {
      local.reset()
      throw new MeshError('HM_CALLER_GONE', 'The caller hung up')
    }
    if (stream instanceof TunnelStream) stream.confirm()
    context.outcomes.succeeded('inbound', source, destination)
    const nowMs = performance.now()
    connection.connectedMs = nowMs
    context.counters.connected(row, nowMs - arrival.arrivedMs)
    // Bytes that came before had to wait for the application: their time begins now, like that of bytes still unread.
    if (early.bytes.length > 0) connection.firstSentMs = nowMs
    join(context, connection, { stage, stream, local, early })
  } catch (error) {
    context.outcomes.failed('inbound', source, destination, error)
    if (errorCode(error).startsWith('HM_DELIVER_')) context.outcomes.undelivered(endpoint, error)
    resetWith(stream, refuse(context, connection, error))
  }
}

/** Adds an arrival to the table, before anything else is done for it. */
function enter(
  context: WorkerContext,
  arrival: Arrival,
  preface: Preface | undefined,
  stage: Refused | Delivering,
): Connection {
  const { stream, peer, lane, address, certificates } = arrival
  const from = preface?.source ?? address
  const connection = context.connections.add('inbound', peer.service, lane.account, from)
  connection.originalDestination = preface?.destination
  connection.transport = certificates === undefined ? 'tunnel' : 'connect'
  connection.peerSpiffeId = peer.spiffeId
  connection.serverName = arrival.serverName
  connection.traceparent = preface?.traceparent
  context.connections.setDestination(connection, stage)
  // A variable first, then the assignment, here and below: docs/performance.md, "Garbage".
  const abort: Connection['abort'] = (flag, reason) => {
    context.connections.end(connection, flag, reason)
    resetWith(stream, flag)
  }
  connection.abort = abort
  if (certificates === undefined) return connection
  context.connections.bindCertificates(connection, certificates)
  context.connections.useDescriptors(connection, 1)
  return connection
}

/** Refuses an arrival for which no application is dialed. */
function refuseArrival(
  context: WorkerContext,
  arrival: Arrival,
  preface: Preface | undefined,
  error: MeshError,
): void {
  const { stream, destination, address: peer } = arrival
  context.outcomes.failed('inbound', arrival.peer.service, destination, error)
  const stage: Refused = { state: 'refused', destination, row: rowOf(context, arrival), peer }
  resetWith(stream, refuse(context, enter(context, arrival, preface, stage), error))
}

function rowOf(context: WorkerContext, { peer, destination }: Arrival): number {
  return context.counters.row('destination', peer.service, destination)
}

/** Why the caller is denied; undefined when it is allowed. */
function denialOf(context: WorkerContext, arrival: Arrival): MeshError | undefined {
  const { peer, destination } = arrival
  const decision = evaluate(peer.service, context.snapshot().policies.get(destination))
  if (decision.allow) return undefined
  return new MeshError(
    'HM_POLICY_DENIED',
    `Denied ${peer.service} -> ${destination}: ${decision.reason}`,
  )
}

/** How to dial the called instance; undefined when this host has none. */
function dialFor(
  context: WorkerContext,
  { destination, peer, address }: Arrival,
  preface: Preface | undefined,
): LocalDial | undefined {
  const instance = context.localInstance(destination, preface?.instance)
  return (
    instance &&
    localDial(instance, {
      service: peer.service,
      address: preface?.source ?? address,
      originalDestination: preface?.destination,
    })
  )
}

function notHere(instance: string): MeshError {
  return new MeshError(
    'HM_DELIVER_UNKNOWN',
    `Cannot deliver to ${instance}: this host's configuration has no such service`,
  )
}

function join(
  context: WorkerContext,
  connection: Connection,
  parts: {
    readonly stage: Delivering
    readonly stream: TunnelStream | SocketStream
    readonly local: SocketStream
    readonly early: EarlyBytes
  },
): void {
  const { stream, local } = parts
  const { bytes } = parts.early
  const { destination, row, endpoint, peer } = parts.stage
  const stage: Open = {
    state: 'open',
    destination,
    row,
    endpoint,
    peer,
    decidedFor: destination,
    stream,
    local,
  }
  connection.stage = stage
  const abort: Connection['abort'] = (flag, reason) => {
    logBrokenOff(context, connection, flag, reason)
    context.connections.end(connection, flag, reason)
    local.reset()
    resetWith(stream, flag)
  }
  connection.abort = abort
  if (bytes.length > 0) {
    connection.sentBytes += bytes.length
    context.counters.sent(row, bytes.length)
    local.write(bytes)
  }
  splice({
    connection,
    stage,
    counters: context.counters,
    downstream: stream,
    upstream: local,
    copies: false,
    onEnding: (ending) => {
      const flag = ending.kind === 'done' ? '-' : inboundFlagOf(ending.side, ending.reason)
      if (ending.kind === 'broken' && isCutOff(ending.reason))
        logBrokenOff(context, connection, flag, ending.reason)
      const cause = ending.kind === 'broken' ? ending.reason : undefined
      context.connections.end(connection, flag, flag === 'TLS' ? cause : undefined, cause)
    },
  })
}

function resetWith(stream: ByteStream, flag: Parameters<typeof resetReasonOf>[0]): void {
  if (stream instanceof TunnelStream) stream.refuse(resetReasonOf(flag))
  else stream.reset()
}

/**
 * A stream until it is authorized: waits for its preface, and for its policy where that is not loaded yet. The stream
 * is paused after the last byte of the preface; bytes that were already under way are kept with the others.
 */
class StreamArrival extends EarlyBytes implements Arriving {
  readonly account: Account
  readonly expiresAtMs: number
  older: Arriving | undefined
  newer: Arriving | undefined
  private readonly context: WorkerContext
  private readonly arrival: ArrivingStream
  private preface: Preface | undefined
  private isRefused = false

  constructor(context: WorkerContext, arrival: ArrivingStream) {
    super()
    this.context = context
    this.arrival = arrival
    this.account = arrival.lane.account
    this.expiresAtMs = arrival.arrivedMs + context.timeouts.handshakeMs
  }

  begin(): void {
    const { stream } = this.arrival
    this.context.arrivals.add(this)
    stream.receiver = this
    stream.resume()
  }

  expire(): void {
    // Then the policy is late: it has a deadline of its own.
    if (this.preface !== undefined) return
    const { handshakeMs } = this.context.timeouts
    this.refuse(
      new MeshError('HM_PREFACE_TIMEOUT', `The peer sent no preface in ${handshakeMs} ms`),
    )
  }

  override onBytes(bytes: Uint8Array): WriteResult {
    if (this.isRefused) return 0
    super.onBytes(bytes)
    if (this.preface !== undefined || this.arrival.stream.isClosed) return 0
    const reading = readPreface(this.bytes.subarray(0, MAX_PREFACE_BYTES))
    if (reading.state === 'incomplete') return 0
    if (reading.state === 'malformed') {
      const message = `Cannot read the peer's preface: ${reading.why}`
      this.refuse(new MeshError('HM_PREFACE_MALFORMED', message))
      return 0
    }
    this.bytes = this.bytes.subarray(reading.length)
    this.preface = reading.preface
    this.arrival.stream.pause()
    void this.authorize(reading.preface)
    return 0
  }

  override onEnd(): void {
    if (this.preface === undefined && !this.isRefused)
      this.refuse(new MeshError('HM_PREFACE_MALFORMED', 'The peer ended the stream in its preface'))
  }

  override onReset(reason: Error): void {
    this.context.arrivals.delete(this)
    super.onReset(reason)
  }

  /** Runs after the frames that arrived together have been read: a reset among them makes the rest unnecessary. */
  private async authorize(preface: Preface): Promise<void> {
    const { context, arrival } = this
    await Promise.resolve()
    if (preface.isProbe === true) {
      context.arrivals.delete(this)
      const { peer, destination, stream } = arrival
      const { instance } = preface
      await answerProbe(context, stream, {
        direction: 'inbound',
        source: peer.service,
        account: this.account,
        destination,
        instance,
      })
      return
    }
    if (!arrival.stream.isClosed && isPolicyAwaited(context, arrival.destination))
      await awaitPolicy(context, arrival.destination)
    const { turns } = this.account
    if (!arrival.stream.isClosed && !turns.claim(CONNECTION_COST))
      await turns.later(CONNECTION_COST)
    context.arrivals.delete(this)
    if (!arrival.stream.isClosed) await carry(context, arrival, preface, this)
  }

  /** Thousands may be refused at the same moment: each reset is sent when it is its caller's turn. */
  private refuse(error: MeshError): void {
    const { context, arrival, account } = this
    context.arrivals.delete(this)
    arrival.lane.noteUnsuccessful(performance.now())
    if (account.turns.claim(REFUSAL_COST)) {
      this.refuseNow(error)
      return
    }
    this.isRefused = true
    arrival.stream.pause()
    account.turns.postpone({ cost: REFUSAL_COST, continueWork: () => this.refuseNow(error) })
  }

  private refuseNow(error: MeshError): void {
    const { context, arrival } = this
    if (!arrival.stream.isClosed) refuseArrival(context, arrival, undefined, error)
  }
}
