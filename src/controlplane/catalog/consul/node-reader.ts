/**
 * Reads what is registered on a node, for {@link Claims}: a few small stale reads at once. Each answer is reused for a
 * moment, so that many services of one node cost one read.
 */
import type { Clock } from '../../../lib/clock.ts'
import { decodeNodeServices, type NodeService } from './instances.ts'
import { type ConsulTransport, requireOk } from './transport.ts'

/** Reads nodes of the agent's own datacenter, or of another. */
export type NodeReader = (
  node: string,
  datacenter: string | undefined,
) => Promise<readonly NodeService[]>

/** How long an answer is reused, milliseconds. */
const GOOD_MS = 1_000

/** Most reads in flight at once. */
const CONCURRENCY = 3

/** The answer, its services, each of them, and its own fields; not tags and meta, which others may make any size. */
const LEVELS = 3

/** Reads over `transport`; the caller keeps ownership of it. */
export function createNodeReader(transport: ConsulTransport, clock: Clock): NodeReader {
  const answers = new Map<
    string,
    { readonly atMs: number; readonly answer: Promise<readonly NodeService[]> }
  >()
  const waiting: (() => void)[] = []
  let running = 0

  async function read(path: string): Promise<readonly NodeService[]> {
    if (running >= CONCURRENCY) await new Promise<void>((resolve) => waiting.push(resolve))
    running += 1
    try {
      return decodeNodeServices(
        requireOk(await transport.call('GET', path, { levels: LEVELS }), `reading ${path}`).body,
      )
    } finally {
      running -= 1
      waiting.shift()?.()
    }
  }

  return (node, datacenter) => {
    const path = `/v1/catalog/node/${encodeURIComponent(node)}?stale${datacenter === undefined ? '' : `&dc=${encodeURIComponent(datacenter)}`}`
    const nowMs = clock.monotonicMs()
    for (const [key, { atMs }] of answers) {
      if (nowMs - atMs < GOOD_MS) break
      answers.delete(key)
    }
    const known = answers.get(path)
    if (known !== undefined) return known.answer
    const answer = read(path)
    answers.set(path, { atMs: nowMs, answer })
    return answer
  }
}
