/**
 * What a host reports to an aggregator, docs/report-protocol.md: one POST a second with a live view, and a record
 * of every 10 s that is sent again until it is accepted.
 *
 * Everything that is counted is a difference to the previous record of the same run, so that a sum over records is
 * exact however often one was sent. A record names its columns, so that hosts of several versions report to one
 * aggregator. Times are ages by the host's monotonic clock: the aggregator dates records by its own clock.
 */

/** The version of {@link HostReport}. An aggregator refuses others with status 400. */
export const REPORT_VERSION = 1

/** Where reports are posted. */
export const REPORT_PATH = '/report/v1'

/** The service as which hosts report. */
export const REPORTER_SERVICE = 'hostmesh'

/** Span of a record that was not merged, milliseconds. */
export const RECORD_SPAN_MS = 10_000

/** Limits of a report; an aggregator refuses what exceeds them. */
export const reportLimits = {
  /** Of one POST. */
  bytes: 4 * 1_024 * 1_024,
  records: 64,
  names: 4_200,
  nameLength: 128,
  pairs: 4_200,
  columns: 64,
  /** Cells of one row. */
  cells: 1_024,
  services: 1_000,
  problems: 64,
  intentions: 1_000,
  textLength: 400,
} as const

/** One POST. */
export interface HostReport {
  readonly version: typeof REPORT_VERSION
  /** Name of the host. */
  readonly host: string
  /**
   * 32 random bytes in base64url, kept on the host. The first report with a name binds the name to the key; a report
   * with the same name and another key is kept apart.
   */
  readonly key: string
  /** 16 random bytes in base64url: one process of the daemon. Two runs of a host overlap during a reload. */
  readonly run: string
  /** The host's wall clock, milliseconds since the epoch; only to find clocks that are wrong. */
  readonly clockMs: number
  /** Identifies `columns`: a live view has meaning only with the columns of the same layout. */
  readonly layout: string
  /** Always with records, and with the first live views of a run. */
  readonly columns?: ReportColumns
  readonly live?: LiveView
  /** In order of `sequence`, the oldest that were not accepted yet. */
  readonly records: readonly ReportRecord[]
}

/** The answer to a POST. Everything else in an answer is ignored. */
export interface ReportAnswer {
  /** Records of this run up to this sequence number are stored and need not be sent again. */
  readonly accepted: number
}

/** The columns of a pair's cells and of the host's own cells. */
export interface ReportColumns {
  readonly pair: readonly ReportColumn[]
  readonly host: readonly ReportColumn[]
}

/** A column: its number of cells follows from its kind. */
export type ReportColumn =
  /** One cell. */
  | { readonly name: string; readonly kind: 'count' }
  /** One cell, a present value: not a difference. */
  | { readonly name: string; readonly kind: 'gauge' }
  /** A cell for each value of a label. */
  | {
      readonly name: string
      readonly kind: 'split'
      readonly label: string
      readonly values: readonly string[]
    }
  /** A cell for each upper bound, one above all bounds, and the sum of the values in seconds. */
  | {
      readonly name: string
      readonly kind: 'histogram'
      readonly boundsSeconds: readonly number[]
    }
  /**
   * A log-linear histogram: cell `i` of `cells - 1` counts values in (2^((offset + i) / 2^scale), next], seconds; the
   * first also those below, the last also those above. The last cell is the sum of the values in seconds.
   */
  | {
      readonly name: string
      readonly kind: 'exponential'
      readonly scale: number
      readonly offset: number
      readonly cells: number
    }

/** Cell number, value, cell number, value, …: cells that are zero are left out. */
export type SparseCells = readonly number[]

/** One row: who counted, who called, who was called. */
export type ReportPair = readonly [
  /** 0: the host of the caller; 1: the host of the called service. */
  reporter: 0 | 1,
  /** Positions in `names`. */
  source: number,
  destination: number,
  /** Connections open at the end. */
  active: number,
  /** Connections that were open when their worker crashed. */
  lost: number,
  cells: SparseCells,
]

