/**
 * Limits the kernel's memory for connections on this host whose bytes are not read.
 *
 * Over the loopback interface segments are 64 KiB, and the kernel grants a sender about twenty of them from the start:
 * an application that answers a client which does not read has 2.6 MB in the kernel; over a network it would be 50 KB.
 * A thousand such connections use up the memory that TCP may have on the whole host (net.ipv4.tcp_mem), and then
 * segments of all connections are dropped. So a user with many connections gets small segments and buffers for further
 * ones to applications. Connections from applications are unchanged: what the kernel does not hold waits in this
 * process.
 *
 * Where koffi does not load, nothing is set.
 */
import { isIPv6 } from 'node:net'
import {
  AF_INET,
  AF_INET6,
  IPPROTO_TCP,
  nativeCalls,
  SOCK_CLOEXEC,
  SOCK_NONBLOCK,
  SOCK_STREAM,
  SOL_SOCKET,
  TCP_MAXSEG,
} from '../../lib/native.ts'

const SO_SNDBUF = 7
const SO_RCVBUF = 8

/** Small enough that the kernel rounds it up to 4 KiB. It determines what the other end may have in transit. */
const SEGMENT = new Int32Array([3_500])

/** The kernel doubles it, for its own overhead. */
const BUFFER = new Int32Array([32_768])

/**
 * A TCP socket for a connection to `ip` that uses little kernel memory at both ends.
 * @returns its descriptor, owned by the caller; undefined where none is available.
 */
export function openSmallBufferSocket(ip: string): number | undefined {
  const calls = nativeCalls()
  const family = isIPv6(ip) ? AF_INET6 : AF_INET
  const fd = calls?.socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0) ?? -1
  if (calls === undefined || fd < 0) return undefined
  // Before connecting: only then does the other end learn of it.
  calls.setsockopt(fd, IPPROTO_TCP, TCP_MAXSEG, SEGMENT, SEGMENT.byteLength)
  for (const option of [SO_SNDBUF, SO_RCVBUF])
    calls.setsockopt(fd, SOL_SOCKET, option, BUFFER, BUFFER.byteLength)
  return fd
}
