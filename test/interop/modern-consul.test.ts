/**
 * What a current Consul has and 1.8 has not, each with hostmesh on both sides of it: virtual addresses, the
 * default policy in a header, chain ids of four parts, intentions with permissions, subsets of sidecars.
 */
import assert from 'node:assert/strict'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { after, before, describe, test } from 'node:test'
import type { CatalogPolicy, CatalogService } from '../../src/controlplane/catalog/catalog.ts'
import { ConsulCatalog } from '../../src/controlplane/catalog/consul/consul-catalog.ts'
import { silentLog } from '../../src/lib/log.ts'
import type { Consul } from '../harness/consul.ts'
import { definitionWithSidecar, EnvoySidecar, FOR_ENVOYS } from '../harness/envoy-sidecar.ts'
import { eventually } from '../harness/eventually.ts'
import { type Mesh, startMesh } from '../harness/mesh.ts'
import { MeshApp } from '../harness/mesh-app.ts'
import { runCommand } from '../harness/owned-process.ts'
import type { RunningService } from '../harness/service.ts'

/** Any UUIDs will do. */
const ROOT_TOKEN = '8f6ad1c3-5d6e-4c1b-9a55-6f2c3a1f0b7e'
const READER_TOKEN = '0d6f1ad2-30a5-4f0e-8a3e-5c8f5b1e9b11'

interface HealthEntry {
  readonly Service: {
    readonly TaggedAddresses?: Readonly<Record<string, { Address: string; Port: number }>>
  }
}

test('the Consul and the Envoy under test are the ones that this layer is for', async () => {
  assert.match((await runCommand(['consul', 'version'])).stdout, /^Consul v1\.22\.0$/m)
  assert.match((await runCommand(['envoy', '--version'])).stdout, /1\.40\.0/)
})

describe('on a current Consul', () => {
  let mesh: Mesh<Consul>
  let web: RunningService
  let job: RunningService

  before(async () => {
    mesh = await startMesh({ hosts: ['a', 'b'], catalog: 'consul' })
    web = await mesh
      .host('a')
      .service('web', { upstreams: { db: 9001, vault: 9002 } })
      .start()
    job = await mesh.host('a').service('job').start()
    await mesh.host('b').service('db', { listens: 5432 }).start()
    await mesh.host('b').service('vault', { listens: 8200 }).start()
    await mesh.allow('web', 'db')
    await mesh.up()
  })

  after(async () => {
    await mesh?.[Symbol.asyncDispose]()
  })

  async function proxies(service: string): Promise<readonly HealthEntry[]> {
    return (await mesh.catalog.server.get(`/v1/health/connect/${service}`)) as HealthEntry[]
  }

  test("Consul's own virtual address of a service leads to it, for allowed callers only", async () => {
    const [entry] = await proxies('db')
    const address = entry?.Service.TaggedAddresses?.['consul-virtual']?.Address
    assert.match(address ?? '', /^240\./)
    const known = await mesh.virtualAddress('db', mesh.host('a'))
    assert.equal(known.ip, address)
    const answer = await eventually(() => web.callAddress(address ?? '', 5432))
    assert.equal(answer.service, 'db')
    await assert.rejects(job.callAddress(address ?? '', 5432), { code: 'ECONNRESET' })
  })

  test('the chain of a service has ids of four parts, and its connect timeout is found', async () => {
    await mesh.catalog.server.put('/v1/config', {
      Kind: 'service-resolver',
      Name: 'db',
      ConnectTimeout: '1500ms',
    })
    const { socketPath } = mesh.catalog.agent('b')
    await using catalog = new ConsulCatalog(
      { address: `unix://${socketPath}`, requestTimeout: 10_000, node: 'b' },
      silentLog,
    )
    let latest: CatalogService | undefined
    catalog.watchService('db', (service) => {
      latest = service
    })
    await eventually(() => assert.equal(latest?.clusters[0].connectTimeoutMs, 1_500))
    const { Chain } = (await mesh.catalog.server.get('/v1/discovery-chain/db')) as {
      Chain: { Targets: object }
    }
    assert.deepEqual(Object.keys(Chain.Targets), ['db.default.default.dc1'])
  })

  test('an intention with permissions denies a service of opaque connections, and nothing else', async () => {
    const { server } = mesh.catalog
    await server.put('/v1/config', { Kind: 'service-defaults', Name: 'vault', Protocol: 'http' })
    await server.put('/v1/config', {
      Kind: 'service-intentions',
      Name: 'vault',
      Sources: [{ Name: 'web', Action: 'allow' }],
    })
    assert.equal((await eventually(() => web.call('vault'))).service, 'vault')
    await server.put('/v1/config', {
      Kind: 'service-intentions',
      Name: 'vault',
      Sources: [
        {
          Name: 'web',
          Permissions: [{ Action: 'allow', HTTP: { PathPrefix: '/api', Methods: ['GET'] } }],
        },
      ],
    })
    await eventually(() => assert.rejects(web.call('vault'), { code: 'ECONNRESET' }))
    assert.equal((await web.call('db')).service, 'db')
  })
})

