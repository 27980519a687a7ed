/**
 * HTTP to one Consul agent: `http://`, `https://` or a Unix socket.
 *
 * Two pools of connections, so that long polls never delay registration and heartbeats: Consul allows 200 connections
 * per caller, and one blocking query holds one. Every call has a deadline and a limit on the size of the answer;
 * redirects are not followed; the token never appears in a message.
 */
import type {
  Agent,
  ClientRequest,
  IncomingMessage,
  OutgoingHttpHeaders,
  RequestOptions,
} from 'node:http'
import https from 'node:https'
import { createGunzip } from 'node:zlib'
import { type Clock, systemClock } from '../../../lib/clock.ts'
import { errorCode, MeshError } from '../../../lib/errors.ts'
import { http } from '../../../lib/node-http.ts'
import {
  type AgentTls,
  type AgentTlsFiles,
  type AgentTlsMaterial,
  createAgentTls,
} from './agent-tls.ts'
import { createJsonFilter } from './json-filter.ts'
import { createJsonLimiter } from './json-limits.ts'
import { createTokenSource, type TokenSource } from './token-source.ts'

/** The address of the agent and how to call it. Same fields as the `catalog` section of the configuration. */
export interface ConsulAddress extends AgentTlsFiles {
  /** `http://host:port`, `https://host:port` or `unix:///path`. */
  readonly address: string
  readonly token?: string | undefined
  /** Holds the token; read again when it changes. Takes precedence over `token`. */
  readonly tokenFile?: string | undefined
  /** The name in the agent's certificate, if it is not the host of the address. */
  readonly tlsServerName?: string | undefined
  /** Deadline of a call that does not block, milliseconds. */
  readonly requestTimeout: number
}

/** The agent's answer, with any status; {@link requireOk} turns bad ones into errors. */
export interface ConsulAnswer {
  readonly status: number
  /** The parsed body of a 2xx answer; undefined when it is empty or for any other status. */
  readonly body: unknown
  /** The first characters of the body of any other answer: it contains Consul's reason. */
  readonly text: string
  /** Raw `X-Consul-Index`; undefined when the answer has none. */
  readonly index: string | undefined
  /** Milliseconds since the answering server last heard from the leader; undefined when not reported. */
  readonly lastContactMs: number | undefined
  /** Raw `X-Consul-Default-Acl-Policy`, from Consul 1.9 on. */
  readonly defaultAclPolicy: string | undefined
}

/** How one call differs from the default. */
export interface CallOptions {
  /** `watch` for long polls. Default: `plain`. */
  readonly pool?: 'watch' | 'plain'
  /** Milliseconds for the whole call. Default: the transport's request timeout. */
  readonly timeoutMs?: number
  readonly signal?: AbortSignal
  /**
   * How many levels of the answer are read; deeper values and the end of long strings are removed as they arrive
   * (json-filter.ts). Default: all.
   */
  readonly levels?: number | undefined
  /** Sent as JSON. */
  readonly body?: unknown
}

/** One agent, and the connections to it. */
export interface ConsulTransport extends Disposable {
  /** The address, for messages and status. */
  readonly address: string
  /** The pool for plain calls, which the `consul` package shares. */
  readonly plainAgent: Agent
  readonly requestTimeoutMs: number
  /** The current token; undefined for the anonymous one. */
  token(): string | undefined
  /** What is wrong with the token and certificate files now, one sentence each. */
  problems(): readonly string[]
  /** Calls `listener` whenever the token has changed. Returns a function that ends that. */
  onTokenChange(listener: () => void): () => void
  /**
   * Calls `path` (which begins with `/v1/`) and reads the whole answer.
   * @throws MeshError HM_CONSUL_UNREACHABLE, HM_CONSUL_TIMEOUT, HM_CONSUL_ANSWER_TOO_LARGE,
   * HM_CONSUL_ANSWER_TOO_DEEP, HM_CONSUL_ANSWER_MALFORMED, HM_CONSUL_CLOSED
   */
  call(method: 'GET' | 'PUT', path: string, options?: CallOptions): Promise<ConsulAnswer>
}

/** Connections for long polls; Consul allows 200 per caller, shared with everything on the host. */
export const WATCH_SOCKETS = 64

/** Connections for everything else. */
const PLAIN_SOCKETS = 4

/** Most bytes of an answer of which only some levels are read; what is kept is limited like any answer. */
const MAX_SIEVED_BYTES = 128 * 1_048_576

/** How much of an error's body is kept. */
const MAX_ERROR_TEXT = 300

/**
 * Creates the transport without connecting.
 * @throws MeshError HM_CONSUL_ADDRESS_INVALID, HM_CONSUL_CA_UNREADABLE, HM_CONSUL_CERT_UNUSABLE,
 * HM_CONSUL_TOKEN_UNREADABLE, HM_CONSUL_TOKEN_INVALID
 */
export function createTransport(
  options: ConsulAddress,
  clock: Clock = systemClock,
): ConsulTransport {
  return new AgentTransport(options, clock)
}

