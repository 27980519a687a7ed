/**
 * The documents of the admin API (docs/cli.md, "Admin API"): what a host says about itself.
 *
 * Plain JSON: times are RFC 3339 text, durations end in `Ms`, what is not known is null. No document ever
 * holds a private key, a token or payload. Fields are added in `/v1`, never renamed or removed.
 */
import type { ResponseFlag } from './response-flag.ts'

/** The documents, each at `/v1/` and its name. */
export interface AdminDocuments {
  readonly status: StatusDocument
  readonly services: ServicesDocument
  readonly peers: PeersDocument
  readonly connections: ConnectionsDocument
  readonly refused: RefusedDocument
  readonly certs: CertsDocument
}

/** `/v1/status`: is this host well, and if not, why. */
export interface StatusDocument {
  readonly version: string
  readonly node: string
  readonly datacenter: string
  readonly pid: number
  readonly startedAt: string
  /** Whether the host does all that it is there for: no problem `blocks`. Never true while it is not `serving`. */
  readonly ready: boolean
  /** Whether it takes traffic: everything it needs for that has come, and it is not draining. */
  readonly serving: boolean
  /** What is still waited for before the host serves, in words; empty when it does. */
  readonly awaited: readonly string[]
  readonly draining: boolean
  /** A daemon older than this field does not say. */
  readonly reload?: ReloadStatus
  readonly workers: readonly WorkerStatus[]
  readonly catalog: CatalogStatus
  readonly certificates: CertificatesStatus
  readonly capture: CaptureStatus
  readonly state: StateStatus
  readonly dns: DnsStatus
  /** 0 before the first. */
  readonly snapshotVersion: number
  /** Everything that is wrong, that of the parts above too; empty when the host is well. */
  readonly problems: readonly ProblemEntry[]
  /** What an operator should know though nothing is wrong, one sentence each; a daemon older than this field does not say. */
  readonly warnings?: readonly string[]
}

/** One thing that is wrong with the host; `docs/errors.md` has the codes. */
export interface ProblemEntry {
  readonly code: string
  /** One sentence. */
  readonly message: string
  /** What to do next. */
  readonly hint: string
  /** Whether the host is not ready because of it. */
  readonly blocks: boolean
  /** When the daemon first saw it. */
  readonly since: string
}

/** What became of reloads. */
export interface ReloadStatus {
  /** Of this host since its last start, failed ones included. */
  readonly count: number
  readonly state: 'none' | 'running' | 'done' | 'failed'
  /** Why the last one failed; null otherwise. */
  readonly reason: string | null
  /** Connections that a process which was replaced still carries; null when there is none. */
  readonly earlierConnections: number | null
}

/** One data-plane thread. */
export interface WorkerStatus {
  readonly id: number
  readonly state: 'starting' | 'running' | 'draining' | 'stopped'
  readonly connections: number
  readonly restarts: number
}

/** How well the host is in touch with its catalog. */
export interface CatalogStatus {
  readonly description: string
  /** Since the last good answer; null before the first. */
  readonly ageMs: number | null
  /** How long ago the Consul server that answers had last heard from its leader; null where there is none. */
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
  /** What else is to be known of it, such as which backend is in use and why: name and value. */
  readonly details?: readonly (readonly [name: string, value: string])[]
  readonly problems: readonly string[]
}

/** What outlives a restart, and how much of what the host acts on is only remembered. */
export interface StateStatus {
  readonly directory: string
  /** Of what comes from Consul; what comes from files is not remembered. */
  readonly parts: readonly StatePart[]
  readonly problems: readonly string[]
}

/** One kind of what the host acts on. */
export interface StatePart {
  readonly part: 'services' | 'policies' | 'certificates'
  /** `remembered`: some of it is of an earlier run. `stale`: older than `state.maxStale`. `none`: nothing is known, or needed. */
  readonly state: 'none' | 'live' | 'remembered' | 'stale'
  /** How many of them nothing has confirmed since the start. */
  readonly remembered: number
  /** Since the last good answer (remembered certificates: since they were written down); null when not known. */
  readonly ageMs: number | null
}

/** The resolver of the mesh's names. */
export interface DnsStatus {
  /** Where it takes questions, `ip:port`; null while it is off. */
  readonly address: string | null
}

/** `/v1/services`: the mesh as this host sees it, and what runs here. */
export interface ServicesDocument {
  readonly services: readonly ServiceEntry[]
  readonly local: readonly LocalServiceEntry[]
}

/** A service of the mesh. */
export interface ServiceEntry {
  readonly name: string
  /** This host's own: where the name is looked up. Its instances may be of another. */
  readonly datacenter: string
  readonly protocol: string
  readonly virtualIps: readonly string[]
  readonly endpoints: readonly EndpointEntry[]
}

/** One instance of a service. */
export interface EndpointEntry {
  readonly id: string
  readonly node: string
  /** Where its mesh listener takes mutual TLS, `ip:port`. */
  readonly address: string
  readonly health: 'passing' | 'warning' | 'critical'
  readonly local: boolean
  /** What it is an instance of: another service than the listed one after a redirect or as failover. */
  readonly service: string
  readonly datacenter: string
  /** Which health check keeps it from passing and what that says; a daemon older than this field does not say. */
  readonly failingCheck?: string | null
  /** 0 takes the traffic; 1 and up when no instance before has remained. */
  readonly priority: number
  /** Null unless connections to it failed and it is avoided for that. */
  readonly ejected: EjectionEntry | null
}

/** Why an instance is avoided whatever the catalog says of it. */
export interface EjectionEntry {
  /** Data-plane workers that avoid it, and those that were asked: each learns for itself. */
  readonly workers: number
  readonly ofWorkers: number
  readonly reason: string
  /** Until the last of them lets a connection try it again. */
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

/** A local port that leads to a service. */
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
  /** SPIFFE ID that the peer proved; null until the handshake is done. */
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

/** `/v1/connections`: the connections that are open now. */
export interface ConnectionsDocument {
  readonly connections: readonly ConnectionEntry[]
  /** Open connections that are not listed because there are too many; 0 when all are. */
  readonly omitted: number
}

/** One connection of an application. */
export interface ConnectionEntry {
  readonly id: string
  readonly direction: 'outbound' | 'inbound'
  readonly source: string
  readonly destination: string
  /** `ip:port` of the application that called, or of the peer it came through. */
  readonly downstreamAddress: string
  /** What the application asked for, `ip:port`; null when it used an upstream port. */
  readonly originalDestination: string | null
  /** The instance it was given to, `ip:port`; null until one is picked. */
  readonly endpoint: string | null
  readonly openedAt: string
  readonly sentBytes: number
  readonly receivedBytes: number
  readonly state: 'connecting' | 'open' | 'halfClosed' | 'closing'
  /** The tunnel's other end, `ip:port`; null on the same host, and before one is picked. */
  readonly peerAddress: string | null
}

/** `/v1/refused`: the last connections that were refused or broken off, newest first. */
export interface RefusedDocument {
  readonly refused: readonly RefusedEntry[]
}

/** A connection that did not end in order. */
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
