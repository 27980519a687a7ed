/**
 * Decides which names in Consul are services of the mesh: those with an instance that accepts Connect.
 *
 * Each name is queried once, and again when its answer is old, when a service named after it (`<name>-…`, as proxies
 * are) appears, or when another name has its address. A name with an unusable answer keeps its last one, and does not
 * prevent queries about the others.
 */
import type { Clock, Random } from '../../../lib/clock.ts'
import { describeError, errorCode } from '../../../lib/errors.ts'
import { forEachConcurrent } from '../../../lib/for-each-concurrent.ts'
import { type DecodedConnect, decodeConnect } from './decode.ts'
import { type ConsulTransport, requireOk } from './transport.ts'

/** Consul's answer about one name. */
interface NameAnswer extends DecodedConnect {
  readonly askedAtMs: number
  readonly untilMs: number
}

/** What the queries need. */
export interface NameAnswersOptions {
  readonly transport: ConsulTransport
  readonly clock: Clock
  readonly random: Random
  /** Ends all queries. */
  readonly signal: AbortSignal
}

/** Errors of an unusable answer; they concern that name only. */
const UNUSABLE: ReadonlySet<string> = new Set([
  'HM_CONSUL_ANSWER_TOO_LARGE',
  'HM_CONSUL_ANSWER_TOO_DEEP',
  'HM_CONSUL_ANSWER_MALFORMED',
])

/** Most names with unusable answers in a warning. */
const MAX_LISTED = 5

/** How long an answer about a name is valid, milliseconds. */
const ANSWER_MS = 300_000

/** Most queries in flight at once. */
export const CONCURRENCY = 3

/** The answers about all names. */
export class NameAnswers {
  readonly #options: NameAnswersOptions
  readonly #byName = new Map<string, NameAnswer>()
  /** Why the answer about a name cannot be used. */
  readonly #unusable = new Map<string, string>()

  constructor(options: NameAnswersOptions) {
    this.#options = options
  }

  of(name: string): NameAnswer | undefined {
    return this.#byName.get(name)
  }

  /** Queries those of `names` whose answer is old or missing, and any whose address now belongs to another name. */
  async refresh(names: readonly string[]): Promise<void> {
    const { clock, signal } = this.#options
    const nowMs = clock.monotonicMs()
    const due = names.filter((name) => (this.#byName.get(name)?.untilMs ?? 0) <= nowMs)
    await forEachConcurrent(due, CONCURRENCY, signal, (name) => this.#ask(name))
    await forEachConcurrent(this.#outdated(nowMs), CONCURRENCY, signal, (name) => this.#ask(name))
  }

  /** Forgets all names but these. */
  retain(names: ReadonlySet<string>): void {
    for (const answers of [this.#byName, this.#unusable])
      for (const name of answers.keys()) if (!names.has(name)) answers.delete(name)
  }

  /** Makes the next refresh query `name` again. */
  forget(name: string): void {
    this.#byName.delete(name)
  }

  /** Makes the next refresh query all names outside the mesh again. */
  recheckOthers(): void {
    for (const [name, { isMesh }] of this.#byName) if (!isMesh) this.#byName.delete(name)
  }

  /** `web-api-hostmesh` may be the proxy of `web-api` or of `web`: both are queried again. */
  recheckParents(name: string): void {
    for (let dash = name.lastIndexOf('-'); dash > 0; dash = name.lastIndexOf('-', dash - 1)) {
      const parent = name.slice(0, dash)
      if (this.#byName.get(parent)?.isMesh === false) this.#byName.delete(parent)
    }
  }

  /** Keeps what is known of the name. @throws `error` when it does not concern the name alone */
  noteUnusable(name: string, error: unknown): void {
    if (!UNUSABLE.has(errorCode(error))) throw error
    this.#unusable.set(name, describeError(error))
  }

  /** Names with unusable answers, in one sentence. */
  warnings(): readonly string[] {
    if (this.#unusable.size === 0) return []
    const listed = [...this.#unusable].slice(0, MAX_LISTED).map(([name, why]) => `${name} (${why})`)
    const more =
      this.#unusable.size > MAX_LISTED ? ` and ${this.#unusable.size - MAX_LISTED} more` : ''
    return [`Cannot read what Consul has of service ${listed.join(', ')}${more}`]
  }

  async #ask(name: string): Promise<void> {
    const { transport, clock, random, signal } = this.#options
    const path = `/v1/catalog/connect/${encodeURIComponent(name)}?stale`
    const known = this.#byName.get(name)
    let answer: DecodedConnect = known ?? { isMesh: false, virtualIps: [] }
    let askedAtMs = known?.askedAtMs ?? Number.NEGATIVE_INFINITY
    try {
      const { body } = requireOk(await transport.call('GET', path, { signal }), `reading ${path}`)
      answer = decodeConnect(name, body)
      askedAtMs = clock.monotonicMs()
      this.#unusable.delete(name)
    } catch (error) {
      this.noteUnusable(name, error)
    }
    const untilMs = clock.monotonicMs() + ANSWER_MS * (0.8 + 0.4 * random())
    this.#byName.set(name, { ...answer, askedAtMs, untilMs })
  }

  /**
   * Names last queried before `sinceMs` whose address another name has by a newer answer: when a service loses its last
   * proxy, Consul gives its address to the next service.
   */
  #outdated(sinceMs: number): readonly string[] {
    const answers = [...this.#byName]
    const newIps = new Set(
      answers.flatMap(([, { virtualIps, askedAtMs }]) => (askedAtMs >= sinceMs ? virtualIps : [])),
    )
    return answers
      .filter(([, { askedAtMs }]) => askedAtMs < sinceMs)
      .filter(([, { virtualIps }]) => virtualIps.some((ip) => newIps.has(ip)))
      .map(([name]) => name)
  }
}
