/**
 * What the main thread serves itself: the admin API, the metrics port and the resolver. One process of a host has them.
 *
 * Each starts into `owned`: disposing that closes it, so that another process can start its own. The listening sockets
 * stay open.
 */
import { type Config, isDnsOn } from '../config/schema.ts'
import type { Discovery } from '../controlplane/discovery/publisher.ts'
import { type DnsServer, startDnsServer } from '../controlplane/dns/server.ts'
import { duplicateDescriptor } from '../lib/listening-socket.ts'
import type { Log } from '../lib/log.ts'
import type { WorkerTotals } from '../telemetry/totals.ts'
import { startAdminServer } from './admin-server.ts'
import { createAdminView } from './admin-view.ts'
import type { Host } from './host.ts'
import type { ListeningSockets, PlannedSocket } from './listening-sockets.ts'
import { exportMetrics } from './metrics-export.ts'

/** How long a DNS query waits for the catalog's first answer about a service that was not followed. Milliseconds. */
const DNS_PATIENCE_MS = 2_000

/** What the servers are built from. */
export interface MainServersOptions {
  readonly config: Config
  readonly sockets: ListeningSockets
  readonly totals: WorkerTotals
  readonly host: Host
  readonly log: Log
}

/** The servers of one daemon. */
export class MainServers {
  readonly #options: MainServersOptions
  #dns: DnsServer | undefined

  constructor(options: MainServersOptions) {
    this.#options = options
  }

  /** The resolver; undefined while it does not run here. */
  get dns(): DnsServer | undefined {
    return this.#dns
  }

  /** Starts the admin API. @throws MeshError as startAdminServer */
  async startAdmin(owned: AsyncDisposableStack): Promise<void> {
    const { config, totals, host, log } = this.#options
    const { admin, metrics } = config
    const { address, port } = metrics
    const exposition = exportMetrics({ config, host, totals, log, owner: owned })
    owned.use(
      await startAdminServer({
        socketPath: admin.socket,
        group: admin.group,
        metrics:
          port === undefined
            ? undefined
            : {
                ip: address,
                port,
                open: () => this.#borrow(ownSocket('metrics', 'tcp', address, port)),
              },
        view: createAdminView(host, exposition),
        log,
      }),
    )
  }

  /** Opens the sockets of the resolver, if it is on. @throws MeshError HM_LISTEN_FAILED */
  takeDnsSockets(): void {
    const { config, sockets } = this.#options
    if (isDnsOn(config)) for (const socket of this.#dnsSockets()) sockets.take(socket)
  }

  /** Starts the resolver, if it is on. @throws MeshError as startDnsServer */
  async startDns(owned: AsyncDisposableStack, discovery: Discovery): Promise<void> {
    const { config, log } = this.#options
    const { dns, datacenter } = config
    if (!isDnsOn(config)) return
    const [tcp, udp] = this.#dnsSockets()
    this.#dns = owned.use(
      await startDnsServer({
        address: { ip: dns.address, port: dns.port },
        sockets: { tcp: this.#borrow(tcp), udp: this.#borrow(udp) },
        datacenter,
        ttlS: Math.floor(dns.ttl / 1_000),
        lookup: (service, needs, { wait }) =>
          discovery.lookup(service, wait ? DNS_PATIENCE_MS : 0, needs),
        log: log.child('dns'),
      }),
    )
  }

  /** Forgets the resolver: another process has it now. */
  release(): void {
    this.#dns = undefined
  }

  #dnsSockets(): readonly [tcp: OwnSocket, udp: OwnSocket] {
    const { address, port } = this.#options.config.dns
    return [ownSocket('dns/tcp', 'tcp', address, port), ownSocket('dns/udp', 'udp', address, port)]
  }

  /** A duplicate of the descriptor of a socket; the caller closes it. */
  #borrow(socket: OwnSocket): number {
    return duplicateDescriptor(this.#options.sockets.take(socket))
  }
}

/** A socket that the main thread serves itself. */
type OwnSocket = PlannedSocket & { readonly isOptional: false }

function ownSocket(name: string, kind: 'tcp' | 'udp', ip: string, port: number): OwnSocket {
  return { name, kind, address: { ip, port }, transparent: false, isOptional: false }
}
