/**
 * The content of the catalog file, together with addresses of instances that it no longer lists. Pure.
 *
 * The file is the operator's decision: what it lists is accepted at once, and has an address before anything that was
 * there. Connections to what it no longer lists are refused and do not bypass the mesh: applications still dial it, and
 * an edit is quickly made.
 */
import { directRouting } from '../../../model/route.ts'
import { type CatalogService, type InstanceAddress, type ListedService } from '../catalog.ts'
import {
  ageAddresses,
  indexAddresses,
  type KnownAddresses,
  noteListed,
  sortedAddresses,
} from '../known-addresses.ts'
import type { CatalogContent } from './decode.ts'

/** Addresses by service, including gone ones. */
export type KnownServices = ReadonlyMap<string, KnownAddresses>

/** The content of a file, and addresses remembered from earlier ones. */
export interface KnownContent {
  readonly content: CatalogContent
  readonly known: KnownServices
}

/** Most gone addresses remembered for all services; the latest stay. */
const MAX_GONE = 20_000

/** Gone addresses yield at once to whatever the file lists. */
const YIELD_AFTER_MS = 0

/** The known addresses after the file changed to `content`. */
export function noteContent(
  known: KnownServices,
  content: CatalogContent,
  nowMs: number,
): KnownServices {
  const next = new Map<string, KnownAddresses>()
  for (const name of new Set([...known.keys(), ...content.serviceByName.keys()])) {
    const listed = indexAddresses(content.serviceByName.get(name)?.addresses ?? [])
    const before = noteListed(known.get(name) ?? new Map(), listed, nowMs)
    next.set(name, new Map([...before, ...listed]))
  }
  return ageServices(next, nowMs)
}

/** The known addresses at `nowMs`; the same object when nothing has changed. */
export function ageServices(known: KnownServices, nowMs: number): KnownServices {
  const aged = [...known].map(
    ([name, addresses]) => [name, ageAddresses(addresses, nowMs, YIELD_AFTER_MS)] as const,
  )
  const kept = withoutOldest(aged).filter(([, addresses]) => addresses.size > 0)
  const isSame =
    kept.length === known.size && kept.every(([name, addresses]) => known.get(name) === addresses)
  return isSame ? known : new Map(kept)
}

/** The answer for one service; one that is not in the file has no endpoints. */
export function serviceOf({ content, known }: KnownContent, name: string): CatalogService {
  const listed = content.serviceByName.get(name)
  const addresses = sortedAddresses(known.get(name) ?? new Map())
  if (listed !== undefined) return { ...listed, addresses }
  return { name, protocol: 'tcp', virtualIps: [], ...directRouting(name), addresses }
}

/** All services, including gone ones, sorted by name. */
export function listOf({ content, known }: KnownContent): readonly ListedService[] {
  const names = new Set([...content.serviceByName.keys(), ...known.keys()])
  return [...names].toSorted().map((name) => {
    const listed = content.serviceByName.get(name)
    const addresses = sortedAddresses(known.get(name) ?? new Map())
    return {
      name,
      virtualIps: listed?.virtualIps ?? [],
      ...(addresses.length > 0 && { addresses }),
      ...(listed === undefined && { goneSinceMs: lastGoneMs(addresses) }),
    }
  })
}

function lastGoneMs(addresses: readonly InstanceAddress[]): number {
  return Math.max(...addresses.map(({ goneSinceMs = 0 }) => goneSinceMs))
}

type Entry = readonly [string, KnownAddresses]

function withoutOldest(entries: readonly Entry[]): readonly Entry[] {
  const gone = entries.flatMap(([, addresses]) =>
    [...addresses.values()].flatMap(({ goneSinceMs }) => goneSinceMs ?? []),
  )
  if (gone.length <= MAX_GONE) return entries
  const oldestMs = gone.toSorted((a, b) => b - a)[MAX_GONE - 1] ?? 0
  // Of those as old as the oldest that stays, as many as there is room for.
  let room = MAX_GONE - gone.filter((goneSinceMs) => goneSinceMs > oldestMs).length
  const stays = ({ goneSinceMs = Number.POSITIVE_INFINITY }: InstanceAddress): boolean => {
    if (goneSinceMs !== oldestMs) return goneSinceMs > oldestMs
    room -= 1
    return room >= 0
  }
  return entries.map(([name, addresses]) => [
    name,
    new Map([...addresses].filter(([, address]) => stays(address))),
  ])
}
