/**
 * Where instances of one service listen, and where some listened until recently: one memory for both kinds of catalog.
 * Pure.
 *
 * ```
 *   listed --not listed any more--> gone --yieldAfterMs--> gives way to others of its node --FORGET_MS--> forgotten
 * ```
 *
 * An application may still dial an address that the catalog no longer lists, and expects the mesh there. The catalog
 * decides which addresses enter: Consul's claims are judged (consul/claims.ts), a file is trusted.
 */
import { z } from 'zod'
import { formatAddress } from '../../model/address.ts'
import type { Members } from '../../model/schema.ts'
import { type InstanceAddress, YIELDING } from './catalog.ts'

/** How long Consul itself lists a node that no longer answers, milliseconds. */
export const FORGET_MS = 72 * 3_600_000

/** Most gone addresses remembered for one service; the latest stay. */
const MAX_GONE = 256

/** Addresses of one service, by {@link keyOf}. */
export type KnownAddresses = ReadonlyMap<string, InstanceAddress>

/** The stored form of an address, for the next run. */
export const storedAddress: z.ZodType<InstanceAddress> = z.object({
  ip: z.string(),
  port: z.number(),
  node: z.string(),
  since: z.number(),
  goneSinceMs: z.exactOptional(z.number()),
} satisfies Members<InstanceAddress>)

/** The identity of an address: equal for equal node, IP address and port. */
export function keyOf(address: Pick<InstanceAddress, 'ip' | 'port' | 'node'>): string {
  return `${address.node} ${formatAddress(address)}`
}

/** Of two equal addresses the last one stays. */
export function indexAddresses(
  addresses: readonly InstanceAddress[],
): Map<string, InstanceAddress> {
  return new Map(addresses.map((address) => [keyOf(address), address]))
}

/** Sorted by key, so that the order depends on nothing else. */
export function sortedAddresses(known: KnownAddresses): readonly InstanceAddress[] {
  return [...known].toSorted(([a], [b]) => (a < b ? -1 : 1)).map(([, address]) => address)
}

/**
 * The known addresses after the catalog listed `listed`. None is added. One that is listed again gets its rank back,
 * unless it already yields to others: then it stays as it is until the caller adds it like a new one.
 */
export function noteListed(
  known: KnownAddresses,
  listed: KnownAddresses,
  nowMs: number,
): Map<string, InstanceAddress> {
  const next = new Map<string, InstanceAddress>()
  for (const [key, address] of known) {
    const { ip, port, node, since, goneSinceMs = nowMs } = address
    if (!listed.has(key)) next.set(key, { ...address, goneSinceMs })
    else next.set(key, since === YIELDING ? address : { ip, port, node, since })
  }
  return next
}

/** The known addresses at `nowMs`; the same object when nothing has changed. */
export function ageAddresses(
  known: KnownAddresses,
  nowMs: number,
  yieldAfterMs: number,
): KnownAddresses {
  const gone = [...known].filter(([, { goneSinceMs }]) => goneSinceMs !== undefined)
  const oldestFirst = gone.toSorted(([, a], [, b]) => (a.goneSinceMs ?? 0) - (b.goneSinceMs ?? 0))
  let next: Map<string, InstanceAddress> | undefined
  for (const [position, [key, address]] of oldestFirst.entries()) {
    // After a clock was set back, an address gone in the future counts as gone now.
    const ageMs = Math.max(0, nowMs - (address.goneSinceMs ?? nowMs))
    if (ageMs >= FORGET_MS || position < oldestFirst.length - MAX_GONE) {
      next ??= new Map(known)
      next.delete(key)
    } else if (ageMs >= yieldAfterMs && address.since !== YIELDING) {
      next ??= new Map(known)
      next.set(key, { ...address, since: YIELDING })
    }
  }
  return next ?? known
}
