/**
 * Claims about services that are followed from their first use on (src/controlplane/discovery), with a
 * catalog whose answers the test gives by hand and a clock that it moves.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { AddressBook } from '../../src/controlplane/discovery/address-book.ts'
import {
  type Discovery,
  type DiscoveryOptions,
  startDiscovery,
} from '../../src/controlplane/discovery/publisher.ts'
import { openWatchSet, type WatchSetOptions } from '../../src/controlplane/discovery/watch-set.ts'
import { silentLog } from '../../src/lib/log.ts'
import { parseCidr } from '../../src/model/cidr.ts'
import type { SnapshotDelta } from '../../src/model/snapshot.ts'
import { catalogService, endpoint } from '../harness/builders.ts'
import { eventually } from '../harness/eventually.ts'
import { TestClock } from '../harness/test-clock.ts'
import { HandCatalog, localService } from './discovery-fixtures.ts'

/** Waits for nothing: what is not known at once is unavailable. */
const AT_ONCE = 0
const LONG = 60_000

function openSet(change: Partial<WatchSetOptions> = {}): {
  catalog: HandCatalog
  set: ReturnType<typeof openWatchSet>
} {
  const catalog = new HandCatalog()
  const set = openWatchSet({
    catalog,
    localServices: [localService('web', ['cache'])],
    mode: 'on-demand',
    onChange: () => undefined,
    ...change,
  })
  return { catalog, set }
}

function start(change: Partial<DiscoveryOptions> = {}): {
  catalog: HandCatalog
  discovery: Discovery
  deltas: SnapshotDelta[]
} {
  const catalog = new HandCatalog()
  const deltas: SnapshotDelta[] = []
  const discovery = startDiscovery(
    {
      catalog,
      datacenter: 'dc1',
      nodeName: 'host-a',
      localServices: [],
      mode: 'on-demand',
      virtualRanges: ['10.99.0.0/16'],
      log: silentLog,
      ...change,
    },
    (delta) => deltas.push(delta),
  )
  return { catalog, discovery, deltas }
}

test('a service is followed from its first use on, and only if the mesh lists it', () => {
  const { catalog, set } = openSet()
  assert.equal(set.use('db'), 'undecided', 'the list has not come')
  catalog.giveNames(['db', 'queue'])
  assert.deepEqual([...catalog.services.keys()], ['web', 'cache'])
  assert.equal(set.use('nothing'), 'unknown')
  assert.equal(set.use('db'), 'followed')
  assert.equal(set.use('db'), 'followed')
  assert.deepEqual([...catalog.services.keys()], ['web', 'cache', 'db'])
  set[Symbol.dispose]()
  assert.equal(catalog.services.size, 0)
  assert.equal(catalog.giveList, undefined)
})

test('what somebody has just asked for does not make the host unready', () => {
  const { catalog, set } = openSet()
  assert.deepEqual(set.awaited(), ['web', 'cache'])
  catalog.giveNames(['db'])
  set.use('db')
  assert.deepEqual(set.awaited(), ['web', 'cache'])
  set[Symbol.dispose]()
})

test('in mode upstreams only what is declared is known, and nothing is listed', () => {
  const { catalog, set } = openSet({ mode: 'upstreams' })
  assert.equal(catalog.giveList, undefined)
  assert.equal(set.use('cache'), 'followed')
  assert.equal(set.use('db'), 'unknown')
  set[Symbol.dispose]()
})

test('a service that nobody has used for the idle time is let go; used, needed and connected ones stay', async () => {
  const clock = new TestClock()
  const lost: number[] = []
  const { catalog, set } = openSet({
    clock,
    idleMs: 150,
    onChange: () => lost.push(clock.monotonicMs()),
  })
  catalog.giveNames(['db', 'queue', 'mail'])
  for (const name of ['db', 'queue', 'mail']) {
    set.use(name)
    catalog.give(catalogService(name))
  }
  clock.pass(140)
  set.use('queue')
  set.touch('mail')
  clock.pass(20)
  await eventually(() => assert.ok(!catalog.services.has('db')))
  assert.deepEqual([...catalog.services.keys()], ['web', 'cache', 'queue', 'mail'])
  assert.deepEqual([...set.services.keys()], ['queue', 'mail'])
  clock.pass(130)
  await eventually(() => assert.deepEqual([...catalog.services.keys()], ['web', 'cache']))
  assert.equal(set.use('db'), 'followed', 'and is followed again')
  set[Symbol.dispose]()
})

