/**
 * The addresses that sets of the kernel are to hold, by family, in the words of the tool that fills them. Pure.
 */
import { MeshError } from '../../lib/errors.ts'
import {
  canonicalIp,
  isIpv6,
  isLoopback,
  isPort,
  isUndialable,
  type SocketAddress,
} from '../../model/address.ts'
import type { Family } from './rules.ts'

/** Most addresses of one family; a catalog beyond it is a mistake, and the kernel's memory is finite. */
export const MAX_INSTANCE_ADDRESSES = 262_144

/** What one set holds. */
export type SetMembers = ReadonlySet<string>

/**
 * The members of both sets. Loopback, multicast and unspecified addresses are left out: they mean another
 * machine on every host, and the rules let loopback pass anyway.
 * @throws MeshError HM_CAPTURE_INSTANCES_INVALID when an address is none, or there are too many.
 */
export function membersByFamily(
  addresses: Iterable<SocketAddress>,
  memberOf: (ip: string, port: number) => string,
): Record<Family, SetMembers> {
  const members = { v4: new Set<string>(), v6: new Set<string>() }
  for (const address of addresses) {
    const ip = canonicalIp(address.ip)
    if (ip === undefined || !isPort(address.port))
      throw new MeshError(
        'HM_CAPTURE_INSTANCES_INVALID',
        `Cannot capture the instance address ${JSON.stringify(`${address.ip}:${address.port}`)}: not an IP address and port`,
      )
    if (isLoopback(ip) || isUndialable(ip)) continue
    members[isIpv6(ip) ? 'v6' : 'v4'].add(memberOf(ip, address.port))
  }
  const most = Math.max(members.v4.size, members.v6.size)
  if (most > MAX_INSTANCE_ADDRESSES)
    throw new MeshError(
      'HM_CAPTURE_INSTANCES_INVALID',
      `Cannot capture ${most} instance addresses: the limit is ${MAX_INSTANCE_ADDRESSES}`,
      { hint: 'Follow only the services that this host calls (catalog.watch: upstreams)' },
    )
  return members
}

/** Whether both hold the same; one that is not there holds nothing that could be the same. */
export function isSameSet(a: SetMembers | undefined, b: SetMembers): boolean {
  return a?.size === b.size && [...b].every((member) => a.has(member))
}
