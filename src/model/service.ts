/**
 * What runs on this host: the services it offers and the local processes that speak for them.
 */
import type { SocketAddress } from './address.ts'

/**
 * How the kernel recognizes a workload's sockets. Nothing that the client sends can change it.
 * `cgroup` is a path below the cgroup v2 root (`system.slice/web.service`), `user` a name or numeric
 * uid, `sourceAddress` the address of a container on a local bridge.
 */
export type WorkloadSelector =
  | { readonly kind: 'cgroup'; readonly path: string }
  | { readonly kind: 'user'; readonly user: string }
  | { readonly kind: 'sourceAddress'; readonly ip: string }

/** A port on loopback that leads to one destination service, as a sidecar's upstream does. */
export interface ExplicitUpstream {
  readonly destination: string
  /** Where the application dials; undefined when the destination is only reached through capture. */
  readonly bind: SocketAddress | undefined
}

/** What an application sees of the connections that are delivered to it. */
export interface Delivery {
  /** The address they come from; the kernel's choice when undefined. */
  readonly from: string | undefined
  /** Whether each begins with a PROXY protocol header that names the caller. */
  readonly proxyHeader: boolean
}

/** One service instance of this host, from the configuration. */
export interface LocalService {
  /** The logical name: what intentions and certificates speak of. */
  readonly name: string
  /** Unique on the host; the catalog's service ID. Equals `name` unless several instances share a host. */
  readonly id: string
  /** Where the application listens; undefined for a workload that only calls. */
  readonly target: SocketAddress | undefined
  /** How connections are made to `target`; the ordinary way when left out. */
  readonly delivery?: Delivery | undefined
  /**
   * A tunnel port of its own, for Connect peers that send no server name; undefined when the host's
   * tunnel port is all it has.
   */
  readonly connectPort: number | undefined
  /** How its own outgoing connections are recognized; undefined when it is never captured. */
  readonly selector: WorkloadSelector | undefined
  /** The port its captured connections are diverted to; given with `selector`. */
  readonly capturePort: number | undefined
  readonly upstreams: readonly ExplicitUpstream[]
}
