/**
 * One Consul server with ACLs that deny by default, without a mesh: for claims about what the catalog does with
 * the rights of its token.
 */
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

import { CONSUL_HOST, ConsulAgent, LONE_SERVER } from './consul.ts'
import { ConsulAcl } from './consul-acl.ts'
import { Network } from './network.ts'

interface AclServerParts {
  readonly folder: string
  readonly agent: ConsulAgent
  readonly acl: ConsulAcl
  readonly undo: AsyncDisposableStack
}

/** A running server, on a host of its own. Disposing it removes all of it. */
export class AclServer implements AsyncDisposable {
  /** A folder of this server alone, removed with it. */
  readonly folder: string
  /** Asks with the management token. */
  readonly agent: ConsulAgent
  readonly acl: ConsulAcl
  private readonly undo: AsyncDisposableStack

  private constructor(parts: AclServerParts) {
    this.folder = parts.folder
    this.agent = parts.agent
    this.acl = parts.acl
    this.undo = parts.undo
  }

  /** Starts it, and waits until its node is in the catalog and its management token is known. */
  static async start(): Promise<AclServer> {
    await using undo = new AsyncDisposableStack()
    const folder = await mkdtemp(join(tmpdir(), 'hmt-acl-'))
    undo.defer(() => rm(folder, { recursive: true, force: true }))
    const network = undo.use(await Network.create([CONSUL_HOST]))
    const agent = undo.use(new ConsulAgent(join(folder, 'server'), network.host(CONSUL_HOST)))
    const acl = new ConsulAcl(folder)
    agent.token = acl.management
    await agent.start({
      ...LONE_SERVER,
      node_name: 'server',
      ...acl.settings('server'),
    })
    await agent.ready()
    acl.useServer(agent)
    return new AclServer({ folder, agent, acl, undo: undo.move() })
  }

  /** Where the catalog under test asks: `catalog.consul.address`. */
  get address(): string {
    return `unix://${this.agent.socketPath}`
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.undo.disposeAsync()
  }
}
