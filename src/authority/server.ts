/**
 * The network side of the CA: TLS 1.3, limits, JSON, long polls (docs/ca-protocol.md). Decisions about certificates are
 * made by the authority.
 *
 * TLS requests client certificates, but the authority validates them: a host that enrolls has none, and one that
 * returns after a long absence may have an expired one. TLS verifies that the caller has the key.
 */
import { constants, generateKeyPairSync, type X509Certificate } from 'node:crypto'
import { once } from 'node:events'
import type { IncomingMessage, ServerResponse } from 'node:http'
import { createServer, type Server } from 'node:https'
import type { Socket } from 'node:net'
import { TLSSocket } from 'node:tls'
import type { z } from 'zod'
import { systemClock } from '../lib/clock.ts'
import { describeError, MeshError } from '../lib/errors.ts'
import { FairConnections } from '../lib/fair-connections.ts'
import { BodyTooLong, closeServer, portOf, readBody, replyJson } from '../lib/json-http.ts'
import { parseJson } from '../lib/json-value.ts'
import type { Log } from '../lib/log.ts'
import { type Rate, RateLimiter } from '../lib/rate-limit.ts'
import type { SocketAddress } from '../model/address.ts'
import {
  enrollRequest,
  MAX_REQUEST_BYTES,
  POLL_MS,
  renewRequest,
  signRequest,
} from '../model/ca-protocol.ts'
import { callerAt } from '../model/caller-address.ts'
import type { CertificateAuthority } from './certificate-authority.ts'
import type { HostCaller } from './hosts.ts'

/** The limits of the protocol; tests make them smaller. */
export interface CaServerLimits {
  readonly connections: number
  readonly connectionsPerAddress: number
  /** For the handshake, for the head and for the whole request, each; milliseconds. */
  readonly deadlineMs: number
  readonly calls: Rate
  readonly unauthenticatedCalls: Rate
  readonly failedEnrollments: Rate
}

/** What the server needs. */
export interface CaServerOptions {
  readonly authority: CertificateAuthority
  readonly listen: SocketAddress
  readonly log: Log
  readonly limits?: Partial<CaServerLimits>
}

/** A running server. */
export interface CaServer extends AsyncDisposable {
  readonly address: SocketAddress
}

const LIMITS: CaServerLimits = {
  connections: 10_000,
  connectionsPerAddress: 64,
  deadlineMs: 10_000,
  calls: { burst: 500, perSecond: 50 },
  unauthenticatedCalls: { burst: 60, perSecond: 2 },
  failedEnrollments: { burst: 10, perSecond: 0.1 },
}

const STATUS_BY_CODE: Readonly<Record<string, number>> = {
  HM_CA_REQUEST_INVALID: 400,
  HM_CA_CSR_INVALID: 400,
  HM_CA_KEY_REFUSED: 400,
  HM_CA_NAME_INVALID: 400,
  HM_CA_CERTIFICATE_REQUIRED: 401,
  HM_CA_TOKEN_REFUSED: 403,
  HM_CA_HOST_REFUSED: 403,
  HM_CA_HOST_EXPIRED: 403,
  HM_CA_SERVICE_REFUSED: 403,
  HM_CA_RATE_LIMITED: 429,
  HM_CA_BUSY: 503,
}

/** How often the authority deletes what has expired, and the server checks its own certificate. */
const MAINTENANCE_MS = 5_000

/**
 * Starts to serve.
 * @throws MeshError HM_CA_LISTEN_FAILED
 */
export async function startCaServer(options: CaServerOptions): Promise<CaServer> {
  const { authority, listen, log } = options
  const limits = { ...LIMITS, ...options.limits }
  await using owned = new AsyncDisposableStack()
  const handler = owned.use(new RequestHandler(authority, log, limits))
  const identity = new ServerIdentity(authority)
  const server = createServer(
    {
      ...identity.context(),
      minVersion: 'TLSv1.3',
      // A resumed session would skip the client certificate.
      secureOptions: constants.SSL_OP_NO_TICKET,
      requestCert: true,
      rejectUnauthorized: false,
      handshakeTimeout: limits.deadlineMs,
      maxHeaderSize: 8_192,
      headersTimeout: limits.deadlineMs,
      requestTimeout: limits.deadlineMs,
      keepAliveTimeout: 2 * POLL_MS,
      connectionsCheckingInterval: Math.min(1_000, limits.deadlineMs),
    },
    (request, response) => void handler.serve(request, response),
  )
  server.maxRequestsPerSocket = 10_000
  limitConnections(server, limits)
  // A peer that disconnects, or is not a TLS client, is no failure of this server.
  server.on('tlsClientError', (_, socket) => socket.destroy())
  server.on('clientError', (_, socket) => socket.destroy())
  const renewIdentity = (): void => {
    identity.renew()
    server.setSecureContext(identity.context())
  }
  owned.use(
    authority.trust.onBundle(() => {
      renewIdentity()
      handler.answerPolls()
    }),
  )
  const maintenance = setInterval(() => {
    try {
      authority.maintain()
      if (identity.isDue()) renewIdentity()
    } catch (thrown) {
      log.error('Maintenance of the CA failed', { error: describeError(thrown) })
    }
  }, MAINTENANCE_MS)
  owned.defer(() => clearInterval(maintenance))
  const listening = once(server, 'listening')
  server.listen({ host: listen.ip, port: listen.port })
  try {
    await listening
  } catch (cause) {
    const message = `Cannot listen at ${listen.ip} port ${listen.port}`
    const hint = 'Give another --listen, or stop what listens there'
    throw new MeshError('HM_CA_LISTEN_FAILED', message, { cause, hint })
  }
  owned.defer(() => closeServer(server))
  const running = owned.move()
  return {
    address: { ip: listen.ip, port: portOf(server) },
    [Symbol.asyncDispose]: () => running.disposeAsync(),
  }
}

