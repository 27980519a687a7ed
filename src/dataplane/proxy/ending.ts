/**
 * From an error to its row of the table of endings (`src/model/ending.ts`).
 */
import { errorCode, MeshError } from '../../lib/errors.ts'
import {
  type Ending,
  endingByCode,
  endingByReset,
  type FailureCost,
  type ResetReason,
  resetByFlag,
} from '../../model/ending.ts'
import type { ResponseFlag } from '../../model/response-flag.ts'
import { StreamResetError } from '../tunnel/stream.ts'

function endingOf(error: unknown): Ending {
  return error instanceof StreamResetError
    ? endingByReset[error.reason]
    : endingByCode(errorCode(error))
}

/** The response flag of an error that ended a connection before, or while, it was open. */
export function flagOf(error: unknown): ResponseFlag {
  return endingOf(error).flag
}

/** Whether the connection may be offered to another instance: no byte has reached an application. */
export function mayTryAnother(error: unknown): boolean {
  return endingOf(error).mayRetry === true
}

/** What an error says against the instance; undefined when it is about the caller, a policy or a limit. */
export function failureCostOf(error: unknown): FailureCost | undefined {
  return endingOf(error).cost
}

/** The response flag of an arriving connection that `side` broke off. */
export function inboundFlagOf(side: 'downstream' | 'upstream', reason: Error): ResponseFlag {
  if (side === 'upstream') return 'UC'
  // The caller did not hang up: its certificate, or ours, is no longer valid.
  return flagOf(reason) === 'TLS' ? 'TLS' : 'DC'
}

/** What the far end of a stream is told about an ending. */
export function resetReasonOf(flag: ResponseFlag): ResetReason {
  return resetByFlag[flag] ?? 'aborted'
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
