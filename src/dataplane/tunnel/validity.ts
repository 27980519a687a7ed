/**
 * Why a certificate was refused for its time: in most cases a clock is wrong, and nobody can tell which one
 * without seeing both. Node forgets the peer's certificate when it turns a connection away, so its window
 * is noted before that.
 */
import type { TLSSocket } from 'node:tls'
import { isPeerUnverified } from '../../lib/node-internals.ts'
import { clockText } from './trust.ts'

const windows = new WeakMap<object, string>()

/** Notes the window of the peer's certificate as soon as it is known; for a connection before its handshake. */
export function noteValidity(socket: TLSSocket): void {
  // Not in the documentation: the moment before Node acts on its verdict. Without it only the window is missing.
  socket.prependOnceListener('secure', () => {
    if (!isPeerUnverified(socket)) return
    const certificate = socket.getPeerX509Certificate()
    if (certificate !== undefined)
      windows.set(
        socket,
        `from ${clockText(certificate.validFromDate.getTime())} to ${clockText(certificate.validToDate.getTime())}`,
      )
  })
}

/** The two times behind a verdict about time; undefined for any other verdict. */
export function skewText(socket: TLSSocket, code: string): string | undefined {
  if (code !== 'CERT_NOT_YET_VALID' && code !== 'CERT_HAS_EXPIRED') return undefined
  const window = windows.get(socket)
  const shown = window === undefined ? 'it' : `its certificate is valid ${window}; it`
  return `${shown} ${code === 'CERT_HAS_EXPIRED' ? 'has expired' : 'is not valid yet'}, as the clock of this host says ${clockText(Date.now())}`
}
