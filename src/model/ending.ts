/**
 * What each failure means for the connection that it ends: the one table from error codes and reset codes to response
 * flags, to whether another instance is tried, and to the cost for the instance that failed.
 */
import type { ErrorCode } from '../lib/errors.ts'
import type { ResponseFlag } from './response-flag.ts'

/** How a try failed: at once, or only after a deadline. */
export type FailureCost = 'quick' | 'slow'

/** Why a stream was refused or aborted: docs/tunnel-protocol.md, "Reset codes". */
export const resetReasons = [
  'unspecified',
  'denied',
  'unknownService',
  'unreachable',
  'overloaded',
  'timeout',
  'aborted',
  'draining',
  'malformed',
] as const

/** The name of a reset code. */
export type ResetReason = (typeof resetReasons)[number]

/** What an error means for the connection that it ended. */
export interface Ending {
  /** What counters, logs and the admin API report. */
  readonly flag: ResponseFlag
  /** Whether another instance may be tried, as long as no instance has confirmed the connection. */
  readonly mayRetry?: true
  /** What counts against the tried instance; absent when the error concerns the caller, a policy or a limit. */
  readonly cost?: FailureCost
}

/**
 * The endings by error code. A refused tunnel has no cost for its instance: a single caller whose certificate every
 * peer rejects must not have instances ejected for all callers of the host.
 */
const endings = {
  HM_BALANCE_NO_ENDPOINT: { flag: 'UH' },
  HM_CALLER_GONE: { flag: 'DC' },
  HM_CAPTURE_SELF: { flag: 'SELF' },
  HM_CONNECT_TIMEOUT: { flag: 'UT', cost: 'slow' },
  HM_DELIVER_TIMEOUT: { flag: 'UF', mayRetry: true, cost: 'slow' },
  HM_DELIVER_UNKNOWN: { flag: 'NC' },
  HM_DELIVER_UNREACHABLE: { flag: 'UF', mayRetry: true, cost: 'quick' },
  HM_DIAL_FAILED: { flag: 'UF', mayRetry: true, cost: 'quick' },
  HM_DIAL_TIMEOUT: { flag: 'UF', mayRetry: true, cost: 'slow' },
  HM_DRAINING: { flag: 'DR' },
  HM_LIMIT_MEMORY: { flag: 'UO' },
  HM_POLICY_DENIED: { flag: 'DENY' },
  HM_PREFACE_MALFORMED: { flag: 'PE' },
  HM_PREFACE_TIMEOUT: { flag: 'UT' },
  HM_ROUTE_NO_PROXY: { flag: 'UH' },
  HM_ROUTE_UNKNOWN: { flag: 'NC' },
  HM_TLS_EXPIRED: { flag: 'TLS' },
  HM_TLS_IDENTITY: { flag: 'TLS', mayRetry: true, cost: 'quick' },
  HM_TLS_NOT_READY: { flag: 'TLS' },
  HM_TLS_REVOKED: { flag: 'TLS', mayRetry: true },
  HM_TLS_UNTRUSTED: { flag: 'TLS', mayRetry: true },
  HM_TUNNEL_DRAINED: { flag: 'UC', mayRetry: true },
  HM_TUNNEL_EXPIRED: { flag: 'TLS', mayRetry: true },
  HM_TUNNEL_FULL: { flag: 'UO', mayRetry: true },
  HM_TUNNEL_LOST: { flag: 'UC', mayRetry: true, cost: 'slow' },
  HM_TUNNEL_REFUSED: { flag: 'UC', mayRetry: true },
  HM_TUNNEL_RETIRED: { flag: 'UC', mayRetry: true },
  HM_TUNNEL_SILENT: { flag: 'UC', mayRetry: true, cost: 'slow' },
  HM_TUNNEL_UNANSWERED: { flag: 'UC', mayRetry: true, cost: 'quick' },
  HM_TUNNEL_UNSURE: { flag: 'UC', cost: 'slow' },
} as const satisfies Readonly<Record<ErrorCode, Ending>>

const BROKEN: Ending = { flag: 'UC' }

/** The ending of an error code; a broken connection (`UC`) for codes that the table does not have. */
export function endingByCode(code: string): Ending {
  return hasEnding(code) ? endings[code] : BROKEN
}

function hasEnding(code: string): code is keyof typeof endings {
  return Object.hasOwn(endings, code)
}

/** The endings that the far end of a stream decided, by the reset code that it sent. */
export const endingByReset: Record<ResetReason, Ending> = {
  unspecified: { flag: 'UC' },
  denied: { flag: 'DENY' },
  unknownService: { flag: 'NC', mayRetry: true, cost: 'quick' },
  unreachable: { flag: 'UF', mayRetry: true, cost: 'quick' },
  overloaded: { flag: 'UO', mayRetry: true },
  timeout: { flag: 'UT', cost: 'slow' },
  aborted: { flag: 'UC' },
  draining: { flag: 'UF', mayRetry: true, cost: 'quick' },
  malformed: { flag: 'PE' },
}

/** The reset code that is sent to the far end of a stream for an ending; `aborted` for all other flags. */
export const resetByFlag: Partial<Record<ResponseFlag, ResetReason>> = {
  DENY: 'denied',
  NC: 'unknownService',
  UH: 'unreachable',
  UF: 'unreachable',
  UO: 'overloaded',
  UT: 'timeout',
  DR: 'draining',
  PE: 'malformed',
}
