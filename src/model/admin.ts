/**
 * The documents of the admin API (docs/cli.md, "Admin API"): what a host reports about itself.
 *
 * Plain JSON: times are RFC 3339 text, durations end in `Ms`, unknown values are null. No document ever contains a
 * private key, a token or payload. Fields are added in `/v1`, never renamed or removed.
 */
import type { DefaultPolicy, Intention } from './intention.ts'
import type { ResponseFlag } from './response-flag.ts'
import type { Route } from './route.ts'

/** The documents by name; each is served at `/v1/<name>`. */
export interface AdminDocuments {
  readonly status: StatusDocument
  readonly services: ServicesDocument
  readonly peers: PeersDocument
  readonly connections: ConnectionsDocument
  readonly refused: RefusedDocument
  readonly certs: CertsDocument
  readonly intentions: IntentionsDocument
  readonly routes: RoutesDocument
}

/** `/v1/status`: whether this host is healthy, and if not, why. */
export interface StatusDocument {
  readonly version: string
  readonly node: string
  readonly datacenter: string
  readonly pid: number
  readonly startedAt: string
  /** Whether the host serves all that is configured: no problem `blocks`. Never true while it is not `serving`. */
  readonly ready: boolean
  /** Whether the host accepts traffic: it has everything that it needs for that, and is not draining. */
  readonly serving: boolean
  /** What the host still waits for before it serves, in words; empty once it serves. */
  readonly awaited: readonly string[]
  readonly draining: boolean
  /** Absent from daemons older than this field. */
  readonly reload?: ReloadStatus
  readonly workers: readonly WorkerStatus[]
  readonly catalog: CatalogStatus
  readonly certificates: CertificatesStatus
  readonly capture: CaptureStatus
  readonly state: StateStatus
  readonly dns: DnsStatus
  /** One entry for each aggregator of this host; absent from older daemons. */
  readonly reports?: readonly ReportStatus[]
  /** 0 before the first snapshot. */
  readonly snapshotVersion: number
  /** All problems, including those of the parts above; empty when the host is healthy. */
  readonly problems: readonly ProblemEntry[]
  /** What an operator should know although nothing is wrong, one sentence each; absent from older daemons. */
  readonly warnings?: readonly string[]
}

/** One thing that is wrong with the host; `docs/errors.md` has the codes. */
export interface ProblemEntry {
  readonly code: string
  /** One sentence. */
  readonly message: string
  /** What to do next. */
  readonly hint: string
  /** Whether it keeps the host from being ready. */
  readonly blocks: boolean
  /** When the daemon first noticed it. */
  readonly since: string
}

/** The reloads of this host. */
export interface ReloadStatus {
  /** Reloads of this host since its last start, failed ones included. */
  readonly count: number
  readonly state: 'none' | 'running' | 'done' | 'failed'
  /** Why the last one failed; null otherwise. */
  readonly reason: string | null
  /** Connections that a replaced process still carries; null when there is no such process. */
  readonly earlierConnections: number | null
}

/** One data-plane thread. */
export interface WorkerStatus {
  readonly id: number
  readonly state: 'starting' | 'running' | 'draining' | 'stopped'
  readonly connections: number
  readonly restarts: number
}

/** The state of the host's connection to its catalog. */
export interface CatalogStatus {
  readonly description: string
  /** Time since the last good answer; null before the first. */
  readonly ageMs: number | null
  /** Time since the answering Consul server last heard from its leader; null for catalogs without a leader. */
  readonly lastContactMs: number | null
  readonly problems: readonly string[]
}

/** Where certificates come from. */
export interface CertificatesStatus {
  readonly description: string
  readonly problems: readonly string[]
}

/** The state of the capture rules in the kernel. */
export interface CaptureStatus {
  readonly mode: 'off' | 'on'
  /** Null while capture is off. */
  readonly inSync: boolean | null
  /** Further facts, such as which backend is in use and why: name and value. */
  readonly details?: readonly (readonly [name: string, value: string])[]
  readonly problems: readonly string[]
}

