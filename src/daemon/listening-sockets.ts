/**
 * All listening sockets of the host, by name. The main thread owns them from before the first accept until the process
 * ends; workers, the resolver and the metrics port only borrow them.
 *
 * A keeper (systemd) holds duplicates while this process lives and passes them to the next one, which inherits them
 * together with the waiting connections and opens only the missing ones.
 */
import { type GuardedPort, matchingLoopback } from '../controlplane/capture/port-rules.ts'
import { capturedService } from '../dataplane/listener-plan.ts'
import { describeError, errorCode, MeshError } from '../lib/errors.ts'
import {
  boundPort,
  closeDescriptor,
  holdPort,
  isSocketOf,
  keepAcceptedAlive,
  limitSegments,
  makeTransparent,
  openListeningSocket,
  type SocketSpec,
  setCloseOnExec,
} from '../lib/listening-socket.ts'
import type { Log } from '../lib/log.ts'
import { findPortHolder, localPortRange, type PortHolder } from '../lib/port-holder.ts'
import type { InheritedSocket, Systemd } from '../lib/systemd.ts'
import { formatAddress, type SocketAddress } from '../model/address.ts'
import { Problem } from '../model/problem.ts'

/** A socket that the configuration needs. */
export interface PlannedSocket {
  /** Unique on the host, and the same after a restart: printable, without a colon, at most 255 characters. */
  readonly name: string
  readonly kind: 'tcp' | 'udp'
  readonly address: SocketAddress
  /** Accepts diverted connections, whatever their original destination. */
  readonly transparent: boolean
  /** Maximum bytes of one TCP segment of accepted connections; the kernel's limit if undefined. */
  readonly maxSegment?: number | undefined
  /** Whether the host may run without it if it has no IPv6. */
  readonly isOptional: boolean
}

/** Errors of a system without IPv6 for an IPv6 address. */
const NO_SUCH_FAMILY = 'EAFNOSUPPORT'
const NO_SUCH_ADDRESS = 'EADDRNOTAVAIL'

const IN_USE = 'EADDRINUSE'

/** Keeps sockets for the next process. */
export type SocketKeeper = Pick<Systemd, 'keep' | 'forget'>

/** The sockets of this process. Disposing closes them all; the keeper's duplicates stay open. */
export class ListeningSockets implements Disposable {
  private readonly log: Log
  private readonly keeper: SocketKeeper | undefined
  private readonly inherited = new Map<string, number>()
  private readonly open = new Map<string, number>()
  private readonly planned = new Map<string, PlannedSocket>()
  /** Bound without listening: the other loopback address of upstream ports. */
  private readonly twins = new Map<string, number>()
  /** The holder of a port that was in use, by kind and address. Cached: finding it means reading all processes. */
  private readonly holders = new Map<string, string>()
  private isGuarded = false
  private readonly earlier = new Set<string>()

  constructor(
    log: Log,
    options: {
      readonly keeper?: SocketKeeper
      readonly inherited?: readonly InheritedSocket[]
    } = {},
  ) {
    this.log = log
    this.keeper = options.keeper
    for (const { name, fd } of options.inherited ?? []) {
      setCloseOnExec(fd, true)
      // Two sockets with one name cannot be told apart.
      if (this.inherited.has(name)) closeDescriptor(fd)
      else this.inherited.set(name, fd)
    }
  }

  /** The ports of inherited sockets that were not taken yet, by name. */
  inheritedPorts(): ReadonlyMap<string, number> {
    const ports = new Map<string, number>()
    for (const [name, fd] of this.inherited) {
      const port = boundPort(fd)
      if (port !== undefined) ports.set(name, port)
    }
    return ports
  }

  /** The descriptors of all sockets that are open, by name. */
  all(): ReadonlyMap<string, number> {
    return this.open
  }

  /**
   * From now on kernel rules guard these ports ({@link ports}), and sockets carry the mark that the rules recognize. If
   * another program has a port, the socket is opened on another port, and the rules redirect there what is sent to the
   * first. Only for a port that the daemon had before (`earlier`): any other may belong to a legitimate program.
   */
  guard(earlier: readonly GuardedPort[]): void {
    this.isGuarded = true
    for (const port of earlier) this.earlier.add(keyOf(port))
  }

  /** The ports of all open sockets, for the kernel rules. */
  ports(): readonly GuardedPort[] {
    const ports = new Map<string, GuardedPort>()
    for (const [name, { kind, address }] of this.planned) {
      const key = keyOf({ kind, address })
      const movedTo = this.movedTo(name)
      if (movedTo !== undefined || !ports.has(key)) ports.set(key, { kind, address, movedTo })
    }
    return [...ports.values()]
  }

