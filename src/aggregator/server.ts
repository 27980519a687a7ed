/**
 * The API and the dashboard over HTTP: on the unix socket, on the TCP port, and on the socket of a proxy if there is
 * one. It only reads: GET alone, without a body. Paths are compared as bytes, and no request reaches a disk.
 */
import { constants } from 'node:crypto'
import type { IncomingMessage, Server, ServerResponse } from 'node:http'
import { createServer as createTlsServer } from 'node:https'
import type { Socket } from 'node:net'
import { describeError, MeshError } from '../lib/errors.ts'
import { FairConnections } from '../lib/fair-connections.ts'
import { errorDocument, reply } from '../lib/json-http.ts'
import type { Log } from '../lib/log.ts'
import { http } from '../lib/node-http.ts'
import { hostmeshVersion } from '../lib/version.ts'
import { callerAt } from '../model/caller-address.ts'
import type { Access, ListenerKind } from './access.ts'
import { type Answers, acceptsGzip } from './answers.ts'
import { apiDocuments, LIVE_PATH, OPENAPI_PATH } from './api.ts'
import type { FleetReader } from './fleet-reader.ts'
import type { HostNames } from './host-names.ts'
import type { LiveHub } from './live.ts'
import type { AggregatorCounters } from './metrics.ts'
import { openApiDocument } from './openapi.ts'
import type { StaticFile } from './static-files.ts'
import type { TlsFiles } from './tls-files.ts'

/** What the server answers from. */
export interface ApiServerOptions {
  readonly reader: FleetReader
  readonly access: Access
  readonly answers: Answers
  readonly live: LiveHub
  readonly files: ReadonlyMap<string, StaticFile>
  readonly hostNames: HostNames
  readonly counters: AggregatorCounters
  readonly metrics: () => Promise<string>
  readonly log: Log
}

const MAX_CONNECTIONS = 512
const MAX_HEADER_BYTES = 16_384

const JSON_TYPE = 'application/json; charset=utf-8'
const METRICS_TYPE = 'text/plain; version=0.0.4; charset=utf-8'

const STATUS_BY_CODE: Readonly<Record<string, number>> = {
  HM_API_QUERY_INVALID: 400,
  HM_API_BODY_REFUSED: 400,
  HM_API_UNAUTHENTICATED: 401,
  HM_API_ROLE_DENIED: 403,
  HM_API_PATH_NOT_FOUND: 404,
  HM_SERVICE_NOT_FOUND: 404,
  HM_HOST_NOT_FOUND: 404,
  HM_API_METHOD_REFUSED: 405,
  HM_API_HOST_REFUSED: 421,
  HM_API_RATE_LIMITED: 429,
  HM_STORE_QUESTION_TOO_LARGE: 422,
  HM_API_BUSY: 503,
  HM_STORE_BUSY: 503,
  HM_STORE_FAILED: 503,
  HM_API_TIMEOUT: 504,
}

/** Sent with every answer. */
const SECURITY_HEADERS: Readonly<Record<string, string>> = {
  'content-security-policy':
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
  'cross-origin-opener-policy': 'same-origin',
  'cross-origin-resource-policy': 'same-origin',
  'permissions-policy': 'camera=(), geolocation=(), microphone=()',
  'referrer-policy': 'no-referrer',
  'x-content-type-options': 'nosniff',
  'x-frame-options': 'DENY',
}

const NO_DASHBOARD = `<!doctype html>
<html lang="en"><meta charset="utf-8"><title>hostmesh aggregator</title>
<h1>The dashboard is not here</h1>
<p>This aggregator has no dist/dashboard. In a checkout, build it with <code>npm run build</code> and start the
aggregator again; the package of a release has it.</p>
<p>The API works without it: <a href="/api/v1/overview">/api/v1/overview</a>, described by
<a href="/api/v1/openapi.json">/api/v1/openapi.json</a>.</p>
</html>
`

