/**
 * Hosts of a mesh in one process: each a worker pool with real threads, fed a hand-made snapshot and
 * certificates, reached through explicit upstreams. No control plane, no privilege.
 */
import { once } from 'node:events'
import { type AddressInfo, connect, createServer, type Server, type Socket } from 'node:net'
import type { ListeningSockets } from '../../src/daemon/listening-sockets.ts'
import { WorkerPool } from '../../src/daemon/worker-pool.ts'
import type { PeerView, WorkerSettings } from '../../src/dataplane/protocol.ts'
import { errorCode } from '../../src/lib/errors.ts'
import { type Log, silentLog } from '../../src/lib/log.ts'
import type { Endpoint } from '../../src/model/endpoint.ts'
import type { LocalService } from '../../src/model/service.ts'
import { diffSnapshots, emptySnapshot, type Snapshot } from '../../src/model/snapshot.ts'
import { trafficLayout } from '../../src/telemetry/counters.ts'
import { WorkerTotals } from '../../src/telemetry/totals.ts'
import { endpoint as built, intention, meshService } from '../harness/builders.ts'
import { authority, DATACENTER, leafOf } from './tunnel-fixtures.ts'

/** A port of loopback that nobody listens on now. Workers share ports, so they cannot ask for port 0. */
export async function freePort(): Promise<number> {
  const server = createServer()
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  server.close()
  await once(server, 'close')
  return port
}

/** An application on loopback that hands its connections to the test. */
export interface Application extends AsyncDisposable {
  readonly port: number
  readonly connections: Socket[]
  next(): Promise<Socket>
}

