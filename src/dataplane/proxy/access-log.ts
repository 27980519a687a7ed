/**
 * The access log of a worker: which ended connections get a line, and what it says. Where it is written is decided by
 * `write`, which must not wait.
 *
 * Connections get an identity when they begin, which a caller's host sends in the preface: the lines of both hosts have
 * it, and both choose the same connections where only a share is written.
 */
import { randomBytes } from 'node:crypto'
import type { Clock } from '../../lib/clock.ts'
import { errorCode } from '../../lib/errors.ts'
import type { ResponseFlag } from '../../model/response-flag.ts'
import { StreamResetError } from '../tunnel/stream.ts'
import { accessLine } from './access-log-line.ts'
import {
  addressOf,
  type Connection,
  destinationOf,
  endpointOf,
  peerOf,
  textOf,
} from './connection.ts'

/** Which lines are written, and how. */
export interface AccessLogSettings {
  /** `errors`: not those of connections that ended in order. */
  readonly include: 'all' | 'errors'
  /** Share of the connections that ended in order, 0 to 1. */
  readonly sample: number
  /** For this worker; as many may be written at once. */
  readonly linesPerSecond: number
  readonly format: 'json' | 'logfmt'
  readonly to: 'standardError' | 'mainThread'
}

/** What an access log uses. */
export interface AccessLogOptions {
  readonly settings: AccessLogSettings
  /** Prefix of the connection's number, so that it is the one of the admin API. */
  readonly idPrefix: string
  readonly clock: Pick<Clock, 'monotonicMs'>
  readonly write: (line: string) => void
  /** Called for each line that is more than the limit. */
  readonly onLimited: () => void
}

/** Multiplier that spreads consecutive numbers evenly over 32 bits: 2^32 divided by the golden ratio. */
const SPREAD = 0x9e37_79b1
const TWO_32 = 2 ** 32

/** Where the number that decides about sampling is in a `traceparent`: the last 32 bits of the trace ID. */
const TRACE_START = 3
const TRACE_END = 35
const CHOICE_START = 27

/** The access log of one worker. */
export class AccessLog {
  private readonly options: AccessLogOptions
  /** The first half of the trace IDs of this thread. */
  private readonly tracePrefix = randomBytes(8).toString('hex')
  private count = 0
  /** Lines that may be written now. */
  private credit: number
  private creditedMs: number

  constructor(options: AccessLogOptions) {
    this.options = options
    this.credit = options.settings.linesPerSecond
    this.creditedMs = options.clock.monotonicMs()
  }

  /** Called when a connection is accepted. */
  begin(connection: Connection): void {
    if (connection.direction === 'inbound') return
    this.count = (this.count + 1) >>> 0
    const number = hex32(this.count)
    connection.traceparent = `00-${this.tracePrefix}${number}${hex32(Math.imul(this.count, SPREAD))}-00000001${number}-00`
    // Now: a closed socket no longer has it.
    connection.from = addressOf(connection.from)
  }

  /** Called when a connection has ended. */
  end(connection: Connection, flag: ResponseFlag, cause: unknown, nowMs: number): void {
    const { settings, write, onLimited } = this.options
    if (flag === '-' && (settings.include === 'errors' || !this.isChosen(connection))) return
    if (!this.take(nowMs)) {
      onLimited()
      return
    }
    write(this.line(connection, flag, cause, nowMs))
  }

  /** Whether the connection is in the sample. */
  private isChosen({ traceparent }: Connection): boolean {
    const { sample } = this.options.settings
    if (sample >= 1) return true
    if (traceparent !== undefined)
      return Number.parseInt(traceparent.slice(CHOICE_START, TRACE_END), 16) / TWO_32 < sample
    this.count = (this.count + 1) >>> 0
    return (Math.imul(this.count, SPREAD) >>> 0) / TWO_32 < sample
  }

  private take(nowMs: number): boolean {
    const { linesPerSecond } = this.options.settings
    this.credit = Math.min(
      linesPerSecond,
      this.credit + ((nowMs - this.creditedMs) / 1_000) * linesPerSecond,
    )
    this.creditedMs = nowMs
    if (this.credit < 1) return false
    this.credit -= 1
    return true
  }

  private line(connection: Connection, flag: ResponseFlag, cause: unknown, nowMs: number): string {
    const { direction, source, stage, startedMs, connectedMs, firstByteMs } = connection
    const endpoint = endpointOf(stage)
    const peer = textOf(peerOf(stage))
    const isInbound = direction === 'inbound'
    return accessLine(
      {
        start_time: connection.openedAtMs,
        duration: nowMs - startedMs,
        direction,
        source_service: source,
        destination_service: destinationOf(stage),
        response_flags: flag,
        response_code_details: codeOf(cause),
        bytes_received: connection.sentBytes,
        bytes_sent: connection.receivedBytes,
        connect_duration: connectedMs > 0 ? connectedMs - startedMs : undefined,
        first_byte_duration: firstByteMs >= 0 ? firstByteMs : undefined,
        upstream_cluster: destinationOf(stage),
        upstream_host: isInbound ? endpoint : peer,
        instance: isInbound ? undefined : endpoint,
        downstream_remote_address: textOf(addressOf(connection.from)),
        downstream_local_address: textOf(connection.originalDestination),
        requested_server_name: connection.serverName,
        peer_spiffe_id: connection.peerSpiffeId,
        transport: connection.transport,
        connection_id: `${this.options.idPrefix}${connection.id}`,
        trace_id: connection.traceparent?.slice(TRACE_START, TRACE_END),
      },
      this.options.settings.format,
    )
  }
}

/** The code of an error; of a stream that the far end has reset, with the reason that it gave. */
function codeOf(cause: unknown): string | undefined {
  if (cause === undefined) return undefined
  const code = errorCode(cause)
  return cause instanceof StreamResetError ? `${code}:${cause.reason}` : code
}

function hex32(value: number): string {
  return (value >>> 0).toString(16).padStart(8, '0')
}
