/** Claims about src/controlplane/discovery/compile.ts: pure, total, and it keeps what did not change. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import * as fc from 'fast-check'
import type { CatalogPolicy, CatalogService } from '../../src/controlplane/catalog/catalog.ts'
import {
  type CompileInput,
  compile,
  nothingCompiled,
} from '../../src/controlplane/discovery/compile.ts'
import type { Cluster } from '../../src/model/cluster.ts'
import type { Endpoint } from '../../src/model/endpoint.ts'
import { type Intention, precedenceOf } from '../../src/model/intention.ts'
import type { LocalService } from '../../src/model/service.ts'
import { applyDelta, diffSnapshots, emptySnapshot } from '../../src/model/snapshot.ts'
import { catalogService, endpoint, intention as rule } from '../harness/builders.ts'

function service(name: string, change: Parameters<typeof catalogService>[1] = {}): CatalogService {
  return catalogService(name, { endpoints: [endpoint(`host-b/${name}`)], ...change })
}

function local(name: string, change: Partial<LocalService> = {}): LocalService {
  return {
    name,
    id: name,
    target: { ip: '127.0.0.1', port: 80 },
    selector: undefined,
    capturePort: undefined,
    connectPort: undefined,
    upstreams: [],
    ...change,
  }
}

function input(change: Partial<CompileInput> = {}, ...services: CatalogService[]): CompileInput {
  return {
    datacenter: 'dc1',
    nodeName: 'host-a',
    localServices: [],
    catalogServices: new Map(services.map((one) => [one.name, one])),
    policies: new Map(),
    virtualIps: () => [],
    ...change,
  }
}

test('an instance is local when its node is ours and its ID is that of a service we run', () => {
  const endpoints = [endpoint('host-a/db'), endpoint('host-a/db-sidecar'), endpoint('host-b/db')]
  const { snapshot } = compile(
    input({ localServices: [local('db')] }, service('db', { endpoints })),
    nothingCompiled,
  )
  assert.deepEqual(
    snapshot.services.get('db')?.clusters[0].endpoints.map((one) => [one.key, one.local]),
    [
      ['host-a/db', true],
      ['host-a/db-sidecar', false],
      ['host-b/db', false],
    ],
  )
})

test('an instance of our node is not local to a workload that only calls', () => {
  const { snapshot } = compile(
    input(
      { localServices: [local('db', { target: undefined })] },
      service('db', { endpoints: [endpoint('host-a/db')] }),
    ),
    nothingCompiled,
  )
  assert.equal(snapshot.services.get('db')?.clusters[0].endpoints[0]?.local, false)
})

test('rules are sorted by precedence, foreign ones left out, and of equal ones deny comes first', () => {
  const policy: CatalogPolicy = {
    destination: 'db',
    intentions: [
      rule('*', '*', 'allow'),
      rule('web', 'cache', 'allow'),
      rule('web', 'db', 'allow'),
      rule('web', 'db', 'deny'),
      rule('*', 'db', 'deny'),
    ],
    defaultPolicy: 'allow',
  }
  const { snapshot } = compile(
    input({ localServices: [local('db')], policies: new Map([['db', policy]]) }),
    nothingCompiled,
  )
  assert.deepEqual(snapshot.policies.get('db'), {
    destination: 'db',
    intentions: [
      rule('web', 'db', 'deny'),
      rule('web', 'db', 'allow'),
      rule('*', 'db', 'deny'),
      rule('*', '*', 'allow'),
    ],
    defaultPolicy: 'allow',
  })
})

test('there is a policy for exactly the local services with a target whose rules are known', () => {
  const policies = new Map(
    ['db', 'web', 'other'].map((destination) => [
      destination,
      { destination, intentions: [], defaultPolicy: 'deny' as const },
    ]),
  )
  const { snapshot } = compile(
    input({
      localServices: [local('db'), local('web', { target: undefined }), local('new')],
      policies,
    }),
    nothingCompiled,
  )
  assert.deepEqual([...snapshot.policies.keys()], ['db'])
})

test('a host that insists on deny denies where no intention matches, whatever the catalog says', () => {
  for (const [defaultPolicy, forcesDefaultDeny, expected] of [
    ['allow', false, 'allow'],
    ['allow', true, 'deny'],
    ['deny', true, 'deny'],
    ['deny', false, 'deny'],
  ] as const) {
    const policies = new Map([['db', { destination: 'db', intentions: [], defaultPolicy }]])
    const given = input({ localServices: [local('db')], policies, forcesDefaultDeny })
    const { snapshot } = compile(given, nothingCompiled)
    assert.equal(snapshot.policies.get('db')?.defaultPolicy, expected)
  }
})

test('permissions and what cannot be obeyed survive into the snapshot, and through its delta', () => {
  const permissions = [
    { action: 'allow', path: { kind: 'prefix', value: '/' }, methods: ['GET'], headers: [] },
  ] as const
  const intentions: Intention[] = [
    { ...rule('web', 'db'), permissions },
    { ...rule('*', 'db'), undecidable: 'has JWT requirements' },
  ]
  const policies = new Map([
    ['db', { destination: 'db', intentions, defaultPolicy: 'allow' as const }],
  ])
  const { snapshot } = compile(input({ localServices: [local('db')], policies }), nothingCompiled)
  const arrived = applyDelta(emptySnapshot, structuredClone(diffSnapshots(emptySnapshot, snapshot)))
  assert.deepEqual(arrived.policies.get('db')?.intentions, intentions)
})

test('the order in which a catalog lists instances changes nothing', () => {
  const endpoints = [endpoint('a/db'), endpoint('b/db'), endpoint('c/db')]
  const first = compile(input({}, service('db', { endpoints })), nothingCompiled)
  const second = compile(input({}, service('db', { endpoints: endpoints.toReversed() })), first)
  assert.equal(second.snapshot, first.snapshot)
})

test("the catalog's virtual addresses win over ours", () => {
  const virtualIps = (): string[] => ['240.0.0.1']
  const { snapshot } = compile(
    input({ virtualIps }, service('a'), service('b', { virtualIps: ['240.9.9.9', '240.9.9.8'] })),
    nothingCompiled,
  )
  assert.deepEqual(snapshot.services.get('a')?.virtualIps, ['240.0.0.1'])
  assert.deepEqual(snapshot.services.get('b')?.virtualIps, ['240.9.9.8', '240.9.9.9'])
})

test('a service that claims the virtual address of another does not get it, whatever its name', () => {
  const first = compile(input({}, service('db', { virtualIps: ['240.0.0.1'] })), nothingCompiled)
  const second = compile(
    input(
      {},
      service('aaa', { virtualIps: ['240.0.0.1', '240.0.0.2'] }),
      service('db', { virtualIps: ['240.0.0.1'] }),
    ),
    first,
  )
  assert.equal(second.snapshot.services.get('db'), first.snapshot.services.get('db'))
  assert.deepEqual(second.snapshot.services.get('aaa')?.virtualIps, ['240.0.0.2'])
  assert.deepEqual(
    second.problems.map((problem) => problem.service),
    ['aaa'],
  )
  assert.match(second.problems[0]?.message ?? '', /240\.0\.0\.1 .* belongs to service db/)
})

test('a virtual address moves to another service when its owner gives it up', () => {
  const first = compile(input({}, service('db', { virtualIps: ['240.0.0.1'] })), nothingCompiled)
  const second = compile(
    input({}, service('db'), service('web', { virtualIps: ['240.0.0.1'] })),
    first,
  )
  assert.deepEqual(second.snapshot.services.get('web')?.virtualIps, ['240.0.0.1'])
  assert.deepEqual(second.snapshot.services.get('db')?.virtualIps, [])
  assert.deepEqual(second.problems, [])
})

test('a broken instance costs that instance, and is named', () => {
  const endpoints = [
    endpoint('a/db', { tunnel: { ip: '0.0.0.0', port: 1 } }),
    endpoint('b/db', { tunnel: { ip: '10.0.0.1', port: 0 } }),
    endpoint('c/db', { weight: Number.NaN }),
    endpoint('c/db', { weight: 9 }),
    endpoint('d/db', { application: { ip: '224.0.0.1', port: 1 } }),
  ]
  const addresses = [{ ip: '10.0.0.7', port: 80, node: 'c', since: 1 }]
  const { snapshot, problems } = compile(
    input({}, service('db', { endpoints, addresses })),
    nothingCompiled,
  )
  assert.deepEqual(
    snapshot.services
      .get('db')
      ?.clusters[0].endpoints.map((one) => [one.key, one.weight, one.application?.ip]),
    [
      ['c/db', 1, '10.0.0.7'],
      ['d/db', 1, undefined],
    ],
  )
  assert.equal(problems.length, 3)
})

test('a service with too many instances keeps its last good ones', () => {
  const first = compile(input({}, service('db')), nothingCompiled)
  const endpoints = Array.from({ length: 5_001 }, (_, index) => endpoint(`n${index}/db`))
  const second = compile(input({}, service('db', { endpoints })), first)
  assert.equal(second.snapshot, first.snapshot)
  assert.match(second.problems[0]?.message ?? '', /5001 instances/)
  const third = compile(input({}, service('db')), second)
  assert.equal(third.snapshot, first.snapshot)
  assert.deepEqual(third.problems, [])
})

test('a broken service keeps its instances but not an address that another service has by now', () => {
  const first = compile(input({}, service('db', { virtualIps: ['240.0.0.1'] })), nothingCompiled)
  const endpoints = Array.from({ length: 5_001 }, (_, index) => endpoint(`n${index}/db`))
  const { snapshot } = compile(
    input({}, service('db', { endpoints }), service('web', { virtualIps: ['240.0.0.1'] })),
    first,
  )
  assert.deepEqual(snapshot.services.get('web')?.virtualIps, ['240.0.0.1'])
  assert.deepEqual(snapshot.services.get('db')?.virtualIps, [])
  assert.equal(snapshot.services.get('db')?.clusters[0].endpoints.length, 1)
})

test('a service that starts to run here becomes local though the catalog says nothing new', () => {
  const db = service('db', { endpoints: [endpoint('host-a/db')] })
  const first = compile(input({}, db), nothingCompiled)
  const second = compile(input({ localServices: [local('db')] }, db), first)
  assert.equal(first.snapshot.services.get('db')?.clusters[0].endpoints[0]?.local, false)
  assert.equal(second.snapshot.services.get('db')?.clusters[0].endpoints[0]?.local, true)
})

test('a service that no certificate can name is left out and named; the others stay', () => {
  const { snapshot, problems } = compile(input({}, service('a*'), service('db')), nothingCompiled)
  assert.deepEqual([...snapshot.services.keys()], ['db'])
  assert.deepEqual(
    problems.map((problem) => problem.service),
    ['a*'],
  )
})

test('one changed service leaves every other part its identity', () => {
  const policies = new Map([
    ['db', { destination: 'db', intentions: [], defaultPolicy: 'deny' as const }],
  ])
  const localServices = [local('db')]
  const first = compile(
    input({ localServices, policies }, service('db'), service('web')),
    nothingCompiled,
  )
  const second = compile(
    input(
      { localServices, policies: structuredClone(policies) },
      service('db'),
      service('web', { connectTimeoutMs: 1 }),
    ),
    first,
  )
  assert.equal(second.snapshot.version, first.snapshot.version + 1)
  assert.equal(second.snapshot.services.get('db'), first.snapshot.services.get('db'))
  assert.equal(second.snapshot.policies.get('db'), first.snapshot.policies.get('db'))
  assert.deepEqual(
    diffSnapshots(first.snapshot, second.snapshot).services.map((one) => one.name),
    ['web'],
  )
})

test('removed services and policies leave the snapshot', () => {
  const policies = new Map([
    ['db', { destination: 'db', intentions: [], defaultPolicy: 'deny' as const }],
  ])
  const first = compile(
    input({ localServices: [local('db')], policies }, service('db'), service('web')),
    nothingCompiled,
  )
  const second = compile(input({}, service('web')), first)
  const delta = diffSnapshots(first.snapshot, second.snapshot)
  assert.deepEqual(delta.removedServices, ['db'])
  assert.deepEqual(delta.removedPolicies, ['db'])
  assert.deepEqual(delta.services, [])
})

/** Records as any code makes them; structuredClone() turns null prototypes into plain ones. */
const plain = { noNullPrototype: true }
const name = fc.constantFrom('a', 'b', 'c', 'a*', 'UPPER', '')
const ip = fc.constantFrom('10.0.0.1', 'fd00::1', '0.0.0.0', '224.1.1.1', '::')
const anyNumber = fc.oneof(fc.integer(), fc.double())
const anyEndpoint = fc
  .record({
    node: fc.constantFrom('host-a', 'host-b'),
    service: name,
    datacenter: fc.constantFrom('', 'dc1', 'dc2'),
    priority: fc.constantFrom(0, 1, 2),
    id: name,
    tunnel: fc.record({ ip, port: anyNumber }, plain),
    application: fc.option(fc.record({ ip, port: anyNumber }, plain), { nil: undefined }),
    health: fc.constantFrom('passing' as const, 'warning' as const, 'critical' as const),
    weight: anyNumber,
  })
  .map((one): Endpoint => ({ ...one, key: `${one.node}/${one.id}`, local: false }))
