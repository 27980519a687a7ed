/**
 * Claims about what becomes of Consul's answers, good, odd and hostile.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { assert as check, jsonValue, property } from 'fast-check'
import { fingerprint } from '../../src/controlplane/catalog/consul/blocking-query.ts'
import {
  decodeConnect,
  decodeHealth,
  decodeServiceNames,
  MAX_INSTANCES,
  parseGoDuration,
} from '../../src/controlplane/catalog/consul/decode.ts'
import {
  decodeAgentSelf,
  decodeAgentServices,
} from '../../src/controlplane/catalog/consul/decode-agent.ts'
import { decodeIntentions } from '../../src/controlplane/catalog/consul/decode-intentions.ts'
import { isDoubtful } from '../../src/controlplane/catalog/consul/service-watch.ts'
import { errorCode } from '../../src/lib/errors.ts'

interface ProxyFields {
  readonly node?: unknown
  readonly nodeAddress?: unknown
  readonly id?: unknown
  readonly address?: unknown
  readonly port?: unknown
  readonly destinationId?: unknown
  readonly service?: Record<string, unknown>
  readonly checks?: unknown
}

/** One entry of `/v1/health/connect/db` as 1.8.7 writes it, with fields of the test's choice. */
function proxy(fields: ProxyFields = {}): unknown {
  return {
    Node: {
      Node: 'node' in fields ? fields.node : 'n1',
      Address: 'nodeAddress' in fields ? fields.nodeAddress : '10.0.0.1',
      Datacenter: 'dc1',
    },
    Service: {
      Kind: 'connect-proxy',
      ID: 'id' in fields ? fields.id : 'db-hostmesh',
      Service: 'db-hostmesh',
      Tags: [],
      Address: 'address' in fields ? fields.address : '',
      Meta: { 'hostmesh-proto': '1' },
      Port: 'port' in fields ? fields.port : 15_443,
      Weights: { Passing: 10, Warning: 2 },
      Proxy: {
        DestinationServiceName: 'db',
        DestinationServiceID: 'destinationId' in fields ? fields.destinationId : 'db',
        LocalServiceAddress: '127.0.0.1',
        LocalServicePort: 5_432,
      },
      ModifyIndex: 13,
      ...fields.service,
    },
    Checks: 'checks' in fields ? fields.checks : [{ CheckID: 'serfHealth', Status: 'passing' }],
  }
}

function decodeOne(fields: ProxyFields) {
  return decodeHealth('db', [proxy(fields)])
}

test('a proxy becomes the endpoint of the instance that it stands for', () => {
  const { endpoints, problems } = decodeHealth('db', [proxy()])
  assert.deepEqual(problems, [])
  assert.deepEqual(endpoints, [
    {
      key: 'n1/db',
      service: 'db',
      datacenter: 'dc1',
      priority: 0,
      id: 'db',
      node: 'n1',
      tunnel: { ip: '10.0.0.1', port: 15_443 },
      application: { ip: '10.0.0.1', port: 5_432 },
      health: 'passing',
      weight: 10,
      local: false,
    },
  ])
})

test("the service's own address goes before its node's", () => {
  assert.equal(decodeOne({ address: '10.9.9.9' }).endpoints[0]?.tunnel.ip, '10.9.9.9')
  assert.equal(decodeOne({ address: '::ffff:10.9.9.9' }).endpoints[0]?.tunnel.ip, '10.9.9.9')
})

test('without a destination ID the ID of the proxy names the instance', () => {
  assert.equal(decodeOne({ destinationId: '' }).endpoints[0]?.id, 'db-hostmesh')
  assert.equal(decodeOne({ destinationId: undefined }).endpoints[0]?.id, 'db-hostmesh')
})

test('a connect-native instance is its own tunnel and application', () => {
  const native = { Kind: undefined, Service: 'db', Connect: { Native: true }, Proxy: {} }
  const { endpoints } = decodeOne({ id: 'db-1', port: 7_000, service: native })
  assert.equal(endpoints[0]?.id, 'db-1')
  assert.deepEqual(endpoints[0]?.tunnel, { ip: '10.0.0.1', port: 7_000 })
  assert.deepEqual(endpoints[0]?.application, { ip: '10.0.0.1', port: 7_000 })
})

