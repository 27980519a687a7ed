/**
 * How the services of this host are, by what their checks at the agent say: what the TTL checks of their proxies are told. Pure but
 * for a clock.
 *
 * An agent that starts has a check as critical, without a word, until it has run. That is no news of its service.
 */
import type { Clock } from '../../../lib/clock.ts'
import { isRecord, member } from '../../../lib/json-value.ts'
import type { Health } from '../../../model/endpoint.ts'
import { malformed, worstCheck, worstHealth } from './decode.ts'

/** Of one service. */
export interface OwnHealth {
  readonly health: Health
  /** The check that makes it so, in one line; undefined when all pass. */
  readonly failing: string | undefined
  /** IDs of the checks that are critical. */
  readonly critical: readonly string[]
  /** IDs of the checks that say something, whatever their state. */
  readonly speaking: ReadonlySet<string>
}

/** How a service is that its operator took away. */
export const WITHDRAWN: OwnHealth = {
  health: 'critical',
  failing: 'Service is not registered',
  critical: [],
  speaking: new Set(),
}

/**
 * A service whose checks have not run since its agent started is as well as before, for so long: an agent runs a check for the
 * first time at any moment of its interval. Milliseconds.
 */
const NOT_RUN_MS = 10_000

/** How each service was at the last look that told. */
export class OwnHealthHistory {
  readonly #clock: Clock
  #byId: ReadonlyMap<string, OwnHealth> = new Map()
  /** When the checks of a service were first found not to have run. */
  readonly #notRunSinceMs = new Map<string, number>()

  constructor(clock: Clock) {
    this.#clock = clock
  }

  /** Undefined for one of which the last look told nothing. */
  of(id: string): OwnHealth | undefined {
    return this.#byId.get(id)
  }

  /** Takes what a look has told, in place of what was known. */
  take(read: ReadonlyMap<string, OwnHealth>, withdrawn: ReadonlySet<string>): void {
    this.#byId = new Map(
      [...read].map(([id, now]) => [id, withdrawn.has(id) ? WITHDRAWN : this.#judge(id, now)]),
    )
  }

  #judge(id: string, now: OwnHealth): OwnHealth {
    const before = this.of(id)
    if (before === undefined || !hasNotRun(before, now)) {
      this.#notRunSinceMs.delete(id)
      return now
    }
    const nowMs = this.#clock.monotonicMs()
    const sinceMs = this.#notRunSinceMs.get(id) ?? nowMs
    this.#notRunSinceMs.set(id, sinceMs)
    return nowMs - sinceMs < NOT_RUN_MS ? before : now
  }
}

/**
 * The checks of these services and nobody else's, of which there may be any amount. Those of the node count for a proxy without
 * being told.
 */
export function ownChecksPath(serviceIds: readonly string[]): string {
  // A string of the filter's language is quoted as one of JSON is.
  const filter = serviceIds.map((id) => `ServiceID == ${JSON.stringify(id)}`).join(' or ')
  return `/v1/agent/checks?filter=${encodeURIComponent(filter)}`
}

/**
 * Reads the answer to {@link ownChecksPath}.
 * @throws MeshError HM_CONSUL_ANSWER_MALFORMED
 */
export function decodeOwnHealth(
  body: unknown,
  serviceIds: readonly string[],
): ReadonlyMap<string, OwnHealth> {
  if (!isRecord(body)) throw malformed('the checks of its agent', 'an object', body)
  const checks = Object.values(body)
  return new Map(
    serviceIds.map((id) => [
      id,
      healthOf(checks.filter((check) => textOf(check, 'ServiceID') === id)),
    ]),
  )
}

/**
 * Whether a service is critical only because its checks have not run since the agent started: those that are said something
 * before, and nothing now.
 */
export function hasNotRun(before: OwnHealth, now: OwnHealth): boolean {
  return (
    now.health === 'critical' &&
    now.critical.every((id) => before.speaking.has(id) && !now.speaking.has(id))
  )
}

function healthOf(checks: readonly unknown[]): OwnHealth {
  const health = worstHealth(checks) ?? 'critical'
  const idsOf = (matches: (check: unknown) => boolean): readonly string[] =>
    checks.filter(matches).map((check) => textOf(check, 'CheckID'))
  return {
    health,
    failing: worstCheck(checks, health),
    critical: idsOf((check) => !['passing', 'warning'].includes(textOf(check, 'Status'))),
    speaking: new Set(idsOf((check) => textOf(check, 'Output') !== '')),
  }
}

/** Empty unless it is a text. */
function textOf(check: unknown, key: string): string {
  const text = member(check, key)
  return typeof text === 'string' ? text : ''
}
