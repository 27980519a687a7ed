/**
 * Claims about what is registered, what is left alone, and what is taken back.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import {
  type AgentService,
  decodeAgentServices,
} from '../../src/controlplane/catalog/consul/decode-agent.ts'
import { planRegistration } from '../../src/controlplane/catalog/consul/registration-plan.ts'
import type { LocalService } from '../../src/model/service.ts'

function local(name: string, id: string = name, port: number | undefined = 5_432): LocalService {
  return {
    name,
    id,
    target: port === undefined ? undefined : { ip: '127.0.0.1', port },
    selector: undefined,
    capturePort: undefined,
    connectPort: undefined,
    upstreams: [],
  }
}

const operatorsDb = { db: { ID: 'db', Service: 'db', Port: 5_432, Meta: {} } }

/** The agent's view after a plan was carried out on `before`. */
function after(
  desired: readonly LocalService[],
  before: Record<string, unknown> = {},
): ReadonlyMap<string, AgentService> {
  const plan = planRegistration(desired, 15_443, decodeAgentServices(before))
  const body: Record<string, unknown> = { ...before }
  for (const plain of plan.plain)
    body[plain.id] = { Service: plain.name, Port: plain.port, Meta: plain.meta }
  for (const proxy of plan.proxies) body[proxy.ID] = { ...proxy, Service: proxy.Name }
  return decodeAgentServices(body)
}

test('from nothing, the plain service and its proxy are registered', () => {
  const plan = planRegistration([local('db')], 15_443, new Map())
  assert.deepEqual(
    plan.plain.map((plain) => [plain.name, plain.id, plain.port, plain.checkAddress]),
    [['db', 'db', 5_432, '127.0.0.1:5432']],
  )
  assert.equal(plan.proxies[0]?.ID, 'db-hostmesh')
  assert.equal(plan.proxies[0]?.Name, 'db-hostmesh')
  assert.equal(plan.proxies[0]?.Port, 15_443)
  assert.deepEqual(plan.proxies[0]?.Proxy, {
    DestinationServiceName: 'db',
    DestinationServiceID: 'db',
    LocalServiceAddress: '127.0.0.1',
    LocalServicePort: 5_432,
  })
  assert.deepEqual(
    plan.proxies[0]?.Checks.map((check) => [check['CheckID'], check['TTL']]),
    [['hostmesh-ttl:db', '30s']],
  )
})

test('a plan that was carried out leaves nothing to do', () => {
  const desired = [local('db'), local('web', 'web-2', 80)]
  const plan = planRegistration(desired, 15_443, after(desired))
  assert.deepEqual(plan, { plain: [], proxies: [], withdrawn: new Set(), remove: [], problems: [] })
})

test('a service without a target is not registered', () => {
  const plan = planRegistration([{ ...local('job'), target: undefined }], 15_443, new Map())
  assert.deepEqual([plan.plain, plan.proxies], [[], []])
})

test("the operator's plain service is left alone, at first and at the end", () => {
  const plan = planRegistration([local('db')], 15_443, decodeAgentServices(operatorsDb))
  assert.deepEqual(plan.plain, [])
  assert.equal(plan.proxies.length, 1)
  assert.deepEqual(planRegistration([], 15_443, after([local('db')], operatorsDb)).remove, [
    'db-hostmesh',
  ])
})

test('a plain service that the operator took away is not brought back', () => {
  const { db: _, ...left } = Object.fromEntries(after([local('db')], operatorsDb))
  const body = Object.fromEntries(
    Object.values(left).map(({ id, name, kind, port, meta }) => [
      id,
      {
        Service: name,
        Kind: kind,
        Port: port,
        Meta: meta,
        Proxy: {
          DestinationServiceName: 'db',
          DestinationServiceID: 'db',
          LocalServiceAddress: '127.0.0.1',
          LocalServicePort: 5_432,
        },
      },
    ]),
  )
  const plan = planRegistration([local('db')], 15_443, decodeAgentServices(body))
  assert.deepEqual(plan, {
    plain: [],
    proxies: [],
    withdrawn: new Set(['db']),
    remove: [],
    problems: [],
  })
  // After 72 h the agent removes the proxy too.
  const { withdrawn } = plan
  const again = planRegistration([local('db')], 15_443, new Map(), { withdrawn })
  assert.deepEqual([again.plain, again.withdrawn], [[], withdrawn])
  assert.equal(again.proxies[0]?.Meta['hostmesh-plain'], 'operator')
})

