/**
 * From a discovery chain to targets: by reference only, on the answers of a real Consul 1.8.7 and in the four-part
 * spelling of newer ones.
 */
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { assert as check, jsonValue, property } from 'fast-check'
import {
  decodeChain,
  defaultChain,
  MAX_TARGETS,
} from '../../src/controlplane/catalog/consul/discovery-chain.ts'
import { errorCode } from '../../src/lib/errors.ts'
import type { Route } from '../../src/model/route.ts'

const SUFFIX = 'internal.ba23d348-d165-abd5-ee24-68d8a5ee095e.consul'

/** A target as Consul 1.8.7 wrote it. */
function target(id: string, parts: Record<string, unknown> = {}): Record<string, unknown> {
  const [datacenter = '', namespace = '', service = ''] = id.split('.').toReversed()
  return {
    ID: id,
    Service: service,
    Namespace: namespace,
    Datacenter: datacenter,
    MeshGateway: {},
    Subset: {},
    SNI: `${id}.${SUFFIX}`,
    Name: `${id}.${SUFFIX}`,
    ...parts,
  }
}

/** `/v1/discovery-chain/api` of a Consul 1.8.7 with a router, a splitter and resolvers with failover. */
function apiChain(): Record<string, unknown> {
  const failover = { Targets: ['api-backup.default.dc2'] }
  const resolver = (id: string, rest: object = {}): object => ({
    Type: 'resolver',
    Name: id,
    Resolver: { ConnectTimeout: '5s', Target: id, ...rest },
  })
  return {
    ServiceName: 'api',
    Namespace: 'default',
    Datacenter: 'dc1',
    Protocol: 'http',
    StartNode: 'router:api.default',
    Nodes: {
      'resolver:admin.default.dc1': resolver('admin.default.dc1', { Default: true }),
      'resolver:api-backup.default.dc1': resolver('api-backup.default.dc1', { Default: true }),
      'resolver:v1.api.default.dc1': resolver('v1.api.default.dc1', {
        ConnectTimeout: '7s',
        Failover: failover,
      }),
      'resolver:v2.api.default.dc1': resolver('v2.api.default.dc1', {
        ConnectTimeout: '7s',
        Failover: failover,
      }),
      'router:api.default': {
        Type: 'router',
        Name: 'api.default',
        Routes: [
          {
            Definition: { Match: { HTTP: { PathPrefix: '/admin' } } },
            NextNode: 'resolver:admin.default.dc1',
          },
          {
            Definition: { Match: { HTTP: { PathExact: '/ping' } } },
            NextNode: 'resolver:api-backup.default.dc1',
          },
          {
            Definition: { Match: { HTTP: { PathPrefix: '/' } } },
            NextNode: 'splitter:api.default',
          },
        ],
      },
      'splitter:api.default': {
        Type: 'splitter',
        Name: 'api.default',
        Splits: [
          { Weight: 10, NextNode: 'resolver:v2.api.default.dc1' },
          { Weight: 90, NextNode: 'resolver:v1.api.default.dc1' },
        ],
      },
    },
    Targets: {
      'admin.default.dc1': target('admin.default.dc1'),
      'api-backup.default.dc1': target('api-backup.default.dc1'),
      'api-backup.default.dc2': target('api-backup.default.dc2', { MeshGateway: { Mode: 'none' } }),
      'v1.api.default.dc1': target('v1.api.default.dc1', {
        ServiceSubset: 'v1',
        Subset: { Filter: 'Service.Meta.version == v1', OnlyPassing: true },
      }),
      'v2.api.default.dc1': target('v2.api.default.dc1', {
        ServiceSubset: 'v2',
        Subset: { Filter: 'Service.Meta.version == v2' },
      }),
    },
  }
}

