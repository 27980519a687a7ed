/**
 * The accepting part of a worker: servers on listening sockets that the main thread has opened and keeps open.
 *
 * Each server has its own descriptor of the shared socket. Closing it loses no connection: new ones wait in the socket
 * until a successor, of this worker or of the whole process, accepts them. A listener has several sockets when an
 * earlier daemon had more workers than this one.
 */
import { createServer, type Server, type Socket } from 'node:net'
import type { Server as TlsServer } from 'node:tls'
import { MeshError } from '../lib/errors.ts'
import { BACKLOG, duplicateDescriptor } from '../lib/listening-socket.ts'
import { resetAcceptedOnClose } from './io/linger.ts'
import type { LocalListener, TunnelListener } from './listener-plan.ts'
import type { WorkerSocket } from './protocol.ts'
import {
  type AcceptOptions,
  createAdditionalListener,
  createTunnelServer,
  setDefaultCredential,
} from './tunnel/accept.ts'

/** The listeners to serve, and the handlers of accepted connections. */
export interface ListenersOptions {
  readonly local: readonly LocalListener[]
  readonly tunnels: readonly TunnelListener[]
  /** Called for a connection of a local application: paused, half-open allowed. */
  readonly onLocal: (socket: Socket, listener: LocalListener) => void
  /** How peers are accepted. */
  readonly accept: Omit<AcceptOptions, 'services'>
}

/**
 * Number of servers for a local port in one worker. Node's event loop accepts one connection per turn from each; with
 * several, a burst of connections shares turns, and so tunnel writes (docs/performance.md).
 */
export const ACCEPTORS = 4

/** The server of a tunnel port. */
interface TunnelServer {
  readonly name: string
  readonly options: AcceptOptions
  readonly server: TlsServer
}

/** The servers of one worker. */
export class Listeners {
  private readonly options: ListenersOptions
  private readonly tunnels: readonly TunnelServer[]
  private readonly servers: (Server | TlsServer)[] = []
  private isClosed = false

  constructor(options: ListenersOptions) {
    this.options = options
    this.tunnels = options.tunnels.map(({ name, services }) => {
      const accept = { ...options.accept, services }
      return { name, options: accept, server: createTunnelServer(accept) }
    })
  }

  /** To be called when certificates have changed. */
  renewCertificates(): void {
    for (const { server, options } of this.tunnels) setDefaultCredential(server, options)
  }

  /**
   * Starts accepting. A listener without a socket is not served: this host has no such address.
   * @returns the number of descriptors of sockets beyond one per listener, here and in the main thread
   * @throws MeshError HM_LISTEN_FAILED
   */
  async open(sockets: readonly WorkerSocket[]): Promise<number> {
    const byName = Map.groupBy(sockets, ({ name }) => name)
    let surplus = 0
    for (const listener of this.options.local) {
      const own = byName.get(listener.name) ?? []
      if (own.length === 0) continue
      // The kernel spreads a burst over the sockets.
      const acceptors = Math.ceil(ACCEPTORS / own.length)
      surplus += Math.max(0, own.length * (acceptors + 1) - (ACCEPTORS + 1))
      for (const { fd } of own) {
        for (let i = 0; i < acceptors; i += 1) {
          const server = this.localServer(listener)
          await this.listen(server, fd, listener.name)
          // Not for tunnel ports: a refused handshake ends with an alert, which must arrive.
          resetAcceptedOnClose(server)
        }
      }
    }
    for (const { name, server } of this.tunnels) {
      const own = byName.get(name) ?? []
      surplus += Math.max(0, 2 * (own.length - 1))
      for (const [i, { fd }] of own.entries())
        await this.listen(i === 0 ? server : createAdditionalListener(server), fd, name)
    }
    return surplus
  }

  /** Stops accepting. Accepted connections continue. */
  close(): void {
    this.isClosed = true
    for (const server of this.servers) server.close()
  }

  private localServer(listener: LocalListener): Server {
    const { onLocal } = this.options
    return createServer({ allowHalfOpen: true, pauseOnConnect: true }, (socket) =>
      onLocal(socket, listener),
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
    // Node calls listen(2) again, which replaces the backlog of the socket by the one given here.
    server.listen({ fd }, BACKLOG, () => {
      server.off('error', reject)
      resolve()
    })
  })
}
