/**
 * Where instances of one service listen, and where some listened until lately: one memory for both kinds of catalog.
 * Pure.
 *
 * ```
 *   listed --not listed any more--> gone --yieldAfterMs--> gives way to others of its node --FORGET_MS--> forgotten
 * ```
 *
 * An application may go on dialing an address that the catalog does not list any more, and means the mesh by it. What
 * may enter is the catalog's to decide: Consul's claims are judged (consul/claims.ts), a file is believed.
 */
import { z } from 'zod'
import { formatAddress } from '../../model/address.ts'
import type { Members } from '../../model/schema.ts'
import { type InstanceAddress, YIELDING } from './catalog.ts'

/** So long Consul itself lists a node that does not answer any more, milliseconds. */
export const FORGET_MS = 72 * 3_600_000

/** Addresses of one service that are remembered though they are gone; the latest stay. */
const MAX_GONE = 256

/** Addresses of one service, by {@link keyOf}. */
export type KnownAddresses = ReadonlyMap<string, InstanceAddress>

/** An address as it is kept for the next run. */
export const storedAddress: z.ZodType<InstanceAddress> = z.object({
  ip: z.string(),
  port: z.number(),
  node: z.string(),
  since: z.number(),
  goneSinceMs: z.exactOptional(z.number()),
} satisfies Members<InstanceAddress>)

/** What two addresses have in common that are the same. */
export function keyOf(address: Pick<InstanceAddress, 'ip' | 'port' | 'node'>): string {
  return `${address.node} ${formatAddress(address)}`
}

/** Of two that are the same the last one stays. */
export function indexAddresses(
  addresses: readonly InstanceAddress[],
): Map<string, InstanceAddress> {
  return new Map(addresses.map((address) => [keyOf(address), address]))
}

/** In an order that depends on nothing else. */
export function sortedAddresses(known: KnownAddresses): readonly InstanceAddress[] {
  return [...known].toSorted(([a], [b]) => (a < b ? -1 : 1)).map(([, address]) => address)
}

/**
 * What is known after the catalog has listed `listed`. Nothing enters; what is back has its place again, unless it
 * gives way to others by now: that stays as it is until the caller lets it enter like a new one.
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

/** What is known now that time has passed; the same object when nothing has changed. */
export function ageAddresses(
  known: KnownAddresses,
  nowMs: number,
  yieldAfterMs: number,
): KnownAddresses {
  const gone = [...known].filter(([, { goneSinceMs }]) => goneSinceMs !== undefined)
  const oldestFirst = gone.toSorted(([, a], [, b]) => (a.goneSinceMs ?? 0) - (b.goneSinceMs ?? 0))
  let next: Map<string, InstanceAddress> | undefined
  for (const [position, [key, address]] of oldestFirst.entries()) {
    // A clock that was put back: what is gone in the future is gone now.
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
