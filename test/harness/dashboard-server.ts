/**
 * Serves the dashboard as the aggregator does, with documents of a fleet that does not exist, and fails on demand.
 */
import { readFile } from 'node:fs/promises'
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { extname, join, normalize } from 'node:path'

import type { FleetDocuments, LiveEvent } from '../../src/model/fleet.ts'
import type { Answers } from './fleet-documents.ts'

/** What is served; may be changed at any time. */
export interface Served {
  answers: Answers
  live: () => LiveEvent | undefined
  /** A status for all documents, in place of them. */
  failWith?: number
  /** No answer to anything but files. */
  isUnreachable?: boolean
  liveEveryMs?: number
}

const types: Readonly<Record<string, string>> = {
  '.html': 'text/html; charset=utf-8',
  '.js': 'text/javascript; charset=utf-8',
  '.css': 'text/css; charset=utf-8',
  '.svg': 'image/svg+xml',
  '.map': 'application/json',
}

/** As strict as the aggregator's: nothing inline, nothing from elsewhere. */
const contentSecurityPolicy =
  "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

/** A server on a port of its own. */
export class DashboardServer implements AsyncDisposable {
  readonly #folder: string
  readonly #server: Server
  readonly #streams = new Set<ServerResponse>()
  readonly served: Served
  /** Paths of the API that were asked for. */
  readonly asked: string[] = []
  /** Of the last question to the API. */
  lastAuthorization: string | undefined

  private constructor(folder: string, served: Served) {
    this.#folder = folder
    this.served = served
    this.#server = createServer((request, response) => void this.#answer(request, response))
  }

  static async start(folder: string, served: Served): Promise<DashboardServer> {
    const server = new DashboardServer(folder, served)
    await new Promise<void>((resolve) => server.#server.listen(0, '127.0.0.1', resolve))
    return server
  }

  get url(): string {
    return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}/`
  }

  /** Ends all live streams. */
  cutStreams(): void {
    for (const stream of this.#streams) stream.destroy()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#server.closeAllConnections()
    await new Promise((resolve) => this.#server.close(resolve))
  }

  async #answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const url = new URL(request.url ?? '/', this.url)
    response.setHeader('content-security-policy', contentSecurityPolicy)
    response.setHeader('x-content-type-options', 'nosniff')
    if (!url.pathname.startsWith('/api/v1/')) return this.#file(url.pathname, response)
    this.lastAuthorization = request.headers.authorization
    this.asked.push(`${url.pathname}${url.search}`)
    if (this.served.isUnreachable === true) return void response.destroy()
    if (this.served.failWith !== undefined) return fail(response, this.served.failWith)
    const name = url.pathname.slice('/api/v1/'.length)
    if (name === 'live') return this.#stream(response)
    if (!(name in this.served.answers)) return fail(response, 404)
    const document = this.served.answers[name as keyof FleetDocuments](url.searchParams)
    if (document === undefined) return fail(response, 404)
    response.setHeader('content-type', 'application/json')
    response.end(JSON.stringify(document))
  }

  async #file(path: string, response: ServerResponse): Promise<void> {
    const name = normalize(path === '/' ? '/index.html' : path)
    try {
      const content = await readFile(join(this.#folder, name))
      response.setHeader('content-type', types[extname(name)] ?? 'application/octet-stream')
      response.end(content)
    } catch {
      fail(response, 404)
    }
  }

  #stream(response: ServerResponse): void {
    response.setHeader('content-type', 'text/event-stream')
    response.flushHeaders()
    this.#streams.add(response)
    const send = (): void => {
      const event = this.served.live()
      if (event !== undefined && this.served.isUnreachable !== true)
        response.write(`data: ${JSON.stringify(event)}\n\n`)
    }
    send()
    const timer = setInterval(send, this.served.liveEveryMs ?? 1_000)
    response.once('close', () => {
      clearInterval(timer)
      this.#streams.delete(response)
    })
  }
}

function fail(response: ServerResponse, status: number): void {
  response.statusCode = status
  response.setHeader('content-type', 'application/json')
  const error = {
    code: 'HM_TEST_FAILURE',
    message: `The aggregator was told to fail with ${status}`,
    hint: 'Tell it otherwise',
  }
  response.end(JSON.stringify({ error }))
}
