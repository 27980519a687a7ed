/**
 * Claims about src/controlplane/discovery/{watch-set,publisher}.ts, with a catalog whose answers the
 * test gives by hand, so that every order of answers can be had.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import type { CatalogPolicy } from '../../src/controlplane/catalog/catalog.ts'
import {
  type Discovery,
  type DiscoveryOptions,
  startDiscovery,
} from '../../src/controlplane/discovery/publisher.ts'
import { MAX_WATCHED_SERVICES, openWatchSet } from '../../src/controlplane/discovery/watch-set.ts'
import { MeshError } from '../../src/lib/errors.ts'
import { silentLog } from '../../src/lib/log.ts'
import {
  applyDelta,
  emptySnapshot,
  type Snapshot,
  type SnapshotDelta,
} from '../../src/model/snapshot.ts'
import { catalogService as service } from '../harness/builders.ts'
import { eventually } from '../harness/eventually.ts'
import { TestClock } from '../harness/test-clock.ts'
import { HandCatalog, localService as local } from './discovery-fixtures.ts'

/** Running discovery and everything that it published. */
function start(change: Partial<DiscoveryOptions>): {
  catalog: HandCatalog
  discovery: Discovery
  deltas: SnapshotDelta[]
  built: () => Snapshot
} {
  const catalog = new HandCatalog()
  const deltas: SnapshotDelta[] = []
  let built = emptySnapshot
  const discovery = startDiscovery(
    {
      catalog,
      datacenter: 'dc1',
      nodeName: 'host-a',
      localServices: [],
      mode: 'upstreams',
      virtualRanges: [],
      log: silentLog,
      ...change,
    },
    (delta, snapshot) => {
      deltas.push(delta)
      built = applyDelta(built, structuredClone(delta))
      assert.deepEqual(built, snapshot)
    },
  )
  return { catalog, discovery, deltas, built: () => built }
}

test('own services with a target and all upstreams are watched, each once', () => {
  const catalog = new HandCatalog()
  const set = openWatchSet({
    catalog,
    localServices: [
      local('web', ['db', 'cache']),
      local('api', ['db', 'web']),
      local('job', ['db'], false),
    ],
    mode: 'upstreams',
    onChange: () => undefined,
  })
  assert.deepEqual([...catalog.services.keys()], ['web', 'api', 'db', 'cache'])
  assert.equal(catalog.giveList, undefined)
  set[Symbol.dispose]()
  assert.equal(catalog.services.size, 0)
})

test('mode all follows the list of names: new ones are opened, gone ones closed, needed ones stay', () => {
  const catalog = new HandCatalog()
  let changes = 0
  const set = openWatchSet({
    catalog,
    localServices: [local('web', ['db'])],
    mode: 'all',
    onChange: () => {
      changes += 1
    },
  })
  assert.deepEqual(set.awaited(), ['the list of services', 'web', 'db'])
  catalog.giveNames(['x', 'y', 'db'])
  assert.deepEqual([...catalog.services.keys()].toSorted(), ['db', 'web', 'x', 'y'])
  for (const name of ['web', 'db', 'x']) catalog.give(service(name))
  assert.deepEqual(set.awaited(), ['y'])
  const before = changes
  catalog.giveNames(['y'])
  assert.ok(changes > before)
  assert.deepEqual([...catalog.services.keys()].toSorted(), ['db', 'web', 'y'])
  assert.deepEqual([...set.services.keys()].toSorted(), ['db', 'web'])
  set[Symbol.dispose]()
  assert.equal(catalog.services.size, 0)
  assert.equal(catalog.giveList, undefined)
})

test('an answer that was under way when its watch was closed is dropped', () => {
  const catalog = new HandCatalog()
  const set = openWatchSet({ catalog, localServices: [], mode: 'all', onChange: () => undefined })
  catalog.giveNames(['x'])
  catalog.giveNames([])
  catalog.everOpened.get('x')?.(service('x'))
  assert.equal(set.services.size, 0)
  set[Symbol.dispose]()
})

