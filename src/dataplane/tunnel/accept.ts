/**
 * The tunnel port: mutual TLS from other hosts, hostmesh daemons and Connect peers alike. Nothing but a
 * handshake happens before the peer has proved who it is; docs/tunnel-protocol.md, "Carrier".
 *
 * Bounded: handshakes under way, of all and of each source address, the time each may take, and how many an address may
 * begin in a second, and how many of them may come to nothing (address-guard.ts). Callbacks that Node calls during a
 * handshake must not throw (it would leave the process), so each answers with an error instead.
 */
import { createServer as createTcpServer, type Server as TcpServer } from 'node:net'
import { createServer, type Server, TLSSocket } from 'node:tls'
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

/** An authenticated peer, not yet read from. Whoever gets it owns the socket. */
export interface AcceptedPeer {
  readonly socket: TLSSocket
  readonly peer: PeerIdentity
  /** Name of the local service whose certificate was shown. */
  readonly destination: string
  /** What we have shown. */
  readonly own: Credential
  readonly isTunnel: boolean
  /** To be called when nothing has come of the handshake after all. */
  readonly wasFutile: () => void
}

/** What the tunnel port needs. */
export interface AcceptOptions {
  readonly credentials: Credentials
  readonly datacenter: string
  /** Services of this host that may be asked for. */
  readonly services: ReadonlySet<string>
  readonly handshakeTimeoutMs: number
  /** Handshakes under way; further connections are reset. */
  readonly maxPending: number
  readonly guard: AddressGuard
  /** The account of those who are not known yet. */
  readonly strangers: Account
  /** Resolves with what `look` finds, asked again with every new leaf or root; undefined when the time is over. */
  readonly until: <T>(look: () => T | undefined, timeoutMs: number) => Promise<T | undefined>
  /** Why a peer whose identity is proved may not come in just now. */
  readonly rejection: (accepted: AcceptedPeer) => MeshError | undefined
  readonly onPeer: (accepted: AcceptedPeer) => void
  /** A handshake that came to nothing; `code` is a stable name of the reason, `detail` says more where there is more. */
  readonly onRefused: (code: string, remoteAddress: string | undefined, detail?: string) => void
}

/** How the tunnel port accepts. */
const ACCEPTED = { allowHalfOpen: true, noDelay: true, highWaterMark: 262_144 } as const

/**
 * A handshake that comes before this host's first certificate waits for it so long, milliseconds: a daemon that has just been
 * restarted is dialed at once by all who were connected, and gets its leaves a moment later. A caller who can go elsewhere must
 * not wait for a host that gets none.
 */
const FIRST_CERTIFICATE_MS = 2_000

