/**
 * A real Consul for a test: one server on a host of its own and a client agent on every mesh host.
 *
 * Each agent also listens on a unix socket, which is how the test process talks to it from outside of its
 * namespace. ACLs are off, so Consul's default is to allow; a `* -> *` deny makes it the harness's default.
 */
import { mkdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'

import type { ConfigInput } from '../../src/config/schema.ts'
import { httpOverSocket } from './daemon.ts'
import { eventually } from './eventually.ts'
import type { Namespace, Network } from './network.ts'
import { OwnedProcess } from './owned-process.ts'
import type { Instance, TestCatalog } from './test-catalog.ts'

/** Name of the host that the server runs on; add it to the network. */
export const CONSUL_HOST = 'consul'

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
  private readonly folder: string
  private readonly namespace: Namespace
  private process: OwnedProcess | undefined

  constructor(folder: string, namespace: Namespace) {
    this.folder = folder
    this.namespace = namespace
    this.socketPath = join(folder, 'http.sock')
  }

  async start(settings: Readonly<Record<string, unknown>> = {}): Promise<void> {
    const configPath = join(this.folder, 'consul.json')
    if (Object.keys(settings).length > 0) {
      await mkdir(this.folder, { recursive: true })
      await writeFile(configPath, JSON.stringify({ ...this.common(), ...settings }))
    }
    this.process = await OwnedProcess.start(
      this.namespace.inside(['consul', 'agent', '-config-file', configPath]),
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

  /** Ends it without a farewell, as a crash does: its node stays in the catalog. */
  async kill(): Promise<void> {
    await this.process?.kill()
  }

  async get(path: string): Promise<unknown> {
    return JSON.parse(await httpOverSocket(this.socketPath, { path }))
  }

  async put(path: string, body: unknown, method = 'PUT'): Promise<void> {
    await httpOverSocket(this.socketPath, { path, method, body })
  }

  async [Symbol.asyncDispose](): Promise<void> {
    // Killed, not stopped: a client that leaves takes seconds to tell everybody.
    if (this.process !== undefined && !this.process.hasExited) await this.process.kill()
  }

  private common(): Record<string, unknown> {
    return {
      datacenter: 'dc1',
      data_dir: join(this.folder, 'data'),
      bind_addr: this.namespace.ip,
      client_addr: '127.0.0.1',
      addresses: { http: `127.0.0.1 unix://${this.socketPath}` },
      gossip_lan: FAST_GOSSIP,
      disable_update_check: true,
      log_level: 'warn',
      // Names are resolved by nobody here, and two ports fewer can clash.
      ports: { dns: -1, grpc: -1 },
    }
  }
}

/** The server, the agents of all hosts, and the catalog they make up. */
export class Consul implements TestCatalog {
  readonly server: ConsulAgent
  private readonly agents: ReadonlyMap<string, ConsulAgent>

  private constructor(server: ConsulAgent, agents: ReadonlyMap<string, ConsulAgent>) {
    this.server = server
    this.agents = agents
  }

  /** Starts a server and one client agent a host, and waits until all of them answer. */
  static async create(folder: string, network: Network, hosts: readonly string[]): Promise<Consul> {
    const serverHost = network.host(CONSUL_HOST)
    const server = new ConsulAgent(join(folder, 'consul-server'), serverHost)
    const agents = new Map(
      hosts.map((host) => [
        host,
        new ConsulAgent(join(folder, `consul-${host}`), network.host(host)),
      ]),
    )
    const consul = new Consul(server, agents)
    try {
      await server.start({
        server: true,
        bootstrap_expect: 1,
        node_name: 'consul-server',
        connect: { enabled: true },
        performance: { raft_multiplier: 1 },
      })
      await Promise.all(
        [...agents].map(([host, agent]) =>
          agent.start({
            node_name: host,
            retry_join: [serverHost.ip],
            retry_interval: '500ms',
          }),
        ),
      )
      await Promise.all([server, ...agents.values()].map((agent) => agent.ready()))
      await consul.setIntention('*', '*', 'deny')
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

  sections(): Pick<ConfigInput, 'catalog' | 'certificates'> {
    return { catalog: { kind: 'consul', watch: 'all' }, certificates: { kind: 'consul' } }
  }

  async prepare(): Promise<void> {
    // The agents issue certificates on demand.
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
      [this.server, ...this.agents.values()].map((agent) => agent[Symbol.asyncDispose]()),
    )
  }
}
