/**
 * From a catalog to the data plane: follows what this host needs, compiles it, publishes what changed.
 *
 * Changes are collected for {@link COALESCE_MS}, so that a thousand first answers make a handful of
 * snapshots. Compile, then swap: current() is always a whole snapshot, and publish() is called once
 * for each new one, in order.
 */
import { MeshError } from '../../lib/errors.ts'
import type { Log } from '../../lib/log.ts'
import { type Cidr, formatCidr, parseCidr } from '../../model/cidr.ts'
import type { LocalService } from '../../model/service.ts'
import { diffSnapshots, type Snapshot, type SnapshotDelta } from '../../model/snapshot.ts'
import type { Catalog, CatalogPolicy } from '../catalog/catalog.ts'
import { compile, nothingCompiled } from './compile.ts'
import { assignVirtualAddresses, type VirtualAddresses } from './virtual-addresses.ts'
import { openWatchSet, type WatchMode } from './watch-set.ts'

/** What discovery works with. */
export interface DiscoveryOptions {
  readonly catalog: Catalog
  readonly datacenter: string
  /** This host's node name in the catalog. */
  readonly nodeName: string
  readonly localServices: readonly LocalService[]
  readonly mode: WatchMode
  /** Ranges to take virtual addresses from, such as `240.0.0.0/4`; empty for none. */
  readonly virtualRanges: readonly string[]
  /** Assignments of an earlier run, which stay valid where they fit. */
  readonly virtualAddresses?: VirtualAddresses
  readonly log: Log
}

/** Takes a new snapshot, and what turns the one before into it. Must not throw. */
export type Publish = (delta: SnapshotDelta, snapshot: Snapshot) => void

/** Running discovery; disposing closes its watches, and nothing is published afterwards. */
export interface Discovery extends AsyncDisposable {
  /** The newest snapshot; the empty one before the first answers. */
  current(): Snapshot
  /** What is wrong with what the catalog says, one sentence each; empty when nothing is. */
  problems(): readonly string[]
  /** What has had no first answer yet: services, `policies`. Empty once this host knows what it needs. */
  awaited(): readonly string[]
  /** Our own virtual addresses by service, to be passed in again by the next run. */
  virtualAddresses(): VirtualAddresses
}

/** Services that are gone and keep their virtual address; the rest is forgotten. */
const MAX_REMEMBERED_NAMES = 4_000

/** Changes are collected for so long before they are compiled. */
const COALESCE_MS = 20

/**
 * Starts discovery. The catalog stays the caller's and must outlive it.
 * @throws MeshError HM_VIRTUAL_RANGE_INVALID when a range is none.
 */
export function startDiscovery(options: DiscoveryOptions, publish: Publish): Discovery {
  return new RunningDiscovery(options, publish)
}

class RunningDiscovery implements Discovery {
  readonly #options: DiscoveryOptions
  readonly #publish: Publish
  readonly #ranges: readonly Cidr[]
  readonly #closing = new DisposableStack()
  readonly #policies = new Map<string, CatalogPolicy>()
  readonly #watchSet
  #compiled = nothingCompiled
  #virtualAddresses: VirtualAddresses
  #timer: NodeJS.Timeout | undefined
  #arePoliciesAwaited: boolean
  #loggedProblems = new Set<string>()

