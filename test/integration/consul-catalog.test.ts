/**
 * Claims about the catalog as a whole for answers that a real agent will not give on demand: sudden
 * emptiness, missing rights, a newer Consul, an agent that hangs.
 */
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import type {
  CatalogPolicy,
  CatalogService,
  ListedService,
} from '../../src/controlplane/catalog/catalog.ts'
import { ConsulCatalog } from '../../src/controlplane/catalog/consul/consul-catalog.ts'
import type { Clock } from '../../src/lib/clock.ts'
import { silentLog } from '../../src/lib/log.ts'
import type { LocalService } from '../../src/model/service.ts'
import { catalogService, endpoint } from '../harness/builders.ts'
import { hurried } from '../harness/test-clock.ts'
import {
  eventually,
  type FakeAgent,
  type FakeAnswer,
  indexed,
  startFakeAgent,
} from './consul-fake-agent.ts'

const HEALTH = '/v1/health/connect/db'
const INSTANCES = '/v1/catalog/service/db'
const CHAIN = '/v1/discovery-chain/db'
const MATCH = '/v1/connect/intentions/match'
const LIST = '/v1/connect/intentions'

/** Where only waits are long: how much faster they pass. */
const HURRY = 8

/** What requests and a slow machine may take beside the waits. */
const REAL_MS = 2_000

async function setUp(
  options: { datacenter?: string; register?: boolean; requestTimeout?: number; clock?: Clock } = {},
) {
  const agent = await startFakeAgent()
  agent.always('/v1/agent/services', () => ({ body: {} }))
  agent.always('/v1/agent/checks', () => ({ body: {} }))
  agent.always('/v1/catalog/services', () => indexed(1, { consul: [] }))
  agent.always(INSTANCES, ({ query }) =>
    (query.get('index') ?? '0') === '0' ? indexed(1, []) : undefined,
  )
  const catalog = new ConsulCatalog(
    { address: agent.address, requestTimeout: 2_000, ...options },
    silentLog,
  )
  return {
    agent,
    catalog,
    async [Symbol.asyncDispose]() {
      await catalog[Symbol.asyncDispose]()
      await agent[Symbol.asyncDispose]()
    },
  }
}

function instances(count: number): unknown[] {
  return Array.from({ length: count }, (_, i) => ({
    Node: { Node: `n${i}`, Address: `10.0.0.${i + 1}`, Datacenter: 'dc1' },
    Service: {
      Kind: 'connect-proxy',
      ID: 'db-hostmesh',
      Service: 'db-hostmesh',
      Port: 15_443,
      Proxy: { DestinationServiceName: 'db', DestinationServiceID: 'db', LocalServicePort: 5_432 },
    },
    Checks: [],
  }))
}

/** A list as Consul before 1.11 has it. */
function listed(...names: string[]): ListedService[] {
  return names.map((name) => ({ name, virtualIps: [] }))
}

/** A proxy in `/v1/catalog/connect/<service>` of a newer Consul. */
function listedProxy(service: string, virtualIp: string): unknown {
  return {
    ServiceKind: 'connect-proxy',
    ServiceName: `${service}-proxy`,
    ServiceProxy: { DestinationServiceName: service },
    ServiceTaggedAddresses: { 'consul-virtual': { Address: virtualIp, Port: 2 } },
  }
}

function rule(action: string, source = 'web'): unknown {
  return { SourceName: source, DestinationName: 'db', Action: action, Precedence: 9 }
}

const db: LocalService = {
  name: 'db',
  id: 'db',
  target: { ip: '127.0.0.1', port: 5_432 },
  selector: undefined,
  capturePort: undefined,
  connectPort: undefined,
  upstreams: [],
}

function answerPolicies(agent: FakeAgent, rules: () => unknown, policy: string | undefined): void {
  agent.always('/v1/agent/self', () => ({
    body: {
      Config: { NodeName: 'n1', Datacenter: 'dc1' },
      ...(policy === undefined
        ? {}
        : { DebugConfig: { ACLsEnabled: true, ACLDefaultPolicy: policy } }),
    },
  }))
  agent.always(MATCH, () => ({ body: rules() }))
}

