/**
 * From an error to the response flag and the reset code it ends a connection with: the one table between
 * what went wrong inside and what counters, logs and peers are told.
 */
import { errorCode, MeshError } from '../../lib/errors.ts'
import type { ResponseFlag } from '../../model/response-flag.ts'
import type { FailureCost } from '../balance/outlier.ts'
import type { ResetReason } from '../tunnel/frame.ts'
import { StreamResetError } from '../tunnel/stream.ts'

const flagByCode: Record<string, ResponseFlag> = {
  HM_POLICY_DENIED: 'DENY',
  HM_ROUTE_UNKNOWN: 'NC',
  HM_DELIVER_UNKNOWN: 'NC',
  HM_ROUTE_NO_PROXY: 'UH',
  HM_BALANCE_NO_ENDPOINT: 'UH',
  HM_CAPTURE_SELF: 'SELF',
  HM_LIMIT_CONNECTIONS: 'UO',
  HM_LIMIT_MEMORY: 'UO',
  HM_TUNNEL_FULL: 'UO',
  HM_TLS_IDENTITY: 'TLS',
  HM_TLS_NOT_READY: 'TLS',
  HM_TLS_REVOKED: 'TLS',
  HM_TLS_UNTRUSTED: 'TLS',
  HM_TLS_EXPIRED: 'TLS',
  HM_TUNNEL_EXPIRED: 'TLS',
  HM_DIAL_FAILED: 'UF',
  HM_DIAL_TIMEOUT: 'UF',
  HM_DELIVER_UNREACHABLE: 'UF',
  HM_DELIVER_TIMEOUT: 'UF',
  HM_CONNECT_TIMEOUT: 'UT',
  HM_CALLER_GONE: 'DC',
  HM_DRAINING: 'DR',
  HM_PREFACE_MALFORMED: 'PE',
  HM_PREFACE_TIMEOUT: 'UT',
}

const flagByResetReason: Record<ResetReason, ResponseFlag> = {
  unspecified: 'UC',
  denied: 'DENY',
  unknownService: 'NC',
  unreachable: 'UF',
  overloaded: 'UO',
  timeout: 'UT',
  aborted: 'UC',
  draining: 'UF',
  malformed: 'PE',
}

const resetReasonByFlag: Partial<Record<ResponseFlag, ResetReason>> = {
  DENY: 'denied',
  NC: 'unknownService',
  UH: 'unreachable',
  UF: 'unreachable',
  UO: 'overloaded',
  UT: 'timeout',
  DR: 'draining',
  PE: 'malformed',
}

/** The response flag of an error that ended a connection before, or while, it was open. */
export function flagOf(error: unknown): ResponseFlag {
  if (error instanceof StreamResetError) return flagByResetReason[error.reason]
  return flagByCode[errorCode(error)] ?? 'UC'
}

/** What the far end of a stream is told about an ending. */
export function resetReasonOf(flag: ResponseFlag): ResetReason {
  return resetReasonByFlag[flag] ?? 'aborted'
}

/** Errors after which another instance may be tried, provided none has confirmed the connection. */
const retryableCodes: ReadonlySet<string> = new Set([
  'HM_DIAL_FAILED',
  'HM_DIAL_TIMEOUT',
  'HM_TLS_IDENTITY',
  'HM_TLS_REVOKED',
  'HM_TLS_UNTRUSTED',
  'HM_DELIVER_UNREACHABLE',
  'HM_DELIVER_TIMEOUT',
  'HM_TUNNEL_LOST',
  'HM_TUNNEL_REFUSED',
  'HM_TUNNEL_SILENT',
  'HM_TUNNEL_UNANSWERED',
  'HM_TUNNEL_DRAINED',
  'HM_TUNNEL_FULL',
  'HM_TUNNEL_RETIRED',
  'HM_TUNNEL_EXPIRED',
])

/** The response flag of an arriving connection that `side` broke off. */
export function inboundFlagOf(side: 'downstream' | 'upstream', reason: Error): ResponseFlag {
  if (side === 'upstream') return 'UC'
  // The caller did not hang up: its certificate, or ours, is good no more.
  return flagOf(reason) === 'TLS' ? 'TLS' : 'DC'
}

/** Whether the connection may be offered to another instance: no byte has reached an application. */
export function mayTryAnother(error: unknown): boolean {
  if (error instanceof StreamResetError)
    return ['unknownService', 'unreachable', 'overloaded', 'draining'].includes(error.reason)
  return retryableCodes.has(errorCode(error))
}

/**
 * What a failure says against the instance that was tried; an error that is absent says nothing. A refused tunnel is
 * absent: one caller whose certificate nobody takes must not have instances ejected for all callers of the host.
 */
const costByCode: Record<string, FailureCost> = {
  HM_DIAL_FAILED: 'quick',
  HM_DIAL_TIMEOUT: 'slow',
  HM_TLS_IDENTITY: 'quick',
  HM_DELIVER_UNREACHABLE: 'quick',
  HM_DELIVER_TIMEOUT: 'slow',
  HM_CONNECT_TIMEOUT: 'slow',
  HM_TUNNEL_LOST: 'slow',
  HM_TUNNEL_SILENT: 'slow',
  HM_TUNNEL_UNANSWERED: 'quick',
  HM_TUNNEL_UNSURE: 'slow',
}

const costByResetReason: Partial<Record<ResetReason, FailureCost>> = {
  unknownService: 'quick',
  unreachable: 'quick',
  draining: 'quick',
  timeout: 'slow',
}

/** What an error says against the instance; undefined when it is about the caller, a policy or a limit. */
export function failureCostOf(error: unknown): FailureCost | undefined {
  if (error instanceof StreamResetError) return costByResetReason[error.reason]
  return costByCode[errorCode(error)]
}

/** Whether the connection broke because the tunnel under it did. */
export function isTunnelLoss(error: unknown): boolean {
  const code = errorCode(error)
  return code === 'HM_TUNNEL_LOST' || code === 'HM_TUNNEL_SILENT'
}

/** Anything thrown as a MeshError, for logs and for abort(). */
export function asMeshError(error: unknown): MeshError {
  if (error instanceof MeshError) return error
  return new MeshError('HM_CONNECTION_BROKEN', 'The connection broke', { cause: error })
}