test('a plain service that an operator takes over from us is theirs from then on', () => {
  const present = new Map(after([local('db')]))
  for (const [id, service] of decodeAgentServices(operatorsDb)) present.set(id, service)
  const plan = planRegistration([local('db')], 15_443, present)
  assert.deepEqual(plan.plain, [])
  assert.equal(plan.proxies[0]?.Meta['hostmesh-plain'], 'operator')
})

test('what we registered is taken back, proxy first', () => {
  assert.deepEqual(planRegistration([], 15_443, after([local('db')])).remove, ['db-hostmesh', 'db'])
})

test('what a crashed daemon left behind is taken back when it is no longer wanted', () => {
  const left = after([local('db'), local('web', 'web', 80)])
  assert.deepEqual(planRegistration([local('web', 'web', 80)], 15_443, left).remove, [
    'db-hostmesh',
    'db',
  ])
})

test('a proxy of an earlier version, which follows its service by an alias check, is registered anew', () => {
  const left = [...after([local('db')]).values()].map(({ id, name, meta, ...rest }) => {
    const { 'hostmesh-health': _, ...before } = meta
    return [id, { ...rest, id, name, meta: before }] as const
  })
  const plan = planRegistration([local('db')], 15_443, new Map(left))
  assert.deepEqual(
    [plan.plain.length, plan.proxies.map(({ ID }) => ID), plan.remove],
    [0, ['db-hostmesh'], []],
  )
})

test('what belongs to a daemon on another tunnel port is left alone', () => {
  assert.deepEqual(planRegistration([], 15_444, after([local('db')])).remove, [])
})

test('a changed port is registered anew', () => {
  const plan = planRegistration([local('db', 'db', 6_000)], 15_443, after([local('db')]))
  assert.equal(plan.plain[0]?.port, 6_000)
  assert.equal(plan.proxies[0]?.Proxy.LocalServicePort, 6_000)
})

test('a foreign service under the ID of ours is a problem and stays as it is', () => {
  const foreign = decodeAgentServices({ db: { Service: 'mongo', Port: 1 } })
  const plan = planRegistration([local('db')], 15_443, foreign)
  assert.deepEqual([plan.plain, plan.proxies, plan.remove], [[], [], []])
  assert.match(plan.problems[0] ?? '', /"db" as service mongo/)
})

test('a foreign service under the ID of the proxy is a problem and stays as it is', () => {
  const foreign = decodeAgentServices({
    ...operatorsDb,
    'db-hostmesh': { Service: 'x', Port: 1, Meta: {} },
  })
  const plan = planRegistration([local('db')], 15_443, foreign)
  assert.deepEqual([plan.plain, plan.proxies, plan.remove], [[], [], []])
  assert.equal(plan.problems.length, 1)
})

test("the operator's own ID for the same process is pointed out", () => {
  const present = decodeAgentServices({ 'db-1': { Service: 'db', Port: 5_432 } })
  const plan = planRegistration([local('db')], 15_443, present)
  assert.match(plan.problems[0] ?? '', /set `id: db-1`/)
})

test("a proxy has the operator's tags and meta, so that a resolver's subset finds it", () => {
  const withMeta = (version: string, Tags: readonly string[]) => ({
    db: { ID: 'db', Service: 'db', Port: 5_432, Meta: { version }, Tags },
  })
  const first = planRegistration(
    [local('db')],
    15_443,
    decodeAgentServices(withMeta('1', ['blue'])),
  )
  assert.equal(first.proxies[0]?.Meta['version'], '1')
  assert.deepEqual(first.proxies[0]?.Tags, ['blue'])
  const settled = after([local('db')], withMeta('1', ['blue']))
  assert.deepEqual(planRegistration([local('db')], 15_443, settled).proxies, [])
  for (const changed of [withMeta('2', ['blue']), withMeta('1', ['green']), withMeta('1', [])]) {
    const present = new Map([...settled, ...decodeAgentServices(changed)])
    assert.equal(planRegistration([local('db')], 15_443, present).proxies.length, 1)
  }
})

