/**
 * Non-blocking netlink sockets: receive the kernel's multicast reports, and send messages to the kernel.
 *
 * Node cannot wait for such a descriptor, so a listener must poll; a poll without a result costs one system call.
 */
import { AF_NETLINK, nativeCalls, SOCK_CLOEXEC, SOCK_NONBLOCK, SOCK_RAW } from './native.ts'

/** A socket that receives reports. Disposing it closes it. */
export interface NetlinkListener extends Disposable {
  /** Calls `hear` with each datagram received since; returns whether some were lost. The buffer is reused. */
  drain(hear: (datagram: Buffer) => void): boolean
}

/** Reports to receive: `route` is routing, `netfilter` is packet rules. Groups are the kernel's numbers, 1 to 32. */
export interface NetlinkGroups {
  readonly protocol: 'route' | 'netfilter'
  readonly groups: readonly number[]
}

const PROTOCOLS = { route: 0, sockets: 4, netfilter: 12 } as const
const ADDRESS_BYTES = 12
const DATAGRAM_BYTES = 65_536
const ENOBUFS = 105
/** Size of a message's header, which has the type in its fifth and sixth byte. */
const HEADER_BYTES = 16
const ANSWER_BYTES = 1_024
const NLMSG_ERROR = 2
const NLMSG_DONE = 3

/** Maximum number of datagrams in one poll, so that a flood does not block the thread. */
const MOST_AT_ONCE = 4_096

/** Opens a socket; undefined where that is not possible: no permission, no such protocol, no koffi. */
export function listenToNetlink({ protocol, groups }: NetlinkGroups): NetlinkListener | undefined {
  const calls = nativeCalls()
  if (calls === undefined) return undefined
  const fd = calls.socket(AF_NETLINK, SOCK_RAW | SOCK_NONBLOCK | SOCK_CLOEXEC, PROTOCOLS[protocol])
  if (fd < 0) return undefined
  const address = Buffer.alloc(ADDRESS_BYTES)
  address.writeUInt16LE(AF_NETLINK, 0)
  address.writeUInt32LE(groups.reduce((mask, group) => mask | (1 << (group - 1)), 0) >>> 0, 8)
  if (calls.bind(fd, address, address.length) !== 0) {
    calls.close(fd)
    return undefined
  }
  const buffer = Buffer.alloc(DATAGRAM_BYTES)
  let isOpen = true
  return {
    drain: (hear) => {
      if (!isOpen) return false
      for (let taken = 0; taken < MOST_AT_ONCE; taken += 1) {
        const length = calls.recv(fd, buffer, buffer.length, 0)
        if (length <= 0) return length < 0 && calls.errno() === ENOBUFS
        hear(buffer.subarray(0, length))
      }
      return false
    },
    [Symbol.dispose]: () => {
      if (isOpen) calls.close(fd)
      isOpen = false
    },
  }
}

/** A socket that sends messages and receives answers. Disposing it closes it. */
export interface NetlinkTalk extends Disposable {
  /** Sends a message to the kernel. */
  send(datagram: Uint8Array): void
  /** Sends a message and returns the type of the kernel's immediate answer; undefined when there is none. */
  ask(datagram: Uint8Array): number | undefined
  /**
   * Asks for a listing and calls `hear` with the type of each message and its bytes, header included, until it returns
   * false. The buffer is reused. Returns whether the listing was read to its end.
   */
  dump(datagram: Uint8Array, hear: (type: number, message: Buffer) => boolean): boolean
}

/** Opens a socket; undefined where that is not possible. `sockets` addresses the sockets of this host. */
export function talkToNetlink(protocol: 'netfilter' | 'sockets'): NetlinkTalk | undefined {
  const calls = nativeCalls()
  if (calls === undefined) return undefined
  const fd = calls.socket(AF_NETLINK, SOCK_RAW | SOCK_NONBLOCK | SOCK_CLOEXEC, PROTOCOLS[protocol])
  if (fd < 0) return undefined
  const answer = Buffer.alloc(ANSWER_BYTES)
  let isOpen = true
  const hear = (): boolean => calls.recv(fd, answer, answer.length, 0) >= HEADER_BYTES
  return {
    send: (datagram) => {
      if (isOpen) calls.send(fd, datagram, datagram.length, 0)
    },
    ask: (datagram) => {
      if (!isOpen) return undefined
      // Unread answers to earlier messages are discarded.
      while (hear());
      calls.send(fd, datagram, datagram.length, 0)
      return hear() ? answer.readUInt16LE(4) : undefined
    },
    dump: (datagram, hearMessage) => {
      if (!isOpen || calls.send(fd, datagram, datagram.length, 0) < 0) return false
      const buffer = Buffer.alloc(DATAGRAM_BYTES)
      for (;;) {
        // The kernel fills in the next part of a listing when the one before is read: nothing to wait for.
        const length = calls.recv(fd, buffer, buffer.length, 0)
        if (length <= 0) return false
        for (let at = 0; at + HEADER_BYTES <= length; ) {
          const bytes = buffer.readUInt32LE(at)
          const type = buffer.readUInt16LE(at + 4)
          if (type === NLMSG_DONE) return true
          if (type === NLMSG_ERROR || bytes < HEADER_BYTES || at + bytes > length) return false
          if (!hearMessage(type, buffer.subarray(at, at + bytes))) return false
          at += (bytes + 3) & ~3
        }
      }
    },
    [Symbol.dispose]: () => {
      if (isOpen) calls.close(fd)
      isOpen = false
    },
  }
}
