/**
 * One finding of `hostmesh check`.
 */
import { describeError, MeshError } from '../../lib/errors.ts'

/** `fail` keeps the host from its work, `warn` does not. */
export type CheckResult = 'ok' | 'warn' | 'fail'

/** What was checked, and what to do about it. */
export interface Check {
  /** What was checked, such as `ports`. */
  readonly check: string
  readonly result: CheckResult
  /** One sentence. */
  readonly finding: string
  /** The next step; null when nothing is to be done. */
  readonly next: string | null
}

/** A finding without anything to do. */
export function ok(check: string, finding: string): Check {
  return { check, result: 'ok', finding, next: null }
}

/** A finding that does not keep the host from its work. */
export function warn(check: string, finding: string, next: string): Check {
  return { check, result: 'warn', finding, next }
}

/** A finding that keeps the host from its work. */
export function fail(check: string, finding: string, next: string): Check {
  return { check, result: 'fail', finding, next }
}

/** A failure as a finding; its hint is the next step, if it has one. */
export function failedBy(check: string, thrown: unknown, next: string): Check {
  const hint = thrown instanceof MeshError ? thrown.hint : undefined
  return fail(check, describeError(thrown), hint ?? next)
}
