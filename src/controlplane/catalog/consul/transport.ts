/**
 * HTTP to one Consul agent: `http://`, `https://` or a Unix socket.
 *
 * Two pools of connections, so that long polls can never keep registration and heartbeats waiting: Consul
 * allows 200 connections per caller, and one blocking query holds one. Every call has a deadline and a
 * limit on what it reads; redirects are not followed; the token never appears in a message.
 */
import { readFileSync, statSync } from 'node:fs'
import http from 'node:http'
import https from 'node:https'
import { createGunzip } from 'node:zlib'
import { type Clock, systemClock } from '../../../lib/clock.ts'
import { errorCode, MeshError } from '../../../lib/errors.ts'
import { createJsonLimiter } from './json-limits.ts'

/** Where the agent is and how to talk to it. Same fields as the `catalog` section of the configuration. */
export interface ConsulAddress {
  /** `http://host:port`, `https://host:port` or `unix:///path`. */
  readonly address: string
  readonly token?: string | undefined
  /** Holds the token; read again when it changes. Wins over `token`. */
  readonly tokenFile?: string | undefined
  /** Roots for an https address, PEM. The system's roots unless given. */
  readonly caFile?: string | undefined
  /** Deadline of a call that does not block, milliseconds. */
  readonly requestTimeout: number
}

/** What the agent said. Any status; {@link requireOk} turns bad ones into errors. */
export interface ConsulAnswer {
  readonly status: number
  /** The parsed body of a 2xx answer; undefined when it is empty or the status is another. */
  readonly body: unknown
  /** The first characters of the body of any other answer: Consul puts its reason there. */
  readonly text: string
  /** Raw `X-Consul-Index`; undefined when the answer has none. */
  readonly index: string | undefined
  /** Milliseconds since the answering server last heard from the leader; undefined when not said. */
  readonly lastContactMs: number | undefined
  /** Raw `X-Consul-Default-Acl-Policy`, from Consul 1.9 on. */
  readonly defaultAclPolicy: string | undefined
}

/** How one call differs from the usual. */
export interface CallOptions {
  /** `watch` for long polls; `plain` unless given. */
  readonly pool?: 'watch' | 'plain'
  /** Milliseconds for the whole call; the transport's request timeout unless given. */
  readonly timeoutMs?: number
  readonly signal?: AbortSignal
  /** Sent as JSON. */
  readonly body?: unknown
}

/** One agent, and the connections to it. */
export interface ConsulTransport extends Disposable {
  /** The address, for messages and status. */
  readonly address: string
  /** The pool for plain calls, for the `consul` package to share. */
  readonly plainAgent: http.Agent
  readonly requestTimeoutMs: number
  /** The token of the moment; undefined for the anonymous one. */
  token(): string | undefined
  /** What is wrong with the token file now; undefined when nothing is. */
  tokenProblem(): string | undefined
  /**
   * Calls `path` (which begins with `/v1/`) and reads the whole answer.
   * @throws MeshError HM_CONSUL_UNREACHABLE, HM_CONSUL_TIMEOUT, HM_CONSUL_ANSWER_TOO_LARGE,
   * HM_CONSUL_ANSWER_TOO_DEEP, HM_CONSUL_ANSWER_MALFORMED, HM_CONSUL_CLOSED
   */
  call(method: 'GET' | 'PUT', path: string, options?: CallOptions): Promise<ConsulAnswer>
}

/** Connections for long polls; what Consul allows per caller is 200, shared with everything on the host. */
export const WATCH_SOCKETS = 64

/** Connections for everything else. */
const PLAIN_SOCKETS = 4

/** How often the token file is looked at. */
const TOKEN_CHECK_MS = 2_000

/** A Consul token is a UUID of 36 characters; JWTs used as tokens are longer. */
const MAX_TOKEN_BYTES = 8_192

/** How much of an error's body is kept. */
const MAX_ERROR_TEXT = 300

/**
 * Opens the transport; nothing is connected yet.
 * @throws MeshError HM_CONSUL_ADDRESS_INVALID, HM_CONSUL_CA_UNREADABLE, HM_CONSUL_TOKEN_UNREADABLE
 */
