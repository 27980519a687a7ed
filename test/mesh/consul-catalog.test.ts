/**
 * Claims about the Consul catalog with a real Consul: one server, one client agent, in namespaces of
 * their own. The catalog talks to the client agent through its Unix socket.
 */
import assert from 'node:assert/strict'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, describe, test } from 'node:test'
import type { CatalogPolicy, CatalogService } from '../../src/controlplane/catalog/catalog.ts'
import { ConsulCatalog } from '../../src/controlplane/catalog/consul/consul-catalog.ts'
import { silentLog } from '../../src/lib/log.ts'
import type { LocalService } from '../../src/model/service.ts'
import { AclServer } from '../harness/acl-server.ts'
import { CONSUL_HOST, Consul, type ConsulAgent } from '../harness/consul.ts'
import { documentedPolicy } from '../harness/consul-acl.ts'
import { eventually } from '../harness/eventually.ts'
import { Network } from '../harness/network.ts'
import { OwnedProcess } from '../harness/owned-process.ts'

const TUNNEL_PORT = 15_443

function local(name: string, port: number): LocalService {
  return {
    name,
    id: name,
    target: { ip: '127.0.0.1', port },
    selector: undefined,
    capturePort: undefined,
    connectPort: undefined,
    upstreams: [],
  }
}

/** A token must have some policy. */
const NO_RIGHTS = ['key_prefix "x" { policy = "read" }']

interface HealthEntry {
  readonly Service: { readonly ID: string; readonly Port: number; readonly Meta: object }
  readonly Checks: readonly { readonly CheckID: string; readonly Status: string }[]
}

