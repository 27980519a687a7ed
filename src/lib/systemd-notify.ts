/**
 * systemd's notification socket: one datagram per message, as sd_notify(3) says.
 *
 * Node has no AF_UNIX datagram sockets, so the two system calls go through koffi. Sending never blocks
 * and never throws: a service manager that does not listen must not stop the service.
 */
import { createRequire } from 'node:module'
import type * as Koffi from 'koffi'
import { MeshError } from './errors.ts'

const AF_UNIX = 1
const SOCK_DGRAM = 2
const SOCK_CLOEXEC = 0o2000000
const MSG_DONTWAIT = 0x40
const MSG_NOSIGNAL = 0x4000
const SOL_SOCKET = 1
const SCM_RIGHTS = 1

/** Of sockaddr_un.sun_path, its terminating zero included. */
const MAX_PATH_BYTES = 108

/** An open notification socket. */
export interface SystemdSocket extends Disposable {
  /**
   * Sends one message (`READY=1`, several lines allowed), with a descriptor that the receiver gets a duplicate of;
   * false when it was not taken.
   */
  send(message: string, fd?: number): boolean
}

/**
 * Opens the socket that $NOTIFY_SOCKET names: a path, or `@name` for an abstract one.
 * @throws MeshError HM_SYSTEMD_NOTIFY_FAILED when the name is of another kind or koffi does not load.
 */
export function openSystemdSocket(name: string): SystemdSocket {
  const address = socketAddress(name)
  const calls = loadCalls()
  const fd = calls.socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0)
  if (fd < 0)
    throw new MeshError('HM_SYSTEMD_NOTIFY_FAILED', 'Cannot open a datagram socket for systemd')
  let isOpen = true
  return {
    send: (message, passed) => {
      if (!isOpen) return false
      const bytes = Buffer.from(message)
      const control = passed === undefined ? null : rights(passed)
      const header: MessageHeader = {
        msg_name: address,
        msg_namelen: address.length,
        msg_iov: [{ iov_base: bytes, iov_len: bytes.length }],
        msg_iovlen: 1,
        msg_control: control,
        msg_controllen: control?.length ?? 0,
        msg_flags: 0,
      }
      const sent = calls.sendmsg(fd, header, MSG_DONTWAIT | MSG_NOSIGNAL)
      return Number(sent) === bytes.length
    },
    [Symbol.dispose]: () => {
      if (isOpen) calls.close(fd)
      isOpen = false
    },
  }
}

/** struct sockaddr_un: family in the machine's byte order (all of ours are little-endian), then the path. */
function socketAddress(name: string): Uint8Array {
  const isAbstract = name.startsWith('@')
  const path = Buffer.from(isAbstract ? `\0${name.slice(1)}` : `${name}\0`)
  if ((!isAbstract && !name.startsWith('/')) || path.length > MAX_PATH_BYTES) {
    throw new MeshError(
      'HM_SYSTEMD_NOTIFY_FAILED',
      `Cannot notify systemd at ${JSON.stringify(name)}: it must be /path or @name`,
    )
  }
  return Buffer.concat([Buffer.from([AF_UNIX, 0]), path])
}

/** struct cmsghdr with one descriptor, as CMSG_SPACE(4) lays it out on a 64-bit machine. */
function rights(fd: number): Uint8Array {
  const control = Buffer.alloc(24)
  // cmsg_len counts the header and the descriptor, not the padding.
  control.writeBigUInt64LE(20n, 0)
  control.writeInt32LE(SOL_SOCKET, 8)
  control.writeInt32LE(SCM_RIGHTS, 12)
  control.writeInt32LE(fd, 16)
  return control
}

/** struct msghdr of sendmsg(2). */
interface MessageHeader {
  readonly msg_name: Uint8Array
  readonly msg_namelen: number
  readonly msg_iov: readonly { readonly iov_base: Uint8Array; readonly iov_len: number }[]
  readonly msg_iovlen: number
  readonly msg_control: Uint8Array | null
  readonly msg_controllen: number
  readonly msg_flags: number
}

interface Calls {
  socket(domain: number, type: number, protocol: number): number
  sendmsg(fd: number, header: MessageHeader, flags: number): number | bigint
  close(fd: number): number
}

/** Loaded here and not at import, so that koffi costs nothing without systemd. */
function loadCalls(): Calls {
  try {
    const koffi: typeof Koffi = createRequire(import.meta.url)('koffi')
    const program = koffi.load(null)
    const iovec = koffi.struct({ iov_base: 'void *', iov_len: 'size_t' })
    const header = koffi.struct({
      msg_name: 'void *',
      msg_namelen: 'uint32_t',
      msg_iov: koffi.pointer(iovec),
      msg_iovlen: 'size_t',
      msg_control: 'void *',
      msg_controllen: 'size_t',
      msg_flags: 'int',
    })
    return {
      socket: program.func('int socket(int, int, int)'),
      sendmsg: program.func('sendmsg', 'long', ['int', koffi.pointer(header), 'int']),
      close: program.func('int close(int)'),
    }
  } catch (error) {
    throw new MeshError('HM_SYSTEMD_NOTIFY_FAILED', 'Cannot load koffi, to notify systemd', {
      cause: error,
      hint: 'Reinstall with optional dependencies (npm ci)',
    })
  }
}