class AgentTransport implements ConsulTransport {
  readonly address: string
  readonly plainAgent: Agent
  readonly requestTimeoutMs: number
  readonly #target: Target
  readonly #watchAgent: Agent
  readonly #token: TokenSource
  readonly #closing = new AbortController()

  constructor(options: ConsulAddress, clock: Clock) {
    this.address = options.address
    this.requestTimeoutMs = options.requestTimeout
    const target = parseTarget(options, clock)
    const agentOptions: https.AgentOptions = {
      keepAlive: true,
      scheduling: 'lifo',
      // The agents hold the address themselves, so that the `consul` package needs only one of them.
      ...(target.socketPath === undefined ? {} : { socketPath: target.socketPath }),
      ...(target.host === undefined ? {} : { host: target.host, port: target.port }),
      ...(options.tlsServerName === undefined ? {} : { servername: options.tlsServerName }),
      ...target.tls?.current(),
    }
    const { protocol } = target
    this.#target = target
    this.#watchAgent = protocol.createAgent({ ...agentOptions, maxSockets: WATCH_SOCKETS })
    this.plainAgent = protocol.createAgent({ ...agentOptions, maxSockets: PLAIN_SOCKETS })
    this.#token = createTokenSource(options, clock)
  }

  token(): string | undefined {
    return this.#token.current()
  }

  problems(): readonly string[] {
    return [this.#token.problem(), this.#target.tls?.problem()].filter(
      (problem) => problem !== undefined,
    )
  }

  onTokenChange(listener: () => void): () => void {
    return this.#token.onChange(listener)
  }