const anyCluster = fc.record(
  {
    name: fc.constantFrom('x', 'y'),
    service: name,
    datacenter: fc.constantFrom('', 'dc2'),
    subset: fc.constantFrom(undefined, 'v1'),
    connectTimeoutMs: anyNumber,
    endpoints: fc.array(anyEndpoint, { maxLength: 5 }),
  },
  plain,
)
const anyRoute = fc.record(
  {
    match: fc.constant({ kind: 'any' as const }),
    clusters: fc.array(
      fc.record({ cluster: fc.constantFrom('x', 'y', 'gone'), weight: anyNumber }, plain),
    ),
  },
  plain,
)
const anyService = fc.record(
  {
    name,
    protocol: fc.string(),
    virtualIps: fc.array(fc.constantFrom('240.0.0.1', '240.0.0.2', 'fdc6::1')),
    routes: fc.array(anyRoute, { maxLength: 3 }),
    clusters: fc
      .tuple(anyCluster, fc.array(anyCluster, { maxLength: 2 }))
      .map(([first, others]): [Cluster, ...Cluster[]] => [first, ...others]),
    addresses: fc.array(
      fc.record(
        {
          ip,
          port: fc.constantFrom(80, 81, 0),
          node: fc.constantFrom('host-a', 'host-b'),
          since: fc.nat({ max: 3 }),
          goneSinceMs: fc.constant(1),
        },
        { ...plain, requiredKeys: ['ip', 'port', 'node', 'since'] },
      ),
      { maxLength: 4 },
    ),
  },
  plain,
)
const anyRule = fc
  .record({
    source: fc.constantFrom('a', 'b', '*'),
    destination: fc.constantFrom('a', 'b', '*'),
    action: fc.constantFrom('allow' as const, 'deny' as const, undefined),
  })
  .map((one): Intention => ({ ...one, precedence: precedenceOf(one.source, one.destination) }))
