/**
 * Assigns virtual addresses to services: to every service that the mesh lists, followed or not.
 *
 * An address from the catalog takes precedence over ours. It stays when the service is no longer followed or has lost
 * its last instance (Consul stores it with instances), because an application may still have it from an earlier answer,
 * and ends when the catalog gives it to another service. The catalog's list is minutes old, so it counts less than the
 * answers for followed services.
 *
 * Consul before 1.11 assigns none, and accepts any address from whoever registers a service. So a claim never takes an
 * address from its present owner: not one that we have assigned, not one that the catalog still gives to another
 * service, and not one that a service without any would get from us: a host that has lost our state may already have
 * returned it to an application.
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

/** Number of absent services that keep their virtual address; those of further ones are dropped. */
const MAX_REMEMBERED_NAMES = 4_000

/** Services by name, with their addresses in the catalog's list. */
type Listed = ReadonlyMap<string, readonly string[]>

/** The virtual addresses of a mesh. */
export class AddressBook {
  readonly #ranges: readonly Cidr[]
  #assigned: VirtualAddresses
  /** The last addresses from the catalog, by service. */
  readonly #given = new Map<string, readonly string[]>()
  #names: ReadonlySet<string> = new Set()
  /** Services that found no free address in the last assignment. */
  #unassigned: ReadonlySet<string> = new Set()
  #refused: readonly string[] = []
  /** Computed on demand; undefined after a change. */
  #all: VirtualAddresses | undefined
  #ownerByIp: ReadonlyMap<string, string> | undefined

  /** @param assigned the assignments of an earlier run, kept where they still fit */
  constructor(ranges: readonly Cidr[], assigned: VirtualAddresses = new Map()) {
    this.#ranges = ranges
    this.#assigned = assigned
  }

  /** The addresses of a service; empty when it has none. */
  of(service: string): readonly string[] {
    return this.#given.get(service) ?? this.#assigned.get(service) ?? []
  }

  /** Whether an address that the catalog gives a service is accepted for it. */
  owns(service: string, ip: string): boolean {
    return this.of(service).includes(ip)
  }

  /** The addresses from the catalog for a service; undefined when there are none. */
  givenTo(service: string): readonly string[] | undefined {
    return this.#given.get(service)
  }

  /** The service that owns an address. */
  ownerOf(ip: string): string | undefined {
    this.#ownerByIp ??= new Map(
      [...this.all()].flatMap(([name, ips]) => ips.map((own) => [own, name] as const)),
    )
    return this.#ownerByIp.get(ip)
  }

  /** All assignments, to be passed to the next run. The same object until something changes. */
  all(): VirtualAddresses {
    this.#all ??= new Map([...this.#assigned, ...this.#given])
    return this.#all
  }

  /**
   * Updates the addresses from the catalog, and assigns one of ours to each other service.
   * @param followed the last answers of the followed services
   * @param listed all services, followed or not, with their addresses in the catalog's list
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
    // Absent names keep their addresses while there are few of them: they may return, and those of an earlier run may
    // not have had their first answer yet.
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

  /** Rejected claims, one sentence each. */
  warnings(): readonly string[] {
    return this.#refused
  }

  /** Services without a free address. */
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

  /** @returns all addresses that the catalog has given to a service */
  #takeGiven(followed: ReadonlyMap<string, CatalogService>, listed: Listed): ReadonlySet<string> {
    const givenNow = new Map<string, readonly string[]>()
    const ownerNow = this.#ownersNow(followed, listed)
    const refused: string[] = []
    const answers = [...followed].map(([name, { virtualIps }]) => [name, virtualIps] as const)
    for (const claims of [answers, [...listed]]) {
      const open = claims.filter(([name, ips]) => ips.length > 0 && !givenNow.has(name))
      const accepted = uncontested(open, ownerNow)
      for (const [name, ips] of open) {
        if (accepted.has(name)) givenNow.set(name, ips)
        else refused.push(...refusalsOf(name, ips, ownerNow))
      }
      for (const [name, ips] of accepted) for (const ip of ips) ownerNow.set(ip, name)
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

  /** The owner of each address before new claims are considered: see the head of this file. */
  #ownersNow(followed: ReadonlyMap<string, CatalogService>, listed: Listed): Map<string, string> {
    const owners = new Map<string, string>()
    const claimed = new Set(
      [...[...followed.values()].map(({ virtualIps }) => virtualIps), ...listed.values()].flat(),
    )
    if (claimed.size === 0) return owners
    // A Consul that assigns addresses assigns one to every service with a proxy.
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

/** The claims on addresses without another owner, and without a second claim. */
function uncontested(
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
