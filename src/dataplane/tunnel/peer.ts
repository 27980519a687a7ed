/**
 * Who is at the other end of a TLS connection: read from the certificate it proved, compared as text.
 */
import { X509Certificate } from 'node:crypto'
import type { TLSSocket } from 'node:tls'
import { MeshError } from '../../lib/errors.ts'
import { singleUriSan } from '../../lib/uri-san.ts'
import { parseSpiffeId, type ServiceIdentity } from '../../model/spiffe-id.ts'
import type { Proof } from './trust.ts'

/** The ALPN name of docs/tunnel-protocol.md. */
export const ALPN = 'hostmesh/1'

/** A proven identity, and the certificate that proves it. */
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
 * @param chain DER, the peer's own certificate first; Node tells it to the dialing side alone, and only once.
 * @throws MeshError HM_TLS_IDENTITY when it is not a service of `trustDomain`.
 */
export function identifyPeer(
  socket: TLSSocket,
  trustDomain: string,
  chain?: readonly Uint8Array[],
): PeerIdentity {
  const certificate = socket.getPeerX509Certificate()
  if (certificate === undefined)
    throw new MeshError('HM_TLS_IDENTITY', 'Cannot accept the peer: it showed no certificate')
  // OpenSSL takes one: whoever holds the key of a CA could then speak as well as sign.
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

/** The certificate alone, while the connection is open. */
function ownOf(socket: TLSSocket): readonly X509Certificate[] {
  const certificate = socket.getPeerX509Certificate()
  return certificate === undefined ? [] : [certificate]
}
