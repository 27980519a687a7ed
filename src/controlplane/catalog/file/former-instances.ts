/**
 * What the catalog file says, together with where instances listened that it does not list any more. Pure.
 *
 * The file is the operator's word: what it lists is believed at once, and has an address before whatever was there.
 * What it lists no more is refused and not passed by: applications go on dialing it, and an edit is soon made.
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

/** Addresses by service, those that are gone included. */
export type KnownServices = ReadonlyMap<string, KnownAddresses>

/** A file and what is remembered of earlier ones. */
export interface KnownContent {
  readonly content: CatalogContent
  readonly known: KnownServices
}

/** Addresses of all services that are remembered though they are gone; the latest stay. */
const MAX_GONE = 20_000

/** Whatever the file lists comes before it. */
const YIELD_AFTER_MS = 0

/** What is known once the file says `content`. */
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

/** What is known now that time has passed; the same object when nothing has changed. */
export function ageServices(known: KnownServices, nowMs: number): KnownServices {
  const aged = [...known].map(
    ([name, addresses]) => [name, ageAddresses(addresses, nowMs, YIELD_AFTER_MS)] as const,
  )
  const kept = withoutOldest(aged).filter(([, addresses]) => addresses.size > 0)
  const isSame =
    kept.length === known.size && kept.every(([name, addresses]) => known.get(name) === addresses)
  return isSame ? known : new Map(kept)
}

/** The answer for one service; one that the file does not list has no endpoints. */
export function serviceOf({ content, known }: KnownContent, name: string): CatalogService {
  const listed = content.serviceByName.get(name)
  const addresses = sortedAddresses(known.get(name) ?? new Map())
  if (listed !== undefined) return { ...listed, addresses }
  return { name, protocol: 'tcp', virtualIps: [], ...directRouting(name), addresses }
}

/** All services, those that are gone included, sorted by name. */
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
  // Of those that are as old as the oldest that stays, so many as there is room for.
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