describe("Consul's virtual addresses of services that nobody has used", () => {
  const ports = { db: 5432, mail: 2525, queue: 5672 }
  const ips = new Map<string, string>()
  let mesh: Mesh<Consul>
  let web: RunningService

  before(async () => {
    mesh = await startMesh({
      hosts: ['a', 'b'],
      catalog: 'consul',
      config: { catalog: { kind: 'consul', watch: 'on-demand' } },
    })
    web = await mesh.host('a').service('web').start()
    for (const [name, listens] of Object.entries(ports))
      await mesh.host('b').service(name, { listens }).start()
    await mesh.allow('web', '*')
    await mesh.up()
    for (const name of Object.keys(ports)) {
      const path = `/v1/health/connect/${name}`
      const [entry] = (await mesh.catalog.server.get(path)) as HealthEntry[]
      ips.set(name, entry?.Service.TaggedAddresses?.['consul-virtual']?.Address ?? '')
    }
    await eventually(async () => {
      const kept = await readFile(join(mesh.host('a').daemon.stateFolder, 'catalog.json'), 'utf8')
      for (const ip of ips.values()) assert.ok(kept.includes(`["${ip}"]`), `${ip} is not listed`)
    })
    assert.deepEqual(await followed(), [])
  })

  after(async () => {
    await mesh?.[Symbol.asyncDispose]()
  })

  async function followed(): Promise<readonly string[]> {
    const { services } = await mesh.host('a').daemon.services()
    return services.map(({ name }) => name).toSorted()
  }

  test('the first connection to one is carried, and follows the service', async () => {
    assert.match(ips.get('db') ?? '', /^240\./)
    assert.equal((await web.callAddress(ips.get('db') ?? '', ports.db)).service, 'db')
    assert.deepEqual(await followed(), ['db'])
  })

  test('a connection to one can be explained', async () => {
    const to = `${ips.get('mail')}:${ports.mail}`
    const { code, stdout } = await mesh.host('a').daemon.cli('explain', '--from', 'web', '--to', to)
    assert.equal(code, 0, stdout)
    assert.match(stdout, /\bmail\b/)
  })

  test('the first question for a name is answered although the agent is gone', async () => {
    const { namespace } = mesh.host('a')
    await mesh.catalog.agent('a').kill()
    const dig = async (name: string, type: string): Promise<string> => {
      const asked = ['dig', '+tries=1', '@127.0.0.1', '-p', '15053', name, type]
      return (await runCommand(namespace.inside(asked))).stdout
    }
    assert.match(await dig('queue.mesh', 'A'), new RegExp(`\\sA\\s+${ips.get('queue')}\\s`))
    assert.match(await dig('_queue._tcp.mesh', 'SRV'), /SERVFAIL/, 'its port is nowhere listed')
    assert.match(await dig('nothing.mesh', 'A'), /NXDOMAIN/)
  })
})