/** What is kept across restarts, and how much of what the host acts on is only remembered. */
export interface StateStatus {
  readonly directory: string
  /** Of data from Consul; data from files is not remembered. */
  readonly parts: readonly StatePart[]
  readonly problems: readonly string[]
}

/** One kind of data that the host acts on. */
export interface StatePart {
  readonly part: 'services' | 'policies' | 'certificates'
  /**
   * `remembered`: some of it is from an earlier run. `stale`: older than `state.maxStale`. `none`: nothing is known, or
   * nothing is needed.
   */
  readonly state: 'none' | 'live' | 'remembered' | 'stale'
  /** Number of items that have not been confirmed since the start. */
  readonly remembered: number
  /** Time since the last good answer (remembered certificates: since they were stored); null when not known. */
  readonly ageMs: number | null
}

/** The DNS resolver for the mesh's names. */
export interface DnsStatus {
  /** Where it listens, `ip:port`; null while it is off. */
  readonly address: string | null
}

/** How reports reach one aggregator. */
export interface ReportStatus {
  /** Its service. */
  readonly aggregator: string
  /** Records of 10 s that it has not accepted yet. */
  readonly waiting: number
  /** When it last took a report; null before the first. */
  readonly lastSuccessAt: string | null
}

/** `/v1/services`: the mesh as this host sees it, and the services of this host. */
export interface ServicesDocument {
  readonly services: readonly ServiceEntry[]
  readonly local: readonly LocalServiceEntry[]
}

/** A service of the mesh. */
export interface ServiceEntry {
  readonly name: string
  /** This host's own datacenter, in which the name is looked up. Instances may be in another. */
  readonly datacenter: string
  readonly protocol: string
  readonly virtualIps: readonly string[]
  readonly endpoints: readonly EndpointEntry[]
}

/** One instance of a service. */
export interface EndpointEntry {
  readonly id: string
  readonly node: string
  /** The mesh listener that accepts mutual TLS, `ip:port`. */
  readonly address: string
  readonly health: 'passing' | 'warning' | 'critical'
  readonly local: boolean
  /** The service of the instance: differs from the listed one after a redirect or failover. */
  readonly service: string
  readonly datacenter: string
  /** The health check that keeps it from passing, with its output; absent from daemons older than this field. */
  readonly failingCheck?: string | null
  /** 0 receives the traffic; 1 and higher only when no instance of a lower number is available. */
  readonly priority: number
  /** Null unless the instance is ejected because connections to it failed. */
  readonly ejected: EjectionEntry | null
}

/** Why an instance is ejected regardless of its health in the catalog. */
export interface EjectionEntry {
  /** Data-plane workers that have ejected it, and workers that were asked: each decides by its own measurements. */
  readonly workers: number
  readonly ofWorkers: number
  readonly reason: string
  /** Time until the last of these workers tries it again. */
  readonly leftMs: number
}

/** A service of this host. */
export interface LocalServiceEntry {
  readonly name: string
  readonly id: string
  /** Where the application listens, `ip:port`; null for a pure caller. */
  readonly target: string | null
  /** How its own connections are recognized, such as `cgroup system.slice/web.service`; null when never captured. */
  readonly identity: string | null
  readonly capturePort: number | null
  readonly upstreams: readonly UpstreamEntry[]
}

/** A local port for the connections to one destination service. */
export interface UpstreamEntry {
  readonly destination: string
  /** `ip:port`; null when reached through capture only. */
  readonly bind: string | null
}

/** `/v1/peers`: the tunnels to and from other hosts. */
export interface PeersDocument {
  readonly tunnels: readonly TunnelEntry[]
}

/** One mutual-TLS connection between two services of two hosts. */
export interface TunnelEntry {
  readonly source: string
  readonly destination: string
  /** `ip:port` of the other end. */
  readonly peerAddress: string
  /** The verified SPIFFE ID of the peer; null until the handshake is done. */
  readonly peerSpiffeId: string | null
  readonly direction: 'outbound' | 'inbound'
  readonly state: 'connecting' | 'open' | 'draining' | 'closed'
  readonly streams: number
  /** Null before the first answered ping, and for peers that are not hostmesh. */
  readonly rttMs: number | null
  readonly sentBytes: number
  readonly receivedBytes: number
  readonly openedAt: string
}

