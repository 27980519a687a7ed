/**
 * What the aggregator knows: the last seconds in memory, the past on disk. The rest of the aggregator asks this alone.
 */
import type { HostReport, HostState, ReportedFacts, WorkloadUse } from '../model/report.ts'
import type { Figures, PairFigures } from './figures.ts'

/** A span of the past. `toMs` is its end; wall clock of the aggregator, milliseconds since the epoch. */
export interface Span {
  readonly fromMs: number
  readonly toMs: number
}

/** Which pairs are asked for; what is left out is not restricted. */
export interface PairFilter {
  readonly host?: string | undefined
  readonly source?: string | undefined
  readonly destination?: string | undefined
  /** Sums of all hosts: one row for each pair and reporter, whose `host` is empty. A graph needs no more. */
  readonly sumHosts?: boolean | undefined
}

/** What is known of one host at a moment. */
export interface HostReading {
  readonly name: string
  /** Whether another key than the first has reported with this name; its reports count for nothing. */
  readonly isConflicting: boolean
  readonly firstReportAtMs: number
  readonly lastReportAtMs: number
  /** Of the last live view, else of the facts. */
  readonly state: HostState | undefined
  /** How late the last record was stored after its end. */
  readonly lateMs: number
  /** Records whose sequence numbers are missing, in all runs. */
  readonly lostRecords: number
  /** The host's clock less ours, at the last report. */
  readonly clockOffsetMs: number | undefined
  /** The facts that held at that moment, and when they were reported; undefined before the first. */
  readonly facts: ReportedFacts | undefined
  readonly factsAtMs: number | undefined
}

/** Resources of a workload of a host in a span; sums and last values. */
export interface WorkloadReading {
  readonly host: string
  readonly spanMs: number
  readonly use: WorkloadUse
}

/** The figures of one step of time. */
export interface Step {
  /** The end of the step. */
  readonly atMs: number
  readonly pairs: readonly PairFigures[]
  /** Hosts with a record in this step. */
  readonly reporting: number
}

/** How a report was taken. */
export type Accepted =
  | { readonly kind: 'accepted'; readonly accepted: number }
  /** Another host has this name. */
  | { readonly kind: 'conflict' }

/** The store of the fleet. */
export interface FleetStore extends AsyncDisposable {
  /**
   * Takes a valid report. Resolves when its records are on disk (synchronous=NORMAL: they survive the end of the
   * process). Taking a report again changes nothing.
   * @throws MeshError HM_STORE_FULL, HM_STORE_BUSY, HM_STORE_FAILED: the host will send its records again
   */
  accept(report: HostReport, receivedAtMs: number): Promise<Accepted>
  /**
   * Sums of a span by host and pair. Its ends are those of steps of the finest tier that still has all of it.
   * @throws MeshError HM_STORE_QUESTION_TOO_LARGE, as the other questions do; HM_STORE_FAILED
   */
  pairs(span: Span, filter?: PairFilter): Promise<readonly PairFigures[]>
  /** The last seconds, from live views: what is not older than 3 s; `spanMs` is what they cover. */
  livePairs(nowMs: number): { readonly spanMs: number; readonly pairs: readonly PairFigures[] }
  /**
   * Steps of 10 s, 1 min or 1 h that end in the span; those in which no host has reported are left out.
   * @throws MeshError HM_STORE_STEP_UNKNOWN for steps of another length
   */
  history(span: Span & { readonly stepMs: number }, filter?: PairFilter): Promise<readonly Step[]>
  /** All hosts, with the facts of that moment. Hosts that came later are left out. */
  hosts(atMs: number): Promise<readonly HostReading[]>
  /** The host's own columns, summed over a span. */
  hostFigures(span: Span, host: string): Promise<Figures>
  workloads(span: Span, host?: string): Promise<readonly WorkloadReading[]>
  status(): Promise<{
    readonly bytes: number
    readonly maxBytes: number
    readonly oldestMs: Readonly<Record<'seconds' | 'minutes' | 'hours', number | undefined>>
    /** Since the start: names and cells beyond the limits, records older than all that is kept. */
    readonly dropped: Readonly<Record<'names' | 'cells' | 'records', number>>
  }>
}