/** A server for one listener. The caller makes it listen, and closes it. */
export function createApiServer(
  options: ApiServerOptions,
  kind: ListenerKind,
  tls?: TlsFiles,
): Server {
  const handler = new RequestHandler(options, kind)
  const connections = new FairConnections<Socket>(MAX_CONNECTIONS, ({ remoteAddress }) =>
    callerAt(remoteAddress),
  )
  const settings = {
    maxHeaderSize: MAX_HEADER_BYTES,
    headersTimeout: 5_000,
    requestTimeout: 10_000,
    keepAliveTimeout: 10_000,
    connectionsCheckingInterval: 1_000,
    // A request by hand over the unix socket may omit it; over TCP it is checked.
    requireHostHeader: false,
  }
  const onRequest = (request: IncomingMessage, response: ServerResponse): void => {
    connections.used(request.socket)
    handler.serve(request, response).catch((error: unknown) => {
      options.log.error('Answer of the API failed', { error: describeError(error) })
      response.destroy()
    })
  }
  const server =
    tls === undefined
      ? http.createServer(settings, onRequest)
      : createTlsServer(
          {
            ...settings,
            ...tls.context(),
            minVersion: 'TLSv1.2',
            // A resumed session would skip the client certificate.
            secureOptions: constants.SSL_OP_NO_TICKET,
            requestCert: tls.asksClients,
            rejectUnauthorized: false,
            handshakeTimeout: 10_000,
          },
          onRequest,
        )
  if (tls !== undefined && 'setSecureContext' in server)
    tls.onChange((context) => server.setSecureContext(context))
  server.maxRequestsPerSocket = 10_000
  server.on(tls === undefined ? 'connection' : 'secureConnection', (socket: Socket) =>
    connections.add(socket),
  )
  // Who is no HTTP or TLS client is no failure of this server.
  server.on('tlsClientError', (_: Error, socket: Socket) => socket.destroy())
  return server
}

class RequestHandler {
  readonly #options: ApiServerOptions
  readonly #kind: ListenerKind
  readonly #openApi: string

  constructor(options: ApiServerOptions, kind: ListenerKind) {
    this.#options = options
    this.#kind = kind
    this.#openApi = `${JSON.stringify(openApiDocument(hostmeshVersion))}\n`
  }

