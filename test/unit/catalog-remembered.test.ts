/**
 * Claims about src/controlplane/catalog/remembered.ts, with an inner catalog whose answers the test gives
 * and a clock that it sets.
 */
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import type {
  Catalog,
  CatalogHealth,
  CatalogPolicy,
  CatalogService,
  ListedService,
} from '../../src/controlplane/catalog/catalog.ts'
import {
  type RememberedCatalog,
  rememberCatalog,
} from '../../src/controlplane/catalog/remembered.ts'
import { catalogService, endpoint, intention } from '../harness/builders.ts'
import { eventually } from '../harness/eventually.ts'
import { TestClock } from '../harness/test-clock.ts'
import { FakeDisk } from './remembered-fixtures.ts'

const DAY_MS = 24 * 3_600_000

/** Answers when told to; notes what it was given of an earlier run. */
class ScriptedCatalog implements Catalog {
  description = 'consul http://127.0.0.1:8500'
  readonly give = new Map<string, (service: CatalogService) => void>()
  readonly lastByService = new Map<string, CatalogService | undefined>()
  givePolicies: (policies: readonly CatalogPolicy[]) => void = () => assert.fail('no watch')
  lastPolicies: readonly CatalogPolicy[] | undefined
  giveList: (services: readonly ListedService[]) => void = () => assert.fail('no watch')
  lastList: readonly ListedService[] | undefined
  lastGoodAtMs: number | undefined
  isDisposed = false

  watchService(
    name: string,
    onChange: (service: CatalogService) => void,
    last?: CatalogService,
  ): Disposable {
    this.give.set(name, onChange)
    this.lastByService.set(name, last)
    return { [Symbol.dispose]: () => this.give.delete(name) }
  }
  watchServiceList(
    onChange: (services: readonly ListedService[]) => void,
    last?: readonly ListedService[],
  ): Disposable {
    this.giveList = onChange
    this.lastList = last
    return { [Symbol.dispose]: () => undefined }
  }
  watchPolicies(
    _destinations: readonly string[],
    onChange: (policies: readonly CatalogPolicy[]) => void,
    last?: readonly CatalogPolicy[],
  ): Disposable {
    this.givePolicies = onChange
    this.lastPolicies = last
    return { [Symbol.dispose]: () => undefined }
  }
  async register(): Promise<void> {}
  async deregister(): Promise<void> {}
  health(): CatalogHealth {
    return { lastGoodAtMs: this.lastGoodAtMs, problems: [] }
  }
  async [Symbol.asyncDispose](): Promise<void> {
    this.isDisposed = true
  }
}

function service(name: string, ...nodes: string[]): CatalogService {
  return catalogService(name, {
    protocol: 'http',
    connectTimeoutMs: 7_000,
    endpoints: nodes.map((node) => endpoint(`${node}/${name}`)),
    addresses: nodes.map((node, index) => ({ ip: '10.0.0.1', port: 80 + index, node, since: 7 })),
  })
}

function policy(destination: string, source = 'web'): CatalogPolicy {
  return {
    destination,
    intentions: [intention(source, destination, 'allow')],
    defaultPolicy: 'deny',
  }
}

/** One host over several runs. */
class Scene {
  readonly disk = new FakeDisk()
  inner = new ScriptedCatalog()
  readonly clock = new TestClock({ monotonicMs: 5_000 })

  start(
    options: { description?: string; datacenter?: string; refreshMs?: number } = {},
  ): RememberedCatalog {
    this.inner = new ScriptedCatalog()
    this.inner.description = options.description ?? this.inner.description
    return rememberCatalog(this.inner, {
      file: this.disk.open(),
      datacenter: options.datacenter ?? 'dc1',
      clock: this.clock,
      ...(options.refreshMs !== undefined && { refreshMs: options.refreshMs }),
    })
  }

  /** The inner catalog has a good answer now. */
  answered(): void {
    this.inner.lastGoodAtMs = this.clock.monotonicMs()
  }

