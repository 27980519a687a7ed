/**
 * The addresses that this host has now, those of loopback among them, and the networks that they are in.
 */
import { networkInterfaces } from 'node:os'

/** As Node prints them, without a zone. Of the network namespace of this process; asked anew each time. */
export function ownAddresses(): ReadonlySet<string> {
  const all = Object.values(networkInterfaces()).flatMap((each) => each ?? [])
  return new Set(all.map(({ address }) => address.split('%')[0] ?? ''))
}

/** The networks of its devices, `172.17.0.1/16`, without those of loopback. */
export function ownNetworks(): readonly string[] {
  const all = Object.values(networkInterfaces()).flatMap((each) => each ?? [])
  return all.flatMap(({ cidr, internal }) => (internal || cidr === null ? [] : [cidr]))
}
