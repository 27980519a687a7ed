/**
 * Maps an error to its row in the table of endings (`src/model/ending.ts`).
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

/** Whether another instance may be tried: no byte has reached an application. */
export function mayTryAnother(error: unknown): boolean {
  return endingOf(error).mayRetry === true
}

/** What an error counts against the instance; undefined when it concerns the caller, a policy or a limit. */
export function failureCostOf(error: unknown): FailureCost | undefined {
  return endingOf(error).cost
}

/** The response flag of an inbound connection that `side` broke off. */
export function inboundFlagOf(side: 'downstream' | 'upstream', reason: Error): ResponseFlag {
  if (side === 'upstream') return 'UC'
  // The caller did not hang up: its certificate, or ours, is no longer valid.
  return flagOf(reason) === 'TLS' ? 'TLS' : 'DC'
}

/** The reset code that is sent to the far end of a stream for an ending. */
export function resetReasonOf(flag: ResponseFlag): ResetReason {
  return resetByFlag[flag] ?? 'aborted'
}

/** Whether the connection broke because its tunnel did. */
export function isTunnelLoss(error: unknown): boolean {
  const code = errorCode(error)
  return code === 'HM_TUNNEL_LOST' || code === 'HM_TUNNEL_SILENT'
}

/** Wraps any thrown value as a MeshError, for logs and for abort(). */
export function asMeshError(error: unknown): MeshError {
  if (error instanceof MeshError) return error
  return new MeshError('HM_CONNECTION_BROKEN', 'The connection broke', { cause: error })
}
