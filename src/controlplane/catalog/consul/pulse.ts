/**
 * Asks Consul every few seconds for its own servers: one small answer that tells what long polls keep quiet about.
 *
 * A long poll that waits does not notice that its token was deleted, nor that the servers lost their leader;
 * and a token without rights gets empty lists, not errors. Consul's servers are in every catalog under the
 * name `consul`, so an answer without them has a reason, and that reason is named here. When something was
 * wrong and no longer is, everything is asked anew: no long poll notices that it may read more now.
 */
import { type Clock, type Random, systemClock, systemRandom } from '../../../lib/clock.ts'
import { describeError, errorCode } from '../../../lib/errors.ts'
import type { Log } from '../../../lib/log.ts'
import { WakeableLoop } from '../../../lib/wakeable-loop.ts'
import { decodeServiceNames, NAME_LEVELS } from './decode.ts'
import { NODE_RULE, SERVICES_RULE } from './rights.ts'
import { type ConsulAnswer, type ConsulTransport, NEW_TOKEN, requireOk } from './transport.ts'

/** What the pulse is built from. */
export interface PulseOptions {
  readonly transport: ConsulTransport
  /** Whether the host means to see all services, so that a policy which hides some is a mistake. */
  readonly wantsAll: () => boolean
  /** What was wrong is over. */
  readonly onHealed: () => void
  readonly log: Log
  readonly clock?: Clock
  readonly random?: Random
}

/** A deleted token is to be known within 10 s. Milliseconds, the longest. */
const EVERY_MS = 7_000

/** Servers hear from their leader many times a second; an election takes a few. */
const LEADERLESS_MS = 5_000

const SERVERS_PATH = '/v1/catalog/service/consul?stale'

/** Asks at once and goes on until it is disposed. The transport stays the caller's. */
export class Pulse implements Disposable {
  readonly #options: PulseOptions
  readonly #clock: Clock
  readonly #random: Random
  readonly #closing = new AbortController()
  readonly #stopListening: () => void
  #problem: string | undefined
  #lastContact: { readonly ms: number; readonly atMs: number } | undefined

  constructor(options: PulseOptions) {
    this.#options = options
    this.#clock = options.clock ?? systemClock
    this.#random = options.random ?? systemRandom
    const loop = new WakeableLoop({
      clock: this.#clock,
      signal: this.#closing.signal,
      pass: () => this.#beat(),
    })
    this.#stopListening = options.transport.onTokenChange(() => loop.wake())
  }

  /** What is wrong now, one sentence; undefined when nothing is. */
  problem(): string | undefined {
    return this.#problem
  }

  /** How long ago the answering server had last heard from its leader, milliseconds; undefined when not known. */
  lastContactMs(): number | undefined {
    if (this.#lastContact === undefined) return undefined
    const { ms, atMs } = this.#lastContact
    return ms + Math.round(this.#clock.monotonicMs() - atMs)
  }

  [Symbol.dispose](): void {
    this.#stopListening()
    this.#closing.abort()
  }

  async #beat(): Promise<number> {
    const { transport, wantsAll } = this.#options
    const { signal } = this.#closing
    try {
      const answer = await transport.call('GET', SERVERS_PATH, { signal })
      if (answer.lastContactMs !== undefined)
        this.#lastContact = { ms: answer.lastContactMs, atMs: this.#clock.monotonicMs() }
      this.#note(await this.#judge(answer))
    } catch (error) {
      // No answer, or a bad one: the watches say so by themselves.
      if (errorCode(error) === 'HM_CONSUL_FORBIDDEN' && !signal.aborted) {
        // Newer Consul refuses where 1.8 shows an empty list.
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
    // A policy may show the few services that a host uses; their watches say when one is missing.
    return names.length === 0 || wantsAll() ? BLIND : undefined
  }

  #note(problem: string | undefined): void {
    const { log, onHealed } = this.#options
    const was = this.#problem
    if (problem === was) return
    this.#problem = problem
    if (problem === undefined) {
      log.info('Consul answers in full again', { was })
      onHealed()
    } else log.warn('Consul does not answer in full; the last good state stays', { problem })
  }
}

const UNKNOWN_TOKEN = `Consul does not know the token (any more), so nothing new is learned: ${NEW_TOKEN}`

const LEADERLESS =
  'The Consul servers have no leader (a majority of them is away?): what is known stays, nothing new is learned'

const BLIND = `Consul does not show its own servers, nor what else the token may not see: the policy of the token needs: ${NODE_RULE} ${SERVICES_RULE}`

const NODELESS = `Consul shows services but no instances: the policy of the token needs: ${NODE_RULE}`
