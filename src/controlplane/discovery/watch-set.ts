/**
 * Decides which services this host follows: always its own and its upstreams; of the others none, all, or each from its
 * first use until it was unused for a while. Opens and closes the catalog's watches accordingly, and keeps the last
 * answer of each.
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
 * `upstreams`: follow only this host's own services and its upstreams. `on-demand`: in addition every service that is
 * used. `all`: every service of the mesh.
 */
export type WatchMode = 'upstreams' | 'on-demand' | 'all'

/**
 * The result of a use: `followed`, or why not. `unknown`: the mesh has no such service. `undecided`: it may have one;
 * this host does not know (yet), or may not follow it.
 */
export type Use = 'followed' | 'unknown' | 'undecided'

/** The open watches of one host. */
export interface WatchSet extends Disposable {
  /** The last answer for each watched service that has had one. */
  readonly services: ReadonlyMap<string, CatalogService>
  /** Services that are watched, with or without an answer. */
  readonly size: number
  /**
   * The services of the mesh, as far as this host may follow them, each with its virtual addresses in the catalog's
   * list; undefined while the list is unknown.
   */
  listed(): ReadonlyMap<string, readonly string[]> | undefined
  /** Instance addresses in the catalog's list, of present services and of former ones. */
  listedAddresses(): ReadonlyMap<string, readonly InstanceAddress[]>
  /** To be called when a service is about to be used: follows it if allowed, and prolongs the watch. */
  use(name: string): Use
  /** Connections go to a service. No effect when it is not followed. */
  touch(name: string): void
  /** Needed services without an answer so far; in mode `all` also the list of services before it has arrived. */
  awaited(): readonly string[]
  /** Empty when every wanted service is watched. */
  problems(): readonly Problem[]
}

/** The options of a watch set. */
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

/** Limit of followed services. Each costs a blocking query in Consul; no ordinary host needs more. */
export const MAX_WATCHED_SERVICES = 1_000

/**
 * Limit of services followed because they were used. One more ends the watch of the least recently used one, those only
 * looked up before those connected to: looking up many names must not end the watches that connections need.
 */
const MAX_ON_DEMAND = 500

/** A service followed on demand is unfollowed after this time without use, milliseconds. */
const IDLE_MS = 15 * 60_000

/** Number of checks for unused services per idle time. */
const SWEEPS = 15

/** Opens the watches; the caller disposes the set. */
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
  /** When each service followed on demand was last used, the least recently used first. */
  readonly #usedAtMs = new Map<string, number>()
  /** Those of them that connections have gone to; the others were only looked up. */
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
    // A service that is gone is still followed where callers may still have its addresses.
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
      // A service that was just looked up does not make the host unready.
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

  /** Renews the time of use. @returns whether the service is followed on demand. */
  #noteUse(name: string): boolean {
    // Deleted and inserted again: the order of the map is the order of use.
    if (!this.#usedAtMs.delete(name)) return false
    this.#usedAtMs.set(name, this.#clock.monotonicMs())
    return true
  }

  #open(name: string): void {
    this.#watches.set(
      name,
      this.#options.catalog.watchService(name, (service) => {
        // A catalog may still deliver an answer that was under way when the watch was closed.
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
      // Former services come last, so that they take no place from present ones.
      const wanted = [
        ...fairOrder(listed.map(([name]) => name)),
        ...fairOrder(gone.map(({ name }) => name)),
      ]
      this.#follow(new Set([...this.#needed, ...wanted]))
      this.#options.onChange()
    }
    // On demand, a service that is no longer listed keeps its watch: the watch itself reports whether instances remain,
    // and double-checks a sudden end. It is unfollowed when unused, like any other.
    this.#options.onListed?.()
  }

  #follow(wanted: ReadonlySet<string>): void {
    this.#closeWatch([...this.#watches.keys()].filter((name) => !wanted.has(name)))
    // Needed names come first in the set; open watches stay, so that a full set does not churn.
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

/** What is followed in every mode: the services of this host, then their upstreams. */
function neededNames(localServices: readonly LocalService[]): readonly string[] {
  const own = localServices.filter((service) => service.target !== undefined)
  const called = localServices.flatMap((service) => service.upstreams)
  return [...own.map((service) => service.name), ...called.map((upstream) => upstream.destination)]
}
