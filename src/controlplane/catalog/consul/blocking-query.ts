/**
 * Long polls of one agent: one loop a path, all sharing the transport's watch pool.
 *
 * A watcher hears of an answer only when its content changed, and never of an error: the last good
 * answer stands until there is a better one. An answer that the watcher refuses (it throws) counts as a
 * failure and is offered again. The rules of index and pace are in `query-state.ts`.
 */
import { createHash } from 'node:crypto'
import { type Clock, type Random, systemClock, systemRandom } from '../../../lib/clock.ts'
import { describeError, errorCode, MeshError } from '../../../lib/errors.ts'
import type { Log } from '../../../lib/log.ts'
import { FailureLog } from './failure-log.ts'
import {
  type FailureKind,
  firstQuery,
  nextQuery,
  type Pace,
  type QueryOutcome,
  waitSeconds,
} from './query-state.ts'
import { ruleFor } from './rights.ts'
import { type ConsulAnswer, type ConsulTransport, requireOk, WATCH_SOCKETS } from './transport.ts'

/** A running watch. */
export interface FollowWatch {
  /** Ends it; the call in flight is given up and `onAnswer` is not called again. */
  close(): void
  health(): FollowHealth
}

/** How one watch is doing. */
export interface FollowHealth {
  readonly path: string
  /** Monotonic milliseconds of the last good answer; undefined before the first. */
  readonly lastGoodAtMs: number | undefined
  /** What is wrong now, one sentence; undefined when nothing is. */
  readonly problem: string | undefined
  /** That of the error; undefined without a problem. */
  readonly code: string | undefined
  /** Whether no answer came at all, rather than a bad one. */
  readonly unreachable: boolean
}

/** See {@link FollowOptions.priority}. */
export type Priority = 'urgent' | 'hot' | 'cold'

/** How one watch differs from the usual. */
export interface FollowOptions {
  /**
   * Who goes without a place to wait in when there are more watches than places: `cold` (what changes
   * rarely) first, `urgent` (what the whole host depends on) last; `hot` unless given.
   */
  readonly priority?: Priority
  /** How fast it may follow; {@link USUAL_PACE} unless given. */
  readonly pace?: Pace
  /** What it is about, such as a service's name: {@link Follower.refresh} finds it by that. */
  readonly subject?: string
  /** Levels of the answer that are read; all unless given. */
  readonly levels?: number
}

/** Watches on one agent. */
export interface Follower {
  /**
   * Follows `path` (`/v1/…`, with its query if it has one). `onAnswer` gets the parsed body of every answer
   * whose content differs from the last, and undefined for "not found". It may throw to refuse an answer; then
   * it gets the next one whatever it says.
   */
  follow(path: string, onAnswer: (body: unknown) => void, options?: FollowOptions): FollowWatch
  /** Of all open watches. */
  health(): readonly FollowHealth[]
  /**
   * Asks again at once for those watches on `subjects` that have no place to wait in, because somebody else
   * has seen a change there. Watches that wait at the agent hear of it by themselves.
   */
  refresh(subjects: Iterable<string>): void
  /** How many watches poll at the moment, for want of a place to wait in. */
  pollingCount(): number
  /**
   * Asks anew for all watches, those that wait and those that sit out a failure: the token is another, or what
   * was wrong with the agent is over, and no waiting request would notice that.
   */
  retry(): void
  /** Ends all watches. */
  close(): void
}

/** What a follower is built from. */
export interface FollowerOptions {
  readonly log: Log
  readonly clock?: Clock
  readonly random?: Random
  /** Requests that may wait at the agent at once; fewer than the pool has connections. */
  readonly maxBlocking?: number
}

/** Connections kept free for watches that have to poll. */
const POLLING_SOCKETS = 8

/** Places that watches of each priority leave to those above them. */
const RESERVED: Readonly<Record<Priority, number>> = { urgent: 0, hot: 8, cold: 20 }

/** A stale answer older than this is not better than what we have. */
const MAX_LAST_CONTACT_MS = 10_000

/** Longest list in an answer; instances and intentions are limited further where they are decoded. */
const MAX_ELEMENTS = 20_000

/** Spreads the watches that wake up together when the agent is back. */
const RECOVERY_SPREAD_MS = 500

