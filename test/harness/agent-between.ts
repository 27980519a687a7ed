/**
 * An agent that is not quite right: it stands between a daemon and a real Consul agent, passes everything on,
 * and answers otherwise where a test tells it to. For what a real agent will not do on demand.
 *
 * It listens on a unix socket, which daemons in any network namespace reach.
 */
import { once } from 'node:events'
import { createServer, type IncomingHttpHeaders, request, type ServerResponse } from 'node:http'

/** What is said in place of the real answer, or made of it. */
export interface Tampering {
  readonly status?: number
  readonly headers?: Readonly<Record<string, string>>
  readonly body: string | Uint8Array
}

/** A request as it came in. */
export interface PassedRequest {
  readonly method: string
  /** Without its query. */
  readonly path: string
  readonly query: URLSearchParams
  readonly atMs: number
}

/** What a test may do with a request. */
export interface Tamperer {
  /** Answers in place of the agent; undefined lets it through. */
  answer?(asked: PassedRequest): Tampering | undefined
  /** Which real agent is asked; the first one unless it says otherwise. Its unix socket. */
  target?(asked: PassedRequest): string | undefined
  /** Changes the query on its way to the agent. */
  query?(asked: PassedRequest): URLSearchParams
  /** Changes the headers of the real answer. */
  headers?(asked: PassedRequest, headers: IncomingHttpHeaders): IncomingHttpHeaders
}

/** The agent between. */
export interface AgentBetween extends AsyncDisposable {
  /** For `catalog.address`, or CONSUL_HTTP_ADDR. */
  readonly address: string
  readonly requests: readonly PassedRequest[]
  /** From now on. An empty one passes all on. Requests that wait at the agent are cut off when asked to. */
  tamper(tamperer: Tamperer, options?: { readonly cutWaiting?: boolean }): void
}

/** Starts it on `socketPath` in front of the agent that listens on `agentSocket`. */
export async function startAgentBetween(
  socketPath: string,
  agentSocket: string,
): Promise<AgentBetween> {
  const requests: PassedRequest[] = []
  const waiting = new Set<ServerResponse>()
  let tamperer: Tamperer = {}
  const server = createServer((incoming, outgoing) => {
    const url = new URL(incoming.url ?? '/', 'http://agent')
    const asked: PassedRequest = {
      method: incoming.method ?? 'GET',
      path: url.pathname,
      query: url.searchParams,
      atMs: performance.now(),
    }
    requests.push(asked)
    const told = tamperer.answer?.(asked)
    if (told !== undefined) {
      incoming.resume()
      outgoing.writeHead(told.status ?? 200, {
        'content-type': 'application/json',
        'x-consul-index': '7',
        ...told.headers,
      })
      outgoing.end(told.body)
      return
    }
    const query = (tamperer.query?.(asked) ?? asked.query).toString()
    const passed = request(
      {
        socketPath: tamperer.target?.(asked) ?? agentSocket,
        method: asked.method,
        path: query === '' ? asked.path : `${asked.path}?${query}`,
        headers: incoming.headers,
        agent: false,
      },
      (answer) => {
        const headers = tamperer.headers?.(asked, answer.headers) ?? answer.headers
        outgoing.writeHead(answer.statusCode ?? 500, headers)
        answer.pipe(outgoing)
        answer.on('error', () => outgoing.destroy())
      },
    )
    waiting.add(outgoing)
    outgoing.on('close', () => {
      waiting.delete(outgoing)
      passed.destroy()
    })
    passed.on('error', () => outgoing.destroy())
    incoming.pipe(passed)
  })
  server.listen(socketPath)
  await once(server, 'listening')
  return {
    address: `unix://${socketPath}`,
    requests,
    tamper(next, { cutWaiting = false } = {}) {
      tamperer = next
      if (cutWaiting) for (const response of waiting) response.destroy()
    },
    async [Symbol.asyncDispose]() {
      server.close()
      server.closeAllConnections()
      await once(server, 'close')
    },
  }
}
