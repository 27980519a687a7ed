/**
 * Follows which services the mesh has, those that have a connect proxy or are connect-native, and the virtual
 * addresses that Consul (1.11 and later) gives them.
 *
 * Consul has no such list. `/v1/catalog/services` names everything that is registered, so each name is
 * asked once who answers Connect for it, and again when its answer is old, when a service named after it
 * (`<name>-…`, as proxies are) appears, or when another has its address. The cost is one small stale read a
 * name and five minutes.
 *
 * Of the services of the mesh their instances are read as well (`/v1/catalog/service/<name>`), at the same pace: who
 * dials one of them means the mesh, whether this host follows the service or not. A service that has no proxy any
 * more stays in the list, marked as gone, until nobody can have its addresses from before.
 *
 * A list that is suddenly short is held back for a moment, and one that does not even name Consul itself is
 * never believed: that is what a token without rights sees.
 */
import { type Clock, type Random, systemClock, systemRandom } from '../../../lib/clock.ts'
import { describeError, errorCode, MeshError } from '../../../lib/errors.ts'
import { fairOrder } from '../../../lib/fair-order.ts'
import type { Log } from '../../../lib/log.ts'
import type { InstanceAddress, ListedService, Watch } from '../catalog.ts'
import { FORGET_MS } from '../known-addresses.ts'
import type { Follower } from './blocking-query.ts'
import { type Claims, judgeClaims } from './claims.ts'
import { type DecodedConnect, decodeConnect, decodeServiceNames, NAME_LEVELS } from './decode.ts'
import { DOUBT_MS, isSuddenLoss } from './doubt.ts'
import { decodeInstances, type PlainInstance } from './instances.ts'
import type { NodeReader } from './node-reader.ts'
import { type ConsulTransport, requireOk } from './transport.ts'

/** A running watch of the list. */
export interface ServiceListWatch extends Watch {
  /** What is wrong now, one sentence each. */
  problems(): readonly string[]
  /** What is too much for this host, one sentence each. */
  excess(): readonly string[]
  /** Claims that are not met, and names of which Consul says what nobody can use, one sentence each. */
  warnings(): readonly string[]
  /** Asks again about all names that nobody answered Connect for: what the token may see has changed. */
  recheck(): void
  /** Takes over what the watch of a service believes, which ends. */
  adopt(name: string, addresses: readonly InstanceAddress[]): void
  /** Where instances of a service are believed to listen; empty for one that is not of the mesh. */
  addressesOf(name: string): readonly InstanceAddress[]
}

/** What the watch is built from. */
export interface ServiceListOptions {
  readonly transport: ConsulTransport
  readonly readNode: NodeReader
  /** What the watch of a followed service believes; undefined for one that nobody follows. */
  readonly followed?: (name: string) => readonly InstanceAddress[] | undefined
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

/** A service that is, or was, of the mesh. */
interface Member {
  readonly claims: Claims
  /** When its instances were last read. */
  readAtMs: number
  /** Wall clock of when nobody answered Connect for it any more. */
  goneSinceMs: number | undefined
}

/** More names than this are not asked about: of each kind so many as there is room for (fair-order.ts). */
const MAX_NAMES = 5_000

/** An answer about one name that is no good to anybody: that name's own affair, and no reason not to ask about the others. */
const UNUSABLE: ReadonlySet<string> = new Set([
  'HM_CONSUL_ANSWER_TOO_LARGE',
  'HM_CONSUL_ANSWER_TOO_DEEP',
  'HM_CONSUL_ANSWER_MALFORMED',
])

/** Names of such answers that are told. */
const MAX_TOLD = 5

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
  const {
    transport,
    readNode,
    followed,
    follower,
    log,
    clock = systemClock,
    random = systemRandom,
  } = options
  const closing = new AbortController()
  const { signal } = closing
  const verdictByName = new Map<string, Verdict>()
  /** Why what Consul says of a name cannot be used. */
  const unusable = new Map<string, string>()
  let names: readonly string[] | undefined
  let leftOut = 0
  let published: string | undefined
  let believed = (options.last ?? []).filter(isThere).map(({ name }) => name)
  const members = new Map<string, Member>()
  for (const { name, addresses = [], goneSinceMs } of options.last ?? [])
    members.set(name, newMember(name, addresses, goneSinceMs))
  let isReading = false
  let doubtedAtMs: number | undefined
  let problem: string | undefined
  let napping = new AbortController()

  const listing = follower.follow(
    '/v1/catalog/services',
    (body) => {
      const all = decodeServiceNames(body)
      const now = all.length > MAX_NAMES ? fairOrder(all).slice(0, MAX_NAMES) : all
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
      for (const name of unusable.keys()) if (!present.has(name)) unusable.delete(name)
      names = now
      leftOut = all.length - now.length
      napping.abort()
    },
    { priority: 'urgent', levels: NAME_LEVELS },
  )

  /** `web-api-hostmesh` may be the proxy of `web-api` or of `web`: ask about both again. */
  function doubtParents(name: string): void {
    for (let dash = name.lastIndexOf('-'); dash > 0; dash = name.lastIndexOf('-', dash - 1)) {
      const parent = name.slice(0, dash)
      if (verdictByName.get(parent)?.isMesh === false) verdictByName.delete(parent)
    }
  }

  function newMember(
    name: string,
    last: readonly InstanceAddress[] = [],
    goneSinceMs?: number,
  ): Member {
    const claims = judgeClaims(name, {
      clock,
      readNode: (node) => readNode(node, undefined),
      last,
      onChange: publish,
    })
    return { claims, readAtMs: Number.NEGATIVE_INFINITY, goneSinceMs }
  }

