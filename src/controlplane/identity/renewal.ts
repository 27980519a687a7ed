/**
 * When a certificate is to be renewed: a pure function of the certificate and the wall clock, asked again and
 * again, so that a clock that is stepped, a machine that slept and a daemon that was restarted need nothing
 * of their own.
 *
 * ```
 *   notBefore ......... 50 to 60 % ......... 80 % ......... notAfter
 *      fresh                 due            overdue         expired
 * ```
 */

/** What the schedule depends on. Times are wall-clock milliseconds. */
export interface RenewalFacts {
  readonly notBeforeMs: number
  readonly notAfterMs: number
  /** Hex; its end is the certificate's own, stable jitter. */
  readonly serialNumber: string
  /** Since when we know that another root signs now, and within how long to follow; undefined when ours does. */
  readonly rootChange?: { readonly sinceMs: number; readonly withinMs: number } | undefined
  /** Revoked, or no root stands behind it any more: peers refuse it already. */
  readonly isRefused?: boolean
}

/** What is to be done with a certificate. */
export type RenewalState = 'notYetValid' | 'fresh' | 'due' | 'overdue' | 'expired'

/** The state now, and when renewal is or was due. */
export interface Renewal {
  readonly state: RenewalState
  readonly dueAtMs: number
}

const DUE_SHARE = 0.5
const JITTER_SHARE = 0.1
const OVERDUE_SHARE = 0.8

/** What is to be done at `nowMs`. */
export function renewalOf(facts: RenewalFacts, nowMs: number): Renewal {
  const { notBeforeMs, notAfterMs, rootChange } = facts
  const lifeMs = notAfterMs - notBeforeMs
  const jitter = jitterOf(facts.serialNumber)
  let dueAtMs = notBeforeMs + lifeMs * (DUE_SHARE + JITTER_SHARE * jitter)
  if (rootChange !== undefined)
    dueAtMs = Math.min(
      dueAtMs,
      rootChange.sinceMs + jitter * Math.min(rootChange.withinMs, lifeMs / 10),
    )
  if (facts.isRefused === true) dueAtMs = Math.min(dueAtMs, nowMs)
  if (nowMs >= notAfterMs) return { state: 'expired', dueAtMs }
  // Another certificate from the same CA would not be valid yet either: this is a matter of clocks.
  if (nowMs < notBeforeMs) return { state: 'notYetValid', dueAtMs: notBeforeMs }
  if (nowMs >= notBeforeMs + lifeMs * OVERDUE_SHARE) return { state: 'overdue', dueAtMs }
  return { state: nowMs >= dueAtMs ? 'due' : 'fresh', dueAtMs }
}

/** Whether a certificate should have been renewed long since. */
export function isOverdue({ state }: Renewal): boolean {
  return state === 'overdue' || state === 'expired'
}

/** In [0, 1), the same for the same certificate wherever it is asked; serial numbers are random. */
export function jitterOf(serialNumber: string): number {
  const tail = Number.parseInt(serialNumber.slice(-8), 16)
  return Number.isNaN(tail) ? 0 : tail / 2 ** (4 * Math.min(8, serialNumber.length))
}