  /** One problem for each port that another program had when it was to be opened. */
  problems(): readonly Problem[] {
    return this.ports().flatMap(({ kind, address, movedTo }) => {
      if (movedTo === undefined) return []
      const who = this.holders.get(keyOf({ kind, address })) ?? 'Another program'
      return [
        new Problem(
          'HM_PORT_TAKEN',
          `${who} has taken ${formatAddress(address)} (${kind}) while the daemon was away, and gets nothing: what is sent there is led to port ${movedTo}`,
          {
            hint: `See who it is (as root: ss -lntup 'sport = :${address.port}'), end it, and restart the daemon`,
            subject: keyOf({ kind, address }),
          },
        ),
      ]
    })
  }

  /**
   * The descriptor of a socket: already open, inherited, or opened now; undefined for an optional socket that this host
   * cannot have. This object owns it: to accept from it, take a duplicate.
   * @throws MeshError HM_LISTEN_FAILED; the message names the holder of the port if it can be found
   */
  take(socket: PlannedSocket & { readonly isOptional: false }): number
  take(socket: PlannedSocket): number | undefined
  take(socket: PlannedSocket): number | undefined {
    const known = this.open.get(socket.name)
    if (known !== undefined) return known
    const fd = this.inherit(socket) ?? this.openOne(socket)
    if (fd === undefined) return undefined
    this.keep(socket, fd)
    this.holdTwin(socket)
    return fd
  }

  /** As {@link take}, but opens nothing: undefined when the socket was not inherited. */
  takeInherited(socket: PlannedSocket): number | undefined {
    const fd = this.inherit(socket)
    if (fd !== undefined) this.keep(socket, fd)
    return fd
  }

  /**
   * Closes unneeded inherited sockets, here and at the keeper. Called before the first accept: the kernel
   * would assign connections of the same port to a socket that nobody reads.
   */
  closeUnused(): void {
    for (const name of this.inherited.keys()) this.drop(name)
  }

  /** Closes a socket, here and at the keeper. The port is free when the last duplicate is closed. */
  giveUp(name: string): void {
    const fd = this.open.get(name)
    if (fd === undefined) return
    this.keeper?.forget(name)
    closeDescriptor(fd)
    this.open.delete(name)
    this.planned.delete(name)
  }

  [Symbol.dispose](): void {
    for (const fds of [this.open, this.inherited, this.twins]) {
      for (const fd of fds.values()) closeDescriptor(fd)
      fds.clear()
    }
    this.planned.clear()
  }

  /** The port that a socket has instead of the planned one; undefined when it has the planned one. */
  private movedTo(name: string): number | undefined {
    const fd = this.open.get(name)
    const port = fd === undefined ? undefined : boundPort(fd)
    return port === this.planned.get(name)?.address.port ? undefined : port
  }

  private keep(socket: PlannedSocket, fd: number): void {
    this.open.set(socket.name, fd)
    this.planned.set(socket.name, socket)
    this.keeper?.keep(socket.name, fd)
  }

  /** `localhost` may mean either loopback address: no other program may answer at the other one. */
  private holdTwin({ kind, address: { ip, port } }: PlannedSocket): void {
    const twin = matchingLoopback(ip)
    const key = `${twin} ${port}`
    if (kind !== 'tcp' || twin === undefined || this.twins.has(key)) return
    try {
      this.twins.set(key, holdPort({ kind, ip: twin, port }))
    } catch (error) {
      this.log.debug('The other loopback address of a port is not ours', {
        address: formatAddress({ ip: twin, port }),
        reason: describeError(error),
      })
    }
  }

  /** The socket inherited under this name, if it is as planned; otherwise it is dropped. */
  private inherit(socket: PlannedSocket): number | undefined {
    const { name, kind, address } = socket
    const fd = this.inherited.get(name)
    if (fd === undefined) return undefined
    const planned = this.specOf(socket)
    // The second spec was used where there was no IPv6.
    const specs = address.ip === '::' ? [planned, { ...planned, ip: '0.0.0.0' }] : [planned]
    const spec = specs.find((candidate) => isSocketOf(fd, candidate))
    if (spec === undefined) {
      this.drop(name)
      return undefined
    }
    this.inherited.delete(name)
    if (spec.transparent === true) makeTransparent(fd, spec)
    if (kind === 'tcp') keepAcceptedAlive(fd)
    if (spec.maxSegment !== undefined) limitSegments(fd, spec.maxSegment)
    return fd
  }

