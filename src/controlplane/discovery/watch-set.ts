/**
 * Which services this host follows: its own and those it names as upstreams always; beyond these none, all,
 * or each from its first use on until nobody has used it for a while. Opens and closes the catalog's
 * watches accordingly and keeps the last answer of each.
 *
 * ```
 *   listed --use()--> followed --not used for idleMs, or the least used of too many--> listed
 * ```
 */
import { type Clock, systemClock } from '../../lib/clock.ts'
import { fairOrder } from '../../lib/fair-order.ts'
import { Problem } from '../../model/problem.ts'
import type { LocalService } from '../../model/service.ts'
import type { Catalog, CatalogService, InstanceAddress, ListedService } from '../catalog/catalog.ts'

/**
 * Follow only what this host offers and names as upstream; beside these, every service that is used; or
 * every service of the mesh.
 */
export type WatchMode = 'upstreams' | 'on-demand' | 'all'

/**
 * What became of a use: `followed`, or why not. `unknown`: the mesh has no such service. `undecided`: it may
 * have one, which this host cannot tell (yet).
 */
export type Use = 'followed' | 'unknown' | 'undecided'

/** The open watches of one host. */
export interface WatchSet extends Disposable {
  /** The last answer for each watched service that has had one. */
  readonly services: ReadonlyMap<string, CatalogService>
  /** Services that are watched, answered or not. */
  readonly size: number
  /**
   * The services that the mesh has, as far as this host may follow them, each with the virtual addresses that the
   * list of the catalog gives it; undefined while that is not known.
   */
  listed(): ReadonlyMap<string, readonly string[]> | undefined
  /** Where instances of services listen, by the list: of those that are of the mesh, and of those that were. */
  listedAddresses(): ReadonlyMap<string, readonly InstanceAddress[]>
  /** A service is about to be used: follows it if this host may, and goes on following it if it does. */
  use(name: string): Use
  /** Connections go to a service. Changes nothing for one that is not followed. */
  touch(name: string): void
  /** Services this host needs that have no answer yet, and the list of services in mode `all` before the first. */
  awaited(): readonly string[]
  /** One sentence each; empty when every wanted service is watched. */
  problems(): readonly Problem[]
}

/** What a watch set is opened with. */
export interface WatchSetOptions {
  readonly catalog: Catalog
  readonly localServices: readonly LocalService[]
  readonly mode: WatchMode
  /** Called after every change of {@link WatchSet.services}. */
  readonly onChange: () => void
  /** Called after every change of {@link WatchSet.listed}. */
  readonly onListed?: () => void
  /** Milliseconds; {@link IDLE_MS} unless given. */
  readonly idleMs?: number | undefined
  /** {@link MAX_ON_DEMAND} unless given. */
  readonly maxOnDemand?: number | undefined
  readonly clock?: Clock | undefined
}

/** Services followed at once. Each costs a blocking query in Consul; a host that needs more is not a host. */
export const MAX_WATCHED_SERVICES = 1_000

/**
 * Services followed at once because they were used; one more ends the watch of the least recently used, of one that
 * was only asked for before any that was connected to: asking for many names must not cost others theirs.
 */
const MAX_ON_DEMAND = 500

/** A service that was followed because it was used, and has not been used for so long, is let go. */
const IDLE_MS = 15 * 60_000

/** Unused services are looked for so many times within the time after which they are let go. */
const SWEEPS = 15

/** Opens the watches; the owner closes the set. */
export function openWatchSet(options: WatchSetOptions): WatchSet {
  return new OpenWatchSet(options)
}

class OpenWatchSet implements WatchSet {
  readonly services = new Map<string, CatalogService>()
  readonly #options: WatchSetOptions
  readonly #clock: Clock
  readonly #idleMs: number
  readonly #maxOnDemand: number
  readonly #needed: ReadonlySet<string>
  readonly #watches = new Map<string, Disposable>()
  /** When each service that is followed on demand was last used, the least recently used first. */
  readonly #usedAtMs = new Map<string, number>()
  /** Those of them that connections have gone to; the others were asked for. */
  readonly #connected = new Set<string>()
  readonly #list: Disposable | undefined
  readonly #sweeper: NodeJS.Timeout | undefined
  #listed: ReadonlyMap<string, readonly string[]> | undefined
  #addresses: ReadonlyMap<string, readonly InstanceAddress[]> = new Map()
  #unwatched = 0
  #isClosed = false

  constructor(options: WatchSetOptions) {
    const { mode } = options
    this.#options = options
    this.#clock = options.clock ?? systemClock
    this.#idleMs = options.idleMs ?? IDLE_MS
    this.#maxOnDemand = options.maxOnDemand ?? MAX_ON_DEMAND
    this.#needed = new Set(neededNames(options.localServices))
    if (mode === 'upstreams') this.#listed = withoutAddresses(this.#needed)
    this.#follow(this.#needed)
    if (mode !== 'upstreams')
      this.#list = options.catalog.watchServiceList((list) => this.#take(list))
    if (mode === 'on-demand') {
      this.#sweeper = setInterval(() => this.#sweep(), this.#idleMs / SWEEPS)
      this.#sweeper.unref()
    }
  }

  get size(): number {
    return this.#watches.size
  }

  listed(): ReadonlyMap<string, readonly string[]> | undefined {
    return this.#listed
  }

  listedAddresses(): ReadonlyMap<string, readonly InstanceAddress[]> {
    return this.#addresses
  }

