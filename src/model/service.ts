/**
 * The services of this host, and the local processes that call in their name.
 */
import type { SocketAddress } from './address.ts'

/**
 * How the kernel recognizes a workload's sockets. A client cannot influence it by what it sends. `cgroup` is a path
 * below the cgroup v2 root (`system.slice/web.service`), `user` a name or numeric uid, `sourceAddress` the address of a
 * container on a local bridge.
 */
export type WorkloadSelector =
  | { readonly kind: 'cgroup'; readonly path: string }
  | { readonly kind: 'user'; readonly user: string }
  | { readonly kind: 'sourceAddress'; readonly ip: string }

/** A loopback port for connections to one destination service, like a sidecar's upstream. */
export interface ExplicitUpstream {
  readonly destination: string
  /** The address that the application dials; undefined when the destination is only reached through capture. */
  readonly bind: SocketAddress | undefined
}

/** How delivered connections look to the application. */
export interface Delivery {
  /** Their source address; chosen by the kernel when undefined. */
  readonly from: string | undefined
  /** Whether each starts with a PROXY protocol header that names the caller. */
  readonly proxyHeader: boolean
}

/** One service instance of this host, from the configuration. */
export interface LocalService {
  /** The logical name, used in intentions and certificates. */
  readonly name: string
  /** Unique on the host; the service ID in the catalog. Equals `name` unless several instances share a host. */
  readonly id: string
  /** Where the application listens; undefined for a workload that only calls. */
  readonly target: SocketAddress | undefined
  /** How to connect to `target`; the default way when absent. */
  readonly delivery?: Delivery | undefined
  /**
   * A tunnel port of its own, for Connect peers that send no server name; undefined when it uses only the host's tunnel
   * port.
   */
  readonly connectPort: number | undefined
  /** How its own outgoing connections are recognized; undefined when it is never captured. */
  readonly selector: WorkloadSelector | undefined
  /** The port to which its captured connections are diverted; given with `selector`. */
  readonly capturePort: number | undefined
  readonly upstreams: readonly ExplicitUpstream[]
}
