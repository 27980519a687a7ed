/**
 * Warns of instances that cannot be reached at their own address, because no proxy serves them now. Pure.
 */
import { formatAddress, isLoopback } from '../../model/address.ts'
import type { MeshService, Snapshot } from '../../model/snapshot.ts'
import type { CatalogService } from '../catalog/catalog.ts'

/** Number of addresses that are named per service. */
const MAX_NAMED = 3

/**
 * One sentence for each service with such instances. Those on `nodeName`, this host, are left out: an own service that
 * is not served is reported as a problem.
 */
export function unservedWarnings(
  { services }: Pick<Snapshot, 'services'>,
  nodeName: string,
  catalog: ReadonlyMap<string, Pick<CatalogService, 'addresses'>>,
): readonly string[] {
  return [...services.values()].flatMap((service) => {
    const own = (catalog.get(service.name)?.addresses ?? [])
      .filter(({ node }) => node === nodeName)
      .map(formatAddress)
    const unserved = unservedAddresses(service).filter((address) => !own.includes(address))
    if (unserved.length === 0) return []
    const more = unserved.length > MAX_NAMED ? ` and ${unserved.length - MAX_NAMED} more` : ''
    return [
      `No proxy serves ${service.name} at ${unserved.slice(0, MAX_NAMED).join(', ')}${more}: connections to there are refused, unless capture.permissive names the service`,
    ]
  })
}

function unservedAddresses({ name, addresses, clusters }: MeshService): readonly string[] {
  const served = new Set(
    clusters[0].endpoints.flatMap(({ application, service }) =>
      application === undefined || service !== name ? [] : [formatAddress(application)],
    ),
  )
  return addresses
    .filter(({ ip }) => !isLoopback(ip))
    .map(formatAddress)
    .filter((address) => !served.has(address))
}