/** What happened in a span of time. */
export interface Interval {
  readonly spanMs: number
  readonly names: readonly string[]
  /** Pairs of which something was counted, or that have open connections. */
  readonly pairs: readonly ReportPair[]
  /** Cells of the host's columns. */
  readonly host: SparseCells
}

/** The last second, which is shown and not stored. */
export interface LiveView extends Interval {
  readonly state: HostState
  /** Codes of present problems. */
  readonly problems: readonly string[]
}

/** What an aggregator stores. */
export interface ReportRecord extends Interval {
  /** 1, 2, 3, … in a run. */
  readonly sequence: number
  /** Since the end of the span, when this was sent. */
  readonly ageMs: number
  /** Number of spans of 10 s that this record sums up; more than 1 when it could not be delivered for long. */
  readonly merged: number
  readonly workloads: readonly WorkloadUse[]
  /** With the first record of a run, when something in it changed, and every 5 minutes. */
  readonly facts?: ReportedFacts
}

/** The state of a host. `degraded`: it serves, and a problem keeps it from being ready. */
export type HostState = 'starting' | 'ready' | 'degraded' | 'draining'

/** What a control group used. Undefined where the kernel does not say. */
export interface WorkloadUse {
  /** The service, or `hostmesh` for the daemon itself. */
  readonly service: string
  /** CPU time in the span. */
  readonly cpuMs?: number
  readonly memoryBytes?: number
  readonly tasks?: number
  /** Sockets that are open. */
  readonly sockets?: number
  /** Share of the span in which some task waited, 0 to 1 (pressure stall information). */
  readonly pressure?: {
    readonly cpu?: number
    readonly memory?: number
    readonly io?: number
  }
}

/** What a host is and acts on, as far as it changes seldom. */
export interface ReportedFacts {
  readonly version: string
  readonly nodeVersion: string
  readonly datacenter: string
  /** Where the host is, as its configuration says; groups and risks use it. */
  readonly zone?: string
  readonly startedMsAgo: number
  readonly state: HostState
  readonly workers: number
  readonly trustDomain?: string
  readonly problems: readonly ReportedProblem[]
  readonly services: readonly ReportedService[]
  readonly capture: {
    readonly mode: 'off' | 'on'
    readonly backend?: string
    readonly inSync?: boolean
    /** Connections that reached a service around the mesh, since the rules were made. */
    readonly plainInbound?: number
  }
  /** Tunnels by state and key exchange, as far as it is known. */
  readonly tunnels: {
    readonly sessions: number
    readonly peers: number
  }
}

/** A problem of a host, as `hostmesh status` shows it. */
export interface ReportedProblem {
  readonly code: string
  readonly message: string
  readonly blocks: boolean
}

/** A service of the host. */
export interface ReportedService {
  readonly name: string
  readonly id: string
  /** `ip:port` of the application; absent for a pure caller. */
  readonly target?: string
  readonly protocol: string
  /** Whether its own connections are captured. */
  readonly captured: boolean
  /** Until the certificate in use ends, and its whole life; absent while there is none. */
  readonly certificate?: {
    readonly leftMs: number
    readonly lifeMs: number
    readonly spiffeId: string
  }
  /** The health of the instance in the catalog; absent where it is not known. */
  readonly health?: 'passing' | 'warning' | 'critical'
  /** Destinations for which the service is configured. */
  readonly upstreams: readonly string[]
  /** The rules for its callers; absent while they are not loaded. */
  readonly policy?: ReportedPolicy
}

/** The intentions of a destination. */
export interface ReportedPolicy {
  readonly defaultAction: 'allow' | 'deny'
  readonly intentions: readonly ReportedIntention[]
}

/** One rule; names may be `*`. One that cannot be enforced for TCP denies. */
export interface ReportedIntention {
  readonly source: string
  readonly destination: string
  readonly action: 'allow' | 'deny'
  readonly precedence: number
}