test('no more than the limit is followed; what is needed comes first and what is open stays', () => {
  const catalog = new HandCatalog()
  const set = openWatchSet({
    catalog,
    localServices: [local('zz-own', ['zz-upstream'])],
    mode: 'all',
    onChange: () => undefined,
  })
  const listed = Array.from({ length: MAX_WATCHED_SERVICES + 5 }, (_, index) => `m-${index}`)
  catalog.giveNames(listed)
  assert.equal(catalog.services.size, MAX_WATCHED_SERVICES)
  assert.ok(catalog.services.has('zz-own') && catalog.services.has('zz-upstream'))
  assert.match(set.problems()[0]?.message ?? '', /^7 services are not followed/)
  const open = new Set(catalog.services.keys())
  catalog.giveNames(['a-newcomer', ...listed])
  assert.deepEqual(new Set(catalog.services.keys()), open)
  catalog.giveNames(listed.slice(0, 10))
  assert.deepEqual(set.problems(), [])
  set[Symbol.dispose]()
})

test('services that are gone are followed last: they cost no service of the mesh its place', () => {
  const catalog = new HandCatalog()
  const set = openWatchSet({ catalog, localServices: [], mode: 'all', onChange: () => undefined })
  const gone = ['a-1', 'a-2'].map((name) => ({ name, virtualIps: [], goneSinceMs: 1 }))
  const listed = Array.from({ length: MAX_WATCHED_SERVICES - 1 }, (_, index) => ({
    name: `m-${index}`,
    virtualIps: [],
  }))
  catalog.giveList?.([...gone, ...listed])
  assert.equal(catalog.services.size, MAX_WATCHED_SERVICES)
  assert.ok(listed.every(({ name }) => catalog.services.has(name)))
  assert.ok(catalog.services.has('a-1'))
  set[Symbol.dispose]()
})

test('many answers at once become one snapshot', async () => {
  const upstreams = Array.from({ length: 50 }, (_, index) => `s-${index}`)
  const { catalog, discovery, deltas } = start({ localServices: [local('web', upstreams)] })
  await using _ = discovery
  for (const name of upstreams) catalog.give(service(name))
  catalog.give(service('web'))
  catalog.givePolicies([{ destination: 'web', intentions: [], defaultPolicy: 'deny' }])
  assert.deepEqual(deltas, [])
  await eventually(() => assert.equal(deltas.length, 1))
  assert.equal(discovery.current().services.size, 51)
  assert.deepEqual(discovery.awaited(), [])
})

test('a change of one service publishes that service alone', async () => {
  const { catalog, discovery, deltas, built } = start({
    localServices: [local('web', ['db', 'cache'])],
  })
  await using _ = discovery
  for (const name of ['web', 'db', 'cache']) catalog.give(service(name))
  await eventually(() => assert.equal(deltas.length, 1))
  catalog.give(service('db', { connectTimeoutMs: 7 }))
  await eventually(() => assert.equal(deltas.length, 2))
  assert.deepEqual(
    deltas[1]?.services.map((one) => one.name),
    ['db'],
  )
  assert.deepEqual(built(), discovery.current())
})

test('an answer that changes nothing is not published', async () => {
  const { catalog, discovery, deltas } = start({ localServices: [local('web')] })
  await using _ = discovery
  catalog.give(service('web'))
  await eventually(() => assert.equal(deltas.length, 1))
  catalog.give(service('web'))
  // One that starts later publishes: by then the first one would have too.
  const witness = start({ localServices: [local('web')] })
  await using __ = witness.discovery
  witness.catalog.give(service('web'))
  await eventually(() => assert.equal(witness.deltas.length, 1))
  assert.equal(deltas.length, 1)
})

