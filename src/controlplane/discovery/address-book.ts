/**
 * Which virtual address is of which service, for every service that the mesh lists, followed or not.
 *
 * An address that the catalog gives wins over ours, and stays when the service is not followed any more or
 * has lost its last instance (Consul writes it on instances): an application may still have it from an
 * earlier answer. It goes when the catalog gives it to another service.
 */
import { isStructurallyEqual } from '../../lib/structural-equal.ts'
import { type Cidr, formatCidr } from '../../model/cidr.ts'
import type { CatalogService } from '../catalog/catalog.ts'
import { assignVirtualAddresses, type VirtualAddresses } from './virtual-addresses.ts'

/** Services that are gone and keep their virtual address; the rest is forgotten. */
const MAX_REMEMBERED_NAMES = 4_000

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
   * @param listed the names of all services, followed or not
   */
  update(followed: ReadonlyMap<string, CatalogService>, listed: ReadonlySet<string>): void {
    const taken = this.#takeGiven(followed)
    const names = new Set([...followed.keys(), ...listed].filter((name) => !this.#given.has(name)))
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

  /** What is wrong, one sentence each: services that found no room. */
  problems(followed: ReadonlyMap<string, CatalogService>): string[] {
    const homeless = [...this.#names].filter(
      (name) => followed.has(name) && (this.#assigned.get(name)?.length ?? 0) < this.#ranges.length,
    )
    if (homeless.length === 0) return []
    const ranges = this.#ranges.map(formatCidr).join(', ')
    const more = homeless.length > 5 ? ` and ${homeless.length - 5} more` : ''
    return [
      `No virtual address of each kind for ${homeless.slice(0, 5).join(', ')}${more}: one of ${ranges} is full`,
    ]
  }

  #changed(): void {
    this.#all = undefined
    this.#ownerByIp = undefined
  }

  /** @returns every address that the catalog has given to somebody */
  #takeGiven(followed: ReadonlyMap<string, CatalogService>): ReadonlySet<string> {
    const ownerNow = new Map<string, string>()
    for (const [name, { virtualIps }] of followed) {
      if (virtualIps.length === 0) continue
      for (const ip of virtualIps) ownerNow.set(ip, name)
      if (isStructurallyEqual(this.#given.get(name), virtualIps)) continue
      // Newest last.
      this.#given.delete(name)
      this.#given.set(name, virtualIps)
      this.#changed()
    }
    for (const [name, ips] of this.#given) {
      const isTaken =
        ips.some((ip) => (ownerNow.get(ip) ?? name) !== name) &&
        !followed.get(name)?.virtualIps.length
      const isForgotten = this.#given.size > MAX_REMEMBERED_NAMES && !followed.has(name)
      if (!isTaken && !isForgotten) continue
      this.#given.delete(name)
      this.#changed()
    }
    return new Set([...this.#given.values()].flat())
  }
}
