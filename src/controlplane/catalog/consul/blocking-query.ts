/**
 * Long polls of one agent: one loop per path, all sharing the transport's watch pool.
 *
 * A watcher receives an answer only when its content changed, and never an error: the last good answer stays valid
 * until a better one arrives. An answer that the watcher rejects (by throwing) counts as a failure and is delivered
 * again. The rules of index and pace are in `query-state.ts`.
 */
import { createHash } from 'node:crypto'
import { type Clock, type Random, systemClock, systemRandom } from '../../../lib/clock.ts'
import { describeError, errorCode, MeshError } from '../../../lib/errors.ts'
import type { Log } from '../../../lib/log.ts'
import { WakeableLoop } from '../../../lib/wakeable-loop.ts'
import { FailureLog } from './failure-log.ts'
import {
  type FailureKind,
  firstQuery,
  nextQuery,
  type Pace,
  type QueryOutcome,
  type QueryState,
  waitSeconds,
} from './query-state.ts'
import { ruleFor } from './rights.ts'
import { type ConsulAnswer, type ConsulTransport, requireOk, WATCH_SOCKETS } from './transport.ts'

/** A running watch. Disposing it cancels the request in flight; `onAnswer` is not called after that. */
export interface FollowWatch extends Disposable {
  health(): FollowHealth
}

/** The state of one watch. */
export interface FollowHealth {
  readonly path: string
  /** Monotonic milliseconds of the last good answer; undefined before the first. */
  readonly lastGoodAtMs: number | undefined
  /** What is wrong now, one sentence; undefined when nothing is. */
  readonly problem: string | undefined
  /** Code of the error; undefined without a problem. */
  readonly code: string | undefined
  /** Whether there was no answer at all, rather than a bad one. */
  readonly unreachable: boolean
}

/** See {@link FollowOptions.priority}. */
export type Priority = 'urgent' | 'hot' | 'cold'

/** How one watch differs from the default. */
export interface FollowOptions {
  /**
   * Which watches have to poll when there are more watches than places for blocking queries: `cold` (changes rarely)
   * first, `urgent` (the whole host depends on it) last. Default: `hot`.
   */
  readonly priority?: Priority
  /** How fast it may follow. Default: {@link USUAL_PACE}. */
  readonly pace?: Pace
  /** What the watch is about, such as a service's name; {@link Follower.refresh} selects watches by it. */
  readonly subject?: string
  /** How many levels of the answer are read. Default: all. */
  readonly levels?: number
}

/** What a follower is built from. */
export interface FollowerOptions {
  readonly log: Log
  readonly clock?: Clock
  readonly random?: Random
  /** Most blocking requests at the agent at once; fewer than the pool has connections. */
  readonly maxBlocking?: number
}

/** Connections kept free for watches that have to poll. */
const POLLING_SOCKETS = 8

/** Places that watches of each priority leave free for higher priorities. */
const RESERVED: Readonly<Record<Priority, number>> = { urgent: 0, hot: 8, cold: 20 }

/** A stale answer older than this is not better than the one this host has. */
const MAX_LAST_CONTACT_MS = 10_000

/** Longest list in an answer; the decoders limit instances and intentions further. */
const MAX_ELEMENTS = 20_000

/** Spreads the requests of watches that wake up together when the agent is reachable again. */
const RECOVERY_SPREAD_MS = 500

/** The watches on one agent. The caller keeps ownership of the transport. */
export class Follower implements Disposable {
  readonly #agent: SharedAgent
  readonly #stopListening: () => void

