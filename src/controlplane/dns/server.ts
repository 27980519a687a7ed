/**
 * The DNS resolver's sockets, UDP and TCP on one address: receives questions and sends the replies.
 *
 * Anyone who reaches the port may send anything, so messages, connections, concurrent questions and their time are
 * limited. answer.ts makes the replies, message.ts encodes them.
 */
import { createSocket, type RemoteInfo, type Socket as UdpSocket } from 'node:dgram'
import { createServer, type Server, type Socket } from 'node:net'
import { describeError, errorCode, MeshError } from '../../lib/errors.ts'
import { FairConnections } from '../../lib/fair-connections.ts'
import { stopSharingAddress } from '../../lib/listening-socket.ts'
import type { Log } from '../../lib/log.ts'
import { formatAddress, isIpv6, type SocketAddress } from '../../model/address.ts'
import {
  type AnswerTimes,
  answerService,
  answerWithout,
  needsOf,
  placeOf,
  type ServiceLookup,
  type ServiceNeeds,
  zonesOf,
} from './answer.ts'
import {
  failure,
  MAX_MESSAGE_BYTES,
  type Query,
  type Rcode,
  type Reply,
  rcodes,
  readQuery,
  writeReply,
} from './message.ts'

/** The options of the resolver. */
export interface DnsServerOptions extends AnswerTimes {
  readonly address: SocketAddress
  /** Descriptors of sockets bound to the address; the server takes ownership. Without them it opens its own. */
  readonly sockets?: { readonly udp: number; readonly tcp: number } | undefined
  readonly datacenter: string
  /**
   * Looks up a service. The provider limits the time; must not reject. A lookup that may not `wait` for the catalog
   * settles at once.
   */
  readonly lookup: (
    service: string,
    needs: ServiceNeeds,
    options: { readonly wait: boolean },
  ) => Promise<ServiceLookup>
  readonly log: Log
  /** Milliseconds; {@link TCP_IDLE_MS} unless given. */
  readonly tcpIdleMs?: number
}

/** How questions ended. `dropped`: the message was not a question, and was not answered. */
export type DnsOutcome =
  | 'answered'
  | 'noRecord'
  | 'noName'
  | 'refused'
  | 'failed'
  | 'malformed'
  | 'notImplemented'
  | 'dropped'

/** A running resolver; disposing it closes its sockets. */
export interface DnsServer extends AsyncDisposable {
  /** Where it listens. */
  readonly address: SocketAddress
  /** Numbers of questions since the start, by outcome. */
  counts(): Readonly<Record<DnsOutcome, number>>
}

/** Limit of questions that wait for the catalog; further ones are answered from what is known already. */
const MAX_PENDING = 1_000

/** The same for one client address; all processes of a host share one. */
const MAX_PENDING_PER_ADDRESS = 500

/** Beyond this limit, of the busiest caller's connections the one longest without a question is closed. */
const MAX_TCP_CONNECTIONS = 64

/** Limit of questions of one connection that are answered concurrently; at the limit it is not read. */
const MAX_PENDING_PER_CONNECTION = 16

/** A connection without traffic for this long is closed, milliseconds. */
const TCP_IDLE_MS = 10_000

/** A connection is closed after this time in any case, milliseconds. */
const TCP_LIFE_MS = 120_000

/** A connection is closed when this many bytes of its answers are unread. */
const MAX_UNREAD_BYTES = 64 * 1_024

/**
 * Listens for UDP and TCP.
 * @throws MeshError HM_DNS_LISTEN_FAILED when the address cannot be used.
 */
export async function startDnsServer(options: DnsServerOptions): Promise<DnsServer> {
  const server = new RunningDnsServer(options)
  try {
    await server.listen()
  } catch (cause) {
    await server[Symbol.asyncDispose]()
    const { port } = options.address
    throw new MeshError(
      'HM_DNS_LISTEN_FAILED',
      `Cannot listen for DNS questions on ${formatAddress(options.address)}`,
      {
        cause,
        ...(errorCode(cause) === 'EADDRINUSE' && {
          hint: `Choose another dns.port, or find who holds this one with: ss -lntup 'sport = :${port}'`,
        }),
      },
    )
  }
  return server
}