export function createTransport(
  options: ConsulAddress,
  clock: Clock = systemClock,
): ConsulTransport {
  const target = parseTarget(options)
  const agentOptions: https.AgentOptions = {
    keepAlive: true,
    scheduling: 'lifo',
    // The agents know the way by themselves, so that the `consul` package needs only one of them.
    ...(target.socketPath === undefined ? {} : { socketPath: target.socketPath }),
    ...(target.host === undefined ? {} : { host: target.host, port: target.port }),
    ...(target.ca === undefined ? {} : { ca: target.ca }),
  }
  const { protocol } = target
  const watchAgent = protocol.createAgent({ ...agentOptions, maxSockets: WATCH_SOCKETS })
  const plainAgent = protocol.createAgent({ ...agentOptions, maxSockets: PLAIN_SOCKETS })
  const token = createTokenSource(options, clock)
  const closing = new AbortController()

  async function call(
    method: 'GET' | 'PUT',
    path: string,
    callOptions: CallOptions = {},
  ): Promise<ConsulAnswer> {
    if (closing.signal.aborted)
      throw new MeshError('HM_CONSUL_CLOSED', 'Connection to Consul is closed')
    const timeoutMs = Math.ceil(callOptions.timeoutMs ?? options.requestTimeout)
    const payload =
      callOptions.body === undefined ? undefined : Buffer.from(JSON.stringify(callOptions.body))
    const headers: http.OutgoingHttpHeaders = {
      accept: 'application/json',
      'accept-encoding': 'gzip',
    }
    const currentToken = token.current()
    if (currentToken !== undefined) headers['x-consul-token'] = currentToken
    if (payload !== undefined) headers['content-type'] = 'application/json'
    if (method === 'PUT') headers['content-length'] = payload?.length ?? 0
    const request = {
      method,
      path,
      headers,
      agent: callOptions.pool === 'watch' ? watchAgent : plainAgent,
      ...(target.host === undefined ? {} : { host: target.host, port: target.port }),
    }
    const deadline = AbortSignal.timeout(timeoutMs)
    const signal = AbortSignal.any([
      deadline,
      closing.signal,
      ...(callOptions.signal === undefined ? [] : [callOptions.signal]),
    ])
    const exchangeOnce = (): Promise<ConsulAnswer> =>
      exchange(() => protocol.request(request), payload, signal)
    try {
      try {
        return await exchangeOnce()
      } catch (error) {
        // The agent may close an idle connection at the very moment we reuse it; that says nothing
        // about the agent, and every call here may be repeated.
        if (!(error instanceof StaleConnection)) throw error
        return await exchangeOnce()
      }
    } catch (error) {
      throw asCallError(error, {
        what: `${method} ${path.split('?', 1)[0]}`,
        address: options.address,
        timeoutMs,
        timedOut: deadline.aborted,
        aborted: callOptions.signal?.aborted === true || closing.signal.aborted,
      })
    }
  }

  return {
    address: options.address,
    plainAgent,
    requestTimeoutMs: options.requestTimeout,
    token: () => token.current(),
    tokenProblem: () => token.problem(),
    call,
    [Symbol.dispose]() {
      // Also ends the calls that wait for a connection, which destroying the agents does not.
      closing.abort()
      watchAgent.destroy()
      plainAgent.destroy()
    },
  }
}

/**
 * The answer itself when its status is 2xx.
 * @throws MeshError HM_CONSUL_FORBIDDEN (401, 403), HM_CONSUL_RATE_LIMITED (429), HM_CONSUL_REFUSED (any other)
 */
export function requireOk(answer: ConsulAnswer, what: string): ConsulAnswer {
  const { status } = answer
  if (status >= 200 && status < 300) return answer
  const reason = answer.text === '' ? `status ${status}` : `status ${status}, ${answer.text}`
  if (status === 401 || status === 403)
    throw new MeshError('HM_CONSUL_FORBIDDEN', `Consul does not allow ${what}: ${reason}`, {
      hint: 'Give the token of hostmesh the rights listed in docs/consul.md',
    })
  if (status === 429)
    throw new MeshError('HM_CONSUL_RATE_LIMITED', `Consul limits the rate of ${what}: ${reason}`)
  throw new MeshError('HM_CONSUL_REFUSED', `Consul failed at ${what}: ${reason}`)
}

/** A reused connection died before it carried an answer. */
class StaleConnection extends Error {}

interface Target {
  readonly protocol: {
    readonly createAgent: (options: https.AgentOptions) => http.Agent
    readonly request: (options: http.RequestOptions) => http.ClientRequest
  }
  readonly host: string | undefined
  readonly port: number | undefined
  readonly socketPath: string | undefined
  readonly ca: Buffer | undefined
}

const plainHttp: Target['protocol'] = {
  createAgent: (options) => new http.Agent(options),
  request: (options) => http.request(options),
}

