/**
 * The rules of a blocking query, as a value: which index the next request carries and how long to wait
 * before it. Pure; `blocking-query.ts` is the loop around it.
 *
 *              answer                         answer, new or lower index
 *   index=0 -----------> index=n, blocks ---------------------------------> pace, ask again
 *      ^                     |
 *      +---------------------+  any failure, an index that went backwards, every 5 minutes
 *
 * Consul's rules: an index that goes backwards starts over at 0; 0 in an answer counts as 1; an answer does not imply a
 * change. Ours: after any failure start over at 0, because on a restored or replaced server an old index blocks without
 * end; and never query in a tight loop, whatever the server does.
 */
import { backoffMs } from '../../../lib/backoff.ts'
import type { Random } from '../../../lib/clock.ts'

/** How fast a watch may follow a busy source. */
export interface Pace {
  /** Time that one request uses up, milliseconds; {@link BURST} of them may accumulate. */
  readonly everyMs: number
  /** Answers without news slow the watch down to this interval, milliseconds. */
  readonly maxIdleMs: number
}

/** The state of a watch between two requests. */
export interface QueryState {
  readonly pace: Pace
  /** Sent with the next request; 0n is answered at once. */
  readonly index: bigint
  /** Failures since the last good answer. */
  readonly failures: number
  /** Consecutive good answers that came early and contained nothing new. */
  readonly idleAnswers: number
  /** Requests that may be sent at once; grows by one every `pace.everyMs`. */
  readonly tokens: number
  readonly tokensAtMs: number
  /** When the next read starts over at index 0 even without a failure. */
  readonly restartAtMs: number
}

/** The result of one request. */
export type QueryOutcome =
  | {
      readonly kind: 'answer'
      /** The raw `X-Consul-Index`. */
      readonly index: string | undefined
      /** Whether the content differs from the previous answer. */
      readonly changed: boolean
      /** Whether the request was allowed to block. */
      readonly mayBlock: boolean
      /** Milliseconds from request to answer. */
      readonly tookMs: number
    }
  /** `forbidden`: 401 or 403. `limited`: 429. `refused`: any other bad answer. `unreachable`: no answer. */
  | { readonly kind: FailureKind }

/** Why a request failed. */
export type FailureKind = 'unreachable' | 'refused' | 'limited' | 'forbidden'

/** The next state and the wait before the next request, milliseconds. */
export interface NextQuery {
  readonly state: QueryState
  readonly delayMs: number
}

/** Wait after a failure, full jitter. */
export const FAILURE_BACKOFF = { minMs: 500, maxMs: 30_000 }

/** A person must grant the missing right: no hurry. */
const FORBIDDEN_BACKOFF = { minMs: 5_000, maxMs: 30_000 }

/** The agent asks for fewer requests. */
const LIMITED_BACKOFF = { minMs: 2_000, maxMs: 60_000 }

/** Requests at once after a quiet period: a deployment changes a service a few times in a row. */
const BURST = 3

/** For a watch on one service, or on anything of that size. */
const USUAL_PACE: Pace = { everyMs: 1_000, maxIdleMs: 5_000 }

/** An answer that took longer than this does not count as idle. */
const EARLY_MS = 10_000

/** An answer without a usable index cannot be used to block: poll this often. */
const POLL_MS = 5_000

/** When there are more watches than connections, those without one poll this often. */
const CROWDED_POLL_MS = 10_000

/** How often an index is discarded even without a failure: recovers from the effects of a restored snapshot. */
const RESTART_MS = 300_000

/** The state before the first request. */
export function firstQuery(nowMs: number, random: Random, pace = USUAL_PACE): QueryState {
  return {
    pace,
    index: 0n,
    failures: 0,
    idleAnswers: 0,
    tokens: BURST,
    tokensAtMs: nowMs,
    restartAtMs: nowMs + restartAfter(random),
  }
}

/** Applies one outcome at `nowMs`, the time of its arrival. */
export function nextQuery(
  state: QueryState,
  outcome: QueryOutcome,
  nowMs: number,
  random: Random,
): NextQuery {
  if (outcome.kind !== 'answer') return afterFailure(state, outcome.kind, random)
  const index = parseIndex(outcome.index)
  const healthy = { ...state, failures: 0 }
  if (index === undefined) {
    const delayMs = jittered(POLL_MS, random)
    return { state: { ...healthy, index: 0n, idleAnswers: 0 }, delayMs }
  }
  const startOver = index < state.index || nowMs >= state.restartAtMs
  const restartAtMs = startOver ? nowMs + restartAfter(random) : state.restartAtMs
  if (!outcome.mayBlock)
    return {
      state: { ...healthy, index: startOver ? 0n : index, idleAnswers: 0, restartAtMs },
      delayMs: jittered(CROWDED_POLL_MS, random),
    }
  // A request with index 0 is answered at once by design, and a long wait cost nothing.
  const isIdle = !outcome.changed && state.index !== 0n && outcome.tookMs < EARLY_MS
  const idleAnswers = isIdle ? state.idleAnswers + 1 : 0
  const { everyMs, maxIdleMs } = state.pace
  const tokens = Math.min(BURST, state.tokens + (nowMs - state.tokensAtMs) / everyMs)
  const left = tokens - 1
  const paceMs = left >= 0 ? 0 : -left * everyMs
  const idleMs = idleAnswers < BURST ? 0 : Math.min(maxIdleMs, everyMs * 2 ** (idleAnswers - BURST))
  return {
    state: {
      pace: state.pace,
      index: startOver ? 0n : index,
      failures: 0,
      idleAnswers,
      tokens: left,
      tokensAtMs: nowMs,
      restartAtMs,
    },
    delayMs: Math.max(paceMs, idleMs),
  }
}

/** A usable index: 0 counts as 1; undefined for anything that is not one number below 2^64. */
export function parseIndex(raw: string | undefined): bigint | undefined {
  if (raw === undefined || !/^\d{1,20}$/.test(raw)) return undefined
  const index = BigInt(raw)
  if (index >= 2n ** 64n) return undefined
  return index === 0n ? 1n : index
}

/** Seconds that the next blocking request asks Consul to wait: 45 to 55, so that hosts spread out. */
export function waitSeconds(random: Random): number {
  return Math.round(45 + random() * 10)
}

function afterFailure(state: QueryState, kind: FailureKind, random: Random): NextQuery {
  const backoff =
    kind === 'forbidden'
      ? FORBIDDEN_BACKOFF
      : kind === 'limited'
        ? LIMITED_BACKOFF
        : FAILURE_BACKOFF
  return {
    state: { ...state, index: 0n, failures: state.failures + 1, idleAnswers: 0 },
    delayMs: backoffMs(state.failures + 1, backoff, random),
  }
}

function jittered(ms: number, random: Random): number {
  return ms * (0.8 + 0.2 * random())
}

function restartAfter(random: Random): number {
  return RESTART_MS * (0.8 + 0.4 * random())
}