/** A chain of one resolver, with names that say nothing. */
function resolved(parts: {
  resolver?: Record<string, unknown>
  targets?: Record<string, Record<string, unknown>>
  datacenter?: string
}): unknown {
  return {
    Chain: {
      Datacenter: parts.datacenter ?? 'dc1',
      Protocol: 'tcp',
      StartNode: 'n1',
      Nodes: { n1: { Type: 'resolver', Resolver: { Target: 't1', ...parts.resolver } } },
      Targets: parts.targets ?? { t1: target('db.default.dc1') },
    },
  }
}

describe('a discovery chain', () => {
  test('is told with every split of the route that catches everything, the heaviest first', () => {
    const backup = {
      service: 'api-backup',
      datacenter: 'dc2',
      isRemote: true,
      subset: undefined,
      filter: undefined,
      onlyPassing: false,
    }
    const version = (subset: string, onlyPassing: boolean): object => ({
      name: `api:${subset}`,
      service: 'api',
      datacenter: 'dc1',
      subset,
      connectTimeoutMs: 7_000,
      targets: [
        {
          service: 'api',
          datacenter: 'dc1',
          isRemote: false,
          subset,
          filter: `Service.Meta.version == ${subset}`,
          onlyPassing,
        },
        backup,
      ],
    })
    assert.deepEqual(decodeChain('api', { Chain: apiChain() }), {
      protocol: 'http',
      routes: [
        {
          match: { kind: 'any' },
          clusters: [
            { cluster: 'api:v2', weight: 10 },
            { cluster: 'api:v1', weight: 90 },
          ],
        },
      ],
      clusters: [version('v1', true), version('v2', false)],
      problems: [],
    })
  })

  test('is told with every route that matches everything, however Consul writes that', () => {
    const everything = [
      {},
      { Definition: {} },
      { Definition: { Match: { HTTP: null } } },
      {
        Definition: { Match: { HTTP: { PathPrefix: '/', Header: null, CaseInsensitive: false } } },
      },
    ]
    const something = [
      { PathPrefix: '/x' },
      { PathPrefix: '/', Methods: ['GET'] },
      { Header: [{ Name: 'x', Present: true }] },
      { PathExact: '/', PathPrefix: '/' },
      { Unknown: 1 },
      'odd',
    ].map((HTTP) => ({ Definition: { Match: { HTTP } } }))
    const routesWith = (route: object): readonly Route[] => {
      const chain = JSON.parse(JSON.stringify(apiChain())) as {
        Nodes: { 'router:api.default': { Routes: object[] } }
      }
      chain.Nodes['router:api.default'].Routes[0] = {
        ...route,
        NextNode: 'resolver:admin.default.dc1',
      }
      return decodeChain('api', { Chain: chain }).routes
    }
    for (const route of everything)
      assert.deepEqual(
        routesWith(route).map(({ clusters }) => clusters.map(({ cluster }) => cluster)),
        [['admin'], ['api:v2', 'api:v1']],
        JSON.stringify(route),
      )
    for (const route of something) assert.equal(routesWith(route).length, 1, JSON.stringify(route))
  })

  test('goes without a split that is not usable or has no room, and says nothing: no byte went there', () => {
    const resolver = (Target: string, Targets: readonly string[] = []): object => ({
      Type: 'resolver',
      Resolver: { Target, Failover: { Targets } },
    })
    const split = (Weight: number, NextNode: string): object => ({ Weight, NextNode })
    const chain = (...Splits: readonly object[]): unknown => ({
      Chain: {
        Datacenter: 'dc1',
        StartNode: 's',
        Nodes: {
          s: { Type: 'splitter', Splits },
          far: resolver('far', ['db', 'db', 'db', 'db']),
          more: resolver('more', ['db', 'db', 'db']),
          db: resolver('db'),
          same: resolver('db'),
          team: resolver('team'),
          odd: resolver('odd'),
        },
        Targets: {
          far: target('db.default.dc2', { MeshGateway: { Mode: 'local' } }),
          more: target('db.default.dc3'),
          db: target('db.default.dc1'),
          team: target('db.team.dc1', { Namespace: 'team' }),
          odd: target('db.default.dc1', { ServiceSubset: 'V 1', Subset: {} }),
        },
      },
    })
    const told = (...splits: readonly object[]): readonly string[] => {
      const { routes, clusters, problems } = decodeChain('db', chain(...splits))
      assert.deepEqual(problems, [])
      assert.ok(clusters.flatMap(({ targets }) => targets).length <= MAX_TARGETS)
      return [
        clusters.map((cluster) => cluster.name).join(' '),
        ...(routes[0]?.clusters.map(({ cluster, weight }) => `${cluster} ${weight}`) ?? []),
      ]
    }
    assert.deepEqual(told(split(1, 'gone'), split(1, 'team'), split(1, 'odd'), split(9, 'db')), [
      'db',
      'db 9',
    ])
    assert.deepEqual(told(split(5, 'db'), split(3, 'far'), split(2, 'more')), [
      'db dc2/db',
      'db 5',
      'dc2/db 3',
    ])
    assert.deepEqual(
      told(split(5, 'db'), split(3, 'same'), split(Number.POSITIVE_INFINITY, 'more')),
      ['db dc3/db', 'db 5', 'db 3', 'dc3/db 0'],
    )
  })

  test('of a redirect leads to the other service', () => {
    const chain = {
      ...apiChain(),
      StartNode: 'resolver:v2.api.default.dc1',
      ServiceName: 'old-api',
    }
    const decoded = decodeChain('old-api', { Chain: chain })
    assert.deepEqual(
      decoded.clusters[0].targets.map(({ service, datacenter }) => `${service} ${datacenter}`),
      ['api dc1', 'api-backup dc2'],
    )
  })

  test('reads the same whatever its names look like', () => {
    const fourParts = JSON.stringify(apiChain()).replaceAll(
      /((?:router|splitter|resolver):)?((?:v[12]\.)?(?:api-backup|api|admin))\.default(\.dc\d)?"/g,
      (_all, kind: string = '', service: string, dc: string = '') =>
        `${kind}${service}.default.default${dc}"`,
    )
    assert.match(fourParts, /"v1\.api\.default\.default\.dc1"/)
    assert.deepEqual(
      decodeChain('api', { Chain: JSON.parse(fourParts) }),
      decodeChain('api', { Chain: apiChain() }),
    )
    const opaque = JSON.stringify(apiChain()).replaceAll(
      /"((router|splitter|resolver):[^"]+)"/g,
      (_all, name: string) => JSON.stringify(`#${Buffer.from(name).toString('hex')}`),
    )
    assert.deepEqual(
      decodeChain('api', { Chain: JSON.parse(opaque) }),
      decodeChain('api', { Chain: apiChain() }),
    )
  })

  test('that goes in a circle, or leads nowhere, is refused with the reason', () => {
    const split = (next: unknown): object => ({ Type: 'splitter', Splits: [{ NextNode: next }] })
    const refused: [RegExp, Record<string, unknown>][] = [
      [/comes back/, { a: split('b'), b: split('a') }],
      [/comes back/, { a: split('a') }],
      [/does not have/, { a: split('gone') }],
      [/does not have/, { a: split('__proto__') }],
      [/ends before/, { a: split(undefined) }],
      [/ends before/, { a: { Type: 'router', Routes: [] } }],
      [/type "gateway"/, { a: { Type: 'gateway' } }],
      [/no resolver/, { a: { Type: 'resolver' } }],
      [/target "t9"/, { a: { Type: 'resolver', Resolver: { Target: 't9' } } }],
      [
        /steps/,
        Object.fromEntries(
          Array.from({ length: 40 }, (_, i) => [i === 0 ? 'a' : `n${i}`, split(`n${i + 1}`)]),
        ),
      ],
    ]
    for (const [why, Nodes] of refused)
      assert.throws(
        () =>
          decodeChain('db', { Chain: { Datacenter: 'dc1', StartNode: 'a', Nodes, Targets: {} } }),
        { code: 'HM_CONSUL_CHAIN_UNUSABLE', message: why },
      )
  })

  test('without a start means the service itself, as tcp and with five seconds unless it says otherwise', () => {
    assert.deepEqual(decodeChain('db', { Chain: {} }, 'dc1'), defaultChain('db', 'dc1'))
    assert.equal(decodeChain('db', { Chain: { Protocol: 'http' } }).protocol, 'http')
    assert.equal(decodeChain('db', { Chain: { Protocol: 'HT\nTP' } }).protocol, 'tcp')
    assert.throws(() => decodeChain('db', {}), { code: 'HM_CONSUL_ANSWER_MALFORMED' })
  })

  test('with a timeout of zero, or of a day, gets one that works', () => {
    const timeout = (ConnectTimeout: unknown): number =>
      decodeChain('db', resolved({ resolver: { ConnectTimeout } })).clusters[0].connectTimeoutMs
    assert.equal(timeout('250ms'), 250)
    assert.equal(timeout('0s'), 5_000)
    assert.equal(timeout('soon'), 5_000)
    assert.equal(timeout('24h'), 300_000)
  })

  test('into another namespace, partition or peer is refused as target and left out as failover', () => {
    for (const other of [{ Namespace: 'team' }, { Partition: 'p2' }, { Peer: 'east' }]) {
      const elsewhere = target('db.default.dc1', other)
      assert.throws(() => decodeChain('db', resolved({ targets: { t1: elsewhere } })), {
        code: 'HM_CONSUL_CHAIN_UNUSABLE',
      })
      const decoded = decodeChain(
        'db',
        resolved({
          resolver: { Failover: { Targets: ['t2'] } },
          targets: { t1: target('db.default.dc1'), t2: elsewhere },
        }),
      )
      assert.equal(decoded.clusters[0].targets.length, 1)
      assert.equal(decoded.problems.length, 1)
    }
  })

  test('that asks for a mesh gateway is followed directly, and says so', () => {
    const asks = (Mode: string): readonly string[] =>
      decodeChain(
        'db',
        resolved({ targets: { t1: target('db.default.dc2', { MeshGateway: { Mode } }) } }),
      ).problems
    assert.match(asks('local').join(), /gateway, which is not supported/)
    assert.match(asks('remote').join(), /gateway, which is not supported/)
    assert.deepEqual(asks('none'), [])
  })

  test('has a bounded number of targets', () => {
    const names = Array.from({ length: 50 }, (_, i) => `t${i + 1}`)
    const decoded = decodeChain(
      'db',
      resolved({
        resolver: { Failover: { Targets: names.slice(1) } },
        targets: Object.fromEntries(names.map((name) => [name, target('db.default.dc1')])),
      }),
    )
    assert.equal(decoded.clusters[0].targets.length, MAX_TARGETS)
    assert.equal(decoded.problems.length, 1)
  })

  test('never crashes the decoder, whatever JSON it is', () => {
    check(
      property(jsonValue({ maxDepth: 4 }), (value) => {
        for (const chain of [
          value,
          { StartNode: 'a', Nodes: value, Targets: value },
          { StartNode: 'a', Nodes: { a: value }, Targets: { a: value } },
          { StartNode: 'a', Nodes: { a: { Type: 'splitter', Splits: value } } },
          {
            StartNode: 'a',
            Nodes: { a: { Type: 'resolver', Resolver: { Target: 't' } } },
            Targets: { t: value },
          },
        ])
          try {
            decodeChain('db', { Chain: chain })
          } catch (error) {
            assert.match(errorCode(error), /^HM_CONSUL_/)
          }
      }),
      { seed: 5, numRuns: 500 },
    )
  })
})
