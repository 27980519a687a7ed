/**
 * Which instance addresses the capture rules divert, as callers may have them from DNS, and which they count and let
 * pass. Pure; the daemon fills the kernel's sets by it, and explain reads them by it.
 */
import { formatAddress, isLoopback, type SocketAddress } from '../model/address.ts'
import type { MeshService } from '../model/snapshot.ts'

/** The addresses that belong into the sets; none is in both. */
export interface InstanceSets {
  /** Diverted. */
  readonly captured: readonly SocketAddress[]
  /** Of permissive services, where the mesh cannot carry a connection at the moment: counted, and left alone. */
  readonly permitted: readonly SocketAddress[]
}

/** In `capture.permissive`: every service. */
const EVERY_SERVICE = '*'

/** What else decides. */
export interface InstanceSetOptions {
  /** Names of services, or {@link EVERY_SERVICE}. */
  readonly permissive?: readonly string[]
  /** Addresses of services that are not followed: whether a proxy serves them turns out when they are. */
  readonly dormant?: ReadonlyMap<string, readonly SocketAddress[]> | undefined
  /** Whether this host carries connections; it does not when it stops. Then nothing that is permissive waits for it. */
  readonly carries?: boolean
}

/**
 * Every address at which an instance of a mesh service listens, here or elsewhere, whether a proxy serves it or not.
 * Loopback is each host's own and never captured.
 */
export function instanceSets(
  services: Iterable<MeshService>,
  { permissive = [], dormant = new Map(), carries = true }: InstanceSetOptions = {},
): InstanceSets {
  const captured: SocketAddress[] = []
  const permitted: SocketAddress[] = []
  const named = new Set(permissive)
  const isPermissive = (name: string): boolean => named.has(EVERY_SERVICE) || named.has(name)
  for (const service of services) {
    const served = !isPermissive(service.name)
      ? undefined
      : carries
        ? servedAddresses(service)
        : NOWHERE
    for (const { ip, port } of service.addresses) {
      if (isLoopback(ip)) continue
      const isCaptured = served === undefined || served.has(formatAddress({ ip, port }))
      ;(isCaptured ? captured : permitted).push({ ip, port })
    }
  }
  for (const [name, addresses] of dormant) {
    const set = !carries && isPermissive(name) ? permitted : captured
    set.push(...addresses.filter(({ ip }) => !isLoopback(ip)))
  }
  return { captured, permitted }
}

const NOWHERE: ReadonlySet<string> = new Set()

/** Where a proxy that is not known to be away serves the instance. */
function servedAddresses({ name, clusters }: MeshService): ReadonlySet<string> {
  const served = new Set<string>()
  for (const { application, service, health } of clusters[0].endpoints)
    if (application !== undefined && service === name && health !== 'critical')
      served.add(formatAddress(application))
  return served
}
