/**
 * Which endpoints are avoided because connections to them failed, whatever the catalog says. Pure; time comes in as
 * a number, who else there is comes in as a yes or no.
 *
 * ```
 *            failures                 time is over, one connection tries
 *   in use ------------> ejected ---------------------------------------> probed
 *      ^                    ^                 it failed: longer            |  |
 *      |                    +-------------------------------------------- +  |
 *      +----------------------------------- it succeeded --------------------+
 * ```
 *
 * One refused connection costs its caller a millisecond and the next instance, so three in a row are waited for. A
 * timeout or a lost tunnel costs a whole deadline: one is enough.
 */
import type { FailureCost } from '../../model/ending.ts'

/** Quick failures in a row that eject. */
export const FAILURES_TO_EJECT = 3

/** The first ejection; each further one is twice as long. Milliseconds. */
export const FIRST_EJECTION_MS = 30_000

/** No ejection is longer. Milliseconds. */
export const LONGEST_EJECTION_MS = 300_000

/** An endpoint that is in use for so long has one ejection less on its record. Milliseconds. */
export const FORGIVE_MS = 60_000

/**
 * An ejected endpoint that nobody has tried for so long after its time, and one that is in use and has not failed
 * for so long, is forgotten: it may be gone. Milliseconds.
 */
export const FORGET_MS = 600_000

/** Endpoints remembered; beyond it the ones with the oldest failure are forgotten. */
export const MAX_OUTLIERS = 10_000

/** An endpoint that is avoided now. */
export interface Ejection {
  readonly key: string
  /** What the last failure said. */
  readonly reason: string
  /** Until a connection may try it again; 0 when the next one may. */
  readonly leftMs: number
  /** Ejections in a row. */
  readonly times: number
}

interface Outlier {
  /** In a row, since the last success or ejection. */
  failures: number
  failedAtMs: number
  reason: string
  /** Undefined while it is in use. */
  ejectedUntilMs: number | undefined
  /** Whether the one connection that tries it is under way. */
  isProbed: boolean
  /** Ejections on its record, as of `recordedAtMs`. */
  record: number
  recordedAtMs: number
}

/** The endpoints that have failed lately. One per worker. */
export class OutlierDetector {
  private readonly outliers = new Map<string, Outlier>()
  private ejected = 0

  /** Ejected endpoints; with 0 nobody needs to be asked about. */
  get ejectedCount(): number {
    return this.ejected
  }

  /** Whether the endpoint is avoided, whether or not a connection may try it again. */
  isEjected(key: string): boolean {
    return this.outliers.get(key)?.ejectedUntilMs !== undefined
  }

  /** Why the endpoint is avoided; null when it is not. */
  avoidedFor(key: string, nowMs: number): string | null {
    const outlier = this.outliers.get(key)
    if (outlier?.ejectedUntilMs === undefined || this.isDueForProbe(key, nowMs)) return null
    return outlier.reason
  }

  /** Whether connections may go there as to any other. */
  isInUse(key: string): boolean {
    return this.ejected === 0 || !this.isEjected(key)
  }

  /** Whether its time is over and nobody is trying it yet: the next connection should. */
  isDueForProbe(key: string, nowMs: number): boolean {
    const outlier = this.outliers.get(key)
    return (
      outlier?.ejectedUntilMs !== undefined && !outlier.isProbed && nowMs >= outlier.ejectedUntilMs
    )
  }

  /** A connection tries it. */
  started(key: string, nowMs: number): void {
    if (this.ejected === 0) return
    const outlier = this.outliers.get(key)
    if (outlier !== undefined && this.isDueForProbe(key, nowMs)) outlier.isProbed = true
  }

  /** The try is over, with or without a verdict. */
  finished(key: string): void {
    if (this.ejected === 0) return
    const outlier = this.outliers.get(key)
    if (outlier !== undefined) outlier.isProbed = false
  }

