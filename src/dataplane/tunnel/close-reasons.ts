/**
 * Why a session ends, as errors, and what the peer is told of it: docs/tunnel-protocol.md, "Session". Violations are in
 * frame.ts, silence is in liveness.ts. Pure.
 */
import { describeError, MeshError } from '../../lib/errors.ts'
import { goAwayCodes, isViolation } from './frame.ts'

/** How long a peer has to read the go-away that reports an error, milliseconds. */
const GO_AWAY_MS = 1_000

/** All streams of a draining session have ended. */
export function drained(): MeshError {
  return new MeshError('HM_TUNNEL_DRAINED', 'The tunnel was closed in order')
}

/** A certificate of the connection has expired. */
export function expired(): MeshError {
  return new MeshError(
    'HM_TUNNEL_EXPIRED',
    'The tunnel was closed: a certificate of it has expired',
  )
}

/** The peer reads too little while much is held for its caller. */
export function stalled(): MeshError {
  return new MeshError('HM_TUNNEL_STALLED', 'The tunnel was closed: the peer does not read')
}

/** The peer sent a go-away that is no orderly close. */
export function rejected(code: number): MeshError {
  return new MeshError('HM_TUNNEL_REJECTED', `The peer ended the tunnel with go-away code ${code}`)
}

/** The connection broke after the peer's first bytes, or ended without an orderly close. */
export function lost(how: string, cause?: Error): MeshError {
  return new MeshError('HM_TUNNEL_LOST', `The tunnel broke: ${how}`, { cause })
}

/**
 * The same before the peer's first bytes, for an opener: in TLS 1.3 its handshake ends before the acceptor has verified
 * its certificate.
 */
export function refused(how: string, cause?: Error): MeshError {
  return new MeshError(
    'HM_TUNNEL_REFUSED',
    `The tunnel broke before the peer's first word: ${how}`,
    {
      cause,
      hint: 'The peer may have refused the certificate of the caller; its log says why',
    },
  )
}

/** Reading failed: a violation stays what it is, anything else is a fault of ours. */
export function unreadable(error: unknown): MeshError {
  if (error instanceof MeshError) return error
  return new MeshError('HM_TUNNEL_INTERNAL', `The tunnel broke: ${describeError(error)}`, {
    cause: error,
  })
}

/** The go-away code for a violation or an internal error; undefined for other reasons. */
export function goAwayCodeOf(reason: MeshError): number | undefined {
  if (reason.code === 'HM_TUNNEL_INTERNAL') return goAwayCodes.internalError
  return isViolation(reason.code) ? goAwayCodes.protocolError : undefined
}

/** How long the peer may take to read what was sent, milliseconds; undefined when the connection is closed at once. */
export function readableForMs(reason: MeshError, keepaliveMs: number): number | undefined {
  if (reason.code === 'HM_TUNNEL_DRAINED') return keepaliveMs
  return goAwayCodeOf(reason) === undefined ? undefined : GO_AWAY_MS
}
