/**
 * The tunnel port: accepts mutual TLS from other hosts, both hostmesh daemons and Connect peers. Before the peer is
 * authenticated, only the handshake runs; docs/tunnel-protocol.md, "Carrier".
 *
 * Limits: concurrent handshakes in total and per source address, the duration of each, and, per address, the
 * handshakes per second and the failed ones (address-guard.ts). A callback that Node calls during a handshake must not
 * throw, because the exception would be uncaught; each reports an error instead.
 */
import { createServer as createTcpServer, type Server as TcpServer } from 'node:net'
import { createServer, type SecureContext, type Server, TLSSocket } from 'node:tls'
import { describeError, errorCode, MeshError } from '../../lib/errors.ts'
import { rawSocketOf } from '../../lib/node-internals.ts'
import { canonicalIp } from '../../model/address.ts'
import { type ServiceIdentity, serviceOfServerName } from '../../model/spiffe-id.ts'
import type { Account } from './accounts.ts'
import type { AddressGuard, TrackedAddress } from './address-guard.ts'
import type { Credential, Credentials } from './credentials.ts'
import { ALPN, identifyPeer, type PeerIdentity } from './peer.ts'
import type { Trust } from './trust.ts'
import { noteValidity, skewText } from './validity.ts'

/** An authenticated peer, not yet read from. The receiver of this object owns the socket. */
export interface AcceptedPeer {
  readonly socket: TLSSocket
  readonly peer: PeerIdentity
  /** Name of the local service whose certificate was presented. */
  readonly destination: string
  /** The server name that the peer requested. */
  readonly serverName: string | undefined
  /** The certificate that this host presented. */
  readonly own: Credential
  readonly isTunnel: boolean
  /** To be called if the handshake proves useless after all. */
  readonly noteUnsuccessful: () => void
}

/** Dependencies and limits of the tunnel port. */
export interface AcceptOptions {
  readonly credentials: Credentials
  readonly datacenter: string
  /** Services of this host that a peer may request. */
  readonly services: ReadonlySet<string>
  readonly handshakeTimeoutMs: number
  /** Limit of concurrent handshakes; further connections are reset. */
  readonly maxPending: number
  readonly guard: AddressGuard
  /** The account of peers that are not yet authenticated. */
  readonly unauthenticated: Account
  /** Resolves with the result of `look`, called again for each new leaf or root; undefined after the timeout. */
  readonly until: <T>(look: () => T | undefined, timeoutMs: number) => Promise<T | undefined>
  /** Why an authenticated peer is rejected at present; undefined when it is accepted. */
  readonly rejectionReason: (accepted: AcceptedPeer) => MeshError | undefined
  readonly onPeer: (accepted: AcceptedPeer) => void
  /** A handshake failed; `code` is a stable name of the reason, `detail` gives more where there is more. */
  readonly onRefused: (code: string, remoteAddress: string | undefined, detail?: string) => void
}

/** Socket options of accepted connections. */
const ACCEPTED = { allowHalfOpen: true, noDelay: true, highWaterMark: 262_144 } as const

/**
 * How long a handshake waits for this host's first certificate, milliseconds. All former peers dial a restarted daemon
 * at once, and its leaves arrive a moment later. A caller that has another instance must not wait for a host that gets
 * no certificate.
 */
const FIRST_CERTIFICATE_MS = 2_000

