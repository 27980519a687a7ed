/**
 * Which instance addresses the capture rules divert: those of other hosts, as callers may have them from DNS.
 * Pure; the daemon fills the kernel's sets by it, and explain reads them by it.
 */
import type { SocketAddress } from '../model/address.ts'
import type { MeshService } from '../model/snapshot.ts'

/** The addresses that belong into the sets. */
export function capturedInstances(services: Iterable<MeshService>): SocketAddress[] {
  const addresses: SocketAddress[] = []
  // What a service is redirected to is captured if that other service is used as well.
  for (const service of services)
    for (const { application, local, service: owner } of service.endpoints)
      if (application !== undefined && !local && owner === service.name) addresses.push(application)
  return addresses
}
