/**
 * Finds the service for the address that an application dialed. Pure.
 *
 * A virtual address means any instance of the service; an instance's own address means that instance, and still belongs
 * to the service when no endpoint serves the instance. The index is updated by deltas: one changed service costs the
 * work for one service, however large the mesh is.
 */
import { formatAddress, type SocketAddress } from '../../model/address.ts'
import type { MeshService, SnapshotDelta } from '../../model/snapshot.ts'

/** The destination of an address. */
export interface AddressRoute {
  readonly service: string
  /**
   * Key of the one endpoint that is meant; undefined for a virtual address, and for an instance without an endpoint.
   */
  readonly endpointKey: string | undefined
  /** Set for the address of an instance that no endpoint serves. */
  readonly isUnserved?: true
}

/** The routes of the services that claim an address: the first one is used. */
type Claims = Map<string, AddressRoute[]>

/** Address to service, kept up to date by {@link AddressIndex.apply}. */
export class AddressIndex {
  private readonly byVirtualIp: Claims = new Map()
  private readonly byInstance: Claims = new Map()
  private readonly indexed = new Map<string, MeshService>()

  /**
   * Applies a delta. When two services claim an address, the one indexed first keeps it until it releases it; then the
   * other one has it. Addresses may move between services within one delta.
   */
  apply(delta: SnapshotDelta): void {
    for (const name of delta.removedServices) this.release(name, undefined)
    for (const service of delta.services) this.release(service.name, service)
    for (const service of delta.services) this.claim(service)
  }

  /** The route of an address; undefined when no service is known there. */
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

  /** Releases the addresses that `after` does not have. */
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
 * Endpoint keys by instance address, undefined where no endpoint serves it; of several endpoints at one address the
 * first. Endpoints of a redirect target are skipped: their addresses belong to that other service.
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
