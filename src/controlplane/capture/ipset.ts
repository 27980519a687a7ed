/**
 * Text for `ipset restore`: the sets that iptables rules match against. Pure.
 *
 * A set is a table in the kernel; a rule looks `destination ip,port` up in it. Small changes add and delete
 * members in place; for large ones a new set is built and swapped in, so that no connection meets a
 * half-filled set.
 */
import type { SocketAddress } from '../../model/address.ts'
import { type SetKind, setNames } from './iptables-words.ts'
import { type Family, families } from './rules.ts'
import { MAX_INSTANCE_ADDRESSES, membersByFamily, type SetMembers } from './set-members.ts'

/** All kinds of sets. */
const setKinds: readonly SetKind[] = ['instances', 'permitted', 'guarded', 'spared', 'intact']

/** One of our sets. */
export interface OwnSet {
  readonly name: string
  readonly kind: SetKind
  readonly family: Family
}

/** All our sets. */
export const ownSets: readonly OwnSet[] = families.flatMap((family) =>
  setKinds.map((kind) => ({ name: setNames[kind][family], kind, family })),
)

/** Members that cover every address of a family; the kernel accepts no prefix of length 0. */
export const EVERY_ADDRESS: Record<Family, SetMembers> = {
  v4: new Set(['0.0.0.0/1', '128.0.0.0/1']),
  v6: new Set(['::/1', '8000::/1']),
}

/** Maximum number of spared connections at a time, for each family. */
const MAX_SPARED = 262_144

/** Name under which the next content of a set is built. */
export function nextSetName(name: string): string {
  return `${name}_next`
}

/** Members of sets that are matched against a destination, `10.0.0.7,tcp:5432`. @throws as {@link membersByFamily} */
export function setMembers(addresses: Iterable<SocketAddress>): Record<Family, SetMembers> {
  return membersByFamily(addresses, (ip, port) => `${ip},tcp:${port}`)
}

/** Creates the set if it does not exist; keeps its members otherwise. */
export function renderCreate({ name, kind, family }: OwnSet): string {
  const inet = family === 'v4' ? 'inet' : 'inet6'
  switch (kind) {
    case 'instances':
    case 'permitted':
    case 'guarded':
      return `create ${name} hash:ip,port family ${inet} maxelem ${MAX_INSTANCE_ADDRESSES}\n`
    case 'spared':
      // Each member has its own timeout.
      return `create ${name} hash:ip,port,ip family ${inet} timeout 0 maxelem ${MAX_SPARED}\n`
    case 'intact':
      return `create ${name} hash:net family ${inet}\n`
  }
}

/** Replaces the content of the set by `members`, in one swap. */
export function renderReplace(set: OwnSet, members: SetMembers): string {
  const { name } = set
  const next = nextSetName(name)
  const lines = [
    renderCreate(set),
    renderCreate({ ...set, name: next }),
    `flush ${next}\n`,
    ...[...members].map((member) => `add ${next} ${member}\n`),
    `swap ${next} ${name}\n`,
    `destroy ${next}\n`,
  ]
  return lines.join('')
}

/** Spares connections for this many seconds from now. */
export function renderSpare(
  { name }: OwnSet,
  connections: readonly string[],
  seconds: number,
): string {
  return connections.map((member) => `add ${name} ${member} timeout ${seconds}\n`).join('')
}

/**
 * Turns `before` into `after` in place: empty when nothing changed, undefined when a replacement is
 * less work. Additions come first.
 */
export function renderUpdate(
  name: string,
  before: SetMembers,
  after: SetMembers,
): string | undefined {
  const lines: string[] = []
  for (const member of after) if (!before.has(member)) lines.push(`add ${name} ${member}\n`)
  for (const member of before) if (!after.has(member)) lines.push(`del ${name} ${member}\n`)
  return lines.length > after.size ? undefined : lines.join('')
}