  use(name: string): Use {
    this.#noteUse(name)
    if (this.#watches.has(name)) return 'followed'
    if (this.#isClosed || this.#listed === undefined) return 'undecided'
    // One that is gone is followed all the same where callers still have its addresses.
    if (!this.#listed.has(name) && !this.#addresses.has(name)) return 'unknown'
    if (this.#options.mode !== 'on-demand') return 'undecided'
    if (this.#usedAtMs.size >= this.#maxOnDemand) {
      const [leastRecentlyUsed] = this.#usedAtMs.keys()
      const leastNeeded =
        this.#usedAtMs.keys().find((used) => !this.#connected.has(used)) ?? leastRecentlyUsed
      if (leastNeeded !== undefined) this.#closeWatch([leastNeeded])
    }
    this.#usedAtMs.set(name, this.#clock.monotonicMs())
    this.#open(name)
    return 'followed'
  }

  touch(name: string): void {
    if (this.#noteUse(name)) this.#connected.add(name)
  }

  awaited(): readonly string[] {
    const { mode } = this.#options
    return [
      ...(mode === 'all' && this.#listed === undefined ? ['the list of services'] : []),
      // A service that somebody has just asked for does not make the host unready.
      ...[...this.#watches.keys()].filter(
        (name) => !this.services.has(name) && !this.#usedAtMs.has(name),
      ),
    ]
  }

  problems(): readonly Problem[] {
    return this.#unwatched === 0
      ? []
      : [
          new Problem(
            'HM_CATALOG_TOO_LARGE',
            `${this.#unwatched} services are not followed: at most ${MAX_WATCHED_SERVICES} are; use watch: on-demand`,
            { subject: 'followed' },
          ),
        ]
  }

  [Symbol.dispose](): void {
    this.#isClosed = true
    clearInterval(this.#sweeper)
    this.#list?.[Symbol.dispose]()
    for (const watch of this.#watches.values()) watch[Symbol.dispose]()
    this.#watches.clear()
    this.#usedAtMs.clear()
    this.#connected.clear()
  }

  /** Whether it is followed because it was used. */
  #noteUse(name: string): boolean {
    // Taken out and put in again: the order of the map is the order of use.
    if (!this.#usedAtMs.delete(name)) return false
    this.#usedAtMs.set(name, this.#clock.monotonicMs())
    return true
  }

  #open(name: string): void {
    this.#watches.set(
      name,
      this.#options.catalog.watchService(name, (service) => {
        // A catalog may still deliver an answer that was under way when its watch was closed.
        if (this.#isClosed || !this.#watches.has(name)) return
        this.services.set(name, service)
        this.#options.onChange()
      }),
    )
  }

  #take(list: readonly ListedService[]): void {
    if (this.#isClosed) return
    const listed = list
      .filter(({ goneSinceMs }) => goneSinceMs === undefined)
      .map(({ name, virtualIps }) => [name, virtualIps] as const)
    this.#addresses = new Map(
      list.flatMap(({ name, addresses }) => (addresses === undefined ? [] : [[name, addresses]])),
    )
    this.#listed = new Map([...withoutAddresses(this.#needed), ...listed])
    if (this.#options.mode === 'all') {
      const gone = list.filter(({ goneSinceMs }) => goneSinceMs !== undefined)
      // What is gone costs no service of the mesh its place.
      const wanted = [
        ...fairOrder(listed.map(([name]) => name)),
        ...fairOrder(gone.map(({ name }) => name)),
      ]
      this.#follow(new Set([...this.#needed, ...wanted]))
      this.#options.onChange()
    }
    // On demand, a service that is listed no more keeps its watch: that says itself whether instances are
    // left, and doubts a sudden end. When nobody uses it, it is let go like any other.
    this.#options.onListed?.()
  }

  #follow(wanted: ReadonlySet<string>): void {
    this.#closeWatch([...this.#watches.keys()].filter((name) => !wanted.has(name)))
    // Needed names come first in the set; those already open stay, so that a full set does not churn.
    for (const name of wanted)
      if (!this.#watches.has(name) && this.#watches.size < MAX_WATCHED_SERVICES) this.#open(name)
    this.#unwatched = wanted.size - this.#watches.size
  }

  #sweep(): void {
    const before = this.#clock.monotonicMs() - this.#idleMs
    const unused: string[] = []
    for (const [name, atMs] of this.#usedAtMs) {
      if (atMs > before) break
      unused.push(name)
    }
    this.#closeWatch(unused)
  }

  #closeWatch(names: readonly string[]): void {
    let hasLost = false
    for (const name of names) {
      this.#watches.get(name)?.[Symbol.dispose]()
      this.#watches.delete(name)
      this.#usedAtMs.delete(name)
      this.#connected.delete(name)
      hasLost = this.services.delete(name) || hasLost
    }
    if (hasLost) this.#options.onChange()
  }
}

function withoutAddresses(names: Iterable<string>): ReadonlyMap<string, readonly string[]> {
  return new Map([...names].map((name) => [name, []]))
}

/** What must be followed whatever the mode: services that run here, then those they call. */
function neededNames(localServices: readonly LocalService[]): readonly string[] {
  const own = localServices.filter((service) => service.target !== undefined)
  const called = localServices.flatMap((service) => service.upstreams)
  return [...own.map((service) => service.name), ...called.map((upstream) => upstream.destination)]
}