/** `/v1/connections`: the open connections. */
export interface ConnectionsDocument {
  readonly connections: readonly ConnectionEntry[]
  /** Open connections that are left out because there are too many; 0 when all are listed. */
  readonly omitted: number
}

/** One connection of an application. */
export interface ConnectionEntry {
  readonly id: string
  readonly direction: 'outbound' | 'inbound'
  readonly source: string
  readonly destination: string
  /** `ip:port` of the calling application, or of the peer that the connection came from. */
  readonly downstreamAddress: string
  /** The address that the application dialed, `ip:port`; null when it used an upstream port. */
  readonly originalDestination: string | null
  /** The chosen instance, `ip:port`; null until one is picked. */
  readonly endpoint: string | null
  readonly openedAt: string
  readonly sentBytes: number
  readonly receivedBytes: number
  readonly state: 'connecting' | 'open' | 'halfClosed' | 'closing'
  /** The other end of the tunnel, `ip:port`; null on the same host, and before an instance is picked. */
  readonly peerAddress: string | null
}

/** `/v1/refused`: the last connections that were refused or aborted, newest first. */
export interface RefusedDocument {
  readonly refused: readonly RefusedEntry[]
}

/** A connection that was refused or did not end in order. */
export interface RefusedEntry extends ConnectionEntry {
  /** See `response-flag.ts`. */
  readonly flag: ResponseFlag
  readonly code: string
  /** One sentence. */
  readonly reason: string
  readonly endedAt: string
}

/** `/v1/certs`: the certificates in use. */
export interface CertsDocument {
  readonly trustDomain: string | null
  readonly roots: readonly RootEntry[]
  readonly leaves: readonly LeafEntry[]
}

/** A root that this host accepts. */
export interface RootEntry {
  /** SHA-256 of the certificate, upper-case hex with colons. */
  readonly fingerprint: string
  readonly notAfter: string
}

/** The certificate of a local service. */
export interface LeafEntry {
  readonly service: string
  readonly spiffeId: string
  readonly serialNumber: string
  readonly notBefore: string
  readonly notAfter: string
}

/** `/v1/intentions`: what this host decides by when its services are called. */
export interface IntentionsDocument {
  readonly destinations: readonly DestinationPolicy[]
}

/** The intentions for one service of this host. */
export interface DestinationPolicy {
  readonly destination: string
  /** What no intention matches; null while nothing is loaded: then every caller is denied. */
  readonly defaultPolicy: DefaultPolicy | null
  /** In the order of evaluation, highest precedence first. */
  readonly intentions: readonly IntentionEntry[]
}

/** One intention, and its effect on opaque TCP. */
export interface IntentionEntry extends Omit<Intention, 'action'> {
  /** Null for a rule that decides by HTTP request. */
  readonly action: 'allow' | 'deny' | null
  readonly effect: 'allow' | 'deny'
  /** Why the rule cannot be enforced as it is written, so that it denies; null for one that can. */
  readonly notEnforced: string | null
}

/** `/v1/routes`: where traffic to a service goes. */
export interface RoutesDocument {
  readonly services: readonly ServiceRoutes[]
}

/** The routes and clusters of one service. */
export interface ServiceRoutes {
  readonly name: string
  readonly protocol: string
  /** The first one that matches is used. */
  readonly routes: readonly Route[]
  readonly clusters: readonly ClusterEntry[]
}

/** The instances for a part of the traffic. */
export interface ClusterEntry {
  readonly name: string
  readonly service: string
  readonly datacenter: string
  /** Null: all instances. */
  readonly subset: string | null
  readonly connectTimeoutMs: number
  /** Whether this cluster receives the connections of this host: opaque bytes are not split. */
  readonly isUsed: boolean
  /** In order of priority; 1 and higher are for failover. */
  readonly endpoints: readonly EndpointEntry[]
}
