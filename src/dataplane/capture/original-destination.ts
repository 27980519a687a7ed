/**
 * The original destination of a captured connection, from the kernel and never from the client.
 *
 * TPROXY keeps the destination: it is the accepted socket's own address. REDIRECT rewrites it; conntrack stores it, and
 * SO_ORIGINAL_DST reads it. For a connection that dialed the capture port itself the result is that port, or none: the
 * caller must refuse both (docs/capture.md, "Original destination"). Runs once per connection, so the buffers are
 * shared: only the result is allocated.
 */
import type { Socket } from 'node:net'
import { requireNativeCalls, SOL_IP, SOL_IPV6 } from '../../lib/native.ts'
import { descriptorOf } from '../../lib/node-internals.ts'
import { canonicalIp, ipFromBytes, type SocketAddress } from '../../model/address.ts'

/** How a connection reached a capture port: by TPROXY to a transparent listener, or by REDIRECT. */
export type CapturedBy = 'transparent' | 'redirect'

/** SO_ORIGINAL_DST and IP6T_SO_ORIGINAL_DST have the same number. */
const ORIGINAL_DESTINATION = 80
const SOCKADDR_IN_BYTES = 16
const SOCKADDR_IN6_BYTES = 28

const sockaddr = new Uint8Array(SOCKADDR_IN6_BYTES)
const ipv6Bytes = sockaddr.subarray(8, 24)
const length = new Uint32Array(1)

/** The original destination of an accepted connection; undefined when nothing on this host knows it. */
export function destinationOf(socket: Socket, capturedBy: CapturedBy): SocketAddress | undefined {
  if (capturedBy === 'redirect') {
    const fd = descriptorOf(socket)
    return fd < 0 ? undefined : originalDestination(fd)
  }
  const ip = canonicalIp(socket.localAddress ?? '')
  return ip === undefined ? undefined : { ip, port: socket.localPort ?? 0 }
}

/**
 * The original destination of the connection of `fd`, canonical (IPv4-mapped is IPv4); undefined when the kernel has
 * none: not a TCP socket, no NAT on this host, or the connection was never tracked.
 * @throws MeshError HM_FFI_UNAVAILABLE when the native binding does not load here.
 */
export function originalDestination(fd: number): SocketAddress | undefined {
  const calls = requireNativeCalls(
    'reads the original destination of captured connections',
    ', or set capture.mode: off and use upstream ports',
  )
  // An IPv4-mapped socket of a dual-stack listener answers at the IPv4 level, so IPv4 is asked first.
  length[0] = SOCKADDR_IN_BYTES
  if (calls.getsockopt(fd, SOL_IP, ORIGINAL_DESTINATION, sockaddr, length) === 0) {
    const ip = `${sockaddr[4]}.${sockaddr[5]}.${sockaddr[6]}.${sockaddr[7]}`
    return { ip, port: portInSockaddr() }
  }
  length[0] = SOCKADDR_IN6_BYTES
  if (calls.getsockopt(fd, SOL_IPV6, ORIGINAL_DESTINATION, sockaddr, length) !== 0) return undefined
  const ip = ipFromBytes(ipv6Bytes)
  return ip === undefined ? undefined : { ip, port: portInSockaddr() }
}

function portInSockaddr(): number {
  return ((sockaddr[2] ?? 0) << 8) | (sockaddr[3] ?? 0)
}
