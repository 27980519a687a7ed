/**
 * A Consul with ACLs that deny by default, as a careful operator sets it up: the management token stays
 * with the test, every agent has a token for its own node, every host one for its daemon.
 *
 * The policy of a daemon is the one that docs/consul.md prints, read from that document.
 */
import { randomUUID } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { mkdir, rename, writeFile } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import type { ConsulAgent } from './consul.ts'
import { eventually } from './eventually.ts'

const manual = join(import.meta.dirname, '../../docs/consul.md')

/** What Consul's documentation asks for each agent's own work; not hostmesh's rights. */
const AGENT_POLICY = 'node_prefix "" { policy = "write" } service_prefix "" { policy = "read" }'

/** How long agents cache a token; the default is half a minute. */
const CACHE_TTL = { policy_ttl: '1s', token_ttl: '1s', role_ttl: '1s' }

/** A token as Consul made it. */
export interface AclToken {
  readonly accessor: string
  readonly secret: string
}

/** The lines of the policy that docs/consul.md gives for a host that runs `service`, without comments. */
export function documentedPolicy(service: string): readonly string[] {
  const [, block] = /```hcl\n([^`]*)```/.exec(readFileSync(manual, 'utf8')) ?? []
  if (block === undefined) throw new Error('docs/consul.md has no hcl block')
  return block
    .split('\n')
    .map((line) => line.replace(/#.*/, '').trimEnd())
    .filter((line) => line !== '')
    .map((line) =>
      line.replace('"db"', `"${service}"`).replace('"db-hostmesh"', `"${service}-hostmesh"`),
    )
}

/** The line that docs/consul.md gives for a host that reports to an aggregator. */
export function documentedReporterLine(): string {
  const [, line] = /```text\n(service +"hostmesh".*)\n```/.exec(readFileSync(manual, 'utf8')) ?? []
  if (line === undefined) throw new Error('docs/consul.md has no line for hosts that report')
  return line
}

/** The ACL system of one Consul. */
export class ConsulAcl {
  /** The token that may do everything; never given to a daemon. */
  readonly management: string = randomUUID()
  private readonly folder: string
  private readonly tokenByHost = new Map<string, AclToken>()
  private server: ConsulAgent | undefined

  constructor(folder: string) {
    this.folder = folder
  }

  /** The `acl` section of an agent. Servers act as management, agents get a token with {@link enrollAgent}. */
  settings(node: 'server' | 'client'): Readonly<Record<string, unknown>> {
    const tokens =
      node === 'server' ? { master: this.management, agent: this.management } : undefined
    return {
      acl: {
        enabled: true,
        default_policy: 'deny',
        ...CACHE_TTL,
        ...(tokens !== undefined && { tokens }),
      },
    }
  }

  /** To be called once the server answers. */
  useServer(server: ConsulAgent): void {
    this.server = server
  }

  /** Gives an agent the token that it registers its own node with, and waits until it has done so. */
  async enrollAgent(agent: ConsulAgent, node: string): Promise<void> {
    const { secret } = await this.createToken('agents', [AGENT_POLICY])
    await agent.put('/v1/agent/token/agent', { Token: secret })
    await eventually(
      async () => {
        const nodes = (await agent.get('/v1/catalog/nodes')) as { Node: string }[]
        if (!nodes.some((each) => each.Node === node)) throw new Error(`${node} is not known yet`)
      },
      { withinMs: 30_000 },
    )
  }

  /** Whether a daemon has been given a token. */
  hasToken(host: string): boolean {
    return this.tokenByHost.has(host)
  }

  /** The token that a daemon has. */
  tokenOf(host: string): AclToken {
    const token = this.tokenByHost.get(host)
    if (token === undefined) throw new Error(`The daemon of ${host} has no token yet`)
    return token
  }

  /** The file in which a daemon finds its token. */
  tokenFile(host: string): string {
    return join(this.folder, `acl-${host}`, 'token')
  }

  /** Writes a daemon's token as an operator should: a new file in place of the old one. */
  async giveToken(host: string, token: AclToken): Promise<void> {
    const path = this.tokenFile(host)
    await mkdir(dirname(path), { recursive: true })
    await writeFile(`${path}.new`, `${token.secret}\n`, { mode: 0o600 })
    await rename(`${path}.new`, path)
    this.tokenByHost.set(host, token)
  }

  /** Writes the rules of a policy, new or not. */
  async setPolicy(name: string, lines: readonly string[]): Promise<void> {
    const server = this.startedServer()
    const policies = (await server.get('/v1/acl/policies')) as { ID: string; Name: string }[]
    const found = policies.find((policy) => policy.Name === name)
    await server.put(found === undefined ? '/v1/acl/policy' : `/v1/acl/policy/${found.ID}`, {
      ...(found !== undefined && { ID: found.ID }),
      Name: name,
      Rules: lines.join('\n'),
    })
  }

  /** Makes a token with a policy of this name and these rules. */
  async createToken(policy: string, lines: readonly string[]): Promise<AclToken> {
    const server = this.startedServer()
    await this.setPolicy(policy, lines)
    const token = (await server.ask('/v1/acl/token', { Policies: [{ Name: policy }] }, 'PUT')) as {
      AccessorID: string
      SecretID: string
    }
    return { accessor: token.AccessorID, secret: token.SecretID }
  }

  async deleteToken({ accessor }: AclToken): Promise<void> {
    await this.startedServer().put(`/v1/acl/token/${accessor}`, undefined, 'DELETE')
  }

  private startedServer(): ConsulAgent {
    if (this.server === undefined) throw new Error('The Consul server has not been started yet')
    return this.server
  }
}
