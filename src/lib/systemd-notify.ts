/**
 * systemd's notification socket: one datagram per message, as sd_notify(3) says.
 *
 * Node has no AF_UNIX datagram sockets, so the two system calls go through koffi. Sending never blocks
 * and never throws: a service manager that does not listen must not stop the service.
 */
import { createRequire } from 'node:module'
import type { load } from 'koffi'
import { MeshError } from './errors.ts'

const AF_UNIX = 1
const SOCK_DGRAM = 2
const SOCK_CLOEXEC = 0o2000000
const MSG_DONTWAIT = 0x40
const MSG_NOSIGNAL = 0x4000

/** Of sockaddr_un.sun_path, its terminating zero included. */
const MAX_PATH_BYTES = 108

/** An open notification socket. */
export interface SystemdSocket extends Disposable {
  /** Sends one message (`READY=1`, several lines allowed); false when it was not taken. */
  send(message: string): boolean
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
    send: (message) => {
      if (!isOpen) return false
      const bytes = Buffer.from(message)
      const flags = MSG_DONTWAIT | MSG_NOSIGNAL
      const sent = calls.sendto(fd, bytes, bytes.length, flags, address, address.length)
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

interface Calls {
  socket(domain: number, type: number, protocol: number): number
  sendto(
    fd: number,
    bytes: Uint8Array,
    length: number,
    flags: number,
    address: Uint8Array,
    addressLength: number,
  ): number | bigint
  close(fd: number): number
}

/** Loaded here and not at import, so that koffi costs nothing without systemd. */
function loadCalls(): Calls {
  try {
    const koffi: { load: typeof load } = createRequire(import.meta.url)('koffi')
    const program = koffi.load(null)
    return {
      socket: program.func('int socket(int, int, int)'),
      sendto: program.func('long sendto(int, void *, size_t, int, void *, uint32_t)'),
      close: program.func('int close(int)'),
    }
  } catch (error) {
    throw new MeshError('HM_SYSTEMD_NOTIFY_FAILED', 'Cannot load koffi, to notify systemd', {
      cause: error,
      hint: 'Reinstall with optional dependencies (npm ci)',
    })
  }
}
