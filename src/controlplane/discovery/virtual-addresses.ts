/**
 * Addresses that exist only for capture: one for each service in each configured range.
 *
 * Pure. An address is the first 8 bytes of SHA-256 of the service name, modulo the usable size of the range; if another
 * service has it, the next free one after it. Assignments that are passed in again stay, so that an address, once an
 * application has looked it up, keeps its meaning.
 */
import { hash } from 'node:crypto'
import { canonicalIp } from '../../model/address.ts'
import { type Cidr, cidrAddress, cidrContains, cidrSize } from '../../model/cidr.ts'

/** Virtual addresses by service name, one for each range that had room. */
export type VirtualAddresses = ReadonlyMap<string, readonly string[]>

/** The input of {@link assignVirtualAddresses}. */
export interface AssignmentInput {
  /** Blocks to assign from; usually one of each family. They must not overlap. */
  readonly ranges: readonly Cidr[]
  readonly names: Iterable<string>
  /** Earlier assignments, of this run or the last one; kept where they still fit. */
  readonly existing: VirtualAddresses
  /** Addresses that the catalog has given to services: never assigned. */
  readonly taken: ReadonlySet<string>
}

/** Addresses tried before a range counts as full for a name; far more than needed while less than half is in use. */
const MAX_PROBES = 65_536

/** In a range with enough free addresses, a name needs no more tries than this. */
const LIKELY_PROBES = 16n

/** Assigns addresses to exactly these names. A name for which a range has no free address has none of that range. */
export function assignVirtualAddresses(input: AssignmentInput): VirtualAddresses {
  // Sorted: which name gets a hash's own address must not depend on the order in which services appeared.
  const names = [...new Set(input.names)].toSorted()
  const usedIps = new Set(input.taken)
  const assigned = new Map<string, Map<Cidr, string>>()
  for (const name of names) {
    const own = new Map<Cidr, string>()
    for (const range of input.ranges) {
      const ip = input.existing
        .get(name)
        ?.find((known) => !usedIps.has(known) && isUsable(range, known))
      if (ip === undefined) continue
      own.set(range, ip)
      usedIps.add(ip)
    }
    assigned.set(name, own)
  }
  for (const [name, own] of assigned)
    for (const range of input.ranges) {
      const ip = own.get(range) ?? firstFree(range, name, usedIps)
      if (ip === undefined) continue
      own.set(range, ip)
      usedIps.add(ip)
    }
  return new Map(
    [...assigned].map(([name, own]) => [
      name,
      input.ranges.flatMap((range) => own.get(range) ?? []),
    ]),
  )
}

/** Whether {@link assignVirtualAddresses} may have derived an address from a name. */
export function isDerived(ranges: readonly Cidr[], name: string, ip: string): boolean {
  const range = ranges.find((candidate) => isUsable(candidate, ip))
  if (range === undefined) return false
  const usable = cidrSize(range) - 2n
  const start = startOf(name)
  for (let probe = 0n; probe < LIKELY_PROBES && probe < usable; probe += 1n)
    if (cidrAddress(range, 1n + ((start + probe) % usable)) === ip) return true
  return false
}

/** The addresses that a name gets when they are free. */
export function firstChoices(ranges: readonly Cidr[], name: string): readonly string[] {
  const start = startOf(name)
  return ranges.flatMap((range) => {
    const usable = cidrSize(range) - 2n
    return usable <= 0n ? [] : [cidrAddress(range, 1n + (start % usable))]
  })
}

/** Whether the range assigns this address: all but its lowest and highest one, which have special meanings. */
function isUsable(range: Cidr, ip: string): boolean {
  return (
    // Assignments of an earlier run come from a file, which may hold anything.
    canonicalIp(ip) === ip &&
    cidrContains(range, ip) &&
    ip !== cidrAddress(range, 0n) &&
    ip !== cidrAddress(range, cidrSize(range) - 1n)
  )
}

function startOf(name: string): bigint {
  return BigInt(`0x${hash('sha256', name, 'hex').slice(0, 16)}`)
}

function firstFree(range: Cidr, name: string, usedIps: ReadonlySet<string>): string | undefined {
  const usable = cidrSize(range) - 2n
  if (usable <= 0n) return undefined
  const start = startOf(name)
  const probes = usable < MAX_PROBES ? Number(usable) : MAX_PROBES
  for (let probe = 0; probe < probes; probe += 1) {
    const ip = cidrAddress(range, 1n + ((start + BigInt(probe)) % usable))
    if (!usedIps.has(ip)) return ip
  }
  return undefined
}
