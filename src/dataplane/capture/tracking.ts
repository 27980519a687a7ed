/**
 * Corrects connection tracking for connections that arrived by REDIRECT.
 *
 * When the opener has ended a connection, the next one on the same port is tracked anew. When the other side has reset
 * it, tracking keeps the entry for 10 s: a caller that reuses the port in that time is redirected to the old
 * destination and refused there (docs/capture.md, "The rules of iptables"). So such entries are deleted. If tracking
 * has lost an entry itself, our segments no longer reach the caller, which cannot notice: its socket is reset here.
 */
import type { Socket } from 'node:net'
import { type NetlinkTalk, talkToNetlink } from '../../lib/netlink.ts'
import { canonicalIp, ipBytes, isIpv6, type SocketAddress } from '../../model/address.ts'

/** Netlink header, followed by that of netfilter, bytes. */
const HEADER_BYTES = 20
/** NFNL_SUBSYS_CTNETLINK, and IPCTNL_MSG_CT_GET or IPCTNL_MSG_CT_DELETE. */
const GET_CONNECTION = 0x0101
const DELETE_CONNECTION = 0x0102
const NLMSG_ERROR = 2
/** SOCK_DESTROY; and the netlink header with struct inet_diag_req_v2, bytes. */
const DESTROY_SOCKET = 21
const DESTROY_BYTES = 16 + 56
const ANY_COOKIE = 0xffff_ffff
const NLM_F_REQUEST = 1
const AF_INET = 2
const AF_INET6 = 10
const IPPROTO_TCP = 6

const NESTED = 0x8000
const TUPLE_ORIGINAL = 1 | NESTED
const TUPLE_IP = 1 | NESTED
const TUPLE_PROTOCOL = 2 | NESTED
const PROTOCOL = { number: 1, from: 2, to: 3 } as const
const ADDRESSES = { v4: { from: 1, to: 2 }, v6: { from: 3, to: 4 } } as const

let tracking: NetlinkTalk | null | undefined
let sockets: NetlinkTalk | null | undefined

/** Deletes the tracking entry of a connection that `caller` opened to `wanted` and we have reset. One system call. */
export function forgetRedirected(caller: SocketAddress, wanted: SocketAddress): void {
  tracking ??= talkToNetlink('netfilter') ?? null
  tracking?.send(trackingMessage(DELETE_CONNECTION, caller, wanted))
}

/**
 * Resets the socket of a caller on this host if connection tracking has lost its connection. A caller that has reset
 * the connection itself is still tracked and left alone: another socket may already use its port.
 */
export function endIfForgotten(caller: SocketAddress, wanted: SocketAddress): void {
  tracking ??= talkToNetlink('netfilter') ?? null
  if (tracking?.ask(trackingMessage(GET_CONNECTION, caller, wanted)) !== NLMSG_ERROR) return
  sockets ??= talkToNetlink('sockets') ?? null
  sockets?.send(destructionOf(caller, wanted))
}

/** The caller's address of an accepted connection; undefined once it is closed. */
export function callerOf(socket: Socket): SocketAddress | undefined {
  const ip = canonicalIp(socket.remoteAddress ?? '')
  return ip === undefined ? undefined : { ip, port: socket.remotePort ?? 0 }
}

/** The message that destroys the socket with these two addresses. */
function destructionOf(local: SocketAddress, peer: SocketAddress): Buffer {
  const bytes = Buffer.alloc(DESTROY_BYTES)
  bytes.writeUInt32LE(DESTROY_BYTES, 0)
  bytes.writeUInt16LE(DESTROY_SOCKET, 4)
  bytes.writeUInt16LE(NLM_F_REQUEST, 6)
  bytes.writeUInt8(isIpv6(peer.ip) ? AF_INET6 : AF_INET, 16)
  bytes.writeUInt8(IPPROTO_TCP, 17)
  bytes.writeUInt32LE(0xffff_ffff, 20)
  bytes.writeUInt16BE(local.port, 24)
  bytes.writeUInt16BE(peer.port, 26)
  bytes.set(ipBytes(local.ip), 28)
  bytes.set(ipBytes(peer.ip), 44)
  bytes.writeUInt32LE(ANY_COOKIE, 64)
  bytes.writeUInt32LE(ANY_COOKIE, 68)
  return bytes
}

/** The message that queries or deletes the connection opened between two addresses of one family. */
function trackingMessage(type: number, from: SocketAddress, to: SocketAddress): Buffer {
  const isV6 = isIpv6(to.ip)
  const address = isV6 ? ADDRESSES.v6 : ADDRESSES.v4
  const tuple = attribute(
    TUPLE_ORIGINAL,
    Buffer.concat([
      attribute(
        TUPLE_IP,
        Buffer.concat([
          attribute(address.from, Buffer.from(ipBytes(from.ip))),
          attribute(address.to, Buffer.from(ipBytes(to.ip))),
        ]),
      ),
      attribute(
        TUPLE_PROTOCOL,
        Buffer.concat([
          attribute(PROTOCOL.number, Buffer.of(IPPROTO_TCP)),
          attribute(PROTOCOL.from, portBytes(from.port)),
          attribute(PROTOCOL.to, portBytes(to.port)),
        ]),
      ),
    ]),
  )
  const header = Buffer.alloc(HEADER_BYTES)
  header.writeUInt32LE(HEADER_BYTES + tuple.length, 0)
  header.writeUInt16LE(type, 4)
  header.writeUInt16LE(NLM_F_REQUEST, 6)
  header.writeUInt8(isV6 ? AF_INET6 : AF_INET, 16)
  return Buffer.concat([header, tuple])
}

/** One netlink attribute, padded to four bytes. */
function attribute(type: number, value: Buffer): Buffer {
  const length = 4 + value.length
  const bytes = Buffer.alloc((length + 3) & ~3)
  bytes.writeUInt16LE(length, 0)
  bytes.writeUInt16LE(type, 2)
  value.copy(bytes, 4)
  return bytes
}

function portBytes(port: number): Buffer {
  return Buffer.of(port >> 8, port & 0xff)
}