/** A follower over `transport`. The transport stays the caller's. */
export function createFollower(transport: ConsulTransport, options: FollowerOptions): Follower {
  const { log, clock = systemClock, random = systemRandom } = options
  const watches = new Set<FollowWatch>()
  const asleepUnreachable = new Set<() => void>()
  const asleepRefused = new Set<() => void>()
  /** What calls off a request that is under way, to make it again. */
  const restarters = new Set<() => void>()
  /** What asks again at once, by subject. */
  const refreshers = new Map<string, Set<() => void>>()
  let pollingCount = 0
  let freePlaces = options.maxBlocking ?? WATCH_SOCKETS - POLLING_SOCKETS
  let reachable = true

  const noteReachable = (): void => {
    if (!reachable) log.info('Consul answers again', { address: transport.address })
    reachable = true
    // The agent is back for one watch, so it is back for all: none sits out its back-off.
    for (const wake of asleepUnreachable) wake()
    asleepUnreachable.clear()
  }
  const noteUnreachable = (problem: string): void => {
    if (reachable) log.warn('Consul does not answer; the last good state stays', { problem })
    reachable = false
  }

  async function nap(
    ms: number,
    kind: FailureKind | undefined,
    signal: AbortSignal,
  ): Promise<void> {
    if (ms <= 0) return
    if (kind === undefined || kind === 'limited') {
      await clock.sleep(ms, signal)
      return
    }
    const asleep = kind === 'unreachable' ? asleepUnreachable : asleepRefused
    const woken = new AbortController()
    const wake = (): void => woken.abort()
    asleep.add(wake)
    await clock.sleep(ms, AbortSignal.any([signal, woken.signal]))
    asleep.delete(wake)
    if (woken.signal.aborted) await clock.sleep(random() * RECOVERY_SPREAD_MS, signal)
  }

  function retry(): void {
    for (const restart of restarters) restart()
    for (const asleep of [asleepUnreachable, asleepRefused]) {
      for (const wake of asleep) wake()
      asleep.clear()
    }
  }

  // A request that waits does so in the name of the token it was made with, and that one is about to be deleted.
  const stopListening = transport.onTokenChange(retry)

  function takePlace(priority: Priority): boolean {
    if (freePlaces <= RESERVED[priority]) return false
    freePlaces -= 1
    return true
  }

  function follow(
    path: string,
    onAnswer: (body: unknown) => void,
    followOptions: FollowOptions = {},
  ): FollowWatch {
    const closing = new AbortController()
    const { signal } = closing
    let health: FollowHealth = {
      path,
      lastGoodAtMs: undefined,
      problem: undefined,
      code: undefined,
      unreachable: false,
    }
    const failures = new FailureLog(clock)
    let seen: string | undefined
    let isRefused = false
    /** Whether somebody saw a change since the last request left. */
    let isOutdated = false
    let wakePolling: (() => void) | undefined
    const refresher = (): void => {
      isOutdated = true
      wakePolling?.()
    }
    const unregister = register(refreshers, followOptions.subject, refresher)

    /** One request; whatever is wrong with it is thrown. */
    async function ask(
      index: bigint,
      mayBlock: boolean,
      callSignal: AbortSignal,
    ): Promise<QueryOutcome> {
      const waitS = waitSeconds(random)
      const startedAtMs = clock.monotonicMs()
      const answer = await transport.call(
        'GET',
        withQuery(path, index, mayBlock ? waitS : undefined),
        {
          pool: 'watch',
          // Consul adds up to a sixteenth to the wait.
          timeoutMs: mayBlock ? (waitS * 1_000 * 17) / 16 + 10_000 : transport.requestTimeoutMs,
          signal: callSignal,
          levels: followOptions.levels,
        },
      )
      requireUsable(answer, path, seen !== undefined)
      const mark = fingerprint(answer.body)
      const changed = isRefused || mark !== seen
      isRefused = true
      if (changed && !signal.aborted) onAnswer(answer.body)
      isRefused = false
      seen = mark
      const tookMs = clock.monotonicMs() - startedAtMs
      return { kind: 'answer', index: answer.index, changed, mayBlock, tookMs }
    }

    /** Undefined when the request was called off to be made again. */
    async function attempt(index: bigint): Promise<QueryOutcome | undefined> {
      const hasPlace = takePlace(followOptions.priority ?? 'hot')
      isOutdated = false
      const restarting = new AbortController()
      const restart = (): void => restarting.abort()
      restarters.add(restart)
      try {
        const callSignal = AbortSignal.any([signal, restarting.signal])
        const outcome = await ask(hasPlace ? index : 0n, hasPlace, callSignal)
        if (failures.recover()) log.info('Watch recovered', { path })
        health = {
          path,
          lastGoodAtMs: clock.monotonicMs(),
          problem: undefined,
          code: undefined,
          unreachable: false,
        }
        noteReachable()
        return outcome
      } catch (error) {
        const kind = failureKind(error)
        if (signal.aborted) return { kind }
        if (restarting.signal.aborted) return undefined
        const problem = describeError(error)
        const unreachable = kind === 'unreachable'
        if (unreachable) noteUnreachable(problem)
        else if (failures.isNews(problem))
          log[errorCode(error) === 'HM_CONSUL_ANSWER_DOUBTED' ? 'info' : 'warn'](
            'Watch failed; its last good answer stays',
            { path, problem },
          )
        health = { ...health, problem, code: errorCode(error), unreachable }
        return { kind }
      } finally {
        restarters.delete(restart)
        if (hasPlace) freePlaces += 1
      }
    }

    async function napBetweenPolls(ms: number): Promise<void> {
      if (isOutdated) return
      const woken = new AbortController()
      wakePolling = () => woken.abort()
      pollingCount += 1
      await clock.sleep(ms, AbortSignal.any([signal, woken.signal]))
      pollingCount -= 1
      wakePolling = undefined
    }

    async function run(): Promise<void> {
      let state = firstQuery(clock.monotonicMs(), random, followOptions.pace)
      while (!signal.aborted) {
        const outcome = await attempt(state.index)
        if (outcome === undefined) {
          state = { ...state, index: 0n }
          await clock.sleep(random() * RECOVERY_SPREAD_MS, signal)
          continue
        }
        const next = nextQuery(state, outcome, clock.monotonicMs(), random)
        state = next.state
        if (outcome.kind === 'answer' && !outcome.mayBlock) await napBetweenPolls(next.delayMs)
        else await nap(next.delayMs, outcome.kind === 'answer' ? undefined : outcome.kind, signal)
      }
    }

    const watch: FollowWatch = {
      health: () => health,
      close() {
        watches.delete(watch)
        unregister()
        closing.abort()
      },
    }
    watches.add(watch)
    // The first request leaves in the next turn, so that onAnswer never runs inside follow().
    setImmediate(() => void run())
    return watch
  }

  return {
    follow,
    health: () => [...watches].map((watch) => watch.health()),
    refresh(subjects) {
      for (const subject of subjects)
        for (const refresher of refreshers.get(subject) ?? []) refresher()
    },
    pollingCount: () => pollingCount,
    retry,
    close() {
      stopListening()
      for (const watch of watches) watch.close()
    },
  }
}

