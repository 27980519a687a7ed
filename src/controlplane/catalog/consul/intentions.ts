/**
 * Follows the intentions for a set of destinations, and the default policy.
 *
 * The source is `/v1/connect/intentions/match`: only it answers 403, not an empty list, when the token lacks a right.
 * On Consul 1.8 it cannot block, so the list of all intentions is followed as a wake-up; where `/match` carries an
 * index it is followed itself. Either way a wake-up only means "read again", and a read happens every
 * {@link REREAD_MS} even without one: a list filtered by ACL never wakes.
 */
import { Retry } from '../../../lib/backoff.ts'
import { type Clock, type Random, systemClock, systemRandom } from '../../../lib/clock.ts'
import { describeError, errorCode } from '../../../lib/errors.ts'
import type { Log } from '../../../lib/log.ts'
import { WakeableLoop } from '../../../lib/wakeable-loop.ts'
import type { DefaultPolicy, Intention } from '../../../model/intention.ts'
import { Problem } from '../../../model/problem.ts'
import type { CatalogPolicy } from '../catalog.ts'
import { type Follower, type FollowWatch, failureKind } from './blocking-query.ts'
import { decodeAgentSelf, parseDefaultPolicy } from './decode-agent.ts'
import { decodeIntentions } from './decode-intentions.ts'
import { FailureLog } from './failure-log.ts'
import { FAILURE_BACKOFF } from './query-state.ts'
import { AGENT_RULE, readRule } from './rights.ts'
import { type ConsulAnswer, type ConsulTransport, requireOk } from './transport.ts'

/** What the watch is built from. */
export interface IntentionOptions {
  readonly transport: ConsulTransport
  readonly follower: Follower
  readonly log: Log
  readonly clock?: Clock
  readonly random?: Random
  /** Milliseconds between two reads without a wake-up. */
  readonly rereadMs?: number
  /** The rules of an earlier run: known, but not yet read in this one. */
  readonly last?: readonly CatalogPolicy[] | undefined
}

/** Without a wake-up, rules and default policy are read this often, milliseconds. */
const REREAD_MS = 30_000

/** `/v1/agent/self` is a large answer: it is read this often where no header contains the default policy. */
const SELF_EVERY_MS = 30_000

/** A name in the query is about 30 bytes: this keeps a request line below 4 KiB. */
const NAMES_PER_CALL = 100

const LIST_PATH = '/v1/connect/intentions'

/** The result of one `/match`. */
type BatchResult = 'good' | 'failed' | 'forbidden'

/** Follows the rules for a set of destinations. */
export class IntentionWatch implements Disposable {
  readonly #destinations: readonly string[]
  readonly #onChange: (policies: readonly CatalogPolicy[]) => void
  readonly #options: IntentionOptions
  readonly #clock: Clock
  readonly #random: Random
  readonly #retry: Retry
  readonly #closing = new AbortController()
  readonly #loop: WakeableLoop | undefined
  readonly #stopListening: () => void
  readonly #rulesByDestination = new Map<string, readonly Intention[]>()
  readonly #problemByBatch = new Map<string, Problem>()
  readonly #failuresByBatch = new Map<string, FailureLog>()
  #decodeProblems: string[] = []
  #matchBlocks = false
  /** From the header of an answer. */
  #receivedDefaultPolicy: DefaultPolicy | undefined
  readonly #remembered: ReadonlySet<string>
  #defaultPolicy: DefaultPolicy | undefined
  #defaultProblem: Problem | undefined
  #selfReadAtMs = Number.NEGATIVE_INFINITY
  #published: string | undefined
  #wakeUp: FollowWatch | undefined
  #wakePath: string | undefined

