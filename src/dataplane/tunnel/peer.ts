/**
 * The identity of the other end of a TLS connection: read from its verified certificate, compared as text.
 */
import { X509Certificate } from 'node:crypto'
import type { TLSSocket } from 'node:tls'
import { MeshError } from '../../lib/errors.ts'
import { singleUriSan } from '../../lib/uri-san.ts'
import { parseSpiffeId, type ServiceIdentity } from '../../model/spiffe-id.ts'
import type { Proof } from './trust.ts'

/** The ALPN name of docs/tunnel-protocol.md. */
export const ALPN = 'hostmesh/1'

/** An authenticated identity and its certificate. */
export interface PeerIdentity extends ServiceIdentity, Proof {}

/** The SPIFFE ID in a certificate's DER bytes. @throws MeshError HM_TLS_IDENTITY when there is not exactly one. */
export function spiffeIdOf(der: Uint8Array): string {
  const uri = singleUriSan(der)
  if (uri === undefined)
    throw new MeshError(
      'HM_TLS_IDENTITY',
      "Cannot accept the peer's certificate: it must name exactly one URI",
    )
  return uri
}

/**
 * The identity of the peer of a connection whose certificate chain has been verified.
 * @param chain DER, the peer's own certificate first; Node gives it only to the dialing side, and only once.
 * @throws MeshError HM_TLS_IDENTITY when the peer is not a service of `trustDomain`.
 */
export function identifyPeer(
  socket: TLSSocket,
  trustDomain: string,
  chain?: readonly Uint8Array[],
): PeerIdentity {
  const certificate = socket.getPeerX509Certificate()
  if (certificate === undefined)
    throw new MeshError('HM_TLS_IDENTITY', 'Cannot accept the peer: it showed no certificate')
  // OpenSSL accepts a CA certificate here: the owner of a CA's key could then act as a peer and not only sign.
  if (certificate.ca)
    throw new MeshError('HM_TLS_IDENTITY', 'Cannot accept the peer: it showed a CA certificate')
  const spiffeId = spiffeIdOf(certificate.raw)
  const identity = parseSpiffeId(spiffeId)
  if (identity === undefined || identity.trustDomain !== trustDomain)
    throw new MeshError(
      'HM_TLS_IDENTITY',
      `Cannot accept the peer ${JSON.stringify(spiffeId.slice(0, 256))}: it is not a service of trust domain ${trustDomain}`,
    )
  return {
    ...identity,
    spiffeId,
    serialNumber: certificate.serialNumber,
    notAfterMs: certificate.validToDate.getTime(),
    chain: () => chain?.map((der) => new X509Certificate(der)) ?? ownOf(socket),
  }
}

/** The peer's certificate without its chain, while the connection is open. */
function ownOf(socket: TLSSocket): readonly X509Certificate[] {
  const certificate = socket.getPeerX509Certificate()
  return certificate === undefined ? [] : [certificate]
}
