/**
 * Which instance addresses (as callers may get them from DNS) the capture rules divert, and which they only count and
 * let pass. Pure; the daemon fills the kernel's sets with the result, and explain uses it, too.
 */
import { formatAddress, isLoopback, type SocketAddress } from '../model/address.ts'
import type { MeshService } from '../model/snapshot.ts'

/** The addresses of the two sets; none is in both. */
export interface InstanceSets {
  /** Diverted. */
  readonly captured: readonly SocketAddress[]
  /** Of permissive services, where the mesh cannot carry a connection now: counted and not diverted. */
  readonly permitted: readonly SocketAddress[]
}

/** In `capture.permissive`: every service. */
const EVERY_SERVICE = '*'

/** Further inputs. */
export interface InstanceSetOptions {
  /** Names of services, or {@link EVERY_SERVICE}. */
  readonly permissive?: readonly string[]
  /** Addresses of services that are not followed: whether a proxy serves them is unknown until they are. */
  readonly dormant?: ReadonlyMap<string, readonly SocketAddress[]> | undefined
  /** Whether this host accepts connections; false during a stop, when permissive services bypass the mesh. */
  readonly acceptsConnections?: boolean
}

/**
 * All addresses at which an instance of a mesh service listens, on any host, whether a proxy serves it or not.
 * Loopback addresses belong to each host and are never captured.
 */
export function instanceSets(
  services: Iterable<MeshService>,
  { permissive = [], dormant = new Map(), acceptsConnections = true }: InstanceSetOptions = {},
): InstanceSets {
  const captured: SocketAddress[] = []
  const permitted: SocketAddress[] = []
  const named = new Set(permissive)
  const isPermissive = (name: string): boolean => named.has(EVERY_SERVICE) || named.has(name)
  for (const service of services) {
    const served = !isPermissive(service.name)
      ? undefined
      : acceptsConnections
        ? servedAddresses(service)
        : NOWHERE
    for (const { ip, port } of service.addresses) {
      if (isLoopback(ip)) continue
      const isCaptured = served === undefined || served.has(formatAddress({ ip, port }))
      ;(isCaptured ? captured : permitted).push({ ip, port })
    }
  }
  for (const [name, addresses] of dormant) {
    const set = !acceptsConnections && isPermissive(name) ? permitted : captured
    set.push(...addresses.filter(({ ip }) => !isLoopback(ip)))
  }
  return { captured, permitted }
}

const NOWHERE: ReadonlySet<string> = new Set()

/** Addresses of instances that a proxy serves and that are not known to be down. */
function servedAddresses({ name, clusters }: MeshService): ReadonlySet<string> {
  const served = new Set<string>()
  for (const { application, service, health } of clusters[0].endpoints)
    if (application !== undefined && service === name && health !== 'critical')
      served.add(formatAddress(application))
  return served
}