  async call(
    method: 'GET' | 'PUT',
    path: string,
    callOptions: CallOptions = {},
  ): Promise<ConsulAnswer> {
    const { protocol, host, port, tls } = this.#target
    const closing = this.#closing.signal
    if (closing.aborted) throw new MeshError('HM_CONSUL_CLOSED', 'Connection to Consul is closed')
    const timeoutMs = Math.ceil(callOptions.timeoutMs ?? this.requestTimeoutMs)
    const payload =
      callOptions.body === undefined ? undefined : Buffer.from(JSON.stringify(callOptions.body))
    if (tls !== undefined)
      for (const agent of [this.#watchAgent, this.plainAgent]) useForNext(agent, tls.current())
    const headers: OutgoingHttpHeaders = {
      accept: 'application/json',
      'accept-encoding': 'gzip',
    }
    const setToken = (value: string | undefined): string | undefined => {
      if (value === undefined) delete headers['x-consul-token']
      else headers['x-consul-token'] = value
      return value
    }
    const usedToken = setToken(this.#token.current())
    if (payload !== undefined) headers['content-type'] = 'application/json'
    if (method === 'PUT') headers['content-length'] = payload?.length ?? 0
    const request = {
      method,
      path,
      headers,
      agent: callOptions.pool === 'watch' ? this.#watchAgent : this.plainAgent,
      ...(host === undefined ? {} : { host, port }),
    }
    const deadline = AbortSignal.timeout(timeoutMs)
    const signal = AbortSignal.any([
      deadline,
      closing,
      ...(callOptions.signal === undefined ? [] : [callOptions.signal]),
    ])
    const exchangeOnce = (): Promise<ConsulAnswer> =>
      exchange(() => protocol.request(request), payload, signal, callOptions.levels)
    // The agent may close an idle connection at the moment we reuse it; that is no sign of a failure of the
    // agent, and every call here may be repeated.
    const exchangeOrRepeat = (): Promise<ConsulAnswer> =>
      exchangeOnce().catch((error: unknown) => {
        if (!(error instanceof StaleConnection)) throw error
        return exchangeOnce()
      })
    try {
      const answer = await exchangeOrRepeat()
      if (answer.status !== 401 && answer.status !== 403) return answer
      // Rotating a token ends with deleting the old one: a call that was refused with it is repeated with the new one.
      return setToken(this.#token.latest()) === usedToken ? answer : await exchangeOrRepeat()
    } catch (error) {
      throw asCallError(error, {
        what: `${method} ${path.split('?', 1)[0]}`,
        address: this.address,
        timeoutMs,
        timedOut: deadline.aborted,
        aborted: callOptions.signal?.aborted === true || closing.aborted,
      })
    }
  }

  [Symbol.dispose](): void {
    // Also ends calls that wait for a connection; destroying the agents does not.
    this.#closing.abort()
    this.#watchAgent.destroy()
    this.plainAgent.destroy()
  }
}

/**
 * Returns the answer when its status is 2xx.
 * @param rule what the token's policy must contain for this call, in Consul's syntax
 * @throws MeshError HM_CONSUL_FORBIDDEN (401, 403), HM_CONSUL_RATE_LIMITED (429), HM_CONSUL_REFUSED (any other)
 */
export function requireOk(answer: ConsulAnswer, what: string, rule?: string): ConsulAnswer {
  const { status } = answer
  if (status >= 200 && status < 300) return answer
  const reason = answer.text === '' ? `status ${status}` : `status ${status}, ${answer.text}`
  if (status === 401 || status === 403) throw forbidden(what, reason, rule)
  if (status === 429)
    throw new MeshError('HM_CONSUL_RATE_LIMITED', `Consul limits the rate of ${what}: ${reason}`)
  throw new MeshError('HM_CONSUL_REFUSED', `Consul failed at ${what}: ${reason}`)
}

/** The error for a call that the token does not permit, or whose token is unknown to Consul. */
export function forbidden(what: string, reason: string, rule: string | undefined): MeshError {
  const hint = 'Give the token of hostmesh the rights listed in docs/consul.md'
  const message = `Consul does not allow ${what}: ${reason}`
  if (/ACL not found/i.test(reason))
    return new MeshError('HM_CONSUL_FORBIDDEN', `${message}; the token is unknown: ${NEW_TOKEN}`)
  const missing = rule === undefined ? '' : `; the policy of the token needs: ${rule}`
  return new MeshError('HM_CONSUL_FORBIDDEN', `${message}${missing}`, { hint })
}

/** What to do about a token that is, or has become, unknown to Consul. */
export const NEW_TOKEN = 'write a valid one into the token file'

/**
 * Makes an agent open its next connections with `material`. Node's types do not show the options that an agent merges
 * into each request, but its documentation does not forbid their use; for the `consul` package, which shares the
 * agent, there is no other way.
 */
function useForNext(agent: Agent, material: AgentTlsMaterial): void {
  const options: unknown = Reflect.get(agent, 'options')
  if (typeof options === 'object' && options !== null) Object.assign(options, material)
}

/** A reused connection failed before it carried an answer. */
class StaleConnection extends Error {}

interface Target {
  readonly protocol: {
    readonly createAgent: (options: https.AgentOptions) => Agent
    readonly request: (options: RequestOptions) => ClientRequest
  }
  readonly host: string | undefined
  readonly port: number | undefined
  readonly socketPath: string | undefined
  readonly tls: AgentTls | undefined
}

const plainHttp: Target['protocol'] = {
  createAgent: (options) => new http.Agent(options),
  request: (options) => http.request(options),
}

const httpOverTls: Target['protocol'] = {
  createAgent: (options) => new https.Agent(options),
  request: (options) => https.request(options),
}

function parseTarget(options: ConsulAddress, clock: Clock): Target {
  if (options.address.startsWith('unix://')) {
    const socketPath = options.address.slice('unix://'.length)
    if (!socketPath.startsWith('/')) throw invalidAddress(options.address)
    return { protocol: plainHttp, host: undefined, port: undefined, socketPath, tls: undefined }
  }
  const url = URL.parse(options.address)
  if (url === null || url.username !== '' || url.pathname !== '/' || url.search !== '')
    throw invalidAddress(options.address)
  // URL keeps the brackets of an IPv6 host; sockets do not accept them.
  const host = url.hostname.replace(/^\[|\]$/g, '')
  if (url.protocol === 'http:') {
    const port = url.port === '' ? 80 : Number(url.port)
    return { protocol: plainHttp, host, port, socketPath: undefined, tls: undefined }
  }
  if (url.protocol !== 'https:') throw invalidAddress(options.address)
  const port = url.port === '' ? 443 : Number(url.port)
  const tls = createAgentTls(options, clock)
  return { protocol: httpOverTls, host, port, socketPath: undefined, tls }
}

function invalidAddress(address: string): MeshError {
  return new MeshError(
    'HM_CONSUL_ADDRESS_INVALID',
    `Cannot use "${address}" as the address of Consul`,
    { hint: 'Write http://host:port, https://host:port or unix:///path' },
  )
}

function exchange(
  open: () => ClientRequest,
  payload: Buffer | undefined,
  signal: AbortSignal,
  levels: number | undefined,
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
      readAnswer(response, levels).then(
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

async function readAnswer(
  response: IncomingMessage,
  levels: number | undefined,
): Promise<ConsulAnswer> {
  const status = response.statusCode ?? 0
  const isOk = status >= 200 && status < 300
  const limiter = createJsonLimiter()
  const filter = levels === undefined ? undefined : createJsonFilter(levels)
  const chunks: Buffer[] = []
  let bytes = 0
  for await (const chunk of plainBody(response)) {
    if (isOk) {
      if (bytes > MAX_SIEVED_BYTES)
        throw new MeshError(
          'HM_CONSUL_ANSWER_TOO_LARGE',
          `Answer of Consul is longer than ${MAX_SIEVED_BYTES} bytes`,
        )
      const read = filter?.push(chunk) ?? chunk
      limiter.push(read)
      chunks.push(read)
    } else if (bytes < MAX_ERROR_TEXT) chunks.push(chunk)
    bytes += chunk.length
    // The body of an error has no fixed form, so a long one is not read to its end.
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

function plainBody(response: IncomingMessage): AsyncIterable<Buffer> {
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

function oneHeader(response: IncomingMessage, name: string): string | undefined {
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
