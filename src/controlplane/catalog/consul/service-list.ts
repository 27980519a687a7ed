/**
 * Follows which services the mesh has, those that have a connect proxy or are connect-native, and the virtual
 * addresses that Consul (1.11 and later) gives them.
 *
 * Consul has no such list. `/v1/catalog/services` names everything that is registered, so each name is
 * asked once who answers Connect for it, and again when its answer is old, when a service named after it
 * (`<name>-…`, as proxies are) appears, or when another has its address. The cost is one small stale read a
 * name and five minutes.
 *
 * A list that is suddenly short is held back for a moment, and one that does not even name Consul itself is
 * never believed: that is what a token without rights sees.
 */
import { type Clock, type Random, systemClock, systemRandom } from '../../../lib/clock.ts'
import { describeError, MeshError } from '../../../lib/errors.ts'
import type { Log } from '../../../lib/log.ts'
import type { ListedService, Watch } from '../catalog.ts'
import type { Follower } from './blocking-query.ts'
import { type DecodedConnect, decodeConnect, decodeServiceNames } from './decode.ts'
import { DOUBT_MS, isSuddenLoss } from './doubt.ts'
import { type ConsulTransport, requireOk } from './transport.ts'

/** A running watch of the list. */
export interface ServiceListWatch extends Watch {
  /** What is wrong now, one sentence each. */
  problems(): readonly string[]
  /** Asks again about all names that nobody answered Connect for: what the token may see has changed. */
  recheck(): void
}

/** What the watch is built from. */
export interface ServiceListOptions {
  readonly transport: ConsulTransport
  readonly follower: Follower
  readonly log: Log
  readonly clock?: Clock
  readonly random?: Random
  /** The list of an earlier run. */
  readonly last?: readonly ListedService[] | undefined
}

/** What Consul said of one name. */
interface Verdict extends DecodedConnect {
  readonly askedAtMs: number
  readonly untilMs: number
}

/** More names than this are not asked about; the first in order of the alphabet are. */
const MAX_NAMES = 5_000

/** An answer about a name holds this long, milliseconds. */
const VERDICT_MS = 300_000

/** How often old answers are looked for. */
const SWEEP_MS = 15_000

/** Questions under way at once. */
const CONCURRENCY = 3

/** Follows the list; `onChange` gets it sorted by name, every time it changes. */
export function watchServiceList(
  onChange: (services: readonly ListedService[]) => void,
  options: ServiceListOptions,
): ServiceListWatch {
  const { transport, follower, log, clock = systemClock, random = systemRandom } = options
  const closing = new AbortController()
  const { signal } = closing
  const verdictByName = new Map<string, Verdict>()
  let names: readonly string[] | undefined
  let published: string | undefined
  let believed = (options.last ?? []).map(({ name }) => name)
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
    const askedAtMs = clock.monotonicMs()
    const untilMs = askedAtMs + VERDICT_MS * (0.8 + 0.4 * random())
    verdictByName.set(name, { ...decodeConnect(name, answer.body), askedAtMs, untilMs })
  }

  async function askEach(asked: readonly string[]): Promise<void> {
    const open = [...asked]
    const worker = async (): Promise<void> => {
      for (let name = open.shift(); name !== undefined && !signal.aborted; name = open.shift())
        await ask(name)
    }
    await Promise.all(Array.from({ length: CONCURRENCY }, worker))
  }

  async function askAll(): Promise<void> {
    const nowMs = clock.monotonicMs()
    await askEach((names ?? []).filter((name) => (verdictByName.get(name)?.untilMs ?? 0) <= nowMs))
    await askEach(outdated(verdictByName, nowMs))
  }

  function publish(): void {
    if (names === undefined || signal.aborted) return
    const list = names.flatMap((name): ListedService[] => {
      const verdict = verdictByName.get(name)
      return verdict?.isMesh === true ? [{ name, virtualIps: verdict.virtualIps }] : []
    })
    const mesh = list.map(({ name }) => name)
    const mark = JSON.stringify(list)
    if (isHeldBack(mesh) || mark === published) return
    published = mark
    believed = mesh
    doubtedAtMs = undefined
    onChange(list)
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
      await clock.sleep(
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

/**
 * Names asked about before `sinceMs` that have an address which another name has by an answer since: Consul gives
 * the address of a service that has lost its last proxy to the next one.
 */
function outdated(verdictByName: ReadonlyMap<string, Verdict>, sinceMs: number): readonly string[] {
  const verdicts = [...verdictByName]
  const newIps = new Set(
    verdicts.flatMap(([, { virtualIps, askedAtMs }]) => (askedAtMs >= sinceMs ? virtualIps : [])),
  )
  return verdicts
    .filter(([, { askedAtMs }]) => askedAtMs < sinceMs)
    .filter(([, { virtualIps }]) => virtualIps.some((ip) => newIps.has(ip)))
    .map(([name]) => name)
}