describe('the Consul catalog', { concurrency: true }, () => {
  test('instances, protocol and timeout arrive together', async () => {
    await using world = await setUp()
    const seen: CatalogService[] = []
    world.catalog.watchService('db', (service) => seen.push(service))
    world.agent.answer(HEALTH, indexed(7, instances(2)))
    await eventually('request for the chain', () => world.agent.requestsFor(CHAIN)[0])
    await new Promise((resolve) => setTimeout(resolve, 100))
    assert.equal(seen.length, 0, 'instances alone are not enough')
    world.agent.answer(CHAIN, indexed(7, { Chain: { Protocol: 'http' } }))
    await eventually('service', () => seen[0])
    assert.equal(seen[0]?.protocol, 'http')
    assert.equal(seen[0]?.clusters[0].endpoints.length, 2)
  })

  test('without a chain the service still arrives, as tcp', async () => {
    await using world = await setUp()
    const seen: CatalogService[] = []
    world.agent.answer(HEALTH, indexed(7, instances(1)))
    world.agent.always(CHAIN, () => ({ status: 403, body: 'Permission denied' }))
    world.catalog.watchService('db', (service) => seen.push(service))
    await eventually('service', () => seen[0], 4_000)
    assert.equal(seen[0]?.protocol, 'tcp')
    assert.equal(seen[0]?.clusters[0].connectTimeoutMs, 5_000)
    assert.match(world.catalog.health().problems.join('\n'), /discovery-chain\/db/)
  })

  test('an empty answer that comes once takes no instance away', async () => {
    await using world = await setUp()
    const counts: number[] = []
    world.catalog.watchService('db', (service) => counts.push(service.clusters[0].endpoints.length))
    world.agent.answer(CHAIN, indexed(7, { Chain: {} }))
    world.agent.answer(HEALTH, indexed(7, instances(3)), indexed(8, []), indexed(9, instances(3)))
    await eventually('three reads', () => world.agent.requestsFor(HEALTH).length >= 4)
    assert.deepEqual(counts, [3])
  })

  test('an empty answer that is repeated is obeyed within fifteen seconds', async () => {
    const clock = hurried(HURRY)
    await using world = await setUp({ clock })
    const counts: number[] = []
    world.catalog.watchService('db', (service) => counts.push(service.clusters[0].endpoints.length))
    world.agent.answer(CHAIN, indexed(7, { Chain: {} }))
    world.agent.answer(HEALTH, indexed(7, instances(3)))
    world.agent.always(HEALTH, () => indexed(8, []))
    await eventually('full', () => counts[0])
    const startedAtMs = clock.monotonicMs()
    await eventually('empty', () => counts.at(-1) === 0)
    assert.ok(clock.monotonicMs() - startedAtMs < 15_000 + HURRY * REAL_MS)
    assert.deepEqual(counts, [3, 0])
  })

  test('an emptiness right after a start is doubted in the light of the last run', async () => {
    await using world = await setUp()
    const seen: CatalogService[] = []
    const endpoints = ['n0/db-hostmesh', 'n1/db-hostmesh'].map((key) =>
      endpoint(key, { service: 'db' }),
    )
    const last = catalogService('db', { endpoints })
    world.agent.answer(CHAIN, indexed(7, { Chain: {} }))
    world.agent.answer(HEALTH, indexed(7, []))
    world.agent.always(HEALTH, () => indexed(8, instances(2)))
    world.catalog.watchService('db', (service) => seen.push(service), last)
    await eventually('an answer', () => seen.length > 0)
    assert.equal(seen[0]?.clusters[0].endpoints.length, 2)
    assert.equal(seen.length, 1)
  })

  test('without a chain a service keeps the protocol and timeout of the last run', async () => {
    await using world = await setUp()
    const seen: CatalogService[] = []
    world.agent.answer(HEALTH, indexed(7, instances(1)))
    world.agent.always(CHAIN, () => ({ status: 500, body: 'no leader' }))
    const last = catalogService('db', { protocol: 'http', connectTimeoutMs: 700 })
    world.catalog.watchService('db', (service) => seen.push(service), last)
    await eventually('service', () => seen[0], 4_000)
    assert.equal(seen[0]?.protocol, 'http')
    assert.equal(seen[0]?.clusters[0].connectTimeoutMs, 700)
  })

  test('without a chain a service that was led elsewhere or split in the last run is waited for', async () => {
    const [usual] = catalogService('db').clusters
    const v1 = { ...usual, name: 'db:v1', subset: 'v1' }
    const replacement = endpoint('n0/db-backup', { priority: 1 })
    await using world = await setUp()
    world.agent.always(HEALTH, ({ query }) =>
      query.get('index') === '0' ? indexed(7, instances(1)) : undefined,
    )
    world.agent.always(CHAIN, () => ({ status: 500, body: 'no leader' }))
    const seen: string[] = []
    for (const [what, clusters] of Object.entries({
      redirected: catalogService('other').clusters,
      subset: [v1],
      split: [usual, v1],
      failover: [{ ...usual, endpoints: [replacement] }],
      usual: [usual],
    } satisfies Record<string, CatalogService['clusters']>))
      world.catalog.watchService('db', () => seen.push(what), catalogService('db', { clusters }))
    await eventually('the usual one, the last to be told', () => seen.length > 0, 4_000)
    assert.deepEqual(seen, ['usual'])
  })

  test('a list of services that is empty, at the start too, takes no name away', async () => {
    await using world = await setUp()
    world.agent.always('/v1/catalog/services', () => indexed(1, {}))
    const seen: (readonly ListedService[])[] = []
    world.catalog.watchServiceList((services) => seen.push(services), listed('db', 'web'))
    await eventually('problem', () =>
      world.catalog.health().problems.find(({ message }) => message.includes('not even itself')),
    )
    assert.deepEqual(seen, [])
  })

  test('the loss of many names at once is accepted 3 s later, and not when they come back', async () => {
    const clock = hurried(HURRY)
    await using world = await setUp({ clock })
    let isMesh = false
    for (const name of ['db', 'web'])
      world.agent.always(`/v1/catalog/connect/${name}`, () => ({ body: isMesh ? [{}] : [] }))
    world.agent.always('/v1/catalog/connect/consul', () => ({ body: [] }))
    world.agent.always('/v1/catalog/services', () => indexed(1, { consul: [], db: [], web: [] }))
    const seen: (readonly ListedService[])[] = []
    world.catalog.watchServiceList((services) => seen.push(services), listed('db', 'web'))
    await eventually('a look at each', () =>
      ['db', 'web'].every((name) => world.agent.requestsFor(`/v1/catalog/connect/${name}`)[0]),
    )
    isMesh = true
    await eventually('names', () => seen[0], 6_000)
    assert.deepEqual(seen, [listed('db', 'web')])

    const gone: (readonly ListedService[])[] = []
    isMesh = false
    const startedAtMs = clock.monotonicMs()
    world.catalog.watchServiceList((services) => gone.push(services), listed('db', 'web'))
    await eventually('no names', () => gone[0], 8_000)
    assert.deepEqual(gone, [[]])
    assert.ok(clock.monotonicMs() - startedAtMs >= 2_900)
  })

  test('the default policy of the last run stays until Consul tells its own', async () => {
    await using world = await setUp()
    world.agent.always('/v1/agent/self', () => ({ status: 403, body: 'Permission denied' }))
    world.agent.always(MATCH, () => ({ body: { db: [rule('deny')] } }))
    world.agent.always(LIST, () => undefined)
    const seen: (readonly CatalogPolicy[])[] = []
    const last = { destination: 'db', intentions: [], defaultPolicy: 'allow' } as const
    world.catalog.watchPolicies(['db'], (policies) => seen.push(policies), [last])
    await eventually('rules', () => seen[0])
    assert.equal(seen[0]?.[0]?.defaultPolicy, 'allow')
    assert.equal(seen[0]?.[0]?.intentions[0]?.action, 'deny')
    assert.match(world.catalog.health().problems.join(), /"allow" stays/)
  })

  test('rules of the last run are not replaced by what a server without a leader says', async () => {
    await using world = await setUp()
    answerPolicies(world.agent, () => ({}), 'deny')
    world.agent.always(MATCH, () => ({ status: 500, body: 'No cluster leader' }))
    world.agent.always(LIST, () => undefined)
    const last = { destination: 'db', intentions: [], defaultPolicy: 'deny' } as const
    world.catalog.watchPolicies(['db'], () => assert.fail('answered'), [last])
    await eventually('two reads', () => world.agent.requestsFor(MATCH).length >= 2)
    assert.ok(world.agent.requestsFor(MATCH).every(({ query }) => !query.has('stale')))
  })

  test('an empty answer is not obeyed while the token sees no service at all', async () => {
    await using world = await setUp({ clock: hurried(HURRY) })
    world.agent.always('/v1/catalog/services', () => indexed(1, {}))
    const counts: number[] = []
    world.catalog.watchService('db', (service) => counts.push(service.clusters[0].endpoints.length))
    world.agent.answer(CHAIN, indexed(7, { Chain: {} }))
    world.agent.answer(HEALTH, indexed(7, instances(1)))
    world.agent.always(HEALTH, () => indexed(8, []))
    const problem = await eventually('problem', () =>
      world.catalog.health().problems.find(({ message }) => message.includes('lost service:read')),
    )
    assert.match(problem.message, /instances of db/)
    assert.deepEqual(counts, [1])
  })

  test('the loss of the last nodes of a service is accepted 3 s later, and not when they come back', async () => {
    const clock = hurried(HURRY)
    await using world = await setUp({ clock })
    let index = 8
    const serf = (Status: string): FakeAnswer =>
      indexed(
        (index += 1),
        instances(2).map((entry) => ({
          ...(entry as object),
          Checks: [{ CheckID: 'serfHealth', Status }],
        })),
      )
    const seen: string[] = []
    world.agent.answer(CHAIN, indexed(7, { Chain: {} }))
    world.agent.answer(HEALTH, serf('passing'), serf('critical'), serf('passing'))
    world.catalog.watchService('db', ({ clusters: [{ endpoints }] }) => {
      seen.push(endpoints.map(({ health }) => health).join())
    })
    await eventually('back', () => world.agent.requestsFor(HEALTH)[3])
    assert.deepEqual(seen, ['passing,passing'])

    const startedAtMs = clock.monotonicMs()
    world.agent.always(HEALTH, () => serf('critical'))
    world.agent.answer(HEALTH, serf('critical'))
    await eventually('away', () => seen[1], 8_000)
    assert.equal(seen[1], 'critical,critical')
    assert.ok(clock.monotonicMs() - startedAtMs >= 2_900)
  })

  test('an agent of another datacenter changes nothing', async () => {
    await using world = await setUp({ datacenter: 'dc2' })
    const seen: CatalogService[] = []
    world.agent.answer(CHAIN, indexed(7, { Chain: {} }))
    world.agent.answer(HEALTH, indexed(7, instances(1)))
    world.catalog.watchService('db', (service) => seen.push(service))
    await eventually('problem', () =>
      world.catalog.health().problems.some(({ message }) => message.includes('datacenter "dc1"')),
    )
    assert.equal(seen.length, 0)
  })

  test('on Consul 1.8 a change of the list of intentions leads to a fresh match', async () => {
    await using world = await setUp()
    let rules: unknown[] | null = null
    answerPolicies(world.agent, () => ({ db: rules }), 'deny')
    const seen: (readonly CatalogPolicy[])[] = []
    world.agent.answer(LIST, indexed(1, []))
    world.catalog.watchPolicies(['db'], (policies) => seen.push(policies))
    await eventually('first policies', () => seen[0])
    assert.deepEqual(seen[0], [{ destination: 'db', intentions: [], defaultPolicy: 'deny' }])
    await eventually('wake-up is set', () => world.agent.requestsFor(LIST).length === 2)
    rules = [rule('allow')]
    const startedAtMs = performance.now()
    world.agent.answer(LIST, indexed(2, [rule('allow')]))
    await eventually('changed policies', () => seen[1])
    assert.ok(performance.now() - startedAtMs < 1_000)
    assert.equal(seen[1]?.[0]?.intentions[0]?.action, 'allow')
  })

  test('where match carries an index it is followed itself, and its header is the default policy', async () => {
    await using world = await setUp()
    let action = 'allow'
    const told = { 'x-consul-index': '5', 'x-consul-default-acl-policy': 'allow' }
    world.agent.always(MATCH, (request) =>
      request.query.has('wait') ? undefined : { headers: told, body: { db: [rule(action)] } },
    )
    const seen: (readonly CatalogPolicy[])[] = []
    world.catalog.watchPolicies(['db'], (policies) => seen.push(policies))
    await eventually('first policies', () => seen[0])
    assert.equal(seen[0]?.[0]?.defaultPolicy, 'allow')
    await eventually('match is waited on', () =>
      world.agent.requestsFor(MATCH).some((request) => request.query.get('index') === '5'),
    )
    assert.equal(world.agent.requestsFor(LIST).length, 0)
    assert.equal(world.agent.requestsFor('/v1/agent/self').length, 0)
    action = 'deny'
    const startedAtMs = performance.now()
    world.agent.answer(MATCH, indexed(6, { db: [rule('deny')] }))
    await eventually('changed policies', () => seen[1])
    assert.ok(performance.now() - startedAtMs < 1_000)
    assert.equal(seen[1]?.[0]?.intentions[0]?.action, 'deny')
  })

  test('intentions that cannot be read are no unsupported ones', async () => {
    await using world = await setUp()
    world.agent.always(MATCH, () => ({ status: 500, body: 'rpc error: no known servers' }))
    world.agent.always(LIST, () => undefined)
    world.catalog.watchPolicies(['db'], () => assert.fail('answered'))
    const problem = await eventually('problem', () =>
      world.catalog.health().problems.find(({ message }) => message.includes('for db')),
    )
    assert.equal(problem.code, 'HM_CONSUL_REFUSED')
    assert.match(problem.hint, /^See the log of the Consul agent/)
  })

  test('an intention that cannot be obeyed has a code of its own', async () => {
    await using world = await setUp()
    answerPolicies(world.agent, () => ({ db: [Object.assign({ JWT: {} }, rule('allow'))] }), 'deny')
    world.agent.always(LIST, () => undefined)
    world.catalog.watchPolicies(['db'], () => undefined)
    const problem = await eventually('problem', () => world.catalog.health().problems[0])
    assert.equal(problem.code, 'HM_INTENTION_UNSUPPORTED')
  })

  test('an unknown default policy is deny, and is named', async () => {
    await using world = await setUp()
    answerPolicies(world.agent, () => ({ db: null }), undefined)
    const seen: (readonly CatalogPolicy[])[] = []
    world.catalog.watchPolicies(['db'], (policies) => seen.push(policies))
    await eventually('policies', () => seen[0])
    assert.equal(seen[0]?.[0]?.defaultPolicy, 'deny')
    assert.match(world.catalog.health().problems.join('\n'), /does not tell its default policy/)
  })

  test('a right that is missing for one destination does not cost the others', async () => {
    await using world = await setUp()
    answerPolicies(world.agent, () => ({ db: [rule('allow')] }), 'deny')
    world.agent.always(MATCH, (request) =>
      request.query.getAll('name').includes('secret')
        ? { status: 403, body: 'Permission denied' }
        : { body: { db: [rule('allow')] } },
    )
    const seen: (readonly CatalogPolicy[])[] = []
    world.catalog.watchPolicies(['db', 'secret'], (policies) => seen.push(policies))
    await eventually('policies', () => seen[0])
    assert.deepEqual(
      seen[0]?.map((policy) => policy.destination),
      ['db'],
      'no policy at all for the other: it is denied',
    )
    const problem = world.catalog
      .health()
      .problems.find(({ message }) => message.includes('Intentions for secret'))
    assert.equal(problem?.code, 'HM_CONSUL_FORBIDDEN')
  })

  test('a right that was missing for one destination is no problem any more when it is there', async () => {
    await using world = await setUp()
    let isAllowed = false
    answerPolicies(world.agent, () => ({}), 'deny')
    world.agent.always(MATCH, (request) =>
      request.query.getAll('name').includes('secret') && !isAllowed
        ? { status: 403, body: 'Permission denied' }
        : { body: { db: [rule('allow')], secret: null } },
    )
    world.agent.answer(LIST, indexed(1, []))
    const seen: (readonly CatalogPolicy[])[] = []
    world.catalog.watchPolicies(['db', 'secret'], (policies) => seen.push(policies))
    const problems = (): string => world.catalog.health().problems.join('\n')
    await eventually('refusal', () => problems().includes('Intentions for secret'))
    isAllowed = true
    world.agent.answer(LIST, indexed(2, ['changed']))
    await eventually('all policies', () => seen.at(-1)?.length === 2)
    await eventually('no problem', () => problems() === '')
  })

  test('malformed intentions change nothing', async () => {
    await using world = await setUp()
    let body: unknown = { db: [rule('deny')] }
    answerPolicies(world.agent, () => body, 'allow')
    const seen: (readonly CatalogPolicy[])[] = []
    world.agent.answer(LIST, indexed(1, []))
    world.catalog.watchPolicies(['db'], (policies) => seen.push(policies))
    await eventually('policies', () => seen[0])
    for (const bad of ['<html>', null, {}, [], { db: 'x' }, { db: [{}] }]) {
      body = bad
      const before = world.agent.requestsFor(MATCH).length
      world.agent.answer(LIST, indexed(2, [JSON.stringify(bad)]))
      await eventually('read', () => world.agent.requestsFor(MATCH).length > before)
    }
    await eventually('problem', () =>
      world.catalog
        .health()
        .problems.some(({ message }) => message.startsWith('Intentions for db')),
    )
    assert.equal(seen.length, 1)
  })

  test('names are those that somebody answers Connect for, and a new proxy is noticed', async () => {
    await using world = await setUp()
    world.agent.always('/v1/catalog/services', () => undefined)
    const mesh = new Set(['web'])
    for (const name of ['web', 'db', 'consul', 'db-hostmesh'])
      world.agent.always(`/v1/catalog/connect/${name}`, () => ({
        body: mesh.has(name) ? [{}] : [],
      }))
    const plain = { consul: [], web: [], db: [], 'X!': [] }
    world.agent.answer('/v1/catalog/services', indexed(1, plain))
    const seen: (readonly ListedService[])[] = []
    world.catalog.watchServiceList((services) => seen.push(services))
    await eventually('names', () => seen[0])
    assert.deepEqual(seen[0], listed('web'))
    await eventually('list is waited on', () => world.agent.requestsFor('/v1/catalog/services')[1])
    mesh.add('db')
    world.agent.answer('/v1/catalog/services', indexed(2, { ...plain, 'db-hostmesh': [] }))
    await eventually('new name', () => seen[1])
    assert.deepEqual(seen[1], listed('db', 'web'))
  })

  test('a name of which Consul says too much costs that name, and is told; the tags of others cost nothing', async () => {
    await using world = await setUp()
    const names = ['consul', 'evil1', 'evil2', 'evil3', 'evil4', 'vault', 'web']
    const tags = ['x'.repeat(3_000_000)]
    world.agent.always('/v1/catalog/services', () => undefined)
    world.agent.answer(
      '/v1/catalog/services',
      indexed(1, Object.fromEntries(names.map((name) => [name, tags]))),
    )
    const tooMuch = JSON.stringify([{ x: 'x'.repeat(17_000_000) }])
    for (const name of names) {
      const isEvil = name.startsWith('evil')
      world.agent.always(`/v1/catalog/connect/${name}`, () => ({
        body: isEvil ? tooMuch : name === 'consul' ? [] : [{}],
      }))
      world.agent.always(`/v1/catalog/service/${name}`, () => ({ body: isEvil ? tooMuch : [] }))
    }
    const seen: (readonly ListedService[])[] = []
    world.catalog.watchServiceList((services) => seen.push(services))
    await eventually('names', () => seen[0])
    assert.deepEqual(seen[0], listed('vault', 'web'))
    await eventually('instances', () => world.agent.requestsFor('/v1/catalog/service/vault')[0])
    const { problems, warnings = [] } = world.catalog.health()
    assert.deepEqual(problems, [])
    assert.match(warnings.join(), /Cannot read what Consul has of service evil\d \(.*longer than/)
  })

  test('of too many names each kind is looked at, and what is left out is a problem', async () => {
    await using world = await setUp()
    const evil = Array.from({ length: 6_000 }, (_, i) => `evil${i}`)
    const names = ['consul', ...evil, 'vault', 'web']
    world.agent.always('/v1/catalog/services', () => undefined)
    const asked = new Set<string>()
    for (const name of names)
      world.agent.always(`/v1/catalog/connect/${name}`, () => {
        asked.add(name)
        return { body: name === 'vault' ? [{}] : [] }
      })
    world.agent.always('/v1/catalog/service/vault', () => ({ body: [] }))
    world.agent.answer(
      '/v1/catalog/services',
      indexed(1, Object.fromEntries(names.map((name) => [name, []]))),
    )
    const seen: (readonly ListedService[])[] = []
    world.catalog.watchServiceList((services) => seen.push(services))
    await eventually('names', () => seen[0])
    assert.deepEqual(seen[0], listed('vault'))
    assert.equal(asked.size, 5_000)
    const [problem] = world.catalog.health().problems
    assert.equal(problem?.code, 'HM_CATALOG_TOO_LARGE')
    assert.match(problem?.message ?? '', /names 6003 services; 5000 of them are looked at/)
  })

  test('an address that goes to another service is not said to be of the first one any more', async () => {
    await using world = await setUp()
    const body = new Map<string, unknown[]>([
      ['consul', []],
      ['db', [listedProxy('db', '240.0.0.1')]],
      ['queue', [listedProxy('queue', '240.0.0.1')]],
    ])
    for (const [name] of body)
      world.agent.always(`/v1/catalog/connect/${name}`, () => ({ body: body.get(name) }))
    world.agent.always('/v1/catalog/services', () => undefined)
    world.agent.answer('/v1/catalog/services', indexed(1, { consul: [], db: [] }))
    const seen: (readonly ListedService[])[] = []
    world.catalog.watchServiceList((services) => seen.push(services))
    await eventually('list', () => seen[0])
    assert.deepEqual(seen[0], [{ name: 'db', virtualIps: ['240.0.0.1'] }])
    await eventually('list is waited on', () => world.agent.requestsFor('/v1/catalog/services')[1])
    // Its proxy leaves and the service itself stays in the catalog: nothing wakes the watch of names.
    body.set('db', [])
    world.agent.answer('/v1/catalog/services', indexed(2, { consul: [], db: [], queue: [] }))
    await eventually('new list', () => seen[1])
    assert.deepEqual(seen[1], [{ name: 'queue', virtualIps: ['240.0.0.1'] }])
  })

  test('deregistration from an agent that hangs ends within its deadline', async () => {
    await using world = await setUp({ requestTimeout: 30_000 })
    world.agent.always('/v1/agent/service/register', () => ({}))
    await world.catalog.register([db], 15_443)
    world.agent.always('/v1/agent/services', () => undefined)
    const looks = world.agent.requestsFor('/v1/agent/services').length
    await eventually('a look that hangs', () => {
      return world.agent.requestsFor('/v1/agent/services').length > looks
    })
    const startedAtMs = performance.now()
    await world.catalog.deregister()
    assert.ok(performance.now() - startedAtMs < 5_500)
  })

  test('with register: false nothing is written to the agent', async () => {
    await using world = await setUp({ register: false })
    await world.catalog.register([db], 15_443)
    await eventually('two looks', () => world.agent.requestsFor('/v1/agent/services').length >= 2)
    await world.catalog.deregister()
    assert.deepEqual(
      world.agent.requests.filter((request) => request.method !== 'GET'),
      [],
    )
  })

  test('a registration that is refused is a problem, not an exception, and is tried again', async () => {
    await using world = await setUp()
    world.agent.answer(
      '/v1/agent/service/register',
      { status: 403, body: 'Permission denied' },
      { status: 403, body: 'Permission denied' },
    )
    world.agent.always('/v1/agent/service/register', () => ({}))
    await world.catalog.register([db], 15_443)
    assert.match(world.catalog.health().problems.join('\n'), /Permission denied/)
    await eventually('second try', () => {
      return world.agent.requestsFor('/v1/agent/service/register').length >= 4
    })
    await eventually('no problem', () => world.catalog.health().problems.length === 0)
  })

  for (const { what, checks, begins } of [
    { what: 'has no checks', checks: [], begins: 'passing' },
    { what: 'passes', checks: [{ Status: 'passing' }], begins: 'passing' },
    { what: 'warns', checks: [{ Status: 'passing' }, { Status: 'warning' }], begins: 'warning' },
    { what: 'fails', checks: [{ Status: 'critical' }], begins: 'critical' },
    { what: 'cannot be read', checks: undefined, begins: 'critical' },
  ])
    test(`a proxy whose service ${what} begins ${begins}`, async () => {
      await using world = await setUp()
      world.agent.always('/v1/agent/checks', () =>
        checks === undefined
          ? { status: 500, body: 'no' }
          : {
              body: Object.fromEntries(
                checks.map((check, at) => [`${at}`, { ...check, ServiceID: 'db', Output: 'so' }]),
              ),
            },
      )
      world.agent.always('/v1/agent/service/register', () => ({}))
      await world.catalog.register([db], 15_443)
      const registered = world.agent
        .requestsFor('/v1/agent/service/register')
        .find(({ body }) => body.includes('connect-proxy'))
      assert.ok(registered !== undefined)
      assert.equal(registered.query.get('replace-existing-checks'), 'true')
      const { Checks } = JSON.parse(registered.body) as { Checks: { Status?: string }[] }
      assert.deepEqual(
        Checks.map(({ Status }) => Status),
        [begins],
      )
    })

  test('the token goes with every kind of call', async () => {
    await using agent = await startFakeAgent()
    agent.always('/v1/agent/services', () => ({
      body: { db: { Service: 'db', Port: 5_432, Meta: { 'hostmesh-registered': '15443' } } },
    }))
    agent.always('/v1/agent/checks', () => ({ body: {} }))
    agent.always('/v1/agent/service/register', () => ({}))
    agent.always('/v1/agent/service/deregister/db', () => ({}))
    const options = { address: agent.address, token: 'secret', requestTimeout: 2_000 }
    await using catalog = new ConsulCatalog(options, silentLog)
    catalog.watchService('db', () => undefined)
    await catalog.register([db], 15_443)
    await catalog.deregister()
    const paths = new Set(agent.requests.map((request) => request.path))
    for (const path of [HEALTH, CHAIN, '/v1/agent/services', '/v1/agent/service/deregister/db'])
      assert.ok(paths.has(path), path)
    for (const request of agent.requests)
      assert.equal(request.headers['x-consul-token'], 'secret', request.path)
  })

  test('the problem of an agent that is away is told once, whatever the number of watches', async () => {
    const options = { address: 'http://127.0.0.1:1', requestTimeout: 2_000 }
    await using catalog = new ConsulCatalog(options, silentLog)
    for (const name of ['a', 'b', 'c']) catalog.watchService(name, () => undefined)
    await eventually('problems', () => catalog.health().problems.length > 0)
    assert.equal(catalog.health().problems.length, 1)
    assert.match(
      catalog.health().problems[0]?.message ?? '',
      /Cannot reach Consul at http:\/\/127.0.0.1:1/,
    )
    assert.equal(catalog.health().lastGoodAtMs, undefined)
    await assert.rejects(catalog.readAgentSelf(), /Cannot reach Consul/)
  })

  test('what a token cannot see is named, and everything is asked anew when it can', async () => {
    await using world = await setUp({ clock: hurried(HURRY) })
    const servers = '/v1/catalog/service/consul'
    world.agent.answer('/v1/catalog/services', indexed(1, {}))
    world.agent.answer(servers, indexed(1, []))
    world.agent.answer(HEALTH, indexed(1, []))
    world.catalog.watchService('db', () => undefined)
    const problems = (): string => world.catalog.health().problems.join()
    await eventually('service:read', () => /needs: node_prefix .* service_prefix/.test(problems()))
    // The list has its usual answer from now on: services are seen, instances are not.
    world.agent.answer(servers, indexed(1, []))
    await eventually('node:read', () => /shows services but no instances/.test(problems()), 15_000)
    const asked = world.agent.requestsFor(HEALTH).length
    world.agent.answer(servers, { headers: { 'x-consul-lastcontact': '40' }, body: [{}] })
    await eventually('healed', () => problems() === '', 15_000)
    await eventually('anew', () => world.agent.requestsFor(HEALTH).length > asked)
    const lastContactMs = world.catalog.health().lastContactMs ?? 0
    assert.ok(lastContactMs >= 40, String(lastContactMs))
  })

  test('servers without a leader are named, and an unknown token is', async () => {
    await using world = await setUp({ clock: hurried(HURRY) })
    const servers = '/v1/catalog/service/consul'
    world.agent.answer(servers, { headers: { 'x-consul-lastcontact': '12000' }, body: [{}] })
    const problems = (): string => world.catalog.health().problems.join()
    await eventually('leaderless', () => /have no leader/.test(problems()))
    assert.ok((world.catalog.health().lastContactMs ?? 0) >= 12_000)
    world.agent.answer(servers, { status: 403, body: 'ACL not found' })
    await eventually('unknown token', () => /does not know the token/.test(problems()), 10_000)
  })
})
