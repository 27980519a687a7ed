/**
 * Calls native code through koffi: the functions of the C library that Node does not offer. No other file does.
 *
 * koffi is loaded at the first call, not at import, so that commands that do not need it also run where it cannot load
 * (an unsupported C library, a package installed without its prebuilt part). Works in worker threads; each has its own
 * bindings. All supported machines are little-endian with 64 bits.
 */
import { createRequire } from 'node:module'
import { getSystemErrorMessage, getSystemErrorName } from 'node:util'
import type * as Koffi from 'koffi'
import { MeshError } from './errors.ts'

export const AF_UNIX = 1
export const AF_INET = 2
export const AF_INET6 = 10
export const AF_NETLINK = 16
export const SOCK_STREAM = 1
export const SOCK_DGRAM = 2
export const SOCK_RAW = 3
export const SOCK_NONBLOCK = 0o4000
export const SOCK_CLOEXEC = 0o2000000
export const SOL_SOCKET = 1
export const SOL_IP = 0
export const SOL_IPV6 = 41
export const IPPROTO_TCP = 6
export const TCP_MAXSEG = 2

/** struct msghdr of sendmsg(2), without flags. */
export interface MessageHeader {
  readonly msg_name: Uint8Array
  readonly msg_namelen: number
  readonly msg_iov: readonly { readonly iov_base: Uint8Array; readonly iov_len: number }[]
  readonly msg_iovlen: number
  readonly msg_control: Uint8Array | null
  readonly msg_controllen: number
  readonly msg_flags: number
}

/** The functions, by their names in sections 2 and 3 of the manual. Results below zero are failures. */
export interface NativeCalls {
  socket(family: number, type: number, protocol: number): number
  /** Fills `fds` with two descriptors. */
  socketpair(family: number, type: number, protocol: number, fds: Int32Array): number
  bind(fd: number, address: Uint8Array, length: number): number
  listen(fd: number, backlog: number): number
  getsockname(fd: number, address: Uint8Array, length: Uint32Array): number
  setsockopt(fd: number, level: number, option: number, value: Int32Array, length: number): number
  /** Fills `value`; `length` contains its capacity before the call and the result's length after it. */
  getsockopt(
    fd: number,
    level: number,
    option: number,
    value: Uint8Array | Int32Array,
    length: Uint32Array,
  ): number
  recv(fd: number, bytes: Uint8Array, length: number, flags: number): number
  send(fd: number, bytes: Uint8Array, length: number, flags: number): number
  sendmsg(fd: number, header: MessageHeader, flags: number): number | bigint
  fcntl(fd: number, command: number, type: 'int', argument: number): number
  dup2(from: number, to: number): number
  close(fd: number): number
  flock(fd: number, operation: number): number
  inet_pton(family: number, text: string, bytes: Uint8Array): number
  /** Only in glibc: returns freed pages to the system, except for this many bytes at the top. */
  readonly malloc_trim: ((keptBytes: number) => number) | undefined
  /** The error number of this thread's last failed call. */
  errno(): number
}

let calls: NativeCalls | undefined
let failure: unknown

/** The functions; undefined where koffi does not load, for callers that work without them. */
export function nativeCalls(): NativeCalls | undefined {
  if (calls === undefined && failure === undefined)
    try {
      calls = bindCalls(createRequire(import.meta.url)('koffi'))
    } catch (error) {
      failure = error
    }
  return calls
}

/**
 * The functions, for callers that need them.
 * @param purpose what koffi is needed for, such as `locks files`
 * @throws MeshError HM_FFI_UNAVAILABLE where koffi does not load
 */
export function requireNativeCalls(purpose: string, advice = ''): NativeCalls {
  const bound = nativeCalls()
  if (bound !== undefined) return bound
  throw new MeshError(
    'HM_FFI_UNAVAILABLE',
    `Cannot load koffi, which ${purpose} (${process.platform}-${process.arch})`,
    { cause: failure, hint: `Reinstall with optional dependencies (npm ci)${advice}` },
  )
}

/** The error of the call that has just failed, with the system's name of it as `code`. */
export function systemError(from: NativeCalls, call: string): Error {
  const errno = from.errno()
  const code = getSystemErrorName(-errno)
  const error = new Error(`${call}: ${getSystemErrorMessage(-errno)} (${code})`)
  return Object.assign(error, { code })
}

/** Binds the functions through the given koffi; {@link nativeCalls} caches the result. */
function bindCalls(koffi: typeof Koffi): NativeCalls {
  // null means the running program itself, whose C library is loaded whatever its file name is.
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
    socketpair: program.func('int socketpair(int, int, int, void *)'),
    bind: program.func('int bind(int, void *, uint32_t)'),
    listen: program.func('int listen(int, int)'),
    getsockname: program.func('int getsockname(int, void *, void *)'),
    setsockopt: program.func('int setsockopt(int, int, int, void *, uint32_t)'),
    getsockopt: program.func('int getsockopt(int, int, int, void *, void *)'),
    recv: program.func('long recv(int, void *, size_t, int)'),
    send: program.func('long send(int, void *, size_t, int)'),
    sendmsg: program.func('sendmsg', 'long', ['int', koffi.pointer(header), 'int']),
    fcntl: program.func('int fcntl(int, int, ...)'),
    dup2: program.func('int dup2(int, int)'),
    close: program.func('int close(int)'),
    flock: program.func('int flock(int, int)'),
    inet_pton: program.func('int inet_pton(int, const char *, void *)'),
    malloc_trim: optional(() => program.func('int malloc_trim(size_t)')),
    errno: () => koffi.errno(),
  }
}

function optional<T>(bindOne: () => T): T | undefined {
  try {
    return bindOne()
  } catch {
    return undefined
  }
}
