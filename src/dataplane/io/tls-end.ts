/**
 * Whether a TLS peer ended its side, or was cut off: close_notify, or a bare FIN that anybody on the way can send.
 *
 * Node tells both as `end`. What tells them apart is who is still reading: after close_notify Node reports the end while
 * libuv goes on reading the TCP connection; after a FIN libuv has stopped before it reports anything. uv_read_start()
 * says which (EALREADY: it is reading). A TLS socket that is paused cannot have come by a FIN at all. This uses two
 * undocumented fields; where a runtime lacks them every end counts as one.
 */
import type { Socket } from 'node:net'
import type { TLSSocket } from 'node:tls'
import { isReading, tcpUnder } from '../../lib/node-internals.ts'

const cutOff = new WeakSet<Socket>()

/** From now on {@link isCutOff} knows. Call it once, before anything else can be read: in the event of the handshake. */
export function watchTlsEnd(socket: TLSSocket): void {
  const push = socket.push.bind(socket)
  // Not at 'end': that may come later, when the FIN after a close_notify has been read too.
  const pushWatched = (chunk: unknown, encoding?: BufferEncoding): boolean => {
    if (chunk === null) {
      socket.push = push
      if (hasReadFin(socket)) cutOff.add(socket)
    }
    return push(chunk, encoding)
  }
  socket.push = pushWatched
}

/** Whether the connection ended without close_notify. Ask at `end`. */
export function isCutOff(socket: Socket): boolean {
  return cutOff.has(socket)
}

function hasReadFin(socket: TLSSocket): boolean {
  const tcp = isReading(socket) ? tcpUnder(socket) : undefined
  if (tcp === undefined || tcp.readStart() !== 0) return false
  tcp.readStop()
  return true
}
