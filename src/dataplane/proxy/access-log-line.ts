/**
 * The text of one line of the access log: docs/access-log.md. Pure.
 *
 * The names are Envoy's where it has one. In Envoy's words, `bytes_received` are those that the caller has sent.
 */
import { logfmtValue, quoted } from '../../lib/log-text.ts'

/** What a line says of one connection; undefined for what is not known. Times in milliseconds. */
export interface AccessRecord {
  /** Wall clock: when it was accepted. */
  readonly start_time: number
  readonly duration: number
  readonly direction: 'outbound' | 'inbound'
  readonly source_service: string
  readonly destination_service: string | undefined
  readonly response_flags: string
  /** The code of the error that ended it. */
  readonly response_code_details: string | undefined
  /** From the caller. */
  readonly bytes_received: number
  /** To the caller. */
  readonly bytes_sent: number
  /** Until the instance had confirmed. */
  readonly connect_duration: number | undefined
  /** From the caller's first byte until the first one of the instance. */
  readonly first_byte_duration: number | undefined
  readonly upstream_cluster: string | undefined
  readonly upstream_host: string | undefined
  /** `<node>/<service id>`, where the calling host knows it. */
  readonly instance: string | undefined
  readonly downstream_remote_address: string | undefined
  /** The address that the application dialed. */
  readonly downstream_local_address: string | undefined
  readonly requested_server_name: string | undefined
  readonly peer_spiffe_id: string | undefined
  readonly transport: Transport | undefined
  readonly connection_id: string
  /** The same in the lines of both hosts. */
  readonly trace_id: string | undefined
}

/** How bytes reach the other side: in a tunnel, in a TLS connection with a Connect sidecar, or on this host. */
export type Transport = 'tunnel' | 'connect' | 'local'

/** Longest text of one field; all together a line is shorter than {@link MAX_LINE_BYTES}. */
const MAX_TEXT = 270

/** Longest line: the kernel writes so many bytes to a pipe at once, so that lines of several threads stay whole. */
export const MAX_LINE_BYTES = 4_096

/** The line, newline included: printable ASCII. */
export function accessLine(record: AccessRecord, format: 'json' | 'logfmt'): string {
  const fields = Object.entries({
    ...record,
    start_time: new Date(record.start_time).toISOString(),
    duration: Math.round(record.duration),
  })
  return format === 'json' ? jsonLine(fields) : logfmtLine(fields)
}

type Fields = readonly (readonly [string, string | number | undefined])[]

function jsonLine(fields: Fields): string {
  let line = '{"log":"access"'
  for (const [name, value] of fields)
    line += `,"${name}":${typeof value === 'string' ? quoted(value, MAX_TEXT) : numeral(value ?? null)}`
  return `${line}}\n`
}

function logfmtLine(fields: Fields): string {
  let line = 'log=access'
  for (const [name, value] of fields)
    if (value !== undefined)
      line += ` ${name}=${typeof value === 'string' ? logfmtValue(value, MAX_TEXT) : numeral(value)}`
  return `${line}\n`
}

/** At most three digits after the point; `null` for what JSON cannot say. */
function numeral(value: number | null): string {
  if (value === null || !Number.isFinite(value)) return 'null'
  const rounded = Math.round(value * 1_000) / 1_000
  return String(Number.isFinite(rounded) ? rounded : value)
}
