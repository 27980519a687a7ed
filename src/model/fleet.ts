/**
 * The documents of the aggregator's API (docs/observability.md): the fleet as its hosts have reported it.
 *
 * Plain JSON: times are RFC 3339 text, durations end in `Ms`, unknown values are null. Fields are added in `/api/v1`,
 * never renamed or removed. Each document states the span of time that it covers and whether hosts are missing in it:
 * a number that nobody reported is null, never zero.
 */

/** The documents by name; each is served at `/api/v1/<name>`. */
export interface FleetDocuments {
  readonly overview: OverviewDocument
  readonly graph: GraphDocument
  readonly services: FleetServicesDocument
  readonly service: FleetServiceDocument
  readonly hosts: HostsDocument
  readonly host: HostDocument
  readonly history: HistoryDocument
  readonly risks: RisksDocument
  readonly versions: VersionsDocument
}

/** What a document is about: the span of its figures, and what is missing. */
export interface Coverage {
  /** The end of the span. */
  readonly at: string
  /** Less than was asked for where there are no older figures: rates are of this. */
  readonly windowMs: number
  /** Whether the span ends now; false when a time of the past was asked for. */
  readonly live: boolean
  /** Hosts that are known, and those whose reports cover the span. */
  readonly hosts: number
  readonly reporting: number
  /** Why figures are missing or empty, one sentence each; empty when all hosts have reported. */
  readonly notes: readonly string[]
}

/** Traffic of one span, from the reports of one side. */
export interface Traffic {
  /** Connections opened a second. */
  readonly openedPerSecond: number
  readonly active: number
  /** Connections ended, by response flag; flags that did not occur are absent. */
  readonly closed: Readonly<Record<string, number>>
  /** Share of ended connections whose flag says that the mesh or the instance failed, 0 to 1; null without any. */
  readonly errorShare: number | null
  readonly connectFailures: number
  readonly sentBytesPerSecond: number
  readonly receivedBytesPerSecond: number
  /** Quantiles; null where nothing was measured. */
  readonly connectMs: Quantiles | null
  readonly firstByteMs: Quantiles | null
  readonly durationMs: Quantiles | null
  /** Counts of columns that this version does not know, by column name. */
  readonly more?: Readonly<Record<string, number>>
}

/** Quantiles of a histogram, milliseconds: the upper edge of the bucket. */
export interface Quantiles {
  readonly p50: number
  readonly p90: number
  readonly p99: number
}

/** `/overview`: the fleet in one look. */
export interface OverviewDocument {
  readonly coverage: Coverage
  readonly version: string
  readonly hosts: HostCounts
  readonly services: number
  readonly pairs: number
  readonly traffic: Traffic
  /** Problems of hosts by code, the most frequent first. */
  readonly problems: readonly { readonly code: string; readonly hosts: number }[]
  readonly store: StoreStatus
}

/** Hosts by what is known of them. */
export interface HostCounts {
  readonly total: number
  readonly ready: number
  readonly degraded: number
  readonly starting: number
  readonly draining: number
  /** No report for 30 s. */
  readonly silent: number
  /** Reports with the name of a host and another key. */
  readonly conflicting: number
}

/** The aggregator's own store. */
export interface StoreStatus {
  readonly bytes: number
  readonly maxBytes: number
  /** The oldest time for which there are figures, by tier; null when a tier is empty. */
  readonly oldest: {
    readonly seconds: string | null
    readonly minutes: string | null
    readonly hours: string | null
  }
}

/** `/graph`: who calls whom. Query: `at`, `window` (10s to 1d), `group` (service, host, datacenter, zone). */
export interface GraphDocument {
  readonly coverage: Coverage
  readonly group: GroupBy
  readonly nodes: readonly GraphNode[]
  readonly edges: readonly GraphEdge[]
  /** Nodes and edges that are left out because there are more than 2,000 and 10,000; 0 when all are there. */
  readonly omitted: number
}

