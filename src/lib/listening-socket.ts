/**
 * Listening sockets as plain descriptors, opened by system calls, so that they belong to the process and not to a
 * server object. They can be kept while acceptors are started and stopped, passed to threads by number, and
 * passed to another process.
 *
 * Everything that accepted connections inherit (TCP_NODELAY, keepalive, IP_TRANSPARENT) is set on the listening socket.
 */
import {
  AF_INET,
  AF_INET6,
  IPPROTO_TCP,
  type NativeCalls,
  requireNativeCalls,
  SOCK_CLOEXEC,
  SOCK_DGRAM,
  SOCK_NONBLOCK,
  SOCK_STREAM,
  SOL_IP,
  SOL_IPV6,
  SOL_SOCKET,
  systemError,
  TCP_MAXSEG,
} from './native.ts'

/** A wanted socket. `ip` without zone; `::` accepts IPv4 too, another IPv6 address only itself. */
export interface SocketSpec {
  readonly kind: 'tcp' | 'udp'
  readonly ip: string
  readonly port: number
  /** IP_TRANSPARENT: also accepts traffic to other addresses that is diverted here. Needs CAP_NET_ADMIN. */
  readonly transparent?: boolean
  /** Maximum segment size of accepted connections in both directions, bytes. */
  readonly maxSegment?: number | undefined
}

const TYPES = { tcp: SOCK_STREAM, udp: SOCK_DGRAM } as const

const SO_REUSEADDR = 2
const SO_TYPE = 3
const SO_KEEPALIVE = 9
const SO_REUSEPORT = 15
const SO_ACCEPTCONN = 30
const IP_TRANSPARENT = 19
const IPV6_V6ONLY = 26
const IPV6_TRANSPARENT = 75
const TCP_NODELAY = 1
const TCP_KEEPIDLE = 4
const TCP_KEEPINTVL = 5
const TCP_KEEPCNT = 6

/** For the error on a host without koffi. */
const PURPOSE = 'opens listening sockets'

const F_GETFD = 1
const F_SETFD = 2
const FD_CLOEXEC = 1
const F_DUPFD_CLOEXEC = 1_030

/** Connections that wait to be accepted; the kernel lowers it to net.core.somaxconn. */
export const BACKLOG = 4_096

/**
 * Keepalive of accepted connections, seconds: idle time before the first probe, interval and number of unanswered
 * probes before the kernel resets the connection; one minute in all. `idle` is less than connection tracking's timeout
 * of a half-closed connection.
 */
const KEEPALIVE = { idle: 30, interval: 10, probes: 3 } as const

/** Sizes of sockaddr_in and sockaddr_in6. */
const ADDRESS_BYTES = { [AF_INET]: 16, [AF_INET6]: 28 } as const

/**
 * Opens, binds and listens. Several sockets of this process's user may bind one address (SO_REUSEPORT).
 * @returns the descriptor, closed on exec
 * @throws Error whose `code` is the system's (`EADDRINUSE`, `EACCES`, `EAFNOSUPPORT`…)
 */
export function openListeningSocket(spec: SocketSpec): number {
  const calls = requireNativeCalls(PURPOSE)
  const address = socketAddress(calls, spec)
  const family = familyOf(spec)
  const fd = calls.socket(family, TYPES[spec.kind] | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)
  if (fd < 0) throw systemError(calls, 'socket')
  try {
    setOption(calls, fd, SOL_SOCKET, SO_REUSEPORT, 1)
    if (family === AF_INET6) setOption(calls, fd, SOL_IPV6, IPV6_V6ONLY, isV6Only(spec) ? 1 : 0)
    if (spec.transparent === true) makeTransparent(fd, spec)
    if (spec.kind === 'tcp') {
      // Connections of an earlier process may still be in TIME_WAIT.
      setOption(calls, fd, SOL_SOCKET, SO_REUSEADDR, 1)
      // Otherwise a second small write of an answer would wait for the caller's delayed ACK.
      setOption(calls, fd, IPPROTO_TCP, TCP_NODELAY, 1)
      keepAcceptedAlive(fd)
      if (spec.maxSegment !== undefined) limitSegments(fd, spec.maxSegment)
    }
    if (calls.bind(fd, address, address.length) !== 0) throw systemError(calls, 'bind')
    if (spec.kind === 'tcp' && calls.listen(fd, BACKLOG) !== 0) throw systemError(calls, 'listen')
    return fd
  } catch (error) {
    calls.close(fd)
    throw error
  }
}

