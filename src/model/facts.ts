/**
 * Everything that `hostmesh explain` reasons from: one host's view at one moment, as plain JSON.
 *
 * `hostmesh snapshot` writes it, `explain --snapshot` reads it, on this machine or another. It holds the
 * addresses and rules of a mesh, and never a private key, a token or payload. Fields are added under one
 * `formatVersion`, never renamed or removed.
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

/** What tells the document from any other JSON. */
export const FACTS_FORMAT = 'hostmesh-snapshot'

/** Raised when a reader of the old form would be misled. */
export const FACTS_VERSION = 2

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
  /** The networks that its devices are in, `172.17.0.1/16`. */
  readonly networks: readonly string[]
  readonly ready: boolean
  readonly awaited: StatusDocument['awaited']
  readonly draining: boolean
  readonly catalog: CatalogStatus
  readonly snapshotVersion: number
  readonly services: readonly MeshService[]
  readonly policies: readonly PolicyFacts[]
  readonly local: readonly LocalService[]
  /** DNS domains whose names are names of services. */
  readonly domains: readonly string[]
  readonly capture: CaptureFacts
  readonly certificates: CertificateFacts
  readonly tunnels: readonly TunnelEntry[]
  /** What the balancers of the workers have learned; endpoints nobody tried are absent. */
  readonly loads: readonly LoadFacts[]
  /** As `hostmesh status` shows them. */
  readonly problems: readonly ProblemEntry[]
  /** What became of the last connections of each pair. */
  readonly outcomes: readonly OutcomeFacts[]
  /** Whether somebody listens where the services of this host are delivered. */
  readonly listeners: readonly ListenerFacts[]
  /** What the daemons of instances were asked for this document. */
  readonly probes: readonly ProbeFacts[]
}

/** The latest success and the latest failure of one pair, in one worker. */
export interface OutcomeFacts {
  readonly worker: number
  readonly direction: 'outbound' | 'inbound'
  readonly source: string
  /** The instance, `<node>/<service id>`; of an arriving connection the service. */
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

/** One application of this host. */
export interface ListenerFacts {
  /** `ip:port`. */
  readonly address: string
  /** Null when the kernel cannot tell, such as for an address of a container. */
  readonly isListening: boolean | null
}

/** What came of a probe of one instance: docs/tunnel-protocol.md, "Probe". */
export interface ProbeFacts {
  readonly endpoint: string
  /**
   * `answered`: its daemon said what would happen. `handshake`: a Connect peer, of which only the TLS handshake is
   * proved. `old`: a daemon that does not know probes was reached. `failed`: there was no answer.
   */
  readonly kind: 'answered' | 'handshake' | 'old' | 'failed'
  /** Of `answered`: `delivered`, or the name of a reset code. */
  readonly verdict: string | null
  readonly application: 'unknown' | 'listens' | 'silent' | null
  /** Of `failed`. */
  readonly flag: ResponseFlag | null
  readonly code: string | null
  readonly reason: string
  readonly tookMs: number
}

/** The rules for one destination. */
export interface PolicyFacts extends ServicePolicy {
  /**
   * `snapshot`: what this host decides by. `catalog`: asked of the catalog for this document; the
   * destination's own host decides.
   */
  readonly origin: 'snapshot' | 'catalog'
}

/** What the capture rules are made of. */
export interface CaptureFacts extends CaptureStatus {
  /** Workloads as the kernel matches them now (users by number, no cgroup that does not exist); null while off. */
  readonly plan: CapturePlanFacts | null
  /** What diverts; null while nothing does. */
  readonly backend: BackendKind | null
}

/** A capture plan, as `controlplane/capture/rules.ts` has it. */
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

/** What this host can prove, and whom it believes. */
export interface CertificateFacts {
  readonly trustDomain: string | null
  readonly roots: readonly RootEntry[]
  readonly leaves: readonly LeafEntry[]
  readonly revokedSerials: readonly string[]
  readonly problems: readonly string[]
}

/** What one worker's balancer knows of one endpoint. */
export interface LoadFacts {
  readonly worker: number
  readonly endpoint: string
  /** Connections and attempts under way. */
  readonly inFlight: number
  /** How slow connecting to it looks, milliseconds: one that costs much more than another passes its turns on. */
  readonly cost: number
  /** Failures since the last success. */
  readonly failures: number
  /** Why this worker avoids it while anybody else remains; null when it does not. */
  readonly ejectedFor: string | null
}