/** What a node of the graph stands for. */
export type GroupBy = 'service' | 'host' | 'datacenter' | 'zone'

/** A service, or a group of hosts. */
export interface GraphNode {
  /** Unique in the graph: the name. */
  readonly id: string
  readonly health: 'healthy' | 'degraded' | 'failing' | 'unknown'
  /** Instances that hosts have reported; for groups the number of services. */
  readonly instances: number
  /** Hosts that run it. */
  readonly hosts: readonly string[]
  /** Why the health is not `healthy`, one sentence each. */
  readonly reasons: readonly string[]
}

/** Connections from one node to another. */
export interface GraphEdge {
  readonly source: string
  readonly destination: string
  readonly traffic: Traffic
  /** Which side's figures these are: the callers', or the called side's where that has counted more connections. */
  readonly reporter: 'source' | 'destination'
  /** What the intentions say now (or said at that time); null where no host has reported them. */
  readonly policy: EdgePolicy | null
}

/** The decision for a pair. */
export interface EdgePolicy {
  readonly allow: boolean
  /** The rule that decides; null when the default policy does. */
  readonly rule: PolicyRule | null
  /** For people, such as `intention web -> db (precedence 9) says allow`. */
  readonly reason: string
}

/** An intention. */
export interface PolicyRule {
  readonly source: string
  readonly destination: string
  readonly action: 'allow' | 'deny'
  readonly precedence: number
}

/** `/services`: all services. */
export interface FleetServicesDocument {
  readonly coverage: Coverage
  readonly services: readonly ServiceSummary[]
}

/** One service in a list: its golden signals as its callers' and its own hosts see them. */
export interface ServiceSummary {
  readonly name: string
  readonly protocol: string
  readonly instances: number
  readonly hosts: readonly string[]
  readonly health: GraphNode['health']
  readonly reasons: readonly string[]
  /** Connections to the service. */
  readonly inbound: Traffic
  readonly callers: number
  readonly destinations: number
}

/** `/service?name=NAME`: one service. */
export interface FleetServiceDocument {
  readonly coverage: Coverage
  readonly service: ServiceSummary
  readonly instances: readonly InstanceEntry[]
  readonly callers: readonly GraphEdge[]
  readonly destinations: readonly GraphEdge[]
  readonly policy: {
    readonly defaultAction: 'allow' | 'deny' | null
    readonly intentions: readonly (PolicyRule & {
      /** Connections that the rule decided in the span; null where it cannot be known. */
      readonly used: number | null
    })[]
  }
}

/** An instance of a service on a host. */
export interface InstanceEntry {
  readonly host: string
  readonly id: string
  readonly target: string | null
  readonly captured: boolean
  readonly health: 'passing' | 'warning' | 'critical' | null
  readonly certificateNotAfter: string | null
  readonly hostState: HostEntry['state']
  readonly resources: WorkloadEntry | null
}

/** Resources of a workload: averages over the span. */
export interface WorkloadEntry {
  readonly service: string
  /** Cores. */
  readonly cpu: number | null
  readonly memoryBytes: number | null
  readonly tasks: number | null
  readonly sockets: number | null
  /** Shares, 0 to 1. */
  readonly cpuPressure: number | null
  readonly memoryPressure: number | null
  readonly ioPressure: number | null
}

/** `/hosts`: all hosts. */
export interface HostsDocument {
  readonly coverage: Coverage
  readonly hosts: readonly HostEntry[]
}