/**
 * Binds a TCP port and does not listen: callers are refused, and only this process's user can listen there.
 * @returns the descriptor, closed on exec @throws Error with the system's `code`
 */
export function holdPort(spec: SocketSpec & { readonly kind: 'tcp' }): number {
  const calls = requireNativeCalls(PURPOSE)
  const address = socketAddress(calls, spec)
  const family = familyOf(spec)
  const fd = calls.socket(family, TYPES.tcp | SOCK_CLOEXEC, 0)
  if (fd < 0) throw systemError(calls, 'socket')
  try {
    // Without SO_REUSEADDR: with it, another user could bind the same port while no socket listens.
    setOption(calls, fd, SOL_SOCKET, SO_REUSEPORT, 1)
    if (family === AF_INET6) setOption(calls, fd, SOL_IPV6, IPV6_V6ONLY, 1)
    if (calls.bind(fd, address, address.length) !== 0) throw systemError(calls, 'bind')
    return fd
  } catch (error) {
    calls.close(fd)
    throw error
  }
}

/**
 * Makes connections accepted from now on end when their peer is gone: without keepalive, a connection on which only we
 * could write, and do not, would stay for ever. @throws Error with the system's `code`.
 */
export function keepAcceptedAlive(fd: number): void {
  const calls = requireNativeCalls(PURPOSE)
  setOption(calls, fd, SOL_SOCKET, SO_KEEPALIVE, 1)
  setOption(calls, fd, IPPROTO_TCP, TCP_KEEPIDLE, KEEPALIVE.idle)
  setOption(calls, fd, IPPROTO_TCP, TCP_KEEPINTVL, KEEPALIVE.interval)
  setOption(calls, fd, IPPROTO_TCP, TCP_KEEPCNT, KEEPALIVE.probes)
}

/**
 * From now on no other user can bind a UDP socket to this address (SO_REUSEADDR).
 * @throws Error with the system's `code`.
 */
export function stopSharingAddress(fd: number): void {
  setOption(requireNativeCalls(PURPOSE), fd, SOL_SOCKET, SO_REUSEADDR, 0)
}

/** Limits segments in both directions of connections accepted from now on. @throws Error with the system's `code`. */
export function limitSegments(fd: number, bytes: number): void {
  setOption(requireNativeCalls(PURPOSE), fd, IPPROTO_TCP, TCP_MAXSEG, bytes)
}

/** Makes a bound socket accept traffic that is diverted to it. @throws Error with the system's `code`. */
export function makeTransparent(fd: number, spec: SocketSpec): void {
  const calls = requireNativeCalls(PURPOSE)
  const isV6 = familyOf(spec) === AF_INET6
  if (isV6) setOption(calls, fd, SOL_IPV6, IPV6_TRANSPARENT, 1)
  // A dual-stack socket accepts IPv4 by this option.
  if (!isV6 || !isV6Only(spec)) setOption(calls, fd, SOL_IP, IP_TRANSPARENT, 1)
}

/** Whether a descriptor is a socket as {@link openListeningSocket} would open it for `spec`, ignoring transparency. */
export function isSocketOf(fd: number, spec: SocketSpec): boolean {
  const calls = requireNativeCalls(PURPOSE)
  const expected = socketAddress(calls, spec)
  const actual = new Uint8Array(ADDRESS_BYTES[AF_INET6])
  const length = new Uint32Array([actual.length])
  if (calls.getsockname(fd, actual, length) !== 0 || length[0] !== expected.length) return false
  // sin6_flowinfo and sin6_scope_id are zero in all sockets opened here.
  if (!expected.every((byte, i) => actual[i] === byte)) return false
  if (getOption(calls, fd, SOL_SOCKET, SO_TYPE) !== TYPES[spec.kind]) return false
  if (spec.kind === 'tcp' && getOption(calls, fd, SOL_SOCKET, SO_ACCEPTCONN) !== 1) return false
  if (familyOf(spec) === AF_INET) return true
  return (getOption(calls, fd, SOL_IPV6, IPV6_V6ONLY) === 1) === isV6Only(spec)
}

