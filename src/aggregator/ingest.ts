/**
 * Where reports of hosts arrive (docs/observability.md#reports). Through the mesh, so that whoever reaches it has been
 * allowed to; what a report says is checked all the same, bounded in size, number and rate, and answered with nothing but
 * a number.
 */
import type { IncomingMessage, Server, ServerResponse } from 'node:http'
import type { Socket } from 'node:net'
import type { Clock } from '../lib/clock.ts'
import { describeError, MeshError } from '../lib/errors.ts'
import { FairConnections } from '../lib/fair-connections.ts'
import { BodyTooLong, errorDocument, replyJson } from '../lib/json-http.ts'
import { parseJson } from '../lib/json-value.ts'
import type { Log } from '../lib/log.ts'
import { http } from '../lib/node-http.ts'
import { type Rate, RateLimiter } from '../lib/rate-limit.ts'
import { callerAt } from '../model/caller-address.ts'
import { type HostReport, REPORT_PATH, type ReportAnswer, reportLimits } from '../model/report.ts'
import type { FleetStore } from './fleet-store.ts'
import type { AggregatorCounters, ReportOutcome } from './metrics.ts'

/** Limits of the listener; tests make them smaller. */
export interface IngestLimits {
  readonly connections: number
  /** Bytes of bodies that are being read or stored, all together. */
  readonly bytes: number
  /** Reports that are being stored. */
  readonly reports: number
  /** Reports from one address. The local daemon delivers those of all hosts. */
  readonly perAddress: Rate
  /** Reports of one host with its key: one a second, more after an absence. */
  readonly perHost: Rate
  /** Reports with the name of another host. */
  readonly conflicts: Rate
}

/** What the listener needs. */
export interface IngestOptions {
  readonly store: Pick<FleetStore, 'accept'>
  /** The report, if the value is one. @throws MeshError that says what is wrong with it */
  readonly checkReport: (value: unknown) => HostReport
  readonly counters: AggregatorCounters
  readonly clock: Clock
  readonly log: Log
  readonly limits?: Partial<IngestLimits> | undefined
}

const LIMITS: IngestLimits = {
  connections: 4_096,
  bytes: 128 * 1_024 * 1_024,
  reports: 1_024,
  perAddress: { burst: 20_000, perSecond: 5_000 },
  perHost: { burst: 40, perSecond: 4 },
  conflicts: { burst: 10, perSecond: 0.2 },
}

/** Hosts whose key is remembered, to know who uses the name of another. */
const MAX_KEYS = 20_000

const STATUS_BY_OUTCOME: Readonly<Record<ReportOutcome, number>> = {
  accepted: 200,
  invalid: 400,
  conflict: 409,
  rate_limited: 429,
  busy: 503,
  store_failed: 503,
}

/** A server for reports. The caller makes it listen, and closes it. */
export function createIngestServer(options: IngestOptions): Server {
  const limits = { ...LIMITS, ...options.limits }
  const ingest = new Ingest(options, limits)
  const connections = new FairConnections<Socket>(limits.connections, ({ remoteAddress }) =>
    callerAt(remoteAddress),
  )
  const server = http.createServer(
    {
      maxHeaderSize: 8_192,
      headersTimeout: 5_000,
      requestTimeout: 15_000,
      keepAliveTimeout: 60_000,
      connectionsCheckingInterval: 1_000,
    },
    (request, response) => {
      connections.used(request.socket)
      response.on('error', () => response.destroy())
      ingest.serve(request, response).catch((error: unknown) => {
        options.log.error('Answer to a report failed', { error: describeError(error) })
        response.destroy()
      })
    },
  )
  server.on('connection', (socket: Socket) => connections.add(socket))
  return server
}

/** A body that is in memory. */
interface HeldBody {
  readonly request: IncomingMessage
  bytes: number
  /** Whether it is complete. */
  isRead: boolean
}

/** Why a report was not taken. */
class Refusal extends MeshError {
  readonly outcome: ReportOutcome
  readonly status: number

  constructor(outcome: ReportOutcome, message: string, status = STATUS_BY_OUTCOME[outcome]) {
    super('HM_REPORT_REFUSED', message)
    this.outcome = outcome
    this.status = status
  }
}

class Ingest {
  readonly #options: IngestOptions
  readonly #limits: IngestLimits
  readonly #perAddress: RateLimiter
  readonly #perHost: RateLimiter
  readonly #conflicts: RateLimiter
  /** The key with which a host was accepted last. */
  readonly #keys = new Map<string, string>()
  readonly #bodies = new Set<HeldBody>()
  #bytes = 0
  #reports = 0

  constructor(options: IngestOptions, limits: IngestLimits) {
    this.#options = options
    this.#limits = limits
    this.#perAddress = new RateLimiter(limits.perAddress)
    this.#perHost = new RateLimiter(limits.perHost)
    this.#conflicts = new RateLimiter(limits.conflicts)
  }

