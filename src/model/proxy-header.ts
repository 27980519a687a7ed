/**
 * A PROXY protocol version 2 header: source and destination of a connection, sent before its first byte. Used in tunnel
 * prefaces, and for applications configured to receive it. Pure: values in, bytes out.
 */
import { ipBytes, isIpv6, type SocketAddress } from './address.ts'

/** The content of a header. */
export interface ProxyHeader {
  /** Undefined when unknown; a header without both addresses is of the kind LOCAL, "no proxied connection". */
  readonly source: SocketAddress | undefined
  readonly destination: SocketAddress | undefined
  /** Type and value; values in Latin-1. Entries without a value are omitted. */
  readonly tlvs: readonly (readonly [type: number, value: string | undefined])[]
}

/** The first bytes of every header. */
export const PROXY_SIGNATURE: Uint8Array = Buffer.from('0d0a0d0a000d0a515549540a', 'hex')
export const PROXY_FIXED_BYTES = 16
export const PROXY_LOCAL = 0x20
export const PROXY_PROXY = 0x21
export const PROXY_UNSPEC = 0x00
export const PROXY_TCP4 = 0x11
export const PROXY_TCP6 = 0x21

const MAPPED_PREFIX = Buffer.from('00000000000000000000ffff', 'hex')

/** The bytes of a header. An IPv4 and an IPv6 address in one header are both written as IPv6. */
export function encodeProxyHeader(header: ProxyHeader): Buffer {
  const { source, destination, tlvs } = header
  const isKnown = source !== undefined && destination !== undefined
  const isWide = isKnown && (isIpv6(source.ip) || isIpv6(destination.ip))
  const addressBytes = isKnown ? (isWide ? 36 : 12) : 0
  const bodyBytes = tlvs.reduce((sum, [, value]) => sum + tlvBytes(value), addressBytes)
  const bytes = Buffer.allocUnsafe(PROXY_FIXED_BYTES + bodyBytes)
  bytes.set(PROXY_SIGNATURE)
  bytes[12] = isKnown ? PROXY_PROXY : PROXY_LOCAL
  bytes[13] = isKnown ? (isWide ? PROXY_TCP6 : PROXY_TCP4) : PROXY_UNSPEC
  bytes.writeUInt16BE(bodyBytes, 14)
  let at = PROXY_FIXED_BYTES
  if (isKnown) {
    at = putIp(bytes, at, source.ip, isWide)
    at = putIp(bytes, at, destination.ip, isWide)
    at = bytes.writeUInt16BE(source.port, at)
    at = bytes.writeUInt16BE(destination.port, at)
  }
  for (const [type, value] of tlvs) at = putTlv(bytes, at, type, value)
  return bytes
}

function putIp(target: Buffer, at: number, ip: string, isWide: boolean): number {
  const bytes = ipBytes(ip)
  if (isWide && bytes.length === 4) {
    target.set(MAPPED_PREFIX, at)
    target.set(bytes, at + MAPPED_PREFIX.length)
    return at + 16
  }
  target.set(bytes, at)
  return at + bytes.length
}

function tlvBytes(value: string | undefined): number {
  return value === undefined ? 0 : 3 + value.length
}

function putTlv(target: Buffer, at: number, type: number, value: string | undefined): number {
  if (value === undefined) return at
  target[at] = type
  target.writeUInt16BE(value.length, at + 1)
  return at + 3 + target.write(value, at + 3, 'latin1')
}
