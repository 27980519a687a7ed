/**
 * What the other end of a connection sees when this process is killed: a reset, never an end.
 *
 * The kernel closes the sockets of a dead process as the process itself would: with a FIN, and a cut-off answer then
 * looks like a complete one. A socket with SO_LINGER of zero seconds is reset instead, whoever closes it. So it is set
 * as long as a connection is open, and taken off for the close that ends it in order, whose last bytes must still be
 * delivered. shutdown(2) does not look at it.
 *
 * Where koffi does not load nothing is set, and a killed daemon's connections end as the kernel ends them.
 */
import type { Server, Socket } from 'node:net'
import { nativeCalls, SOL_SOCKET } from '../../lib/native.ts'
import { descriptorOf } from '../../lib/node-internals.ts'

const SO_LINGER = 13

/** struct linger: on or off, seconds. */
const RESETS = new Int32Array([1, 0])
const ENDS = new Int32Array([0, 0])

/** From now on a close of `socket` resets the connection, whether ours or the kernel's. */
export function resetOnClose(socket: Socket): void {
  setLinger(socket, RESETS)
}

/** The same for whatever `server`, which listens, accepts: the kernel hands the option on. */
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