  /** A run that hears of these and ends in order. */
  async run(
    services: readonly CatalogService[],
    policies: readonly CatalogPolicy[] = [],
  ): Promise<void> {
    const catalog = this.start()
    for (const { name } of services) catalog.watchService(name, () => undefined)
    if (policies.length > 0)
      catalog.watchPolicies(
        policies.map(({ destination }) => destination),
        () => undefined,
      )
    this.answered()
    for (const answer of services) this.inner.give.get(answer.name)?.(answer)
    if (policies.length > 0) this.inner.givePolicies(policies)
    await catalog[Symbol.asyncDispose]()
    this.clock.restart(5)
  }
}

/** Later than the promise callbacks that are due. */
const turn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve))

function json(value: unknown): unknown {
  return JSON.parse(JSON.stringify(value))
}

describe('a remembered catalog', () => {
  test('gives the answer of the last run at once, but not inside the call, and then the new one', async () => {
    const scene = new Scene()
    await scene.run([service('db', 'b', 'c')])
    const catalog = scene.start()
    const seen: CatalogService[] = []
    catalog.watchService('db', (answer) => seen.push(answer))
    assert.deepEqual(seen, [])
    await turn()
    assert.deepEqual(seen, [json(service('db', 'b', 'c'))])
    assert.deepEqual(scene.inner.lastByService.get('db'), seen[0])
    assert.deepEqual(catalog.remembered().services.count, 1)
    scene.inner.give.get('db')?.(service('db', 'b'))
    assert.deepEqual(seen[1], service('db', 'b'))
    assert.deepEqual(catalog.remembered().services, { known: 1, count: 0, sinceMs: undefined })
  })

  test('gives nothing of the last run once there is a new answer', async () => {
    const scene = new Scene()
    await scene.run([service('db', 'b')], [policy('db', 'old')])
    const catalog = scene.start()
    const seen: unknown[] = []
    catalog.watchService('db', (answer) => seen.push(answer))
    catalog.watchPolicies(['db'], (answer) => seen.push(answer))
    scene.inner.give.get('db')?.(service('db'))
    scene.inner.givePolicies([policy('db', 'new')])
    await turn()
    assert.deepEqual(seen, [service('db'), [policy('db', 'new')]])
  })

  test('gives nothing to a watch that was closed at once', async () => {
    const scene = new Scene()
    await scene.run([service('db', 'b')], [policy('db')])
    const catalog = scene.start()
    const fail = (): never => assert.fail('called')
    catalog.watchService('db', fail)[Symbol.dispose]()
    catalog.watchServiceList(fail)[Symbol.dispose]()
    catalog.watchPolicies(['db'], fail)[Symbol.dispose]()
    await turn()
  })

  test('of several rules those that are not answered stay remembered', async () => {
    const scene = new Scene()
    await scene.run([], [policy('db'), policy('cache')])
    const catalog = scene.start()
    const seen: (readonly CatalogPolicy[])[] = []
    catalog.watchPolicies(['db', 'cache', 'new'], (answer) => seen.push(answer))
    await turn()
    assert.deepEqual(seen, [[policy('db'), policy('cache')]])
    assert.deepEqual(scene.inner.lastPolicies, seen[0])
    assert.equal(catalog.remembered().policies.count, 2)
    scene.answered()
    scene.inner.givePolicies([policy('db', 'other')])
    assert.equal(catalog.remembered().policies.count, 1)
    await catalog[Symbol.asyncDispose]()
    const next = scene.start()
    const again: (readonly CatalogPolicy[])[] = []
    next.watchPolicies(['db', 'cache'], (answer) => again.push(answer))
    await turn()
    assert.deepEqual(again, [[policy('db', 'other'), policy('cache')]])
  })

  test('remembers which services there are, and their addresses', async () => {
    const scene = new Scene()
    const first = scene.start()
    first.watchServiceList(() => undefined)
    const list = [
      { name: 'db', virtualIps: ['240.0.0.1'] },
      { name: 'web', virtualIps: [] },
    ]
    scene.inner.giveList(list)
    await first[Symbol.asyncDispose]()
    const second = scene.start()
    const seen: (readonly ListedService[])[] = []
    second.watchServiceList((services) => seen.push(services))
    await turn()
    assert.deepEqual(seen, [list])
    assert.deepEqual(scene.inner.lastList, list)
  })

  test('says the age of the last good answer, across restarts that heard nothing', async () => {
    const scene = new Scene()
    await scene.run([service('db', 'b')])
    for (let restart = 1; restart <= 3; restart += 1) {
      scene.clock.pass(60_000)
      const catalog = scene.start()
      catalog.watchService('db', () => undefined)
      const { lastGoodAtMs } = catalog.health()
      assert.equal(scene.clock.monotonicMs() - (lastGoodAtMs ?? Number.NaN), restart * 60_000)
      assert.equal(
        scene.clock.wallMs() - (catalog.remembered().services.sinceMs ?? Number.NaN),
        restart * 60_000,
      )
      await catalog[Symbol.asyncDispose]()
    }
    const catalog = scene.start()
    catalog.watchService('db', () => undefined)
    scene.answered()
    scene.inner.give.get('db')?.(service('db', 'b'))
    assert.equal(catalog.health().lastGoodAtMs, scene.clock.monotonicMs())
  })

  test('a wall clock that went back makes an age of zero, not a negative one', async () => {
    const scene = new Scene()
    await scene.run([service('db', 'b')])
    scene.clock.setWall(scene.clock.wallMs() - DAY_MS)
    assert.equal(scene.start().health().lastGoodAtMs, scene.clock.monotonicMs())
  })

  test('a wall clock that was ahead for a while does not keep the age from being written', async () => {
    const scene = new Scene()
    const catalog = scene.start({ refreshMs: 5 })
    catalog.watchService('db', () => undefined)
    const answeredAt = async (wallMs: number): Promise<void> => {
      scene.clock.setWall(wallMs)
      scene.clock.pass(60_000)
      scene.answered()
      await eventually(() => {
        scene.disk.write()
        assert.ok(scene.disk.text?.includes(`"confirmedAtMs":${wallMs + 60_000}`), scene.disk.text)
      })
    }
    const startMs = scene.clock.wallMs()
    scene.answered()
    scene.inner.give.get('db')?.(service('db', 'b'))
    await answeredAt(startMs)
    await answeredAt(startMs + 7_200_000)
    await answeredAt(startMs + 60_000)
    await catalog[Symbol.asyncDispose]()
  })

  test('one service that stays silent keeps its own age when others are answered', async () => {
    const scene = new Scene()
    await scene.run([service('db', 'b'), service('web', 'a')])
    scene.clock.pass(DAY_MS)
    const catalog = scene.start()
    for (const name of ['db', 'web']) catalog.watchService(name, () => undefined)
    scene.answered()
    scene.inner.give.get('web')?.(service('web', 'a'))
    await catalog[Symbol.asyncDispose]()
    scene.clock.pass(DAY_MS)
    const next = scene.start()
    for (const name of ['db', 'web']) next.watchService(name, () => undefined)
    assert.equal(scene.clock.wallMs() - (next.remembered().services.sinceMs ?? 0), 2 * DAY_MS)
  })

  test('what the catalog says while this host takes itself out of it is not remembered', async () => {
    const scene = new Scene()
    const catalog = scene.start()
    const seen: number[] = []
    catalog.watchService('db', (answer) => seen.push(answer.clusters[0].endpoints.length))
    scene.inner.give.get('db')?.(service('db', 'a'))
    const leaving = catalog.deregister()
    scene.inner.give.get('db')?.(service('db'))
    await leaving
    await catalog[Symbol.asyncDispose]()
    assert.deepEqual(seen, [1, 0], 'the running daemon does hear of it')
    const next = scene.start()
    next.watchService('db', (answer) => seen.push(answer.clusters[0].endpoints.length))
    await turn()
    assert.deepEqual(seen, [1, 0, 1])
  })

  test('forgets a service that nobody has followed for seven days, and no other', async () => {
    const scene = new Scene()
    await scene.run([service('old', 'b'), service('kept', 'b')])
    scene.clock.pass(6 * DAY_MS)
    await scene.run([service('kept', 'b')])
    assert.match(scene.disk.text ?? '', /"old"/)
    scene.clock.pass(1.5 * DAY_MS)
    await scene.run([service('kept', 'b')])
    assert.doesNotMatch(scene.disk.text ?? '', /"old"/)
    assert.match(scene.disk.text ?? '', /"kept"/)
  })

  test('remembers at most 4,000 services: those followed now, then those followed last', async () => {
    const scene = new Scene()
    const many = Array.from({ length: 4_000 }, (_, index) => service(`s${index}`))
    await scene.run(many)
    scene.clock.pass(1)
    await scene.run([service('now', 'b')])
    const body = JSON.parse(scene.disk.text ?? '') as { services: { service: CatalogService }[] }
    assert.equal(body.services.length, 4_000)
    assert.equal(body.services[0]?.service.name, 'now')
  })

  test('a service too large to be kept is a problem, and the others are kept', async () => {
    const scene = new Scene()
    const catalog = scene.start()
    for (const name of ['huge', 'db']) catalog.watchService(name, () => undefined)
    const nodes = Array.from({ length: 60_000 }, (_, index) => `${'n'.repeat(100)}${index}`)
    scene.inner.give.get('huge')?.(service('huge', ...nodes))
    scene.clock.pass(1)
    scene.inner.give.get('db')?.(service('db', 'b'))
    scene.disk.write()
    assert.match(catalog.health().problems.join(), /1 services are too large/)
    const body = JSON.parse(scene.disk.text ?? '') as { services: { service: CatalogService }[] }
    assert.deepEqual(
      body.services.map((entry) => entry.service.name),
      ['db'],
    )
  })

  for (const [what, options] of [
    ['another agent', { description: 'consul http://10.0.0.9:8500' }],
    ['another datacenter', { datacenter: 'dc2' }],
  ] as const)
    test(`what ${what} said is not given`, async () => {
      const scene = new Scene()
      await scene.run([service('db', 'b')], [policy('db')])
      const catalog = scene.start(options)
      catalog.watchService('db', () => assert.fail('given'))
      catalog.watchPolicies(['db'], () => assert.fail('given'))
      await turn()
      assert.equal(catalog.health().lastGoodAtMs, undefined)
    })

  test('a body of another shape is rejected whole', async () => {
    const scene = new Scene()
    await scene.run([service('db', 'b')], [policy('db')])
    const good = scene.disk.text ?? ''
    for (const bad of [
      '{}',
      '[]',
      'null',
      good.replace('"endpoints":[{', '"endpoints":[7,{'),
      good.replace('"action":"allow"', '"action":"maybe"'),
      good.replace('"defaultPolicy":"deny"', '"defaultPolicy":7'),
    ]) {
      assert.notEqual(bad, good)
      scene.disk.text = bad
      scene.disk.rejected = undefined
      const catalog = scene.start()
      catalog.watchService('db', () => assert.fail('given'))
      catalog.watchPolicies(['db'], () => assert.fail('given'))
      await turn()
      assert.match(scene.disk.rejected ?? '', /shape of a catalog/, bad)
    }
  })

  test('a run that hears nothing writes nothing', async () => {
    const scene = new Scene()
    await scene.run([service('db', 'b')])
    const before = scene.disk.text
    const catalog = scene.start()
    catalog.watchService('db', () => undefined)
    await turn()
    await catalog[Symbol.asyncDispose]()
    assert.equal(scene.disk.text, before)
    assert.ok(scene.inner.isDisposed)
  })
})
