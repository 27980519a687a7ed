/**
 * Queries Consul every few seconds for its own servers: a small answer that shows what long polls do not.
 *
 * A waiting long poll does not notice that its token was deleted, or that the servers lost their leader; and a token
 * without rights receives empty lists, not errors. Consul's servers are in every catalog under the name `consul`, so
 * an answer without them has a reason, which is reported here. When a problem is over, everything is queried again: no
 * long poll notices that it may read more now.
 */
import { type Clock, type Random, systemClock, systemRandom } from '../../../lib/clock.ts'
import { describeError, errorCode } from '../../../lib/errors.ts'
import type { Log } from '../../../lib/log.ts'
import { WakeableLoop } from '../../../lib/wakeable-loop.ts'
import { decodeServiceNames, NAME_LEVELS } from './decode.ts'
import { NODE_RULE, SERVICES_RULE } from './rights.ts'
import { type ConsulAnswer, type ConsulTransport, NEW_TOKEN, requireOk } from './transport.ts'

/** What the check is built from. */
export interface ServerCheckOptions {
  readonly transport: ConsulTransport
  /** Whether the host needs to see all services, so that a policy which hides some is a mistake. */
  readonly wantsAll: () => boolean
  /** Called when a problem is over. */
  readonly onRecovered: () => void
  readonly log: Log
  readonly clock?: Clock
  readonly random?: Random
}

/** A deleted token must be noticed within 10 s. Milliseconds, at most. */
const EVERY_MS = 7_000

/** Servers hear from their leader many times a second; an election takes a few seconds. */
const LEADERLESS_MS = 5_000

const SERVERS_PATH = '/v1/catalog/service/consul?stale'

/** Queries at once and then until it is disposed. The caller keeps ownership of the transport. */
export class ServerCheck implements Disposable {
  readonly #options: ServerCheckOptions
  readonly #clock: Clock
  readonly #random: Random
  readonly #closing = new AbortController()
  readonly #stopListening: () => void
  #problem: string | undefined
  #lastContact: { readonly ms: number; readonly atMs: number } | undefined

  constructor(options: ServerCheckOptions) {
    this.#options = options
    this.#clock = options.clock ?? systemClock
    this.#random = options.random ?? systemRandom
    const loop = new WakeableLoop({
      clock: this.#clock,
      signal: this.#closing.signal,
      pass: () => this.#check(),
    })
    this.#stopListening = options.transport.onTokenChange(() => loop.wake())
  }

  /** What is wrong now, one sentence; undefined when nothing is. */
  problem(): string | undefined {
    return this.#problem
  }

  /** Time since the answering server last heard from its leader, milliseconds; undefined when not known. */
  lastContactMs(): number | undefined {
    if (this.#lastContact === undefined) return undefined
    const { ms, atMs } = this.#lastContact
    return ms + Math.round(this.#clock.monotonicMs() - atMs)
  }

  [Symbol.dispose](): void {
    this.#stopListening()
    this.#closing.abort()
  }

  async #check(): Promise<number> {
    const { transport, wantsAll } = this.#options
    const { signal } = this.#closing
    try {
      const answer = await transport.call('GET', SERVERS_PATH, { signal })
      if (answer.lastContactMs !== undefined)
        this.#lastContact = { ms: answer.lastContactMs, atMs: this.#clock.monotonicMs() }
      this.#note(await this.#judge(answer))
    } catch (error) {
      // No answer, or a bad one: the watches report that themselves.
      if (errorCode(error) === 'HM_CONSUL_FORBIDDEN' && !signal.aborted) {
        // Newer versions of Consul refuse where 1.8 returns an empty list.
        if (/ACL not found/i.test(describeError(error))) this.#note(UNKNOWN_TOKEN)
        else this.#note(wantsAll() ? BLIND : undefined)
      }
    }
    return EVERY_MS * (0.8 + 0.2 * this.#random())
  }

  async #judge(answer: ConsulAnswer): Promise<string | undefined> {
    const { transport, wantsAll } = this.#options
    const servers = requireOk(answer, "reading Consul's own servers").body
    if ((answer.lastContactMs ?? 0) > LEADERLESS_MS) return LEADERLESS
    if (!Array.isArray(servers) || servers.length > 0) return undefined
    const listed = await transport.call('GET', '/v1/catalog/services?stale', {
      signal: this.#closing.signal,
      levels: NAME_LEVELS,
    })
    const names = decodeServiceNames(requireOk(listed, 'reading services').body)
    if (names.includes('consul')) return NODELESS
    // A policy may show only the few services that a host uses; their watches report when one is missing.
    return names.length === 0 || wantsAll() ? BLIND : undefined
  }

  #note(problem: string | undefined): void {
    const { log, onRecovered } = this.#options
    const was = this.#problem
    if (problem === was) return
    this.#problem = problem
    if (problem === undefined) {
      log.info('Consul answers in full again', { was })
      onRecovered()
    } else log.warn('Consul does not answer in full; the last good state stays', { problem })
  }
}

const UNKNOWN_TOKEN = `Consul does not know the token (any more), so nothing new is learned: ${NEW_TOKEN}`

const LEADERLESS =
  'The Consul servers have no leader (a majority of them is away?): what is known stays, nothing new is learned'

const BLIND = `Consul does not show its own servers, nor what else the token may not see: the policy of the token needs: ${NODE_RULE} ${SERVICES_RULE}`

const NODELESS = `Consul shows services but no instances: the policy of the token needs: ${NODE_RULE}`
