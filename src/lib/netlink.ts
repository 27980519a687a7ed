/**
 * Hearing what the kernel tells everybody, and telling it something: netlink sockets, never waited for.
 *
 * Node cannot wait for such a descriptor, so whoever listens asks from time to time; a question that nothing answers is
 * one system call.
 */
import { AF_NETLINK, nativeCalls, SOCK_CLOEXEC, SOCK_NONBLOCK, SOCK_RAW } from './native.ts'

/** A socket that hears. Disposing it closes it. */
export interface NetlinkListener extends Disposable {
  /** Calls `hear` with each datagram that has come since; returns whether some were lost. The buffer is used again. */
  drain(hear: (datagram: Buffer) => void): boolean
}

/** What is heard: `route` is routing, `netfilter` the rules of packets. Groups are the kernel's numbers, 1 to 32. */
export interface NetlinkGroups {
  readonly protocol: 'route' | 'netfilter'
  readonly groups: readonly number[]
}

const PROTOCOLS = { route: 0, sockets: 4, netfilter: 12 } as const
const ADDRESS_BYTES = 12
const DATAGRAM_BYTES = 65_536
const ENOBUFS = 105
/** Of a message, whose type is in its fifth and sixth byte. */
const HEADER_BYTES = 16
const ANSWER_BYTES = 1_024

/** Datagrams taken at a time: a flood is no reason to stand still. */
const MOST_AT_ONCE = 4_096

/** Opens a socket; undefined where that is not possible: no right to, no such protocol, no koffi. */
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

/** A socket that tells and asks. Disposing it closes it. */
export interface NetlinkTalk extends Disposable {
  /** Tells the kernel something. */
  send(datagram: Uint8Array): void
  /** The type of the message with which the kernel answers at once; undefined when it says nothing. */
  ask(datagram: Uint8Array): number | undefined
}

/** Opens a socket; undefined where that is not possible. `sockets` are those of this host, by their addresses. */
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
      // What came of earlier messages: nobody has asked for it.
      while (hear());
      calls.send(fd, datagram, datagram.length, 0)
      return hear() ? answer.readUInt16LE(4) : undefined
    },
    [Symbol.dispose]: () => {
      if (isOpen) calls.close(fd)
      isOpen = false
    },
  }
}