  /**
   * `onChange` receives all destinations whose rules are known, every time; one that is missing has never been read,
   * and must be treated as denied.
   */
  constructor(
    destinations: readonly string[],
    onChange: (policies: readonly CatalogPolicy[]) => void,
    options: IntentionOptions,
  ) {
    const { clock = systemClock, random = systemRandom } = options
    this.#destinations = destinations
    this.#onChange = onChange
    this.#options = options
    this.#clock = clock
    this.#random = random
    this.#retry = new Retry(FAILURE_BACKOFF, clock, random)
    this.#remembered = new Set(options.last?.map((policy) => policy.destination))
    this.#defaultPolicy = options.last?.[0]?.defaultPolicy
    const { signal } = this.#closing
    if (destinations.length > 0)
      this.#loop = new WakeableLoop({ clock, signal, pass: () => this.#read() })
    this.#stopListening = options.transport.onTokenChange(() => this.#loop?.wake())
  }

  /** What is wrong now: rules that cannot be read, and rules that were read but cannot be applied. */
  problems(): readonly Problem[] {
    return [
      ...this.#problemByBatch.values(),
      ...this.#decodeProblems.map(
        (message) =>
          new Problem('HM_INTENTION_UNSUPPORTED', message, { subject: subjectOf(message) }),
      ),
      ...(this.#defaultProblem === undefined ? [] : [this.#defaultProblem]),
    ]
  }

  [Symbol.dispose](): void {
    this.#closing.abort()
    this.#stopListening()
    this.#wakeUp?.[Symbol.dispose]()
  }

  /** Reads all rules; returns how long to wait before the next read. */
  async #read(): Promise<number> {
    this.#decodeProblems = []
    const results = await Promise.all(
      batches(this.#destinations).map((names) => this.#readBatch(names)),
    )
    const isGood = results.every((result) => result === 'good')
    if (results.some((result) => result !== 'failed')) await this.#readDefaultPolicy()
    this.#publish()
    if (isGood && this.#matchBlocks) this.#followWakeUps(matchPath(this.#destinations))
    else if (isGood || this.#wakePath === undefined || results.includes('forbidden'))
      this.#followWakeUps(LIST_PATH)
    if (!isGood) return this.#retry.failed()
    this.#retry.reset()
    return (this.#options.rereadMs ?? REREAD_MS) * (0.8 + 0.2 * this.#random())
  }

  /** One `/match` for `names`; keeps the known rules when it fails. */
  async #readBatch(names: readonly string[]): Promise<BatchResult> {
    const key = names.join(' ')
    try {
      const answer = await this.#readMatch(names)
      const decoded = decodeIntentions(names, answer.body)
      for (const [destination, rules] of decoded.byDestination)
        this.#rulesByDestination.set(destination, rules)
      this.#decodeProblems.push(...decoded.problems)
      // Also for those that were queried one by one for lack of a right.
      for (const batch of [key, ...names]) {
        this.#problemByBatch.delete(batch)
        this.#failuresByBatch.delete(batch)
      }
      this.#matchBlocks = answer.index !== undefined
      this.#receivedDefaultPolicy = parseDefaultPolicy(answer.defaultAclPolicy)
      return 'good'
    } catch (error) {
      if (this.#closing.signal.aborted) return 'failed'
      const isForbidden = errorCode(error) === 'HM_CONSUL_FORBIDDEN'
      // One destination without rights must not affect the others: query each by itself.
      if (isForbidden && names.length > 1) {
        this.#problemByBatch.delete(key)
        await Promise.all(names.map((name) => this.#readBatch([name])))
        return 'forbidden'
      }
      this.#noteFailure(key, readProblem(error, `Intentions for ${names.slice(0, 5).join(', ')}`))
      return isForbidden ? 'forbidden' : 'failed'
    }
  }

  async #readMatch(names: readonly string[]): Promise<ConsulAnswer> {
    const path = matchPath(names)
    const what = 'reading the intentions'
    const rule = names.slice(0, 5).map(readRule).join(' ')
    const { signal } = this.#closing
    const first = await this.#options.transport.call('GET', path, { signal })
    // Without a leader only a stale read is answered. It may be older than the known rules, so it is used only
    // while those of a destination are unknown.
    const isUnknown = (name: string): boolean =>
      !this.#rulesByDestination.has(name) && !this.#remembered.has(name)
    if (first.status === 500 && names.some(isUnknown))
      return requireOk(
        await this.#options.transport.call('GET', `${path}&stale`, { signal }),
        what,
        rule,
      )
    return requireOk(first, what, rule)
  }

  #noteFailure(batch: string, problem: Problem): void {
    const failures = this.#failuresByBatch.get(batch) ?? new FailureLog(this.#clock)
    this.#failuresByBatch.set(batch, failures)
    if (failures.shouldLog(problem.message))
      this.#options.log.warn('Cannot read intentions; the last good ones stay', {
        problem: problem.message,
      })
    this.#problemByBatch.set(batch, problem)
  }

  async #readDefaultPolicy(): Promise<void> {
    if (this.#receivedDefaultPolicy !== undefined) {
      this.#defaultPolicy = this.#receivedDefaultPolicy
      this.#defaultProblem = undefined
      return
    }
    const isFresh = this.#clock.monotonicMs() - this.#selfReadAtMs < SELF_EVERY_MS
    if (isFresh && this.#defaultPolicy !== undefined) return
    const { signal } = this.#closing
    try {
      const answer = await this.#options.transport.call('GET', '/v1/agent/self', { signal })
      const self = decodeAgentSelf(requireOk(answer, 'reading the default policy', AGENT_RULE).body)
      this.#selfReadAtMs = this.#clock.monotonicMs()
      this.#defaultPolicy = self.defaultPolicy ?? this.#defaultPolicy
      this.#defaultProblem =
        self.defaultPolicy === undefined
          ? new Problem('HM_CONSUL_INCOMPLETE', DEFAULT_UNKNOWN, { subject: DEFAULT_SUBJECT })
          : undefined
    } catch (error) {
      if (signal.aborted) return
      this.#defaultProblem = readProblem(
        error,
        DEFAULT_SUBJECT,
        this.#defaultPolicy === undefined
          ? DEFAULT_UNKNOWN
          : `Default policy "${this.#defaultPolicy}" stays, it cannot be read again`,
      )
    }
  }

