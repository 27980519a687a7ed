/**
 * What the kernel holds for a connection on this host whose bytes nobody takes.
 *
 * Over the loopback interface segments are 64 KiB, and the kernel grants a sender some twenty of them from the start: an
 * application that answers a reader who does not read has 2.6 MB in the kernel, where over a network it would be 50 KB. A
 * thousand such connections use up the memory that TCP may have on the whole host (net.ipv4.tcp_mem), and then everybody's
 * segments are dropped. So a user with many connections gets small segments and buffers for the further ones that are made to
 * applications. Connections that applications have made are left as they are: what the kernel does not hold for them waits in this process.
 *
 * Where koffi does not load nothing is set.
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

/** Little enough for the kernel to round it up to 4 KiB. What the other end may have under way depends on it. */
const SEGMENT = new Int32Array([3_500])

/** The kernel doubles it, for its own expenses. */
const BUFFER = new Int32Array([32_768])

/**
 * A TCP socket for a connection to `ip` that takes little of the kernel's memory on both sides of it.
 * @returns its descriptor; undefined where there is none to be had.
 */
export function openFrugalSocket(ip: string): number | undefined {
  const calls = nativeCalls()
  const family = isIPv6(ip) ? AF_INET6 : AF_INET
  const fd = calls?.socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0) ?? -1
  if (calls === undefined || fd < 0) return undefined
  // Not before the connection is made could the other end be told.
  calls.setsockopt(fd, IPPROTO_TCP, TCP_MAXSEG, SEGMENT, SEGMENT.byteLength)
  for (const option of [SO_SNDBUF, SO_RCVBUF])
    calls.setsockopt(fd, SOL_SOCKET, option, BUFFER, BUFFER.byteLength)
  return fd
}
