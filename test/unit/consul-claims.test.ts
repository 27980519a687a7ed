/**
 * Who may claim an address in Consul: what is read of instances and nodes, and which claims are accepted over time.
 */
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { setImmediate } from 'node:timers/promises'
import { DISPUTED, type InstanceAddress, YIELDING } from '../../src/controlplane/catalog/catalog.ts'
import { Claims, YIELD_MS } from '../../src/controlplane/catalog/consul/claims.ts'
import {
  decodeInstances,
  decodeNodeServices,
  type NodeService,
  type PlainInstance,
  placeEndpoints,
} from '../../src/controlplane/catalog/consul/instances.ts'
import { FORGET_MS } from '../../src/controlplane/catalog/known-addresses.ts'
import { TestClock } from '../harness/test-clock.ts'
import { endpoint } from './explain-fixtures.ts'

function entry(change: Record<string, unknown> = {}): Record<string, unknown> {
  return {
    Node: 'b',
    Address: '10.0.0.2',
    TaggedAddresses: { lan: '10.0.0.2', lan_ipv6: 'FD00::2', wan: '192.0.2.2' },
    ServiceKind: '',
    ServiceID: 'db',
    ServiceName: 'db',
    ServiceAddress: '',
    ServicePort: 5432,
    CreateIndex: 7,
    ModifyIndex: 9,
    ...change,
  }
}

describe('what Consul says of instances', () => {
  test('an instance listens at the address of its node, or at another that its node has', () => {
    for (const [given, ip] of [
      ['', '10.0.0.2'],
      ['10.0.0.2', '10.0.0.2'],
      ['fd00:0::2', 'fd00::2'],
      ['192.0.2.2', '192.0.2.2'],
    ]) {
      const { instances, problems } = decodeInstances('db', [entry({ ServiceAddress: given })])
      assert.deepEqual(instances, [
        {
          node: 'b',
          id: 'db',
          address: { ip, port: 5432 },
          since: 7,
          changed: 9,
          weights: undefined,
        },
      ])
      assert.deepEqual(problems, [])
    }
  })

  test('an address that its node does not have counts for nothing, and is named', () => {
    for (const ServiceAddress of [
      '10.0.0.9',
      '203.0.113.4',
      'db.example',
      '0.0.0.0',
      '240.0.0.7',
    ]) {
      const { instances, problems } = decodeInstances('db', [entry({ ServiceAddress })])
      assert.deepEqual(instances, [], ServiceAddress)
      assert.match(problems[0] ?? '', /instance "b"\/"db" of db are not captured/)
    }
  })

  test('no registration leads to the ports that a host stands on', () => {
    for (const ServicePort of [22, 53, 8300, 8500])
      assert.deepEqual(decodeInstances('db', [entry({ ServicePort })]).instances, [])
  })

  test('proxies and other services are no instances, whatever they say', () => {
    const others = [
      entry({ ServiceKind: 'connect-proxy', ServiceProxy: { DestinationServiceName: 'db' } }),
      entry({ ServiceName: 'evil' }),
    ]
    assert.deepEqual(decodeInstances('db', others), { instances: [], problems: [] })
  })

  test('an instance without a port has no address, and that is no fault', () => {
    assert.deepEqual(decodeInstances('db', [entry({ ServicePort: 0 })]), {
      instances: [],
      problems: [],
    })
  })

  test('in another datacenter the wan address of service or node counts', () => {
    const { instances } = decodeInstances('db', [entry()], { isRemote: true })
    assert.equal(instances[0]?.address.ip, '192.0.2.2')
  })

  test('hostile shapes are left out and never throw', () => {
    for (const broken of [null, 1, [], {}, entry({ Node: 7 }), entry({ ServicePort: 'x' })])
      assert.deepEqual(decodeInstances('db', [broken]).instances, [])
    assert.throws(() => decodeInstances('db', {}), { code: 'HM_CONSUL_ANSWER_MALFORMED' })
    for (const body of [null, [], { Services: null }, { Services: { a: null } }])
      assert.deepEqual(decodeNodeServices(body), [])
  })

  test("a proxy's own word on where its application listens counts for nothing", () => {
    const [plain] = decodeInstances('db', [entry()]).instances
    assert.ok(plain !== undefined)
    const honest = endpoint('db', 2, {
      node: 'b',
      id: 'db',
      application: { ip: '10.0.0.2', port: 5432 },
    })
    const liar = { ...honest, application: { ip: '203.0.113.4', port: 443 } }
    assert.deepEqual(placeEndpoints('db', [honest], [plain]), {
      endpoints: [honest],
      problems: [],
    })
    const placed = placeEndpoints('db', [liar], [plain])
    assert.deepEqual(placed.endpoints[0]?.application, { ip: '10.0.0.2', port: 5432 })
    assert.match(placed.problems[0] ?? '', /names 203\.0\.113\.4:443, where no instance of db/)
    const stranger = placeEndpoints('db', [{ ...liar, node: 'c' }], [plain])
    assert.equal(stranger.endpoints[0]?.application, undefined)
  })

  test('the weights of the instance count, those of the proxy where it has none of its own', () => {
    const weigh = (ServiceWeights: unknown, health: 'passing' | 'warning'): number | undefined => {
      const { instances } = decodeInstances('db', [entry({ ServiceWeights })])
      const one = endpoint('db', 2, { node: 'b', id: 'db', weight: 4, health })
      return placeEndpoints('db', [one], instances).endpoints[0]?.weight
    }
    assert.equal(weigh({ Passing: 10, Warning: 2 }, 'passing'), 10)
    assert.equal(weigh({ Passing: 10, Warning: 2 }, 'warning'), 2)
    assert.equal(weigh({ Passing: 1, Warning: 1 }, 'passing'), 4)
    assert.equal(weigh(undefined, 'passing'), 4)
  })
})