  /** Who is of the mesh, and who was until now. */
  function noteMembers(mesh: readonly string[]): void {
    const there = new Set(mesh)
    for (const name of mesh) {
      const member = members.get(name)
      if (member === undefined) members.set(name, newMember(name))
      else member.goneSinceMs = undefined
    }
    const nowMs = clock.wallMs()
    for (const [name, member] of members) {
      if (there.has(name)) continue
      member.goneSinceMs ??= nowMs
      if (nowMs - member.goneSinceMs < FORGET_MS) continue
      member.claims.close()
      members.delete(name)
    }
  }

  /** Reads the instances of each member about as often as it is asked about. Never waited for. */
  async function readInstances(): Promise<void> {
    if (isReading) return
    isReading = true
    try {
      const known = new Set(names)
      const due = [...members].filter(
        ([name, { readAtMs }]) =>
          followed?.(name) === undefined &&
          (!known.has(name) || (verdictByName.get(name)?.askedAtMs ?? 0) >= readAtMs),
      )
      await each(due, async ([name, member]) => {
        const readAtMs = clock.monotonicMs()
        try {
          member.claims.take(known.has(name) ? await instancesOf(name) : [])
        } catch (error) {
          noteUnusable(name, error)
        }
        member.readAtMs = readAtMs
      })
    } catch (error) {
      if (!signal.aborted) log.debug('Cannot read instances', { error: describeError(error) })
    } finally {
      isReading = false
    }
    publish()
  }

  async function instancesOf(name: string): Promise<readonly PlainInstance[]> {
    const path = `/v1/catalog/service/${encodeURIComponent(name)}?stale`
    const answer = requireOk(await transport.call('GET', path, { signal }), `reading ${path}`)
    return decodeInstances(name, answer.body).instances
  }

  /** What is known of it stays. @throws what is not the name's own affair. */
  function noteUnusable(name: string, error: unknown): void {
    if (!UNUSABLE.has(errorCode(error))) throw error
    unusable.set(name, describeError(error))
  }

  async function ask(name: string): Promise<void> {
    const path = `/v1/catalog/connect/${encodeURIComponent(name)}?stale`
    const known = verdictByName.get(name)
    let answer: DecodedConnect = known ?? { isMesh: false, virtualIps: [] }
    let askedAtMs = known?.askedAtMs ?? Number.NEGATIVE_INFINITY
    try {
      const { body } = requireOk(await transport.call('GET', path, { signal }), `reading ${path}`)
      answer = decodeConnect(name, body)
      askedAtMs = clock.monotonicMs()
      unusable.delete(name)
    } catch (error) {
      noteUnusable(name, error)
    }
    const untilMs = clock.monotonicMs() + VERDICT_MS * (0.8 + 0.4 * random())
    verdictByName.set(name, { ...answer, askedAtMs, untilMs })
  }

  function unusableText(): readonly string[] {
    if (unusable.size === 0) return []
    const told = [...unusable].slice(0, MAX_TOLD).map(([name, why]) => `${name} (${why})`)
    const more = unusable.size > MAX_TOLD ? ` and ${unusable.size - MAX_TOLD} more` : ''
    return [`Cannot read what Consul has of service ${told.join(', ')}${more}`]
  }

  async function each<T>(items: readonly T[], act: (item: T) => Promise<void>): Promise<void> {
    const open = [...items]
    const worker = async (): Promise<void> => {
      for (let item = open.shift(); item !== undefined && !signal.aborted; item = open.shift())
        await act(item)
    }
    await Promise.all(Array.from({ length: CONCURRENCY }, worker))
  }

  async function askAll(): Promise<void> {
    const nowMs = clock.monotonicMs()
    await each(
      (names ?? []).filter((name) => (verdictByName.get(name)?.untilMs ?? 0) <= nowMs),
      ask,
    )
    await each(outdated(verdictByName, nowMs), ask)
  }

  function publish(): void {
    if (names === undefined || signal.aborted) return
    const mesh = names.filter((name) => verdictByName.get(name)?.isMesh === true)
    if (isHeldBack(mesh)) return
    noteMembers(mesh)
    const list = [...members]
      .map(([name, { claims, goneSinceMs }]): ListedService => {
        // Its own watch knows better, and sooner.
        claims.adopt(followed?.(name) ?? [])
        const addresses = claims.believed()
        return {
          name,
          virtualIps: verdictByName.get(name)?.virtualIps ?? [],
          ...(addresses.length > 0 && { addresses }),
          ...(goneSinceMs !== undefined && { goneSinceMs }),
        }
      })
      .filter(({ addresses, goneSinceMs }) => goneSinceMs === undefined || addresses !== undefined)
      .toSorted((a, b) => (a.name < b.name ? -1 : 1))
    const mark = JSON.stringify(list)
    if (mark === published) return
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
        void readInstances()
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
    excess: () =>
      leftOut === 0
        ? []
        : [
            `Consul names ${MAX_NAMES + leftOut} services; ${MAX_NAMES} of them are looked at, and what is said to others is not captured`,
          ],
    warnings: () => [
      ...unusableText(),
      ...[...members.values()].flatMap(({ claims }) => claims.warnings()),
    ],
    adopt: (name, addresses) => members.get(name)?.claims.adopt(addresses),
    addressesOf: (name) => members.get(name)?.claims.believed() ?? [],
    recheck() {
      for (const [name, { isMesh }] of verdictByName) if (!isMesh) verdictByName.delete(name)
      napping.abort()
    },
    close() {
      closing.abort()
      listing.close()
      for (const { claims } of members.values()) claims.close()
    },
  }
}

function isThere({ goneSinceMs }: ListedService): boolean {
  return goneSinceMs === undefined
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
