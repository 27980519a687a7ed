/**
 * The addresses that kernel sets must hold, by family, in the syntax of the tool that fills the sets. Pure.
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

/** Maximum number of addresses of one family: a larger catalog is a mistake, and kernel memory is limited. */
export const MAX_INSTANCE_ADDRESSES = 262_144

/** The members of one set. */
export type SetMembers = ReadonlySet<string>

/**
 * The members of the sets of both families. Loopback, multicast and unspecified addresses are left out: they mean
 * another machine on every host, and the rules pass loopback anyway.
 * @throws MeshError HM_CAPTURE_INSTANCES_INVALID when an address is invalid, or there are too many.
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

/** Whether both sets are equal; an absent set equals none. */
export function isSameSet(a: SetMembers | undefined, b: SetMembers): boolean {
  return a?.size === b.size && [...b].every((member) => a.has(member))
}
