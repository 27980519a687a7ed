/**
 * The health of this host's services, by their checks at the agent; the TTL checks of their proxies are set to it. Pure
 * but for a clock.
 *
 * After its start an agent has each check as critical, without output, until the check has run. That says nothing
 * about the service.
 */
import type { Clock } from '../../../lib/clock.ts'
import { isRecord, member } from '../../../lib/json-value.ts'
import type { Health } from '../../../model/endpoint.ts'
import { malformed, worstCheck, worstHealth } from './decode.ts'

/** Health of one service. */
export interface OwnHealth {
  readonly health: Health
  /** The check that determines it, in one line; undefined when all pass. */
  readonly failing: string | undefined
  /** IDs of the checks that are critical. */
  readonly critical: readonly string[]
  /** IDs of the checks that have output, whatever their state. */
  readonly withOutput: ReadonlySet<string>
}

/** The health of a service that its operator deregistered. */
const WITHDRAWN: OwnHealth = {
  health: 'critical',
  failing: 'Service is not registered',
  critical: [],
  withOutput: new Set(),
}

/**
 * How long a service keeps its previous health when its checks have not run since the agent started: an agent runs a
 * check for the first time at any moment of its interval. Milliseconds.
 */
const NOT_RUN_MS = 10_000

/** The health of each service at the last successful read. */
export class OwnHealthHistory {
  readonly #clock: Clock
  #byId: ReadonlyMap<string, OwnHealth> = new Map()
  /** When the checks of a service were first found not to have run since the agent started. */
  readonly #notRunSinceMs = new Map<string, number>()

  constructor(clock: Clock) {
    this.#clock = clock
  }

  /** Undefined for a service that was not in the last read. */
  of(id: string): OwnHealth | undefined {
    return this.#byId.get(id)
  }

  /** Replaces what is known by the result of a read. */
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
 * The path for the checks of these services only; others may have registered any number. The checks of the node apply
 * to a proxy anyway.
 */
export function ownChecksPath(serviceIds: readonly string[]): string {
  // String literals of the filter language are quoted as in JSON.
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
 * Whether a service is critical only because its checks have not run since the agent started: its critical checks had
 * output before, and have none now.
 */
export function hasNotRun(before: OwnHealth, now: OwnHealth): boolean {
  return (
    now.health === 'critical' &&
    now.critical.every((id) => before.withOutput.has(id) && !now.withOutput.has(id))
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
    withOutput: new Set(idsOf((check) => textOf(check, 'Output') !== '')),
  }
}

/** The string under `key`; empty if there is none. */
function textOf(check: unknown, key: string): string {
  const text = member(check, key)
  return typeof text === 'string' ? text : ''
}