/** Creates the server of the tunnel port; it does not listen yet. The caller closes it. */
export function createTunnelServer(options: AcceptOptions): Server {
  let pending = 0
  const { unauthenticated } = options
  const { descriptors } = unauthenticated.shared
  const server = createServer({
    ...options.credentials.protocolOptions,
    requestCert: true,
    rejectUnauthorized: true,
    handshakeTimeout: options.handshakeTimeoutMs,
    ...ACCEPTED,
    SNICallback(this: unknown, name, callback) {
      if (this instanceof TLSSocket) noteValidity(this)
      chooseCertificate(name, options, callback)
    },
    ALPNCallback: ({ protocols }) => (protocols.includes(ALPN) ? ALPN : protocols[0]),
  })
  // Before Node's own listener, which creates a TLS connection: a rejected peer costs only the accept.
  const startTls = server.listeners('connection')
  server.removeAllListeners('connection')
  server.on('connection', (socket) => {
    const ip = canonicalIp(socket.remoteAddress ?? '') ?? ''
    const address = options.guard.enter(ip, performance.now())
    const isShort = !descriptors.allows(unauthenticated.descriptors, 1)
    if (address === undefined || isShort || pending >= options.maxPending) {
      if (address !== undefined) options.guard.leave(address)
      options.onRefused(
        isShort ? 'HM_LIMIT_DESCRIPTORS' : 'HM_TLS_TOO_MANY_HANDSHAKES',
        socket.remoteAddress,
      )
      socket.on('error', () => undefined)
      socket.resetAndDestroy()
      return
    }
    pending += 1
    descriptors.add(unauthenticated.descriptors, 1)
    let isPending = true
    const done = (): void => {
      if (!isPending) return
      isPending = false
      pending -= 1
      descriptors.add(unauthenticated.descriptors, -1)
      options.guard.leave(address)
    }
    socket.once('close', done)
    pendingHandshakes.set(socket, { done, address, trusted: options.credentials.trusted })
    for (const listener of startTls) Reflect.apply(listener, server, [socket])
  })
  server.on('tlsClientError', (error, socket) => {
    const raw = rawSocketOf(socket)
    noteUnsuccessful(options, raw)
    // Node reports ECONNRESET for a peer that it has rejected itself; the result of the verification is here.
    const verdict: unknown = socket.authorizationError
    const code = typeof verdict === 'string' ? verdict : errorCode(error)
    const detail = error instanceof MeshError ? error.message : skewText(socket, code)
    options.onRefused(code, socket.remoteAddress, detail)
    socket.destroy()
  })
  server.on('secureConnection', (socket) => {
    const raw = rawSocketOf(socket)
    const handshake = raw === undefined ? undefined : pendingHandshakes.get(raw)
    handshake?.done()
    try {
      const accepted = {
        ...admit(socket, options, handshake?.trusted),
        noteUnsuccessful: () => noteUnsuccessful(options, raw),
      }
      const rejection = options.rejectionReason(accepted)
      if (rejection !== undefined) throw rejection
      options.onPeer(accepted)
    } catch (error) {
      noteUnsuccessful(options, raw)
      options.onRefused(errorCode(error), socket.remoteAddress, describeError(error))
      socket.destroy()
    }
  })
  return server
}

/** Calls back with the certificate for a server name, or why there is none; waits for one that may still arrive. */
function chooseCertificate(
  name: string,
  options: AcceptOptions,
  callback: (error: Error | null, context?: SecureContext) => void,
): void {
  const answer = (): void => {
    const credential = credentialFor(name, options)
    if (credential === undefined) callback(noCertificateError(name, options))
    else callback(null, credential.context)
  }
  const isAnswerable = (): true | undefined => (isAwaited(name, options) ? undefined : true)
  if (isAnswerable()) answer()
  else void options.until(isAnswerable, FIRST_CERTIFICATE_MS).then(answer)
}

/** Accepts for `server` from another listening socket of the same port; a server has only one. The caller closes it. */
export function createAdditionalListener(server: Server): TcpServer {
  return createTcpServer(ACCEPTED, (socket) => server.emit('connection', socket))
}

/** A handshake in progress: the function that ends its accounting, and the trust when it began. */
interface PendingHandshake {
  readonly done: () => void
  readonly address: TrackedAddress
  readonly trusted: Trust | undefined
}

/** By raw socket. */
const pendingHandshakes = new WeakMap<object, PendingHandshake>()

