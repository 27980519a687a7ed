/**
 * Closing a connection so that the peer sees a reset, never an end, whatever state the socket is in.
 *
 * Node's own resetAndDestroy() throws for TLS sockets, and while a shutdown is on its way to the kernel libuv
 * refuses to reset and Node then loses the handle: neither event nor file descriptor ever comes back.
 */
import type { Socket } from 'node:net'
import { tcpUnder } from '../../lib/node-internals.ts'

/** Aborts the connection in both directions. Does nothing to a socket that is closed already. */
export function resetSocket(socket: Socket): void {
  if (socket.destroyed) return
  if (isShuttingDown(socket)) {
    // A turn of the event loop away; then the reset is taken.
    socket.once('finish', () => resetSocket(socket))
    return
  }
  const tcp = tcpUnder(socket)
  if (tcp === undefined) {
    socket.resetAndDestroy()
    return
  }
  // TLS closes the connection under it by this method, after it has cleaned up its own.
  const close = tcp.close.bind(tcp)
  tcp.close = (callback) => {
    if (tcp.reset(callback) !== 0) close(callback)
  }
  socket.destroy()
}

/** Everything is written and the shutdown was asked for, but not done yet. */
function isShuttingDown(socket: Socket): boolean {
  return socket.writableEnded && !socket.writableFinished && socket.writableLength === 0
}
