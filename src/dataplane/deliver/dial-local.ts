/**
 * The last step: a connection to an application on this host. Only addresses from this host's own
 * configuration are dialed, never one that a peer named.
 */
import { connect, type Socket } from 'node:net'
import { MeshError } from '../../lib/errors.ts'
import { resetOnClose } from '../../lib/linger.ts'
import { SocketStream } from '../../lib/socket-stream.ts'
import { formatAddress, type SocketAddress } from '../../model/address.ts'

/** Where a connection goes to, and what the application sees of it first. */
export interface LocalDial {
  readonly target: SocketAddress
  /** A local address that it comes from; the kernel's choice unless given. */
  readonly from?: string | undefined
  /** Sent before anything else. */
  readonly header?: Uint8Array | undefined
}

/**
 * On this host the kernel answers at once, or never: where an application's accept queue is full it drops the SYN, and
 * would send another after 1 s, then 2, 4, 8. Queues are as short as 5, and after a restart callers come in a burst.
 * Milliseconds.
 */
const DIAL_AGAIN_MS = 200

/**
 * Connects to a local application.
 * @param memory `shared` when what it sends goes into a tunnel stream, else `private`.
 * @throws MeshError HM_DELIVER_UNREACHABLE or HM_DELIVER_TIMEOUT.
 */
export function dialLocal(
  { target, from, header }: LocalDial,
  timeoutMs: number,
  memory: 'shared' | 'private',
): Promise<SocketStream> {
  const endAtMs = performance.now() + timeoutMs
  return new Promise((resolve, reject) => {
    const dial = (): void => {
      const socket: Socket = connect({
        host: target.ip,
        port: target.port,
        ...(from !== undefined && { localAddress: from }),
        noDelay: true,
        allowHalfOpen: true,
      })
      // Nothing may be read before the stream has taken over.
      socket.pause()
      const giveUp = (): void => {
        // It connects in this turn of the event loop: the timer was only looked at first.
        if (!socket.connecting) return
        socket.destroy()
        if (performance.now() < endAtMs) dial()
        else
          reject(
            new MeshError(
              'HM_DELIVER_TIMEOUT',
              `Cannot reach the local service at ${formatAddress(target)} in ${timeoutMs} ms`,
            ),
          )
      }
      const patienceMs = Math.min(DIAL_AGAIN_MS, Math.max(1, endAtMs - performance.now()))
      const again = setTimeout(() => setImmediate(giveUp), patienceMs)
      const onError = (error: Error): void => {
        clearTimeout(again)
        reject(
          new MeshError(
            'HM_DELIVER_UNREACHABLE',
            `Cannot reach the local service at ${formatAddress(target)}`,
            { cause: error },
          ),
        )
      }
      socket.once('error', onError)
      socket.once('connect', () => {
        clearTimeout(again)
        socket.off('error', onError)
        resetOnClose(socket)
        const stream = new SocketStream(socket, memory)
        if (header !== undefined) stream.write(header)
        resolve(stream)
      })
    }
    dial()
  })
}
