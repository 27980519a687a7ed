/**
 * The admin API: read-only HTTP on a unix socket, and `/metrics` alone on a TCP port if asked for.
 *
 * The API is read-only, because the socket's file mode (0660, root and one group) alone decides who may ask. Answers
 * are bounded in number, memory and time, because the server shares its thread with the control plane. Paths are
 * compared as bytes: nothing is decoded or normalized.
 */
import { once } from 'node:events'
import type { IncomingMessage, Server, ServerResponse } from 'node:http'
import type { Socket } from 'node:net'
import { describeError, MeshError } from '../lib/errors.ts'
import { FairConnections } from '../lib/fair-connections.ts'
import { groupId } from '../lib/group-id.ts'
import { closeServer, errorDocument, portOf, reply } from '../lib/json-http.ts'
import type { Log } from '../lib/log.ts'
import { http } from '../lib/node-http.ts'
import { giveToGroup, listenOnUnixSocket } from '../lib/unix-socket.ts'
import { isLoopback, type SocketAddress } from '../model/address.ts'
import type { AdminDocuments } from '../model/admin.ts'
import type { Explanation } from '../model/explanation.ts'
import type { HostFacts } from '../model/facts.ts'

type DocumentMakers = {
  readonly [Name in keyof AdminDocuments]: () => Promise<AdminDocuments[Name]>
}

/** The documents of the API. Each call makes a new document; if a call throws, the answer is status 500. */
export interface AdminView extends DocumentMakers {
  /** `/v1/snapshot` */
  readonly snapshot: () => Promise<HostFacts>
  /** `query` is the part of the URL after the question mark, `from=web&to=db` or `connection=0-17`. */
  readonly explain: (query: string) => Promise<Explanation>
  /** Prometheus text, format 0.0.4. */
  readonly metrics: () => Promise<string>
}

/** Where `/metrics` is served. */
export interface MetricsPort extends SocketAddress {
  /** Opens the socket; the server then owns the descriptor. Without it the server binds a socket itself. */
  readonly open?: () => number
}

/** Options of the server. */
export interface AdminServerOptions {
  readonly socketPath: string
  /** Name or number of the group that may use the socket; the group of the process if undefined. */
  readonly group?: string | undefined
  /** Where to serve `/metrics`, and nothing else, over TCP; port 0 takes any free port. */
  readonly metrics?: MetricsPort | undefined
  readonly view: AdminView
  readonly log: Log
  /** Timeouts of the view, and of a reader that fetches an answer; for tests. */
  readonly deadlinesMs?: { readonly view: number; readonly reader: number } | undefined
}

/** A running admin API. */
export interface AdminServer extends AsyncDisposable {
  /** The TCP address of `/metrics`; undefined when it is not served over TCP. */
  readonly metricsAddress: SocketAddress | undefined
  /** Stops listening, closes open connections, removes the socket file. */
  close(): Promise<void>
}

/** Maximum connections of each listener; beyond it the connection with the oldest last request is closed. */
const MAX_CONNECTIONS = 64

/** Maximum size of a request line and its headers; curl sends 100 bytes. */
const MAX_HEADER_BYTES = 8_192

/** Maximum bytes of answers that are made but not yet fetched, for all readers; beyond it the API answers 503. */
const MAX_UNFETCHED_BYTES = 64 * 1_024 * 1_024

const DEADLINES_MS = { view: 10_000, reader: 30_000 } as const

const STATUS_BY_CODE: Readonly<Record<string, number>> = {
  HM_ADMIN_PATH_NOT_FOUND: 404,
  HM_ADMIN_METHOD_REFUSED: 405,
  HM_ADMIN_BODY_REFUSED: 400,
  HM_USAGE_DESTINATION: 400,
  HM_USAGE_QUESTION: 400,
  HM_CONNECTION_NOT_FOUND: 404,
  HM_ADMIN_BUSY: 503,
  HM_ADMIN_VIEW_TIMEOUT: 504,
}

const JSON_TYPE = 'application/json; charset=utf-8'
const METRICS_TYPE = 'text/plain; version=0.0.4; charset=utf-8'

