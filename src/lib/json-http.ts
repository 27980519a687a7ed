/**
 * JSON over HTTP for clients and servers: bodies are read completely and up to a limit, failures are documents
 * `{"error": {"code", "message", "hint"}}`.
 */
import { once } from 'node:events'
import type { ClientRequest, IncomingMessage, RequestOptions, ServerResponse } from 'node:http'
import type { Server, Socket } from 'node:net'
import { type ErrorCode, isErrorCode, MeshError } from './errors.ts'
import { member, parseJson } from './json-value.ts'

/** A server's response. */
export interface JsonAnswer {
  readonly status: number
  /** Undefined when the response is not JSON. */
  readonly body: unknown
}

/** A failure as a JSON document. */
export interface ErrorDocument {
  readonly error: { readonly code: ErrorCode; readonly message: string; readonly hint?: string }
}

/** A body is longer than the reader allows. */
export class BodyTooLong extends Error {
  constructor(maxBytes: number) {
    super(`The body is longer than ${maxBytes} bytes`)
  }
}

/** Reads a whole body. @throws BodyTooLong, and what the stream throws */
export async function readBody(message: AsyncIterable<Buffer>, maxBytes: number): Promise<Buffer> {
  const chunks: Buffer[] = []
  let length = 0
  for await (const chunk of message) {
    length += chunk.length
    if (length > maxBytes) throw new BodyTooLong(maxBytes)
    chunks.push(chunk)
  }
  return Buffer.concat(chunks)
}

/**
 * Makes a request by `open` and reads the response: POST with `body` as JSON if there is one, else GET.
 * @throws BodyTooLong, and what node:http throws
 */
export async function callJson(
  open: (options: RequestOptions) => ClientRequest,
  options: RequestOptions,
  limits: CallOptions,
): Promise<JsonAnswer> {
  const { status, bytes } = await callHttp(open, options, limits)
  return { status, body: parseJson(bytes) }
}

/** What a request has beside Node's options. */
export interface CallOptions {
  /** Sent as JSON. */
  readonly body?: unknown
  /** Of the response. */
  readonly maxBytes: number
  readonly headers?: Readonly<Record<string, string>>
}

/** The same for a response of any type. @throws BodyTooLong, and what node:http throws */
export function callHttp(
  open: (options: RequestOptions) => ClientRequest,
  options: RequestOptions,
  { body, maxBytes, headers = {} }: CallOptions,
): Promise<{ readonly status: number; readonly bytes: Buffer }> {
  const payload = body === undefined ? undefined : Buffer.from(JSON.stringify(body))
  return new Promise((resolve, reject) => {
    const request = open({
      ...options,
      method: payload === undefined ? 'GET' : 'POST',
      headers: {
        accept: 'application/json',
        ...headers,
        ...(payload !== undefined && {
          'content-type': 'application/json',
          'content-length': payload.length,
        }),
      },
    })
    request.on('error', reject)
    // Node reports neither error nor response where a peer switches protocols that nobody asked it to.
    const noResponse = (): void => reject(new Error('The connection closed without a response'))
    request.on('close', noResponse)
    request.on('response', (response: IncomingMessage) => {
      request.off('close', noResponse)
      readBody(response, maxBytes).then(
        (bytes) => resolve({ status: response.statusCode ?? 0, bytes }),
        (thrown: unknown) => {
          request.destroy()
          reject(thrown instanceof Error ? thrown : new Error(String(thrown)))
        },
      )
    })
    request.end(payload)
  })
}

/** The fields of an {@link ErrorDocument}; undefined where `body` lacks them. */
export function readError(body: unknown): {
  readonly code: ErrorCode | undefined
  readonly message: string | undefined
  readonly hint: string | undefined
} {
  const error = member(body, 'error')
  const text = (key: string): string | undefined => {
    const value = member(error, key)
    return typeof value === 'string' ? value : undefined
  }
  const code = text('code')
  return {
    code: isErrorCode(code) ? code : undefined,
    message: text('message'),
    hint: text('hint'),
  }
}

/** The error document of a failure, with this message. */
export function errorDocument(thrown: unknown, message: string): ErrorDocument {
  if (!(thrown instanceof MeshError)) return { error: { code: 'HM_INTERNAL', message } }
  const { code, hint } = thrown
  return { error: { code, message, ...(hint !== undefined && { hint }) } }
}

/** Responds with `text`. */
export function reply(
  response: ServerResponse,
  status: number,
  text: string | Buffer,
  contentType = 'application/json',
): void {
  if (response.destroyed) return
  response.writeHead(status, {
    'content-type': contentType,
    'content-length': Buffer.byteLength(text),
    'cache-control': 'no-store',
  })
  // Text goes out with the head in one buffer.
  response.end(text)
}

/** Responds with a JSON document. */
export function replyJson(response: ServerResponse, status: number, document: unknown): void {
  reply(response, status, `${JSON.stringify(document)}\n`)
}

/** The TCP port at which a server listens. */
export function portOf(server: Server): number {
  const bound = server.address()
  return typeof bound === 'object' && bound !== null ? bound.port : 0
}

/** Stops listening, and ends all connections. Node removes the file of a unix socket itself. */
export async function closeServer(
  server: Server & { readonly closeAllConnections: () => void },
): Promise<void> {
  const closed = once(server, 'close')
  // closeAllConnections() does not include connections in their TLS handshake, which would stay open.
  server.on('secureConnection', (socket: Socket) => socket.destroy())
  server.close()
  server.closeAllConnections()
  await closed
}