/** One host in a list. */
export interface HostEntry {
  readonly name: string
  /** `silent`: no report for 30 s. `conflicting`: reports with this name and another key than the first. */
  readonly state: 'starting' | 'ready' | 'degraded' | 'draining' | 'silent' | 'conflicting'
  readonly lastReportAt: string
  /** How late the last stored record came after its end; more than 15 s after an absence of the aggregator. */
  readonly lateMs: number
  /** Records that can never come: their sequence numbers are missing. */
  readonly lostRecords: number
  readonly version: string | null
  readonly datacenter: string | null
  readonly zone: string | null
  readonly services: readonly string[]
  readonly problems: readonly {
    readonly code: string
    readonly message: string
    readonly blocks: boolean
  }[]
  /** The host's clock less the aggregator's. */
  readonly clockOffsetMs: number | null
  readonly cpu: number | null
  readonly memoryBytes: number | null
}

/** `/host?name=NAME`: one host. */
export interface HostDocument {
  readonly coverage: Coverage
  readonly host: HostEntry
  readonly startedAt: string | null
  readonly nodeVersion: string | null
  readonly workers: number | null
  readonly capture: {
    readonly mode: 'off' | 'on'
    readonly backend: string | null
    readonly inSync: boolean | null
    readonly plainInbound: number | null
  } | null
  readonly tunnels: { readonly sessions: number; readonly peers: number } | null
  readonly services: readonly InstanceEntry[]
  readonly workloads: readonly WorkloadEntry[]
  /** Connections of the services of this host, as it counted them. */
  readonly edges: readonly GraphEdge[]
  /** Counters of the host's own columns in the span, by name. */
  readonly counters: Readonly<Record<string, number>>
}

/**
 * `/history`: figures over time. Query: `source`, `destination`, `host` (each may be left out), `from`, `to`, `step`
 * (10s, 1m, 1h; chosen by the span unless given).
 */
export interface HistoryDocument {
  readonly coverage: Coverage
  readonly stepMs: number
  /** The ends of the steps. */
  readonly at: readonly string[]
  /** By name; a value is null where no host has reported. */
  readonly series: HistorySeries
  /** Hosts whose reports for a step have not come (yet), by step. */
  readonly missing: readonly number[]
}

/** One array per figure, each as long as `at`. */
export interface HistorySeries {
  readonly openedPerSecond: readonly (number | null)[]
  readonly errorsPerSecond: readonly (number | null)[]
  readonly deniedPerSecond: readonly (number | null)[]
  readonly active: readonly (number | null)[]
  readonly sentBytesPerSecond: readonly (number | null)[]
  readonly receivedBytesPerSecond: readonly (number | null)[]
  readonly connectP50Ms: readonly (number | null)[]
  readonly connectP99Ms: readonly (number | null)[]
  readonly firstByteP50Ms: readonly (number | null)[]
  readonly firstByteP99Ms: readonly (number | null)[]
}

/** `/risks`: what will break, before it does. */
export interface RisksDocument {
  readonly coverage: Coverage
  readonly risks: readonly Risk[]
}

/** One risk. */
export interface Risk {
  readonly kind: RiskKind
  readonly severity: 'high' | 'medium' | 'low'
  /** The service, pair or host that it is about. */
  readonly subject: string
  /** One sentence. */
  readonly message: string
  /** What to do. */
  readonly hint: string
}

/** The kinds of risks. */
export type RiskKind =
  | 'singleInstance'
  | 'oneHost'
  | 'oneZone'
  | 'certificateLife'
  | 'unusedAllow'
  | 'defaultDenyWouldCut'
  | 'oldVersion'
  | 'clockOff'
  | 'plaintext'
  | 'silentHost'
  | 'captureOff'

/** `/versions`: what runs where. */
export interface VersionsDocument {
  readonly coverage: Coverage
  readonly versions: readonly { readonly version: string; readonly hosts: readonly string[] }[]
  /** Pairs of services whose hosts run different versions. */
  readonly mixedPairs: readonly {
    readonly source: string
    readonly destination: string
    readonly versions: readonly string[]
  }[]
}

/** An event of `/live` (server-sent events, one a second): the graph of the last seconds. */
export interface LiveEvent {
  readonly graph: GraphDocument
  readonly hosts: HostCounts
}
