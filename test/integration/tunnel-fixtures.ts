/**
 * Two ends of a tunnel in one process: real certificates, real TLS over loopback, sessions, and application
 * sockets spliced to streams as the daemon does it.
 */
import { createHash, type Hash } from 'node:crypto'
import { once } from 'node:events'
import { type AddressInfo, connect, createServer, type Server, type Socket } from 'node:net'
import { readLeaf } from '../../src/controlplane/identity/x509.ts'
import type { ByteStream, Receiver } from '../../src/dataplane/io/byte-stream.ts'
import type { Connection, Open } from '../../src/dataplane/proxy/connection.ts'
import { type SpliceEnding, splice } from '../../src/dataplane/proxy/splice.ts'
import {
  type AcceptedPeer,
  type AcceptOptions,
  createTunnelServer,
  setDefaultCredential,
} from '../../src/dataplane/tunnel/accept.ts'
import { AddressGuard } from '../../src/dataplane/tunnel/address-guard.ts'
import { Credentials } from '../../src/dataplane/tunnel/credentials.ts'
import { FrameDecoder } from '../../src/dataplane/tunnel/decoder.ts'
import { type DialedPeer, dialPeer } from '../../src/dataplane/tunnel/dial.ts'
import { ACK, PING, SYN } from '../../src/dataplane/tunnel/frame.ts'
import { Session, type SessionOptions } from '../../src/dataplane/tunnel/session.ts'
import type { TunnelStream } from '../../src/dataplane/tunnel/stream.ts'
import type { MeshError } from '../../src/lib/errors.ts'
import type { Leaf } from '../../src/model/certificate.ts'
import { TrafficCounters } from '../../src/telemetry/counters.ts'
import { looseAccount, looseLane } from '../unit/account-fixtures.ts'
import {
  makeAuthority,
  makeLeaf,
  type TestAuthority,
  TRUST_DOMAIN,
} from '../unit/identity-fixtures.ts'
import { type Frame, FrameLog, header } from '../unit/tunnel-fixtures.ts'

export const DATACENTER = 'dc1'

/** The CA of most tests; making one costs more than a handshake. */
export const authority: TestAuthority = makeAuthority()

/** A leaf of a service, good for an hour. */
export function leafOf(service: string, by: TestAuthority = authority): Leaf {
  return readLeaf({ service, ...makeLeaf(by, service) }, by.bundle, Date.now())
}

/** What a host with these services proves itself with. */
export function credentialsOf(
  services: readonly string[],
  minVersion: 'TLSv1.2' | 'TLSv1.3' = 'TLSv1.2',
): Credentials {
  const credentials = new Credentials(minVersion)
  credentials.setBundle(authority.bundle)
  for (const service of services) credentials.setLeaf(leafOf(service))
  return credentials
}

/** A listening tunnel port and what happened there. */
export interface TunnelPort extends AsyncDisposable {
  readonly port: number
  readonly server: Server
  readonly accepted: AcceptedPeer[]
  readonly refusals: string[]
  /** The next peer that is admitted. */
  next(): Promise<AcceptedPeer>
}