test('addresses that are no host of the mesh leave the instance out', () => {
  for (const address of [
    'db.example.com',
    '0.0.0.0',
    '::',
    '224.0.0.1',
    'ff02::1',
    'fe80::1%eth0',
    '10.0.0.1 ',
    '010.0.0.1',
    '10.0.0',
    7,
    {},
    ['10.0.0.1'],
  ]) {
    const { endpoints, problems } = decodeOne({ address })
    assert.deepEqual(endpoints, [], JSON.stringify(address))
    assert.match(problems[0] ?? '', /^Instance n1\/db-hostmesh of db is left out: /)
  }
  assert.deepEqual(decodeOne({ nodeAddress: '' }).endpoints, [])
})

test('loopback is accepted from this host only', () => {
  const body = [proxy({ address: '127.0.0.1' })]
  assert.equal(decodeHealth('db', body, { node: 'n1' }).endpoints.length, 1)
  assert.equal(decodeHealth('db', body, { node: 'n2' }).endpoints.length, 0)
})

test('ports that nothing can listen on leave the instance out', () => {
  for (const port of [0, -1, 65_536, '80', 80.5, null, undefined, Number.NaN, [80]])
    assert.deepEqual(decodeOne({ port }).endpoints, [], String(port))
  assert.equal(decodeOne({ port: 1e3 }).endpoints[0]?.tunnel.port, 1_000)
})

test('the worst of all checks is the health, and an unknown status is critical', () => {
  const health = (...statuses: unknown[]): string | undefined =>
    decodeOne({ checks: statuses.map((Status) => ({ Status })) }).endpoints[0]?.health
  assert.equal(health(), 'passing')
  assert.equal(health('passing', 'warning'), 'warning')
  assert.equal(health('critical', 'warning'), 'critical')
  assert.equal(health('maintenance'), 'critical')
  assert.equal(health(undefined), 'critical')
  assert.equal(decodeOne({ checks: null }).endpoints[0]?.health, 'passing')
  assert.equal(decodeOne({ checks: undefined }).endpoints[0]?.health, 'passing')
  assert.deepEqual(decodeOne({ checks: 'passing' }).endpoints, [])
})

test('a critical instance is kept, with its health', () => {
  assert.equal(decodeOne({ checks: [{ Status: 'critical' }] }).endpoints[0]?.health, 'critical')
})

test('weights follow the health and stay between 1 and 65535', () => {
  const weight = (Weights: unknown, Status = 'passing'): number | undefined =>
    decodeOne({ service: { Weights }, checks: [{ Status }] }).endpoints[0]?.weight
  assert.equal(weight({ Passing: 10, Warning: 2 }), 10)
  assert.equal(weight({ Passing: 10, Warning: 2 }, 'warning'), 2)
  assert.equal(weight({ Passing: 0 }), 1)
  assert.equal(weight({ Passing: -4 }), 1)
  assert.equal(weight({ Passing: 1e9 }), 65_535)
  assert.equal(weight({ Passing: '7' }), 1)
  assert.equal(weight(null), 1)
})

test('null for Tags and Meta is nothing', () => {
  assert.equal(decodeOne({ service: { Tags: null, Meta: null } }).endpoints.length, 1)
})

test('two proxies of one instance: the one that was modified last counts, and is named', () => {
  const body = [
    proxy({ port: 2, service: { ModifyIndex: 20 } }),
    proxy({ port: 1, service: { ModifyIndex: 10 } }),
  ]
  for (const order of [body, body.toReversed()]) {
    const { endpoints, problems } = decodeHealth('db', order)
    assert.deepEqual(
      endpoints.map((endpoint) => endpoint.tunnel.port),
      [2],
    )
    assert.match(problems.join(), /n1\/db/)
  }
})

test('two proxies of one instance: a sidecar that fails does not stand before one that is well', () => {
  const body = [
    proxy({ port: 2, service: { ModifyIndex: 20 }, checks: [{ Status: 'critical' }] }),
    proxy({ port: 1, service: { ModifyIndex: 10 } }),
  ]
  for (const order of [body, body.toReversed()])
    assert.deepEqual(
      decodeHealth('db', order).endpoints.map(({ tunnel, health }) => [tunnel.port, health]),
      [[1, 'passing']],
    )
})

test('a proxy of another service, a gateway, and a plain service are left out', () => {
  const other = { Proxy: { DestinationServiceName: 'web' } }
  assert.deepEqual(decodeOne({ service: other }).endpoints, [])
  assert.deepEqual(decodeOne({ service: { Kind: 'terminating-gateway' } }).endpoints, [])
  assert.deepEqual(decodeOne({ service: { Kind: undefined } }).endpoints, [])
})