const anyInput = fc
  .record({
    localServices: fc.array(
      name.map((one) => local(one)),
      { maxLength: 3 },
    ),
    services: fc.array(anyService, { maxLength: 6 }),
    policies: fc.array(
      fc.record(
        {
          destination: name,
          intentions: fc.array(anyRule),
          defaultPolicy: fc.constantFrom('allow' as const, 'deny' as const),
        },
        plain,
      ),
      { maxLength: 4 },
    ),
  })
  .map(({ localServices, services, policies }) =>
    input(
      {
        localServices,
        policies: new Map(policies.map((one) => [one.destination, one])),
        virtualIps: (of) => (of === 'c' ? ['240.0.0.9'] : []),
      },
      ...services,
    ),
  )

test('the first cluster is the heaviest of the last route that matches everything, of equal ones the first', () => {
  const split = (...weights: readonly number[]) => ({
    match: { kind: 'any' as const },
    clusters: weights.map((weight, i) => ({ cluster: `v${i}`, weight })),
  })
  const [v0, v1, v2] = ['v0', 'v1', 'v2'].map((part) => ({
    ...service('db').clusters[0],
    name: part,
    subset: part,
  }))
  assert.ok(v0 !== undefined && v1 !== undefined && v2 !== undefined)
  const clusters = [v0, v1, v2] as const
  for (const [routes, order] of [
    [[split(10, 90, 0)], ['v1', 'v0', 'v2']],
    [[split(50, 50)], ['v0', 'v1', 'v2']],
    [
      [split(0, 0, 1), split(2, 2, 1)],
      ['v0', 'v1', 'v2'],
    ],
    [
      [split(1), split(0, 1, 2)],
      ['v2', 'v0', 'v1'],
    ],
    [[], ['v0', 'v1', 'v2']],
  ] as const) {
    const { snapshot } = compile(
      input({}, service('db', { routes, clusters: [...clusters] })),
      nothingCompiled,
    )
    const compiled = snapshot.services.get('db')
    assert.deepEqual(
      compiled?.clusters.map((cluster) => cluster.name),
      order,
    )
    assert.equal(compiled.clusters[0].datacenter, 'dc1')
    assert.equal(compiled.routes, routes)
  }
})

