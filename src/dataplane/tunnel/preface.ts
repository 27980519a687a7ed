/**
 * The first bytes of every stream: docs/tunnel-protocol.md, "Preface". A PROXY protocol version 2 header with TLVs of
 * our own. Pure: bytes in, value out.
 */
import { ipFromBytes, type SocketAddress } from '../../model/address.ts'
import {
  encodeProxyHeader,
  PROXY_FIXED_BYTES,
  PROXY_LOCAL,
  PROXY_PROXY,
  PROXY_SIGNATURE,
  PROXY_TCP4,
  PROXY_TCP6,
  PROXY_UNSPEC,
} from '../../model/proxy-header.ts'

/** What the opener states about a connection, beyond its certificate. */
export interface Preface {
  /** The application's own address at the calling host; undefined when unknown. */
  readonly source: SocketAddress | undefined
  /** The address that the application dialed; undefined exactly when `source` is. */
  readonly destination: SocketAddress | undefined
  /** Service ID at the destination host; undefined means any instance there. */
  readonly instance: string | undefined
  /** Nothing is delivered: the opener asks what would happen to a connection. */
  readonly isProbe?: true
  /** W3C trace context; undefined when absent or malformed. */
  readonly traceparent: string | undefined
}

/** Largest preface, bytes. */
export const MAX_PREFACE_BYTES = 1_024

const TLV_INSTANCE = 0xe0
const TLV_PROBE = 0xe1
const TLV_LAST_CRITICAL = 0xe7
const TLV_TRACEPARENT = 0xe8
const TLV_LAST_OWN = 0xef
/** Value of a probe's TLV: the version of the answer. */
const PROBE_VERSION = '\u0001'
const TRACEPARENT = /^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$/

/** Encodes a preface. If one address is IPv4 and the other IPv6, both are written as IPv6. */
export function encodePreface(preface: Preface): Buffer {
  const { source, destination, instance, isProbe, traceparent } = preface
  return encodeProxyHeader({
    source,
    destination,
    tlvs: [
      [TLV_INSTANCE, instance],
      [TLV_PROBE, isProbe === true ? PROBE_VERSION : undefined],
      [TLV_TRACEPARENT, traceparent],
    ],
  })
}

/** Result of {@link readPreface}. */
export type PrefaceReading =
  /** More bytes are needed; the bytes so far are a valid beginning. */
  | { readonly state: 'incomplete' }
  /** Not a preface, or one that must be rejected; `why` is for the log. */
  | { readonly state: 'malformed'; readonly why: string }
  /** Complete; application bytes begin at `length`. */
  | { readonly state: 'complete'; readonly preface: Preface; readonly length: number }

/** Decodes a preface from the first bytes of a stream, which may be incomplete. Never throws. */
export function readPreface(bytes: Uint8Array): PrefaceReading {
  const compared = Math.min(bytes.length, PROXY_SIGNATURE.length)
  for (let i = 0; i < compared; i += 1)
    if (bytes[i] !== PROXY_SIGNATURE[i]) return malformed('no PROXY protocol version 2 signature')
  if (bytes.length < PROXY_FIXED_BYTES) return { state: 'incomplete' }
  const command = bytes[12] ?? 0
  const family = bytes[13] ?? 0
  const length = ((bytes[14] ?? 0) << 8) | (bytes[15] ?? 0)
  if (command !== PROXY_LOCAL && command !== PROXY_PROXY)
    return malformed(`version and command 0x${command.toString(16)}`)
  if (PROXY_FIXED_BYTES + length > MAX_PREFACE_BYTES) return malformed(`length ${length}`)
  const addressBytes = addressBytesOf(command, family)
  if (addressBytes === undefined || addressBytes > length)
    return malformed(`address family 0x${family.toString(16)}`)
  if (bytes.length < PROXY_FIXED_BYTES + length) return { state: 'incomplete' }
  const addresses = readAddresses(
    bytes.subarray(PROXY_FIXED_BYTES, PROXY_FIXED_BYTES + addressBytes),
  )
  if (addresses === undefined) return malformed('port 0')
  const tlvs = readTlvs(
    bytes.subarray(PROXY_FIXED_BYTES + addressBytes, PROXY_FIXED_BYTES + length),
  )
  if (typeof tlvs === 'string') return malformed(tlvs)
  return {
    state: 'complete',
    preface: { ...addresses, ...tlvs },
    length: PROXY_FIXED_BYTES + length,
  }
}

function malformed(why: string): PrefaceReading {
  return { state: 'malformed', why }
}

function addressBytesOf(command: number, family: number): number | undefined {
  if (command === PROXY_LOCAL) return family === PROXY_UNSPEC ? 0 : undefined
  if (family === PROXY_TCP4) return 12
  return family === PROXY_TCP6 ? 36 : undefined
}

function readAddresses(bytes: Uint8Array): Pick<Preface, 'source' | 'destination'> | undefined {
  if (bytes.length === 0) return { source: undefined, destination: undefined }
  const size = (bytes.length - 4) / 2
  const view = new DataView(bytes.buffer, bytes.byteOffset + size * 2, 4)
  const sourceIp = ipFromBytes(bytes.subarray(0, size))
  const destinationIp = ipFromBytes(bytes.subarray(size, size * 2))
  const sourcePort = view.getUint16(0)
  const destinationPort = view.getUint16(2)
  if (sourceIp === undefined || destinationIp === undefined) return undefined
  if (sourcePort === 0 || destinationPort === 0) return undefined
  return {
    source: { ip: sourceIp, port: sourcePort },
    destination: { ip: destinationIp, port: destinationPort },
  }
}

function readTlvs(
  bytes: Uint8Array,
): Pick<Preface, 'instance' | 'isProbe' | 'traceparent'> | string {
  let instance: string | undefined
  let isProbe = false
  let traceparent: string | undefined
  const seen = new Set<number>()
  let at = 0
  while (at < bytes.length) {
    if (bytes.length - at < 3) return 'a TLV is cut off'
    const type = bytes[at] ?? 0
    const length = ((bytes[at + 1] ?? 0) << 8) | (bytes[at + 2] ?? 0)
    at += 3
    if (length > bytes.length - at) return `TLV 0x${type.toString(16)} is cut off`
    const value = Buffer.from(bytes.buffer, bytes.byteOffset + at, length).toString('latin1')
    at += length
    if (type < TLV_INSTANCE || type > TLV_LAST_OWN) continue
    if (seen.has(type)) return `TLV 0x${type.toString(16)} appears twice`
    seen.add(type)
    if (type === TLV_INSTANCE) {
      if (!/^[\x21-\x7e]{1,128}$/.test(value))
        return 'the instance is not 1 to 128 printable characters'
      instance = value
    } else if (type === TLV_PROBE) {
      if (value !== PROBE_VERSION) return 'a probe of an unknown version'
      isProbe = true
    } else if (type <= TLV_LAST_CRITICAL) {
      return `unknown critical TLV 0x${type.toString(16)}`
    } else if (type === TLV_TRACEPARENT && TRACEPARENT.test(value)) {
      traceparent = value
    }
  }
  return isProbe ? { instance, isProbe, traceparent } : { instance, traceparent }
}
