/**
 * Which virtual address is of which service, for every service that the mesh lists, followed or not.
 *
 * An address that the catalog gives wins over ours, and stays when the service is not followed any more or
 * has lost its last instance (Consul writes it on instances): an application may still have it from an
 * earlier answer. It goes when the catalog gives it to another service. What the list of the catalog says is
 * minutes old, so it counts for less than the answers for services that are followed.
 */
import { isStructurallyEqual } from '../../lib/structural-equal.ts'
import { type Cidr, formatCidr } from '../../model/cidr.ts'
import { Problem } from '../../model/problem.ts'
import type { CatalogService } from '../catalog/catalog.ts'
import { assignVirtualAddresses, type VirtualAddresses } from './virtual-addresses.ts'

/** Services that are gone and keep their virtual address; the rest is forgotten. */
const MAX_REMEMBERED_NAMES = 4_000

/** Services by name, with the addresses that the list of the catalog has for them. */
type Listed = ReadonlyMap<string, readonly string[]>

/** The virtual addresses of a mesh. */
export class AddressBook {
  readonly #ranges: readonly Cidr[]
  #assigned: VirtualAddresses
  /** What the catalog gave last, by service. */
  readonly #given = new Map<string, readonly string[]>()
  #names: ReadonlySet<string> = new Set()
  /** Made when they are asked for; undefined again after a change. */
  #all: VirtualAddresses | undefined
  #ownerByIp: ReadonlyMap<string, string> | undefined

  /** @param assigned those of an earlier run, which stay valid where they fit */
  constructor(ranges: readonly Cidr[], assigned: VirtualAddresses = new Map()) {
    this.#ranges = ranges
    this.#assigned = assigned
  }

  /** The addresses of a service, empty when it has none. */
  of(service: string): readonly string[] {
    return this.#given.get(service) ?? this.#assigned.get(service) ?? []
  }

  /** The addresses that the catalog gave to a service; undefined when it gave none. */
  givenTo(service: string): readonly string[] | undefined {
    return this.#given.get(service)
  }

  /** The service that an address is of. */
  ownerOf(ip: string): string | undefined {
    this.#ownerByIp ??= new Map(
      [...this.all()].flatMap(([name, ips]) => ips.map((own) => [own, name] as const)),
    )
    return this.#ownerByIp.get(ip)
  }

  /** All of them, to begin the next run with. The same object until something changes. */
  all(): VirtualAddresses {
    this.#all ??= new Map([...this.#assigned, ...this.#given])
    return this.#all
  }

  /**
   * Takes note of what the catalog gave, and gives an address of ours to each other service.
   * @param followed the last answers of the services that are followed
   * @param listed all services, followed or not, and what the list says that the catalog gave them
   */
  update(followed: ReadonlyMap<string, CatalogService>, listed: Listed): void {
    const taken = this.#takeGiven(followed, listed)
    const names = new Set(
      [...followed.keys(), ...listed.keys()].filter((name) => !this.#given.has(name)),
    )
    const assigned = this.#assigned
    const isSettled =
      [...names].every((name) => assigned.has(name)) &&
      (taken.size === 0 || ![...assigned.values()].some((ips) => ips.some((ip) => taken.has(ip))))
    this.#names = names
    if (isSettled) return
    // Names that are gone keep their address as long as there are few of them: they may come back, and
    // those of an earlier run may not have had their first answer yet.
    const gone = [...assigned.keys()].filter((name) => !names.has(name))
    this.#assigned = assignVirtualAddresses({
      ranges: this.#ranges,
      names: [...names, ...gone.slice(-MAX_REMEMBERED_NAMES)],
      existing: assigned,
      taken,
    })
    this.#changed()
  }

  /** Services that found no room. */
  problems(followed: ReadonlyMap<string, CatalogService>): Problem[] {
    const homeless = [...this.#names].filter(
      (name) => followed.has(name) && (this.#assigned.get(name)?.length ?? 0) < this.#ranges.length,
    )
    if (homeless.length === 0) return []
    const ranges = this.#ranges.map(formatCidr).join(', ')
    const more = homeless.length > 5 ? ` and ${homeless.length - 5} more` : ''
    return [
      new Problem(
        'HM_VIRTUAL_RANGE_FULL',
        `No virtual address of each kind for ${homeless.slice(0, 5).join(', ')}${more}: one of ${ranges} is full`,
      ),
    ]
  }

  #changed(): void {
    this.#all = undefined
    this.#ownerByIp = undefined
  }

  /** @returns every address that the catalog has given to somebody */
  #takeGiven(followed: ReadonlyMap<string, CatalogService>, listed: Listed): ReadonlySet<string> {
    const givenNow = new Map<string, readonly string[]>()
    const ownerNow = new Map<string, string>()
    for (const [name, { virtualIps }] of followed) {
      if (virtualIps.length === 0) continue
      givenNow.set(name, virtualIps)
      for (const ip of virtualIps) ownerNow.set(ip, name)
    }
    for (const [name, virtualIps] of this.#believable(listed, givenNow, ownerNow)) {
      givenNow.set(name, virtualIps)
      for (const ip of virtualIps) ownerNow.set(ip, name)
    }
    for (const [name, virtualIps] of givenNow) {
      if (isStructurallyEqual(this.#given.get(name), virtualIps)) continue
      // Newest last.
      this.#given.delete(name)
      this.#given.set(name, virtualIps)
      this.#changed()
    }
    for (const [name, ips] of this.#given) {
      const isTaken = !givenNow.has(name) && ips.some((ip) => (ownerNow.get(ip) ?? name) !== name)
      const isForgotten =
        this.#given.size > MAX_REMEMBERED_NAMES && !followed.has(name) && !listed.has(name)
      if (!isTaken && !isForgotten) continue
      this.#given.delete(name)
      this.#changed()
    }
    return new Set([...this.#given.values()].flat())
  }

  /**
   * What of the list is taken: no address that two services have there, that a followed one has, or that we have
   * given to a listed service which has no other. Consul before 1.11 lets whoever registers a service write any.
   */
  #believable(listed: Listed, givenNow: Listed, ownerNow: ReadonlyMap<string, string>): Listed {
    const owners = new Map<string, string | undefined>(ownerNow)
    for (const [name, ips] of this.#assigned)
      if (listed.get(name)?.length === 0 && !this.#given.has(name))
        for (const ip of ips) owners.set(ip, name)
    const claims = [...listed].filter(([name, ips]) => ips.length > 0 && !givenNow.has(name))
    for (const [name, ips] of claims)
      for (const ip of ips)
        owners.set(ip, owners.has(ip) && owners.get(ip) !== name ? undefined : name)
    return new Map(claims.filter(([name, ips]) => ips.every((ip) => owners.get(ip) === name)))
  }
}
