/**
 * From the catalog to the data plane: follows the services that this host needs, compiles them, publishes changes.
 *
 * Changes are collected for {@link COALESCE_MS}, so that a thousand first answers cause only a few snapshots. current()
 * always returns a complete snapshot, and publish() is called once for each new one, in order.
 */
import { type Clock, systemClock } from '../../lib/clock.ts'
import { MeshError } from '../../lib/errors.ts'
import type { Log } from '../../lib/log.ts'
import { isStructurallyEqual } from '../../lib/structural-equal.ts'
import type { SocketAddress } from '../../model/address.ts'
import { type Cidr, parseCidr } from '../../model/cidr.ts'
import { Problem } from '../../model/problem.ts'
import type { LocalService } from '../../model/service.ts'
import {
  diffSnapshots,
  type MeshService,
  type Snapshot,
  type SnapshotDelta,
} from '../../model/snapshot.ts'
import type { Catalog, CatalogPolicy } from '../catalog/catalog.ts'
import { AddressBook } from './address-book.ts'
import { compile, nothingCompiled } from './compile.ts'
import { ownServiceProblems } from './own-services.ts'
import { policyWarnings } from './policy-warnings.ts'
import { unservedWarnings } from './unserved.ts'
import type { VirtualAddresses } from './virtual-addresses.ts'
import { openWatchSet, type WatchMode, type WatchSetOptions } from './watch-set.ts'

/** The options of discovery. */
export interface DiscoveryOptions {
  readonly catalog: Catalog
  readonly datacenter: string
  /** This host's node name in the catalog. */
  readonly nodeName: string
  readonly localServices: readonly LocalService[]
  readonly mode: WatchMode
  /** Ranges for virtual addresses, such as `240.0.0.0/4`; empty for none. */
  readonly virtualRanges: readonly string[]
  /** Assignments of an earlier run, kept where they still fit. */
  readonly virtualAddresses?: VirtualAddresses
  /** False without capture: then no connection is refused at instances that no proxy serves. */
  readonly isCapturing?: boolean
  /** Deny where no intention matches, whatever the catalog says. */
  readonly forcesDefaultDeny?: boolean
  /** Called after every change of {@link Discovery.dormant}. */
  readonly onDormant?: () => void
  readonly log: Log
  readonly clock?: Clock
  /** How long services are followed on demand, and how many. The watch set's own limits by default. */
  readonly onDemand?: Pick<WatchSetOptions, 'idleMs' | 'maxOnDemand' | 'clock'>
}

/** The result of looking up a service name. */
export type Lookup =
  | { readonly kind: 'service'; readonly service: MeshService }
  /** The service is followed and has not answered yet; these are its addresses in the catalog's list. */
  | { readonly kind: 'listed'; readonly virtualIps: readonly string[] }
  /** The mesh has no such service. `isParent`: it has services whose names end in `.` and this name. */
  | { readonly kind: 'unknown'; readonly isParent: boolean }
  /** The mesh may have it, but there is no answer for it yet. */
  | { readonly kind: 'unavailable' }

/** What a lookup needs. Only `instances` guarantees the last answer for the service. */
export type LookupNeeds = 'instances' | 'addresses'

/** Receives a new snapshot, and its changes from the one before. Must not throw. */
export type Publish = (delta: SnapshotDelta, snapshot: Snapshot) => void