test('of too many services the least recently used one is let go', () => {
  const { catalog, set } = openSet({ maxOnDemand: 3 })
  catalog.giveNames(['a', 'b', 'c', 'd', 'e'])
  for (const name of ['a', 'b', 'c']) set.use(name)
  set.touch('a')
  set.use('d')
  assert.deepEqual([...catalog.services.keys()], ['web', 'cache', 'a', 'c', 'd'])
  set.use('e')
  assert.deepEqual([...catalog.services.keys()], ['web', 'cache', 'a', 'd', 'e'])
  set[Symbol.dispose]()
})

test('asking for any number of names lets go of none that is connected to', () => {
  const { catalog, set } = openSet({ maxOnDemand: 3, localServices: [] })
  const names = Array.from({ length: 100 }, (_, i) => `s-${i}`)
  catalog.giveNames?.(['db', 'queue', ...names])
  set.use('db')
  set.touch('db')
  for (const name of names) assert.equal(set.use(name), 'followed')
  assert.deepEqual([...catalog.services.keys()], ['db', 's-98', 's-99'])
  for (const name of ['s-98', 's-99']) set.touch(name)
  assert.equal(set.use('queue'), 'followed')
  assert.deepEqual([...catalog.services.keys()], ['s-98', 's-99', 'queue'], 'then the oldest')
})

test('a service that is listed no more stays followed until its own watch says that it is gone', async () => {
  const { catalog, discovery } = start()
  await using _ = discovery
  catalog.giveNames(['db', 'mail'])
  const asked = discovery.lookup('db', LONG)
  catalog.give(catalogService('db', { endpoints: [endpoint('b/db')] }))
  assert.equal((await asked).kind, 'service')
  catalog.giveNames(['mail'])
  assert.equal((await discovery.lookup('db', AT_ONCE)).kind, 'service')
  catalog.give(catalogService('db'))
  await eventually(async () =>
    assert.equal((await discovery.lookup('db', AT_ONCE)).kind, 'unknown'),
  )
})

test('a lookup waits for the first answer, and is unavailable when that does not come in time', async () => {
  const { catalog, discovery } = start()
  await using _ = discovery
  assert.deepEqual(await discovery.lookup('db', AT_ONCE), { kind: 'unavailable' })
  const early = discovery.lookup('db', LONG)
  const missing = discovery.lookup('nothing', LONG)
  catalog.giveNames(['db', 'x.y'])
  assert.deepEqual(await missing, { kind: 'unknown', isParent: false })
  assert.deepEqual(await discovery.lookup('y', AT_ONCE), { kind: 'unknown', isParent: true })
  // The list alone has begun to follow it.
  catalog.give(catalogService('db'))
  const found = await early
  assert.ok(found.kind === 'service')
  assert.equal(found.service.name, 'db')
  assert.equal(found.service.virtualIps.length, 1)
})

test('lookups that still wait when discovery ends are unavailable', async () => {
  const { discovery } = start()
  const waiting = discovery.lookup('db', LONG)
  await discovery[Symbol.asyncDispose]()
  assert.deepEqual(await waiting, { kind: 'unavailable' })
})

test('the virtual address of a service that is listed but not followed leads to it', async () => {
  const { catalog, discovery } = start()
  await using _ = discovery
  catalog.giveNames(['db', 'queue'])
  const [ip = ''] = discovery.virtualAddresses().get('queue') ?? []
  discovery.wanted('10.99.0.0')
  assert.equal(catalog.services.size, 0)
  discovery.wanted(ip)
  assert.deepEqual([...catalog.services.keys()], ['queue'])
  catalog.give(catalogService('queue'))
  await eventually(() =>
    assert.deepEqual(discovery.current().services.get('queue')?.virtualIps, [ip]),
  )
})

