/**
 * What `hostmesh explain` answers: the road of one connection, station by station, and a verdict.
 */
import type { LeafEntry, TunnelEntry } from './admin.ts'

/**
 * The one word. `allowed` is the only good one. `uncaptured`: the connection would not enter the mesh, or
 * in another service's name. `undecided`: this host cannot know the rules, the destination decides.
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
  /** `none`: it does not concern this connection, or it was not reached. */
  readonly mark: 'good' | 'warning' | 'bad' | 'none'
  /** One sentence. */
  readonly summary: string
  readonly details: readonly string[]
}

/** One instance, as the balancer would see it. */
export interface EndpointChoice {
  readonly endpoint: string
  readonly node: string
  /** What it is an instance of: another service than was asked for after a redirect or as failover. */
  readonly service: string
  readonly datacenter: string
  /** 0 takes the traffic; 1 and up when no instance before has remained. */
  readonly priority: number
  /** Its mesh listener, `ip:port`. */
  readonly address: string
  readonly health: string
  readonly weight: number
  readonly local: boolean
  /** Why it would not be picked; null for a candidate. */
  readonly excluded: string | null
  /** Lowest of the workers; null where nobody has tried it. */
  readonly cost: number | null
  /** Sum over the workers. */
  readonly inFlight: number
  readonly failures: number
}

/** Who may, and who says so. */
export interface PolicyChoice {
  /** Null when this host cannot know. */
  readonly allow: boolean | null
  /** `destination`: another host decides; what is said here is what the catalog tells it to decide by. */
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
export interface DoorChoice {
  readonly kind: 'captured' | 'upstream' | 'none'
  /** Where the application dials, `ip:port`. */
  readonly address: string | null
  /** Where the daemon takes it: the capture port, or the upstream's. */
  readonly port: number | null
  /** The capture rule that decided, in words. */
  readonly rules: readonly string[]
}

/** The answer of `hostmesh explain`. */
export interface Explanation {
  readonly from: string
  readonly to: string
  /** Of a live or refused connection; null for a hypothetical one. */
  readonly connection: string | null
  /** Whose view it is. */
  readonly node: string
  /** RFC 3339: when the facts were taken. */
  readonly factsAt: string
  /** Age of the catalog's last good answer at that time; null before the first. */
  readonly catalogAgeMs: number | null
  readonly verdict: Verdict
  /** One sentence. */
  readonly summary: string
  /** What to do when it is not allowed, most promising first. */
  readonly next: readonly string[]
  readonly stations: readonly Station[]
  /** The service that the destination turned out to be; null when it is none. */
  readonly service: string | null
  readonly door: DoorChoice | null
  readonly endpoints: readonly EndpointChoice[]
  readonly policy: PolicyChoice | null
  /** The certificate by which this host speaks for its side; null when it has or needs none. */
  readonly leaf: LeafEntry | null
  /** What the other side must prove to be; null on the same host. */
  readonly expectedSpiffeId: string | null
  readonly serverName: string | null
  /** Open sessions that it uses or would use. */
  readonly tunnels: readonly TunnelEntry[]
}