/** Starts an application; `onConnection` may answer by itself. */
export async function startApplication(
  onConnection?: (socket: Socket) => void,
): Promise<Application> {
  const connections: Socket[] = []
  const all = new Set<Socket>()
  const waiting: ((socket: Socket) => void)[] = []
  const server: Server = createServer({ allowHalfOpen: true }, (socket) => {
    all.add(socket)
    socket.on('error', () => undefined)
    socket.once('close', () => all.delete(socket))
    if (onConnection !== undefined) onConnection(socket)
    else {
      const resolve = waiting.shift()
      if (resolve === undefined) connections.push(socket)
      else resolve(socket)
    }
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  return {
    port: (server.address() as AddressInfo).port,
    connections,
    next: () => {
      const socket = connections.shift()
      return socket === undefined
        ? new Promise((resolve) => waiting.push(resolve))
        : Promise.resolve(socket)
    },
    [Symbol.asyncDispose]: async () => {
      for (const socket of all) socket.destroy()
      server.close()
      await once(server, 'close')
    },
  }
}

/** An application that sends back what it gets. */
export function startEcho(): Promise<Application> {
  return startApplication((socket) => socket.pipe(socket))
}

/** What a host is made of. */
export interface HostOptions {
  readonly services: readonly LocalService[]
  readonly workers?: number
  readonly connectMs?: number
  readonly handshakeMs?: number
  readonly streamsPerTunnel?: number
  readonly connectionsPerService?: number
  readonly inboundConnectionsPerService?: number
  readonly tunnelsPerPeer?: number
  readonly pendingHandshakesPerAddress?: number
  readonly heldBytes?: number
  readonly descriptors?: number
  readonly log?: Log
  readonly accessLog?: WorkerSettings['accessLog']
  readonly writeAccessLines?: (text: string, lines: number) => Promise<void>
  /** What an earlier daemon has left; the tunnel port is then the test's to choose. */
  readonly sockets?: ListeningSockets
  readonly tunnelPort?: number
}

/** One host under test. */
export interface TestHost extends AsyncDisposable {
  readonly tunnelPort: number
  readonly pool: WorkerPool
  readonly totals: WorkerTotals
  /** Feeds the next snapshot. Resolves when the workers have it: a connection would overtake the message. */
  publish(snapshot: Omit<Snapshot, 'version' | 'datacenter'>): Promise<void>
  /** Tunnels, when there is at least one. */
  peers(): Promise<readonly PeerView[]>
  /** Endings of outbound or inbound connections so far, by flag. */
  closedByFlag(reporter: 'source' | 'destination'): Record<string, number>
}

/** A service of a host. */
export function localService(
  name: string,
  parts: Partial<Omit<LocalService, 'name'>> = {},
): LocalService {
  return {
    name,
    id: name,
    target: undefined,
    selector: undefined,
    capturePort: undefined,
    connectPort: undefined,
    upstreams: [],
    ...parts,
  }
}

/** Starts a host and waits until it listens. */
export async function startHost(options: HostOptions): Promise<TestHost> {
  const tunnelPort = options.tunnelPort ?? (await freePort())
  const totals = new WorkerTotals()
  const pool = new WorkerPool({
    count: options.workers ?? 1,
    totals,
    log: options.log ?? silentLog,
    ...(options.sockets !== undefined && { sockets: options.sockets }),
    ...(options.writeAccessLines !== undefined && { writeAccessLines: options.writeAccessLines }),
    settings: {
      datacenter: DATACENTER,
      services: options.services,
      captures: false,
      captureAddresses: [],
      capturesTransparently: false,
      tunnel: { ip: '127.0.0.1', port: tunnelPort },
      inboundMinVersion: '1.2',
      timeouts: {
        connectMs: options.connectMs ?? 3_000,
        handshakeMs: options.handshakeMs ?? 3_000,
        idleMs: 60_000,
        halfClosedMs: 60_000,
        tunnelIdleMs: 60_000,
        keepaliveMs: 10_000,
      },
      reportUseMs: 30_000,
      limits: {
        connections: 10_000,
        connectionsPerService: options.connectionsPerService ?? 10_000,
        inboundConnections: 10_000,
        inboundConnectionsPerService: options.inboundConnectionsPerService ?? 10_000,
        streamsPerTunnel: options.streamsPerTunnel ?? 10_000,
        tunnels: 10_000,
        tunnelsPerPeer: options.tunnelsPerPeer ?? 64,
        tunnelsPerHost: 512,
        pendingHandshakes: 100,
        pendingHandshakesPerAddress: options.pendingHandshakesPerAddress ?? 100,
        handshakesPerAddress: 1_000,
        heldBytes: options.heldBytes ?? 128 * 1_048_576,
        descriptors: options.descriptors ?? 100_000,
      },
      log: { level: 'error', format: 'text' },
      accessLog: options.accessLog,
    },
  })
  pool.setRoots(authority.bundle)
  for (const name of new Set(options.services.map((service) => service.name)))
    pool.setLeaf(leafOf(name))
  await pool.prepare()
  await pool.listen()
  let current: Snapshot = emptySnapshot
  return {
    tunnelPort,
    pool,
    totals,
    publish: async (parts) => {
      const next = { ...parts, version: current.version + 1, datacenter: DATACENTER }
      pool.publish(diffSnapshots(current, next), next)
      current = next
      // Messages are read in order: who answers this has read that.
      await pool.views.connections(0)
    },
    peers: () => pool.views.peers(),
    closedByFlag: (reporter) => {
      const sums: Record<string, number> = {}
      for (const row of totals.traffic())
        if (row.labels.reporter === reporter)
          for (const [flag, count] of Object.entries(trafficLayout.read(row.cells).closed))
            if (count > 0) sums[flag] = (sums[flag] ?? 0) + count
      return sums
    },
    [Symbol.asyncDispose]: () => pool.drain(0),
  }
}

/** An instance of a service, on a host with this tunnel port. */
export function endpoint(
  service: string,
  tunnelPort: number,
  parts: Partial<Endpoint> = {},
): Endpoint {
  return built(`host-${tunnelPort}/${parts.id ?? service}`, {
    service,
    tunnel: { ip: '127.0.0.1', port: tunnelPort },
    application: undefined,
    ...parts,
  })
}

/** A snapshot of one service with these instances, and who may reach it. */
export function snapshotOf(
  service: string,
  endpoints: readonly Endpoint[],
  rules: readonly (readonly [source: string, action: 'allow' | 'deny'])[] = [['web', 'allow']],
): Omit<Snapshot, 'version' | 'datacenter'> {
  const intentions = rules.map(([source, action]) => intention(source, service, action))
  return {
    services: new Map([[service, meshService(service, { datacenter: DATACENTER, endpoints })]]),
    policies: new Map([[service, { destination: service, intentions, defaultPolicy: 'deny' }]]),
  }
}

/** Connects to a port of loopback, half-open allowed. Errors are kept for {@link ending}. */
export async function dial(port: number): Promise<Socket> {
  const socket = connect({ host: '127.0.0.1', port, allowHalfOpen: true, noDelay: true })
  socket.on('error', () => undefined)
  // Who is reset at once may hear of it before of the connection.
  await once(socket, 'connect').catch((error: unknown) => {
    if (errorCode(error) !== 'ECONNRESET') throw error
  })
  return socket
}

/** Everything a socket receives, and how it ended: `end`, or the code of its error. */
export function ending(socket: Socket): Promise<{ bytes: Buffer; how: string }> {
  if (socket.errored !== null)
    return Promise.resolve({ bytes: Buffer.alloc(0), how: errorCode(socket.errored) })
  return new Promise((resolve) => {
    const chunks: Buffer[] = []
    const done = (how: string): void => resolve({ bytes: Buffer.concat(chunks), how })
    socket.on('data', (chunk: Buffer) => chunks.push(chunk))
    socket.once('end', () => done('end'))
    socket.once('error', (error: NodeJS.ErrnoException) => done(error.code ?? error.message))
    socket.once('close', () => done('close'))
    socket.resume()
  })
}

/** The next `length` bytes of a socket, left paused afterwards. */
export async function read(socket: Socket, length: number): Promise<string> {
  for (;;) {
    const chunk: unknown = socket.read(length)
    if (chunk instanceof Buffer) return chunk.toString('latin1')
    await once(socket, 'readable')
  }
}
