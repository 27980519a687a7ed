/**
 * The input of `hostmesh explain`: one host's view at one moment, as plain JSON.
 *
 * `hostmesh snapshot` writes it, `explain --snapshot` reads it, on this machine or another. It contains addresses and
 * rules of a mesh, and never a private key, a token or payload. Fields are added under one `formatVersion`, never
 * renamed or removed.
 */
import type {
  CaptureStatus,
  CatalogStatus,
  LeafEntry,
  ProblemEntry,
  RootEntry,
  StatusDocument,
  TunnelEntry,
} from './admin.ts'
import type { BackendKind } from './capture-backend.ts'
import type { ResponseFlag } from './response-flag.ts'
import type { LocalService, WorkloadSelector } from './service.ts'
import type { MeshService, ServicePolicy } from './snapshot.ts'

/** Distinguishes the document from other JSON. */
export const FACTS_FORMAT = 'hostmesh-snapshot'

/** Increased when a reader of the old form would misinterpret the new one. */
export const FACTS_VERSION = 3

/** `/v1/snapshot`: the facts of a host. */
export interface HostFacts {
  readonly format: typeof FACTS_FORMAT
  readonly formatVersion: typeof FACTS_VERSION
  /** RFC 3339; the "now" of everything below. */
  readonly writtenAt: string
  readonly version: string
  readonly node: string
  readonly datacenter: string
  /** This host's own IP addresses, canonical. */
  readonly addresses: readonly string[]
  /** The networks of its network devices, `172.17.0.1/16`. */
  readonly networks: readonly string[]
  readonly ready: boolean
  readonly awaited: StatusDocument['awaited']
  readonly draining: boolean
  readonly catalog: CatalogStatus
  readonly snapshotVersion: number
  readonly services: readonly MeshService[]
  readonly policies: readonly PolicyFacts[]
  readonly local: readonly LocalService[]
  /** DNS domains in which services have names. */
  readonly domains: readonly string[]
  readonly capture: CaptureFacts
  readonly certificates: CertificateFacts
  readonly tunnels: readonly TunnelEntry[]
  /** What the balancers of the workers have learned; endpoints that no worker has tried are absent. */
  readonly loads: readonly LoadFacts[]
  /** As `hostmesh status` shows them. */
  readonly problems: readonly ProblemEntry[]
  /** The outcomes of the last connections of each pair. */
  readonly outcomes: readonly OutcomeFacts[]
  /** Whether the applications of this host's services listen. */
  readonly listeners: readonly ListenerFacts[]
  /** Probes that were sent to the daemons of instances for this document. */
  readonly probes: readonly ProbeFacts[]
}

/** The latest success and the latest failure of one pair, in one worker. */
export interface OutcomeFacts {
  readonly worker: number
  readonly direction: 'outbound' | 'inbound'
  readonly source: string
  /** The instance, `<node>/<service id>`; for an inbound connection, the service. */
  readonly target: string
  /** RFC 3339; null when there was none. */
  readonly okAt: string | null
  readonly failure: {
    readonly at: string
    readonly flag: ResponseFlag
    readonly code: string
    readonly reason: string
  } | null
}

/** The listening socket of one application of this host. */
export interface ListenerFacts {
  /** `ip:port`. */
  readonly address: string
  /** Null when the kernel cannot tell, for example for an address of a container. */
  readonly isListening: boolean | null
}

/** The result of a probe of one instance: docs/tunnel-protocol.md, "Probe". */
export interface ProbeFacts {
  readonly endpoint: string
  /**
   * `answered`: its daemon reported what would happen. `handshake`: a Connect peer, for which only the TLS handshake is
   * proved. `old`: a daemon was reached that does not support probes. `failed`: there was no answer.
   */
  readonly kind: 'answered' | 'handshake' | 'old' | 'failed'
  /** For `answered`: `delivered`, or the name of a reset code. */
  readonly verdict: string | null
  readonly application: 'unknown' | 'listens' | 'silent' | null
  /** For `failed`. */
  readonly flag: ResponseFlag | null
  readonly code: string | null
  readonly reason: string
  readonly tookMs: number
  /** `here`: on this host. `open`: the tunnel was open. `new`: it was dialed. Null when no dial began. */
  readonly tunnel?: 'here' | 'open' | 'new' | null
  /** TCP connection and TLS handshake of a new tunnel; null where there was none. */
  readonly dialMs?: number | null
  /** The last measured round trip of the tunnel; null where it is not known. */
  readonly roundTripMs?: number | null
  /** From the question to the answer: a round trip and the decision; null without an answer. */
  readonly answerMs?: number | null
}

/** The rules for one destination. */
export interface PolicyFacts extends ServicePolicy {
  /**
   * `snapshot`: the rules that this host decides by. `catalog`: requested from the catalog for this document; the
   * destination's own host decides.
   */
  readonly origin: 'snapshot' | 'catalog'
}

/** The input of the capture rules. */
export interface CaptureFacts extends CaptureStatus {
  /** Workloads as the kernel matches them now (users by number, only existing cgroups); null while capture is off. */
  readonly plan: CapturePlanFacts | null
  /** The backend in use; null while none is. */
  readonly backend: BackendKind | null
}

/** A capture plan, as in `controlplane/capture/rules.ts`. */
export interface CapturePlanFacts {
  readonly workloads: readonly {
    readonly selector: WorkloadSelector
    readonly capturePort: number
  }[]
  readonly defaultCapturePort?: number | undefined
  readonly refusesUnknownAtInstances?: boolean
  readonly virtualRange: string
  readonly virtualRange6: string
  readonly daemonUid: number
  readonly ownPorts: readonly number[]
}

/** The certificates of this host, and the roots that it trusts. */
export interface CertificateFacts {
  readonly trustDomain: string | null
  readonly roots: readonly RootEntry[]
  readonly leaves: readonly LeafEntry[]
  readonly revokedSerials: readonly string[]
  readonly problems: readonly string[]
}

/** What one worker's balancer has measured of one endpoint. */
export interface LoadFacts {
  readonly worker: number
  readonly endpoint: string
  /** Open connections and current attempts. */
  readonly inFlight: number
  /** Estimated time to connect, milliseconds: an endpoint that costs much more than another gives up its turns. */
  readonly cost: number
  /** Failures since the last success. */
  readonly failures: number
  /** Why this worker has ejected it; null when it has not. */
  readonly ejectionReason: string | null
}
