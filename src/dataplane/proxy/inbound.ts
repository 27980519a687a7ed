/**
 * The story of a connection that arrives for an application on this host.
 *
 *   accept    a peer that has proved which service it is; over a tunnel, one stream of it
 *   preface   over a tunnel: which instance is meant, and who the real client is
 *   policy    may this service reach ours: decided here, at the destination; one that is not loaded yet is
 *             waited for, and denies when it does not come
 *   deliver   the application's own port, from our configuration and nowhere else
 *   splice    bytes both ways until both sides are done
 *
 * What a caller sends early waits in the stream and is thrown away when it is refused.
 */
import type { ByteStream, Receiver, WriteResult } from '../../lib/byte-stream.ts'
import { errorCode, MeshError } from '../../lib/errors.ts'
import type { SocketStream } from '../../lib/socket-stream.ts'
import { formatAddress, type SocketAddress } from '../../model/address.ts'
import type { LocalService } from '../../model/service.ts'
import { dialLocal } from '../deliver/dial-local.ts'
import { localDial } from '../deliver/local-dial.ts'
import { evaluate } from '../policy/evaluate.ts'
import type { PeerIdentity } from '../tunnel/peer.ts'
import { MAX_PREFACE_BYTES, type Preface, readPreface } from '../tunnel/preface.ts'
import { TunnelStream } from '../tunnel/stream.ts'
import type { Footing } from '../tunnel/trust.ts'
import type { Connection } from './connection-table.ts'
import { asMeshError, inboundFlagOf, resetReasonOf } from './ending.ts'
import { awaitPolicy, isPolicyAwaited, type Plane } from './plane.ts'
import { answerProbe } from './probe.ts'
import { isCutOff, logBrokenOff, refuse } from './refuse.ts'
import { splice } from './splice.ts'

/** One arriving connection: a stream of a tunnel, or a Connect peer's whole TLS connection. */
export interface Arrival {
  readonly stream: TunnelStream | SocketStream
  readonly peer: PeerIdentity
  /** The peer's address. */
  readonly address: SocketAddress | undefined
  /** The local service whose certificate the peer accepted. */
  readonly destination: string
  /** The certificates of a Connect peer's connection; undefined for a stream, whose session answers for it. */
  readonly footing: Footing | undefined
}

/** Carries one arriving connection to its end. Never rejects. */
export async function carryInbound(plane: Plane, arrival: Arrival): Promise<void> {
  const { stream, peer } = arrival
  if (plane.isDraining() || !plane.connections.hasRoom(peer.service)) {
    plane.workerCounters.inc('overflow')
    hangUp(stream, plane.isDraining() ? 'DR' : 'UO')
    return
  }
  const connection = plane.connections.add('inbound', peer.service)
  connection.peer = arrival.address
  // Named first, then assigned, here and below: docs/performance.md, "Garbage".
  const abort: Connection['abort'] = (flag, reason) => {
    plane.connections.end(connection, flag, reason)
    hangUp(stream, flag)
  }
  connection.abort = abort
  if (arrival.footing !== undefined) plane.connections.rest(connection, arrival.footing)
  try {
    const early = new EarlyBytes(stream)
    const preface =
      stream instanceof TunnelStream ? await early.preface(plane.timeouts.handshakeMs) : undefined
    if (stream instanceof TunnelStream && preface?.isProbe === true) {
      plane.connections.dismiss(connection)
      const { destination } = arrival
      await answerProbe(plane, stream, {
        source: peer.service,
        destination,
        instance: preface.instance,
      })
      return
    }
    plane.connections.know(connection, arrival.destination)
    connection.downstream = preface?.source ?? arrival.address
    connection.wanted = preface?.destination
    if (isPolicyAwaited(plane, arrival.destination)) await awaitPolicy(plane, arrival.destination)
    decide(plane, arrival)
    const local = await deliver(plane, connection, arrival.destination, preface)
    plane.outcomes.delivered(connection.endpoint ?? '')
    if (stream.isClosed) {
      local.reset()
      throw new MeshError('HM_CALLER_GONE', 'The caller hung up')
    }
    if (stream instanceof TunnelStream) stream.confirm()
    connection.state = 'open'
    plane.outcomes.succeeded('inbound', peer.service, arrival.destination)
    join(plane, connection, { stream, local, early })
  } catch (error) {
    plane.connections.know(connection, arrival.destination)
    plane.outcomes.failed('inbound', peer.service, arrival.destination, error)
    if (connection.endpoint !== undefined && errorCode(error).startsWith('HM_DELIVER_'))
      plane.outcomes.undelivered(connection.endpoint, error)
    hangUp(stream, refuse(plane, connection, error))
  }
}

function decide(plane: Plane, arrival: Arrival): void {
  const { peer, destination } = arrival
  const decision = evaluate(peer.service, plane.snapshot().policies.get(destination))
  if (!decision.allow)
    throw new MeshError(
      'HM_POLICY_DENIED',
      `Denied ${peer.service} -> ${destination}: ${decision.reason}`,
    )
}