describe('the Consul catalog with a real Consul', () => {
  let folder: string
  let network: Network
  let consul: Consul
  let agent: ConsulAgent

  before(async () => {
    folder = await mkdtemp(join(tmpdir(), 'hostmesh-consul-'))
    network = await Network.create(['a', CONSUL_HOST])
    consul = await Consul.create(folder, network, ['a'])
    agent = consul.agent('a')
  })

  after(async () => {
    await consul[Symbol.asyncDispose]()
    await network[Symbol.asyncDispose]()
    await rm(folder, { recursive: true, force: true })
  })

  function open(): ConsulCatalog {
    const address = `unix://${agent.socketPath}`
    return new ConsulCatalog({ address, requestTimeout: 10_000, node: 'a' }, silentLog)
  }

  /** Instances that Connect callers see, by the server's own view. */
  async function connectable(service: string): Promise<readonly HealthEntry[]> {
    return (await consul.server.get(`/v1/health/connect/${service}`)) as HealthEntry[]
  }

  /** Registers an instance and its proxy on a node that has no agent, as another host would appear. */
  async function joinElsewhere(service: string, node: string, ip: string): Promise<void> {
    for (const [kind, name] of [
      [undefined, service],
      ['connect-proxy', `${service}-proxy`],
    ] as const)
      await consul.server.put('/v1/catalog/register', {
        Node: node,
        Address: ip,
        Service: {
          Kind: kind,
          ID: name,
          Service: name,
          Port: kind === undefined ? 5_432 : 20_000,
          ...(kind === undefined
            ? {}
            : { Proxy: { DestinationServiceName: service, LocalServicePort: 5_432 } }),
        },
        Check: {
          Node: node,
          CheckID: `${name}-ok`,
          ServiceID: name,
          Status: 'passing',
          Name: 'ok',
        },
      })
  }

  async function leaveElsewhere(node: string): Promise<void> {
    await consul.server.put('/v1/catalog/deregister', { Node: node })
  }

  test('instances arrive within a second of their registration, and the last one goes', async () => {
    await using catalog = open()
    let latest: CatalogService | undefined
    catalog.watchService('cache', (service) => {
      latest = service
    })
    await eventually(() => assert.equal(latest?.clusters[0].endpoints.length, 0))
    await joinElsewhere('cache', 'far-1', '10.7.0.1')
    await eventually(() => assert.equal(latest?.clusters[0].endpoints.length, 1), {
      withinMs: 2_000,
    })
    await joinElsewhere('cache', 'far-2', '10.7.0.2')
    await eventually(() => assert.equal(latest?.clusters[0].endpoints.length, 2), {
      withinMs: 2_000,
    })
    assert.deepEqual(latest?.clusters[0].endpoints[0], {
      key: 'far-1/cache-proxy',
      id: 'cache-proxy',
      node: 'far-1',
      service: 'cache',
      datacenter: 'dc1',
      priority: 0,
      tunnel: { ip: '10.7.0.1', port: 20_000 },
      application: { ip: '10.7.0.1', port: 5_432 },
      health: 'passing',
      weight: 1,
      local: false,
    })
    assert.equal(latest?.protocol, 'tcp')
    assert.equal(latest?.clusters[0].connectTimeoutMs, 5_000)
    await leaveElsewhere('far-1')
    await eventually(() => assert.equal(latest?.clusters[0].endpoints.length, 1), {
      withinMs: 3_000,
    })
    await leaveElsewhere('far-2')
    await eventually(() => assert.equal(latest?.clusters[0].endpoints.length, 0), {
      withinMs: 15_000,
    })
    assert.deepEqual(catalog.health().problems, [])
  })

  test('protocol and timeout follow the config entries', async () => {
    await using catalog = open()
    let latest: CatalogService | undefined
    catalog.watchService('api', (service) => {
      latest = service
    })
    await eventually(() => assert.equal(latest?.protocol, 'tcp'))
    const write = (entry: object): Promise<void> => consul.server.put('/v1/config', entry)
    await write({ Kind: 'service-defaults', Name: 'api', Protocol: 'http' })
    await write({ Kind: 'service-resolver', Name: 'api', ConnectTimeout: '7s' })
    await eventually(() => {
      assert.equal(latest?.protocol, 'http')
      assert.equal(latest?.clusters[0].connectTimeoutMs, 7_000)
    })
  })

  test('splits arrive with their weights and subsets, and of routes the one that catches everything', async () => {
    await using catalog = open()
    let latest: CatalogService | undefined
    catalog.watchService('shop', (service) => {
      latest = service
    })
    const write = (entry: object): Promise<void> =>
      consul.server.put('/v1/config', { Name: 'shop', ...entry })
    await write({ Kind: 'service-defaults', Protocol: 'http' })
    await write({
      Kind: 'service-resolver',
      Subsets: {
        v1: { Filter: 'Service.Meta.version == v1' },
        v2: { Filter: 'v2 in Service.Tags' },
      },
      Failover: { v2: { Service: 'shop', ServiceSubset: 'v1' } },
    })
    await write({
      Kind: 'service-splitter',
      Splits: [
        { Weight: 25, ServiceSubset: 'v1' },
        { Weight: 75, ServiceSubset: 'v2' },
      ],
    })
    await write({
      Kind: 'service-router',
      Routes: [{ Match: { HTTP: { PathPrefix: '/cart' } }, Destination: { ServiceSubset: 'v1' } }],
    })
    const splits = [
      { cluster: 'shop:v1', weight: 25 },
      { cluster: 'shop:v2', weight: 75 },
    ]
    await eventually(() => {
      assert.deepEqual(latest?.routes, [{ match: { kind: 'any' }, clusters: splits }])
      assert.deepEqual(
        latest.clusters.map(({ name, service, datacenter, subset }) => [
          name,
          service,
          datacenter,
          subset,
        ]),
        [
          ['shop:v2', 'shop', 'dc1', 'v2'],
          ['shop:v1', 'shop', 'dc1', 'v1'],
        ],
      )
    })
    assert.deepEqual(catalog.health().problems, [])
  })

  test('an intention that is created, changed and deleted arrives within two seconds each', async () => {
    await using catalog = open()
    let latest: readonly CatalogPolicy[] = []
    catalog.watchPolicies(['db', 'web'], (policies) => {
      latest = policies
    })
    const db = (): readonly string[] =>
      (latest.find((policy) => policy.destination === 'db')?.intentions ?? []).map(
        (rule) => `${rule.source} -> ${rule.destination} ${rule.action} ${rule.precedence}`,
      )
    const becomes = (expected: readonly string[]): Promise<void> =>
      eventually(() => assert.deepEqual(db(), expected), { withinMs: 2_000 })
    await eventually(() => assert.equal(latest.length, 2))
    assert.equal(latest[0]?.defaultPolicy, 'allow', 'ACLs are off')
    await becomes(['* -> * deny 5'])
    await consul.setIntention('web', 'db', 'allow')
    await becomes(['web -> db allow 9', '* -> * deny 5'])
    await consul.setIntention('web', 'db', 'deny')
    await becomes(['web -> db deny 9', '* -> * deny 5'])
    const all = (await consul.server.get('/v1/connect/intentions')) as {
      ID: string
      SourceName: string
    }[]
    const id = all.find((rule) => rule.SourceName === 'web')?.ID
    await consul.server.put(`/v1/connect/intentions/${id}`, undefined, 'DELETE')
    await becomes(['* -> * deny 5'])
  })

  test('the agent says who it is', async () => {
    await using catalog = open()
    const self = await catalog.readAgentSelf()
    assert.equal(self.nodeName, 'a')
    assert.equal(self.datacenter, 'dc1')
    assert.equal(self.nodeAddress, network.host('a').ip)
    assert.equal(self.defaultPolicy, 'allow')
  })

  test('a service that nobody registered is registered with its proxy, and both go again', async () => {
    await using catalog = open()
    await catalog.register([local('db', 5_432), local('web', 80)], TUNNEL_PORT)
    await eventually(async () => {
      const [entry, ...others] = await connectable('db')
      assert.equal(entry?.Service.ID, 'db-hostmesh')
      assert.equal(entry?.Service.Port, TUNNEL_PORT)
      assert.deepEqual(others, [])
      assert.equal((await connectable('web')).length, 1, 'two proxies share one port')
    })
    const names: string[] = []
    catalog.watchServiceList((now) => {
      names.splice(0, names.length, ...now.map(({ name }) => name))
    })
    await eventually(() => assert.deepEqual(names, ['db', 'web']))
    await catalog.deregister()
    await eventually(async () => {
      assert.deepEqual(await connectable('db'), [])
      assert.deepEqual(await agent.get('/v1/agent/services'), {})
      assert.deepEqual(await agent.get('/v1/agent/checks'), {})
    })
  })

  test('registering twice changes nothing in the catalog', async () => {
    await using catalog = open()
    const services = [local('db', 5_432)]
    await catalog.register(services, TUNNEL_PORT)
    const indexes = async (): Promise<unknown> =>
      ((await consul.server.get('/v1/catalog/connect/db')) as { ModifyIndex: number }[]).map(
        (entry) => entry.ModifyIndex,
      )
    const first = await eventually(async () => {
      const now = await indexes()
      assert.equal((now as unknown[]).length, 1)
      return now
    })
    await catalog.register(services, TUNNEL_PORT)
    {
      await using second = open()
      await second.register(services, TUNNEL_PORT)
    }
    assert.deepEqual(await indexes(), first)
    await catalog.deregister()
  })

  test("the operator's service stays after deregistration, and its health decides over the proxy", async () => {
    const ttl = { CheckID: 'db-ttl', TTL: '10m', Status: 'passing' }
    const service = { Name: 'db', ID: 'db', Port: 5_432, Tags: ['primary'], Check: ttl }
    await agent.put('/v1/agent/service/register', service)
    await using catalog = open()
    await catalog.register([local('db', 5_432)], TUNNEL_PORT)
    let latest: CatalogService | undefined
    catalog.watchService('db', (now) => {
      latest = now
    })
    const becomes = (health: string): Promise<void> =>
      eventually(() => assert.equal(latest?.clusters[0].endpoints[0]?.health, health), {
        withinMs: 5_000,
      })
    await becomes('passing')
    assert.equal(latest?.clusters[0].endpoints[0]?.key, 'a/db')
    await agent.put('/v1/agent/check/fail/db-ttl', undefined)
    await becomes('critical')
    await agent.put('/v1/agent/check/pass/db-ttl', undefined)
    await becomes('passing')
    await agent.put('/v1/agent/service/deregister/db', undefined)
    await becomes('critical')
    await agent.put('/v1/agent/service/register', service)
    await becomes('passing')
    await catalog.deregister()
    const left = (await agent.get('/v1/agent/services')) as Record<string, { Tags: string[] }>
    assert.deepEqual(Object.keys(left), ['db'])
    assert.deepEqual(left['db']?.Tags, ['primary'])
    await agent.put('/v1/agent/service/deregister/db', undefined)
  })

  test('of a service that we registered, the health follows its port', async () => {
    await using catalog = open()
    const script = `require('net').createServer().listen(5433, '127.0.0.1')`
    const application = await OwnedProcess.start(
      network.host('a').inside([process.execPath, '-e', script]),
      { name: 'application' },
    )
    await catalog.register([local('queue', 5_433)], TUNNEL_PORT)
    let latest: CatalogService | undefined
    catalog.watchService('queue', (now) => {
      latest = now
    })
    const becomes = (health: string): Promise<void> =>
      eventually(() => assert.equal(latest?.clusters[0].endpoints[0]?.health, health), {
        withinMs: 12_000,
      })
    await becomes('passing')
    await application.kill()
    await becomes('critical')
    await catalog.deregister()
  })

  test('a proxy whose check somebody removed gets it back', async () => {
    await using catalog = open()
    await catalog.register([local('db', 5_432)], TUNNEL_PORT)
    await agent.put('/v1/agent/check/deregister/hostmesh-ttl:db', undefined)
    const checks = async (): Promise<readonly string[]> =>
      Object.keys((await agent.get('/v1/agent/checks')) as object)
    await eventually(async () => assert.ok((await checks()).includes('hostmesh-ttl:db')), {
      withinMs: 15_000,
    })
    await catalog.deregister()
  })

  test('when the agent dies everything stays, and when it is back everything goes on', async () => {
    await using catalog = open()
    await joinElsewhere('cache', 'far-1', '10.7.0.1')
    await catalog.register([local('db', 5_432)], TUNNEL_PORT)
    const services = new Map<string, CatalogService>()
    let policies: readonly CatalogPolicy[] = []
    let calls = 0
    for (const name of ['cache', 'db'])
      catalog.watchService(name, (service) => {
        calls += 1
        services.set(name, service)
      })
    catalog.watchPolicies(['db'], (now) => {
      calls += 1
      policies = now
    })
    await eventually(() => {
      assert.equal(services.get('cache')?.clusters[0].endpoints.length, 1)
      assert.equal(services.get('db')?.clusters[0].endpoints[0]?.health, 'passing')
      assert.equal(policies.length, 1)
    })
    const callsBefore = calls
    const goodAtMs = catalog.health().lastGoodAtMs ?? 0

    await agent.kill()
    await eventually(() => assert.match(catalog.health().problems.join(), /Cannot reach Consul/))
    await catalog.register([local('db', 5_432)], TUNNEL_PORT)
    assert.equal(calls, callsBefore, 'no change is told while the agent is away')

    // An agent that forgot its services. Not its node ID as well: servers take it for another node of the same
    // name then, and a current agent cannot register what they still have of the old one (docs/consul.md).
    for (const kept of ['services', 'checks', 'check_state'])
      await rm(join(folder, 'consul-a', 'data', kept), { recursive: true, force: true })
    await agent.start()
    await agent.ready()
    await eventually(
      async () => {
        const [entry] = await connectable('db')
        assert.equal(entry?.Service.ID, 'db-hostmesh')
        const ttl = entry?.Checks.find((check) => check.CheckID === 'hostmesh-ttl:db')
        assert.equal(ttl?.Status, 'passing')
      },
      { withinMs: 15_000 },
    )
    await consul.setIntention('web', 'db', 'allow')
    await joinElsewhere('cache', 'far-2', '10.7.0.2')
    await eventually(
      () => {
        assert.equal(services.get('cache')?.clusters[0].endpoints.length, 2)
        assert.equal(policies[0]?.intentions[0]?.source, 'web')
        assert.deepEqual(catalog.health().problems, [])
        assert.ok((catalog.health().lastGoodAtMs ?? 0) > goodAtMs)
      },
      { withinMs: 30_000 },
    )
    await catalog.deregister()
    for (const node of ['far-1', 'far-2']) await leaveElsewhere(node)
  })

  test('thirty watches of services that never existed cost few requests while others churn', async () => {
    await using catalog = open()
    let answered = 0
    for (let i = 0; i < 30; i += 1)
      catalog.watchService(`ghost-${i}`, () => {
        answered += 1
      })
    await eventually(() => assert.equal(answered, 30))
    for (let round = 0; round < 10; round += 1) {
      await joinElsewhere('cache', 'far-1', '10.7.0.1')
      await leaveElsewhere('far-1')
    }
    assert.equal(answered, 30, 'nothing is told of services that did not change')
    assert.deepEqual(catalog.health().problems, [])
  })
})