  constructor(transport: ConsulTransport, options: FollowerOptions) {
    const { log, clock = systemClock, random = systemRandom } = options
    this.#agent = {
      transport,
      log,
      clock,
      random,
      watches: new Set(),
      freePlaces: options.maxBlocking ?? WATCH_SOCKETS - POLLING_SOCKETS,
      isReachable: true,
    }
    // A blocking request keeps the token that it was made with, and that token is about to be deleted.
    this.#stopListening = transport.onTokenChange(() => this.retry())
  }

  /**
   * Follows `path` (`/v1/…`, with its query if it has one). `onAnswer` receives the parsed body of every answer
   * whose content differs from the previous one, and undefined for "not found". It may throw to reject an answer; it
   * then receives the next answer even if that is unchanged.
   */
  follow(
    path: string,
    onAnswer: (body: unknown) => void,
    options: FollowOptions = {},
  ): FollowWatch {
    const watch = new PathWatch(path, onAnswer, options, this.#agent)
    this.#agent.watches.add(watch)
    return watch
  }

  /** The state of all open watches. */
  health(): readonly FollowHealth[] {
    return [...this.#agent.watches].map((watch) => watch.health())
  }

  /**
   * Queries again at once for those watches on `subjects` that poll, because a change was seen elsewhere. Watches
   * with a blocking query notice the change themselves.
   */
  refresh(subjects: Iterable<string>): void {
    const changed = new Set(subjects)
    for (const watch of this.#agent.watches)
      if (watch.subject !== undefined && changed.has(watch.subject)) watch.refresh()
  }

  /** How many watches poll now, because there is no place for a blocking query. */
  pollingCount(): number {
    return [...this.#agent.watches].filter((watch) => watch.isPolling).length
  }

  /**
   * Queries again for all watches, both those that block and those that wait after a failure: the token has changed,
   * or a problem of the agent is over, and no blocking request would notice that.
   */
  retry(): void {
    for (const watch of this.#agent.watches) watch.retry()
  }

  /** Ends all watches. */
  [Symbol.dispose](): void {
    this.#stopListening()
    for (const watch of this.#agent.watches) watch[Symbol.dispose]()
  }
}

/** What the watches of one agent share. */
interface SharedAgent {
  readonly transport: ConsulTransport
  readonly log: Log
  readonly clock: Clock
  readonly random: Random
  readonly watches: Set<PathWatch>
  /** How many more blocking requests the agent may hold. */
  freePlaces: number
  isReachable: boolean
}

/** Why a watch pauses: until its next poll, after a failure, or only to limit its rate. */
type Pause = 'poll' | 'unreachable' | 'refused' | 'pace'

/** Follows one path. */
class PathWatch implements FollowWatch {
  readonly subject: string | undefined
  readonly #path: string
  readonly #onAnswer: (body: unknown) => void
  readonly #options: FollowOptions
  readonly #agent: SharedAgent
  readonly #closing = new AbortController()
  readonly #failures: FailureLog
  readonly #loop: WakeableLoop
  #query: QueryState
  #health: FollowHealth
  /** Of the last good answer. */
  #fingerprint: string | undefined
  /** Whether the watcher rejected the last answer. */
  #isRefused = false
  /** Whether a change was reported since the last request was sent. */
  #isOutdated = false
  /** Cancels the request in flight, to send it again. */
  #restarting: AbortController | undefined
  /** Undefined while a request is in flight. */
  #pause: Pause | undefined
  /** Whether the next request would be sent together with those of other watches, and so is delayed a little. */
  #isSpread = false

  constructor(
    path: string,
    onAnswer: (body: unknown) => void,
    options: FollowOptions,
    agent: SharedAgent,
  ) {
    const { clock, random } = agent
    this.subject = options.subject
    this.#path = path
    this.#onAnswer = onAnswer
    this.#options = options
    this.#agent = agent
    this.#failures = new FailureLog(clock)
    this.#query = firstQuery(clock.monotonicMs(), random, options.pace)
    this.#health = { path, lastGoodAtMs: undefined, ...NO_PROBLEM }
    const { signal } = this.#closing
    this.#loop = new WakeableLoop({ clock, signal, pass: () => this.#request() })
  }

  health(): FollowHealth {
    return this.#health
  }

  get isPolling(): boolean {
    return this.#pause === 'poll'
  }

  [Symbol.dispose](): void {
    this.#agent.watches.delete(this)
    this.#closing.abort()
  }

  refresh(): void {
    this.#isOutdated = true
    if (this.#pause === 'poll') this.#loop.wake()
  }

  retry(): void {
    this.#restarting?.abort()
    this.wakeFrom('unreachable')
    this.wakeFrom('refused')
  }

  /** Queries again soon if it waits after a failure of this kind. */
  wakeFrom(pause: 'unreachable' | 'refused'): void {
    if (this.#pause !== pause) return
    this.#isSpread = true
    this.#loop.wake()
  }

  /** One request; returns how long to wait before the next. */
  async #request(): Promise<number> {
    const { clock, random } = this.#agent
    const { signal } = this.#closing
    this.#pause = undefined
    if (this.#isSpread) await clock.sleep(random() * RECOVERY_SPREAD_MS, signal)
    this.#isSpread = false
    if (signal.aborted) return 0
    const mayBlock = this.#takePlace()
    const restarting = new AbortController()
    this.#restarting = restarting
    this.#isOutdated = false
    try {
      const outcome = await this.#ask(mayBlock, AbortSignal.any([signal, restarting.signal]))
      this.#noteAnswer()
      return this.#next(outcome)
    } catch (error) {
      if (signal.aborted) return 0
      if (!restarting.signal.aborted) return this.#next({ kind: this.#noteFailure(error) })
      this.#query = { ...this.#query, index: 0n }
      this.#isSpread = true
      return 0
    } finally {
      this.#restarting = undefined
      if (mayBlock) this.#agent.freePlaces += 1
    }
  }

  #takePlace(): boolean {
    if (this.#agent.freePlaces <= RESERVED[this.#options.priority ?? 'hot']) return false
    this.#agent.freePlaces -= 1
    return true
  }

  /** Throws whatever is wrong with the answer. */
  async #ask(mayBlock: boolean, signal: AbortSignal): Promise<QueryOutcome> {
    const { transport, clock, random } = this.#agent
    const waitS = waitSeconds(random)
    const startedAtMs = clock.monotonicMs()
    const path = mayBlock
      ? withQuery(this.#path, this.#query.index, waitS)
      : withQuery(this.#path, 0n, undefined)
    const answer = await transport.call('GET', path, {
      pool: 'watch',
      // Consul adds up to a sixteenth to the wait.
      timeoutMs: mayBlock ? (waitS * 1_000 * 17) / 16 + 10_000 : transport.requestTimeoutMs,
      signal,
      levels: this.#options.levels,
    })
    requireUsable(answer, this.#path, this.#fingerprint !== undefined)
    const mark = fingerprint(answer.body)
    const changed = this.#isRefused || mark !== this.#fingerprint
    this.#isRefused = true
    if (changed && !this.#closing.signal.aborted) this.#onAnswer(answer.body)
    this.#isRefused = false
    this.#fingerprint = mark
    const tookMs = clock.monotonicMs() - startedAtMs
    return { kind: 'answer', index: answer.index, changed, mayBlock, tookMs }
  }

  #noteAnswer(): void {
    const { log, clock, transport, watches } = this.#agent
    if (this.#failures.recover()) log.info('Watch recovered', { path: this.#path })
    this.#health = { path: this.#path, lastGoodAtMs: clock.monotonicMs(), ...NO_PROBLEM }
    if (this.#agent.isReachable) return
    this.#agent.isReachable = true
    log.info('Consul answers again', { address: transport.address })
    // Reachable for one watch means reachable for all: none waits out its back-off.
    for (const watch of watches) watch.wakeFrom('unreachable')
  }

  #noteFailure(error: unknown): FailureKind {
    const { log, isReachable } = this.#agent
    const kind = failureKind(error)
    const code = errorCode(error)
    const problem = describeError(error)
    if (kind === 'unreachable') {
      if (isReachable) log.warn('Consul does not answer; the last good state stays', { problem })
      this.#agent.isReachable = false
    } else if (this.#failures.shouldLog(problem))
      log[code === 'HM_CONSUL_ANSWER_DOUBTED' ? 'info' : 'warn'](
        'Watch failed; its last good answer stays',
        { path: this.#path, problem },
      )
    this.#health = { ...this.#health, problem, code, unreachable: kind === 'unreachable' }
    return kind
  }

  /** Returns how long to wait, and records why. */
  #next(outcome: QueryOutcome): number {
    const { clock, random } = this.#agent
    const { state, delayMs } = nextQuery(this.#query, outcome, clock.monotonicMs(), random)
    this.#query = state
    this.#pause = pauseAfter(outcome)
    return this.#pause === 'poll' && this.#isOutdated ? 0 : delayMs
  }
}

const NO_PROBLEM = { problem: undefined, code: undefined, unreachable: false }

function pauseAfter(outcome: QueryOutcome): Pause {
  switch (outcome.kind) {
    case 'answer':
      return outcome.mayBlock ? 'pace' : 'poll'
    case 'limited':
      return 'pace'
    case 'forbidden':
      return 'refused'
    case 'refused':
    case 'unreachable':
      return outcome.kind
  }
}

/**
 * A digest of an answer's content. It ignores the order of keys and of list elements (Consul returns tags in random
 * order), Consul's own version numbers, and the output texts of checks.
 */
export function fingerprint(body: unknown): string {
  return createHash('sha256').update(canonical(body)).digest('base64')
}

const UNCOUNTED_KEYS = new Set(['CreateIndex', 'ModifyIndex', 'Output'])

function canonical(value: unknown): string {
  if (Array.isArray(value)) return `[${value.map(canonical).toSorted().join(',')}]`
  if (typeof value !== 'object' || value === null) return JSON.stringify(value) ?? 'undefined'
  const members = Object.entries(value)
    .filter(([key]) => !UNCOUNTED_KEYS.has(key))
    .map(([key, member]) => `${JSON.stringify(key)}:${canonical(member)}`)
  return `{${members.toSorted().join(',')}}`
}

/** Adds `?index&wait&stale` for one request. The agent's own certificate endpoints do not support `stale`. */
function withQuery(path: string, index: bigint, waitS: number | undefined): string {
  const wait = waitS === undefined || index === 0n ? '' : `&wait=${waitS}s`
  const stale = path.startsWith('/v1/agent/') ? '' : '&stale'
  return `${path}${path.includes('?') ? '&' : '?'}index=${index}${wait}${stale}`
}

function requireUsable(answer: ConsulAnswer, path: string, hasOlder: boolean): void {
  const what = `GET ${path.split('?', 1)[0]}`
  // "Not found" with an index is a valid answer: Consul blocks until the thing exists.
  if (answer.status === 404 && answer.index !== undefined && answer.index !== '0') return
  requireOk(answer, what, ruleFor(path))
  if (answer.body === undefined)
    throw new MeshError('HM_CONSUL_ANSWER_MALFORMED', `Answer of Consul to ${what} is empty`)
  // Checked before the digest is made: no list that is used may be this long.
  if (Array.isArray(answer.body) && answer.body.length > MAX_ELEMENTS)
    throw new MeshError(
      'HM_CONSUL_ANSWER_TOO_LARGE',
      `Answer of Consul to ${what} lists ${answer.body.length} entries, more than ${MAX_ELEMENTS}`,
    )
  const lastContactMs = answer.lastContactMs ?? 0
  if (lastContactMs > MAX_LAST_CONTACT_MS && hasOlder)
    throw new MeshError(
      'HM_CONSUL_ANSWER_OLD',
      `The Consul server that answered ${what} last heard from its leader ${Math.round(lastContactMs / 1_000)} s ago`,
    )
}

/** The kind of failure of a transport call. */
export function failureKind(error: unknown): FailureKind {
  switch (errorCode(error)) {
    case 'HM_CONSUL_FORBIDDEN':
      return 'forbidden'
    case 'HM_CONSUL_RATE_LIMITED':
      return 'limited'
    case 'HM_CONSUL_UNREACHABLE':
    case 'HM_CONSUL_TIMEOUT':
      return 'unreachable'
    default:
      return 'refused'
  }
}
