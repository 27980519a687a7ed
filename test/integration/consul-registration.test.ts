/**
 * Claims about how a registrar keeps alive what the agent knows already, against an agent that says what it is told.
 */
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { Registrar } from '../../src/controlplane/catalog/consul/registration.ts'
import { planRegistration } from '../../src/controlplane/catalog/consul/registration-plan.ts'
import { createTransport } from '../../src/controlplane/catalog/consul/transport.ts'
import { silentLog } from '../../src/lib/log.ts'
import type { LocalService } from '../../src/model/service.ts'
import { TestClock } from '../harness/test-clock.ts'
import { eventually, type FakeAgent, type FakeAnswer, startFakeAgent } from './consul-fake-agent.ts'
import { localService } from './dataplane-fixtures.ts'

const TUNNEL_PORT = 15_008
const LOOK_MS = 2_000
const SERVICES = '/v1/agent/services'

const db = localService('db', { id: 'db', target: { ip: '127.0.0.1', port: 5432 } })
const web = localService('web', { id: 'web', target: { ip: '127.0.0.1', port: 8080 } })

/** What the agent answers when a daemon has registered these before. */
function known(services: readonly LocalService[]): Record<string, unknown> {
  const { plain, proxies } = planRegistration(services, TUNNEL_PORT, new Map())
  return Object.fromEntries([
    ...plain.map(({ name, id, port, meta }) => [
      id,
      { Kind: '', ID: id, Service: name, Port: port, Meta: meta },
    ]),
    ...proxies.map(({ Name, ID, ...rest }) => [ID, { ...rest, ID, Service: Name }]),
  ])
}

/** An agent that has the proxies of both, and a registrar that has looked at it once with nothing to register. */
async function afterCrash(): Promise<
  AsyncDisposable & {
    readonly agent: FakeAgent
    readonly clock: TestClock
    readonly registrar: Registrar
    readonly beats: (service: LocalService, as?: 'pass' | 'warn' | 'fail') => number
    readonly nextLook: () => Promise<void>
  }
> {
  await using started = new AsyncDisposableStack()
  const agent = started.use(await startFakeAgent())
  const transport = started.use(createTransport({ address: agent.address, requestTimeout: 5_000 }))
  const clock = new TestClock()
  const pathOf = ({ id }: LocalService, as = 'pass'): string =>
    `/v1/agent/check/${as}/hostmesh-ttl%3A${id}`
  agent.always(SERVICES, () => ({ body: known([db, web]) }))
  agent.always('/v1/agent/checks', () => ({ body: {} }))
  for (const service of [db, web])
    for (const path of [
      ...['pass', 'warn', 'fail'].map((as) => pathOf(service, as)),
      ...[service.id, `${service.id}-hostmesh`].map((id) => `/v1/agent/service/deregister/${id}`),
    ])
      agent.always(path, () => ({}))
  const registrar = started.use(
    new Registrar({ transport, log: silentLog, clock, checkEveryMs: LOOK_MS }),
  )
  await eventually('the first look', () => clock.sleeping > 0)
  const beats = (service: LocalService, as?: string): number =>
    agent.requestsFor(pathOf(service, as)).length
  const ended = started.move()
  return {
    agent,
    clock,
    registrar,
    beats,
    async nextLook() {
      await eventually('the end of a look', () => clock.sleeping > 0)
      const looks = agent.requestsFor(SERVICES).length
      clock.pass(LOOK_MS)
      await eventually('a look', () => agent.requestsFor(SERVICES).length > looks)
      await eventually('its end', () => clock.sleeping > 0)
    },
    [Symbol.asyncDispose]: () => ended.disposeAsync(),
  }
}