function deliver(
  plane: Plane,
  connection: Connection,
  destination: string,
  preface: Preface | undefined,
): Promise<SocketStream> {
  const local: LocalService | undefined = plane.localInstance(destination, preface?.instance)
  const dial =
    local &&
    localDial(local, {
      service: connection.source,
      address: connection.downstream,
      wanted: connection.wanted,
    })
  if (dial === undefined)
    throw new MeshError(
      'HM_DELIVER_UNKNOWN',
      `Cannot deliver to ${preface?.instance ?? destination}: this host's configuration has no such service`,
    )
  connection.endpoint = formatAddress(dial.target)
  return dialLocal(dial, plane.timeouts.connectMs, preface === undefined ? 'private' : 'shared')
}

function join(
  plane: Plane,
  connection: Connection,
  parts: { stream: TunnelStream | SocketStream; local: SocketStream; early: EarlyBytes },
): void {
  const { stream, local, early } = parts
  const abort: Connection['abort'] = (flag, reason) => {
    logBrokenOff(plane, connection, flag, reason)
    plane.connections.end(connection, flag, reason)
    local.reset()
    hangUp(stream, flag)
  }
  connection.abort = abort
  const first = early.rest()
  if (first.length > 0) {
    connection.sentBytes += first.length
    plane.counters.sent(connection.row ?? 0, first.length)
    local.write(first)
  }
  splice({
    connection,
    counters: plane.counters,
    downstream: stream,
    upstream: local,
    copies: false,
    onEnding: (ending) => {
      const flag = ending.kind === 'done' ? '-' : inboundFlagOf(ending.side, ending.reason)
      if (ending.kind === 'broken' && isCutOff(ending.reason))
        logBrokenOff(plane, connection, flag, ending.reason)
      const isOurVerdict = ending.kind === 'broken' && flag === 'TLS'
      plane.connections.end(connection, flag, isOurVerdict ? ending.reason : undefined)
    },
  })
}

function hangUp(stream: ByteStream, flag: Parameters<typeof resetReasonOf>[0]): void {
  if (stream instanceof TunnelStream) stream.refuse(resetReasonOf(flag))
  else stream.reset()
}

/** The beginning of a stream: the preface, and what of the application's bytes came along with it. */
class EarlyBytes implements Receiver {
  private readonly stream: TunnelStream | SocketStream
  private bytes: Uint8Array = new Uint8Array(0)
  private settle: ((outcome: Preface | MeshError) => void) | undefined

  constructor(stream: TunnelStream | SocketStream) {
    this.stream = stream
    stream.receiver = this
  }

  /**
   * Reads the preface.
   * @throws MeshError HM_PREFACE_MALFORMED or HM_PREFACE_TIMEOUT.
   */
  preface(timeoutMs: number): Promise<Preface> {
    return new Promise((resolve, reject) => {
      const deadline = setTimeout(() => {
        this.settle?.(
          new MeshError('HM_PREFACE_TIMEOUT', `The peer sent no preface in ${timeoutMs} ms`),
        )
      }, timeoutMs)
      const settle = (outcome: Preface | MeshError): void => {
        this.settle = undefined
        clearTimeout(deadline)
        this.stream.pause()
        if (outcome instanceof MeshError) reject(outcome)
        else resolve(outcome)
      }
      this.settle = settle
      this.stream.resume()
    })
  }

  /** Application bytes that have been read already. */
  rest(): Uint8Array {
    return this.bytes
  }

  onBytes(bytes: Uint8Array): WriteResult {
    // After the preface the stream is paused; what was under way is kept with the rest.
    this.bytes =
      this.bytes.length === 0
        ? Uint8Array.prototype.slice.call(bytes)
        : Buffer.concat([this.bytes, bytes])
    if (this.settle === undefined) return 0
    const reading = readPreface(this.bytes.subarray(0, MAX_PREFACE_BYTES))
    if (reading.state === 'incomplete') return 0
    if (reading.state === 'malformed') {
      this.settle(
        new MeshError('HM_PREFACE_MALFORMED', `Cannot read the peer's preface: ${reading.why}`),
      )
      return 0
    }
    this.bytes = this.bytes.subarray(reading.length)
    this.settle(reading.preface)
    return 0
  }

  onEnd(): void {
    this.settle?.(new MeshError('HM_PREFACE_MALFORMED', 'The peer ended the stream in its preface'))
  }

  onClosed(): void {
    // Our side has not finished, so it cannot be over in order.
  }

  onReset(reason: Error): void {
    this.settle?.(
      new MeshError('HM_CALLER_GONE', 'The caller hung up', { cause: asMeshError(reason) }),
    )
  }

  onWritable(): void {
    // Nothing is written before the splice.
  }
}
