/**
 * Assigns each instance address to one service. Pure.
 *
 * Anyone who may register a service may claim any port of a node. The first service that claimed an address keeps it,
 * by the times that the catalog itself has stored: so a restart of this host changes nothing, and a new service cannot
 * attract the callers of another one's address. For this host, its own configuration takes precedence.
 */
import { formatAddress, isPort, isUndialable, type SocketAddress } from '../../model/address.ts'
import type { LocalService } from '../../model/service.ts'
import { type CatalogService, DISPUTED, type InstanceAddress } from '../catalog/catalog.ts'

/** The input of {@link shareInstanceAddresses}: part of that of a snapshot. */
export interface InstanceClaims {
  readonly nodeName: string
  readonly localServices: readonly LocalService[]
  readonly catalogServices: ReadonlyMap<string, Pick<CatalogService, 'addresses'>>
}

/** The owners of addresses. */
export interface SharedInstanceAddresses {
  /** Sorted. */
  readonly byService: ReadonlyMap<string, readonly SocketAddress[]>
  /** Rejected claims. */
  readonly problems: readonly { readonly service: string; readonly message: string }[]
}

interface Claim {
  readonly service: string
  readonly address: InstanceAddress
}

/** Used as the service name of addresses without a known owner: they are captured, but lead to no service. */
const NOBODY = ''

/** Decides all claims. */
export function shareInstanceAddresses(input: InstanceClaims): SharedInstanceAddresses {
  const claimsByAddress = new Map<string, Claim[]>()
  for (const [service, { addresses }] of input.catalogServices)
    for (const address of addresses) {
      if (!isPort(address.port) || isUndialable(address.ip)) continue
      const key = formatAddress(address)
      const claims = claimsByAddress.get(key)
      if (claims === undefined) claimsByAddress.set(key, [{ service, address }])
      else claims.push({ service, address })
    }
  const ownPorts = configuredPorts(input.localServices)
  const byService = new Map<string, SocketAddress[]>()
  const problems: SharedInstanceAddresses['problems'][number][] = []
  for (const [key, claims] of [...claimsByAddress].toSorted(([a], [b]) => (a < b ? -1 : 1))) {
    const { owner, reason } = ownerOf(claims, input.nodeName, ownPorts)
    for (const { service, address } of claims) {
      if (service === owner || owner === NOBODY || address.goneSinceMs !== undefined) continue
      problems.push({
        service,
        message: `Service ${service} claims ${key} on ${address.node}, which is an address of service ${owner}: ${reason}, so it stays that`,
      })
    }
    const [claim] = claims
    if (claim === undefined) continue
    const { ip, port } = claim.address
    const own = byService.get(owner)
    if (own === undefined) byService.set(owner, [{ ip, port }])
    else own.push({ ip, port })
  }
  return { byService, problems }
}

/** Names of this host's services, by the port on which they listen. */
function configuredPorts(
  localServices: readonly LocalService[],
): ReadonlyMap<number, ReadonlySet<string>> {
  const names = new Map<number, Set<string>>()
  for (const { name, target } of localServices)
    if (target !== undefined)
      names.set(target.port, (names.get(target.port) ?? new Set()).add(name))
  return names
}

function ownerOf(
  claims: readonly Claim[],
  nodeName: string,
  ownPorts: ReadonlyMap<number, ReadonlySet<string>>,
): { readonly owner: string; readonly reason: string } {
  const configured = claims.find(({ service, address }) => {
    return address.node === nodeName && ownPorts.get(address.port)?.has(service) === true
  })
  if (configured !== undefined)
    return { owner: configured.service, reason: 'the configuration of this host says so' }
  const [first] = withoutMoved(claims).toSorted(
    (a, b) => a.address.since - b.address.since || (a.service < b.service ? -1 : 1),
  )
  // The catalog reports the dispute itself, with both names.
  if (first?.address.since === DISPUTED) return { owner: NOBODY, reason: 'it is disputed' }
  return { owner: first?.service ?? NOBODY, reason: 'it was registered there first' }
}

/** Drops former claims on nodes that no present claim names: the address has moved to another node. */
function withoutMoved(claims: readonly Claim[]): readonly Claim[] {
  const live = claims.filter(({ address }) => address.goneSinceMs === undefined)
  if (live.length === 0) return claims
  // Consul ignores case in node names, but lists a name as it was written.
  const nodes = new Set(live.map(({ address }) => address.node.toLowerCase()))
  return claims.filter(
    ({ address }) => address.goneSinceMs === undefined || nodes.has(address.node.toLowerCase()),
  )
}
