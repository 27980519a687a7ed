/**
 * Connects to an application on this host. Only addresses from this host's own configuration are dialed, never one
 * that a peer has sent.
 */
import { Socket } from 'node:net'
import { MeshError } from '../../lib/errors.ts'
import { formatAddress, type SocketAddress } from '../../model/address.ts'
import { openSmallBufferSocket } from '../io/kernel-buffers.ts'
import { resetOnClose } from '../io/linger.ts'
import { SocketStream } from '../io/socket-stream.ts'

/** The address to dial, and what the application receives first. */
export interface LocalDial {
  readonly target: SocketAddress
  /** The local source address; chosen by the kernel when absent. */
  readonly from?: string | undefined
  /** Sent before anything else. */
  readonly header?: Uint8Array | undefined
  /** Whether the kernel should use small buffers for it: kernel-buffers.ts. */
  readonly hasSmallBuffers?: boolean
}

/** A connection attempt to a local application. */
export interface PendingDial {
  /** @throws MeshError HM_DELIVER_UNREACHABLE, HM_DELIVER_TIMEOUT, or HM_CALLER_GONE after {@link cancel}. */
  readonly connected: Promise<SocketStream>
  /** Aborts the attempt and closes its socket. */
  readonly cancel: () => void
}

/**
 * Timeout of one attempt, milliseconds. On this host the kernel answers at once or never: when an application's accept
 * queue is full it drops the SYN, and would send the next one after 1 s, then 2, 4, 8. Queues can be as short as 5, and
 * after a restart callers connect in a burst.
 */
const DIAL_AGAIN_MS = 200

/**
 * Connects to a local application.
 * @param memory `shared` when its bytes go into a tunnel stream, otherwise `private`.
 * @throws MeshError HM_DELIVER_UNREACHABLE or HM_DELIVER_TIMEOUT.
 */
export function dialLocal(
  dial: LocalDial,
  timeoutMs: number,
  memory: 'shared' | 'private',
): Promise<SocketStream> {
  return startLocalDial(dial, timeoutMs, memory).connected
}

/** Like {@link dialLocal}, but can be cancelled. */
export function startLocalDial(
  { target, from, header, hasSmallBuffers = false }: LocalDial,
  timeoutMs: number,
  memory: 'shared' | 'private',
): PendingDial {
  const endAtMs = performance.now() + timeoutMs
  let cancel: () => void = () => undefined
  const connected = new Promise<SocketStream>((resolve, reject) => {
    let socket: Socket | undefined
    let again: NodeJS.Timeout | undefined
    let isOver = false
    const dial = (): void => {
      const fd = hasSmallBuffers ? openSmallBufferSocket(target.ip) : undefined
      const attempt: Socket = new Socket({
        ...(fd !== undefined && { fd, manualStart: true }),
        noDelay: true,
        allowHalfOpen: true,
      })
      attempt.connect({
        host: target.ip,
        port: target.port,
        ...(from !== undefined && { localAddress: from }),
      })
      socket = attempt
      // Nothing may be read before the stream is its receiver.
      attempt.pause()
      const giveUp = (): void => {
        // It connects in this very turn of the event loop: timers are handled before sockets.
        if (isOver || !attempt.connecting) return
        attempt.destroy()
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
      again = setTimeout(() => setImmediate(giveUp), patienceMs)
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
      attempt.once('error', onError)
      attempt.once('connect', () => {
        clearTimeout(again)
        attempt.off('error', onError)
        resetOnClose(attempt)
        const stream = new SocketStream(attempt, memory)
        if (header !== undefined) stream.write(header)
        resolve(stream)
      })
    }
    dial()
    cancel = () => {
      isOver = true
      clearTimeout(again)
      socket?.destroy()
      reject(new MeshError('HM_CALLER_GONE', 'The caller hung up'))
    }
  })
  return { connected, cancel: () => cancel() }
}
