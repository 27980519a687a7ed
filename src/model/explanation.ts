/**
 * The answer of `hostmesh explain`: the path of one connection, station by station, and a verdict.
 */
import type { LeafEntry, TunnelEntry } from './admin.ts'
import type { ProbeFacts } from './facts.ts'

/**
 * The verdict in one word. `allowed` is the only good one. `uncaptured`: the connection would not enter the mesh, or
 * would enter it under another service's name. `undecided`: this host does not have the rules, the destination decides.
 */
export type Verdict =
  | 'allowed'
  | 'denied'
  | 'unreachable'
  | 'uncaptured'
  | 'undecided'
  | 'unknownCaller'
  | 'unknownService'

/** The stations, in the order in which a connection passes them. */
export type StationName =
  | 'connection'
  | 'host'
  | 'caller'
  | 'capture'
  | 'route'
  | 'endpoint'
  | 'certificate'
  | 'tunnel'
  | 'policy'
  | 'delivery'
  | 'answer'

/** What happens at one station. */
export interface Station {
  readonly name: StationName
  /** `none`: the station does not concern this connection, or was not reached. */
  readonly mark: 'good' | 'warning' | 'bad' | 'none'
  /** One sentence. */
  readonly summary: string
  readonly details: readonly string[]
}

/** One instance, as the balancer would use it. */
export interface EndpointChoice {
  readonly endpoint: string
  readonly node: string
  /** The service of the instance: differs from the called one after a redirect or failover. */
  readonly service: string
  readonly datacenter: string
  /** 0 receives the traffic; 1 and higher only when no instance of a lower number is available. */
  readonly priority: number
  /** Its mesh listener, `ip:port`. */
  readonly address: string
  readonly health: string
  readonly weight: number
  readonly local: boolean
  /** Why the balancer would not pick it; null for a candidate. */
  readonly excluded: string | null
  /** The lowest of all workers; null when no worker has tried the instance. */
  readonly cost: number | null
  /** Sum over the workers. */
  readonly inFlight: number
  readonly failures: number
}

/** Whether the caller is allowed, and which host decides that. */
export interface PolicyChoice {
  /** Null when this host does not have the rules. */
  readonly allow: boolean | null
  /** `destination`: another host decides; the rules shown here are those that the catalog has for it. */
  readonly decidedAt: 'here' | 'destination'
  readonly reason: string
  /** The deciding rule; null when the default policy decides, or nothing is known. */
  readonly intention: {
    readonly source: string
    readonly destination: string
    readonly action: 'allow' | 'deny' | null
    readonly precedence: number
  } | null
}

/** How a connection enters the mesh. */
export interface EntryChoice {
  readonly kind: 'captured' | 'upstream' | 'none'
  /** The address that the application dials, `ip:port`. */
  readonly address: string | null
  /** The port where the daemon accepts it: the capture port, or the upstream's. */
  readonly port: number | null
  /** The capture rules that apply, in words. */
  readonly rules: readonly string[]
}

/** The answer of `hostmesh explain`. */
export interface Explanation {
  readonly from: string
  readonly to: string
  /** The ID of a live or refused connection; null for a hypothetical one. */
  readonly connection: string | null
  /** The node that answers. */
  readonly node: string
  /** RFC 3339: when the facts were collected. */
  readonly factsAt: string
  /** Age of the catalog's last good answer at that time; null before the first. */
  readonly catalogAgeMs: number | null
  readonly verdict: Verdict
  /** One sentence. */
  readonly summary: string
  /** What to do when it is not allowed, most promising first. */
  readonly next: readonly string[]
  readonly stations: readonly Station[]
  /** The service that the destination belongs to; null when it is none. */
  readonly service: string | null
  readonly entry: EntryChoice | null
  readonly endpoints: readonly EndpointChoice[]
  readonly policy: PolicyChoice | null
  /** The certificate that this host uses for its side; null when it has or needs none. */
  readonly leaf: LeafEntry | null
  /** The SPIFFE ID that the peer must prove; null on the same host. */
  readonly expectedSpiffeId: string | null
  readonly serverName: string | null
  /** Open sessions that the connection uses or would use. */
  readonly tunnels: readonly TunnelEntry[]
  /** What the daemons of instances have answered; absent unless they were asked. */
  readonly probes?: readonly ProbeFacts[]
}
