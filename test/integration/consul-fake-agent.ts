/**
 * A Consul agent that says what a test tells it to: for answers that a real one will not give.
 *
 * Speaks HTTP on a real socket. Each path has a script of answers, one a request; when the script has
 * run out, requests hang like a blocking query until the test gives the next answer.
 */
import { once } from 'node:events'
import http from 'node:http'
import https from 'node:https'
import type { AddressInfo } from 'node:net'
import { text } from 'node:stream/consumers'

/** One scripted answer. A function gets the raw response and does as it likes. */
export type FakeAnswer =
  | {
      readonly status?: number
      readonly headers?: Record<string, string>
      /** Sent as it is when text or bytes, else as JSON. */
      readonly body?: unknown
    }
  | ((response: http.ServerResponse) => void)

/** A request that came in. */
export interface SeenRequest {
  readonly method: string
  readonly path: string
  readonly query: URLSearchParams
  readonly headers: http.IncomingHttpHeaders
  readonly body: string
  readonly atMs: number
}

/** The running agent. */
export interface FakeAgent extends AsyncDisposable {
  readonly address: string
  readonly requests: readonly SeenRequest[]
  /** Adds answers to the script of `path` (without its query); hanging requests get them first. */
  answer(path: string, ...answers: readonly FakeAnswer[]): void
  /** Answers requests for `path` with what `act` returns, once its script has run out; undefined hangs. */
  always(path: string, act: (request: SeenRequest) => FakeAnswer | undefined): void
  /** Requests for `path` so far. */
  requestsFor(path: string): readonly SeenRequest[]
}

/** A good answer with an index. */
export function indexed(index: number | string, body: unknown): FakeAnswer {
  return { headers: { 'x-consul-index': String(index) }, body }
}

/** Starts an agent on loopback, on TLS when `tls` is given, on a Unix socket when `socketPath` is. */
export async function startFakeAgent(
  options: { tls?: { key: string; cert: string }; socketPath?: string } = {},
): Promise<FakeAgent> {
  const requests: SeenRequest[] = []
  const scripts = new Map<string, FakeAnswer[]>()
  const standing = new Map<string, (request: SeenRequest) => FakeAnswer | undefined>()
  const hanging = new Map<string, http.ServerResponse[]>()
  const take = async (
    request: http.IncomingMessage,
    response: http.ServerResponse,
  ): Promise<void> => {
    const body = await text(request).catch(() => undefined)
    if (body === undefined) return
    const url = new URL(request.url ?? '/', 'http://agent')
    const seen: SeenRequest = {
      method: request.method ?? '',
      path: url.pathname,
      query: url.searchParams,
      headers: request.headers,
      body,
      atMs: performance.now(),
    }
    requests.push(seen)
    const next = scripts.get(url.pathname)?.shift() ?? standing.get(url.pathname)?.(seen)
    if (next !== undefined) send(response, next)
    else {
      const waiting = hanging.get(url.pathname) ?? []
      hanging.set(url.pathname, [...waiting, response])
      response.on('close', () =>
        hanging.set(
          url.pathname,
          (hanging.get(url.pathname) ?? []).filter((other) => other !== response),
        ),
      )
    }
  }
  const onRequest: http.RequestListener = (request, response) => void take(request, response)
  const server =
    options.tls === undefined
      ? http.createServer(onRequest)
      : https.createServer(options.tls, onRequest)
  if (options.socketPath === undefined) server.listen(0, '127.0.0.1')
  else server.listen(options.socketPath)
  await once(server, 'listening')
  const address =
    options.socketPath === undefined
      ? `${options.tls === undefined ? 'http' : 'https'}://127.0.0.1:${(server.address() as AddressInfo).port}`
      : `unix://${options.socketPath}`
  return {
    address,
    requests,
    answer(path, ...answers) {
      for (const answer of answers) {
        const waiting = hanging.get(path)?.shift()
        if (waiting === undefined) scripts.set(path, [...(scripts.get(path) ?? []), answer])
        else send(waiting, answer)
      }
    },
    always: (path, act) => standing.set(path, act),
    requestsFor: (path) => requests.filter((request) => request.path === path),
    async [Symbol.asyncDispose]() {
      server.close()
      server.closeAllConnections()
      await once(server, 'close')
    },
  }
}

/** Waits until `look` returns something, at most `deadlineMs`. */
export async function eventually<T>(
  what: string,
  look: () => T | undefined | false,
  deadlineMs = 10_000,
): Promise<T> {
  const untilMs = performance.now() + deadlineMs
  for (;;) {
    const found = look()
    if (found !== undefined && found !== false) return found
    if (performance.now() > untilMs) throw new Error(`Not within ${deadlineMs} ms: ${what}`)
    await new Promise((resolve) => setTimeout(resolve, 10))
  }
}

function send(response: http.ServerResponse, answer: FakeAnswer): void {
  if (typeof answer === 'function') {
    answer(response)
    return
  }
  const { status = 200, headers = {}, body } = answer
  response.writeHead(status, { 'content-type': 'application/json', ...headers })
  if (body === undefined) response.end()
  else if (typeof body === 'string' || body instanceof Uint8Array) response.end(body)
  else response.end(JSON.stringify(body))
}
