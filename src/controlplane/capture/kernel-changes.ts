/**
 * Reports that another program changed what capture has in the kernel, as soon as the kernel reports it: rules of
 * nftables (including those that iptables makes by its nft variant), rules and routes of routing.
 *
 * Our own changes are reported as well; a callback then checks and finds everything as planned. The kernel is polled
 * every {@link ASK_MS}, with two system calls. `nft monitor` would report the same, but needs processes that must be
 * kept alive and that read every set of the host.
 */
import { listenToNetlink } from '../../lib/netlink.ts'
import { ROUTE_PROTOCOL } from './routing.ts'

/** Starts to report changes; disposing the result stops it. Undefined where the kernel's reports cannot be received. */
export type WatchKernel = (onChange: () => void) => Disposable | undefined

/** Interval at which the kernel is polled, in milliseconds. */
const ASK_MS = 50

const NFTABLES_GROUP = 7
const ROUTE_GROUPS = { ipv4Route: 7, ipv4Rule: 8, ipv6Route: 11, ipv6Rule: 19 } as const

const HEADER_BYTES = 16
const RTM_NEWROUTE = 24
const RTM_DELROUTE = 25
/** Offset in a route's header of the number of the program that created it. */
const PROTOCOL_OFFSET = HEADER_BYTES + 5

/** All callbacks, served by one listener. */
const listeners = new Set<() => void>()
let listening: Disposable | undefined

/** Listens in the network namespace of this process; one listener serves all callbacks. */
export function watchKernel(onChange: () => void): Disposable | undefined {
  listening ??= listen(() => {
    for (const notify of listeners) notify()
  })
  if (listening === undefined) return undefined
  const notify = (): void => onChange()
  listeners.add(notify)
  return {
    [Symbol.dispose]: () => {
      listeners.delete(notify)
      if (listeners.size > 0) return
      listening?.[Symbol.dispose]()
      listening = undefined
    },
  }
}

function listen(onChange: () => void): Disposable | undefined {
  const rules = listenToNetlink({ protocol: 'netfilter', groups: [NFTABLES_GROUP] })
  const routes = listenToNetlink({ protocol: 'route', groups: Object.values(ROUTE_GROUPS) })
  if (rules === undefined && routes === undefined) return undefined
  const ask = (): void => {
    let isOurs = false
    const heard = (concerns: (datagram: Buffer) => boolean) => (datagram: Buffer) => {
      isOurs ||= concerns(datagram)
    }
    const isLost = [
      rules?.drain(heard(concernsRules)) ?? false,
      routes?.drain(heard(concernsRoutes)) ?? false,
    ]
    if (isOurs || isLost.includes(true)) onChange()
  }
  const timer = setInterval(ask, ASK_MS)
  timer.unref()
  return {
    [Symbol.dispose]: () => {
      clearInterval(timer)
      rules?.[Symbol.dispose]()
      routes?.[Symbol.dispose]()
    },
  }
}

/** Names to look for: our tables, chains and comments, and foreign chains that may drop diverted traffic. */
const NAMES = ['hostmesh', 'HOSTMESH', 'OUTPUT\0', 'INPUT\0']

/** Whether messages about nftables may concern our rules. */
export function concernsRules(datagram: Buffer): boolean {
  return NAMES.some((name) => datagram.includes(name))
}

/** Whether messages about routing may concern ours: a route of our protocol number, or any rule. */
export function concernsRoutes(datagram: Buffer): boolean {
  for (let at = 0; at + HEADER_BYTES <= datagram.length; ) {
    const length = datagram.readUInt32LE(at)
    const type = datagram.readUInt16LE(at + 4)
    const isRoute = type === RTM_NEWROUTE || type === RTM_DELROUTE
    if (!isRoute || datagram[at + PROTOCOL_OFFSET] === Number(ROUTE_PROTOCOL)) return true
    if (length < HEADER_BYTES) return true
    at += (length + 3) & ~3
  }
  return false
}
