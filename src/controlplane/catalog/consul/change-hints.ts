/**
 * Reports which services have just changed, for watches without a blocking query of their own.
 *
 * A host may have a few dozen blocking queries at its agent; one that follows hundreds of services polls for the rest.
 * While it polls, one more blocking query follows the summary of all services that Consul makes for its own dashboard
 * (`/v1/internal/ui/services`; 0.2 KB per service, wakes on every change of instances and checks). Services that
 * differ from the last summary are queried again at once. The summary is not a documented API, so it is only a hint:
 * without it, or where it misses a change (a moved address), polling finds the change later.
 */
import { isRecord } from '../../../lib/json-value.ts'
import type { Follower, FollowWatch } from './blocking-query.ts'

/** How often to check whether watches have to poll, milliseconds. */
const LOOK_MS = 2_000

/** A change that is reversed between two summaries is missed: the closer together they are, the better. */
const HINT_PACE = { everyMs: 200, maxIdleMs: 1_000 }

/** Failures of this query are not reported as problems of the catalog: without it watches poll. */
export const SUMMARY_PATH = '/v1/internal/ui/services'

/** Follows the summary while any watch of `follower` polls. The caller keeps ownership of the follower. */
export function startChangeHints(follower: Follower): Disposable {
  let query: FollowWatch | undefined
  let known: ReadonlyMap<string, string> | undefined

  function look(): void {
    const isNeeded = follower.pollingCount() > 0
    if (isNeeded && query === undefined) {
      known = undefined
      query = follower.follow(
        SUMMARY_PATH,
        (body) => {
          const summary = readSummary(body)
          if (known !== undefined) follower.refresh(changedServices(known, summary))
          known = summary
        },
        { priority: 'urgent', pace: HINT_PACE },
      )
    } else if (!isNeeded && query !== undefined) {
      query[Symbol.dispose]()
      query = undefined
    }
  }

  const timer = setInterval(look, LOOK_MS)
  timer.unref()
  return {
    [Symbol.dispose]() {
      clearInterval(timer)
      query?.[Symbol.dispose]()
    },
  }
}

/** The summary of each service by name, including its proxies. Malformed entries are skipped. */
export function readSummary(body: unknown): ReadonlyMap<string, string> {
  const summary = new Map<string, string>()
  if (!Array.isArray(body)) return summary
  for (const entry of body) {
    if (!isRecord(entry) || typeof entry['Name'] !== 'string') continue
    const text = JSON.stringify(entry)
    const proxied = Array.isArray(entry['ProxyFor']) ? entry['ProxyFor'] : []
    for (const name of [entry['Name'], ...proxied])
      if (typeof name === 'string') summary.set(name, `${summary.get(name) ?? ''}${text}`)
  }
  return summary
}

/** The services whose summary is new, changed or removed. */
export function changedServices(
  before: ReadonlyMap<string, string>,
  after: ReadonlyMap<string, string>,
): readonly string[] {
  const changed = [...after].filter(([name, text]) => before.get(name) !== text)
  const gone = [...before.keys()].filter((name) => !after.has(name))
  return [...changed.map(([name]) => name), ...gone]
}