const httpOverTls: Target['protocol'] = {
  createAgent: (options) => new https.Agent(options),
  request: (options) => https.request(options),
}

function parseTarget(options: ConsulAddress): Target {
  if (options.address.startsWith('unix://')) {
    const socketPath = options.address.slice('unix://'.length)
    if (!socketPath.startsWith('/')) throw invalidAddress(options.address)
    return { protocol: plainHttp, host: undefined, port: undefined, socketPath, ca: undefined }
  }
  const url = URL.parse(options.address)
  if (url === null || url.username !== '' || url.pathname !== '/' || url.search !== '')
    throw invalidAddress(options.address)
  // URL keeps the brackets of an IPv6 host; sockets do not want them.
  const host = url.hostname.replace(/^\[|\]$/g, '')
  if (url.protocol === 'http:') {
    const port = url.port === '' ? 80 : Number(url.port)
    return { protocol: plainHttp, host, port, socketPath: undefined, ca: undefined }
  }
  if (url.protocol !== 'https:') throw invalidAddress(options.address)
  const port = url.port === '' ? 443 : Number(url.port)
  const ca = options.caFile === undefined ? undefined : readCa(options.caFile)
  return { protocol: httpOverTls, host, port, socketPath: undefined, ca }
}

function invalidAddress(address: string): MeshError {
  return new MeshError(
    'HM_CONSUL_ADDRESS_INVALID',
    `Cannot use "${address}" as the address of Consul`,
    { hint: 'Write http://host:port, https://host:port or unix:///path' },
  )
}

function readCa(path: string): Buffer {
  try {
    return readFileSync(path)
  } catch (cause) {
    throw new MeshError(
      'HM_CONSUL_CA_UNREADABLE',
      `Cannot read the roots for Consul from ${path}`,
      {
        cause,
      },
    )
  }
}

interface TokenSource {
  current(): string | undefined
  problem(): string | undefined
}

/** The first read must succeed; later failures keep the token that worked. */
function createTokenSource(options: ConsulAddress, clock: Clock): TokenSource {
  const { tokenFile } = options
  if (tokenFile === undefined) {
    const fixed = checkToken(options.token ?? '', 'the configuration')
    return { current: () => fixed, problem: () => undefined }
  }
  let stamp = fileStamp(tokenFile)
  let token = readToken(tokenFile)
  let checkedAtMs = clock.monotonicMs()
  let problem: string | undefined
  return {
    problem: () => problem,
    current() {
      if (clock.monotonicMs() - checkedAtMs < TOKEN_CHECK_MS) return token
      checkedAtMs = clock.monotonicMs()
      try {
        const now = fileStamp(tokenFile)
        if (now !== stamp) {
          token = readToken(tokenFile)
          stamp = now
        }
        problem = undefined
      } catch (error) {
        problem = error instanceof Error ? error.message : String(error)
      }
      return token
    },
  }
}

function fileStamp(path: string): string {
  try {
    const { mtimeMs, size, ino } = statSync(path)
    return `${mtimeMs} ${size} ${ino}`
  } catch (cause) {
    throw tokenUnreadable(path, cause)
  }
}

function readToken(path: string): string | undefined {
  let bytes: Buffer
  try {
    bytes = readFileSync(path)
  } catch (cause) {
    throw tokenUnreadable(path, cause)
  }
  return checkToken(
    bytes
      .subarray(0, MAX_TOKEN_BYTES + 1)
      .toString('latin1')
      .trim(),
    path,
  )
}

function tokenUnreadable(path: string, cause: unknown): MeshError {
  return new MeshError('HM_CONSUL_TOKEN_UNREADABLE', `Cannot read the Consul token from ${path}`, {
    cause,
  })
}

function checkToken(token: string, origin: string): string | undefined {
  if (token === '') return undefined
  if (token.length <= MAX_TOKEN_BYTES && /^[\x21-\x7e]+$/.test(token)) return token
  throw new MeshError(
    'HM_CONSUL_TOKEN_INVALID',
    `Cannot use the Consul token from ${origin}: it is not one line of printable ASCII`,
  )
}

