/**
 * Instances of mesh services as the balancer and the tunnel see them.
 */
import type { SocketAddress } from './address.ts'

/** Worst of an instance's checks, node checks included (Consul's rule). */
export type Health = 'passing' | 'warning' | 'critical'

/** One instance of a service. Equal `key` means the same instance across snapshots. */
export interface Endpoint {
  /** `<node>/<service id>`, in another datacenter `<datacenter>/<node>/<service id>`: identity across snapshots. */
  readonly key: string
  /** The service it is an instance of: what its peer must prove to be. Another than was asked for after a redirect. */
  readonly service: string
  /** The datacenter that its peer must prove to be of. Empty in a catalog that knows only one: compile() fills it in. */
  readonly datacenter: string
  /** 0: where the service's traffic goes; 1 and up: where it goes when no instance before has remained (failover). */
  readonly priority: number
  /** The service ID at its node; tells several instances behind one tunnel port apart. */
  readonly id: string
  readonly node: string
  /** Where its mesh listener (hostmesh, sidecar) takes mutual TLS. */
  readonly tunnel: SocketAddress
  /** The application's own address, by which callers may reach for it; undefined when unknown. */
  readonly application: SocketAddress | undefined
  readonly health: Health
  /** Relative share of traffic, at least 1. */
  readonly weight: number
  /** Whether this host runs it: then it is delivered to without a tunnel. Decided by compile(). */
  readonly local: boolean
}
