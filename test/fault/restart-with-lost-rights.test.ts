/**
 * A restart with a token that has lost its rights, or is gone, takes nothing away: Consul's empty lists and its
 * 403 are not "nothing there", whether they come to a daemon that runs or to one that has just started.
 */
import assert from 'node:assert/strict'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, describe, test } from 'node:test'
import type { CatalogPolicy, CatalogService } from '../../src/controlplane/catalog/catalog.ts'
import { createConsulCatalog } from '../../src/controlplane/catalog/consul/consul-catalog.ts'
import {
  type ConsulTransport,
  createTransport,
  requireOk,
} from '../../src/controlplane/catalog/consul/transport.ts'
import {
  CATALOG_STATE_VERSION,
  MAX_CATALOG_STATE_BYTES,
  type RememberedCatalog,
  rememberCatalog,
} from '../../src/controlplane/catalog/remembered.ts'
import { silentLog } from '../../src/lib/log.ts'
import { openStateFile } from '../../src/lib/state-file.ts'
import { CONSUL_HOST, ConsulAgent } from '../harness/consul.ts'
import { eventually } from '../harness/eventually.ts'
import { Network } from '../harness/network.ts'

const MASTER = '5f0f0a4e-6f0d-4a7c-9d3c-0c7a0d5b1a11'

const RIGHTS = `
  node_prefix "" { policy = "read" }
  service_prefix "" { policy = "read" }
  agent_prefix "" { policy = "read" }
  service "db" { policy = "write" }
  service "db-hostmesh" { policy = "write" }
`

const NO_RIGHTS = 'key_prefix "x" { policy = "read" }'