test('IDs with control characters or of monstrous length leave the instance out', () => {
  for (const destinationId of ['a\0b', 'a\nb', 'x'.repeat(300), 7, {}])
    assert.deepEqual(decodeOne({ destinationId }).endpoints, [], JSON.stringify(destinationId))
  assert.deepEqual(decodeOne({ node: 'a/b' }).endpoints, [])
  assert.equal(decodeOne({ destinationId: '__proto__' }).endpoints[0]?.key, 'n1/__proto__')
})

test('one bad instance costs only itself', () => {
  const { endpoints, problems } = decodeHealth('db', [
    proxy({ node: 'n2', port: 0 }),
    null,
    'x',
    proxy(),
    {},
  ])
  assert.deepEqual(
    endpoints.map((endpoint) => endpoint.key),
    ['n1/db'],
  )
  assert.equal(problems.length, 4)
})

test('problems are named ten at a time and the rest counted', () => {
  const body = Array.from({ length: 500 }, () => proxy({ port: 0 }))
  const { problems } = decodeHealth('db', body)
  assert.equal(problems.length, 11)
  assert.equal(problems.at(-1), '490 more of the same kind')
})

test('answers of another shape are refused whole', () => {
  for (const body of [null, undefined, {}, '', 'rpc error', 7, true])
    assert.throws(
      () => decodeHealth('db', body),
      (error) => errorCode(error) === 'HM_CONSUL_ANSWER_MALFORMED',
    )
})

test('more instances than the limit refuse the answer', () => {
  const body = Array.from({ length: MAX_INSTANCES + 1 }, () => ({}))
  assert.throws(
    () => decodeHealth('db', body),
    (error) => errorCode(error) === 'HM_CONSUL_ANSWER_TOO_LARGE',
  )
})

test('an answer from another datacenter is refused', () => {
  assert.throws(
    () => decodeHealth('db', [proxy()], { datacenter: 'dc2' }),
    (error) => errorCode(error) === 'HM_CONSUL_DATACENTER_WRONG',
  )
})

test("Consul's virtual addresses are taken from 240.0.0.0/4 only", () => {
  const virtual = (Address: unknown): readonly string[] =>
    decodeOne({ service: { TaggedAddresses: { 'consul-virtual': { Address, Port: 1 } } } })
      .virtualIps
  assert.deepEqual(virtual('240.0.0.3'), ['240.0.0.3'])
  for (const address of [
    '10.0.0.5',
    '127.0.0.1',
    '255.255.255.255',
    '8.8.8.8',
    'x',
    7,
    null,
    '::1',
  ])
    assert.deepEqual(virtual(address), [], String(address))
})

test('decoders never crash, whatever JSON they are given', () => {
  check(
    property(jsonValue({ maxDepth: 4 }), (value) => {
      for (const act of [
        () => decodeHealth('db', value),
        () => decodeHealth('db', [value, { Node: value, Service: value, Checks: value }]),
        () => decodeIntentions(['db'], { db: [value] }),
        () => decodeAgentServices(value),
        () => decodeServiceNames(value),
        () => decodeAgentSelf(value),
        () => fingerprint(value),
      ])
        try {
          act()
        } catch (error) {
          assert.match(errorCode(error), /^HM_CONSUL_/)
        }
    }),
    { seed: 3, numRuns: 500 },
  )
})

test('Go durations are read as Go writes them', () => {
  assert.equal(parseGoDuration('1m30s'), 90_000)
  assert.equal(parseGoDuration('1.5s'), 1_500)
  assert.equal(parseGoDuration('250ms'), 250)
  assert.equal(parseGoDuration(5_000_000_000), 5_000)
  for (const value of ['', '5', '-5s', 's', null, {}, Number.NaN])
    assert.equal(parseGoDuration(value), undefined, JSON.stringify(value))
})

test('the default policy of an agent is allow when ACLs are off, else what it is set to', () => {
  const self = (DebugConfig: unknown): string | undefined =>
    decodeAgentSelf({ Config: { NodeName: 'n1', Datacenter: 'dc1' }, DebugConfig }).defaultPolicy
  assert.equal(self({ ACLsEnabled: false, ACLDefaultPolicy: 'deny' }), 'allow')
  assert.equal(self({ ACLsEnabled: true, ACLDefaultPolicy: 'deny' }), 'deny')
  assert.equal(self({ ACLsEnabled: true, ACLDefaultPolicy: 'extend-cache' }), undefined)
  assert.equal(self({}), undefined)
})

test('names that cannot be mesh services are not listed', () => {
  const names = decodeServiceNames({ db: [], 'Web*': [], consul: [], ü: [], ['x'.repeat(300)]: [] })
  assert.deepEqual(names, ['consul', 'db'])
})