const ADDRESS = { ip: '10.0.0.2', port: 5432 }

function instance(since: number, change: Partial<PlainInstance> = {}): PlainInstance {
  const usual = { node: 'b', id: 'db', address: ADDRESS, weights: undefined }
  return { ...usual, since, changed: since, ...change }
}

function there(service: string, since: number, change: Partial<NodeService> = {}): NodeService {
  return { service, ip: undefined, port: 5432, since, changed: since, ...change }
}

/** The claims of `db`, with a node whose services a test gives, and a clock that it moves. */
function scene(onNode: () => readonly NodeService[], last: readonly InstanceAddress[] = []) {
  const clock = new TestClock({ wallMs: 1_000_000 })
  const asked: string[] = []
  const claims = new Claims('db', {
    clock,
    readNode: async (node) => {
      asked.push(node)
      return onNode()
    },
    last,
    onChange: () => undefined,
  })
  return {
    claims,
    asked,
    pass: (ms: number) => clock.pass(ms),
    take: async (...instances: PlainInstance[]) => {
      claims.take(instances)
      await setImmediate()
      return claims.accepted()
    },
  }
}

describe('which claims are accepted', () => {
  test('a claim is accepted when no other service was at the address before, and asked about once', async () => {
    const { claims, asked, take } = scene(() => [there('db', 7), there('evil', 9)])
    claims.take([instance(7)])
    assert.equal(claims.isSettled(), false)
    assert.deepEqual(await take(instance(7)), [{ ...ADDRESS, node: 'b', since: 7 }])
    assert.equal(claims.isSettled(), true)
    await take(instance(7))
    assert.deepEqual(asked, ['b'])
    claims[Symbol.dispose]()
  })

  test('a node that cannot be asked is named as long as it is not, and nothing is accepted from it', async () => {
    let answer: readonly NodeService[] | undefined
    const { claims, take } = scene(() => {
      if (answer === undefined) throw new Error('too long')
      return answer
    })
    assert.deepEqual(await take(instance(7)), [])
    assert.deepEqual(claims.warnings(), [
      'Cannot read what is registered on node b, so that calls to instances of db there are not captured: too long',
    ])
    answer = [there('db', 7)]
    assert.equal((await take(instance(7))).length, 1)
    assert.deepEqual(claims.warnings(), [])
    claims[Symbol.dispose]()
  })

  test('a claim to where another service was registered before is refused and named, mesh or not', async () => {
    for (const ip of [undefined, ADDRESS.ip]) {
      const { claims, take } = scene(() => [there('db', 7), there('legacy', 3, { ip })])
      assert.deepEqual(await take(instance(7)), [])
      assert.equal(claims.isSettled(), true)
      assert.match(claims.warnings()[0] ?? '', /claims 10\.0\.0\.2:5432, where service legacy/)
      claims[Symbol.dispose]()
    }
  })

  test('one that was registered before and has been changed since may have come to the port later: disputed, and named', async () => {
    for (const [mine, rival] of [
      [instance(7), there('evil', 3, { changed: 12 })],
      [instance(3, { changed: 12 }), there('evil', 7)],
      [instance(3, { changed: 9 }), there('evil', 7, { changed: 12 })],
    ] as const) {
      const { claims, take } = scene(() => [there('db', mine.since), rival])
      assert.deepEqual(await take(mine), [{ ...ADDRESS, node: 'b', since: DISPUTED }])
      assert.equal(claims.isSettled(), true)
      assert.match(claims.warnings()[0] ?? '', /where service evil is registered, too.*refused/)
      claims[Symbol.dispose]()
    }
  })

  test('what was changed before the other came was there before, and who comes to what is established is late', async () => {
    const before = scene(() => [there('db', 3), there('evil', 7, { changed: 12 })])
    assert.equal((await before.take(instance(3, { changed: 6 })))[0]?.since, 3)
    assert.deepEqual(before.claims.warnings(), [])
    before.claims[Symbol.dispose]()
    const last = [{ ...ADDRESS, node: 'b', since: 7 }]
    const established = scene(() => [there('db', 7), there('evil', 3, { changed: 12 })], last)
    assert.deepEqual(await established.take(instance(7)), last)
    established.claims[Symbol.dispose]()
  })

  test('a dispute is over when the other has gone', async () => {
    const rivals = [there('evil', 3, { changed: 12 })]
    const { claims, asked, take } = scene(() => [there('db', 7), ...rivals])
    await take(instance(7))
    rivals.pop()
    assert.deepEqual(await take(instance(7)), [{ ...ADDRESS, node: 'b', since: 7 }])
    assert.deepEqual(claims.warnings(), [])
    assert.equal(asked.length, 2)
    claims[Symbol.dispose]()
  })

  test('services at other ports and addresses of the node are no rivals', async () => {
    const others = [there('x', 1, { port: 80 }), there('y', 1, { ip: '10.0.0.3' })]
    const { claims, take } = scene(() => [there('db', 7), ...others])
    assert.equal((await take(instance(7))).length, 1)
    claims[Symbol.dispose]()
  })

  test('an answer that does not know the instance yet settles nothing', async () => {
    const { claims, take } = scene(() => [])
    assert.deepEqual(await take(instance(7)), [])
    assert.equal(claims.isSettled(), false)
    claims[Symbol.dispose]()
  })

  test('what an earlier run accepted is accepted at once, whichever service is there now', async () => {
    const last = [{ ...ADDRESS, node: 'b', since: 7 }]
    const { claims, asked, take } = scene(() => [there('evil', 8), there('db', 12)], last)
    assert.deepEqual(claims.accepted(), last)
    assert.deepEqual(await take(instance(12)), last, 'registered anew, but not a newcomer')
    assert.deepEqual(asked, [])
    claims[Symbol.dispose]()
  })

  test('an instance that is gone keeps its place for an hour, its address for three days', async () => {
    const { claims, take, pass } = scene(() => [there('db', 7)])
    await take(instance(7))
    const goneSinceMs = 1_000_000
    assert.deepEqual(await take(), [{ ...ADDRESS, node: 'b', since: 7, goneSinceMs }])
    pass(YIELD_MS - 1)
    assert.equal((await take())[0]?.since, 7)
    pass(1)
    assert.deepEqual(await take(), [{ ...ADDRESS, node: 'b', since: YIELDING, goneSinceMs }])
    pass(FORGET_MS)
    assert.deepEqual(await take(), [])
    claims[Symbol.dispose]()
  })

  test('back within the hour it is what it was, and later like a new one', async () => {
    const second = scene(() => [there('db', 20)], [{ ...ADDRESS, node: 'b', since: 7 }])
    await second.take()
    second.pass(60_000)
    assert.deepEqual(await second.take(instance(20)), [{ ...ADDRESS, node: 'b', since: 7 }])
    await second.take()
    second.pass(YIELD_MS)
    await second.take()
    assert.deepEqual(await second.take(instance(20)), [{ ...ADDRESS, node: 'b', since: 20 }])
    assert.deepEqual(second.asked, ['b'])
    second.claims[Symbol.dispose]()
  })

  test('back after the hour it stays of the mesh while it is asked whose the address is', async () => {
    const { claims, take, pass } = scene(() => [there('db', 20)])
    await take(instance(7))
    claims.take([])
    pass(YIELD_MS)
    claims.take([])
    claims.take([instance(20)])
    assert.equal(claims.isSettled(), false)
    assert.deepEqual(
      claims.accepted().map(({ ip, port, since }) => ({ ip, port, since })),
      [{ ...ADDRESS, since: YIELDING }],
    )
    assert.deepEqual(await take(instance(20)), [{ ...ADDRESS, node: 'b', since: 20 }])
    claims[Symbol.dispose]()
  })
})
