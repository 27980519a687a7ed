/**
 * Finds in /proc which process uses a port of this host, when binding it has failed.
 *
 * An unprivileged process can see every socket with its state and user, but process numbers and names only of its own
 * user.
 */
import { readdirSync, readFileSync, readlinkSync } from 'node:fs'

/** A socket that is bound to a port. */
export interface PortHolder {
  /** A listening socket (or a bound one, for UDP), or a connection whose local end has the port. */
  readonly kind: 'listener' | 'connection'
  readonly uid: number
  readonly inode: number
  /** The remote port of a connection. */
  readonly remotePort: number
  readonly process: { readonly pid: number; readonly name: string } | undefined
}

const STATE_LISTEN = '0A'

/** The first holder that is found, listeners before connections; undefined when none is visible. */
export function findPortHolder(kind: 'tcp' | 'udp', port: number): PortHolder | undefined {
  const holders = [`/proc/net/${kind}`, `/proc/net/${kind}6`].flatMap((path) =>
    holdersIn(readOrNothing(path), kind, port),
  )
  const holder = holders.find((each) => each.kind === 'listener') ?? holders[0]
  return holder === undefined ? undefined : { ...holder, process: processOf(holder.inode) }
}

/** The holders of a port, from the text of /proc/net/tcp and similar files. */
export function holdersIn(
  table: string,
  kind: 'tcp' | 'udp',
  port: number,
): readonly Omit<PortHolder, 'process'>[] {
  const wanted = port.toString(16).toUpperCase().padStart(4, '0')
  return table.split('\n').flatMap((line) => {
    const [, local = '', remote = '', state, , , , uid, , inode] = line.trim().split(/\s+/)
    if (!local.endsWith(`:${wanted}`)) return []
    const remotePort = Number.parseInt(remote.slice(remote.indexOf(':') + 1), 16)
    const isListener = kind === 'tcp' ? state === STATE_LISTEN : remotePort === 0
    return [
      {
        kind: isListener ? 'listener' : 'connection',
        uid: Number(uid),
        inode: Number(inode),
        remotePort,
      },
    ]
  })
}

/** The first and last local port that the system uses for outgoing connections; undefined when it is unknown. */
export function localPortRange(): readonly [first: number, last: number] | undefined {
  const [first, last] = readOrNothing('/proc/sys/net/ipv4/ip_local_port_range').trim().split(/\s+/)
  return last === undefined ? undefined : [Number(first), Number(last)]
}

/** The ports of that range that the system does not use, in its own notation: `1,5-9`. */
export function reservedPorts(): string {
  return readOrNothing('/proc/sys/net/ipv4/ip_local_reserved_ports')
}

function processOf(inode: number): PortHolder['process'] {
  // Connections that only the kernel still has (TIME_WAIT) have no inode.
  if (inode === 0) return undefined
  const wanted = `socket:[${inode}]`
  for (const entry of listOrNothing('/proc')) {
    if (!/^\d+$/.test(entry)) continue
    for (const fd of listOrNothing(`/proc/${entry}/fd`))
      if (linkOrNothing(`/proc/${entry}/fd/${fd}`) === wanted)
        return { pid: Number(entry), name: readOrNothing(`/proc/${entry}/comm`).trim() }
  }
  return undefined
}

function readOrNothing(path: string): string {
  try {
    return readFileSync(path, 'utf8')
  } catch {
    return ''
  }
}

function listOrNothing(path: string): readonly string[] {
  try {
    return readdirSync(path)
  } catch {
    return []
  }
}

function linkOrNothing(path: string): string {
  try {
    return readlinkSync(path)
  } catch {
    return ''
  }
}
