/**
 * Follows the bundle of the CA by a long poll: the revoked certificates and the current roots. An answer also confirms
 * to this host that the CA still accepts it.
 */
import { Retry } from '../../lib/backoff.ts'
import { WakeableLoop } from '../../lib/wakeable-loop.ts'
import { isNetworkFailure, REFUSED_BACKOFF, UNREACHABLE_BACKOFF } from './ca-connection.ts'
import type { CaParts, Enrollment } from './enrollment.ts'

/** How often to check whether there is a CA to query, milliseconds. */
const LOOK_MS = 250

/** Least time between two queries without news, milliseconds. */
const IDLE_MS = 1_000

/** Starts to follow; resolves when `signal` of the parts has aborted and the last poll has ended. */
export function followBundle(parts: CaParts, enrollment: Enrollment): Promise<void> {
  const { clock, random, signal } = parts
  const retry = new Retry(UNREACHABLE_BACKOFF, clock, random)
  return new WakeableLoop({ clock, signal, pass: () => poll(parts, enrollment, retry) }).ended
}

/** One poll; returns how long to wait for the next. */
async function poll(parts: CaParts, enrollment: Enrollment, retry: Retry): Promise<number> {
  const { connection, bundle, clock, signal } = parts
  const host = enrollment.validHost
  const { current } = bundle
  if (host === undefined || current === undefined || connection.address === undefined)
    return LOOK_MS
  const { client } = connection
  const askedAtMs = clock.monotonicMs()
  try {
    // After a failure the answer should come at once, not in half a minute: it shows that the CA is back.
    const using = { have: retry.isFailing ? '' : current.id, roots: current.rootsId }
    const answer = await client.bundle(bundle.trust, host.credential, using)
    bundle.take(answer, client.address)
    retry.reset()
    enrollment.noteAccepted()
    // A bundle that cannot be used, or a server that does not wait, must not cause a tight loop.
    const isNew = answer.id === bundle.current?.id && answer.id !== using.have
    return isNew ? 0 : IDLE_MS - (clock.monotonicMs() - askedAtMs)
  } catch (thrown) {
    // When a credential is replaced during the poll, its connections are closed: that is no failure of the CA.
    if (signal.aborted || host !== enrollment.host) return 0
    if (isNetworkFailure(thrown)) {
      connection.noteFailure(thrown)
      return retry.failed()
    }
    enrollment.noteRefusal(thrown)
    return retry.failed(REFUSED_BACKOFF)
  }
}
