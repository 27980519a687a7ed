/**
 * Instances of mesh services as the balancer and the tunnel see them.
 */
import type { SocketAddress } from './address.ts'

/** Worst of an instance's checks, node checks included (Consul's rule). */
export type Health = 'passing' | 'warning' | 'critical'

/** One instance of a service. Equal `key` means the same instance across snapshots. */
export interface Endpoint {
  /** `<node>/<service id>`: identity across snapshots. */
  readonly key: string
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
  /** Whether this host runs it: then it is delivered to without a tunnel. */
  readonly local: boolean
}
