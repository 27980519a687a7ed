/**
 * Makes virtual addresses dialable on a host that has no route to them.
 *
 * The kernel looks for a route before any iptables rule sees the connection, so on a host without a
 * default route (IPv6 on many) connect() to a virtual address fails with "Network is unreachable".
 * Only then a route of our own through loopback is added, marked by its protocol number so that exactly it
 * can be removed. Packets that no rule diverts end on loopback; they never leave the host by it.
 */
import type { RunCommand } from './command.ts'
import { ROUTE_PROTOCOL } from './routing.ts'
import { type Family, parseRange } from './rules.ts'

const FAMILY_FLAG: Record<Family, string> = { v4: '-4', v6: '-6' }

/** Adds the route if it is needed. Returns what is wrong in one sentence, undefined when nothing is. */
export async function ensureRoute(
  run: RunCommand,
  family: Family,
  range: string,
): Promise<string | undefined> {
  const network = parseRange(range, family)
  const [address = ''] = network.split('/')
  const flag = FAMILY_FLAG[family]
  const found = await run('ip', [flag, 'route', 'get', address])
  if (found.status === 0) return undefined
  const args = [flag, 'route', 'add', network, 'dev', 'lo', 'proto', ROUTE_PROTOCOL]
  const added = await run('ip', args)
  if (added.status === 0 || /File exists/.test(added.stderr)) {
    const again = await run('ip', [flag, 'route', 'get', address])
    if (again.status === 0) return undefined
    return `Virtual addresses ${network} cannot be dialed: a route on this host refuses them (${again.stderr.trim()})`
  }
  return `Virtual addresses ${network} cannot be dialed: this host has no route to them and none could be added (${added.stderr.trim()})`
}