/** Running discovery; disposing it closes its watches, and nothing is published afterwards. */
export interface Discovery extends AsyncDisposable {
  /** The newest snapshot; the empty one before the first answers. */
  current(): Snapshot
  /** Problems with the content of the catalog; empty when there are none. */
  problems(): readonly Problem[]
  /** What an operator should know although nothing is wrong, one sentence each. */
  warnings(): readonly string[]
  /** What has no first answer yet: services, `policies`. Empty once this host has what it needs. */
  awaited(): readonly string[]
  /** Virtual addresses by service, to be passed to the next run. */
  virtualAddresses(): VirtualAddresses
  /**
   * Looks up a service by name. Follows it from now on if it is not followed, and waits for its first answer, at most
   * `patienceMs`; does not wait if only addresses are needed and the catalog's are known.
   */
  lookup(name: string, patienceMs: number, needs?: LookupNeeds): Promise<Lookup>
  /** Addresses of instances of services that are not followed. The same object until something changes. */
  dormant(): ReadonlyMap<string, readonly SocketAddress[]>
  /** The service that owns an address, followed or not; without a port only virtual addresses are found. */
  ownerOf(ip: string, port?: number): string | undefined
  /** An application dialed an address that no snapshot has: follows the service that owns it. */
  wanted(ip: string, port?: number): void
  /** These services have open connections, or had some just now: they continue to be followed. */
  used(services: readonly string[]): void
  /** Number of followed services. */
  watchedServices(): number
}

/** Limit of lookups that wait at the same time; further ones are `unavailable`. */
const MAX_WAITING_LOOKUPS = 1_000

/** How long registering, or a restart of an application, may take before it is a problem, milliseconds. */
const OWN_GRACE_MS = 15_000

/** Limit of warnings: anyone who may write to the catalog can cause many. */
const MAX_WARNINGS = 50

/** How long changes are collected before they are compiled, milliseconds. */
const COALESCE_MS = 20

/**
 * Starts discovery. The catalog belongs to the caller and must outlive it.
 * @throws MeshError HM_VIRTUAL_RANGE_INVALID when a range cannot be parsed.
 */
export function startDiscovery(options: DiscoveryOptions, publish: Publish): Discovery {
  return new RunningDiscovery(options, publish)
}

