/**
 * Whether the kernel may assign our ports to outgoing connections of other programs while the daemon is stopped. Pure.
 */
import { Problem } from '../model/problem.ts'

/** Our ports in the range that are not reserved (`ip_local_reserved_ports`: `1,5-9`); undefined when there are none. */
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