test('addresses do not change when services are followed, let go, listed and delisted', async () => {
  const { catalog, discovery } = start({ onDemand: { maxOnDemand: 1 } })
  await using _ = discovery
  const names = Array.from({ length: 50 }, (__, index) => `s-${index}`)
  catalog.giveNames(names)
  const before = discovery.virtualAddresses()
  assert.equal(new Set([...before.values()].flat()).size, 50, 'each has its own')
  for (const name of names.slice(0, 10)) {
    void discovery.lookup(name, AT_ONCE)
    catalog.give(catalogService(name))
  }
  catalog.giveNames(names.slice(25))
  catalog.giveNames(names)
  await eventually(() => assert.ok(discovery.current().services.has('s-9')))
  assert.deepEqual(discovery.virtualAddresses(), before)
})

test("the catalog's address of a service leads to it after the service was let go", async () => {
  const { catalog, discovery } = start({ onDemand: { maxOnDemand: 1 } })
  await using _ = discovery
  catalog.giveNames(['db', 'queue'])
  void discovery.lookup('db', AT_ONCE)
  catalog.give(catalogService('db', { virtualIps: ['240.0.0.9'] }))
  await eventually(() => assert.ok(discovery.current().services.has('db')))
  void discovery.lookup('queue', AT_ONCE)
  assert.deepEqual([...catalog.services.keys()], ['queue'])
  discovery.wanted('240.0.0.9')
  assert.deepEqual([...catalog.services.keys()], ['db'])
})

test("the catalog's address of a service that was never followed leads to it, and is known at once", async () => {
  const { catalog, discovery } = start()
  await using _ = discovery
  catalog.giveList?.([
    { name: 'db', virtualIps: ['240.0.0.9'] },
    { name: 'queue', virtualIps: ['240.0.0.10'] },
    { name: 'plain', virtualIps: [] },
  ])
  discovery.wanted('240.0.0.9')
  assert.deepEqual([...catalog.services.keys()], ['db'])
  assert.deepEqual(await discovery.lookup('queue', AT_ONCE, 'addresses'), {
    kind: 'listed',
    virtualIps: ['240.0.0.10'],
  })
  assert.deepEqual([...catalog.services.keys()], ['db', 'queue'])
  assert.equal((await discovery.lookup('queue', AT_ONCE)).kind, 'unavailable')
  assert.equal((await discovery.lookup('plain', AT_ONCE, 'addresses')).kind, 'unavailable')
  catalog.give(catalogService('queue', { virtualIps: ['240.0.0.11'] }))
  await eventually(async () => {
    const found = await discovery.lookup('queue', AT_ONCE, 'addresses')
    assert.deepEqual(found.kind === 'service' && found.service.virtualIps, ['240.0.0.11'])
  })
})

test('a followed service without addresses of its own gets the one that the list brings', async () => {
  const { catalog, discovery, deltas } = start()
  await using _ = discovery
  catalog.giveNames(['db'])
  void discovery.lookup('db', AT_ONCE)
  catalog.give(catalogService('db'))
  await eventually(() => assert.equal(deltas.length, 1))
  catalog.giveList?.([{ name: 'db', virtualIps: ['240.0.0.9'] }])
  await eventually(() =>
    assert.deepEqual(discovery.current().services.get('db')?.virtualIps, ['240.0.0.9']),
  )
})

test('the list takes an address from nobody: not from a followed service, not from one that has ours', () => {
  const book = new AddressBook([parseCidr('10.99.0.0/24') ?? assert.fail()])
  const update = (followed: string[], list: Record<string, string[]>): void =>
    book.update(
      new Map(followed.map((name) => [name, catalogService(name, { virtualIps: ['240.0.0.1'] })])),
      new Map(Object.entries(list)),
    )
  update([], { db: [], web: ['240.0.0.1'], old: ['240.0.0.2'] })
  const [ours = ''] = book.of('db')
  assert.match(ours, /^10\.99\./)
  update([], { db: [], web: ['240.0.0.1'], old: ['240.0.0.2'], forger: [ours] })
  assert.equal(book.ownerOf(ours), 'db')
  update(['web'], { db: [], web: ['240.0.0.3'], forger: ['240.0.0.1'], next: ['240.0.0.3'] })
  assert.equal(book.ownerOf('240.0.0.1'), 'web')
  assert.equal(book.ownerOf('240.0.0.3'), 'next', 'the followed one has left it')
  assert.equal(book.ownerOf('240.0.0.2'), 'old', 'listed no more, and nobody else has it')
  update([], { web: ['240.0.0.1'], one: ['240.0.0.7'], other: ['240.0.0.7'] })
  assert.equal(book.ownerOf('240.0.0.7'), undefined, 'two claim it')
  update([], { web: ['240.0.0.1'], other: ['240.0.0.2', '240.0.0.7'] })
  assert.equal(book.ownerOf('240.0.0.2'), 'other')
  assert.notDeepEqual(book.of('old'), ['240.0.0.2'])
})

