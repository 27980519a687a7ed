/**
 * Tells whether a TLS peer ended its side or was cut off: by close_notify, or by a bare FIN, which anyone on the path
 * can send.
 *
 * Node reports both as `end`. The difference is whether libuv still reads: after close_notify Node reports the end
 * while libuv goes on reading the TCP connection; after a FIN libuv stops before it reports anything. uv_read_start()
 * shows which (EALREADY: it is reading). The end of a paused TLS socket cannot come from a FIN. This uses two
 * undocumented fields; where a runtime lacks them, every end counts as proper.
 */
import type { Socket } from 'node:net'
import type { TLSSocket } from 'node:tls'
import { isReading, tcpUnder } from '../../lib/node-internals.ts'

const cutOff = new WeakSet<Socket>()

/** Enables {@link isCutOff}. Call it once, before anything else can be read: in the handler of the handshake event. */
export function watchTlsEnd(socket: TLSSocket): void {
  const push = socket.push.bind(socket)
  // Not at 'end': that may come later, when the FIN after a close_notify has also been read.
  const pushWatched = (chunk: unknown, encoding?: BufferEncoding): boolean => {
    if (chunk === null) {
      socket.push = push
      if (hasReadFin(socket)) cutOff.add(socket)
    }
    return push(chunk, encoding)
  }
  socket.push = pushWatched
}

/** Whether the connection ended without close_notify. Call it at `end`. */
export function isCutOff(socket: Socket): boolean {
  return cutOff.has(socket)
}

function hasReadFin(socket: TLSSocket): boolean {
  const tcp = isReading(socket) ? tcpUnder(socket) : undefined
  if (tcp === undefined || tcp.readStart() !== 0) return false
  tcp.readStop()
  return true
}
