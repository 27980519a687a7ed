/**
 * A real Consul for a test: one server on a host of its own and a client agent on every mesh host. With several
 * datacenters, a server for each; they are joined over the WAN, and dc1 is the primary of them.
 *
 * Each agent also listens on a unix socket, which is how the test process talks to it from outside of its
 * namespace. ACLs are off unless asked for, so Consul's default is to allow; a `* -> *` deny makes it the
 * harness's default.
 */
import { mkdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'

import type { ConfigInput } from '../../src/config/schema.ts'
import { REPORTER_SERVICE } from '../../src/model/report.ts'
import { ConsulAcl, documentedPolicy, documentedReporterLine } from './consul-acl.ts'
import { httpOverSocket } from './daemon.ts'
import { eventually } from './eventually.ts'
import type { Namespace, Network } from './network.ts'
import { OwnedProcess } from './owned-process.ts'
import type { Instance, TestCatalog } from './test-catalog.ts'

/** Name of the host that the server runs on; add it to the network. */
export const CONSUL_HOST = 'consul'

/** The datacenter of a host that is given no other. */
const PRIMARY_DATACENTER = 'dc1'

/** Name of the host that a datacenter's server runs on. */
export function consulHostOf(datacenter: string): string {
  return datacenter === PRIMARY_DATACENTER ? CONSUL_HOST : `${CONSUL_HOST}-${datacenter}`
}

/** For the one server of a datacenter, with a quick election and a CA. */
export const LONE_SERVER = {
  server: true,
  bootstrap_expect: 1,
  connect: { enabled: true },
  performance: { raft_multiplier: 1 },
} as const

/** Timers that make a failed agent known in a second instead of ten. */
const FAST_GOSSIP = {
  gossip_interval: '50ms',
  probe_interval: '250ms',
  probe_timeout: '200ms',
  suspicion_mult: 2,
}

/** One agent, server or client. */
export class ConsulAgent implements AsyncDisposable {
  readonly socketPath: string
  /** What the test's own requests are made with. */
  token: string | undefined
  private readonly folder: string
  private readonly namespace: Namespace
  /** Definitions that {@link ConsulAgent.define} writes, as an operator's /etc/consul.d has them. */
  private readonly definitions: string
  private process: OwnedProcess | undefined

  constructor(folder: string, namespace: Namespace) {
    this.folder = folder
    this.namespace = namespace
    this.definitions = join(folder, 'consul.d')
    this.socketPath = join(folder, 'http.sock')
  }

  async start(settings: Readonly<Record<string, unknown>> = {}): Promise<void> {
    const configPath = join(this.folder, 'consul.json')
    if (Object.keys(settings).length > 0) {
      await mkdir(this.definitions, { recursive: true })
      await writeFile(configPath, JSON.stringify({ ...this.common(), ...settings }))
    }
    this.process = await OwnedProcess.start(
      this.namespace.inside([
        'consul',
        'agent',
        '-config-file',
        configPath,
        '-config-dir',
        this.definitions,
      ]),
      { name: 'consul agent' },
    )
  }

  /** Waits until it is joined and knows a leader, so that reads are answered. */
  async ready(): Promise<void> {
    await eventually(
      async () => {
        if (this.process?.hasExited !== false)
          throw new Error(`The Consul agent ended: ${this.process?.output.slice(-2000)}`)
        const nodes = (await this.get('/v1/catalog/nodes')) as unknown[]
        if (nodes.length === 0) throw new Error('No node in the catalog yet')
      },
      { withinMs: 30_000, everyMs: 100 },
    )
  }

  /** Waits until its datacenter has a CA: a secondary gets it from the primary. */
  async signs(): Promise<void> {
    await eventually(
      async () => {
        const { Roots } = (await this.get('/v1/connect/ca/roots')) as { Roots: unknown[] | null }
        if ((Roots ?? []).length === 0) throw new Error('The datacenter has no CA yet')
      },
      { withinMs: 60_000, everyMs: 100 },
    )
  }

  /** Replaces the agent's service definitions, given in the API's spelling, and has it read them. */
  async define(services: readonly object[]): Promise<void> {
    const text = JSON.stringify(inSpellingOfFiles({ services }))
    await writeFile(join(this.definitions, 'services.json'), text)
    await this.put('/v1/agent/reload', undefined)
  }

  /** Ends it without a farewell, as a crash does: its node stays in the catalog. */
  async kill(): Promise<void> {
    await this.process?.kill()
  }

  async get(path: string): Promise<unknown> {
    return JSON.parse(await httpOverSocket(this.socketPath, { path, token: this.token }))
  }

  /** Writes, and returns what is answered. */
  async ask(path: string, body: unknown, method: 'PUT' | 'POST'): Promise<unknown> {
    const { token } = this
    return JSON.parse(await httpOverSocket(this.socketPath, { path, method, body, token }))
  }

  async put(path: string, body: unknown, method = 'PUT'): Promise<void> {
    await httpOverSocket(this.socketPath, { path, method, body, token: this.token })
  }

  async [Symbol.asyncDispose](): Promise<void> {
    // Killed, not stopped: a client that leaves takes seconds to tell everybody.
    if (this.process !== undefined && !this.process.hasExited) await this.process.kill()
  }

  private common(): Record<string, unknown> {
    return {
      datacenter: PRIMARY_DATACENTER,
      data_dir: join(this.folder, 'data'),
      bind_addr: this.namespace.ip,
      client_addr: '127.0.0.1',
      addresses: { http: `127.0.0.1 unix://${this.socketPath}` },
      gossip_lan: FAST_GOSSIP,
      gossip_wan: FAST_GOSSIP,
      disable_update_check: true,
      log_level: 'warn',
      // Names are resolved by nobody here, and two ports fewer can clash.
      ports: { dns: -1, grpc: -1 },
    }
  }
}

/** Which hosts are in another datacenter than dc1. */
export type Datacenters = Readonly<Record<string, string>>

/** How a cluster differs from the usual one, which has one server and no ACLs. */
export interface ClusterOptions {
  /** ACLs are on and deny what nobody allowed; in one datacenter. Daemons get tokens with the policy of docs/consul.md. */
  readonly acl?: 'deny'
  /** Servers of dc1; one unless given, each further one on a host of its own: {@link furtherServerHosts}. */
  readonly servers?: number
  /** Settings that differ between servers and clients. */
  readonly settingsOf?: (node: 'server' | 'client') => Readonly<Record<string, unknown>>
}

/** How the agents of a mesh differ from the usual. */
export interface ConsulOptions extends ClusterOptions {
  readonly datacenters?: Datacenters | undefined
  /** What replaces the harness's own in the configuration of all agents. */
  readonly settings?: Readonly<Record<string, unknown>> | undefined
}

/** Names of the hosts that further servers run on; add them to the network. */
export function furtherServerHosts({ servers = 1 }: ClusterOptions): readonly string[] {
  return Array.from({ length: servers - 1 }, (_, index) => `${CONSUL_HOST}${index + 2}`)
}

interface ConsulParts {
  readonly servers: ReadonlyMap<string, ConsulAgent>
  readonly furtherServers: readonly ConsulAgent[]
  readonly agents: ReadonlyMap<string, ConsulAgent>
  readonly datacenters: Datacenters
  readonly acl: ConsulAcl | undefined
}

/** The servers, the agents of all hosts, and the catalog they make up. */
export class Consul implements TestCatalog {
  /** That of dc1. */
  readonly server: ConsulAgent
  /** The others of dc1. */
  readonly furtherServers: readonly ConsulAgent[]
  private readonly servers: ReadonlyMap<string, ConsulAgent>
  private readonly agents: ReadonlyMap<string, ConsulAgent>
  private readonly datacenters: Datacenters
  private readonly aclOrNone: ConsulAcl | undefined

  private constructor(parts: ConsulParts) {
    this.servers = parts.servers
    this.furtherServers = parts.furtherServers
    this.agents = parts.agents
    this.datacenters = parts.datacenters
    this.aclOrNone = parts.acl
    this.server = this.serverOf(PRIMARY_DATACENTER)
  }

  /** Starts a server a datacenter and one client agent a host, and waits until all of them answer. */
  static async create(
    folder: string,
    network: Network,
    hosts: readonly string[],
    options: ConsulOptions = {},
  ): Promise<Consul> {
    const { datacenters = {}, settings = {}, settingsOf } = options
    const agentOn = (host: string): readonly [string, ConsulAgent] => [
      host,
      new ConsulAgent(join(folder, `consul-${host}`), network.host(host)),
    ]
    const names = [...new Set([PRIMARY_DATACENTER, ...Object.values(datacenters)])]
    const servers = new Map(
      names.map((name) => [
        name,
        new ConsulAgent(join(folder, `server-${name}`), network.host(consulHostOf(name))),
      ]),
    )
    const agents = new Map(hosts.map(agentOn))
    const furtherServers = furtherServerHosts(options).map(
      (host) => new ConsulAgent(join(folder, host), network.host(host)),
    )
    const acl = options.acl === 'deny' ? new ConsulAcl(folder) : undefined
    const consul = new Consul({ servers, furtherServers, agents, datacenters, acl })
    const everybody = [...servers.values(), ...furtherServers, ...agents.values()]
    for (const agent of everybody) agent.token = acl?.management
    const usual = {
      ...LONE_SERVER,
      ...settings,
      ...settingsOf?.('server'),
      ...acl?.settings('server'),
    }
    const federation = (datacenter: string): Record<string, unknown> =>
      names.length === 1 ? {} : { datacenter, primary_datacenter: PRIMARY_DATACENTER }
    try {
      for (const [datacenter, server] of servers) {
        const isPrimary = datacenter === PRIMARY_DATACENTER
        await server.start({
          ...usual,
          bootstrap_expect: isPrimary ? 1 + furtherServers.length : 1,
          node_name: isPrimary ? 'consul-server' : `consul-server-${datacenter}`,
          ...federation(datacenter),
          ...(isPrimary ? {} : { retry_join_wan: [network.host(CONSUL_HOST).ip] }),
        })
        // A secondary that finds no primary has no certificates for half a minute.
        if (names.length > 1) await server.ready()
        if (!isPrimary) await server.signs()
      }
      for (const [index, server] of furtherServers.entries())
        await server.start({
          ...usual,
          bootstrap_expect: 1 + furtherServers.length,
          node_name: `consul-server-${index + 2}`,
          retry_join: [network.host(CONSUL_HOST).ip],
          retry_interval: '500ms',
        })
      if (acl !== undefined) {
        await consul.server.ready()
        acl.useServer(consul.server)
      }
      await Promise.all(
        [...consul.agents].map(([host, agent]) =>
          agent.start({
            node_name: host,
            retry_join: [network.host(consulHostOf(consul.datacenterOf(host))).ip],
            retry_interval: '500ms',
            ...federation(consul.datacenterOf(host)),
            ...settings,
            ...settingsOf?.('client'),
            ...acl?.settings('client'),
          }),
        ),
      )
      await Promise.all(everybody.map((agent) => agent.ready()))
      if (acl === undefined) await consul.setIntention('*', '*', 'deny')
      else for (const [host, agent] of agents) await acl.enrollAgent(agent, host)
    } catch (error) {
      await consul[Symbol.asyncDispose]()
      throw error
    }
    return consul
  }

  /** The agent of one host. */
  agent(host: string): ConsulAgent {
    const agent = this.agents.get(host)
    if (agent === undefined) throw new Error(`No Consul agent on host '${host}'`)
    return agent
  }

  /** @throws when ACLs are off. */
  get acl(): ConsulAcl {
    if (this.aclOrNone === undefined)
      throw new Error("Start the mesh with cluster: { acl: 'deny' }")
    return this.aclOrNone
  }

  /** The server of one datacenter. */
  serverOf(datacenter: string): ConsulAgent {
    const server = this.servers.get(datacenter)
    if (server === undefined) throw new Error(`No Consul server of datacenter '${datacenter}'`)
    return server
  }

  /** The datacenter of one host. */
  datacenterOf(host: string): string {
    return this.datacenters[host] ?? PRIMARY_DATACENTER
  }

  sections(host: string): Pick<ConfigInput, 'catalog' | 'certificates' | 'datacenter'> {
    const tokenFile = this.aclOrNone?.tokenFile(host)
    return {
      datacenter: this.datacenterOf(host),
      catalog: { kind: 'consul', watch: 'all', ...(tokenFile !== undefined && { tokenFile }) },
      certificates: { kind: 'consul' },
    }
  }

  /** The agents issue certificates on demand; with ACLs on, the daemon needs a token. */
  async prepare(host: string, services: readonly string[]): Promise<void> {
    const acl = this.aclOrNone
    if (acl === undefined || acl.hasToken(host)) return
    const lines = new Set(
      services.flatMap((service) =>
        service === REPORTER_SERVICE ? documentedReporterLine() : documentedPolicy(service),
      ),
    )
    await acl.giveToken(host, await acl.createToken(`hostmesh-${host}`, [...lines]))
  }

  async join(instance: Instance): Promise<void> {
    await this.agent(instance.host).put('/v1/agent/service/register', {
      Name: instance.service,
      ID: instance.id,
      Address: instance.ip,
      Port: instance.port,
    })
  }

  async leave(instance: Instance): Promise<void> {
    await this.agent(instance.host).put(`/v1/agent/service/deregister/${instance.id}`, undefined)
  }

  async setIntention(source: string, destination: string, action: 'allow' | 'deny'): Promise<void> {
    const all = (await this.server.get('/v1/connect/intentions')) as {
      ID: string
      SourceName: string
      DestinationName: string
    }[]
    const found = all.find(
      ({ SourceName, DestinationName }) => SourceName === source && DestinationName === destination,
    )
    const body = {
      SourceName: source,
      DestinationName: destination,
      SourceType: 'consul',
      Action: action,
    }
    if (found === undefined) await this.server.put('/v1/connect/intentions', body, 'POST')
    else await this.server.put(`/v1/connect/intentions/${found.ID}`, body)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all(
      [...this.servers.values(), ...this.furtherServers, ...this.agents.values()].map((agent) =>
        agent[Symbol.asyncDispose](),
      ),
    )
  }
}

/** Consul's files say `sidecar_service` where its API says `SidecarService`. */
function inSpellingOfFiles(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(inSpellingOfFiles)
  if (typeof value !== 'object' || value === null) return value
  return Object.fromEntries(
    Object.entries(value).map(([key, inner]) => [
      key.replaceAll(/([a-z])([A-Z])/g, '$1_$2').toLowerCase(),
      inSpellingOfFiles(inner),
    ]),
  )
}