/** The server's own certificate and key, which are never written to disk. */
class ServerIdentity {
  readonly #authority: CertificateAuthority
  #certificatePem = ''
  #keyPem = ''
  #madeAtMs = 0

  constructor(authority: CertificateAuthority) {
    this.#authority = authority
    this.renew()
  }

  renew(): void {
    const { publicKey, privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' })
    this.#madeAtMs = this.#authority.clock.wallMs()
    this.#certificatePem = this.#authority.certifyServer(publicKey)
    this.#keyPem = privateKey.export({ type: 'pkcs8', format: 'pem' }).toString()
  }

  isDue(): boolean {
    const ageMs = this.#authority.clock.wallMs() - this.#madeAtMs
    // After a clock was set back, hosts would reject the certificate as not yet valid.
    return ageMs < 0 || ageMs >= this.#authority.lifetimes.hostMs / 2
  }

  context(): { cert: string; key: string; ca: string[] } {
    return { cert: this.#certificatePem, key: this.#keyPem, ca: this.#authority.trust.bundle.roots }
  }
}

/** A host that waits for a changed bundle. */
interface Poll {
  readonly caller: HostCaller
  readonly response: ServerResponse
  readonly timer: NodeJS.Timeout
}

/** Answers the requests. */
class RequestHandler implements Disposable {
  readonly #authority: CertificateAuthority
  readonly #log: Log
  readonly #calls: RateLimiter
  readonly #unauthenticatedCalls: RateLimiter
  readonly #failedEnrollments: RateLimiter
  readonly #polls = new Map<string, Poll>()

  constructor(authority: CertificateAuthority, log: Log, limits: CaServerLimits) {
    this.#authority = authority
    this.#log = log
    this.#calls = new RateLimiter(limits.calls)
    this.#unauthenticatedCalls = new RateLimiter(limits.unauthenticatedCalls)
    this.#failedEnrollments = new RateLimiter(limits.failedEnrollments)
  }

  async serve(request: IncomingMessage, response: ServerResponse): Promise<void> {
    response.on('error', () => response.destroy())
    try {
      const answer = await this.#answer(request, response)
      if (answer !== undefined) replyJson(response, 200, answer)
    } catch (thrown) {
      this.#refuse(response, thrown)
    }
  }

  /** Answers all waiting polls; a caller that is no longer a host is refused. */
  answerPolls(): void {
    for (const poll of this.#polls.values()) this.#endPoll(poll)
  }

  [Symbol.dispose](): void {
    for (const poll of this.#polls.values()) clearTimeout(poll.timer)
    this.#polls.clear()
  }

  /** The answer; undefined when it is sent later. */
  async #answer(request: IncomingMessage, response: ServerResponse): Promise<object | undefined> {
    const authority = this.#authority
    const from = request.socket.remoteAddress ?? ''
    const payer = callerAt(from)
    const nowMs = systemClock.monotonicMs()
    const url = URL.parse(request.url ?? '', 'https://ca')
    if (!this.#calls.take(payer, nowMs)) throw rateLimited()
    const certificate =
      request.socket instanceof TLSSocket ? request.socket.getPeerX509Certificate() : undefined
    if (!this.#isHost(certificate) && !this.#unauthenticatedCalls.take(payer, nowMs))
      throw rateLimited()
    switch (`${request.method} ${url?.pathname}`) {
      case 'GET /v1/roots':
        return { trustDomain: authority.trustDomain, roots: authority.trust.bundle.roots }
      case 'POST /v1/enroll': {
        if (!this.#failedEnrollments.has(payer, nowMs)) throw rateLimited()
        const body = await readRequest(request, enrollRequest)
        try {
          return { certificate: authority.enroll(body, from), bundle: authority.trust.bundle }
        } catch (thrown) {
          this.#failedEnrollments.take(payer, nowMs)
          throw thrown
        }
      }
      case 'POST /v1/renew': {
        const caller = authority.identifyHost(certificate, { mayHaveExpired: true })
        const { csr } = await readRequest(request, renewRequest)
        return { certificate: authority.renew(caller, csr), bundle: authority.trust.bundle }
      }
      case 'POST /v1/sign': {
        const caller = authority.identifyHost(certificate)
        const { service, csr } = await readRequest(request, signRequest)
        return { certificate: await authority.sign(caller, service, csr) }
      }
      case 'GET /v1/bundle': {
        const caller = authority.identifyHost(certificate)
        authority.trust.noteRoots(caller.name, (url?.searchParams.get('roots') ?? '').slice(0, 64))
        if (url?.searchParams.get('have') !== authority.trust.bundle.id)
          return authority.trust.bundle
        this.#addPoll(caller, response)
        return undefined
      }
      default:
        throw new RequestError(404, 'There is no such call')
    }
  }

  /** Whether the caller is a host of this mesh: anyone can have a certificate of some kind. */
  #isHost(certificate: X509Certificate | undefined): boolean {
    try {
      this.#authority.identifyHost(certificate, { mayHaveExpired: true })
      return true
    } catch {
      return false
    }
  }

  #addPoll(caller: HostCaller, response: ServerResponse): void {
    const earlier = this.#polls.get(caller.name)
    if (earlier !== undefined) this.#endPoll(earlier)
    const poll: Poll = {
      caller,
      response,
      timer: setTimeout(() => this.#endPoll(poll), POLL_MS),
    }
    this.#polls.set(caller.name, poll)
    response.once('close', () => this.#dropPoll(poll))
  }

  #dropPoll(poll: Poll): void {
    clearTimeout(poll.timer)
    if (this.#polls.get(poll.caller.name) === poll) this.#polls.delete(poll.caller.name)
  }

  #endPoll(poll: Poll): void {
    this.#dropPoll(poll)
    try {
      this.#authority.identifyHost(poll.caller.certificate)
      replyJson(poll.response, 200, this.#authority.trust.bundle)
    } catch (thrown) {
      this.#refuse(poll.response, thrown)
    }
  }

  #refuse(response: ServerResponse, thrown: unknown): void {
    if (response.destroyed || response.headersSent) {
      response.destroy()
      return
    }
    const isOurs = thrown instanceof MeshError
    const code = isOurs ? thrown.code : 'HM_INTERNAL'
    const status = thrown instanceof RequestError ? thrown.status : (STATUS_BY_CODE[code] ?? 500)
    if (status >= 500) this.#log.error('Cannot answer a host', { error: describeError(thrown) })
    if (status === 429 || status === 503) response.setHeader('retry-after', '5')
    // The rest of what the peer sent on this connection may not be a request.
    if (status >= 400 && status !== 403) response.shouldKeepAlive = false
    const hint = isOurs && thrown.hint !== undefined ? `. ${thrown.hint}` : ''
    const message = isOurs ? `${thrown.message}${hint}` : 'The CA failed; its log says why'
    replyJson(response, status, { error: { code, message } })
  }
}

/** A malformed request, with its HTTP status. */
class RequestError extends MeshError {
  readonly status: number

  constructor(status: number, message: string) {
    super('HM_CA_REQUEST_INVALID', message)
    this.status = status
  }
}

function rateLimited(): MeshError {
  return new MeshError('HM_CA_RATE_LIMITED', 'Too many calls from this address')
}

async function readRequest<Schema extends z.ZodType>(
  request: IncomingMessage,
  schema: Schema,
): Promise<z.output<Schema>> {
  if (!/^application\/json\b/i.test(request.headers['content-type'] ?? ''))
    throw new RequestError(415, 'The content type must be application/json')
  const bytes = await readBody(request, MAX_REQUEST_BYTES).catch((thrown: unknown) => {
    throw thrown instanceof BodyTooLong
      ? new RequestError(413, `The request is larger than ${MAX_REQUEST_BYTES} bytes`)
      : thrown
  })
  const document = parseJson(bytes)
  if (document === undefined) throw new RequestError(400, 'The request is not JSON')
  const { success, data, error } = schema.safeParse(document)
  if (success) return data
  // zod's issues name keys and types, never values.
  const reasons = error.issues.map(({ path, message }) => `${path.join('.')}: ${message}`)
  throw new RequestError(400, `The request is malformed: ${reasons.join('; ')}`)
}

/** Refuses connections above an address's share before TLS costs anything. */
function limitConnections(server: Server, limits: CaServerLimits): void {
  const countByAddress = new Map<string, number>()
  const connections = new FairConnections<Socket>(limits.connections, ({ remoteAddress }) =>
    callerAt(remoteAddress),
  )
  server.on('connection', (socket: Socket) => {
    const address = callerAt(socket.remoteAddress)
    const count = (countByAddress.get(address) ?? 0) + 1
    countByAddress.set(address, count)
    socket.once('close', () => {
      const left = (countByAddress.get(address) ?? 1) - 1
      if (left > 0) countByAddress.set(address, left)
      else countByAddress.delete(address)
    })
    if (count > limits.connectionsPerAddress) socket.destroy()
    else connections.add(socket)
  })
}