  constructor(options: DiscoveryOptions, publish: Publish) {
    this.#options = options
    this.#publish = publish
    this.#ranges = options.virtualRanges.map(toRange)
    this.#virtualAddresses = options.virtualAddresses ?? new Map()
    const { catalog, localServices, mode } = options
    this.#watchSet = openWatchSet({ catalog, localServices, mode, onChange: () => this.#changed() })
    this.#closing.defer(() => this.#watchSet.close())
    const destinations = policyDestinations(localServices)
    this.#arePoliciesAwaited = destinations.length > 0
    if (this.#arePoliciesAwaited) {
      const watch = catalog.watchPolicies(destinations, (policies) => this.#takePolicies(policies))
      this.#closing.defer(() => watch.close())
    }
    this.#closing.defer(() => clearTimeout(this.#timer))
    // A host that needs nothing gets its first snapshot too: whoever waits for one must not wait for ever.
    if (this.awaited().length === 0) this.#changed()
  }

  current(): Snapshot {
    return this.#compiled.snapshot
  }

  problems(): readonly string[] {
    return [
      ...this.#watchSet.problems(),
      ...this.#compiled.problems.map((problem) => problem.message),
      ...this.#rangeProblems(),
    ]
  }

  awaited(): readonly string[] {
    return [...this.#watchSet.awaited(), ...(this.#arePoliciesAwaited ? ['policies'] : [])]
  }

  virtualAddresses(): VirtualAddresses {
    return this.#virtualAddresses
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#closing.dispose()
  }

  #takePolicies(policies: readonly CatalogPolicy[]): void {
    this.#arePoliciesAwaited = false
    // A destination that an answer leaves out keeps its rules: no answer is not "no rules".
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
    const before = this.#compiled.snapshot
    this.#compiled = compile(
      {
        datacenter,
        nodeName,
        localServices,
        catalogServices,
        policies: this.#policies,
        virtualIps: (service) => this.#virtualAddresses.get(service) ?? [],
      },
      this.#compiled,
    )
    this.#logProblems()
    const { snapshot } = this.#compiled
    if (snapshot !== before) this.#publish(diffSnapshots(before, snapshot), snapshot)
  }

  /**
   * Names that are gone keep their address as long as there are few of them: they may come back, and
   * those of an earlier run may not have had their first answer yet.
   */
  #assignAddresses(): void {
    const names: string[] = []
    const taken = new Set<string>()
    for (const [name, service] of this.#watchSet.services) {
      if (service.virtualIps.length === 0) names.push(name)
      for (const ip of service.virtualIps) taken.add(ip)
    }
    const assigned = this.#virtualAddresses
    const isSettled =
      names.every((name) => assigned.has(name)) &&
      (taken.size === 0 || ![...assigned.values()].some((ips) => ips.some((ip) => taken.has(ip))))
    if (isSettled) return
    const remembered = [...assigned.keys()].slice(-MAX_REMEMBERED_NAMES)
    this.#virtualAddresses = assignVirtualAddresses({
      ranges: this.#ranges,
      names: [...names, ...remembered],
      existing: assigned,
      taken,
    })
  }

  #rangeProblems(): string[] {
    const homeless = [...this.#virtualAddresses]
      .filter(
        ([name, ips]) => ips.length < this.#ranges.length && this.#watchSet.services.has(name),
      )
      .map(([name]) => name)
    if (homeless.length === 0) return []
    const ranges = this.#ranges.map(formatCidr).join(', ')
    const more = homeless.length > 5 ? ` and ${homeless.length - 5} more` : ''
    return [
      `No virtual address of each kind for ${homeless.slice(0, 5).join(', ')}${more}: one of ${ranges} is full`,
    ]
  }

  /** Logs each problem once, when it appears. */
  #logProblems(): void {
    const now = new Set(this.problems())
    for (const problem of now)
      if (!this.#loggedProblems.has(problem)) this.#options.log.warn(problem)
    this.#loggedProblems = now
  }
}

function toRange(text: string): Cidr {
  const range = parseCidr(text)
  if (range !== undefined) return range
  throw new MeshError('HM_VIRTUAL_RANGE_INVALID', `Cannot read the virtual range "${text}"`, {
    hint: 'Write it as 240.0.0.0/4 or fdc6:6d65:7368::/64',
  })
}

/** The services whose rules this host must know: those that it delivers to. */
function policyDestinations(localServices: readonly LocalService[]): readonly string[] {
  const offered = localServices.filter((service) => service.target !== undefined)
  return [...new Set(offered.map((service) => service.name))]
}