  private drop(name: string): void {
    const fd = this.inherited.get(name)
    if (fd === undefined) return
    this.inherited.delete(name)
    this.keeper?.forget(name)
    closeDescriptor(fd)
    this.log.info('A listening socket is not needed any more', { name })
  }

  private specOf({ kind, address, transparent, maxSegment }: PlannedSocket): SocketSpec {
    return { kind, ...address, transparent: transparent || this.isGuarded, maxSegment }
  }

  private openOne(socket: PlannedSocket): number | undefined {
    const { address } = socket
    try {
      return openListeningSocket(this.specOf(socket))
    } catch (error) {
      const code = errorCode(error)
      // `::` means every address; a host without IPv6 has only the IPv4 ones.
      if (code === NO_SUCH_FAMILY && address.ip === '::')
        return this.openOne({ ...socket, address: { ...address, ip: '0.0.0.0' } })
      if (socket.isOptional && (code === NO_SUCH_FAMILY || code === NO_SUCH_ADDRESS)) {
        this.log.info('This host has no such addresses: nothing is served there', {
          address: formatAddress(address),
          reason: describeError(error),
        })
        return undefined
      }
      // A transparent socket cannot move: the rules that divert to it name its port.
      const mayMove = this.earlier.has(keyOf(socket)) && !socket.transparent && code === IN_USE
      const moved = mayMove ? this.openElsewhere(socket) : undefined
      if (moved !== undefined) return moved
      throw listenFailed(socket, error)
    }
  }

  /** Any free port of the same address, the same for all sockets of this port; undefined when there is none. */
  private openElsewhere(socket: PlannedSocket): number | undefined {
    const { kind, address } = socket
    const key = keyOf(socket)
    const port = this.ports().find((known) => keyOf(known) === key)?.movedTo
    const holder = port === undefined ? findPortHolder(kind, address.port) : undefined
    if (holder !== undefined) this.holders.set(key, holderText(holder))
    try {
      return openListeningSocket({ ...this.specOf(socket), port: port ?? 0 })
    } catch {
      // The error of the planned port is more useful to the caller.
      return undefined
    }
  }
}

function listenFailed({ name, kind, address }: PlannedSocket, cause: unknown): MeshError {
  const what = `Cannot listen on ${formatAddress(address)} (${name})`
  if (errorCode(cause) !== IN_USE) return new MeshError('HM_LISTEN_FAILED', what, { cause })
  const holder = findPortHolder(kind, address.port)
  if (holder?.kind === 'connection')
    return new MeshError(
      'HM_LISTEN_FAILED',
      `${what}: an outgoing connection of ${whoseIs(holder)} has the port${rangeText(address.port)}`,
      {
        cause,
        hint: `Wait for its end or end it (ss -tnp 'sport = :${address.port}'), and reserve the port: sysctl net.ipv4.ip_local_reserved_ports=${address.port}`,
      },
    )
  const has = holder === undefined ? '' : `: ${whoseIs(holder)} listens there`
  return new MeshError('HM_LISTEN_FAILED', `${what}${has}`, {
    cause,
    hint: `Free the port or choose another; who holds it, as root: ss -lntup 'sport = :${address.port}'`,
  })
}

function keyOf({ kind, address }: Pick<GuardedPort, 'kind' | 'address'>): string {
  return `${kind} ${formatAddress(address)}`
}

function holderText(holder: PortHolder): string {
  const owner = whoseIs(holder)
  return holder.kind === 'connection' ? `An outgoing connection of ${owner}` : owner
}

function whoseIs({ process, uid }: PortHolder): string {
  return process === undefined ? `user ${uid}` : `${process.name} (pid ${process.pid}, user ${uid})`
}

function rangeText(port: number): string {
  const range = localPortRange()
  if (range === undefined || port < range[0] || port > range[1]) return ''
  return ` (net.ipv4.ip_local_port_range ${range[0]}-${range[1]} reaches it)`
}

/** Capture ports of the sockets of an earlier daemon, by service ID. */
export function capturePorts(sockets: ListeningSockets): ReadonlyMap<string, number> {
  const ports = new Map<string, number>()
  for (const [name, port] of sockets.inheritedPorts()) {
    const service = capturedService(name)
    if (service !== undefined) ports.set(service, port)
  }
  return ports
}