  async serve(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const body: HeldBody = { request, bytes: 0, isRead: false }
    try {
      this.#admit(request)
      this.#bodies.add(body)
      const answer = await this.#take(await this.#read(body))
      this.#options.counters.report('accepted')
      replyJson(response, 200, answer)
    } catch (error) {
      this.#refuse(response, error)
    } finally {
      this.#release(body)
    }
  }

  #admit({ url, method, headers, socket }: IncomingMessage): void {
    if (url !== REPORT_PATH) throw new Refusal('invalid', 'There is no such path', 404)
    if (method !== 'POST') throw new Refusal('invalid', 'Reports are posted', 405)
    if (!/^application\/json\b/i.test(headers['content-type'] ?? ''))
      throw new Refusal('invalid', 'The content type must be application/json', 415)
    // Hosts send none; a browser does, and a page that it shows must not report.
    if (headers.origin !== undefined) throw new Refusal('invalid', 'This is not for browsers', 403)
    if (!this.#perAddress.take(callerAt(socket.remoteAddress), this.#nowMs()))
      throw new Refusal('rate_limited', 'Too many reports from this address')
    this.#shed()
    if (this.#reports >= this.#limits.reports || this.#bytes >= this.#limits.bytes)
      throw new Refusal('busy', 'Too many reports are being stored')
  }

  /** Breaks off the largest bodies that are not complete: who sends slowly must not keep the others out. */
  #shed(): void {
    while (this.#bytes >= this.#limits.bytes) {
      let largest: HeldBody | undefined
      for (const body of this.#bodies)
        if (!body.isRead && body.bytes > (largest?.bytes ?? 0)) largest = body
      if (largest === undefined) return
      this.#release(largest)
      largest.request.destroy()
    }
  }

  #release(body: HeldBody): void {
    if (this.#bodies.delete(body)) this.#bytes -= body.bytes
  }

  async #read(body: HeldBody): Promise<unknown> {
    const chunks: Buffer[] = []
    try {
      for await (const chunk of body.request) {
        const bytes: Buffer = chunk
        if (!this.#bodies.has(body)) break
        body.bytes += bytes.length
        this.#bytes += bytes.length
        if (body.bytes > reportLimits.bytes) throw new BodyTooLong(reportLimits.bytes)
        chunks.push(bytes)
      }
      body.isRead = true
    } catch (error) {
      if (!(error instanceof BodyTooLong)) throw new Refusal('invalid', 'The report broke off')
      throw new Refusal('invalid', `A report has at most ${reportLimits.bytes} bytes`, 413)
    }
    const value = parseJson(Buffer.concat(chunks))
    if (value === undefined) throw new Refusal('invalid', 'The report is not JSON')
    return value
  }

  async #take(value: unknown): Promise<ReportAnswer> {
    const report = this.#check(value)
    const { host, key } = report
    if (!this.#perHost.take(`${host}\n${key}`, this.#nowMs()))
      throw new Refusal('rate_limited', 'Too many reports of this host')
    const known = this.#keys.get(host)
    if (known !== undefined && known !== key && !this.#conflicts.take(host, this.#nowMs()))
      throw new Refusal('conflict', 'Another host has this name')
    this.#reports += 1
    try {
      const receivedAtMs = this.#options.clock.wallMs()
      const taken = await this.#options.store.accept(report, receivedAtMs)
      if (taken.kind === 'conflict') throw new Refusal('conflict', 'Another host has this name')
      this.#remember(host, key)
      return { accepted: taken.accepted }
    } finally {
      this.#reports -= 1
    }
  }

  #check(value: unknown): HostReport {
    try {
      return this.#options.checkReport(value)
    } catch (error) {
      throw new Refusal(
        'invalid',
        error instanceof MeshError ? error.message : 'The report is malformed',
      )
    }
  }

  #remember(host: string, key: string): void {
    this.#keys.delete(host)
    this.#keys.set(host, key)
    const [oldest] = this.#keys.keys()
    if (this.#keys.size > MAX_KEYS && oldest !== undefined) this.#keys.delete(oldest)
  }

  #refuse(response: ServerResponse, error: unknown): void {
    const refusal =
      error instanceof Refusal
        ? error
        : new Refusal('store_failed', 'The report could not be stored; send it again')
    const { outcome, status, message } = refusal
    if (refusal !== error)
      this.#options.log.warn('Cannot store a report', { error: describeError(error) })
    this.#options.counters.report(outcome)
    if (response.destroyed) return
    if (status === 429 || status === 503) response.setHeader('retry-after', '2')
    if (status === 405) response.setHeader('allow', 'POST')
    // The rest of what the peer sends on this connection may not be a request.
    if (status !== 409 && status !== 429) response.shouldKeepAlive = false
    replyJson(response, status, errorDocument(refusal, message))
  }

  #nowMs(): number {
    return this.#options.clock.monotonicMs()
  }
}
