/**
 * The last step: a connection to an application on this host. Only addresses from this host's own
 * configuration are dialed, never one that a peer named.
 */
import { Socket } from 'node:net'
import { MeshError } from '../../lib/errors.ts'
import { formatAddress, type SocketAddress } from '../../model/address.ts'
import { openFrugalSocket } from '../io/kernel-buffers.ts'
import { resetOnClose } from '../io/linger.ts'
import { SocketStream } from '../io/socket-stream.ts'

/** Where a connection goes to, and what the application sees of it first. */
export interface LocalDial {
  readonly target: SocketAddress
  /** A local address that it comes from; the kernel's choice unless given. */
  readonly from?: string | undefined
  /** Sent before anything else. */
  readonly header?: Uint8Array | undefined
  /** Whether the kernel is to hold little for it: kernel-buffers.ts. */
  readonly isFrugal?: boolean
}

/** A connection to a local application that is being made. */
export interface PendingDial {
  /** @throws MeshError HM_DELIVER_UNREACHABLE, HM_DELIVER_TIMEOUT, or HM_CALLER_GONE after {@link cancel}. */
  readonly connected: Promise<SocketStream>
  /** Nobody wants it any more: its socket is closed now. */
  readonly cancel: () => void
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
  dial: LocalDial,
  timeoutMs: number,
  memory: 'shared' | 'private',
): Promise<SocketStream> {
  return startLocalDial(dial, timeoutMs, memory).connected
}

/** The same, for a caller that may lose interest. */
export function startLocalDial(
  { target, from, header, isFrugal = false }: LocalDial,
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
      const fd = isFrugal ? openFrugalSocket(target.ip) : undefined
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
      // Nothing may be read before the stream has taken over.
      attempt.pause()
      const giveUp = (): void => {
        // It connects in this turn of the event loop: the timer was only looked at first.
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