class RunningDnsServer implements DnsServer {
  readonly #options: DnsServerOptions
  readonly #zones: readonly string[]
  readonly #udp: UdpSocket
  readonly #tcp: Server
  readonly #conversations = new Set<Socket>()
  readonly #shares = new FairConnections<Socket>(MAX_TCP_CONNECTIONS)
  readonly #counts: Record<DnsOutcome, number> = {
    answered: 0,
    noRecord: 0,
    noName: 0,
    refused: 0,
    failed: 0,
    malformed: 0,
    notImplemented: 0,
    dropped: 0,
  }
  #address: SocketAddress
  #pending = 0
  readonly #pendingByAddress = new Map<string, number>()

  constructor(options: DnsServerOptions) {
    this.#options = options
    this.#address = options.address
    this.#zones = zonesOf(options.datacenter)
    const type = isIpv6(options.address.ip) ? 'udp6' : 'udp4'
    this.#udp = createSocket({ type, ipv6Only: options.address.ip !== '::' && type === 'udp6' })
    this.#tcp = createServer({ allowHalfOpen: true, noDelay: true }, (socket) =>
      this.#converse(socket),
    )
  }

  get address(): SocketAddress {
    return this.#address
  }

  counts(): Readonly<Record<DnsOutcome, number>> {
    return { ...this.#counts }
  }

  async listen(): Promise<void> {
    const { address, sockets } = this.#options
    const { ip, port } = address
    const ipv6Only = isIpv6(ip) && ip !== '::'
    // TCP first: with port 0 (in tests), its port is used for both.
    await listening(this.#tcp, (done) =>
      this.#tcp.listen(
        sockets === undefined ? { host: ip, port, ipv6Only } : { fd: sockets.tcp },
        done,
      ),
    )
    const bound = this.#tcp.address()
    if (bound !== null && typeof bound === 'object') this.#address = { ip, port: bound.port }
    await listening(this.#udp, (done) => {
      this.#udp.bind(
        sockets === undefined
          ? { address: ip, port: this.#address.port, exclusive: true }
          : { fd: sockets.udp },
        done,
      )
      // Node allows others to bind the same address, and the kernel delivers datagrams to the socket bound last.
      if (sockets !== undefined) stopSharingAddress(sockets.udp)
    })
    const { log } = this.#options
    this.#tcp.on('error', (error) =>
      log.warn('DNS over TCP fails', { error: describeError(error) }),
    )
    this.#udp.on('error', (error) =>
      log.warn('DNS over UDP fails', { error: describeError(error) }),
    )
    this.#udp.on('message', (message, from) => void this.#takeDatagram(message, from))
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const socket of this.#conversations) socket.destroy()
    await Promise.all([
      closed((done) => this.#udp.close(done)),
      closed((done) => this.#tcp.close(done)),
    ])
  }

  async #takeDatagram(message: Buffer, from: RemoteInfo): Promise<void> {
    const response = await this.#respond(message, 'udp', from.address)
    if (response === undefined) return
    try {
      // If the caller is gone, that is no failure of this server.
      this.#udp.send(response, from.port, from.address, () => undefined)
    } catch {
      // The socket was closed meanwhile, or the request came from port 0, where nothing can listen.
    }
  }

  /** Handles one TCP connection: questions with a length prefix, answered in the order in which answers are ready. */
  #converse(socket: Socket): void {
    let unread: Buffer = Buffer.alloc(0)
    let pending = 0
    let hasEnded = false
    this.#conversations.add(socket)
    this.#shares.add(socket)
    const life = setTimeout(() => socket.destroy(), TCP_LIFE_MS)
    socket.setTimeout(this.#options.tcpIdleMs ?? TCP_IDLE_MS, () => socket.destroy())
    socket.on('error', () => socket.destroy())
    socket.on('close', () => {
      clearTimeout(life)
      this.#conversations.delete(socket)
    })
    const read = (): void => {
      while (unread.length >= 2 && pending < MAX_PENDING_PER_CONNECTION) {
        const length = unread.readUInt16BE(0)
        if (length > MAX_MESSAGE_BYTES) {
          socket.destroy()
          return
        }
        if (unread.length < 2 + length) break
        const message = unread.subarray(2, 2 + length)
        unread = unread.subarray(2 + length)
        pending += 1
        void answer(message)
      }
      if (pending >= MAX_PENDING_PER_CONNECTION) socket.pause()
      else if (hasEnded && pending === 0) socket.end()
      else socket.resume()
    }
    const answer = async (message: Buffer): Promise<void> => {
      const response = await this.#respond(message, 'tcp', socket.remoteAddress ?? '')
      pending -= 1
      this.#shares.used(socket)
      if (socket.destroyed) return
      if (response !== undefined) {
        const length = Buffer.alloc(2)
        length.writeUInt16BE(response.length)
        socket.write(Buffer.concat([length, response]))
        if (socket.writableLength > MAX_UNREAD_BYTES) socket.destroy()
      }
      read()
    }
    socket.on('data', (chunk: Buffer) => {
      unread = unread.length === 0 ? chunk : Buffer.concat([unread, chunk])
      read()
    })
    socket.on('end', () => {
      hasEnded = true
      read()
    })
  }

  /** The response to send; undefined for messages that get none. Never rejects. */
  async #respond(message: Buffer, over: 'udp' | 'tcp', from: string): Promise<Buffer | undefined> {
    const read = readQuery(message)
    if (read.kind === 'noise') {
      this.#counts.dropped += 1
      return undefined
    }
    if (read.kind === 'bad') {
      this.#counts[read.rcode === rcodes.formatError ? 'malformed' : 'notImplemented'] += 1
      return read.response
    }
    const reply = await this.#answer(read.query, from)
    this.#counts[outcomeOf(reply)] += 1
    return writeReply(read.query, reply, over)
  }

  async #answer({ question }: Query, from: string): Promise<Reply> {
    const place = placeOf(question, this.#zones)
    if (place.kind !== 'service') return answerWithout(question, place, this.#options)
    const ofCaller = this.#pendingByAddress.get(from) ?? 0
    const wait = this.#pending < MAX_PENDING && ofCaller < MAX_PENDING_PER_ADDRESS
    if (wait) this.#setPending(from, 1)
    try {
      const found = await this.#options.lookup(place.service, needsOf(question), { wait })
      return answerService(question, place, found, this.#options)
    } catch (error) {
      this.#options.log.error('Cannot answer a DNS question', { error: describeError(error) })
      return failure(rcodes.serverFailure)
    } finally {
      if (wait) this.#setPending(from, -1)
    }
  }

  #setPending(from: string, change: 1 | -1): void {
    this.#pending += change
    const ofCaller = (this.#pendingByAddress.get(from) ?? 0) + change
    if (ofCaller > 0) this.#pendingByAddress.set(from, ofCaller)
    else this.#pendingByAddress.delete(from)
  }
}

const outcomeByRcode: Readonly<Record<Rcode, DnsOutcome>> = {
  [rcodes.noError]: 'answered',
  [rcodes.formatError]: 'malformed',
  [rcodes.serverFailure]: 'failed',
  [rcodes.nameError]: 'noName',
  [rcodes.notImplemented]: 'notImplemented',
  [rcodes.refused]: 'refused',
  [rcodes.badVersion]: 'notImplemented',
}

function outcomeOf(reply: Reply): DnsOutcome {
  const outcome = outcomeByRcode[reply.rcode]
  return outcome === 'answered' && reply.answers.length === 0 ? 'noRecord' : outcome
}

function listening(
  socket: UdpSocket | Server,
  start: (done: () => void) => unknown,
): Promise<void> {
  return new Promise((resolve, reject) => {
    socket.once('error', reject)
    start(() => {
      socket.off('error', reject)
      resolve()
    })
  })
}

/** Closes a server. One that never listened throws or reports an error; it counts as closed. */
function closed(close: (done: () => void) => unknown): Promise<void> {
  return new Promise((resolve) => {
    try {
      close(() => resolve())
    } catch {
      resolve()
    }
  })
}
