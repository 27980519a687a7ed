/**
 * Records a connection that is refused or aborted: in the table of connections, and in the log with the same fields for
 * both directions. The caller of these functions ends the streams.
 */
import { describeError, errorCode, type MeshError } from '../../lib/errors.ts'
import type { ResponseFlag } from '../../model/response-flag.ts'
import { type Connection, destinationOf, endpointOf, peerOf, textOf } from './connection.ts'
import { flagOf } from './ending.ts'
import type { WorkerContext } from './worker-context.ts'

/** Ends a connection that was never open, because of an error. Returns its flag; the caller closes the stream. */
export function refuse(
  context: WorkerContext,
  connection: Connection,
  error: unknown,
): ResponseFlag {
  const flag = flagOf(error)
  context.connections.end(connection, flag, error)
  // A caller that hung up by itself was not refused.
  if (flag !== 'DC')
    context.log.info('Connection refused', {
      ...about(connection),
      flag,
      reason: describeError(error),
    })
  return flag
}

/** Whether a Connect peer's connection was cut off without a TLS close: logged, whichever side broke off. */
export function isCutOff(reason: unknown): reason is MeshError {
  return errorCode(reason) === 'HM_TLS_CUT_OFF'
}

/** Logs that an open connection is aborted. */
export function logBrokenOff(
  context: WorkerContext,
  connection: Connection,
  flag: ResponseFlag,
  reason: MeshError,
): void {
  context.log.info('Connection broken off', { ...about(connection), flag, reason: reason.message })
}

function about({
  direction,
  source,
  originalDestination,
  stage,
}: Connection): Record<string, unknown> {
  return {
    direction,
    source,
    destination: destinationOf(stage) ?? 'unknown',
    peer: textOf(peerOf(stage)),
    originalDestination: textOf(originalDestination),
    endpoint: endpointOf(stage),
  }
}
