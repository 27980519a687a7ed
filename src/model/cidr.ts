/**
 * Blocks of IP addresses (`240.0.0.0/4`), IPv4 and IPv6. Pure.
 */
import { canonicalIp, ipBytes, ipFromBytes, isIpv6 } from './address.ts'

/** A block: its lowest address, canonical, and the number of leading bits that all members share. */
export interface Cidr {
  readonly network: string
  readonly prefix: number
}

/** Parses `address/prefix`. Clears the bits beyond the prefix; undefined when `text` is not a block. */
export function parseCidr(text: string): Cidr | undefined {
  const match = /^([0-9a-fA-F.:]+)\/(\d{1,3})$/.exec(text)
  const ip = canonicalIp(match?.[1] ?? '')
  if (ip === undefined) return undefined
  const prefix = Number(match?.[2])
  const bits = addressBits(ip)
  if (prefix > bits) return undefined
  const hostBits = BigInt(bits - prefix)
  return { network: toIp((toNumber(ip) >> hostBits) << hostBits, bits), prefix }
}

/** `address/prefix`, as {@link parseCidr} reads it. */
export function formatCidr(cidr: Cidr): string {
  return `${cidr.network}/${cidr.prefix}`
}

/** The number of addresses in the block. */
export function cidrSize(cidr: Cidr): bigint {
  return 1n << BigInt(addressBits(cidr.network) - cidr.prefix)
}

/** The address at `offset` from the network address; `offset` must be below the size. */
export function cidrAddress(cidr: Cidr, offset: bigint): string {
  return toIp(toNumber(cidr.network) + offset, addressBits(cidr.network))
}

/** Whether a canonical address lies in the block. */
export function cidrContains(cidr: Cidr, ip: string): boolean {
  if (isIpv6(ip) !== isIpv6(cidr.network)) return false
  const distance = toNumber(ip) - toNumber(cidr.network)
  return distance >= 0n && distance < cidrSize(cidr)
}

/** Whether two blocks have an address in common. */
export function cidrsOverlap(left: Cidr, right: Cidr): boolean {
  return cidrContains(left, right.network) || cidrContains(right, left.network)
}

function addressBits(ip: string): number {
  return isIpv6(ip) ? 128 : 32
}

function toNumber(ip: string): bigint {
  let value = 0n
  for (const byte of ipBytes(ip)) value = (value << 8n) | BigInt(byte)
  return value
}

function toIp(value: bigint, bits: number): string {
  const bytes = new Uint8Array(bits / 8)
  let rest = value
  for (let index = bytes.length - 1; index >= 0; index -= 1) {
    bytes[index] = Number(rest & 0xffn)
    rest >>= 8n
  }
  return ipFromBytes(bytes) ?? ''
}
