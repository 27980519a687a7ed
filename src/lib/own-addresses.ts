/**
 * The present addresses of this host, including loopback, and their networks.
 */
import { networkInterfaces } from 'node:os'

/** As Node prints them, without a zone. For the network namespace of this process; read again at each call. */
export function ownAddresses(): ReadonlySet<string> {
  const all = Object.values(networkInterfaces()).flatMap((each) => each ?? [])
  return new Set(all.map(({ address }) => address.split('%')[0] ?? ''))
}

/** The networks of the host's devices, `172.17.0.1/16`, without loopback. */
export function ownNetworks(): readonly string[] {
  const all = Object.values(networkInterfaces()).flatMap((each) => each ?? [])
  return all.flatMap(({ cidr, internal }) => (internal || cidr === null ? [] : [cidr]))
}
