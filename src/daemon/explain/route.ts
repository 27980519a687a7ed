/**
 * Station `route`: which service a destination is, by the data plane's {@link AddressIndex} or by name.
 */
import { AddressIndex, type AddressRoute } from '../../dataplane/route/by-address.ts'
import { formatAddress, type SocketAddress } from '../../model/address.ts'
import type { Endpoint } from '../../model/endpoint.ts'
import type { HostFacts } from '../../model/facts.ts'
import { directRouting } from '../../model/route.ts'
import type { MeshService } from '../../model/snapshot.ts'
import { isCalled } from './caller.ts'
import type { Draft } from './draft.ts'
import { listenerAt } from './entry.ts'
import { readTarget, type Target } from './target.ts'

/**
 * The service that a pair is about; undefined when this host does not know it.
 * @param ownerOf also finds the addresses of services that are not followed
 */
export function serviceAskedFor(
  facts: HostFacts,
  from: string,
  to: string,
  ownerOf: (ip: string, port: number) => string | undefined,
): string | undefined {
  if (to === '') return undefined
  const target = readTarget(facts, to)
  if (target.kind === 'service') return target.name
  const listener = listenerAt(facts, target.address)
  if (listener !== undefined && isCalled(listener.caller, from)) return listener.destination
  return routeOf(facts, target.address)?.service ?? ownerOf(target.address.ip, target.address.port)
}

/** The name of the service that a destination is; undefined for an address without a service. */
export function nameOf(facts: HostFacts, target: Target): string | undefined {
  return target.kind === 'service' ? target.name : routeOf(facts, target.address)?.service
}

/** A service of this host, as the catalog has it, or with defaults while the catalog does not have it. */
export function ownService(facts: HostFacts, name: string): MeshService {
  const known = facts.services.find((service) => service.name === name)
  if (known !== undefined) return known
  return {
    name,
    datacenter: facts.datacenter,
    virtualIps: [],
    protocol: 'tcp',
    ...directRouting(name, { datacenter: facts.datacenter }),
    addresses: [],
  }
}

/**
 * Adds the station and returns the service, with the instance if the address is an instance's; undefined if the path
 * ends here. `wanted` is the destination as the daemon sees it, `target` the one in the question.
 */
export function describeRoute(
  draft: Draft,
  facts: HostFacts,
  wanted: string | SocketAddress,
  target: Target,
): { readonly service: MeshService; readonly pinned: Endpoint | undefined } | undefined {
  const text = typeof wanted === 'string' ? wanted : formatAddress(wanted)
  if (facts.snapshotVersion === 0) {
    draft.station('route', 'bad', 'This host has no snapshot of the mesh yet', facts.awaited)
    draft.fail('unreachable', 'This host knows nothing of the mesh yet', ...facts.catalog.problems)
    return undefined
  }
  const route =
    typeof wanted === 'string'
      ? { service: wanted, endpointKey: undefined, isUnserved: undefined }
      : routeOf(facts, wanted)
  const service = facts.services.find(({ name }) => name === route?.service)
  if (route === undefined || service === undefined) {
    draft.station('route', 'bad', `No mesh service is known at ${text}`, [
      'To be known it must be in the catalog; with catalog.watch: upstreams also offered or named as upstream here',
    ])
    draft.fail(
      target.kind === 'service' ? 'unknownService' : 'unreachable',
      `${facts.node} knows no mesh service ${target.kind === 'service' ? target.name : `at ${text}`}`,
      'hostmesh services lists what this host knows',
      'Is it in the catalog, with a mesh listener? With catalog.watch: upstreams, name it under services[].upstreams',
    )
    return undefined
  }
  const pinned = service.clusters[0].endpoints.find(({ key }) => key === route.endpointKey)
  if (route.isUnserved === true) {
    draft.station('route', 'bad', `${text} is an instance of ${service.name} that no proxy serves`)
    draft.fail(
      'unreachable',
      `No proxy serves the instance of ${service.name} at ${text}, so it cannot be reached there`,
      'Start hostmesh, or its sidecar, on that host',
      `Or dial the service itself: hostmesh services ${service.name}`,
    )
    return undefined
  }
  const how =
    typeof wanted === 'string'
      ? 'by name'
      : pinned === undefined
        ? 'by its virtual address, at any port'
        : `by the address of its instance ${pinned.key}`
  const what = typeof wanted === 'string' ? '' : `${text} is `
  draft.station('route', 'good', `${what}service ${service.name}, ${how}`, [
    `Protocol ${service.protocol}, datacenter ${service.datacenter}, connect timeout ${service.clusters[0].connectTimeoutMs} ms`,
  ])
  return { service, pinned }
}

/** The data plane's answer, from an index of this host's services. */
function routeOf(facts: HostFacts, address: SocketAddress): AddressRoute | undefined {
  const index = new AddressIndex()
  index.apply({
    version: facts.snapshotVersion,
    datacenter: facts.datacenter,
    services: facts.services,
    removedServices: [],
    policies: [],
    removedPolicies: [],
  })
  return index.find(address)
}