describe('a proxy that the agent has since before a crash', () => {
  test('is beaten as soon as its service is given, though the agent was looked at before', async () => {
    await using scene = await afterCrash()
    assert.equal(scene.beats(db), 0)
    await scene.registrar.register([db, web], TUNNEL_PORT)
    assert.deepEqual([scene.beats(db), scene.beats(web)], [1, 1])
  })

  test('is beaten at once too when its service follows others', async () => {
    await using scene = await afterCrash()
    await scene.registrar.register([db], TUNNEL_PORT)
    assert.equal(scene.beats(db), 1)
    await scene.registrar.register([db, web], TUNNEL_PORT)
    assert.equal(scene.beats(web), 1)
  })

  test('is beaten every 10 s from then on', async () => {
    await using scene = await afterCrash()
    await scene.registrar.register([db, web], TUNNEL_PORT)
    for (let look = 1; look < 5; look += 1) await scene.nextLook()
    assert.equal(scene.beats(db), 1)
    await scene.nextLook()
    assert.equal(scene.beats(db), 2)
  })
})

/** What the agent says of one check of db. */
function check(status: string, output: string): FakeAnswer {
  return {
    body: {
      app: { CheckID: 'app', Name: 'listens', ServiceID: 'db', Status: status, Output: output },
    },
  }
}

describe('the check of a proxy', () => {
  test('is told at the next look what its service is, and why', async () => {
    await using scene = await afterCrash()
    await scene.registrar.register([db, web], TUNNEL_PORT)
    for (const [status, as] of [
      ['warning', 'warn'],
      ['critical', 'fail'],
      ['passing', 'pass'],
    ] as const) {
      const before = scene.beats(db, as)
      scene.agent.always('/v1/agent/checks', () => check(status, 'so'))
      await scene.nextLook()
      assert.equal(scene.beats(db, as), before + 1, status)
    }
    assert.equal(scene.beats(web), 1, 'its own service has not changed')
    const [failed] = scene.agent.requestsFor('/v1/agent/check/fail/hostmesh-ttl%3Adb')
    assert.equal(failed?.query.get('note'), 'listens: so')
    const [read] = scene.agent.requestsFor('/v1/agent/checks')
    assert.equal(read?.query.get('filter'), 'ServiceID == "db" or ServiceID == "web"')
  })

  test('stays as it is while an agent that was started again has not run those of the service', async () => {
    await using scene = await afterCrash()
    scene.agent.always('/v1/agent/checks', () => check('passing', 'connected'))
    await scene.registrar.register([db, web], TUNNEL_PORT)
    await scene.nextLook()
    scene.agent.always('/v1/agent/checks', () => check('critical', ''))
    for (let look = 1; look <= 5; look += 1) await scene.nextLook()
    assert.equal(scene.beats(db, 'fail'), 0)
    assert.equal(scene.beats(db), 2, 'it is kept alive meanwhile')
    await scene.nextLook()
    assert.equal(scene.beats(db, 'fail'), 1, 'they say nothing for too long')
  })

  test('fails at once when a check of its service fails that has never said anything', async () => {
    await using scene = await afterCrash()
    scene.agent.always('/v1/agent/checks', () => check('passing', ''))
    await scene.registrar.register([db, web], TUNNEL_PORT)
    scene.agent.always('/v1/agent/checks', () => check('critical', ''))
    await scene.nextLook()
    assert.equal(scene.beats(db, 'fail'), 1)
  })

  test('is told what was known last while nothing can be read', async () => {
    await using scene = await afterCrash()
    await scene.registrar.register([db, web], TUNNEL_PORT)
    scene.agent.always('/v1/agent/checks', () => ({ status: 500, body: 'no' }))
    for (let look = 1; look <= 5; look += 1) await scene.nextLook()
    assert.deepEqual([scene.beats(db), scene.beats(db, 'fail')], [2, 0])
    assert.match(scene.registrar.problems().join(), /agent\/checks/)
  })

  test('is told nothing by a daemon that has never known', async () => {
    await using scene = await afterCrash()
    scene.agent.always('/v1/agent/checks', () => ({ status: 500, body: 'no' }))
    await scene.registrar.register([db, web], TUNNEL_PORT)
    assert.deepEqual([scene.beats(db), scene.beats(db, 'fail')], [0, 0])
  })
})