function noteUnsuccessful(options: AcceptOptions, raw: object | undefined): void {
  const handshake = raw === undefined ? undefined : pendingHandshakes.get(raw)
  if (handshake !== undefined) options.guard.noteUnsuccessful(handshake.address, performance.now())
}

function admit(
  socket: TLSSocket,
  options: AcceptOptions,
  trusted: Trust | undefined,
): Omit<AcceptedPeer, 'noteUnsuccessful'> {
  const { credentials } = options
  const { trustDomain } = credentials
  if (trustDomain === undefined) throw noRoots()
  const destination = destinationOf(socket, options)
  if (destination === undefined)
    throw new MeshError('HM_TLS_UNKNOWN_SERVICE', 'The peer asked for no service of this host')
  const isTunnel = socket.alpnProtocol === ALPN
  if (isTunnel && socket.getProtocol() !== 'TLSv1.3')
    throw new MeshError('HM_TLS_VERSION', `${ALPN} needs TLS 1.3`)
  const own = credentials.of(destination)
  if (own === undefined)
    throw new MeshError(
      'HM_TLS_NOT_READY',
      `Cannot answer as ${destination}: ${credentials.unavailableReason(destination)}`,
    )
  const peer = identifyPeer(socket, trustDomain)
  const rejection = credentials.handshakeRejectionReason({ peer, own: own.proof }, trusted)
  if (rejection !== undefined) throw rejection
  return { socket, peer, destination, serverName: serverNameOf(socket), own, isTunnel }
}

/** The local service that a handshake requested; without a server name, the host's only service. */
function destinationOf(socket: TLSSocket, options: AcceptOptions): string | undefined {
  const name = serverNameOf(socket)
  if (name !== undefined) return serviceFor(name, options)
  return options.services.size === 1 ? [...options.services][0] : undefined
}

function serverNameOf(socket: TLSSocket): string | undefined {
  const name: unknown = Reflect.get(socket, 'servername')
  return typeof name === 'string' && name !== '' ? name : undefined
}

function serviceFor(serverName: string, options: AcceptOptions): string | undefined {
  const { trustDomain } = options.credentials
  if (trustDomain === undefined) return undefined
  const place: Omit<ServiceIdentity, 'service'> = { trustDomain, datacenter: options.datacenter }
  return serviceOfServerName(serverName, place, options.services)
}

function credentialFor(serverName: string, options: AcceptOptions): Credential | undefined {
  const service = serviceFor(serverName, options)
  return service === undefined ? undefined : options.credentials.of(service)
}

/** Whether the certificate for a server name may still arrive: the roots or the first leaf are missing. */
function isAwaited(serverName: string, options: AcceptOptions): boolean {
  if (options.credentials.trustDomain === undefined) return true
  const service = serviceFor(serverName, options)
  return service !== undefined && options.credentials.isAwaited(service)
}

function noRoots(): MeshError {
  return new MeshError('HM_TLS_NOT_READY', 'No roots yet')
}

/** Why there is no certificate for a server name. */
function noCertificateError(serverName: string, options: AcceptOptions): MeshError {
  if (options.credentials.trustDomain === undefined) return noRoots()
  const service = serviceFor(serverName, options)
  if (service === undefined)
    return new MeshError('HM_TLS_UNKNOWN_SERVICE', 'No such service on this host')
  return new MeshError(
    'HM_TLS_NOT_READY',
    `Cannot answer as ${service}: ${options.credentials.unavailableReason(service)}`,
  )
}

/** Presents the certificate of the host's only service to peers that send no server name. Call it after each change. */
export function setDefaultCredential(server: Server, options: AcceptOptions): void {
  if (options.services.size !== 1) return
  const [only] = options.services
  const credential = only === undefined ? undefined : options.credentials.of(only)
  // Without a certificate no handshake succeeds: a certificate that is no longer valid is not presented.
  server.setSecureContext({
    ...(credential?.secureContextOptions ?? options.credentials.protocolOptions),
  })
}
