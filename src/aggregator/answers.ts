/**
 * Answers that are made once for all who ask the same within a second, and sent within bounds: of memory for what is not
 * fetched yet, of documents that are made at the same time, and of time.
 */
import type { IncomingMessage, ServerResponse } from 'node:http'
import { promisify } from 'node:util'
import { gzip } from 'node:zlib'
import type { Clock } from '../lib/clock.ts'
import { MeshError } from '../lib/errors.ts'

/** How long an answer is given again. */
const FRESH_MS = 1_000

/** Most answers that are remembered; each is only fresh for a second. */
const MAX_ANSWERS = 256

/** Most documents that are made at the same time. */
const MAX_MAKING = 16

/** Most bytes of answers that are made and not fetched, for all readers. */
const MAX_UNFETCHED_BYTES = 128 * 1_024 * 1_024

/** From here on an answer is compressed. */
const MIN_GZIP_BYTES = 4_096

/** For making a document, and for fetching it. */
const DEADLINES_MS = { make: 10_000, reader: 30_000 } as const

const compress = promisify(gzip)

/** An answer's bytes. */
export interface Body {
  readonly contentType: string
  readonly bytes: Buffer
  /** Made when somebody asks for it first. */
  gzip?: Promise<Buffer>
}

interface Entry {
  readonly body: Promise<Body>
  /** Undefined while it is made. */
  madeAtMs: number | undefined
}

/** Makes and sends answers. */
export class Answers {
  readonly #clock: Clock
  readonly #entries = new Map<string, Entry>()
  #making = 0
  #unfetchedBytes = 0

  constructor(clock: Clock) {
    this.#clock = clock
  }

  /**
   * The answer to a question: one that is fresh, one that is being made, or a new one.
   * @throws MeshError HM_API_BUSY, HM_API_TIMEOUT, and what `make` throws
   */
  async get(
    key: string,
    contentType: string,
    make: (signal: AbortSignal) => Promise<string>,
  ): Promise<Body> {
    const known = this.#entries.get(key)
    if (known !== undefined && this.#isFresh(known)) return known.body
    if (this.#making >= MAX_MAKING)
      throw new MeshError('HM_API_BUSY', 'Cannot answer now: too many documents are being made')
    const entry: Entry = { body: this.#make(contentType, make), madeAtMs: undefined }
    this.#entries.delete(key)
    this.#entries.set(key, entry)
    this.#forget()
    try {
      const body = await entry.body
      entry.madeAtMs = this.#clock.monotonicMs()
      return body
    } catch (error) {
      if (this.#entries.get(key) === entry) this.#entries.delete(key)
      throw error
    }
  }

  /** Sends an answer, compressed where the reader can and it is worth it. @throws MeshError HM_API_BUSY */
  async send(request: IncomingMessage, response: ServerResponse, body: Body): Promise<void> {
    const isCompressed = body.bytes.length >= MIN_GZIP_BYTES && acceptsGzip(request)
    if (isCompressed) body.gzip ??= compress(body.bytes, { level: 1 })
    const bytes = isCompressed ? ((await body.gzip) ?? body.bytes) : body.bytes
    if (response.destroyed) return
    if (this.#unfetchedBytes + bytes.length > MAX_UNFETCHED_BYTES)
      throw new MeshError('HM_API_BUSY', 'Cannot answer now: too many answers wait for readers')
    this.#unfetchedBytes += bytes.length
    const timer = setTimeout(() => response.destroy(), DEADLINES_MS.reader).unref()
    response.once('close', () => {
      clearTimeout(timer)
      this.#unfetchedBytes -= bytes.length
    })
    response.writeHead(200, {
      'content-type': body.contentType,
      'content-length': bytes.length,
      'cache-control': 'no-store',
      vary: 'accept-encoding',
      ...(isCompressed && { 'content-encoding': 'gzip' }),
    })
    response.end(bytes)
  }

  #isFresh({ madeAtMs }: Entry): boolean {
    return madeAtMs === undefined || this.#clock.monotonicMs() - madeAtMs < FRESH_MS
  }

  async #make(contentType: string, make: (signal: AbortSignal) => Promise<string>): Promise<Body> {
    this.#making += 1
    const over = new AbortController()
    let timer: NodeJS.Timeout | undefined
    const deadline = new Promise<never>((_, reject) => {
      timer = setTimeout(() => {
        over.abort()
        reject(
          new MeshError(
            'HM_API_TIMEOUT',
            `Cannot answer: the document was not made in ${DEADLINES_MS.make} ms`,
            { hint: 'Ask for a shorter span, longer steps, or one service' },
          ),
        )
      }, DEADLINES_MS.make).unref()
    })
    try {
      const text = await Promise.race([make(over.signal), deadline])
      return { contentType, bytes: Buffer.from(text) }
    } finally {
      clearTimeout(timer)
      this.#making -= 1
    }
  }

  /** Forgets what is not fresh any more, then the oldest. */
  #forget(): void {
    for (const [key, entry] of this.#entries)
      if (!this.#isFresh(entry) || this.#entries.size > MAX_ANSWERS) this.#entries.delete(key)
  }
}

/** Whether a reader takes gzip; `gzip;q=0` says no. */
export function acceptsGzip({ headers }: IncomingMessage): boolean {
  const accepted = headers['accept-encoding']
  if (typeof accepted !== 'string') return false
  return accepted.split(',').some((one) => /^\s*gzip\s*(;\s*q=(?!0(\.0*)?\s*$).*)?$/i.test(one))
}
