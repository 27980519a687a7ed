/**
 * Decides when a certificate is to be renewed: a pure function of the certificate and the wall clock, called
 * repeatedly, so that a step of the clock, sleep of the machine and a restart of the daemon need no special treatment.
 *
 * ```
 *   notBefore ......... 50 to 60 % ......... 80 % ......... notAfter
 *      fresh                 due            overdue         expired
 * ```
 */

/** The inputs of the schedule. Times are wall-clock milliseconds. */
export interface RenewalFacts {
  readonly notBeforeMs: number
  readonly notAfterMs: number
  /** Hex; its last digits give each certificate a stable jitter of its own. */
  readonly serialNumber: string
  /** Since when another root is known to sign, and within how long to follow; undefined while its own root signs. */
  readonly rootChange?: { readonly sinceMs: number; readonly withinMs: number } | undefined
  /** Revoked, or no longer issued by a trusted root: peers already reject it. */
  readonly isRefused?: boolean
}

/** The state of a certificate in its renewal. */
export type RenewalState = 'notYetValid' | 'fresh' | 'due' | 'overdue' | 'expired'

/** The state now, and when renewal is or was due. */
export interface Renewal {
  readonly state: RenewalState
  readonly dueAtMs: number
}

const DUE_SHARE = 0.5
const JITTER_SHARE = 0.1
const OVERDUE_SHARE = 0.8

/** The renewal state at `nowMs`. */
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
  // Another certificate from the same CA would not be valid yet either: a clock is wrong.
  if (nowMs < notBeforeMs) return { state: 'notYetValid', dueAtMs: notBeforeMs }
  if (nowMs >= notBeforeMs + lifeMs * OVERDUE_SHARE) return { state: 'overdue', dueAtMs }
  return { state: nowMs >= dueAtMs ? 'due' : 'fresh', dueAtMs }
}

/** Whether renewal is overdue or the certificate has expired. */
export function isOverdue({ state }: Renewal): boolean {
  return state === 'overdue' || state === 'expired'
}

/** In [0, 1), always the same for the same certificate; serial numbers are random. */
export function jitterOf(serialNumber: string): number {
  const tail = Number.parseInt(serialNumber.slice(-8), 16)
  return Number.isNaN(tail) ? 0 : tail / 2 ** (4 * Math.min(8, serialNumber.length))
}
