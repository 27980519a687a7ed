/**
 * Ejects endpoints to which connections failed, whatever the catalog reports. Pure; time is passed in as a number, and
 * whether enough other endpoints remain as a boolean.
 *
 * ```
 *            failures                 time is over, one connection tries
 *   in use ------------> ejected ---------------------------------------> probed
 *      ^                    ^                 it failed: longer            |  |
 *      |                    +-------------------------------------------- +  |
 *      +----------------------------------- it succeeded --------------------+
 * ```
 *
 * One refused connection costs its caller a millisecond and an attempt at the next instance, so three in a row eject. A
 * timeout or a lost tunnel costs a whole deadline: one is enough.
 */
import type { FailureCost } from '../../model/ending.ts'

/** Number of quick failures in a row that ejects. */
export const FAILURES_TO_EJECT = 3

/** Duration of the first ejection; each further one is twice as long. Milliseconds. */
export const FIRST_EJECTION_MS = 30_000

/** Longest ejection. Milliseconds. */
export const LONGEST_EJECTION_MS = 300_000

/** For each such time in use, one ejection is removed from an endpoint's record. Milliseconds. */
export const FORGIVE_MS = 60_000

/**
 * An ejected endpoint that was not tried for this time after its ejection ended, or one in use without a failure for
 * this time, is forgotten: it may no longer exist. Milliseconds.
 */
export const FORGET_MS = 600_000

/** Limit of remembered endpoints; at the limit those with the oldest failures are forgotten. */
export const MAX_OUTLIERS = 10_000

/** An endpoint that is ejected now. */
export interface Ejection {
  readonly key: string
  /** Reason of the last failure. */
  readonly reason: string
  /** Milliseconds until a connection may try it again; 0 when the next one may. */
  readonly leftMs: number
  /** Number of ejections in a row. */
  readonly times: number
}

interface Outlier {
  /** In a row, since the last success or ejection. */
  failures: number
  failedAtMs: number
  reason: string
  /** Undefined while it is in use. */
  ejectedUntilMs: number | undefined
  /** Whether the connection that tries it is in progress. */
  isProbed: boolean
  /** Number of ejections on its record, as of `recordedAtMs`. */
  record: number
  recordedAtMs: number
}

/** The endpoints with recent failures. One per worker. */
export class OutlierDetector {
  private readonly outliers = new Map<string, Outlier>()
  private ejected = 0

  /** Number of ejected endpoints; at 0 no endpoint needs to be checked. */
  get ejectedCount(): number {
    return this.ejected
  }

  /** Whether the endpoint is ejected, even if a connection may try it again. */
  isEjected(key: string): boolean {
    return this.outliers.get(key)?.ejectedUntilMs !== undefined
  }

  /** Why the endpoint is ejected; null when it is not, or when the next connection may try it. */
  ejectionReason(key: string, nowMs: number): string | null {
    const outlier = this.outliers.get(key)
    if (outlier?.ejectedUntilMs === undefined || this.isDueForProbe(key, nowMs)) return null
    return outlier.reason
  }

  /** Whether connections may use it like any other. */
  isInUse(key: string): boolean {
    return this.ejected === 0 || !this.isEjected(key)
  }

  /** Whether its ejection has ended and no connection tries it yet: the next one should. */
  isDueForProbe(key: string, nowMs: number): boolean {
    const outlier = this.outliers.get(key)
    return (
      outlier?.ejectedUntilMs !== undefined && !outlier.isProbed && nowMs >= outlier.ejectedUntilMs
    )
  }

  /** A connection attempt begins. */
  started(key: string, nowMs: number): void {
    if (this.ejected === 0) return
    const outlier = this.outliers.get(key)
    if (outlier !== undefined && this.isDueForProbe(key, nowMs)) outlier.isProbed = true
  }

  /** The attempt is over, with or without a result. */
  finished(key: string): void {
    if (this.ejected === 0) return
    const outlier = this.outliers.get(key)
    if (outlier !== undefined) outlier.isProbed = false
  }

  /** The attempt reached the application. Returns whether that ended an ejection. */
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
   * The attempt failed. `mayEject` returns whether enough other endpoints remain; it is called only when that matters.
   * Returns whether the endpoint was ejected, or its ejection extended.
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
      // Failures of connections that began before, or that had no other endpoint, are no new information.
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

  /** The endpoints that are ejected now. */
  list(nowMs: number): readonly Ejection[] {
    if (this.ejected === 0) return []
    return [...this.outliers].flatMap(([key, { ejectedUntilMs, reason, record }]) =>
      ejectedUntilMs === undefined
        ? []
        : [{ key, reason, leftMs: Math.max(0, ejectedUntilMs - nowMs), times: record }],
    )
  }

  /** Forgets endpoints after {@link FORGET_MS}. */
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

  /** Makes room: removes a tenth at once, so that a full table is not sorted for each failure. */
  private forget(): void {
    const oldest = [...this.outliers].toSorted(([, a], [, b]) => a.failedAtMs - b.failedAtMs)
    for (const [key, { ejectedUntilMs }] of oldest.slice(0, MAX_OUTLIERS / 10)) {
      if (ejectedUntilMs !== undefined) this.ejected -= 1
      this.outliers.delete(key)
    }
  }
}

/** Duration of the next ejection for an endpoint with this record. */
function ejectionMs(record: number): number {
  return Math.min(LONGEST_EJECTION_MS, FIRST_EJECTION_MS * 2 ** record)
}

/** The number of its ejections, minus those forgiven for its time in use. */
function recordOf(outlier: Outlier, nowMs: number): number {
  if (outlier.ejectedUntilMs !== undefined) return outlier.record
  const forgiven = Math.floor(Math.max(0, nowMs - outlier.recordedAtMs) / FORGIVE_MS)
  return Math.max(0, outlier.record - forgiven)
}