/**
 * Starts the admin API.
 * @throws MeshError HM_ADMIN_SOCKET_IN_USE when another daemon answers at that path,
 *   HM_ADMIN_SOCKET_PATH_TAKEN when a file that is not a socket has that path, HM_ADMIN_SOCKET_FAILED when the
 *   socket cannot be made, HM_ADMIN_GROUP_UNKNOWN, HM_ADMIN_GROUP_DENIED, HM_METRICS_LISTEN_FAILED.
 */
export async function startAdminServer(options: AdminServerOptions): Promise<AdminServer> {
  const { socketPath, log } = options
  const gid = options.group === undefined ? undefined : await groupId(options.group)
  await using cleanup = new AsyncDisposableStack()

  const answers = new Answers(options)
  const server = createAdminHttpServer(adminRoutes(options.view), answers)
  const spec = { path: socketPath, mode: 0o660, name: 'admin socket', key: 'admin.socket' }
  await listenOnUnixSocket(server, spec)
  cleanup.defer(() => closeServer(server))
  if (gid !== undefined) await giveToGroup(spec, { gid, group: options.group ?? '' })

  let metricsAddress: SocketAddress | undefined
  if (options.metrics !== undefined) {
    if (!isLoopback(options.metrics.ip)) {
      log.warn('Metrics are served beyond loopback, in plaintext and to anyone', {
        address: options.metrics.ip,
      })
    }
    const metricsServer = createAdminHttpServer(metricsRoutes(options.view), answers)
    metricsAddress = await listenOnTcp(metricsServer, options.metrics)
    cleanup.defer(() => closeServer(metricsServer))
  }

  const owned = cleanup.move()
  const close = (): Promise<void> => owned.disposeAsync()
  return { metricsAddress, close, [Symbol.asyncDispose]: close }
}

interface Route {
  readonly contentType: string
  /** Whether the document depends on the query; otherwise the query is ignored. */
  readonly takesQuery?: boolean
  render(query: string): Promise<string>
}

type Routes = ReadonlyMap<string, Route>

function metricsRoutes(view: AdminView): Routes {
  return new Map([['/metrics', { contentType: METRICS_TYPE, render: () => view.metrics() }]])
}

function adminRoutes(view: AdminView): Routes {
  const json = (makeDocument: (query: string) => Promise<object>): Route => ({
    contentType: JSON_TYPE,
    render: async (query) => `${JSON.stringify(await makeDocument(query))}\n`,
  })
  const { metrics: _, explain, ...documents } = view
  return new Map([
    ...metricsRoutes(view),
    ...Object.entries(documents).map(([name, make]): [string, Route] => [
      `/v1/${name}`,
      json(make),
    ]),
    ['/v1/explain', { ...json(explain), takesQuery: true }],
  ])
}

function createAdminHttpServer(routes: Routes, answers: Answers): Server {
  const connections = new FairConnections<Socket>(MAX_CONNECTIONS)
  const server = http.createServer(
    {
      maxHeaderSize: MAX_HEADER_BYTES,
      headersTimeout: 5_000,
      requestTimeout: 10_000,
      keepAliveTimeout: 5_000,
      connectionsCheckingInterval: 1_000,
      // curl and Prometheus send Host; an HTTP/1.1 request typed by hand may omit it.
      requireHostHeader: false,
    },
    (request, response) => {
      connections.used(request.socket)
      answers.answer(routes, request, response).catch((error: unknown) => {
        answers.log.error('Admin answer failed', { error: describeError(error) })
        response.destroy()
      })
    },
  )
  server.on('connection', (socket) => connections.add(socket))
  return server
}

/** One body, shared by all readers that asked while it was being made. */
interface Body {
  readonly bytes: Buffer
  readers: number
}

/** Makes and sends answers within the bounds in this file's head. */
class Answers {
  readonly log: Log
  private readonly deadlinesMs: { readonly view: number; readonly reader: number }
  private readonly making = new Map<string, Promise<Body>>()
  private unfetchedBytes = 0

  constructor(options: AdminServerOptions) {
    this.log = options.log
    this.deadlinesMs = options.deadlinesMs ?? DEADLINES_MS
  }

  async answer(routes: Routes, request: IncomingMessage, response: ServerResponse): Promise<void> {
    // The body is not read, so the bytes that follow on this connection must not be parsed as a request.
    if (hasBody(request)) response.shouldKeepAlive = false
    try {
      const route = this.admit(routes, request)
      this.send(response, route, await this.make(route, request.url ?? ''))
    } catch (error) {
      this.refuse(response, request, error)
    }
  }

