/**
 * Claims about a service whose discovery chain leads elsewhere: which instances are read, which answers wait for
 * which, and what an unreachable datacenter costs.
 */
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import type { CatalogService } from '../../src/controlplane/catalog/catalog.ts'
import { ConsulCatalog } from '../../src/controlplane/catalog/consul/consul-catalog.ts'
import { silentLog } from '../../src/lib/log.ts'
import { eventually, indexed, type SeenRequest, startFakeAgent } from './consul-fake-agent.ts'

const HEALTH = '/v1/health/connect/db'
const CHAIN = '/v1/discovery-chain/db'

interface TargetParts {
  readonly service?: string
  readonly datacenter?: string
  readonly filter?: string
  readonly onlyPassing?: boolean
}

/** A chain whose first target takes the traffic and whose others are failover. */
function chain(...targets: readonly TargetParts[]): unknown {
  const names = targets.map((_, i) => `t${i}`)
  return {
    Chain: {
      Datacenter: 'dc1',
      Protocol: 'tcp',
      StartNode: 'n',
      Nodes: {
        n: { Type: 'resolver', Resolver: { Target: 't0', Failover: { Targets: names.slice(1) } } },
      },
      Targets: Object.fromEntries(
        targets.map(({ service = 'db', datacenter = 'dc1', filter, onlyPassing }, i) => [
          `t${i}`,
          {
            Service: service,
            Namespace: 'default',
            Datacenter: datacenter,
            Subset: { Filter: filter, OnlyPassing: onlyPassing },
          },
        ]),
      ),
    },
  }
}

function instance(
  node: string,
  parts: {
    service?: string
    datacenter?: string
    status?: string
    wan?: unknown
    nodeWan?: string
  } = {},
): unknown {
  const { service = 'db', datacenter = 'dc1', status = 'passing' } = parts
  return {
    Node: {
      Node: node,
      Address: '10.0.0.1',
      Datacenter: datacenter,
      TaggedAddresses: { lan: '10.0.0.1', wan: parts.nodeWan ?? '10.0.0.1' },
    },
    Service: {
      Kind: 'connect-proxy',
      ID: `${service}-hostmesh`,
      Service: `${service}-hostmesh`,
      Port: 15_443,
      ...(parts.wan !== undefined && { TaggedAddresses: { wan: parts.wan } }),
      Proxy: {
        DestinationServiceName: service,
        DestinationServiceID: service,
        LocalServicePort: 80,
      },
    },
    Checks: [{ Status: status }],
  }
}

async function setUp() {
  const agent = await startFakeAgent()
  agent.always('/v1/agent/services', () => ({ body: {} }))
  agent.always('/v1/catalog/services', () => indexed(1, { consul: [] }))
  const catalog = new ConsulCatalog(
    { address: agent.address, requestTimeout: 2_000, datacenter: 'dc1' },
    silentLog,
  )
  const seen: CatalogService[] = []
  const keys = (): string[] =>
    (seen.at(-1)?.clusters[0].endpoints ?? []).map(({ key, priority }) => `${key} ${priority}`)
  /** Answers once for each datacenter, then blocks. */
  const answerOnce = (path: string, answers: Record<string, unknown>): void => {
    agent.always(path, ({ query }: SeenRequest) => {
      const body = answers[query.get('dc') ?? 'dc1']
      if (body === undefined) return { status: 500, body: 'No path to datacenter' }
      return query.get('index') === '0' ? indexed(5, body) : undefined
    })
  }
  return {
    agent,
    catalog,
    seen,
    keys,
    answerOnce,
    async [Symbol.asyncDispose]() {
      await catalog[Symbol.asyncDispose]()
      await agent[Symbol.asyncDispose]()
    },
  }
}