test('a host that needs to know nothing gets an empty first snapshot', async () => {
  const { discovery, deltas } = start({ localServices: [] })
  await using _ = discovery
  await eventually(() => assert.equal(deltas.length, 1))
  assert.equal(discovery.current().datacenter, 'dc1')
  assert.equal(discovery.current().services.size, 0)
})

test('policies are asked for once for each service that we deliver to', async () => {
  const { catalog, discovery } = start({
    localServices: [local('web'), { ...local('web'), id: 'web-2' }, local('job', [], false)],
  })
  assert.deepEqual(catalog.policyDestinations, ['web'])
  assert.deepEqual(discovery.awaited(), ['web', 'policies'])
  await discovery[Symbol.asyncDispose]()
})

test('a destination that a later answer leaves out keeps its rules', async () => {
  const { catalog, discovery, deltas } = start({ localServices: [local('web'), local('db')] })
  await using _ = discovery
  const rules = (destination: string, defaultPolicy: 'allow' | 'deny'): CatalogPolicy => ({
    destination,
    intentions: [],
    defaultPolicy,
  })
  catalog.givePolicies([rules('web', 'deny'), rules('db', 'deny')])
  await eventually(() => assert.equal(deltas.length, 1))
  catalog.givePolicies([rules('web', 'allow')])
  await eventually(() => assert.equal(deltas.length, 2))
  assert.equal(discovery.current().policies.get('web')?.defaultPolicy, 'allow')
  assert.equal(discovery.current().policies.get('db')?.defaultPolicy, 'deny')
})

test('services without a virtual address get ours, of each range; those of the catalog keep theirs', async () => {
  const { catalog, discovery, deltas } = start({
    localServices: [local('web', ['db'])],
    virtualRanges: ['10.99.0.0/24', 'fd00::/64'],
  })
  await using _ = discovery
  catalog.give(service('db', { virtualIps: ['240.0.0.9'] }))
  catalog.give(service('web'))
  await eventually(() => assert.equal(deltas.length, 1))
  const [first = '', second = ''] = discovery.current().services.get('web')?.virtualIps ?? []
  assert.match(first, /^10\.99\.0\.\d+$/)
  assert.match(second, /^fd00::/)
  assert.deepEqual(discovery.current().services.get('db')?.virtualIps, ['240.0.0.9'])
  assert.deepEqual(discovery.virtualAddresses().get('web'), [first, second])
})

test('assignments of an earlier run hold, also against a service that answers first', async () => {
  const { catalog, discovery, deltas } = start({
    localServices: [local('web', ['db'])],
    virtualRanges: ['10.99.0.0/29'],
    virtualAddresses: new Map([
      ['web', ['10.99.0.3']],
      ['gone', ['10.99.0.4']],
    ]),
  })
  await using _ = discovery
  catalog.give(service('db'))
  await eventually(() => assert.equal(deltas.length, 1))
  const [db] = discovery.current().services.get('db')?.virtualIps ?? []
  assert.ok(db !== undefined && db !== '10.99.0.3' && db !== '10.99.0.4')
  catalog.give(service('web'))
  await eventually(() => assert.equal(deltas.length, 2))
  assert.deepEqual(discovery.current().services.get('web')?.virtualIps, ['10.99.0.3'])
  assert.deepEqual(discovery.current().services.get('db')?.virtualIps, [db])
})

test('a service that leaves and comes back has the address it had', async () => {
  const { catalog, discovery, deltas } = start({ mode: 'all', virtualRanges: ['10.99.0.0/28'] })
  await using _ = discovery
  catalog.giveNames(['a', 'b'])
  catalog.give(service('a'))
  catalog.give(service('b'))
  await eventually(() => assert.equal(deltas.length, 1))
  const before = discovery.current().services.get('a')?.virtualIps
  catalog.giveNames(['b'])
  await eventually(() => assert.deepEqual(deltas.at(-1)?.removedServices, ['a']))
  catalog.giveNames(['a', 'b'])
  catalog.give(service('a'))
  await eventually(() => assert.ok(discovery.current().services.has('a')))
  assert.deepEqual(discovery.current().services.get('a')?.virtualIps, before)
})

