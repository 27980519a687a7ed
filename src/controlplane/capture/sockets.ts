/**
 * TCP sockets of this host by `ss`: finds connections from before capture, and ends connections when capture ends.
 */
import { canonicalIp, isIpv6 } from '../../model/address.ts'
import type { RunCommand } from './command.ts'
import type { Family } from './rules.ts'

/** Both ends of a connection as its socket has them, in the syntax of set elements: `ip . port`. */
export interface SocketEnds {
  readonly family: Family
  readonly local: string
  readonly peer: string
  /** Owner of the socket; 0 also where `ss` does not report it. */
  readonly uid: number
  /** The connection has ended, and the kernel remembers its ports for a while (TIME-WAIT). */
  readonly isOver: boolean
}

/** Number of filters in one `ss -K`: the length of a command line is limited. */
const KILLED_AT_ONCE = 60

/** All TCP connections; empty when `ss` fails. */
export async function listSockets(run: RunCommand): Promise<readonly SocketEnds[]> {
  const { status, stdout } = await run('ss', ['-HOtane', 'exclude', 'listening'])
  return status === 0 ? parseSockets(stdout) : []
}

/** Parses the output of `ss -HOtane`; lines that are not a connection between IP addresses are skipped. */
export function parseSockets(text: string): readonly SocketEnds[] {
  return text.split('\n').flatMap((line): SocketEnds[] => {
    const [state, , , local = '', peer = ''] = line.trim().split(/\s+/)
    const from = parseEnd(local)
    const to = parseEnd(peer)
    if (from === undefined || to === undefined) return []
    const uid = Number(/ uid:(\d+) /.exec(line)?.[1] ?? 0)
    const isOver = state === 'TIME-WAIT'
    return [{ family: to.family, local: from.text, peer: to.text, uid, isOver }]
  })
}

/** Open connections whose other end is not a socket of this host: not captured. */
export function uncaptured(sockets: readonly SocketEnds[]): readonly SocketEnds[] {
  const ends = new Set(sockets.map(({ local, peer }) => `${local} ${peer}`))
  return sockets.filter(({ local, peer, isOver }) => !isOver && !ends.has(`${peer} ${local}`))
}

/** The same after REDIRECT, by which a connection arrives at a capture port: those not accepted at one. */
export function unredirected(
  sockets: readonly SocketEnds[],
  capturePorts: ReadonlySet<number>,
): readonly SocketEnds[] {
  const accepted = new Set(
    sockets.filter(({ local }) => capturePorts.has(portOf(local))).map(({ peer }) => peer),
  )
  return sockets.filter(({ local, isOver }) => !isOver && !accepted.has(local))
}

/**
 * Both sockets (`a . 1 . b . 2`) of each connection that arrived at a capture port; the caller's socket is missing if
 * it is in a container. `isMesh` separates the caller's socket from its other sockets with the same port.
 */
export function redirectedPairs(
  sockets: readonly SocketEnds[],
  capturePorts: ReadonlySet<number>,
  isMesh: (peer: string) => boolean,
): readonly string[] {
  const isAccepted = ({ local }: SocketEnds): boolean => capturePorts.has(portOf(local))
  const callers = new Set(sockets.filter(isAccepted).map(({ peer }) => peer))
  return sockets
    .filter((socket) => isAccepted(socket) || (callers.has(socket.local) && isMesh(socket.peer)))
    .map(({ local, peer }) => `${local} . ${peer}`)
}

/** Callers (`a . 1 . b . 2`) of the connections that the daemon's user has accepted at one of these addresses. */
export function acceptedAt(
  sockets: readonly SocketEnds[],
  uid: number,
  addresses: ReadonlySet<string>,
): readonly string[] {
  return sockets.flatMap((socket) =>
    socket.uid === uid && addresses.has(socket.local) ? [`${socket.peer} . ${socket.local}`] : [],
  )
}

/** The same after REDIRECT: callers on this host of connections accepted at a capture port. */
export function redirectedAt(
  sockets: readonly SocketEnds[],
  capturePorts: ReadonlySet<number>,
  addresses: ReadonlySet<string>,
): readonly string[] {
  const isAccepted = ({ local }: SocketEnds): boolean => capturePorts.has(portOf(local))
  const callers = new Set(sockets.filter(isAccepted).map(({ peer }) => peer))
  return sockets.flatMap(({ local, peer }) =>
    callers.has(local) && addresses.has(peer) ? [`${local} . ${peer}`] : [],
  )
}

/**
 * Connections (`a . 1 . b . 2`, our end first) that the daemon's user has accepted at an address of the mesh and whose
 * caller, on this host, has no socket any more: it ended while nothing was diverted, so its FIN never arrived. Callers
 * in other network namespaces are left out. A connection that the daemon dials looks the same while the other side has
 * no room for it.
 */
export function abandoned(
  sockets: readonly SocketEnds[],
  uid: number,
  hosts: {
    /** Addresses of this host. */
    readonly own: ReadonlySet<string>
    /** Whether an end (`ip . port`) is an address that is diverted. */
    readonly isMesh: (end: string) => boolean
  },
): readonly string[] {
  return uncaptured(sockets)
    .filter(({ uid: owner, local, peer }) => {
      const isOwn = hosts.own.has(peer.split(' ')[0] ?? '')
      return owner === uid && isOwn && hosts.isMesh(local)
    })
    .map(({ local, peer }) => `${local} . ${peer}`)
}

/** Destroys connections (`a . 1 . b . 2`), which resets them for their users. Returns the problem, if any. */
export async function destroySockets(
  run: RunCommand,
  tuples: readonly string[],
): Promise<string | undefined> {
  for (let at = 0; at < tuples.length; at += KILLED_AT_ONCE) {
    const filters = tuples.slice(at, at + KILLED_AT_ONCE).map(filterOf)
    const { status, stderr } = await run('ss', ['-K', '-Htan', filters.join(' or ')])
    if (status !== 0) return `ss -K could not end open captured connections: ${stderr.trim()}`
  }
  return undefined
}

function portOf(end: string): number {
  return Number(end.slice(end.lastIndexOf(' ') + 1))
}

function filterOf(tuple: string): string {
  const [ip = '', port = '', toIp = '', toPort = ''] = tuple.split(' . ')
  return `( src ${endText(ip, port)} and dst ${endText(toIp, toPort)} )`
}

function endText(ip: string, port: string): string {
  return isIpv6(ip) ? `[${ip}]:${port}` : `${ip}:${port}`
}

function parseEnd(text: string): { family: Family; text: string } | undefined {
  const [, address = '', port = ''] = /^(.*):(\d+)$/.exec(text) ?? []
  const ip = canonicalIp(address.replace(/^\[/, '').replace(/\]$/, '').replace(/%.*$/, ''))
  if (ip === undefined) return undefined
  return { family: isIpv6(ip) ? 'v6' : 'v4', text: `${ip} . ${port}` }
}
