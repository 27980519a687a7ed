/**
 * What the front of the store and its thread say to each other.
 *
 * The thread has no clock: every message brings the time. Answers of reads are bytes, since copying thousands of objects
 * between threads costs more than to read them from a disk.
 */
import type { ReportColumns, ReportRecord } from '../../model/report.ts'
import type { PairFilter, Span } from '../fleet-store.ts'
import type { CellMeaning } from './cells.ts'
import type { TierName } from './steps.ts'

/** Settings of the store. */
export interface StoreSettings {
  readonly path: string
  /** Hard limit of the size of the file with its log. */
  readonly maxBytes: number
  /** How long the tiers are kept. */
  readonly secondsMs: number
  readonly minutesMs: number
  readonly hoursMs: number
  /** Most hosts; reports of further ones are refused. */
  readonly maxHosts: number
}

/** A report as the thread stores it. */
export interface StoredReport {
  readonly host: string
  readonly keyHash: string
  readonly run: string
  readonly receivedAtMs: number
  readonly clockOffsetMs: number
  readonly layout: string
  readonly columns: ReportColumns | undefined
  readonly records: readonly ReportRecord[]
}

/** What the thread knows of a host. */
export interface KnownHost {
  readonly name: string
  readonly keyHash: string
  readonly firstAtMs: number
  readonly lastAtMs: number
  readonly lateMs: number
  readonly lost: number
  readonly clockOffsetMs: number
  readonly conflictFromMs: number | undefined
  readonly conflictToMs: number | undefined
  /** The last facts as JSON, and their time. */
  readonly facts: { readonly atMs: number; readonly json: string } | undefined
}

/** A host at a moment of the past. */
export interface PastHost {
  readonly name: string
  readonly lastAtMs: number
  readonly facts: { readonly atMs: number; readonly json: string } | undefined
}

/** Resources of a service of a host. */
export interface PastWorkload {
  readonly host: string
  readonly service: string
  readonly spanMs: number
  readonly cpuMs: number | undefined
  readonly memoryBytes: number | undefined
  readonly tasks: number | undefined
  readonly sockets: number | undefined
  readonly cpuWaitMs: number | undefined
  readonly memoryWaitMs: number | undefined
  readonly ioWaitMs: number | undefined
}

/** What the thread is asked for. */
export type Question =
  | { readonly kind: 'open'; readonly settings: StoreSettings }
  | { readonly kind: 'accept'; readonly report: StoredReport }
  | {
      readonly kind: 'conflict'
      readonly host: string
      readonly fromMs: number
      readonly toMs: number
    }
  /** Rolls up and deletes what is due; `budgetMs` bounds the time that it takes. */
  | { readonly kind: 'maintain'; readonly nowMs: number; readonly budgetMs: number }
  | { readonly kind: 'pairs'; readonly span: Span; readonly filter: PairFilter }
  | {
      readonly kind: 'history'
      readonly span: Span
      readonly tier: TierName
      readonly filter: PairFilter
    }
  | { readonly kind: 'hosts'; readonly atMs: number }
  | { readonly kind: 'hostFigures'; readonly span: Span; readonly host: string }
  | { readonly kind: 'workloads'; readonly span: Span; readonly host: string | undefined }
  | { readonly kind: 'status' }
  | { readonly kind: 'close' }

/** The answers by the kind of the question. */
export interface Answers {
  readonly open: readonly KnownHost[]
  readonly accept: {
    readonly accepted: number
    readonly lost: number
    readonly lateMs: number
    /** The end of the last record with facts that were stored. */
    readonly factsAtMs: number | undefined
  }
  readonly conflict: undefined
  /** Whether everything that was due is done. */
  readonly maintain: boolean
  /** host, pair, … (rows.ts), one after the other. */
  readonly pairs: Uint8Array<ArrayBuffer>
  /** number of the step + 1, reporting hosts, bytes that follow, pairs. */
  readonly history: Uint8Array<ArrayBuffer>
  readonly hosts: readonly PastHost[]
  /** Cells. */
  readonly hostFigures: Uint8Array<ArrayBuffer>
  readonly workloads: readonly PastWorkload[]
  readonly status: {
    readonly bytes: number
    readonly maxBytes: number
    readonly oldestMs: Readonly<Record<'seconds' | 'minutes' | 'hours', number | undefined>>
    readonly dropped: Readonly<Record<Dropped, number>>
  }
  readonly close: undefined
}

/** What the store leaves out: services and cells beyond its limits, records older than everything it keeps. */
export type Dropped = 'names' | 'cells' | 'records'

/** A failure, as it crosses threads. */
export interface Failure {
  readonly code: string
  readonly message: string
  readonly hint: string | undefined
}

/** New meanings of numbers, which come before the first answer that has them. */
export interface Meanings {
  /** All former ones are void: the file was replaced. */
  readonly isReset: boolean
  readonly hosts: readonly (readonly [number, string])[]
  readonly names: readonly (readonly [number, string])[]
  readonly cells: readonly (readonly [number, CellMeaning])[]
}

/** To the thread. */
export interface ToThread {
  readonly id: number
  readonly question: Question
}

/** From the thread. */
export type FromThread =
  | { readonly kind: 'meanings'; readonly meanings: Meanings }
  | {
      readonly kind: 'log'
      readonly level: 'info' | 'warn' | 'error'
      readonly message: string
      readonly fields: Record<string, unknown>
    }
  | {
      readonly kind: 'answers'
      readonly answers: readonly (
        | { readonly id: number; readonly answer: Answers[keyof Answers] }
        | { readonly id: number; readonly failure: Failure }
      )[]
    }