describe('a service whose chain leads elsewhere', { concurrency: true }, () => {
  test('is served by the instances of its redirect, as the service and datacenter that they are', async () => {
    await using world = await setUp()
    world.agent.answer(CHAIN, indexed(7, chain({ service: 'api', datacenter: 'dc2' })))
    world.answerOnce(HEALTH, { dc1: [instance('n1')] })
    world.answerOnce('/v1/health/connect/api', {
      dc2: [instance('n1', { service: 'api', datacenter: 'dc2' })],
    })
    world.catalog.watchService('db', (service) => world.seen.push(service))
    await eventually('service', () => world.seen[0])
    assert.deepEqual(
      world.seen[0]?.clusters[0].endpoints.map(({ key, service, datacenter }) => [
        key,
        service,
        datacenter,
      ]),
      [['dc2/n1/api', 'api', 'dc2']],
    )
    assert.equal(world.seen[0]?.name, 'db')
  })

  test('is read with the filter of its subset, and without warnings when only passing ones count', async () => {
    await using world = await setUp()
    const filter = 'Service.Meta.version == "v1" and Service.Tags contains "a&b"'
    world.agent.answer(CHAIN, indexed(7, chain({ filter, onlyPassing: true })))
    world.answerOnce(HEALTH, { dc1: [instance('n1'), instance('n2', { status: 'warning' })] })
    world.catalog.watchService('db', (service) => world.seen.push(service))
    await eventually('service', () => world.seen[0])
    assert.deepEqual(world.keys(), ['n1/db 0'])
    const filtered = world.agent.requestsFor(HEALTH).filter(({ query }) => query.has('filter'))
    assert.ok(filtered.length > 0)
    for (const { query } of filtered) assert.equal(query.get('filter'), filter)
  })

  test('has the instances of all its targets, in the order of failover', async () => {
    await using world = await setUp()
    world.agent.answer(
      CHAIN,
      indexed(7, chain({}, { datacenter: 'dc3' }, { datacenter: 'dc2' }, { service: 'spare' })),
    )
    world.answerOnce(HEALTH, {
      dc1: [instance('n1')],
      dc2: [instance('n1', { datacenter: 'dc2' })],
      dc3: [instance('n1', { datacenter: 'dc3' })],
    })
    world.answerOnce('/v1/health/connect/spare', { dc1: [instance('n9', { service: 'spare' })] })
    world.catalog.watchService('db', (service) => world.seen.push(service))
    await eventually('all four', () => world.keys().length === 4)
    assert.deepEqual(world.keys(), ['n1/db 0', 'dc3/n1/db 1', 'dc2/n1/db 2', 'n9/spare 3'])
  })

  test('is reached at wan addresses in another datacenter, at lan addresses in its own', async () => {
    await using world = await setUp()
    const wan = { Address: '203.0.113.5', Port: 8_443 }
    world.agent.answer(CHAIN, indexed(7, chain({}, { datacenter: 'dc2' })))
    world.answerOnce(HEALTH, {
      dc1: [instance('n1', { wan, nodeWan: '198.51.100.1' })],
      dc2: [
        instance('n1', { datacenter: 'dc2', wan, nodeWan: '198.51.100.1' }),
        instance('n2', { datacenter: 'dc2', nodeWan: '198.51.100.1' }),
      ],
    })
    world.catalog.watchService('db', (service) => world.seen.push(service))
    await eventually('all three', () => world.keys().length === 3)
    assert.deepEqual(
      world.seen.at(-1)?.clusters[0].endpoints.map(({ tunnel }) => `${tunnel.ip}:${tunnel.port}`),
      ['10.0.0.1:15443', '203.0.113.5:8443', '198.51.100.1:15443'],
    )
  })

  test('is served by its own instances while a datacenter of its failover cannot be reached', async () => {
    await using world = await setUp()
    world.agent.answer(CHAIN, indexed(7, chain({}, { datacenter: 'dc2' })))
    world.answerOnce(HEALTH, { dc1: [instance('n1')] })
    world.catalog.watchService('db', (service) => world.seen.push(service))
    await eventually('service', () => world.seen[0], 1_500)
    assert.deepEqual(world.keys(), ['n1/db 0'])
    await eventually('problem', () =>
      world.catalog
        .health()
        .problems.find(({ message }) => message.includes('No path to datacenter')),
    )
  })

  test('is served by its failover when the datacenter of its target cannot be reached', async () => {
    await using world = await setUp()
    world.agent.answer(CHAIN, indexed(7, chain({ datacenter: 'dc2' }, {})))
    world.answerOnce(HEALTH, { dc1: [instance('n1')] })
    world.catalog.watchService('db', (service) => world.seen.push(service))
    await eventually('service', () => world.seen[0])
    assert.deepEqual(world.keys(), ['n1/db 1'])
  })

  test('keeps the last instances of a datacenter that cannot be reached any more', async () => {
    await using world = await setUp()
    world.agent.answer(CHAIN, indexed(7, chain({}, { datacenter: 'dc2' })))
    const far = [instance('n1', { datacenter: 'dc2' })]
    let isCut = false
    let near = [instance('n1')]
    world.agent.always(HEALTH, ({ query }) => {
      if (query.get('dc') !== 'dc2') return indexed(near.length, near)
      return isCut ? { status: 500, body: 'No path to datacenter' } : indexed(5, far)
    })
    world.catalog.watchService('db', (service) => world.seen.push(service))
    await eventually('both', () => world.keys().length === 2)
    isCut = true
    await eventually('problem', () =>
      world.catalog
        .health()
        .problems.some(({ message }) => message.includes('No path to datacenter')),
    )
    near = [instance('n1'), instance('n2')]
    await eventually('news of our own', () => world.keys().length === 3, 15_000)
    assert.deepEqual(world.keys(), ['n1/db 0', 'n2/db 0', 'dc2/n1/db 1'])
  })

  test('an emptied answer about one target is doubted, and costs the others nothing', async () => {
    await using world = await setUp()
    world.agent.answer(CHAIN, indexed(7, chain({}, { datacenter: 'dc2' })))
    let far = [instance('n1', { datacenter: 'dc2' })]
    let near = [instance('n1')]
    let changes = 5
    world.agent.always(HEALTH, ({ query }) =>
      indexed(changes, query.get('dc') === 'dc2' ? far : near),
    )
    world.catalog.watchService('db', (service) => world.seen.push(service))
    await eventually('both', () => world.keys().length === 2)
    far = []
    near = [instance('n1'), instance('n2')]
    changes += 1
    await eventually('news of our own', () => world.keys().length === 3)
    assert.deepEqual(world.keys(), ['n1/db 0', 'n2/db 0', 'dc2/n1/db 1'])
    await eventually('belief', () => world.keys().length === 2, 20_000)
    assert.deepEqual(world.keys(), ['n1/db 0', 'n2/db 0'])
  })

  test('has every split of its chain, the heaviest first, and one that has never answered not at all', async () => {
    await using world = await setUp()
    const target = (ServiceSubset: string): object => ({
      Service: 'db',
      Namespace: 'default',
      Datacenter: 'dc1',
      ServiceSubset,
      Subset: { Filter: ServiceSubset },
    })
    const resolver = (Target: string): object => ({ Type: 'resolver', Resolver: { Target } })
    const Splits = [
      { Weight: 10, NextNode: 'v2' },
      { Weight: 90, NextNode: 'v1' },
    ]
    world.agent.answer(
      CHAIN,
      indexed(7, {
        Chain: {
          Datacenter: 'dc1',
          Protocol: 'http',
          StartNode: 's',
          Nodes: { s: { Type: 'splitter', Splits }, v1: resolver('v1'), v2: resolver('v2') },
          Targets: { v1: target('v1'), v2: target('v2') },
        },
      }),
    )
    let isThere = false
    world.agent.always(HEALTH, ({ query }) => {
      const filter = query.get('filter')
      if (filter === 'v2' && !isThere) return { status: 500, body: 'no leader' }
      return query.get('index') === '0' ? indexed(5, [instance(`n-${filter}`)]) : undefined
    })
    world.catalog.watchService('db', (service) => world.seen.push(service))
    const told = (): unknown[] => {
      const { routes = [], clusters = [] } = world.seen.at(-1) ?? {}
      return [
        clusters.map(({ name, endpoints }) => [name, endpoints.map(({ key }) => key).join()]),
        routes.flatMap((route) => route.clusters.map(({ cluster, weight }) => [cluster, weight])),
      ]
    }
    await eventually('the heaviest', () => world.seen[0])
    assert.deepEqual(told(), [[['db:v1', 'n-v1/db']], [['db:v1', 90]]])
    isThere = true
    await eventually('the other', () => world.seen[1], 15_000)
    assert.deepEqual(told(), [
      [
        ['db:v1', 'n-v1/db'],
        ['db:v2', 'n-v2/db'],
      ],
      [
        ['db:v2', 10],
        ['db:v1', 90],
      ],
    ])
  })

  test('follows a change of its chain and no longer what it has left', async () => {
    await using world = await setUp()
    world.answerOnce(HEALTH, { dc1: [instance('n1')] })
    world.answerOnce('/v1/health/connect/api', { dc1: [instance('n2', { service: 'api' })] })
    world.agent.answer(CHAIN, indexed(7, chain({})))
    world.catalog.watchService('db', (service) => world.seen.push(service))
    await eventually('itself', () => world.keys().join() === 'n1/db 0')
    world.agent.answer(CHAIN, indexed(8, chain({ service: 'api' })))
    await eventually('the other', () => world.keys().join() === 'n2/api 0')
    assert.deepEqual(
      world.seen.map(({ clusters: [{ endpoints }] }) => endpoints.length),
      [1, 1],
      'never without an instance in between',
    )
  })

  test('that is broken keeps the last good one, and says what is wrong', async () => {
    await using world = await setUp()
    world.answerOnce(HEALTH, { dc1: [instance('n1')] })
    world.agent.answer(CHAIN, indexed(7, chain({})))
    world.catalog.watchService('db', (service) => world.seen.push(service))
    await eventually('service', () => world.seen[0])
    const broken = indexed(8, {
      Chain: { Datacenter: 'dc1', StartNode: 'gone', Nodes: {}, Targets: {} },
    })
    world.agent.always(CHAIN, () => broken)
    // For the poll that is waiting already.
    world.agent.answer(CHAIN, broken)
    await eventually('problem', () =>
      world.catalog
        .health()
        .problems.find(({ message }) =>
          message.includes('Cannot follow the discovery chain of db'),
        ),
    )
    assert.deepEqual(world.keys(), ['n1/db 0'])
  })
})
