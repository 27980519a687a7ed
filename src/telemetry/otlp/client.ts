/**
 * Posts metrics to one OTLP endpoint over HTTP (https://opentelemetry.io/docs/specs/otel/protocol/exporter/).
 *
 * Of an answer only its status, `Retry-After` and the number of rejected points are used. It is short, comes within a
 * deadline, and no redirect is followed.
 */
import type { Agent, IncomingMessage } from 'node:http'
import https from 'node:https'
import { getCACertificates } from 'node:tls'
import { describeError } from '../../lib/errors.ts'
import { readBody } from '../../lib/json-http.ts'
import { member, parseJson } from '../../lib/json-value.ts'
import { http } from '../../lib/node-http.ts'

/** How metrics are encoded. */
export type OtlpProtocol = 'http/protobuf' | 'http/json'

/** What became of a request. */
export type OtlpOutcome =
  | { readonly kind: 'accepted'; readonly rejectedPoints: number }
  /** The same request may succeed, but not before the time in milliseconds that the endpoint asks for. */
  | { readonly kind: 'later'; readonly reason: string; readonly waitMs: number }
  | { readonly kind: 'refused' | 'failed'; readonly reason: string }

/** Where to post. */
export interface OtlpEndpoint {
  readonly url: string
  readonly protocol: OtlpProtocol
  readonly headers: Readonly<Record<string, string>>
  /** From the start of a request to the end of its answer, milliseconds. */
  readonly deadlineMs: number
}

/** How long a connection without requests is kept, milliseconds. */
const KEEP_IDLE_MS = 90_000

/** Longest answer, bytes. */
const MAX_ANSWER_BYTES = 16_384

/** Longest wait that an endpoint may ask for, milliseconds. */
const MAX_WAIT_MS = 300_000

/** The specification names these and no others. */
const RETRYABLE: ReadonlySet<number> = new Set([429, 502, 503, 504])

const CONTENT_TYPES: Readonly<Record<OtlpProtocol, string>> = {
  'http/protobuf': 'application/x-protobuf',
  'http/json': 'application/json',
}

/** The connection to one endpoint. Disposing it ends the connection and the request that is in progress. */
export class OtlpClient implements Disposable {
  readonly #endpoint: OtlpEndpoint
  readonly #url: URL
  readonly #agent: Agent
  readonly #ended = new AbortController()

  constructor(endpoint: OtlpEndpoint) {
    this.#endpoint = endpoint
    this.#url = metricsUrl(endpoint.url)
    const options = { keepAlive: true, maxSockets: 1, timeout: KEEP_IDLE_MS }
    this.#agent =
      this.#url.protocol === 'https:'
        ? new https.Agent({
            ...options,
            ca: [...getCACertificates('default'), ...getCACertificates('system')],
          })
        : new http.Agent(options)
  }

  /** Posts one body, compressed by gzip. Never rejects. `wallMs` is for a `Retry-After` that is a date. */
  async post(body: Buffer, wallMs: number): Promise<OtlpOutcome> {
    try {
      const { status, retryAfter, answer } = await this.#exchange(body)
      if (status >= 200 && status < 300)
        return { kind: 'accepted', rejectedPoints: rejectedPoints(answer, this.#endpoint.protocol) }
      const reason = `it answers with status ${status}`
      if (RETRYABLE.has(status))
        return { kind: 'later', reason, waitMs: waitAskedFor(retryAfter, wallMs) }
      return { kind: 'refused', reason }
    } catch (error) {
      return { kind: 'failed', reason: describeError(error) }
    }
  }

  [Symbol.dispose](): void {
    this.#ended.abort()
    this.#agent.destroy()
  }

  #exchange(body: Buffer): Promise<{
    readonly status: number
    readonly retryAfter: string | undefined
    readonly answer: Buffer
  }> {
    const { protocol, headers, deadlineMs } = this.#endpoint
    const { request: open } = this.#url.protocol === 'https:' ? https : http
    return new Promise((resolve, reject) => {
      const request = open(this.#url, {
        agent: this.#agent,
        method: 'POST',
        signal: AbortSignal.any([AbortSignal.timeout(deadlineMs), this.#ended.signal]),
        headers: {
          ...headers,
          'content-type': CONTENT_TYPES[protocol],
          'content-encoding': 'gzip',
          'content-length': body.length,
        },
      })
      request.on('error', reject)
      request.on('response', (response: IncomingMessage) => {
        readBody(response, MAX_ANSWER_BYTES).then(
          (answer) =>
            resolve({
              status: response.statusCode ?? 0,
              retryAfter: response.headers['retry-after'],
              answer,
            }),
          (thrown: unknown) => {
            request.destroy()
            reject(thrown instanceof Error ? thrown : new Error(String(thrown)))
          },
        )
      })
      request.end(body)
    })
  }
}

/** The URL for metrics of an endpoint for all signals; one that is for metrics stays as it is. */
function metricsUrl(endpoint: string): URL {
  const url = new URL(endpoint)
  if (!url.pathname.endsWith('/v1/metrics'))
    url.pathname = `${url.pathname.replace(/\/$/, '')}/v1/metrics`
  return url
}

function waitAskedFor(retryAfter: string | undefined, wallMs: number): number {
  if (retryAfter === undefined) return 0
  const ms = /^\d+$/.test(retryAfter) ? Number(retryAfter) * 1_000 : Date.parse(retryAfter) - wallMs
  return Number.isNaN(ms) ? 0 : Math.min(Math.max(0, ms), MAX_WAIT_MS)
}

/** ExportMetricsPartialSuccess.rejected_data_points; 0 where the answer has none, or is not understood. */
function rejectedPoints(answer: Buffer, protocol: OtlpProtocol): number {
  const count =
    protocol === 'http/json'
      ? Number(member(member(parseJson(answer), 'partialSuccess'), 'rejectedDataPoints') ?? 0)
      : rejectedInProtobuf(answer)
  return Number.isSafeInteger(count) && count > 0 ? count : 0
}

/** Field 1 (a number) in field 1 (a message), each where the encoders put it: first. */
function rejectedInProtobuf(answer: Buffer): number {
  const VARINT_FIELD_1 = 0x08
  const MESSAGE_FIELD_1 = 0x0a
  if (answer[0] !== MESSAGE_FIELD_1 || answer[2] !== VARINT_FIELD_1) return 0
  let value = 0
  for (let at = 3, weight = 1; at < answer.length && at < 12; at += 1, weight *= 128) {
    const byte = answer[at] ?? 0
    value += (byte % 128) * weight
    if (byte < 128) return value
  }
  return 0
}
