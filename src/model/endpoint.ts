/**
 * Instances of services as the balancer and the tunnel use them.
 */
import type { SocketAddress } from './address.ts'

/** The worst state of an instance's checks, node checks included (Consul's rule). */
export type Health = 'passing' | 'warning' | 'critical'

/** One instance of a service. Equal `key` means the same instance across snapshots. */
export interface Endpoint {
  /** `<node>/<service id>`, in another datacenter `<datacenter>/<node>/<service id>`: identity across snapshots. */
  readonly key: string
  /** The service of the instance, which its peer must prove. Differs from the called service after a redirect. */
  readonly service: string
  /** The datacenter that its peer must prove. Empty in a catalog that has only one: compile() then fills it in. */
  readonly datacenter: string
  /** 0: receives the service's traffic; 1 and higher: failover, when no instance of a lower number is available. */
  readonly priority: number
  /** The service ID on its node; distinguishes instances behind one tunnel port. */
  readonly id: string
  readonly node: string
  /** The address of the mesh listener (hostmesh, sidecar) that accepts mutual TLS. */
  readonly tunnel: SocketAddress
  /** The address of the application, which callers may dial; undefined when unknown. */
  readonly application: SocketAddress | undefined
  readonly health: Health
  /** Relative share of traffic, at least 1. */
  readonly weight: number
  /** Whether this host runs it: then it is delivered to without a tunnel. Set by compile(). */
  readonly local: boolean
}
