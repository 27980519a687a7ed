/**
 * The accepting half of a worker: servers on listening sockets that the main thread has opened and keeps.
 *
 * Each server works on a descriptor of its own of the same socket. Closing them gives up none: what arrives meanwhile waits
 * in the socket for whoever accepts next, a successor of this worker or of the whole process.
 */
import { createServer, type Server, type Socket } from 'node:net'
import type { Server as TlsServer } from 'node:tls'
import { MeshError } from '../lib/errors.ts'
import { resetAcceptedOnClose } from '../lib/linger.ts'
import { BACKLOG, duplicateDescriptor } from '../lib/listening-socket.ts'
import type { LocalDoor, TunnelDoor } from './doors.ts'
import type { WorkerSocket } from './protocol.ts'

/** What accepted connections are given to. */
export interface ListenersOptions {
  readonly local: readonly LocalDoor[]
  readonly tunnels: readonly { readonly door: TunnelDoor; readonly server: TlsServer }[]
  /** A connection of a local application: paused, half-open allowed. */
  readonly onLocal: (socket: Socket, door: LocalDoor) => void
}

/**
 * Servers of a local port in one worker. Node's event loop accepts one connection a turn from each; with
 * several, a burst of connections shares turns, and so tunnel writes (docs/performance.md).
 */
export const ACCEPTORS = 4

/** The servers of one worker. */
export class Listeners {
  private readonly options: ListenersOptions
  private readonly servers: (Server | TlsServer)[] = []
  private isClosed = false

  constructor(options: ListenersOptions) {
    this.options = options
  }

  /**
   * Accepts from now on. A door without a socket is not served: this host has no such addresses.
   * @throws MeshError HM_LISTEN_FAILED
   */
  async open(sockets: readonly WorkerSocket[]): Promise<void> {
    const byName = new Map(sockets.map(({ name, fd }) => [name, fd]))
    for (const door of this.options.local) {
      const fd = byName.get(door.name)
      if (fd === undefined) continue
      for (let i = 0; i < ACCEPTORS; i += 1) {
        const server = this.localServer(door)
        await this.listen(server, fd, door.name)
        // Not at the tunnel ports: a handshake that is refused ends with an alert that must arrive.
        resetAcceptedOnClose(server)
      }
    }
    for (const { door, server } of this.options.tunnels) {
      const fd = byName.get(door.name)
      if (fd !== undefined) await this.listen(server, fd, door.name)
    }
  }

  /** Accepts no more. What was accepted goes on. */
  close(): void {
    this.isClosed = true
    for (const server of this.servers) server.close()
  }

  private localServer(door: LocalDoor): Server {
    const { onLocal } = this.options
    return createServer({ allowHalfOpen: true, pauseOnConnect: true }, (socket) =>
      onLocal(socket, door),
    )
  }

  private async listen(server: Server | TlsServer, fd: number, name: string): Promise<void> {
    if (this.isClosed) return
    this.servers.push(server)
    try {
      await listenOn(server, duplicateDescriptor(fd))
    } catch (cause) {
      throw new MeshError('HM_LISTEN_FAILED', `Cannot accept connections of ${name}`, { cause })
    }
  }
}

function listenOn(server: Server | TlsServer, fd: number): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once('error', reject)
    // Node calls listen(2) again, whose backlog replaces that of the socket; it takes it only from here.
    server.listen({ fd }, BACKLOG, () => {
      server.off('error', reject)
      resolve()
    })
  })
}
