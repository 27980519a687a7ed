/**
 * From the address that an application asked for to the service it means. Pure.
 *
 * A virtual address means the service, whichever instance; an instance's own address means that
 * instance. The index follows snapshots piece by piece, so that one changed service costs one
 * service's work however large the mesh is.
 */
import { formatAddress, type SocketAddress } from '../../model/address.ts'
import type { MeshService, SnapshotDelta } from '../../model/snapshot.ts'

/** Where an address leads. */
export interface AddressRoute {
  readonly service: string
  /** Key of the one endpoint that is meant; undefined for a virtual address. */
  readonly endpointKey: string | undefined
}

/** Address to service, kept up to date by {@link AddressIndex.apply}. */
export class AddressIndex {
  private readonly byVirtualIp = new Map<string, AddressRoute>()
  private readonly byInstance = new Map<string, AddressRoute>()
  private readonly indexed = new Map<string, MeshService>()

  /** Takes over what changed. When two services claim an address, the one indexed first keeps it. */
  apply(delta: SnapshotDelta): void {
    for (const name of delta.removedServices) this.remove(name)
    for (const service of delta.services) {
      this.remove(service.name)
      this.add(service)
    }
  }

  /** The route of an address, or undefined when no service is known there. */
  find(address: SocketAddress): AddressRoute | undefined {
    return this.byVirtualIp.get(address.ip) ?? this.byInstance.get(formatAddress(address))
  }

  private add(service: MeshService): void {
    this.indexed.set(service.name, service)
    for (const ip of service.virtualIps)
      if (!this.byVirtualIp.has(ip))
        this.byVirtualIp.set(ip, { service: service.name, endpointKey: undefined })
    for (const endpoint of service.endpoints) {
      if (endpoint.application === undefined) continue
      const key = formatAddress(endpoint.application)
      if (!this.byInstance.has(key))
        this.byInstance.set(key, { service: service.name, endpointKey: endpoint.key })
    }
  }

  private remove(name: string): void {
    const service = this.indexed.get(name)
    if (service === undefined) return
    this.indexed.delete(name)
    for (const ip of service.virtualIps) forget(this.byVirtualIp, ip, name)
    for (const endpoint of service.endpoints)
      if (endpoint.application !== undefined)
        forget(this.byInstance, formatAddress(endpoint.application), name)
  }
}

function forget(index: Map<string, AddressRoute>, key: string, service: string): void {
  if (index.get(key)?.service === service) index.delete(key)
}
