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
import { decodeServiceNames, NAME_LEVELS } from './decode.ts'
import { NODE_RULE, SERVICES_RULE } from './rights.ts'
import { type ConsulAnswer, type ConsulTransport, NEW_TOKEN, requireOk } from './transport.ts'

/** A running pulse. */
export interface Pulse {
  /** What is wrong now, one sentence; undefined when nothing is. */
  problem(): string | undefined
  /** How long ago the answering server had last heard from its leader, milliseconds; undefined when not known. */
  lastContactMs(): number | undefined
  close(): void
}

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

/** Starts at once and goes on until it is closed. The transport stays the caller's. */
export function startPulse(options: PulseOptions): Pulse {
  const { transport, log, clock = systemClock, random = systemRandom } = options
  const closing = new AbortController()
  const { signal } = closing
  let napping = new AbortController()
  let problem: string | undefined
  let lastContact: { readonly ms: number; readonly atMs: number } | undefined

  function note(now: string | undefined): void {
    if (now === problem) return
    if (now === undefined) log.info('Consul answers in full again', { was: problem })
    else log.warn('Consul does not answer in full; the last good state stays', { problem: now })
    const isOver = problem !== undefined && now === undefined
    problem = now
    if (isOver) options.onHealed()
  }

  async function beat(): Promise<void> {
    try {
      const answer = await transport.call('GET', SERVERS_PATH, { signal })
      if (answer.lastContactMs !== undefined)
        lastContact = { ms: answer.lastContactMs, atMs: clock.monotonicMs() }
      note(await verdict(answer))
    } catch (error) {
      // No answer, or a bad one: the watches say so by themselves.
      if (errorCode(error) !== 'HM_CONSUL_FORBIDDEN' || signal.aborted) return
      // Newer Consul refuses where 1.8 shows an empty list.
      if (/ACL not found/i.test(describeError(error))) note(UNKNOWN_TOKEN)
      else note(options.wantsAll() ? BLIND : undefined)
    }
  }

  async function verdict(answer: ConsulAnswer): Promise<string | undefined> {
    const servers = requireOk(answer, "reading Consul's own servers").body
    if ((answer.lastContactMs ?? 0) > LEADERLESS_MS) return LEADERLESS
    if (!Array.isArray(servers) || servers.length > 0) return undefined
    const listed = await transport.call('GET', '/v1/catalog/services?stale', {
      signal,
      levels: NAME_LEVELS,
    })
    const names = decodeServiceNames(requireOk(listed, 'reading services').body)
    if (names.includes('consul')) return NODELESS
    // A policy may show the few services that a host uses; their watches say when one is missing.
    return names.length === 0 || options.wantsAll() ? BLIND : undefined
  }

  async function run(): Promise<void> {
    while (!signal.aborted) {
      napping = new AbortController()
      await beat()
      const pauseMs = EVERY_MS * (0.8 + 0.2 * random())
      await clock.sleep(pauseMs, AbortSignal.any([signal, napping.signal]))
    }
  }

  const stopListening = transport.onTokenChange(() => napping.abort())
  setImmediate(() => void run())
  return {
    problem: () => problem,
    lastContactMs: () =>
      lastContact === undefined
        ? undefined
        : lastContact.ms + Math.round(clock.monotonicMs() - lastContact.atMs),
    close() {
      stopListening()
      closing.abort()
    },
  }
}

const UNKNOWN_TOKEN = `Consul does not know the token (any more), so nothing new is learned: ${NEW_TOKEN}`

const LEADERLESS =
  'The Consul servers have no leader (a majority of them is away?): what is known stays, nothing new is learned'

const BLIND = `Consul does not show its own servers, nor what else the token may not see: the policy of the token needs: ${NODE_RULE} ${SERVICES_RULE}`

const NODELESS = `Consul shows services but no instances: the policy of the token needs: ${NODE_RULE}`