/** The server of the tunnel port; not yet listening. Closing it is the caller's. */
export function createTunnelServer(options: AcceptOptions): Server {
  let pending = 0
  const { strangers } = options
  const { descriptors } = strangers.shared
  const server = createServer({
    ...options.credentials.protocolOptions,
    requestCert: true,
    rejectUnauthorized: true,
    handshakeTimeout: options.handshakeTimeoutMs,
    ...ACCEPTED,
    SNICallback(this: unknown, name, callback) {
      if (this instanceof TLSSocket) noteValidity(this)
      const answer = (): void => {
        const credential = credentialFor(name, options)
        if (credential === undefined) callback(noCertificateError(name, options))
        else callback(null, credential.context)
      }
      const isAnswerable = (): true | undefined => (isAwaited(name, options) ? undefined : true)
      if (isAnswerable()) answer()
      else void options.until(isAnswerable, FIRST_CERTIFICATE_MS).then(answer)
    },
    ALPNCallback: ({ protocols }) => (protocols.includes(ALPN) ? ALPN : protocols[0]),
  })
  // Before Node's own listener, which makes a TLS connection: who is turned away costs no more than the accept.
  const startTls = server.listeners('connection')
  server.removeAllListeners('connection')
  server.on('connection', (socket) => {
    const ip = canonicalIp(socket.remoteAddress ?? '') ?? ''
    const visitor = options.guard.enter(ip, performance.now())
    const isShort = !descriptors.allows(strangers.descriptors, 1)
    if (visitor === undefined || isShort || pending >= options.maxPending) {
      if (visitor !== undefined) options.guard.leave(visitor)
      options.onRefused(
        isShort ? 'HM_LIMIT_DESCRIPTORS' : 'HM_TLS_TOO_MANY_HANDSHAKES',
        socket.remoteAddress,
      )
      socket.on('error', () => undefined)
      socket.resetAndDestroy()
      return
    }
    pending += 1
    descriptors.add(strangers.descriptors, 1)
    let isPending = true
    const done = (): void => {
      if (!isPending) return
      isPending = false
      pending -= 1
      descriptors.add(strangers.descriptors, -1)
      options.guard.leave(visitor)
    }
    socket.once('close', done)
    pendingHandshakes.set(socket, { done, visitor, believed: options.credentials.trusted })
    for (const listener of startTls) Reflect.apply(listener, server, [socket])
  })
  server.on('tlsClientError', (error, socket) => {
    const raw = rawSocketOf(socket)
    noteFutile(options, raw)
    // Node says ECONNRESET of a peer that it has turned away itself; the verdict on its certificate is here.
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
        ...admit(socket, options, handshake?.believed),
        wasFutile: () => noteFutile(options, raw),
      }
      const rejection = options.rejection(accepted)
      if (rejection !== undefined) throw rejection
      options.onPeer(accepted)
    } catch (error) {
      noteFutile(options, raw)
      options.onRefused(errorCode(error), socket.remoteAddress, describeError(error))
      socket.destroy()
    }
  })
  return server
}

/** Accepts for `server` from another listening socket of the same port; a server listens on one. Closing it is the caller's. */
export function createSideEntrance(server: Server): TcpServer {
  return createTcpServer(ACCEPTED, (socket) => server.emit('connection', socket))
}

/** A handshake under way: what counts it as finished, and what was believed when it began. */
interface PendingHandshake {
  readonly done: () => void
  readonly visitor: TrackedAddress
  readonly believed: Trust | undefined
}

/** By raw socket. */
const pendingHandshakes = new WeakMap<object, PendingHandshake>()

function noteFutile(options: AcceptOptions, raw: object | undefined): void {
  const handshake = raw === undefined ? undefined : pendingHandshakes.get(raw)
  if (handshake !== undefined) options.guard.wasFutile(handshake.visitor, performance.now())
}

function admit(
  socket: TLSSocket,
  options: AcceptOptions,
  believed: Trust | undefined,
): Omit<AcceptedPeer, 'wasFutile'> {
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
  const rejection = credentials.newRootsRejection({ peer, own: own.proof }, believed)
  if (rejection !== undefined) throw rejection
  return { socket, peer, destination, own, isTunnel }
}

/** The local service that a handshake asked for; without a name, the only one there is. */
function destinationOf(socket: TLSSocket, options: AcceptOptions): string | undefined {
  const name: unknown = Reflect.get(socket, 'servername')
  if (typeof name === 'string' && name !== '') return serviceFor(name, options)
  return options.services.size === 1 ? [...options.services][0] : undefined
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

/** Whether what to answer a server name with may still come: nothing has come so far. */
function isAwaited(serverName: string, options: AcceptOptions): boolean {
  if (options.credentials.trustDomain === undefined) return true
  const service = serviceFor(serverName, options)
  return service !== undefined && options.credentials.isAwaited(service)
}

function noRoots(): MeshError {
  return new MeshError('HM_TLS_NOT_READY', 'No roots yet')
}

/** Why a server name has no certificate to answer with. */
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

/** Gives peers that send no server name the certificate of the host's only service. Call it whenever that changes. */
export function setDefaultCredential(server: Server, options: AcceptOptions): void {
  if (options.services.size !== 1) return
  const [only] = options.services
  const credential = only === undefined ? undefined : options.credentials.of(only)
  // Without a certificate no handshake succeeds: what does not hold any more is not shown either.
  server.setSecureContext({
    ...(credential?.secureContextOptions ?? options.credentials.protocolOptions),
  })
}