  async serve(request: IncomingMessage, response: ServerResponse): Promise<void> {
    for (const [name, value] of Object.entries(SECURITY_HEADERS)) response.setHeader(name, value)
    response.on('error', () => response.destroy())
    response.once('finish', () => this.#options.counters.request(response.statusCode))
    // The body is not read, so the bytes that follow on this connection must not be parsed as a request.
    if (hasBody(request)) response.shouldKeepAlive = false
    try {
      await this.#answer(request, response)
    } catch (error) {
      this.#refuse(request, response, error)
    }
  }

  async #answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const { access, hostNames, live, metrics, reader } = this.#options
    const [path, query] = splitOnce(request.url ?? '')
    if (this.#kind === 'tcp' && !hostNames.has(request.headers.host))
      throw new MeshError('HM_API_HOST_REFUSED', 'The Host header names another server', {
        hint: 'Name it in listen.names',
      })
    if (request.method !== 'GET')
      throw new MeshError('HM_API_METHOD_REFUSED', 'The API only reads: use the method GET')
    if (hasBody(request))
      throw new MeshError('HM_API_BODY_REFUSED', 'The API takes no request with a body')
    if (path === '/healthz') {
      reply(response, 200, 'ok\n', 'text/plain; charset=utf-8')
      return
    }
    if (path !== '/metrics' && !path.startsWith('/api/')) {
      // Code that everybody may have; what it shows is asked for with the rights of the reader.
      this.#sendFile(request, response, path)
      return
    }
    access.admit(request, this.#kind, 'read')
    const document = apiDocuments.get(path)
    if (document !== undefined)
      await this.#send(request, response, {
        key: request.url ?? '',
        contentType: JSON_TYPE,
        make: async (signal) => `${JSON.stringify(await document.make(reader, query, signal))}\n`,
      })
    else if (path === LIVE_PATH) live.add(response)
    else if (path === OPENAPI_PATH)
      await this.#send(request, response, {
        key: path,
        contentType: JSON_TYPE,
        make: async () => this.#openApi,
      })
    else if (path === '/metrics')
      await this.#send(request, response, { key: path, contentType: METRICS_TYPE, make: metrics })
    else throw pathNotFound()
  }

  async #send(
    request: IncomingMessage,
    response: ServerResponse,
    {
      key,
      contentType,
      make,
    }: {
      readonly key: string
      readonly contentType: string
      readonly make: (signal: AbortSignal) => Promise<string>
    },
  ): Promise<void> {
    const { answers } = this.#options
    await answers.send(request, response, await answers.get(key, contentType, make))
  }

  #sendFile(request: IncomingMessage, response: ServerResponse, path: string): void {
    const file = this.#fileAt(request, path)
    if (file === undefined) {
      if (this.#options.files.size > 0) throw pathNotFound()
      reply(response, 404, NO_DASHBOARD, 'text/html; charset=utf-8')
      return
    }
    const isCompressed = file.gzip !== undefined && acceptsGzip(request)
    const bytes = isCompressed ? (file.gzip ?? file.bytes) : file.bytes
    const headers = {
      etag: file.etag,
      'cache-control': file.isImmutable ? 'public, max-age=31536000, immutable' : 'no-cache',
      vary: 'accept-encoding',
    }
    if ((request.headers['if-none-match'] ?? '').includes(file.etag)) {
      response.writeHead(304, headers)
      response.end()
      return
    }
    response.writeHead(200, {
      ...headers,
      'content-type': file.contentType,
      'content-length': bytes.length,
      ...(isCompressed && { 'content-encoding': 'gzip' }),
    })
    response.end(bytes)
  }

  /** A file by its path; the start page for a path of the dashboard, which a browser asks for when it is opened anew. */
  #fileAt({ headers }: IncomingMessage, path: string): StaticFile | undefined {
    const { files } = this.#options
    const file = files.get(path)
    if (file !== undefined || path.includes('.')) return file
    return (headers.accept ?? '').includes('text/html') ? files.get('/') : undefined
  }

  #refuse(request: IncomingMessage, response: ServerResponse, error: unknown): void {
    const code = error instanceof MeshError ? error.code : 'HM_INTERNAL'
    const status = STATUS_BY_CODE[code] ?? 500
    if (status >= 500)
      this.#options.log.warn('Cannot answer a request', {
        path: (request.url ?? '').slice(0, 100),
        error: describeError(error),
      })
    if (response.destroyed || response.headersSent) {
      response.destroy()
      return
    }
    if (status === 401) response.setHeader('www-authenticate', 'Bearer')
    if (status === 405) response.setHeader('allow', 'GET')
    if (status === 429 || status === 503) response.setHeader('retry-after', '5')
    // Only MeshError messages are sent: messages of the runtime may quote the input that caused them.
    const message =
      error instanceof MeshError ? error.message : 'Cannot answer; the reason is in the log'
    reply(response, status, `${JSON.stringify(errorDocument(error, message))}\n`, JSON_TYPE)
  }
}

function pathNotFound(): MeshError {
  return new MeshError('HM_API_PATH_NOT_FOUND', 'There is no such path', {
    hint: `All paths are in ${OPENAPI_PATH}`,
  })
}

function splitOnce(url: string): [string, string] {
  const index = url.indexOf('?')
  return index < 0 ? [url, ''] : [url.slice(0, index), url.slice(index + 1)]
}

function hasBody({ headers }: IncomingMessage): boolean {
  return headers['transfer-encoding'] !== undefined || Number(headers['content-length'] ?? 0) !== 0
}
