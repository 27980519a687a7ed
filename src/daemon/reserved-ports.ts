/**
 * Whether the system may give ports of ours to outgoing connections of others, while the daemon is away. Pure.
 */
import { Problem } from '../model/problem.ts'

/** Names our ports that are in the range and not reserved (`ip_local_reserved_ports`: `1,5-9`); undefined when none is. */
export function unreservedPorts(
  ports: readonly number[],
  range: readonly [first: number, last: number] | undefined,
  reserved: string,
): Problem | undefined {
  if (range === undefined) return undefined
  const [first, last] = range
  const kept = reserved
    .trim()
    .split(',')
    .filter((part) => part !== '')
  const isReserved = (port: number): boolean =>
    kept.some((part) => {
      const [from, to = from] = part.split('-').map(Number)
      return from !== undefined && to !== undefined && port >= from && port <= to
    })
  const open = [...new Set(ports)]
    .filter((port) => port >= first && port <= last && !isReserved(port))
    .toSorted((a, b) => a - b)
  if (open.length === 0) return undefined
  return new Problem(
    'HM_PORTS_NOT_RESERVED',
    `Outgoing connections may take ports of this daemon: net.ipv4.ip_local_port_range ${first}-${last} reaches ${open.join(', ')}`,
    { hint: `sysctl -w net.ipv4.ip_local_reserved_ports=${[...kept, ...open].join(',')}` },
  )
}