describe('the Consul catalog with ACLs that deny by default', () => {
  let server: AclServer

  before(async () => {
    server = await AclServer.start()
  })

  after(async () => {
    await server?.[Symbol.asyncDispose]()
  })

  async function catalogWith(name: string, rules: readonly string[]): Promise<ConsulCatalog> {
    const { secret } = await server.acl.createToken(name, rules)
    const options = { address: server.address, token: secret, requestTimeout: 10_000 }
    return new ConsulCatalog(options, silentLog)
  }

  test('the rights that the manual names are enough, and the default policy is deny', async () => {
    await using catalog = await catalogWith('enough', documentedPolicy('db'))
    await catalog.register([local('db', 5_432)], TUNNEL_PORT)
    let service: CatalogService | undefined
    let policies: readonly CatalogPolicy[] = []
    catalog.watchService('db', (now) => {
      service = now
    })
    catalog.watchPolicies(['db'], (now) => {
      policies = now
    })
    await eventually(() => {
      assert.equal(service?.clusters[0].endpoints.length, 1)
      assert.deepEqual(policies, [{ destination: 'db', intentions: [], defaultPolicy: 'deny' }])
    })
    assert.equal((await catalog.readAgentSelf()).nodeName, 'server')
    assert.deepEqual(catalog.health().problems, [])
    await catalog.deregister()
    assert.deepEqual(await server.agent.get('/v1/agent/services'), {})
  })

  test('without rights nothing is allowed, and the missing rights are named', async () => {
    await using catalog = await catalogWith('none', NO_RIGHTS)
    const policies: unknown[] = []
    catalog.watchPolicies(['db'], (now) => policies.push(now))
    await catalog.register([local('db', 5_432)], TUNNEL_PORT)
    await eventually(() => {
      const problems = catalog.health().problems.join('\n')
      assert.match(problems, /Consul does not allow reading the intentions/)
      assert.match(problems, /[Pp]ermission denied/)
    })
    await assert.rejects(catalog.readAgentSelf(), /agent:read/)
    assert.deepEqual(policies, [])
  })

  test('rights that are taken away take away neither instances nor intentions', async () => {
    await using catalog = await catalogWith('fading', documentedPolicy('db'))
    await catalog.register([local('db', 5_432)], TUNNEL_PORT)
    const counts: number[] = []
    const policies: unknown[] = []
    catalog.watchService('db', (now) => counts.push(now.clusters[0].endpoints.length))
    catalog.watchPolicies(['db'], (now) => policies.push(now))
    await eventually(() => {
      assert.equal(counts.at(-1), 1)
      assert.equal(policies.length, 1)
    })
    await server.acl.setPolicy('fading', NO_RIGHTS)
    // Any change of the service makes the waiting read come back, now without rights.
    await server.agent.put('/v1/agent/service/maintenance/db?enable=true', undefined)
    await server.agent.put('/v1/agent/service/maintenance/db-hostmesh?enable=true', undefined)
    // Consul 1.8 answers with an empty list, newer ones with 403.
    const said = /lost service:read|does not allow GET \/v1\/health\/connect\/db/
    await eventually(() => assert.match(catalog.health().problems.join('\n'), said), {
      withinMs: 60_000,
    })
    assert.equal(counts.at(-1), 1)
    assert.equal(policies.length, 1)
    for (const id of ['db-hostmesh', 'db'])
      await server.agent.put(`/v1/agent/service/deregister/${id}`, undefined)
  })
})