function register(
  refreshers: Map<string, Set<() => void>>,
  subject: string | undefined,
  refresher: () => void,
): () => void {
  if (subject === undefined) return () => undefined
  const ofSubject = refreshers.get(subject) ?? new Set()
  refreshers.set(subject, ofSubject.add(refresher))
  return () => {
    ofSubject.delete(refresher)
    if (ofSubject.size === 0) refreshers.delete(subject)
  }
}

/**
 * A digest of an answer's content. Order of keys and of list elements does not count (Consul gives tags
 * in random order), nor do Consul's own version numbers and the output texts of checks.
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

/** `?index&wait&stale` for one request. The agent's own certificate endpoints know no staleness. */
function withQuery(path: string, index: bigint, waitS: number | undefined): string {
  const wait = waitS === undefined || index === 0n ? '' : `&wait=${waitS}s`
  const stale = path.startsWith('/v1/agent/') ? '' : '&stale'
  return `${path}${path.includes('?') ? '&' : '?'}index=${index}${wait}${stale}`
}

function requireUsable(answer: ConsulAnswer, path: string, hasOlder: boolean): void {
  const what = `GET ${path.split('?', 1)[0]}`
  // "Not found" with an index is an answer like any other: Consul blocks until the thing exists.
  if (answer.status === 404 && answer.index !== undefined && answer.index !== '0') return
  requireOk(answer, what, ruleFor(path))
  if (answer.body === undefined)
    throw new MeshError('HM_CONSUL_ANSWER_MALFORMED', `Answer of Consul to ${what} is empty`)
  // Before it is digested: no list that is made use of may be as long.
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

/** What kind of failure a call of the transport has met. */
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