test('thousands of listed addresses all lead to their services', () => {
  const book = new AddressBook([parseCidr('10.99.0.0/16') ?? assert.fail()])
  const ip = (index: number): string => `240.1.${index >> 8}.${index & 255}`
  const list = new Map(Array.from({ length: 5_000 }, (_, index) => [`s-${index}`, [ip(index)]]))
  book.update(new Map(), list)
  const kept = book.all()
  book.update(new Map(), list)
  assert.equal(book.all(), kept, 'the same object, as nothing has changed')
  for (let index = 0; index < 5_000; index += 1) assert.equal(book.ownerOf(ip(index)), `s-${index}`)
})

test("an address of the catalog stays its service's without instances, until another service gets it", () => {
  const book = new AddressBook([parseCidr('10.99.0.0/24') ?? assert.fail()])
  const update = (given: Record<string, readonly string[]>): void =>
    book.update(
      new Map(
        Object.entries(given).map(([name, virtualIps]) => [
          name,
          catalogService(name, { virtualIps }),
        ]),
      ),
      new Map([
        ['db', []],
        ['queue', []],
      ]),
    )
  update({ db: ['240.0.0.9'] })
  const kept = book.all()
  update({ db: ['240.0.0.9'] })
  assert.equal(book.all(), kept, 'the same object, as nothing has changed')
  update({ db: [] })
  assert.deepEqual(book.of('db'), ['240.0.0.9'])
  assert.equal(book.ownerOf('240.0.0.9'), 'db')
  update({ db: [], queue: ['240.0.0.9'] })
  assert.deepEqual(book.of('queue'), ['240.0.0.9'])
  assert.equal(book.ownerOf('240.0.0.9'), 'queue')
  assert.match(book.of('db')[0] ?? '', /^10\.99\./)
  assert.equal(book.ownerOf(book.of('db')[0] ?? ''), 'db')
})

test('where instances of a service listen that is not followed is known, and leads to it', async () => {
  let changes = 0
  const { catalog, discovery } = start({
    onDormant: () => {
      changes += 1
    },
  })
  await using _ = discovery
  const address = { ip: '10.0.0.2', port: 5432, node: 'b', since: 7 }
  const late = { ...address, since: 9 }
  catalog.giveList?.([
    { name: 'db', virtualIps: [], addresses: [address] },
    { name: 'evil', virtualIps: [], addresses: [late] },
    { name: 'old', virtualIps: [], addresses: [{ ...late, port: 80 }], goneSinceMs: 1 },
  ])
  await eventually(() => assert.equal(changes, 1))
  const dormant = new Map([
    ['db', [{ ip: '10.0.0.2', port: 5432 }]],
    ['old', [{ ip: '10.0.0.2', port: 80 }]],
  ])
  assert.deepEqual(new Map(discovery.dormant()), dormant)
  assert.match(discovery.warnings().join(), /Service evil claims 10\.0\.0\.2:5432/)
  assert.equal(discovery.ownerOf('10.0.0.2', 5432), 'db')
  assert.equal(discovery.ownerOf('10.0.0.2', 5433), undefined)
  discovery.wanted('10.0.0.2', 5432)
  assert.deepEqual([...catalog.services.keys()], ['db'])
  catalog.give(catalogService('db', { addresses: [address] }))
  await eventually(() => assert.equal(changes, 2))
  assert.deepEqual([...discovery.dormant().keys()], ['old'])
  assert.deepEqual(discovery.current().services.get('db')?.addresses, dormant.get('db'))
  discovery.wanted('10.0.0.2', 80)
  assert.ok(catalog.services.has('old'), 'it is refused by what its own watch says')
  assert.deepEqual(await discovery.lookup('gone', AT_ONCE), { kind: 'unknown', isParent: false })
})
