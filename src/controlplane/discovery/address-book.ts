/**
 * Which virtual address is of which service, for every service that the mesh lists, followed or not.
 *
 * An address that the catalog gives wins over ours, and stays when the service is not followed any more or
 * has lost its last instance (Consul writes it on instances): an application may still have it from an
 * earlier answer. It goes when the catalog gives it to another service. What the list of the catalog says is
 * minutes old, so it counts for less than the answers for services that are followed.
 *
 * Consul before 1.11 gives none and lets whoever registers a service write any. So nothing takes an address from
 * who has it: not one that we have assigned, not one that the catalog still gives to another, and not one that a
 * service without any would get from us: whoever has our state lost may have told an application of it before.
 */
import { isStructurallyEqual } from '../../lib/structural-equal.ts'
import { type Cidr, formatCidr } from '../../model/cidr.ts'
import { Problem } from '../../model/problem.ts'
import type { CatalogService } from '../catalog/catalog.ts'
import {
  assignVirtualAddresses,
  firstChoices,
  isDerived,
  type VirtualAddresses,
} from './virtual-addresses.ts'

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
  /** Names that found no room when it was looked for last. */
  #unassigned: ReadonlySet<string> = new Set()
  #refused: readonly string[] = []
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

  /** Whether an address that the catalog has for a service leads to it. */
  owns(service: string, ip: string): boolean {
    return this.of(service).includes(ip)
  }

  /** The addresses that the catalog gave to a service; undefined when it gave none. */
  assignedTo(service: string): readonly string[] | undefined {
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
      [...names].every(
        (name) =>
          assigned.get(name)?.length === this.#ranges.length ||
          (assigned.has(name) && this.#unassigned.has(name)),
      ) &&
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
    this.#unassigned = new Set(
      [...names].filter((name) => this.#assigned.get(name)?.length !== this.#ranges.length),
    )
    this.#changed()
  }

  /** Claims that are not met, one sentence each. */
  warnings(): readonly string[] {
    return this.#refused
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
    const ownerNow = this.#ownersNow(followed, listed)
    const refused: string[] = []
    const answers = [...followed].map(([name, { virtualIps }]) => [name, virtualIps] as const)
    for (const claims of [answers, [...listed]]) {
      const open = claims.filter(([name, ips]) => ips.length > 0 && !givenNow.has(name))
      const believed = believable(open, ownerNow)
      for (const [name, ips] of open) {
        if (believed.has(name)) givenNow.set(name, ips)
        else refused.push(...refusalsOf(name, ips, ownerNow))
      }
      for (const [name, ips] of believed) for (const ip of ips) ownerNow.set(ip, name)
    }
    this.#refused = refused
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

  /** Whose an address is before anybody is heard: see the head of this file. */
  #ownersNow(followed: ReadonlyMap<string, CatalogService>, listed: Listed): Map<string, string> {
    const owners = new Map<string, string>()
    const claimed = new Set(
      [...[...followed.values()].map(({ virtualIps }) => virtualIps), ...listed.values()].flat(),
    )
    if (claimed.size === 0) return owners
    // A Consul that gives addresses gives one to whatever has a proxy.
    const hasNone = (name: string): boolean => {
      const answer = followed.get(name)
      return (
        listed.get(name)?.length === 0 ||
        (answer !== undefined &&
          answer.virtualIps.length === 0 &&
          answer.clusters[0].endpoints.length > 0)
      )
    }
    for (const name of new Set([...followed.keys(), ...listed.keys()])) {
      if (this.#assigned.has(name) || this.#given.has(name) || !hasNone(name)) continue
      for (const ip of firstChoices(this.#ranges, name)) if (claimed.has(ip)) owners.set(ip, name)
    }
    for (const [name, assigned] of this.#assigned) {
      const ips = this.#given.has(name) ? [] : assigned.filter((ip) => claimed.has(ip))
      if (ips.length === 0) continue
      for (const ip of ips)
        if (hasNone(name) || isDerived(this.#ranges, name, ip)) owners.set(ip, name)
    }
    for (const [name, ips] of this.#given)
      for (const ip of ips)
        if (followed.get(name)?.virtualIps.includes(ip) === true) owners.set(ip, name)
    return owners
  }
}

/** The claims on addresses that nobody else has, and that no two of them share. */
function believable(
  claims: readonly (readonly [string, readonly string[]])[],
  ownerNow: ReadonlyMap<string, string>,
): Listed {
  const owners = new Map<string, string | undefined>(ownerNow)
  for (const [name, ips] of claims)
    for (const ip of ips)
      if (!ownerNow.has(ip))
        owners.set(ip, owners.has(ip) && owners.get(ip) !== name ? undefined : name)
  return new Map(claims.filter(([name, ips]) => ips.every((ip) => owners.get(ip) === name)))
}

function refusalsOf(
  name: string,
  ips: readonly string[],
  ownerNow: ReadonlyMap<string, string>,
): readonly string[] {
  return ips
    .filter((ip) => ownerNow.get(ip) !== name)
    .map(
      (ip) =>
        `Virtual address ${ip} of service ${name} belongs to service ${ownerNow.get(ip) ?? 'another that claims it too'}; ${name} does not get it`,
    )
}