  #publish(): void {
    const policies = this.#destinations.flatMap((destination): CatalogPolicy | [] => {
      const intentions = this.#rulesByDestination.get(destination)
      if (intentions === undefined) return []
      // Without a known default policy, deny.
      return { destination, intentions, defaultPolicy: this.#defaultPolicy ?? 'deny' }
    })
    const mark = JSON.stringify(policies)
    if (mark === this.#published || policies.length === 0 || this.#closing.signal.aborted) return
    this.#published = mark
    this.#onChange(policies)
  }

  #followWakeUps(path: string): void {
    if (path === this.#wakePath || this.#closing.signal.aborted) return
    this.#wakeUp?.[Symbol.dispose]()
    this.#wakePath = path
    this.#wakeUp = this.#options.follower.follow(path, () => this.#loop?.wake(), {
      priority: 'urgent',
    })
  }
}

const DEFAULT_UNKNOWN =
  'Consul does not tell its default policy, so what no intention allows is denied (grant agent:read)'

const DEFAULT_SUBJECT = 'default policy'

/** The problem of a failed read; while Consul is unreachable all reads report the same one. */
function readProblem(error: unknown, subject: string, what = subject): Problem {
  const reason = describeError(error)
  const isAway = failureKind(error) === 'unreachable'
  return Problem.of(error, 'HM_CONSUL_QUERY_FAILED', {
    message: isAway ? reason : `${what}: ${reason}`,
    subject: isAway ? 'Consul' : subject,
  })
}

/** The start of a sentence, up to its first number or colon: what follows may change over time. */
export function subjectOf(message: string): string {
  return /^[^\d:]*/.exec(message)?.[0] ?? ''
}

function matchPath(names: readonly string[]): string {
  const query = names.map((name) => `&name=${encodeURIComponent(name)}`).join('')
  return `/v1/connect/intentions/match?by=destination${query}`
}

function batches(names: readonly string[]): readonly (readonly string[])[] {
  const result: string[][] = []
  for (let start = 0; start < names.length; start += NAMES_PER_CALL)
    result.push(names.slice(start, start + NAMES_PER_CALL))
  return result
}