function exchange(
  open: () => http.ClientRequest,
  payload: Buffer | undefined,
  signal: AbortSignal,
): Promise<ConsulAnswer> {
  return new Promise((resolve, reject) => {
    if (signal.aborted) {
      reject(new Error('aborted'))
      return
    }
    const request = open()
    let answered = false
    const abort = (): void => {
      request.destroy(new Error('aborted'))
      settle(() => reject(new Error('aborted')))
    }
    const settle = (act: () => void): void => {
      signal.removeEventListener('abort', abort)
      act()
    }
    signal.addEventListener('abort', abort)
    request.on('error', (error) => {
      const isStale = request.reusedSocket && !answered && isConnectionLoss(error)
      settle(() => reject(isStale ? new StaleConnection() : error))
    })
    request.on('response', (response) => {
      answered = true
      readAnswer(response).then(
        (answer) => settle(() => resolve(answer)),
        (error: unknown) => {
          request.destroy()
          settle(() => reject(error instanceof Error ? error : new Error(String(error))))
        },
      )
    })
    request.end(payload)
  })
}

function isConnectionLoss(error: unknown): boolean {
  return ['ECONNRESET', 'EPIPE'].includes(errorCode(error))
}

async function readAnswer(response: http.IncomingMessage): Promise<ConsulAnswer> {
  const status = response.statusCode ?? 0
  const isOk = status >= 200 && status < 300
  const limiter = createJsonLimiter()
  const chunks: Buffer[] = []
  let bytes = 0
  for await (const chunk of plainBody(response)) {
    if (isOk) {
      limiter.push(chunk)
      chunks.push(chunk)
    } else if (bytes < MAX_ERROR_TEXT) chunks.push(chunk)
    bytes += chunk.length
    // An error's body is text of any shape; there is no reason to read a long one to its end.
    if (!isOk && bytes > 1_048_576)
      throw new MeshError('HM_CONSUL_ANSWER_TOO_LARGE', 'Error of Consul is longer than 1 MiB')
  }
  const text = Buffer.concat(chunks).toString('utf8')
  const lastContact = Number(oneHeader(response, 'x-consul-lastcontact') ?? Number.NaN)
  return {
    status,
    body: isOk ? parseBody(text) : undefined,
    text: isOk ? '' : printable(text.slice(0, MAX_ERROR_TEXT)),
    index: oneHeader(response, 'x-consul-index'),
    lastContactMs: Number.isFinite(lastContact) ? lastContact : undefined,
    defaultAclPolicy: oneHeader(response, 'x-consul-default-acl-policy'),
  }
}

function plainBody(response: http.IncomingMessage): AsyncIterable<Buffer> {
  const encoding = response.headers['content-encoding'] ?? 'identity'
  if (encoding === 'identity') return response
  if (encoding !== 'gzip')
    throw new MeshError(
      'HM_CONSUL_ANSWER_MALFORMED',
      `Answer of Consul has the unknown encoding "${printable(encoding.slice(0, 40))}"`,
    )
  const gunzip = createGunzip()
  response.on('error', (error) => gunzip.destroy(error))
  return response.pipe(gunzip)
}

function oneHeader(response: http.IncomingMessage, name: string): string | undefined {
  const value = response.headers[name]
  return typeof value === 'string' ? value : undefined
}

function parseBody(text: string): unknown {
  if (text === '') return undefined
  try {
    return JSON.parse(text)
  } catch (cause) {
    throw new MeshError(
      'HM_CONSUL_ANSWER_MALFORMED',
      `Answer of Consul is not JSON: it begins with "${printable(text.slice(0, 40))}"`,
      { cause },
    )
  }
}

function printable(text: string): string {
  return text.replace(/[^\x20-\x7e]+/g, ' ').trim()
}

function asCallError(
  error: unknown,
  call: { what: string; address: string; timeoutMs: number; timedOut: boolean; aborted: boolean },
): MeshError {
  if (call.aborted) return new MeshError('HM_CONSUL_CLOSED', `Call ${call.what} was called off`)
  if (call.timedOut)
    return new MeshError(
      'HM_CONSUL_TIMEOUT',
      `Consul at ${call.address} did not answer ${call.what} within ${call.timeoutMs} ms`,
    )
  if (error instanceof MeshError) return error
  const code = errorCode(error)
  if (code.startsWith('Z_'))
    return new MeshError(
      'HM_CONSUL_ANSWER_MALFORMED',
      `Answer of Consul to ${call.what} is not gzip`,
      {
        cause: error,
      },
    )
  const reason = error instanceof Error && error.message !== '' ? error.message : code
  return new MeshError(
    'HM_CONSUL_UNREACHABLE',
    `Cannot reach Consul at ${call.address}: ${reason}`,
    {
      cause: error,
      hint: 'Check that the agent runs and that the address in the configuration is its HTTP address',
    },
  )
}
