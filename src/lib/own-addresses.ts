/**
 * The addresses that this host has now, those of loopback among them.
 */
import { networkInterfaces } from 'node:os'

/** As Node prints them, without a zone. Of the network namespace of this process; asked anew each time. */
export function ownAddresses(): ReadonlySet<string> {
  const all = Object.values(networkInterfaces()).flatMap((each) => each ?? [])
  return new Set(all.map(({ address }) => address.split('%')[0] ?? ''))
}
