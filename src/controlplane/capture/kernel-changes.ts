/**
 * Tells that somebody changed what capture has in the kernel, as soon as the kernel says so: rules of nftables (those
 * that iptables makes by its nft variant among them), rules and routes of routing.
 *
 * Our own changes are heard as well: whoever is told looks, finds all as planned, and no harm is done. Asked every
 * {@link ASK_MS}; that is two system calls. `nft monitor` would do the same with processes that must be kept alive and
 * read every set of the host.
 */
import { listenToNetlink } from '../../lib/netlink.ts'
import { ROUTE_PROTOCOL } from './routing.ts'

/** Starts to tell; disposing the result ends that. Undefined where nothing can be heard. */
export type WatchKernel = (onChange: () => void) => Disposable | undefined

/** How often the kernel is asked. */
const ASK_MS = 50

const NFTABLES_GROUP = 7
const ROUTE_GROUPS = { ipv4Route: 7, ipv4Rule: 8, ipv6Route: 11, ipv6Rule: 19 } as const

const HEADER_BYTES = 16
const RTM_NEWROUTE = 24
const RTM_DELROUTE = 25
/** Where a route's header has the number of who made it. */
const PROTOCOL_OFFSET = HEADER_BYTES + 5

/** All who are told, by the one that listens for them. */
const told = new Set<() => void>()
let listening: Disposable | undefined

/** Listens in the network namespace of this process; once, for all who want to be told. */
export function watchKernel(onChange: () => void): Disposable | undefined {
  listening ??= listen(() => {
    for (const tell of told) tell()
  })
  if (listening === undefined) return undefined
  const tell = (): void => onChange()
  told.add(tell)
  return {
    [Symbol.dispose]: () => {
      told.delete(tell)
      if (told.size > 0) return
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

/** In the names of what we look at: our tables, chains and comments, and the chains of others that may drop what is diverted. */
const NAMES = ['hostmesh', 'HOSTMESH', 'OUTPUT\0', 'INPUT\0']

/** Whether messages about nftables may concern us. */
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
