/**
 * Explains rejections of certificates because of their dates: usually a clock is wrong, and only both times show which
 * one. Node discards the peer's certificate when it rejects a connection, so its validity period is recorded before.
 */
import type { TLSSocket } from 'node:tls'
import { isPeerUnverified } from '../../lib/node-internals.ts'
import { clockText } from './trust.ts'

const windows = new WeakMap<object, string>()

/** Records the validity period of the peer's certificate as soon as it is known. Call it before the handshake. */
export function noteValidity(socket: TLSSocket): void {
  // Undocumented event: it comes before Node acts on its verdict. Without it only the period is missing.
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

/** The two times behind a rejection because of dates; undefined for any other rejection. */
export function skewText(socket: TLSSocket, code: string): string | undefined {
  if (code !== 'CERT_NOT_YET_VALID' && code !== 'CERT_HAS_EXPIRED') return undefined
  const window = windows.get(socket)
  const shown = window === undefined ? 'it' : `its certificate is valid ${window}; it`
  return `${shown} ${code === 'CERT_HAS_EXPIRED' ? 'has expired' : 'is not valid yet'}, as the clock of this host says ${clockText(Date.now())}`
}