describe('a restart with a token without rights', () => {
  let folder: string
  let network: Network
  let agent: ConsulAgent
  let admin: ConsulTransport
  let policyId: string
  let token: { readonly AccessorID: string; readonly SecretID: string }

  before(async () => {
    folder = await mkdtemp(join(tmpdir(), 'hostmesh-rights-'))
    network = await Network.create([CONSUL_HOST])
    agent = new ConsulAgent(join(folder, 'server'), network.host(CONSUL_HOST))
    await agent.start({
      server: true,
      bootstrap_expect: 1,
      node_name: 'server',
      connect: { enabled: true },
      performance: { raft_multiplier: 1 },
      acl: { enabled: true, default_policy: 'deny', tokens: { master: MASTER, agent: MASTER } },
    })
    admin = createTransport({
      address: `unix://${agent.socketPath}`,
      token: MASTER,
      requestTimeout: 10_000,
    })
    await eventually(() => ask('GET', '/v1/acl/token/self'), { withinMs: 30_000 })
    await eventually(async () => assert.notDeepEqual(await ask('GET', '/v1/catalog/nodes'), []))
    const policy = await ask('PUT', '/v1/acl/policy', { Name: 'host', Rules: RIGHTS })
    policyId = (policy as { ID: string }).ID
    token = (await ask('PUT', '/v1/acl/token', {
      Policies: [{ Name: 'host' }],
    })) as typeof token
    await ask('PUT', '/v1/config', {
      Kind: 'service-defaults',
      Name: 'db',
      Protocol: 'http',
    })
    await ask('POST', '/v1/connect/intentions', {
      SourceName: 'web',
      DestinationName: 'db',
      SourceType: 'consul',
      Action: 'allow',
    })
  })

  after(async () => {
    admin[Symbol.dispose]()
    await agent[Symbol.asyncDispose]()
    await network[Symbol.asyncDispose]()
    await rm(folder, { recursive: true, force: true })
  })

  async function ask(
    method: 'GET' | 'PUT' | 'POST' | 'DELETE',
    path: string,
    body?: unknown,
  ): Promise<unknown> {
    // The transport writes with PUT; the agent takes the others over its socket only from here.
    if (method === 'GET' || method === 'PUT')
      return requireOk(await admin.call(method, path, { body }), `${method} ${path}`).body
    return agent.put(`${path}?token=${MASTER}`, body, method)
  }

  /** A run of the catalog, over the same file as the runs before. */
  class Run implements AsyncDisposable {
    readonly catalog: RememberedCatalog
    service: CatalogService | undefined
    policies: readonly CatalogPolicy[] = []
    names: readonly string[] | undefined

    constructor() {
      const inner = createConsulCatalog(
        {
          address: `unix://${agent.socketPath}`,
          token: token.SecretID,
          requestTimeout: 10_000,
        },
        silentLog,
      )
      this.catalog = rememberCatalog(inner, {
        file: openStateFile({
          path: join(folder, 'catalog.json'),
          format: 'hostmesh-catalog',
          version: CATALOG_STATE_VERSION,
          maxBytes: MAX_CATALOG_STATE_BYTES,
          log: silentLog,
        }),
        datacenter: 'dc1',
      })
      this.catalog.watchService('db', (service) => {
        this.service = service
      })
      this.catalog.watchPolicies(['db'], (policies) => {
        this.policies = policies
      })
      this.catalog.watchServiceList((services) => {
        this.names = services.map(({ name }) => name)
      })
    }

    assertWhole(): void {
      assert.equal(this.service?.endpoints.length, 1)
      assert.equal(this.service?.protocol, 'http')
      assert.equal(this.policies[0]?.intentions[0]?.action, 'allow')
      assert.deepEqual(this.names, ['db'])
    }

    /** What is acted on, of an earlier run. */
    remembered(): string {
      const { services, policies } = this.catalog.remembered()
      return `${services.count} services, ${policies.count} policies`
    }

    async [Symbol.asyncDispose](): Promise<void> {
      await this.catalog[Symbol.asyncDispose]()
    }
  }

  test('a run with rights learns what there is', async () => {
    await using run = new Run()
    // Not taken back at its end, as after a crash.
    await run.catalog.register(
      [
        {
          name: 'db',
          id: 'db',
          target: { ip: '127.0.0.1', port: 5_432 },
          connectPort: undefined,
          selector: undefined,
          capturePort: undefined,
          upstreams: [],
        },
      ],
      15_443,
    )
    await eventually(() => {
      run.assertWhole()
      assert.equal(run.remembered(), '0 services, 0 policies')
    })
  })

  test('a start with a token that sees nothing keeps instances, names and intentions', async () => {
    await ask('PUT', `/v1/acl/policy/${policyId}`, {
      ID: policyId,
      Name: 'host',
      Rules: NO_RIGHTS,
    })
    await using run = new Run()
    await eventually(
      () => {
        const problems = run.catalog.health().problems.join('\n')
        assert.match(problems, /lost service:read, so that is not believed/)
        assert.match(problems, /not even itself/)
        assert.match(problems, /not allow reading the intentions/)
      },
      { withinMs: 60_000 },
    )
    run.assertWhole()
    assert.equal(run.remembered(), '1 services, 1 policies')
  })

  test('a start with a token that does not exist any more keeps them too', async () => {
    await ask('DELETE', `/v1/acl/token/${token.AccessorID}`)
    await using run = new Run()
    await eventually(
      () => assert.match(run.catalog.health().problems.join('\n'), /ACL not found/),
      { withinMs: 60_000 },
    )
    run.assertWhole()
    assert.equal(run.remembered(), '1 services, 1 policies')
  })

  test('a start with rights again makes all of it live', async () => {
    await ask('PUT', `/v1/acl/policy/${policyId}`, { ID: policyId, Name: 'host', Rules: RIGHTS })
    token = (await ask('PUT', '/v1/acl/token', {
      Policies: [{ Name: 'host' }],
    })) as typeof token
    await using run = new Run()
    await eventually(
      () => {
        run.assertWhole()
        assert.equal(run.remembered(), '0 services, 0 policies')
      },
      { withinMs: 30_000 },
    )
  })
})
