/**
 * From the address that an application asked for to the service it means. Pure.
 *
 * A virtual address means the service, whichever instance; an instance's own address means that
 * instance, and stays the service's when no endpoint serves the instance at the moment. The index follows snapshots piece by piece, so that one changed service costs one
 * service's work however large the mesh is.
 */
import { formatAddress, type SocketAddress } from '../../model/address.ts'
import type { MeshService, SnapshotDelta } from '../../model/snapshot.ts'

/** Where an address leads. */
export interface AddressRoute {
  readonly service: string
  /** Key of the one endpoint that is meant; undefined for a virtual address, and for an instance without any. */
  readonly endpointKey: string | undefined
  /** Set where one instance is meant that no endpoint serves. */
  readonly isUnserved?: true
}

/** Who claims an address: the first of the list has it. */
type Claims = Map<string, AddressRoute[]>

/** Address to service, kept up to date by {@link AddressIndex.apply}. */
export class AddressIndex {
  private readonly byVirtualIp: Claims = new Map()
  private readonly byInstance: Claims = new Map()
  private readonly indexed = new Map<string, MeshService>()

  /**
   * Takes over what changed. When two services claim an address, the one indexed first keeps it until it
   * gives it up; then the other one has it. Addresses may move between services within one delta.
   */
  apply(delta: SnapshotDelta): void {
    for (const name of delta.removedServices) this.release(name, undefined)
    for (const service of delta.services) this.release(service.name, service)
    for (const service of delta.services) this.claim(service)
  }

  /** The route of an address, or undefined when no service is known there. */
  find(address: SocketAddress): AddressRoute | undefined {
    return this.byVirtualIp.get(address.ip)?.[0] ?? this.byInstance.get(formatAddress(address))?.[0]
  }

  private claim(service: MeshService): void {
    this.indexed.set(service.name, service)
    for (const ip of service.virtualIps)
      claim(this.byVirtualIp, ip, { service: service.name, endpointKey: undefined })
    for (const [key, endpointKey] of instancesOf(service))
      claim(this.byInstance, key, {
        service: service.name,
        endpointKey,
        ...(endpointKey === undefined && { isUnserved: true }),
      })
  }

  /** Gives up the addresses that `after` does not have any more. */
  private release(name: string, after: MeshService | undefined): void {
    const before = this.indexed.get(name)
    if (before === undefined) return
    this.indexed.delete(name)
    const keptIps = new Set(after?.virtualIps)
    for (const ip of before.virtualIps) if (!keptIps.has(ip)) release(this.byVirtualIp, ip, name)
    const keptInstances = after === undefined ? undefined : instancesOf(after)
    for (const key of instancesOf(before).keys())
      if (keptInstances?.has(key) !== true) release(this.byInstance, key, name)
  }
}

/**
 * Instance address to endpoint key, undefined where no endpoint serves it; the first endpoint at an address has it.
 * What a service is redirected to stays the address of that other service.
 */
function instancesOf(service: MeshService): Map<string, string | undefined> {
  const keys = new Map<string, string | undefined>()
  for (const endpoint of service.clusters[0].endpoints) {
    if (endpoint.application === undefined || endpoint.service !== service.name) continue
    const address = formatAddress(endpoint.application)
    if (!keys.has(address)) keys.set(address, endpoint.key)
  }
  for (const address of service.addresses.map(formatAddress))
    if (!keys.has(address)) keys.set(address, undefined)
  return keys
}

function claim(claims: Claims, address: string, route: AddressRoute): void {
  const routes = claims.get(address)
  const own = routes?.findIndex(({ service }) => service === route.service) ?? -1
  if (routes === undefined) claims.set(address, [route])
  else if (own >= 0) routes[own] = route
  else routes.push(route)
}

function release(claims: Claims, address: string, service: string): void {
  const routes = claims.get(address)?.filter((route) => route.service !== service) ?? []
  if (routes.length === 0) claims.delete(address)
  else claims.set(address, routes)
}