test('a sidecar that asks for a subset reaches the instance behind hostmesh that belongs to it', async () => {
  await using mesh = await startMesh({
    hosts: ['new', 'old'],
    catalog: 'consul',
    consul: FOR_ENVOYS,
    daemonless: ['old'],
  })
  const [newer, older] = [mesh.host('new'), mesh.host('old')]
  const db = newer.service('db', { listens: 7001 })
  await (await MeshApp.start(mesh, db)).serve('tcp')
  const shop = older.service('shop')
  const caller = await MeshApp.start(mesh, shop)
  await mesh.catalog.agent('new').put('/v1/agent/service/register', {
    Name: 'db',
    ID: 'db',
    Address: newer.namespace.ip,
    Port: 7001,
    Tags: ['primary'],
    Meta: { version: 'v1' },
  })
  if (db.instance !== undefined) mesh.joined(db.instance)
  await mesh.catalog.server.put('/v1/config', {
    Kind: 'service-resolver',
    Name: 'db',
    DefaultSubset: 'v1',
    Subsets: { v1: { Filter: 'Service.Meta.version == v1 and "primary" in Service.Tags' } },
  })
  await mesh.catalog
    .agent('old')
    .put(
      '/v1/agent/service/register',
      definitionWithSidecar(shop, { number: 0, upstreams: { db: 9001 } }),
    )
  mesh.joined({ service: 'shop', id: 'shop', host: 'old', ip: older.namespace.ip, port: 0 })
  await mesh.allow('shop', 'db')
  await EnvoySidecar.start(mesh, shop, 0)
  await mesh.up()
  const target = { protocol: 'tcp', ip: '127.0.0.1', port: 9001 } as const
  assert.equal(await eventually(() => caller.call(target), { withinMs: 20_000 }), 'db')
})

describe('where ACLs deny by default', () => {
  let mesh: Mesh<Consul>

  before(async () => {
    mesh = await startMesh({
      hosts: ['a', 'b'],
      catalog: 'consul',
      consul: {
        primary_datacenter: 'dc1',
        acl: {
          enabled: true,
          default_policy: 'deny',
          tokens: { initial_management: ROOT_TOKEN, agent: ROOT_TOKEN, default: ROOT_TOKEN },
        },
      },
    })
    // The harness's own rule of all for all would answer in place of the default policy.
    await mesh.catalog.server.put('/v1/config/service-intentions/*', undefined, 'DELETE')
    assert.deepEqual(await mesh.catalog.server.get('/v1/connect/intentions'), [])
  })

  after(async () => {
    await mesh?.[Symbol.asyncDispose]()
  })

  test('what no intention speaks of is denied', async () => {
    const web = await mesh.host('a').service('web').start()
    await mesh.host('b').service('db', { listens: 5432 }).start()
    await mesh.host('b').service('vault', { listens: 8200 }).start()
    await mesh.allow('web', 'db')
    await mesh.up()
    assert.equal((await eventually(() => web.call('db'))).service, 'db')
    await assert.rejects(web.call('vault'), { code: 'ECONNRESET' })
    await eventually(async () => {
      const denied = await mesh.host('b').daemon.metric('hostmesh_tcp_connections_closed_total', {
        source_service: 'web',
        destination_service: 'vault',
        response_flags: 'DENY',
      })
      assert.ok(denied > 0)
    })
  })

  test('a token that may not ask the agent for its settings learns the default policy all the same', async () => {
    const agent = mesh.catalog.agent('a')
    await agent.put('/v1/acl/policy', {
      Name: 'reader',
      Rules: 'service_prefix "" { policy = "read" } node_prefix "" { policy = "read" }',
    })
    await agent.put('/v1/acl/token', {
      SecretID: READER_TOKEN,
      Policies: [{ Name: 'reader' }],
    })
    await using catalog = new ConsulCatalog(
      {
        address: `unix://${agent.socketPath}`,
        token: READER_TOKEN,
        requestTimeout: 10_000,
        node: 'a',
      },
      silentLog,
    )
    await assert.rejects(catalog.readAgentSelf(), /agent:read/)
    let latest: readonly CatalogPolicy[] = []
    catalog.watchPolicies(['vault'], (policies) => {
      latest = policies
    })
    await eventually(() => assert.equal(latest[0]?.defaultPolicy, 'deny'))
  })
})
