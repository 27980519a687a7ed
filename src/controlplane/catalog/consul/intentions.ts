/**
 * Follows the intentions for a set of destinations, and what holds where none matches.
 *
 * The truth is `/v1/connect/intentions/match`: it alone answers 403, not an empty list, when the token
 * lacks a right. On Consul 1.8 it cannot block, so the list of all intentions is followed as a wake-up;
 * where `/match` carries an index it is followed itself. Either way a wake-up only says "read again",
 * and a read happens every {@link REREAD_MS} even without one: a list filtered by ACL never wakes.
 */
import { backoffMs } from '../../../lib/backoff.ts'
import { type Clock, type Random, systemClock, systemRandom } from '../../../lib/clock.ts'
import { describeError, errorCode } from '../../../lib/errors.ts'
import type { Log } from '../../../lib/log.ts'
import type { DefaultPolicy, Intention } from '../../../model/intention.ts'
import { Problem } from '../../../model/problem.ts'
import type { CatalogPolicy, Watch } from '../catalog.ts'
import { type Follower, type FollowWatch, failureKind } from './blocking-query.ts'
import { decodeAgentSelf, parseDefaultPolicy } from './decode.ts'
import { decodeIntentions } from './decode-intentions.ts'
import { FailureLog } from './failure-log.ts'
import { FAILURE_BACKOFF } from './query-state.ts'
import { AGENT_RULE, readRule } from './rights.ts'
import { type ConsulAnswer, type ConsulTransport, requireOk } from './transport.ts'

/** A running watch of intentions. */
export interface IntentionWatch extends Watch {
  /** What is wrong now: what cannot be read, and what was read and cannot be obeyed. */
  problems(): readonly Problem[]
  lastGoodAtMs(): number | undefined
}

/** What the watch is built from. */
export interface IntentionOptions {
  readonly transport: ConsulTransport
  readonly follower: Follower
  readonly log: Log
  readonly clock?: Clock
  readonly random?: Random
  /** Milliseconds between two reads without a wake-up. */
  readonly rereadMs?: number
  /** The rules of an earlier run: known, though not read yet. */
  readonly last?: readonly CatalogPolicy[] | undefined
}

/** Without a wake-up, rules and default policy are read this often, milliseconds. */
const REREAD_MS = 30_000

/** `/v1/agent/self` is a large answer; where no header tells the default policy it is read this often. */
const SELF_EVERY_MS = 30_000

/** A name in the query is about 30 bytes: this keeps a request line below 4 KiB. */
const NAMES_PER_CALL = 100

const LIST_PATH = '/v1/connect/intentions'

/**
 * Follows the rules for `destinations`. `onChange` gets those whose rules are known, all of them every
 * time; a destination that is missing has never been read, and must be treated as denied.
 */