test('compile never throws, and equal input gives the same snapshot back', () => {
  fc.assert(
    fc.property(anyInput, (given) => {
      const first = compile(given, nothingCompiled)
      const again = compile(
        {
          ...given,
          catalogServices: structuredClone(given.catalogServices),
          policies: structuredClone(given.policies),
        },
        first,
      )
      assert.equal(again.snapshot, first.snapshot)
      assert.deepEqual(again.problems, first.problems)
    }),
    { numRuns: 500 },
  )
})

test('whatever changes, the delta leads from the old snapshot to the new one', () => {
  fc.assert(
    fc.property(fc.array(anyInput, { minLength: 2, maxLength: 4 }), (inputs) => {
      let last = nothingCompiled
      for (const given of inputs) {
        const next = compile(given, last)
        const delta = structuredClone(diffSnapshots(last.snapshot, next.snapshot))
        assert.deepEqual(applyDelta(last.snapshot, delta), next.snapshot)
        last = next
      }
    }),
    { numRuns: 300 },
  )
})

test('no virtual address ever belongs to two services', () => {
  fc.assert(
    fc.property(fc.array(anyInput, { minLength: 1, maxLength: 4 }), (inputs) => {
      let last = nothingCompiled
      for (const given of inputs) {
        last = compile(given, last)
        const ips = [...last.snapshot.services.values()].flatMap((one) => one.virtualIps)
        assert.equal(new Set(ips).size, ips.length)
      }
    }),
    { numRuns: 300 },
  )
})