  /** The try reached the application. Returns whether that ended an ejection. */
  succeeded(key: string, nowMs: number): boolean {
    if (this.outliers.size === 0) return false
    const outlier = this.outliers.get(key)
    if (outlier === undefined) return false
    const wasEjected = outlier.ejectedUntilMs !== undefined
    if (wasEjected) {
      this.ejected -= 1
      outlier.ejectedUntilMs = undefined
      outlier.isProbed = false
      outlier.recordedAtMs = nowMs
    }
    outlier.failures = 0
    if (recordOf(outlier, nowMs) === 0) this.outliers.delete(key)
    return wasEjected
  }

  /**
   * The try failed. `mayEject` says whether enough others remain; it is asked only when it matters. Returns whether
   * the endpoint was ejected, anew or for longer.
   */
  failed(
    key: string,
    failure: { readonly cost: FailureCost; readonly reason: string },
    nowMs: number,
    mayEject: () => boolean,
  ): boolean {
    const outlier = this.outliers.get(key) ?? this.remember(key, nowMs)
    outlier.failures += 1
    outlier.failedAtMs = nowMs
    outlier.reason = failure.reason
    if (outlier.ejectedUntilMs !== undefined) {
      // Failures of connections that had begun before, or that had no other choice, say nothing new.
      if (!outlier.isProbed) return false
      this.eject(outlier, nowMs)
      return true
    }
    if (failure.cost === 'quick' && outlier.failures < FAILURES_TO_EJECT) return false
    if (!mayEject()) return false
    this.ejected += 1
    this.eject(outlier, nowMs)
    return true
  }

  /** The endpoints that are avoided now. */
  list(nowMs: number): readonly Ejection[] {
    if (this.ejected === 0) return []
    return [...this.outliers].flatMap(([key, { ejectedUntilMs, reason, record }]) =>
      ejectedUntilMs === undefined
        ? []
        : [{ key, reason, leftMs: Math.max(0, ejectedUntilMs - nowMs), times: record }],
    )
  }

  /** Forgets what is old. */
  sweep(nowMs: number): void {
    for (const [key, { ejectedUntilMs, failedAtMs }] of this.outliers) {
      if (nowMs - (ejectedUntilMs ?? failedAtMs) < FORGET_MS) continue
      if (ejectedUntilMs !== undefined) this.ejected -= 1
      this.outliers.delete(key)
    }
  }

  private eject(outlier: Outlier, nowMs: number): void {
    const record = recordOf(outlier, nowMs)
    outlier.ejectedUntilMs = nowMs + ejectionMs(record)
    outlier.record = record + 1
    outlier.recordedAtMs = nowMs
    outlier.failures = 0
    outlier.isProbed = false
  }

  private remember(key: string, nowMs: number): Outlier {
    if (this.outliers.size >= MAX_OUTLIERS) this.forget()
    const outlier: Outlier = {
      failures: 0,
      failedAtMs: nowMs,
      reason: '',
      ejectedUntilMs: undefined,
      isProbed: false,
      record: 0,
      recordedAtMs: nowMs,
    }
    this.outliers.set(key, outlier)
    return outlier
  }

  /** Makes room: a tenth at once, so that a full table is not sorted for each failure. */
  private forget(): void {
    const oldest = [...this.outliers].toSorted(([, a], [, b]) => a.failedAtMs - b.failedAtMs)
    for (const [key, { ejectedUntilMs }] of oldest.slice(0, MAX_OUTLIERS / 10)) {
      if (ejectedUntilMs !== undefined) this.ejected -= 1
      this.outliers.delete(key)
    }
  }
}

/** How long an endpoint with so many ejections on its record is ejected. */
function ejectionMs(record: number): number {
  return Math.min(LONGEST_EJECTION_MS, FIRST_EJECTION_MS * 2 ** record)
}

/** Its ejections, less those forgiven for the time in which it was in use. */
function recordOf(outlier: Outlier, nowMs: number): number {
  if (outlier.ejectedUntilMs !== undefined) return outlier.record
  const forgiven = Math.floor(Math.max(0, nowMs - outlier.recordedAtMs) / FORGIVE_MS)
  return Math.max(0, outlier.record - forgiven)
}