test('a full range is a problem that says so', async () => {
  const { catalog, discovery, deltas } = start({
    localServices: [local('a', ['b', 'c'])],
    virtualRanges: ['10.99.0.0/30'],
  })
  await using _ = discovery
  for (const name of ['a', 'b', 'c']) catalog.give(service(name))
  await eventually(() => assert.equal(deltas.length, 1))
  assert.match(
    discovery.problems()[0]?.message ?? '',
    /^No virtual address of each kind for [abc]: one of 10\.99\.0\.0\/30 is full$/,
  )
})

test('a range that is none is refused before anything is watched', () => {
  assert.throws(
    () => start({ localServices: [local('a')], virtualRanges: ['240.0.0.0/40'] }),
    (thrown) => thrown instanceof MeshError && thrown.code === 'HM_VIRTUAL_RANGE_INVALID',
  )
})

test('a problem of a service is reported while it lasts', async () => {
  const { catalog, discovery, deltas } = start({ localServices: [local('web', ['db'])] })
  await using _ = discovery
  catalog.give(service('db', { connectTimeoutMs: -1 }))
  await eventually(() => assert.equal(deltas.length, 1))
  assert.match(discovery.problems()[0]?.message ?? '', /db has no usable connect timeout/)
  catalog.give(service('db', { connectTimeoutMs: 9 }))
  await eventually(() => assert.equal(deltas.length, 2))
  assert.deepEqual(discovery.problems(), [])
})

test('nothing is published after disposal, and no watch is left open', async () => {
  const first = start({ mode: 'all', localServices: [local('web')] })
  first.catalog.give(service('web'))
  await first.discovery[Symbol.asyncDispose]()
  assert.equal(first.catalog.services.size, 0)
  assert.equal(first.catalog.giveList, undefined)
  assert.equal(first.catalog.policyDestinations, undefined)
  first.catalog.everOpened.get('web')?.(service('web', { connectTimeoutMs: 3 }))
  // Another discovery that starts later publishes: by then the first one would have.
  const second = start({ localServices: [local('web')] })
  await using _ = second.discovery
  second.catalog.give(service('web'))
  await eventually(() => assert.equal(second.deltas.length, 1))
  assert.deepEqual(first.deltas, [])
  assert.equal(first.discovery.current(), emptySnapshot)
})

test('a service of this host that the catalog does not serve is a problem when it has lasted', async () => {
  const clock = new TestClock()
  const { catalog, discovery } = start({ localServices: [local('db')], clock })
  await using _ = discovery
  catalog.give(service('db'))
  await eventually(() => assert.ok(discovery.current().services.has('db')))
  assert.deepEqual(discovery.problems(), [], 'it may be registering')
  clock.pass(14_000)
  assert.deepEqual(discovery.problems(), [])
  clock.pass(1_000)
  assert.match(
    discovery.problems().join(),
    /db of this host is not in the catalog with Node host-a/,
  )
})

test('an instance that no proxy serves is named where it is refused: captured, and on another host', async () => {
  const at = (node: string, ip: string) => ({ ip, port: 5432, node, since: 1 })
  const addresses = [at('host-a', '10.0.0.1'), at('host-b', '10.0.0.2')]
  const { catalog, discovery } = start({ localServices: [local('db')] })
  await using _ = discovery
  catalog.give({ ...service('db'), addresses })
  await eventually(() => assert.ok(discovery.current().services.has('db')))
  assert.match(discovery.warnings().join(), /No proxy serves db at 10\.0\.0\.2:5432: /)
  const off = start({ localServices: [local('db')], isCapturing: false })
  await using _off = off.discovery
  off.catalog.give({ ...service('db'), addresses })
  await eventually(() => assert.ok(off.discovery.current().services.has('db')))
  assert.deepEqual(off.discovery.warnings(), [])
})
