/**
 * Says which services have just changed, for the watches that have no blocking query of their own.
 *
 * A host may wait at its agent with a few dozen questions at once; one that follows hundreds of services
 * polls for the rest. While it has to, one more blocking query follows the summary of all services that
 * Consul makes for its own dashboard (`/v1/internal/ui/services`; 0.2 KB a service, wakes on every change of instances
 * and checks). What differs from the last summary is asked for again at once. The summary is no documented
 * API: it is only a hint. Without it, or where it misses a change (a moved address), polling finds it later.
 */
import { isRecord } from '../../../lib/json-value.ts'
import type { Follower, FollowWatch } from './blocking-query.ts'

/** How often it is looked whether watches have to poll, milliseconds. */
const LOOK_MS = 2_000

/** A change and its reversal between two summaries are not seen: the closer these are, the better. */
const HINT_PACE = { everyMs: 200, maxIdleMs: 1_000 }

/** Its failures are no problem of the catalog: without it watches poll. */
export const SUMMARY_PATH = '/v1/internal/ui/services'

/** Follows the summary while any watch of `follower` polls. The follower stays the caller's. */
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

/** From the name of a service to what its summary says, its proxies included. Anything else is skipped. */
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

/** The services whose summary is new, different or gone. */
export function changedServices(
  before: ReadonlyMap<string, string>,
  after: ReadonlyMap<string, string>,
): readonly string[] {
  const changed = [...after].filter(([name, text]) => before.get(name) !== text)
  const gone = [...before.keys()].filter((name) => !after.has(name))
  return [...changed.map(([name]) => name), ...gone]
}
