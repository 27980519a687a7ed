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
import { createRequire } from 'node:module'
import type { Server, Socket } from 'node:net'
import type * as Koffi from 'koffi'

const SOL_SOCKET = 1
const SO_LINGER = 13

/** struct linger: on or off, seconds. */
const RESETS = new Int32Array([1, 0])
const ENDS = new Int32Array([0, 0])

type SetSockOpt = (
  fd: number,
  level: number,
  option: number,
  value: Int32Array,
  length: number,
) => number

let setSockOpt: SetSockOpt | null | undefined

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
  if (setSockOpt === undefined) setSockOpt = bind()
  if (setSockOpt === null) return
  // oxlint-disable-next-line typescript/no-unsafe-type-assertion -- twice a connection: a plain load is what the engine can cache
  const handle = (owner as unknown as { readonly _handle: { readonly fd?: unknown } | null })
    ._handle
  const fd = handle?.fd
  if (typeof fd === 'number' && fd >= 0) setSockOpt(fd, SOL_SOCKET, SO_LINGER, linger, 8)
}

function bind(): SetSockOpt | null {
  try {
    const koffi: typeof Koffi = createRequire(import.meta.url)('koffi')
    return koffi.load(null).func('int setsockopt(int, int, int, void *, uint32_t)')
  } catch {
    return null
  }
}
