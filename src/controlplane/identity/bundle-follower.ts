/**
 * Follows the bundle of the CA by a long poll: what is revoked, and which roots there are. Its answer is also how this host
 * learns that the CA still knows it.
 */
import { Retry } from '../../lib/backoff.ts'
import { WakeableLoop } from '../../lib/wakeable-loop.ts'
import { isNetworkFailure, REFUSED_BACKOFF, UNREACHABLE_BACKOFF } from './ca-connection.ts'
import type { CaParts, Enrollment } from './enrollment.ts'

/** How soon it is looked again whether there is a CA to ask, milliseconds. */
const LOOK_MS = 250

/** The least time between two questions that brought nothing, milliseconds. */
const IDLE_MS = 1_000

/** Follows from now on; resolves when `signal` of the parts has aborted and the last poll has ended. */
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
    // After a failure an answer at once, not in half a minute: it says that the CA is back.
    const using = { have: retry.isFailing ? '' : current.id, roots: current.rootsId }
    const answer = await client.bundle(bundle.trust, host.credential, using)
    bundle.take(answer, client.address)
    retry.reset()
    enrollment.noteAccepted()
    // One that we cannot use, or a server that does not wait: not a reason to ask without end.
    const isNews = answer.id === bundle.current?.id && answer.id !== using.have
    return isNews ? 0 : IDLE_MS - (clock.monotonicMs() - askedAtMs)
  } catch (thrown) {
    // A credential that was replaced while the poll was open has its connections closed: the CA had no part in it.
    if (signal.aborted || host !== enrollment.host) return 0
    if (isNetworkFailure(thrown)) {
      connection.noteFailure(thrown)
      return retry.failed()
    }
    enrollment.noteRefusal(thrown)
    return retry.failed(REFUSED_BACKOFF)
  }
}
