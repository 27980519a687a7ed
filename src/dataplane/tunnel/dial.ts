/**
 * Dials the mesh listener of an instance with mutual TLS: docs/tunnel-protocol.md, "Carrier".
 *
 * The address comes from the catalog and may be wrong or taken over, so the certificate decides: the peer must prove
 * the SPIFFE ID of the requested service.
 */
import { type ConnectionOptions, connect, type TLSSocket } from 'node:tls'
import { describeError, errorCode, MeshError } from '../../lib/errors.ts'
import { formatAddress, type SocketAddress } from '../../model/address.ts'
import { formatServerName, formatSpiffeId, type ServiceIdentity } from '../../model/spiffe-id.ts'
import { watchTlsEnd } from '../io/tls-end.ts'
import type { Credential } from './credentials.ts'
import { ALPN, identifyPeer, type PeerIdentity, spiffeIdOf } from './peer.ts'
import { chainIn } from './trust.ts'
import { noteValidity, skewText } from './validity.ts'

/** An authenticated connection, not yet read from. The receiver of this object owns it. */
export interface DialedPeer {
  readonly socket: TLSSocket
  readonly peer: PeerIdentity
  /** Whether the peer is a hostmesh daemon and speaks the tunnel protocol. */
  readonly isTunnel: boolean
}

/** The instance to dial, and the certificate to present. */
export interface DialRequest {
  readonly address: SocketAddress
  readonly credential: Credential
  readonly destination: Omit<ServiceIdentity, 'trustDomain'>
  readonly timeoutMs: number
}

/**
 * Dials and authenticates the peer.
 * @throws MeshError HM_DIAL_FAILED, HM_DIAL_TIMEOUT, or HM_TLS_IDENTITY when another service answers.
 */
export function dialPeer(request: DialRequest): Promise<DialedPeer> {
  const { address, credential } = request
  const wanted = { ...request.destination, trustDomain: credential.trustDomain }
  const wantedId = formatSpiffeId(wanted)
  const where = `${request.destination.service} at ${formatAddress(address)}`
  return new Promise((resolve, reject) => {
    // `allowHalfOpen` is documented for tls.connect; its type declaration lacks it.
    let chain: readonly Uint8Array[] = []
    const options: ConnectionOptions & { allowHalfOpen: boolean } = {
      host: address.ip,
      port: address.port,
      secureContext: credential.context,
      servername: formatServerName(wanted),
      ALPNProtocols: [ALPN],
      rejectUnauthorized: true,
      allowHalfOpen: true,
      checkServerIdentity: (_host, certificate) => {
        chain = chainIn(certificate)
        const shown = spiffeIdOrError(certificate.raw)
        if (shown === wantedId) return undefined
        return new MeshError(
          'HM_TLS_IDENTITY',
          `Cannot trust ${where}: expected ${wantedId}, it proves to be ${shown}`,
        )
      },
    }
    const socket = connect(options)
    socket.setNoDelay(true)
    noteValidity(socket)
    const fail = (error: MeshError): void => {
      clearTimeout(deadline)
      socket.destroy()
      reject(error)
    }
    const deadline = setTimeout(
      () =>
        fail(new MeshError('HM_DIAL_TIMEOUT', `Cannot reach ${where} in ${request.timeoutMs} ms`)),
      request.timeoutMs,
    )
    const cannotReach = (error: Error): string => {
      const skew = skewText(socket, errorCode(error))
      return `Cannot reach ${where}${skew === undefined ? '' : `: ${skew}`}`
    }
    const onError = (error: Error): void =>
      fail(
        error instanceof MeshError
          ? error
          : new MeshError('HM_DIAL_FAILED', cannotReach(error), { cause: error }),
      )
    const onClose = (): void =>
      fail(new MeshError('HM_DIAL_FAILED', `Cannot reach ${where}: the peer hung up`))
    socket.once('error', onError)
    socket.once('close', onClose)
    socket.once('secureConnect', () => {
      const isTunnel = socket.alpnProtocol === ALPN
      try {
        const peer = identifyPeer(socket, credential.trustDomain, chain)
        if (isTunnel && socket.getProtocol() !== 'TLSv1.3')
          throw new MeshError('HM_DIAL_FAILED', `Cannot tunnel to ${where}: TLS below 1.3`)
        clearTimeout(deadline)
        if (!isTunnel) watchTlsEnd(socket)
        socket.off('error', onError)
        socket.off('close', onClose)
        resolve({ socket, peer, isTunnel })
      } catch (error) {
        fail(
          error instanceof MeshError
            ? error
            : new MeshError('HM_DIAL_FAILED', describeError(error), { cause: error }),
        )
      }
    })
  })
}

function spiffeIdOrError(der: Uint8Array): string {
  try {
    return spiffeIdOf(der)
  } catch (error) {
    return describeError(error)
  }
}