/** Opens the tunnel port of a host that offers `services`. */
export async function openTunnelPort(
  services: readonly string[],
  options: Partial<AcceptOptions> = {},
): Promise<TunnelPort> {
  const accepted: AcceptedPeer[] = []
  const refusals: string[] = []
  const waiting: ((peer: AcceptedPeer) => void)[] = []
  const sockets = new Set<Socket>()
  const acceptOptions: AcceptOptions = {
    credentials: credentialsOf(services),
    datacenter: DATACENTER,
    services: new Set(services),
    handshakeTimeoutMs: 5_000,
    maxPending: 100,
    guard: new AddressGuard(
      { maxPending: 100, maxPendingOfAll: 1_000, ratePerSecond: 1_000, burst: 4_000 },
      performance.now(),
    ),
    unauthenticated: looseAccount(),
    until: (look) => Promise.resolve(look()),
    rejectionReason: () => undefined,
    onPeer: (peer) => {
      peer.socket.on('error', () => undefined)
      const resolve = waiting.shift()
      if (resolve === undefined) accepted.push(peer)
      else resolve(peer)
    },
    onRefused: (code) => refusals.push(code),
    ...options,
  }
  const server = createTunnelServer(acceptOptions)
  setDefaultCredential(server, acceptOptions)
  server.on('connection', (socket: Socket) => {
    sockets.add(socket)
    socket.once('close', () => sockets.delete(socket))
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  return {
    port: (server.address() as AddressInfo).port,
    server,
    accepted,
    refusals,
    next: () => {
      const peer = accepted.shift()
      return peer === undefined
        ? new Promise((resolve) => waiting.push(resolve))
        : Promise.resolve(peer)
    },
    [Symbol.asyncDispose]: async () => {
      for (const socket of sockets) socket.destroy()
      server.close()
      if (server.listening || sockets.size > 0) await once(server, 'close')
    },
  }
}

/** Dials a tunnel port as `source`, asking for `destination`. */
export function dialAs(
  port: number,
  source = 'web',
  destination = 'db',
  credentials: Credentials = credentialsOf([source]),
): Promise<DialedPeer> {
  return dialPeer({
    address: { ip: '127.0.0.1', port },
    credential: credentials.of(source)!,
    destination: { datacenter: DATACENTER, service: destination },
    timeoutMs: 5_000,
  })
}

/** One end of a session under test. */
export interface SessionEnd {
  readonly session: Session
  readonly socket: Socket
  /** Streams the peer opened that nobody has taken yet. */
  readonly streams: TunnelStream[]
  /** The next stream that the peer opens. */
  readonly nextStream: () => Promise<TunnelStream>
  readonly closed: Promise<MeshError>
  /** How often a reset of a stream was reported. */
  resets: number
  /** How often a stream was refused, or reset, for a limit of its caller. */
  readonly shed: { streams: number; memory: number }
}

const sessionOptions: Omit<SessionOptions, 'lane'> = {
  maxStreams: 10_000,
  keepaliveMs: 10_000,
}

/** A session over `socket`, with what it tells its owner. */
export function startSession(
  socket: Socket,
  role: 'opener' | 'acceptor',
  options: Partial<SessionOptions> = {},
): SessionEnd {
  const streams: TunnelStream[] = []
  const waiting: ((stream: TunnelStream) => void)[] = []
  let onClosed: (reason: MeshError) => void = () => undefined
  const closed = new Promise<MeshError>((resolve) => {
    onClosed = resolve
  })
  const session = new Session(
    socket,
    role,
    {
      onStream: (stream) => {
        const resolve = waiting.shift()
        if (resolve === undefined) streams.push(stream)
        else resolve(stream)
      },
      onRoundTrip: () => undefined,
      onStreamReset: () => {
        end.resets += 1
      },
      onStreamShed: (limit) => {
        end.shed[limit] += 1
      },
      onClosed: (reason) => onClosed(reason),
    },
    { lane: looseLane(), ...sessionOptions, ...options },
  )
  const end: SessionEnd = {
    session,
    socket,
    streams,
    closed,
    resets: 0,
    shed: { streams: 0, memory: 0 },
    nextStream: () => {
      const stream = streams.shift()
      return stream === undefined
        ? new Promise((resolve) => waiting.push(resolve))
        : Promise.resolve(stream)
    },
  }
  return end
}

/** A tunnel: both ends, over mutual TLS. */
export interface Tunnel extends AsyncDisposable {
  readonly opener: SessionEnd
  readonly acceptor: SessionEnd
}

export async function openTunnel(options: Partial<SessionOptions> = {}): Promise<Tunnel> {
  const port = await openTunnelPort(['db'])
  const [dialed, accepted] = await Promise.all([dialAs(port.port), port.next()])
  const opener = startSession(dialed.socket, 'opener', options)
  const acceptor = startSession(accepted.socket, 'acceptor', options)
  return {
    opener,
    acceptor,
    [Symbol.asyncDispose]: async () => {
      dialed.socket.destroy()
      await port[Symbol.asyncDispose]()
      await Promise.all([opener.closed, acceptor.closed])
    },
  }
}

/** Two ends of a TCP connection over loopback, both paused and allowed to half-close. */
export async function tcpPair(): Promise<
  { readonly near: Socket; readonly far: Socket } & AsyncDisposable
> {
  const server = createServer({ allowHalfOpen: true, pauseOnConnect: true })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const accepted = once(server, 'connection') as Promise<[Socket]>
  const near = connect({
    host: '127.0.0.1',
    port: (server.address() as AddressInfo).port,
    allowHalfOpen: true,
    noDelay: true,
  })
  near.pause()
  const [[far]] = await Promise.all([accepted, once(near, 'connect')])
  server.close()
  return {
    near,
    far,
    [Symbol.asyncDispose]: async () => {
      for (const socket of [near, far]) {
        socket.on('error', () => undefined)
        socket.destroy()
        if (!socket.closed) await once(socket, 'close')
      }
    },
  }
}

/** Remembers what a stream tells. Copies bytes, as memory is reused. */
export class Collector implements Receiver {
  readonly stream: ByteStream
  readonly chunks: Buffer[] = []
  length = 0
  readonly hash: Hash = createHash('sha256')
  ended = false
  closedInOrder = false
  reset: Error | undefined
  writable = 0
  private readonly keepsBytes: boolean
  private readonly waiting = new Set<() => void>()

  constructor(stream: ByteStream, options: { keepsBytes?: boolean } = {}) {
    this.stream = stream
    this.keepsBytes = options.keepsBytes ?? true
    stream.receiver = this
  }

  get bytes(): Buffer {
    return Buffer.concat(this.chunks)
  }

  /** Resolves when `claim` holds; looked at whenever the stream tells something. */
  async until(claim: () => boolean): Promise<void> {
    while (!claim()) await new Promise<void>((resolve) => this.waiting.add(resolve))
  }

  onBytes(bytes: Uint8Array): number {
    this.length += bytes.length
    if (this.keepsBytes) this.chunks.push(Buffer.from(bytes))
    else this.hash.update(bytes)
    this.wake()
    return 0
  }

  onEnd(): void {
    this.ended = true
    this.wake()
  }

  onClosed(): void {
    this.closedInOrder = true
    this.wake()
  }

  onReset(reason: Error): void {
    this.reset = reason
    this.wake()
  }

  onWritable(): void {
    this.writable += 1
    this.wake()
  }

  private wake(): void {
    for (const resolve of this.waiting) resolve()
    this.waiting.clear()
  }
}

const NOTHING_HELD = { heldMemory: 0 }

/** A stage of a carried connection in which bytes run. */
export function openStage(parts: Partial<Open> = {}): Open {
  return {
    state: 'open',
    destination: 'db',
    row: 0,
    endpoint: 'node/db',
    peer: undefined,
    decidedFor: undefined,
    stream: NOTHING_HELD,
    local: NOTHING_HELD,
    ...parts,
  }
}

/** A carried connection, as the table would make one; for splices without a table. */
export function looseConnection(stage: Open): Connection {
  return {
    id: 1,
    direction: 'outbound',
    source: 'web',
    account: looseAccount(),
    from: undefined,
    originalDestination: undefined,
    stage,
    descriptors: 0,
    openedAtMs: Date.now(),
    startedMs: performance.now(),
    firstSentMs: 0,
    connectedMs: 0,
    firstByteMs: -1,
    transport: undefined,
    peerSpiffeId: undefined,
    serverName: undefined,
    traceparent: undefined,
    sentBytes: 0,
    receivedBytes: 0,
    abort: () => undefined,
    sweptBytes: 0,
    quietSinceMs: 0,
    older: undefined,
    newer: undefined,
  }
}

const looseCounters = new TrafficCounters(TrafficCounters.createMemory(), () => undefined)

/** Splices two streams as the daemon does; resolves with the ending. */
export function spliced(downstream: ByteStream, upstream: ByteStream): Promise<SpliceEnding> {
  const stage = openStage()
  return new Promise((resolve) => {
    splice({
      connection: looseConnection(stage),
      stage,
      counters: looseCounters,
      downstream,
      upstream,
      copies: false,
      onEnding: resolve,
    })
  })
}

export { TRUST_DOMAIN }

/** The other end of a session, written by hand: sends what it likes, reads what the session answers. */
export class RawPeer implements AsyncDisposable {
  readonly frames: Frame[] = []
  ended = false
  /** Resolves when the session has ended the connection. */
  readonly over: Promise<void>
  private readonly socket: Socket
  private readonly session: Session
  private readonly waiting = new Set<() => void>()

  constructor(socket: Socket, session: Session) {
    this.socket = socket
    this.session = session
    const log = new FrameLog()
    const decoder = new FrameDecoder(log)
    socket.on('data', (bytes: Buffer) => {
      decoder.push(bytes)
      this.frames.push(...log.frames.splice(0))
      this.wake()
    })
    socket.on('error', () => undefined)
    this.over = new Promise((resolve) => {
      const end = (): void => {
        this.ended = true
        this.wake()
        resolve()
      }
      socket.on('end', end)
      socket.on('close', end)
    })
    socket.resume()
  }

  send(...pieces: readonly Uint8Array[]): void {
    this.socket.write(Buffer.concat(pieces))
  }

  end(): void {
    this.socket.end()
  }

  /** Resolves when `claim` holds for what has been received. */
  async until(claim: () => boolean): Promise<void> {
    while (!claim()) {
      if (this.ended) throw new Error(`The session ended; received ${JSON.stringify(this.frames)}`)
      await new Promise<void>((resolve) => this.waiting.add(resolve))
    }
  }

  /** The next frame not yet taken that `wanted` picks; others before it stay. */
  async next(wanted: (frame: Frame) => boolean): Promise<Frame> {
    await this.until(() => this.frames.some(wanted))
    const at = this.frames.findIndex(wanted)
    return this.frames.splice(at, 1)[0]!
  }

  /** Resolves when the session has taken all that was sent before: it answers a ping behind it. */
  async settled(): Promise<void> {
    this.pings += 1
    const value = this.pings
    // These barriers must not add up to a flood.
    Reflect.set(Reflect.get(this.session, 'rates') as object, 'pings', 0)
    this.send(header(PING, SYN, 0, value))
    await this.next(({ type, flags, length }) => type === PING && flags === ACK && length === value)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.socket.destroy()
    if (!this.socket.closed) await once(this.socket, 'close')
  }

  private pings = 0x1000

  private wake(): void {
    for (const resolve of this.waiting) resolve()
    this.waiting.clear()
  }
}

/** A session over plain TCP (no more than the kernel buffers may be under way) and a hand-written peer. */
export async function rawTunnel(
  role: 'opener' | 'acceptor',
  options: Partial<SessionOptions> = {},
): Promise<{ readonly end: SessionEnd; readonly peer: RawPeer } & AsyncDisposable> {
  const pair = await tcpPair()
  const end = startSession(pair.far, role, options)
  const peer = new RawPeer(pair.near, end.session)
  return {
    end,
    peer,
    [Symbol.asyncDispose]: async () => {
      await pair[Symbol.asyncDispose]()
      await end.closed
    },
  }
}