test('order of tags and keys, version numbers and check output are no change', () => {
  const one = [{ Tags: ['a', 'b'], ModifyIndex: 1, Checks: [{ Status: 'passing', Output: 'x' }] }]
  const same = [{ Checks: [{ Output: 'y', Status: 'passing' }], Tags: ['b', 'a'], ModifyIndex: 9 }]
  const other = [{ Tags: ['a', 'b'], Checks: [{ Status: 'warning' }] }]
  assert.equal(fingerprint(one), fingerprint(same))
  assert.notEqual(fingerprint(one), fingerprint(other))
  assert.notEqual(fingerprint(undefined), fingerprint(null))
  assert.notEqual(fingerprint(['a,b']), fingerprint(['a', 'b']))
})

test('a sudden loss is doubted, an ordinary one is not', () => {
  const endpoints = (count: number) =>
    decodeHealth(
      'db',
      Array.from({ length: count }, (_, i) =>
        proxy({ node: `n${i}`, nodeAddress: `10.0.1.${i + 1}` }),
      ),
    ).endpoints
  assert.equal(isDoubtful(endpoints(1), []), true)
  assert.equal(isDoubtful(endpoints(10), endpoints(4)), true)
  assert.equal(isDoubtful(endpoints(10), endpoints(5)), false)
  assert.equal(isDoubtful(endpoints(3), endpoints(1)), false)
  assert.equal(isDoubtful([], []), false)
  assert.equal(isDoubtful(endpoints(3), endpoints(9)), false)
})

test('the address in a list is that of the service itself or of its proxy, of nothing else', () => {
  const tagged = { 'consul-virtual': { Address: '240.0.0.3', Port: 1 } }
  const ipsOf = (change: object): readonly string[] =>
    decodeConnect('db', [{ ServiceTaggedAddresses: tagged, ...change }]).virtualIps
  const proxyOf = (name: string): object => ({
    ServiceKind: 'connect-proxy',
    ServiceProxy: { DestinationServiceName: name },
  })
  const native = { ServiceName: 'db', ServiceKind: '', ServiceConnect: { Native: true } }
  assert.deepEqual(ipsOf(proxyOf('db')), ['240.0.0.3'])
  assert.deepEqual(ipsOf(native), ['240.0.0.3'])
  assert.deepEqual(ipsOf(proxyOf('web')), [])
  assert.deepEqual(ipsOf({ ...native, ServiceName: 'web' }), [])
  assert.deepEqual(ipsOf({ ...native, ServiceConnect: {} }), [])
  assert.deepEqual(ipsOf({ ...native, ServiceKind: 'terminating-gateway' }), [])
  for (const Address of ['10.0.0.1', '127.0.0.1', 'db', 7, null])
    assert.deepEqual(
      ipsOf({ ...native, ServiceTaggedAddresses: { 'consul-virtual': { Address } } }),
      [],
    )
})

test('who answers Connect at all is in the mesh, whatever the entry looks like', () => {
  assert.deepEqual(decodeConnect('db', [{}]), { isMesh: true, virtualIps: [] })
  assert.deepEqual(decodeConnect('db', []), { isMesh: false, virtualIps: [] })
  assert.throws(() => decodeConnect('db', null), /HM_CONSUL_ANSWER_MALFORMED|should have a list/)
})

test('the check that makes an instance critical is kept in one line, whatever it prints', () => {
  const checks = [
    { Name: 'Serf Health Status', Status: 'passing', Output: 'alive' },
    { Name: 'disk', Status: 'warning', Output: 'full soon' },
    {
      Name: 'port\u001b[2J',
      Status: 'critical',
      Output: 'dial tcp:\r\n\u202econnection refused\n',
    },
  ]
  const [key] = [...decodeHealth('db', [proxy({ checks })]).failing.keys()]
  const of = (list: unknown): string | undefined =>
    decodeHealth('db', [proxy({ checks: list })]).failing.get(key ?? '')
  assert.equal(of(checks), 'port [2J: dial tcp: connection refused')
  assert.equal(of(checks.slice(0, 2)), 'disk: full soon')
  assert.equal(of(checks.slice(0, 1)), undefined)
  assert.equal(of([{ CheckID: 'c1', Status: 'critical' }]), 'c1')
  const long = of([{ Name: 'x', Status: 'critical', Output: 'y'.repeat(100_000) }])
  assert.equal(long?.length, 'x: '.length + 201)
})
