/**
 * Makes the other end of a connection see a reset, not an end, when this process is killed.
 *
 * The kernel closes the sockets of a dead process with a FIN, and a truncated answer then looks complete. A socket with
 * SO_LINGER of zero seconds is reset instead, whoever closes it. So the option is set while a connection is open, and
 * removed before the close that ends it in order, whose last bytes must still be delivered. shutdown(2) ignores it.
 *
 * Where koffi does not load, nothing is set, and connections of a killed daemon end as the kernel ends them.
 */
import type { Server, Socket } from 'node:net'
import { nativeCalls, SOL_SOCKET } from '../../lib/native.ts'
import { descriptorOf } from '../../lib/node-internals.ts'

const SO_LINGER = 13

/** struct linger: on or off, seconds. */
const RESETS = new Int32Array([1, 0])
const ENDS = new Int32Array([0, 0])

/** From now on each close of `socket`, ours or the kernel's, resets the connection. */
export function resetOnClose(socket: Socket): void {
  setLinger(socket, RESETS)
}

/** The same for all sockets that the listening `server` accepts: they inherit the option. */
export function resetAcceptedOnClose(server: Server): void {
  setLinger(server, RESETS)
}

/** The next close of `socket` ends the connection in order. */
export function endOnClose(socket: Socket): void {
  setLinger(socket, ENDS)
}

function setLinger(owner: Socket | Server, linger: Int32Array): void {
  const fd = descriptorOf(owner)
  if (fd >= 0) nativeCalls()?.setsockopt(fd, SOL_SOCKET, SO_LINGER, linger, 8)
}
