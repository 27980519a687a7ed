/**
 * Two connected stream sockets inside this process: one thread has each end. No other process can connect to them.
 */
import { Socket } from 'node:net'
import { MeshError } from './errors.ts'
import {
  AF_UNIX,
  requireNativeCalls,
  SOCK_CLOEXEC,
  SOCK_NONBLOCK,
  SOCK_STREAM,
  systemError,
} from './native.ts'

/** A pair. */
export interface SocketPair {
  /** The end of this thread. */
  readonly near: Socket
  /** Descriptor of the end of another thread, which owns it from then on: see {@link farSocket}. */
  readonly far: number
}

/** Makes a pair. @throws MeshError HM_FFI_UNAVAILABLE, Error where the process has no descriptors left */
export function socketPair(): SocketPair {
  const calls = requireNativeCalls('connects threads')
  const fds = new Int32Array(2)
  if (calls.socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds) !== 0)
    throw systemError(calls, 'socketpair')
  const [near = -1, far = -1] = fds
  return { near: new Socket({ fd: near, readable: true, writable: true }), far }
}

/** The other end, in the thread that has got its descriptor. It ends in order where a TCP socket would be reset. */
export function farSocket(fd: number): Socket {
  const socket = new Socket({ fd, readable: true, writable: true, allowHalfOpen: true })
  // Node resets TCP sockets only, and throws otherwise.
  const destroy = (): Socket => socket.destroy()
  socket.resetAndDestroy = destroy
  // A pair has no reset either: the near end, which never ends first to go on reading, is gone. Waiting for the called
  // side to end as well would leave it to that side how long a stop takes.
  socket.on('end', () => {
    if (!socket.writableEnded) socket.destroy(new MeshError('HM_CALLER_GONE', 'The caller hung up'))
  })
  return socket
}
