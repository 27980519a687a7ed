/**
 * systemd's notification socket: one datagram per message, as specified by sd_notify(3).
 *
 * Node has no AF_UNIX datagram sockets, so the system calls go through koffi. Sending never blocks
 * and never throws: a service manager that does not read must not stop the service.
 */
import { MeshError } from './errors.ts'
import {
  AF_UNIX,
  type MessageHeader,
  requireNativeCalls,
  SOCK_CLOEXEC,
  SOCK_DGRAM,
  SOL_SOCKET,
} from './native.ts'

const MSG_DONTWAIT = 0x40
const MSG_NOSIGNAL = 0x4000
const SCM_RIGHTS = 1

/** Size of sockaddr_un.sun_path, including the terminating zero. */
const MAX_PATH_BYTES = 108

/** An open notification socket. */
export interface SystemdSocket extends Disposable {
  /**
   * Sends one message (`READY=1`, several lines allowed), optionally with a descriptor, of which the receiver gets a
   * duplicate; false when it was not accepted.
   */
  send(message: string, fd?: number): boolean
}

/**
 * Opens the socket named by $NOTIFY_SOCKET: a path, or `@name` for an abstract one.
 * @throws MeshError HM_SYSTEMD_NOTIFY_FAILED when the name has another form, HM_FFI_UNAVAILABLE
 */
export function openSystemdSocket(name: string): SystemdSocket {
  const address = socketAddress(name)
  const calls = requireNativeCalls('notifies systemd')
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

/** struct sockaddr_un: family in the machine's byte order (always little-endian here), then the path. */
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
