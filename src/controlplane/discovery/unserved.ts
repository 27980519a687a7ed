/**
 * Instances that cannot be reached at their own address, because no proxy serves them at the moment. Pure.
 */
import { formatAddress, isLoopback } from '../../model/address.ts'
import type { MeshService, Snapshot } from '../../model/snapshot.ts'

/** Addresses named for one service. */
const MAX_NAMED = 3

/** One sentence for each service with such instances. */
export function unservedWarnings({ services }: Pick<Snapshot, 'services'>): readonly string[] {
  return [...services.values()].flatMap((service) => {
    const unserved = unservedAddresses(service)
    if (unserved.length === 0) return []
    const more = unserved.length > MAX_NAMED ? ` and ${unserved.length - MAX_NAMED} more` : ''
    return [
      `No proxy serves ${service.name} at ${unserved.slice(0, MAX_NAMED).join(', ')}${more}: connections to there are refused, unless capture.permissive names the service`,
    ]
  })
}

function unservedAddresses({ name, addresses, endpoints }: MeshService): readonly string[] {
  const served = new Set(
    endpoints.flatMap(({ application, service }) =>
      application === undefined || service !== name ? [] : [formatAddress(application)],
    ),
  )
  return addresses
    .filter(({ ip }) => !isLoopback(ip))
    .map(formatAddress)
    .filter((address) => !served.has(address))
}
