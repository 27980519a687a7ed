/**
 * The main thread's values of the host at one moment, for the metrics.
 */

/** What became of the metrics that were sent to an OTLP endpoint. */
export interface OtlpCounts {
  /** Requests. `failed`: no answer, or not now; `refused`: any other answer. */
  readonly requests: Readonly<Record<'accepted' | 'failed' | 'refused', number>>
  /** Of accepted requests. */
  readonly rejectedPoints: number
}

/** The control plane's values at the moment of a scrape. */
export interface HostReading {
  readonly ready: boolean
  readonly serving: boolean
  /** Number of problems by code. */
  readonly problems: ReadonlyMap<string, number>
  readonly snapshotVersion: number
  /** Wall clock; undefined before the first valid answer. */
  readonly catalogLastSuccessMs: number | undefined
  /** Number of remembered items by part, and the problems of their files. */
  readonly state: {
    readonly parts: readonly { readonly part: string; readonly remembered: number }[]
    readonly problems: readonly string[]
  }
  /** Undefined without Consul. */
  readonly consulLastContactMs: number | undefined
  /** Undefined while capture is off. */
  readonly captureInSync: boolean | undefined
  /** By outcome; undefined while the resolver is off. */
  readonly dnsQueries: Readonly<Record<string, number>> | undefined
  /** Services that are followed in the catalog. */
  readonly watchedServices: number
  /** From the kernel's counters; undefined while capture is off. */
  readonly unknownCallersRefused?:
    | { readonly virtual: number; readonly instance: number }
    | undefined
  /** Also from the kernel's counters; undefined while capture is off, and each where it is not counted. */
  readonly captureCounts?:
    | {
        readonly permitted: number
        readonly waited: number | undefined
        readonly full: number | undefined
        readonly guarded: number | undefined
        readonly spared: number | undefined
      }
    | undefined
  /** Connections that bypassed the mesh; undefined where they are not counted. */
  readonly plainInbound?: number | undefined
  /** Undefined while capture is off. */
  readonly captureRepairs?: number | undefined
  /** One entry for each aggregator of this host. */
  readonly reports: readonly {
    readonly aggregator: string
    readonly waiting: number
    readonly dropped: number
    readonly lastSuccessMs: number | undefined
  }[]
  /** Undefined without an OTLP endpoint. */
  readonly otlp?: OtlpCounts | undefined
  readonly certificates: readonly { readonly service: string; readonly notAfterMs: number }[]
  readonly workersRunning: number
  readonly workerRestarts: number
  /** Of the main thread; the workers' are in their counters. */
  readonly logLinesLost: number
  /** Of the file of the access log. */
  readonly accessLinesLost: number
  /** Longest delay of the main thread's event loop, from watchEventLoopLag. */
  readonly eventLoopLagMs: number
}