class RunningDiscovery implements Discovery {
  readonly #options: DiscoveryOptions
  readonly #publish: Publish
  readonly #addresses: AddressBook
  readonly #closing = new DisposableStack()
  readonly #policies = new Map<string, CatalogPolicy>()
  readonly #watchSet
  #compiled = nothingCompiled
  /** The listed addresses at the last compile. */
  #compiledAddresses: ReadonlyMap<string, unknown> = new Map()
  readonly #lookups = new Set<() => void>()
  /** The parent names of one list: names that others end in after a `.`. */
  #parents: {
    readonly of: ReadonlyMap<string, unknown> | undefined
    readonly names: ReadonlySet<string>
  } = { of: undefined, names: new Set() }
  #timer: NodeJS.Timeout | undefined
  #arePoliciesAwaited: boolean
  #loggedWarnings = new Set<string>()
  /** Problems of this host's own services in the catalog, with the time since when. */
  #ownProblems: ReadonlyMap<string, number> = new Map()

  constructor(options: DiscoveryOptions, publish: Publish) {
    this.#options = options
    this.#publish = publish
    this.#addresses = new AddressBook(options.virtualRanges.map(toRange), options.virtualAddresses)
    const { catalog, localServices, mode } = options
    this.#watchSet = openWatchSet({
      catalog,
      localServices,
      mode,
      onChange: () => this.#changed(),
      onListed: () => this.#listChanged(),
      ...options.onDemand,
    })
    this.#closing.use(this.#watchSet)
    const destinations = policyDestinations(localServices)
    this.#arePoliciesAwaited = destinations.length > 0
    if (this.#arePoliciesAwaited) {
      this.#closing.use(
        catalog.watchPolicies(destinations, (policies) => this.#takePolicies(policies)),
      )
    }
    this.#closing.defer(() => clearTimeout(this.#timer))
    this.#closing.defer(() => this.#lookAgain())
    // A host that needs nothing gets its first snapshot too: nothing may wait for it for ever.
    if (this.awaited().length === 0) this.#changed()
  }

  current(): Snapshot {
    return this.#compiled.snapshot
  }

  problems(): readonly Problem[] {
    return [
      ...this.#watchSet.problems(),
      ...this.#compiled.problems.map(
        ({ service, code, message }) => new Problem(code, message, { subject: service }),
      ),
      ...this.#addresses.problems(this.#watchSet.services),
      ...this.#lastingOwnProblems(),
    ]
  }

  warnings(): readonly string[] {
    const { snapshot, warnings } = this.#compiled
    return [
      ...policyWarnings(snapshot),
      ...(this.#options.isCapturing === false
        ? []
        : unservedWarnings(snapshot, this.#options.nodeName, this.#watchSet.services)),
      ...warnings,
      ...this.#addresses.warnings(),
      ...(this.#options.catalog.health().warnings ?? []),
    ].slice(0, MAX_WARNINGS)
  }

  awaited(): readonly string[] {
    return [...this.#watchSet.awaited(), ...(this.#arePoliciesAwaited ? ['policies'] : [])]
  }

  virtualAddresses(): VirtualAddresses {
    return this.#addresses.all()
  }

  lookup(name: string, patienceMs: number, needs: LookupNeeds = 'instances'): Promise<Lookup> {
    const now = this.#look(name, needs)
    if (now.kind !== 'unavailable' || this.#lookups.size >= MAX_WAITING_LOOKUPS)
      return Promise.resolve(now)
    return new Promise((resolve) => {
      const settle = (found: Lookup): void => {
        clearTimeout(deadline)
        this.#lookups.delete(again)
        resolve(found)
      }
      const again = (): void => {
        const found = this.#look(name, needs)
        if (found.kind !== 'unavailable' || this.#closing.disposed) settle(found)
      }
      const deadline = setTimeout(() => settle(this.#look(name, needs)), patienceMs)
      this.#lookups.add(again)
    })
  }

  dormant(): ReadonlyMap<string, readonly SocketAddress[]> {
    return this.#compiled.dormant
  }

  ownerOf(ip: string, port?: number): string | undefined {
    const owner = this.#addresses.ownerOf(ip)
    if (owner !== undefined || port === undefined) return owner
    for (const [name, addresses] of this.#compiled.dormant)
      if (addresses.some((address) => address.ip === ip && address.port === port)) return name
    return undefined
  }

  wanted(ip: string, port?: number): void {
    const name = this.ownerOf(ip, port)
    if (name !== undefined) this.#watchSet.use(name)
  }

  used(services: readonly string[]): void {
    for (const name of services) this.#watchSet.touch(name)
  }

  watchedServices(): number {
    return this.#watchSet.size
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#closing.dispose()
  }

  #look(name: string, needs: LookupNeeds): Lookup {
    const use = this.#watchSet.use(name)
    if (use === 'unknown') return this.#unknown(name)
    const service = this.current().services.get(name)
    if (service === undefined) {
      const virtualIps = this.#addresses.givenTo(name)
      return use === 'followed' && needs === 'addresses' && virtualIps !== undefined
        ? { kind: 'listed', virtualIps }
        : { kind: 'unavailable' }
    }
    // Followed, but no longer listed by the mesh and without instances: the service is gone.
    const isGone =
      service.clusters[0].endpoints.length === 0 && this.#watchSet.listed()?.has(name) === false
    return isGone ? this.#unknown(name) : { kind: 'service', service }
  }

  #unknown(name: string): Lookup {
    const listed = this.#watchSet.listed()
    if (listed !== this.#parents.of)
      this.#parents = { of: listed, names: parentsOf(listed?.keys() ?? []) }
    return { kind: 'unknown', isParent: this.#parents.names.has(name) }
  }

  #lookAgain(): void {
    for (const again of this.#lookups) again()
  }

  /** Every listed service has a virtual address, followed or not: see {@link wanted}. */
  #listChanged(): void {
    this.#assignAddresses()
    const followed = [...this.current().services.values()]
    const hasNewAddresses = this.#watchSet.listedAddresses() !== this.#compiledAddresses
    if (
      hasNewAddresses ||
      followed.some(({ name, virtualIps }) => !this.#hasAddresses(name, virtualIps))
    )
      this.#changed()
    this.#lookAgain()
  }

  #hasAddresses(service: string, virtualIps: readonly string[]): boolean {
    return isStructurallyEqual(this.#addresses.of(service), virtualIps)
  }

  #assignAddresses(): void {
    this.#addresses.update(this.#watchSet.services, this.#watchSet.listed() ?? new Map())
  }

  #takePolicies(policies: readonly CatalogPolicy[]): void {
    this.#arePoliciesAwaited = false
    // A destination that an answer omits keeps its rules: a missing answer does not mean "no rules".
    for (const policy of policies) this.#policies.set(policy.destination, policy)
    this.#changed()
  }

  #changed(): void {
    if (this.#closing.disposed || this.#timer !== undefined) return
    this.#timer = setTimeout(() => {
      this.#timer = undefined
      this.#compileAndPublish()
    }, COALESCE_MS)
  }

  #compileAndPublish(): void {
    const { datacenter, nodeName, localServices } = this.#options
    const catalogServices = this.#watchSet.services
    this.#assignAddresses()
    const { snapshot: before, dormant } = this.#compiled
    const listedAddresses = this.#watchSet.listedAddresses()
    this.#compiledAddresses = listedAddresses
    this.#compiled = compile(
      {
        listedAddresses,
        datacenter,
        nodeName,
        localServices,
        catalogServices,
        policies: this.#policies,
        virtualIps: (service) => this.#addresses.of(service),
        ownsVirtualIp: (service, ip) => this.#addresses.owns(service, ip),
        forcesDefaultDeny: this.#options.forcesDefaultDeny === true,
      },
      this.#compiled,
    )
    this.#logWarnings()
    const { snapshot } = this.#compiled
    if (snapshot !== before) this.#publish(diffSnapshots(before, snapshot), snapshot)
    if (this.#compiled.dormant !== dormant) this.#options.onDormant?.()
    this.#lookAgain()
  }

  #lastingOwnProblems(): Problem[] {
    const { localServices, nodeName, clock = systemClock } = this.#options
    const nowMs = clock.monotonicMs()
    const now = ownServiceProblems(localServices, nodeName, this.current().services)
    this.#ownProblems = new Map(
      now.map(({ message }) => [message, this.#ownProblems.get(message) ?? nowMs]),
    )
    return now.filter(
      ({ message }) => nowMs - (this.#ownProblems.get(message) ?? nowMs) >= OWN_GRACE_MS,
    )
  }

  /** Logs each warning once, when it appears; the daemon logs problems. */
  #logWarnings(): void {
    const now = new Set(this.warnings())
    for (const warning of now)
      if (!this.#loggedWarnings.has(warning)) this.#options.log.warn(warning)
    this.#loggedWarnings = now
  }
}

function toRange(text: string): Cidr {
  const range = parseCidr(text)
  if (range !== undefined) return range
  throw new MeshError('HM_VIRTUAL_RANGE_INVALID', `Cannot read the virtual range "${text}"`, {
    hint: 'Write it as 240.0.0.0/4 or fdc6:6d65:7368::/64',
  })
}

/** The services whose rules this host needs: those that it delivers to. */
function policyDestinations(localServices: readonly LocalService[]): readonly string[] {
  const offered = localServices.filter((service) => service.target !== undefined)
  return [...new Set(offered.map((service) => service.name))]
}

/** All suffixes of names after a `.`: `b.c` and `c` for `a.b.c`. */
function parentsOf(names: Iterable<string>): ReadonlySet<string> {
  const parents = new Set<string>()
  for (const name of names)
    for (let dot = name.indexOf('.'); dot >= 0; dot = name.indexOf('.', dot + 1))
      parents.add(name.slice(dot + 1))
  return parents
}
