/**
 * Follows the names of all mesh services: those that have a connect proxy or are connect-native.
 *
 * Consul has no such list. `/v1/catalog/services` names everything that is registered, so each name is
 * asked once whether anybody answers Connect for it, and again when its answer is old or when a service
 * named after it (`<name>-…`, as proxies are) appears. The cost is one small stale read a name and five
 * minutes: following all services is for small fleets.
 *
 * A list that is suddenly short is held back for a moment, and one that does not even name Consul itself is
 * never believed: that is what a token without rights sees.
 */
import { sleep } from '../../../lib/abort.ts'
import { type Clock, type Random, systemClock, systemRandom } from '../../../lib/clock.ts'
import { describeError, MeshError } from '../../../lib/errors.ts'
import type { Log } from '../../../lib/log.ts'
import type { Watch } from '../catalog.ts'
import type { Follower } from './blocking-query.ts'
import { decodeServiceNames } from './decode.ts'
import { DOUBT_MS, isSuddenLoss } from './doubt.ts'
import { type ConsulTransport, requireOk } from './transport.ts'

/** A running watch of names. */
export interface ServiceNamesWatch extends Watch {
  /** What is wrong now, one sentence each. */
  problems(): readonly string[]
  /** Asks again about all names that nobody answered Connect for: what the token may see has changed. */
  recheck(): void
}

/** What the watch is built from. */
export interface ServiceNamesOptions {
  readonly transport: ConsulTransport
  readonly follower: Follower
  readonly log: Log
  readonly clock?: Clock
  readonly random?: Random
  /** The names of an earlier run. */
  readonly last?: readonly string[] | undefined
}

/** More names than this are not asked about; the first in order of the alphabet are. */
const MAX_NAMES = 5_000

/** An answer about a name holds this long, milliseconds. */
const VERDICT_MS = 300_000

/** How often old answers are looked for. */
const SWEEP_MS = 15_000

/** Questions under way at once. */
const CONCURRENCY = 3

/** Follows the names; `onChange` gets them sorted, every time the set changes. */
export function watchServiceNames(
  onChange: (names: readonly string[]) => void,
  options: ServiceNamesOptions,
): ServiceNamesWatch {
  const { transport, follower, log, clock = systemClock, random = systemRandom } = options
  const closing = new AbortController()
  const { signal } = closing
  const verdictByName = new Map<string, { isMesh: boolean; untilMs: number }>()
  let names: readonly string[] | undefined
  let published: string | undefined
  let believed = options.last ?? []
  let doubtedAtMs: number | undefined
  let problem: string | undefined
  let napping = new AbortController()

  const listing = follower.follow(
    '/v1/catalog/services',
    (body) => {
      const now = decodeServiceNames(body).slice(0, MAX_NAMES)
      // Consul's own servers are always in the catalog.
      if (now.length === 0)
        throw new MeshError(
          'HM_CONSUL_ANSWER_DOUBTED',
          'Consul names no service, not even itself: the token seems to have lost service:read, so that is not believed',
        )
      const known = new Set(names)
      for (const name of now) if (!known.has(name)) doubtParents(name)
      const present = new Set(now)
      for (const name of verdictByName.keys()) if (!present.has(name)) verdictByName.delete(name)
      names = now
      napping.abort()
    },
    { priority: 'urgent' },
  )

  /** `web-api-hostmesh` may be the proxy of `web-api` or of `web`: ask about both again. */
  function doubtParents(name: string): void {
    for (let dash = name.lastIndexOf('-'); dash > 0; dash = name.lastIndexOf('-', dash - 1)) {
      const parent = name.slice(0, dash)
      if (verdictByName.get(parent)?.isMesh === false) verdictByName.delete(parent)
    }
  }

  async function ask(name: string): Promise<void> {
    const path = `/v1/catalog/connect/${encodeURIComponent(name)}?stale`
    const answer = requireOk(await transport.call('GET', path, { signal }), `reading ${path}`)
    const isMesh = Array.isArray(answer.body) && answer.body.length > 0
    const untilMs = clock.monotonicMs() + VERDICT_MS * (0.8 + 0.4 * random())
    verdictByName.set(name, { isMesh, untilMs })
  }

  async function askAll(): Promise<void> {
    const nowMs = clock.monotonicMs()
    const open = (names ?? []).filter((name) => (verdictByName.get(name)?.untilMs ?? 0) <= nowMs)
    const worker = async (): Promise<void> => {
      for (let name = open.shift(); name !== undefined && !signal.aborted; name = open.shift())
        await ask(name)
    }
    await Promise.all(Array.from({ length: CONCURRENCY }, worker))
  }

  function publish(): void {
    if (names === undefined || signal.aborted) return
    const mesh = names.filter((name) => verdictByName.get(name)?.isMesh === true)
    const mark = mesh.join('\n')
    if (isHeldBack(mesh) || mark === published) return
    published = mark
    believed = mesh
    doubtedAtMs = undefined
    onChange(mesh)
  }

  /** Whether too many names are gone to believe it yet; those are asked about again then. */
  function isHeldBack(mesh: readonly string[]): boolean {
    if (!isSuddenLoss(believed, mesh)) {
      doubtedAtMs = undefined
      return false
    }
    doubtedAtMs ??= clock.monotonicMs()
    if (clock.monotonicMs() - doubtedAtMs >= DOUBT_MS) return false
    const present = new Set(mesh)
    for (const name of believed) if (!present.has(name)) verdictByName.delete(name)
    return true
  }

  async function run(): Promise<void> {
    while (!signal.aborted) {
      napping = new AbortController()
      try {
        await askAll()
        problem = undefined
        publish()
      } catch (error) {
        if (signal.aborted) return
        if (problem === undefined) log.warn('Cannot tell which services are in the mesh')
        problem = describeError(error)
      }
      await sleep(
        problem === undefined
          ? doubtedAtMs === undefined
            ? SWEEP_MS
            : DOUBT_MS
          : 1_000 + random() * 4_000,
        AbortSignal.any([signal, napping.signal]),
      )
    }
  }

  setImmediate(() => void run())
  return {
    problems: () => (problem === undefined ? [] : [problem]),
    recheck() {
      for (const [name, { isMesh }] of verdictByName) if (!isMesh) verdictByName.delete(name)
      napping.abort()
    },
    close() {
      closing.abort()
      listing.close()
    },
  }
}