export function watchIntentions(
  destinations: readonly string[],
  onChange: (policies: readonly CatalogPolicy[]) => void,
  options: IntentionOptions,
): IntentionWatch {
  const { transport, follower, log, clock = systemClock, random = systemRandom } = options
  const closing = new AbortController()
  const { signal } = closing
  const rulesByDestination = new Map<string, readonly Intention[]>()
  const problemByBatch = new Map<string, Problem>()
  const failuresByBatch = new Map<string, FailureLog>()
  let decodeProblems: string[] = []
  let matchBlocks = false
  let toldDefaultPolicy: DefaultPolicy | undefined
  const remembered = new Set(options.last?.map((policy) => policy.destination))
  let defaultPolicy: DefaultPolicy | undefined = options.last?.[0]?.defaultPolicy
  let defaultProblem: Problem | undefined
  let selfReadAtMs = Number.NEGATIVE_INFINITY
  let lastGoodAtMs: number | undefined
  let published: string | undefined
  let wakeUp: FollowWatch | undefined
  let wakePath: string | undefined
  let napping = new AbortController()
  let isWoken = false

  function wake(): void {
    isWoken = true
    napping.abort()
  }

  function followWakeUps(path: string): void {
    if (path === wakePath || signal.aborted) return
    wakeUp?.close()
    wakePath = path
    wakeUp = follower.follow(path, wake, { priority: 'urgent' })
  }

  /** One `/match` for `names`; keeps what is known when it fails. */
  async function readBatch(names: readonly string[]): Promise<'good' | 'failed' | 'forbidden'> {
    const key = names.join(' ')
    try {
      const answer = await readMatch(names)
      const decoded = decodeIntentions(names, answer.body)
      for (const [destination, rules] of decoded.byDestination)
        rulesByDestination.set(destination, rules)
      decodeProblems.push(...decoded.problems)
      problemByBatch.delete(key)
      failuresByBatch.delete(key)
      lastGoodAtMs = clock.monotonicMs()
      matchBlocks = answer.index !== undefined
      toldDefaultPolicy = parseDefaultPolicy(answer.defaultAclPolicy)
      return 'good'
    } catch (error) {
      if (signal.aborted) return 'failed'
      const isForbidden = errorCode(error) === 'HM_CONSUL_FORBIDDEN'
      // One destination without rights must not cost the others: ask for each by itself.
      if (isForbidden && names.length > 1) {
        problemByBatch.delete(key)
        await Promise.all(names.map((name) => readBatch([name])))
        return 'forbidden'
      }
      const subject = `Intentions for ${names.slice(0, 5).join(', ')}`
      const problem = readProblem(error, subject)
      const failures = failuresByBatch.get(key) ?? new FailureLog(clock)
      failuresByBatch.set(key, failures)
      if (failures.isNews(problem.message))
        log.warn('Cannot read intentions; the last good ones stay', { problem: problem.message })
      problemByBatch.set(key, problem)
      return isForbidden ? 'forbidden' : 'failed'
    }
  }

  async function readMatch(names: readonly string[]): Promise<ConsulAnswer> {
    const path = matchPath(names)
    const what = 'reading the intentions'
    const rule = names.slice(0, 5).map(readRule).join(' ')
    const first = await transport.call('GET', path, { signal })
    // Without a leader only a stale read is answered. It may be older than what we know, so it is only
    // good enough while we know nothing.
    const isUnknown = (name: string): boolean =>
      !rulesByDestination.has(name) && !remembered.has(name)
    if (first.status === 500 && names.some(isUnknown))
      return requireOk(await transport.call('GET', `${path}&stale`, { signal }), what, rule)
    return requireOk(first, what, rule)
  }

  async function readDefaultPolicy(): Promise<void> {
    if (toldDefaultPolicy !== undefined) {
      defaultPolicy = toldDefaultPolicy
      defaultProblem = undefined
      return
    }
    const isFresh = clock.monotonicMs() - selfReadAtMs < SELF_EVERY_MS
    if (isFresh && defaultPolicy !== undefined) return
    try {
      const answer = await transport.call('GET', '/v1/agent/self', { signal })
      const self = decodeAgentSelf(requireOk(answer, 'reading the default policy', AGENT_RULE).body)
      selfReadAtMs = clock.monotonicMs()
      defaultPolicy = self.defaultPolicy ?? defaultPolicy
      defaultProblem =
        self.defaultPolicy === undefined
          ? new Problem('HM_CONSUL_INCOMPLETE', DEFAULT_UNKNOWN, { subject: DEFAULT_SUBJECT })
          : undefined
    } catch (error) {
      if (signal.aborted) return
      defaultProblem = readProblem(
        error,
        DEFAULT_SUBJECT,
        defaultPolicy === undefined
          ? DEFAULT_UNKNOWN
          : `Default policy "${defaultPolicy}" stays, it cannot be read again`,
      )
    }
  }

  function publish(): void {
    const policies = destinations
      .map((destination) => ({ destination, intentions: rulesByDestination.get(destination) }))
      .filter((policy) => policy.intentions !== undefined)
      .map(
        ({ destination, intentions = [] }): CatalogPolicy => ({
          destination,
          intentions,
          // Not knowing is no reason to let anybody in.
          defaultPolicy: defaultPolicy ?? 'deny',
        }),
      )
    const mark = JSON.stringify(policies)
    if (mark === published || policies.length === 0 || signal.aborted) return
    published = mark
    onChange(policies)
  }

  async function run(): Promise<void> {
    let failures = 0
    while (!signal.aborted) {
      isWoken = false
      decodeProblems = []
      const results = await Promise.all(batches(destinations).map(readBatch))
      const isGood = results.every((result) => result === 'good')
      if (results.some((result) => result !== 'failed')) await readDefaultPolicy()
      failures = isGood ? 0 : failures + 1
      publish()
      if (isGood && matchBlocks) followWakeUps(matchPath(destinations))
      else if (isGood || wakePath === undefined || results.includes('forbidden'))
        followWakeUps(LIST_PATH)
      if (isWoken) continue
      napping = new AbortController()
      const rereadMs = (options.rereadMs ?? REREAD_MS) * (0.8 + 0.2 * random())
      await clock.sleep(
        isGood ? rereadMs : backoffMs(failures, FAILURE_BACKOFF, random),
        AbortSignal.any([signal, napping.signal]),
      )
    }
  }

  if (destinations.length > 0) setImmediate(() => void run())
  const stopListening = transport.onTokenChange(wake)
  return {
    problems: () => [
      ...problemByBatch.values(),
      ...decodeProblems.map(
        (message) =>
          new Problem('HM_INTENTION_UNSUPPORTED', message, { subject: subjectOf(message) }),
      ),
      ...(defaultProblem === undefined ? [] : [defaultProblem]),
    ],
    lastGoodAtMs: () => lastGoodAtMs,
    close() {
      closing.abort()
      stopListening()
      wakeUp?.close()
    },
  }
}

const DEFAULT_UNKNOWN =
  'Consul does not tell its default policy, so what no intention allows is denied (grant agent:read)'

const DEFAULT_SUBJECT = 'default policy'

/** That of a watch that fails; while Consul is away all of them say the same. */
function readProblem(error: unknown, subject: string, what = subject): Problem {
  const reason = describeError(error)
  const isAway = failureKind(error) === 'unreachable'
  return Problem.of(error, 'HM_CONSUL_QUERY_FAILED', {
    message: isAway ? reason : `${what}: ${reason}`,
    subject: isAway ? 'Consul' : subject,
  })
}

/** What a sentence starts with, up to its first number or colon: what follows may change from day to day. */
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
