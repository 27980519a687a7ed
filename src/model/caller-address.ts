/**
 * The address by which callers are told apart where each has a share of something.
 */
import { canonicalIp, ipBytes, isIpv6 } from './address.ts'

/**
 * The key of one caller: an IPv4 address, or the 64 bits of an IPv6 address that name a network, within which anyone
 * can have any number of addresses.
 */
export function callerAt(remoteAddress: string | undefined): string {
  const ip = canonicalIp(remoteAddress?.split('%', 1)[0] ?? '') ?? ''
  return isIpv6(ip) ? Buffer.from(ipBytes(ip).subarray(0, 8)).toString('hex') : ip
}