/** The port that a socket is bound to; undefined for any other descriptor. */
export function boundPort(fd: number): number | undefined {
  const bytes = new Uint8Array(ADDRESS_BYTES[AF_INET6])
  if (requireNativeCalls(PURPOSE).getsockname(fd, bytes, new Uint32Array([bytes.length])) !== 0)
    return undefined
  if (bytes[0] !== AF_INET && bytes[0] !== AF_INET6) return undefined
  return ((bytes[2] ?? 0) << 8) | (bytes[3] ?? 0)
}

/**
 * Whether no socket uses this TCP port at any address: neither a listener, of any user, nor an outgoing connection.
 * Binds it for a moment only.
 */
export function isPortFree(port: number): boolean {
  const calls = requireNativeCalls(PURPOSE)
  for (const ip of ['::', '0.0.0.0']) {
    const spec: SocketSpec = { kind: 'tcp', ip, port }
    const family = familyOf(spec)
    const fd = calls.socket(family, TYPES.tcp | SOCK_CLOEXEC, 0)
    // No IPv6 here: the IPv4 result decides.
    if (fd < 0) continue
    try {
      setOption(calls, fd, SOL_SOCKET, SO_REUSEADDR, 1)
      if (family === AF_INET6) setOption(calls, fd, SOL_IPV6, IPV6_V6ONLY, 0)
      const address = socketAddress(calls, spec)
      return calls.bind(fd, address, address.length) === 0
    } finally {
      calls.close(fd)
    }
  }
  return false
}

/** Another descriptor of the same open socket, closed on exec. @throws Error with the system's `code`. */
export function duplicateDescriptor(fd: number): number {
  const calls = requireNativeCalls(PURPOSE)
  const copy = calls.fcntl(fd, F_DUPFD_CLOEXEC, 'int', 0)
  if (copy < 0) throw systemError(calls, 'fcntl')
  return copy
}

/** Sets whether `fd` is closed in programs that this process starts. @throws Error with the system's `code`. */
export function setCloseOnExec(fd: number, closes: boolean): void {
  const calls = requireNativeCalls(PURPOSE)
  const flags = calls.fcntl(fd, F_GETFD, 'int', 0)
  const wanted = closes ? flags | FD_CLOEXEC : flags & ~FD_CLOEXEC
  if (flags < 0 || calls.fcntl(fd, F_SETFD, 'int', wanted) < 0) throw systemError(calls, 'fcntl')
}

/** Closes a descriptor; one that is not open is ignored. */
export function closeDescriptor(fd: number): void {
  requireNativeCalls(PURPOSE).close(fd)
}

function familyOf({ ip }: SocketSpec): typeof AF_INET | typeof AF_INET6 {
  return ip.includes(':') ? AF_INET6 : AF_INET
}

function isV6Only({ ip }: SocketSpec): boolean {
  return ip !== '::'
}

/** struct sockaddr_in or sockaddr_in6: family in the machine's byte order (little-endian), port in the network's. */
function socketAddress(calls: NativeCalls, spec: SocketSpec): Uint8Array {
  const family = familyOf(spec)
  const bytes = new Uint8Array(ADDRESS_BYTES[family])
  bytes[0] = family
  bytes[2] = spec.port >> 8
  bytes[3] = spec.port & 0xff
  if (calls.inet_pton(family, spec.ip, bytes.subarray(family === AF_INET ? 4 : 8)) !== 1)
    throw new RangeError(`Not an IP address: ${spec.ip}`)
  return bytes
}

function setOption(
  calls: NativeCalls,
  fd: number,
  level: number,
  option: number,
  value: number,
): void {
  const code = calls.setsockopt(fd, level, option, new Int32Array([value]), 4)
  if (code !== 0) throw systemError(calls, 'setsockopt')
}

function getOption(
  calls: NativeCalls,
  fd: number,
  level: number,
  option: number,
): number | undefined {
  const value = new Int32Array(1)
  const code = calls.getsockopt(fd, level, option, value, new Uint32Array([4]))
  return code === 0 ? value[0] : undefined
}
