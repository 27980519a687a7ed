/**
 * Closes a connection so that the peer sees a reset, never an end, in any state of the socket.
 *
 * Node's resetAndDestroy() throws for TLS sockets. While a shutdown is in progress libuv refuses to reset, and Node
 * then loses the handle: neither the event nor the file descriptor ever comes back.
 */
import type { Socket } from 'node:net'
import { tcpUnder } from '../../lib/node-internals.ts'

/** Aborts the connection in both directions. Does nothing to a closed socket. */
export function resetSocket(socket: Socket): void {
  if (socket.destroyed) return
  if (isShuttingDown(socket)) {
    // One turn of the event loop later the reset is accepted.
    socket.once('finish', () => resetSocket(socket))
    return
  }
  const tcp = tcpUnder(socket)
  if (tcp === undefined) {
    socket.resetAndDestroy()
    return
  }
  // TLS closes the underlying connection by this method, after its own cleanup.
  const close = tcp.close.bind(tcp)
  tcp.close = (callback) => {
    if (tcp.reset(callback) !== 0) close(callback)
  }
  socket.destroy()
}

/** Everything is written and the shutdown was requested, but is not finished. */
function isShuttingDown(socket: Socket): boolean {
  return socket.writableEnded && !socket.writableFinished && socket.writableLength === 0
}