test('whatever came before, a compile says the same as one from nothing, virtual addresses aside', () => {
  fc.assert(
    fc.property(anyInput, anyInput, (before, given) => {
      const warm = compile(given, compile(before, nothingCompiled)).snapshot
      const cold = compile(given, nothingCompiled).snapshot
      const withoutAddresses = (snapshot: typeof warm): unknown =>
        [...snapshot.services.values()].map((one) => ({ ...one, virtualIps: [] }))
      assert.deepEqual(withoutAddresses(warm), withoutAddresses(cold))
      assert.deepEqual(warm.policies, cold.policies)
    }),
    { numRuns: 300 },
  )
})

test('an instance of another service or datacenter is local only where this host runs it for real', () => {
  const at = (change: Partial<Endpoint>): boolean | undefined => {
    const source = service('old-db', { endpoints: [endpoint('host-a/db', change)] })
    const { snapshot } = compile(
      {
        ...input({ localServices: [local('db')] }),
        catalogServices: new Map([['old-db', source]]),
      },
      nothingCompiled,
    )
    return snapshot.services.get('old-db')?.clusters[0].endpoints[0]?.local
  }
  assert.equal(at({ service: 'db', datacenter: '' }), true, 'redirected to our own')
  assert.equal(at({ service: 'db', datacenter: 'dc1' }), true)
  assert.equal(at({ service: 'db', datacenter: 'dc2' }), false, 'a namesake of our node elsewhere')
  assert.equal(at({ service: 'other', datacenter: 'dc1' }), false)
})

test('instances come in the order of their priority, whatever order the catalog has', () => {
  const source = service('db', {
    endpoints: [
      endpoint('host-a/a', { service: 'db', priority: 2 }),
      endpoint('host-b/b', { service: 'db', priority: 0 }),
      endpoint('host-c/c', { service: 'db', priority: 1, datacenter: 'dc2' }),
    ],
  })
  const { snapshot } = compile(
    { ...input({}), catalogServices: new Map([['db', source]]) },
    nothingCompiled,
  )
  assert.deepEqual(
    snapshot.services.get('db')?.clusters[0].endpoints.map((one) => [one.id, one.datacenter]),
    [
      ['b', 'dc1'],
      ['c', 'dc2'],
      ['a', 'dc1'],
    ],
  )
})