test("an operator's meta cannot pass for a mark of ours", () => {
  const meta = Object.fromEntries(Array.from({ length: 64 }, (_, i) => [`k${i}`, 'v']))
  const plain = {
    db: { ID: 'db', Service: 'db', Port: 5_432, Meta: { ...meta, 'hostmesh-proto': '9' } },
  }
  const [proxy] = planRegistration([local('db')], 15_443, decodeAgentServices(plain)).proxies
  assert.equal(proxy?.Meta['hostmesh-proto'], '1')
  assert.ok(Object.keys(proxy?.Meta ?? {}).length <= 64)
})

test("the weights that the operator gave the service are its proxy's, and taken back with them", () => {
  const db = (Weights?: object): Record<string, unknown> => ({
    db: { ...operatorsDb.db, ...(Weights !== undefined && { Weights }) },
  })
  const weighted = planRegistration(
    [local('db')],
    15_443,
    decodeAgentServices(db({ Passing: 10, Warning: 2 })),
  )
  assert.deepEqual(weighted.proxies[0]?.Weights, { Passing: 10, Warning: 2 })
  const registered = after([local('db')], db({ Passing: 10, Warning: 2 }))
  assert.deepEqual(planRegistration([local('db')], 15_443, registered).proxies, [])
  const usual = new Map(registered).set(
    'db',
    decodeAgentServices(db({ Passing: 1, Warning: 1 })).get('db') ?? assert.fail(),
  )
  const again = planRegistration([local('db')], 15_443, usual)
  assert.equal(again.proxies.length, 1)
  assert.equal(again.proxies[0]?.Weights, undefined)
  const none = after([local('db')], db())
  assert.deepEqual(planRegistration([local('db')], 15_443, none).proxies, [])
})

test('another service that is registered at the port of one of ours is named', () => {
  const present = decodeAgentServices({
    ...operatorsDb,
    evil: { ID: 'evil', Service: 'evil', Port: 5_432, Meta: {} },
    proxy: { ID: 'proxy', Service: 'x', Kind: 'connect-proxy', Port: 5_432, Meta: {} },
  })
  const { problems } = planRegistration([local('db')], 15_443, present)
  assert.deepEqual(problems, [
    'Service evil (ID "evil") is registered at port 5432 of this host, where db listens',
  ])
  assert.deepEqual(
    planRegistration([local('db'), local('evil')], 15_443, present).problems,
    [],
    'both are of this configuration',
  )
})

test('the proxy says where metrics are scraped, but not where only this host can', () => {
  const markOf = (ip: string): unknown =>
    planRegistration([local('db')], 15_443, new Map(), { metrics: { ip, port: 9_464 } }).proxies[0]
      ?.Meta['hostmesh-metrics']
  assert.equal(markOf('0.0.0.0'), '9464')
  assert.equal(markOf('::'), '9464')
  assert.equal(markOf('10.0.0.7'), '10.0.0.7:9464')
  assert.equal(markOf('127.0.0.1'), undefined)
  const [proxy] = planRegistration([local('db')], 15_443, new Map()).proxies
  assert.equal(proxy?.Meta['hostmesh-metrics'], undefined)
})

test('a proxy is registered again when metrics move, end, or begin', () => {
  const there = (metrics?: { ip: string; port: number }): ReadonlyMap<string, AgentService> => {
    const before = { db: { Service: 'db', Port: 5_432, Meta: { 'hostmesh-metrics': 'forged' } } }
    const plan = planRegistration([local('db')], 15_443, decodeAgentServices(before), { metrics })
    const body: Record<string, unknown> = { ...before }
    for (const proxy of plan.proxies) body[proxy.ID] = { ...proxy, Service: proxy.Name }
    return decodeAgentServices(body)
  }
  const proxiesOf = (
    present: ReadonlyMap<string, AgentService>,
    metrics?: { ip: string; port: number },
  ): number => planRegistration([local('db')], 15_443, present, { metrics }).proxies.length
  const at = (port: number) => ({ ip: '0.0.0.0', port })
  assert.equal(proxiesOf(there(at(1)), at(1)), 0)
  assert.equal(proxiesOf(there(at(1)), at(2)), 1)
  assert.equal(proxiesOf(there(at(1))), 1)
  assert.equal(proxiesOf(there(), at(1)), 1)
  assert.equal(proxiesOf(there()), 0)
})