test('a proxy whose check is found missing is not registered again once another process maintains it', async () => {
  await using scene = await afterCrash()
  const { agent, registrar } = scene
  agent.always('/v1/agent/service/register', () => ({}))
  agent.always('/v1/agent/check/pass/hostmesh-ttl%3Adb', () => {
    registrar.leave()
    return { status: 500, body: 'unknown check' }
  })
  await registrar.register([db], TUNNEL_PORT)
  assert.equal(scene.beats(db), 1)
  assert.deepEqual(agent.requestsFor('/v1/agent/service/register'), [])
})

test('a proxy whose check is missing is registered again', async () => {
  await using scene = await afterCrash()
  const { agent, registrar } = scene
  agent.always('/v1/agent/service/register', () => ({}))
  agent.always('/v1/agent/check/pass/hostmesh-ttl%3Adb', () => ({ status: 500, body: 'unknown' }))
  await registrar.register([db], TUNNEL_PORT)
  const [registered] = agent.requestsFor('/v1/agent/service/register')
  assert.match(registered?.body ?? '', /"ID":"db-hostmesh"/)
})

test('a proxy whose service the operator took away gets a missing check back, and fails', async () => {
  await using scene = await afterCrash()
  const { agent, registrar } = scene
  const { db: _, 'db-hostmesh': proxy } = known([db])
  const operators = { ...(proxy as { Meta: object }) }
  operators.Meta = { ...operators.Meta, 'hostmesh-plain': 'operator' }
  agent.always(SERVICES, () => ({ body: { 'db-hostmesh': operators } }))
  agent.always('/v1/agent/service/register', () => ({}))
  agent.always('/v1/agent/check/fail/hostmesh-ttl%3Adb', () => ({ status: 500, body: 'unknown' }))
  await registrar.register([db], TUNNEL_PORT)
  const registered = agent.requestsFor('/v1/agent/service/register').map(({ body }) => body)
  assert.equal(registered.length, 1, 'the proxy alone')
  assert.match(registered[0] ?? '', /"hostmesh-plain":"operator".*"Status":"critical"/)
})

test('an agent with more services of others than can be read costs ours neither their beat nor their end', async () => {
  await using scene = await afterCrash()
  const { agent, registrar } = scene
  const ours = known([db])
  const evil = { Kind: '', ID: 'evil', Service: 'evil', Tags: ['x'.repeat(17_000_000)] }
  agent.always(SERVICES, () => ({ body: { ...ours, evil } }))
  for (const id of ['db', 'db-hostmesh'])
    agent.always(`/v1/agent/service/${id}`, () => ({ body: ours[id] }))
  for (const id of ['web', 'web-hostmesh'])
    agent.always(`/v1/agent/service/${id}`, () => ({ status: 404, body: 'unknown service ID' }))
  agent.always('/v1/agent/service/register', () => ({}))
  await registrar.register([db, web], TUNNEL_PORT)
  assert.deepEqual(registrar.problems(), [])
  assert.equal(scene.beats(db), 1)
  const registered = agent.requestsFor('/v1/agent/service/register').map(({ body }) => body)
  assert.equal(registered.length, 2, 'web and its proxy, which were not there')
  await registrar.deregister()
  for (const id of ['db', 'db-hostmesh'])
    assert.ok(agent.requestsFor(`/v1/agent/service/deregister/${id}`).length > 0, id)
})

test('a service of others under the ID of a proxy of ours is neither beaten nor replaced', async () => {
  await using scene = await afterCrash()
  const { agent, registrar } = scene
  const foreign = { Kind: '', ID: 'db-hostmesh', Service: 'other', Port: 1, Meta: {} }
  agent.always(SERVICES, () => ({ body: { ...known([db]), 'db-hostmesh': foreign } }))
  agent.always('/v1/agent/check/pass/hostmesh-ttl%3Adb', () => ({ status: 500, body: 'unknown' }))
  agent.always('/v1/agent/service/register', () => ({}))
  await registrar.register([db], TUNNEL_PORT)
  assert.match(registrar.problems().join(), /another service with ID "db-hostmesh"/)
  assert.equal(scene.beats(db), 0)
  assert.deepEqual(agent.requestsFor('/v1/agent/service/register'), [])
})
