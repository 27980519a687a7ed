/**
 * What the main thread knows of the host at one moment, for whoever tells it on: the metrics now.
 */

/** What the control plane knows at the moment of a scrape. */
export interface HostReading {
  readonly ready: boolean
  readonly serving: boolean
  /** How many problems of each code there are. */
  readonly problems: ReadonlyMap<string, number>
  readonly snapshotVersion: number
  /** Wall clock; undefined before the first good answer. */
  readonly catalogLastSuccessMs: number | undefined
  /** What is only remembered, by part, and what is wrong with the files it is kept in. */
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
  /** The same of what capture lets pass or holds back; undefined while it is off, and each where nobody counts it. */
  readonly captureCounts?:
    | {
        readonly permitted: number
        readonly waited: number | undefined
        readonly full: number | undefined
        readonly guarded: number | undefined
        readonly spared: number | undefined
      }
    | undefined
  /** Connections that came around the mesh; undefined where nobody counts them. */
  readonly plainInbound?: number | undefined
  /** Undefined while capture is off. */
  readonly captureRepairs?: number | undefined
  readonly certificates: readonly { readonly service: string; readonly notAfterMs: number }[]
  readonly workersRunning: number
  readonly workerRestarts: number
  /** Of the main thread; the workers' are in their counters. */
  readonly logLinesLost: number
  /** Longest delay of the main thread's event loop, from watchEventLoopLag. */
  readonly eventLoopLagMs: number
}