  /** The requested route. */
  private admit(routes: Routes, request: IncomingMessage): Route {
    const route = routes.get((request.url ?? '').split('?', 1)[0] ?? '')
    if (route === undefined)
      throw new MeshError('HM_ADMIN_PATH_NOT_FOUND', 'The admin API has no such path')
    if (request.method !== 'GET')
      throw new MeshError('HM_ADMIN_METHOD_REFUSED', 'The admin API only reads: use the method GET')
    if (hasBody(request))
      throw new MeshError('HM_ADMIN_BODY_REFUSED', 'The admin API takes no request with a body')
    if (this.unfetchedBytes >= MAX_UNFETCHED_BYTES)
      throw new MeshError(
        'HM_ADMIN_BUSY',
        'Cannot answer now: too many answers wait for slow readers',
      )
    return route
  }

  /** The body of a route; concurrent requests share one. */
  private make(route: Route, url: string): Promise<Body> {
    const [path, query] = splitOnce(url, '?')
    const key = route.takesQuery === true ? url : path
    let making = this.making.get(key)
    if (making === undefined) {
      making = this.render(route, query).finally(() => this.making.delete(key))
      this.making.set(key, making)
    }
    return making
  }

  private async render(route: Route, query: string): Promise<Body> {
    const text = await withDeadline(route.render(query), this.deadlinesMs.view)
    return { bytes: Buffer.from(text), readers: 0 }
  }

  private send(response: ServerResponse, route: Route, body: Body): void {
    if (response.destroyed) return
    if (body.readers === 0) this.unfetchedBytes += body.bytes.length
    body.readers += 1
    const timer = setTimeout(() => response.destroy(), this.deadlinesMs.reader)
    timer.unref()
    response.once('close', () => {
      clearTimeout(timer)
      body.readers -= 1
      if (body.readers === 0) this.unfetchedBytes -= body.bytes.length
    })
    reply(response, 200, body.bytes, route.contentType)
  }

  private refuse(response: ServerResponse, request: IncomingMessage, error: unknown): void {
    const code = error instanceof MeshError ? error.code : 'HM_INTERNAL'
    const status = STATUS_BY_CODE[code] ?? 500
    if (status >= 500)
      this.log.warn('Cannot answer an admin request', {
        path: (request.url ?? '').slice(0, 100),
        error: describeError(error),
      })
    if (response.destroyed) return
    if (status === 405) response.setHeader('allow', 'GET')
    if (status === 503) response.setHeader('retry-after', '5')
    // Only MeshError messages are sent: messages of the runtime may quote the input that caused them.
    const message =
      error instanceof MeshError
        ? error.message
        : 'Cannot make this document; the reason is in the log'
    const document = errorDocument(error, message)
    reply(response, status, `${JSON.stringify(document)}\n`, JSON_TYPE)
  }
}

function splitOnce(text: string, at: string): [string, string] {
  const index = text.indexOf(at)
  return index < 0 ? [text, ''] : [text.slice(0, index), text.slice(index + 1)]
}

function hasBody(request: IncomingMessage): boolean {
  return (
    request.headers['transfer-encoding'] !== undefined ||
    Number(request.headers['content-length'] ?? 0) !== 0
  )
}

function withDeadline<T>(promise: Promise<T>, ms: number): Promise<T> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => {
      reject(
        new MeshError(
          'HM_ADMIN_VIEW_TIMEOUT',
          `Cannot answer: the daemon did not collect the document in ${ms} ms`,
        ),
      )
    }, ms)
    timer.unref()
    promise.then(resolve, reject).finally(() => clearTimeout(timer))
  })
}

async function listenOnTcp(server: Server, address: MetricsPort): Promise<SocketAddress> {
  const fd = address.open?.()
  const listening = once(server, 'listening')
  server.listen(fd === undefined ? { host: address.ip, port: address.port } : { fd })
  try {
    await listening
  } catch (error) {
    throw new MeshError(
      'HM_METRICS_LISTEN_FAILED',
      `Cannot serve metrics at ${address.ip} port ${address.port}`,
      { cause: error, hint: 'Set metrics.port to a free port, or leave it out' },
    )
  }
  return { ip: address.ip, port: portOf(server) }
}
