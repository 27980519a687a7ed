/**
 * Parses `--to` with the facts of this host: a service by name or by DNS name, or an address. route.ts finds the
 * service behind an address.
 */
import { MeshError } from '../../lib/errors.ts'
import { canonicalIp, type SocketAddress } from '../../model/address.ts'
import type { HostFacts } from '../../model/facts.ts'

/** The destination: a service, with the port if one was given, or an address. */
export type Target =
  | { readonly kind: 'service'; readonly name: string; readonly port: number | undefined }
  | { readonly kind: 'address'; readonly address: SocketAddress }

/**
 * Parses `db`, `db:5432`, `db.mesh`, `240.0.0.1`, `10.0.0.7:5432`, `[fd00::1]:80`. A service with exactly this name
 * takes precedence over a DNS name.
 * @throws MeshError HM_USAGE_DESTINATION when the text cannot be a destination.
 */
export function readTarget(facts: HostFacts, text: string): Target {
  const isService = (name: string): boolean =>
    facts.services.some((service) => service.name === name)
  const match = /^(?:\[([0-9a-fA-F:.]+)\]|([^:\s]+))(?::(\d{1,5}))?$/.exec(text)
  const ip = canonicalIp(match?.[1] ?? match?.[2] ?? text)
  const port = match?.[3] === undefined ? undefined : Number(match[3])
  if ((match === null && ip === undefined) || (port !== undefined && (port < 1 || port > 65_535)))
    throw new MeshError(
      'HM_USAGE_DESTINATION',
      `Cannot explain a connection to ${JSON.stringify(text)}: it is no destination`,
      {
        hint: 'Give a service (db), a name (db.mesh), or an address (240.0.0.1:5432), with or without port',
      },
    )
  if (ip !== undefined)
    return { kind: 'address', address: { ip, port: port ?? usualPort(facts, ip) } }
  const name = match?.[2] ?? text
  const plain = name.toLowerCase().replace(/\.$/, '')
  const domain = facts.domains.find((each) => plain.endsWith(`.${each}`))
  return isService(name) || domain === undefined
    ? { kind: 'service', name, port }
    : { kind: 'service', name: plain.slice(0, -domain.length - 1), port }
}

/** The port to assume for an address without one. */
function usualPort(facts: HostFacts, ip: string): number {
  for (const { virtualIps, clusters } of facts.services) {
    const isVirtual = virtualIps.includes(ip)
    for (const { application } of clusters[0].endpoints)
      if (application !== undefined && (isVirtual || application.ip === ip)) return application.port
  }
  return 80
}

/** What the daemon would see if the connection reached it; used to explain the rest of a path that ends earlier. */
export function wantedBy(target: Target): string | SocketAddress {
  return target.kind === 'service' ? target.name : target.address
}
