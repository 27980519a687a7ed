/**
 * The API of the aggregator over real sockets: every answer is what its schema says, strict about what is asked, bounded
 * in what it does, and safe to have open in a browser.
 */
import assert from 'node:assert/strict'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { get } from 'node:http'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, test } from 'node:test'
import { gunzipSync } from 'node:zlib'
import { apiDocuments, LIVE_PATH, OPENAPI_PATH } from '../../src/aggregator/api.ts'
import { documentSchemas, errorSchema, liveEventSchema } from '../../src/aggregator/schema.ts'
import { member } from '../../src/lib/json-value.ts'
import type { GraphDocument, LiveEvent } from '../../src/model/fleet.ts'
import { eventually } from '../harness/eventually.ts'
import { hostReport, reportedFacts, reportedService } from '../harness/fleet-reports.ts'
import { TestClock } from '../harness/test-clock.ts'
import { type Answer, startTestAggregator, type TestAggregator } from './aggregator-fixtures.ts'

const NOW = Date.UTC(2026, 10, 27, 10, 0, 5)
const clock = new TestClock({ wallMs: NOW })
let fleet: TestAggregator

/** Two hosts, one of which calls the other, and one that has been silent for two hours. */
async function fill({ store }: TestAggregator): Promise<void> {
  const policy = {
    defaultAction: 'deny',
    intentions: [{ source: 'web', destination: 'db', action: 'allow', precedence: 9 }],
  } as const
  const db = reportedFacts([reportedService('db', { policy })], { zone: 'a' })
  const web = reportedFacts([reportedService('web', { upstreams: ['db'] })], { version: '0.1.0' })
  const old = hostReport('old', { facts: reportedFacts([reportedService('db')]) })
  await store.accept(old, NOW - 7_200_000)
  for (let i = 1; i <= 6; i += 1) {
    const at = NOW - 65_000 + i * 10_000
    const pair = { source: 'web', destination: 'db', opened: 100, active: 4, bucket: 60 }
    const counted = {
      ...pair,
      reporter: 'destination',
      closed: { '-': 90, UF: 10 },
      lost: 1,
      sent: 5_000,
      future: 3,
    } as const
    const denied = {
      source: 'x',
      destination: 'db',
      reporter: 'destination',
      opened: 5,
      closed: { DENY: 5 },
    } as const
    const more = { sequence: i, clockMs: at }
    await store.accept(hostReport('b', { ...more, facts: db, pairs: [counted, denied] }), at)
    const called = { ...pair, opened: 90, reporter: 'source' } as const
    await store.accept(hostReport('a', { ...more, facts: web, pairs: [called] }), at)
  }
}

before(async () => {
  fleet = await startTestAggregator('', { clock })
  await fill(fleet)
})
after(() => fleet[Symbol.asyncDispose]())

const examples: Readonly<Record<string, readonly string[]>> = {
  overview: ['', '?window=5m', '?at=2026-11-27T09:59:00Z'],
  graph: ['', '?group=host', '?group=zone&window=10s', '?group=datacenter'],
  services: ['', '?window=1d'],
  service: ['?name=db', '?name=web', '?name=x'],
  hosts: ['', '?window=30s'],
  host: ['?name=a', '?name=b', '?name=old'],
  history: [
    '',
    '?source=web&destination=db',
    '?host=a&step=1m',
    '?from=2026-11-27T09:30:00%2B01:00',
  ],
  risks: ['', '?window=1d', '?at=2026-11-20T00:00:00Z'],
  versions: ['', '?window=2h'],
}

for (const [path, { name }] of apiDocuments)
  test(`every answer of ${path} is what its schema says`, async () => {
    const queries = examples[name] ?? []
    assert.ok(queries.length > 0, 'each document has an example')
    for (const query of queries) {
      const { status, json, headers } = await fleet.get(path + query)
      assert.equal(status, 200, `${query}: ${JSON.stringify(json)}`)
      assert.match(headers['content-type'] ?? '', /^application\/json/)
      documentSchemas[name].parse(json)
    }
  })

test('the graph has the figures of the side that counted more, and the decision of the intentions', async () => {
  const graph = (await fleet.get('/api/v1/graph?window=1m')).json as GraphDocument
  const edge = graph.edges.find(({ source }) => source === 'web')
  assert.equal(edge?.reporter, 'destination')
  // Six records of 100 in a minute, as counted by one side only.
  assert.equal(edge.traffic.openedPerSecond, 10)
  assert.deepEqual(edge.traffic.closed, { '-': 540, UF: 60, LOST: 6 })
  assert.equal(edge.traffic.errorShare, 66 / 606)
  assert.deepEqual(edge.traffic.more, { futureCount: 18 })
  assert.equal(edge.policy?.reason, 'intention web -> db (precedence 9) says allow')
  assert.equal(graph.edges.find(({ source }) => source === 'x')?.policy?.allow, false)
  assert.equal(graph.coverage.hosts, 3)
  assert.equal(graph.coverage.reporting, 2)
  assert.match(graph.coverage.notes.join(), /1 host is silent: old since 2026-11-27T08:00:05/)
})

test('the description names every path that the server answers, with each parameter it takes', async () => {
  const { json } = await fleet.get(OPENAPI_PATH)
  const paths = member(json, 'paths')
  for (const [path, { parameters }] of apiDocuments) {
    const described = member(member(member(paths, path), 'get'), 'parameters') as { name: string }[]
    assert.deepEqual(
      described.map((one) => one.name),
      [...parameters],
    )
  }
  for (const path of [LIVE_PATH, OPENAPI_PATH, '/metrics', '/healthz'])
    assert.ok(member(member(paths, path), 'get') !== undefined, path)
  assert.equal(Object.keys(paths as object).length, apiDocuments.size + 4)
  const text = JSON.stringify(json)
  for (const [, id] of text.matchAll(/"#\/components\/schemas\/(\w+)"/g))
    assert.ok(member(member(member(json, 'components'), 'schemas'), id ?? '') !== undefined, id)
})

test('a wrong query is refused with all that is wrong with it', async () => {
  const refused: [string, RegExp][] = [
    ['/api/v1/graph?windw=1m', /did you mean window\?/],
    ['/api/v1/graph?window=5', /window: Must be a duration/],
    ['/api/v1/graph?window=2d', /10s to 1d/],
    ['/api/v1/graph?window=1m&window=2m', /given once/],
    ['/api/v1/graph?group=rack&at=yesterday', /at: .*; group: |group: .*; at: /],
    ['/api/v1/graph?at=2999-01-01T00:00:00Z', /in the future/],
    ['/api/v1/service', /name: Is missing/],
    ['/api/v1/history?from=2026-11-27T09:00:00Z&to=2026-11-27T08:00:00Z', /before to/],
    ['/api/v1/history?from=2020-01-01T00:00:00Z&step=10s', /more than 3000 steps/],
  ]
  for (const [path, reason] of refused) {
    const { status, json } = await fleet.get(path)
    assert.equal(status, 400, path)
    assert.match(errorSchema.parse(json).error.message, reason)
    assert.equal(errorSchema.parse(json).error.code, 'HM_API_QUERY_INVALID')
  }
})

test('what does not exist is not found, with the name that was meant', async () => {
  const service = await fleet.get('/api/v1/service?name=dbb')
  assert.equal(service.status, 404)
  assert.deepEqual(errorSchema.parse(service.json).error, {
    code: 'HM_SERVICE_NOT_FOUND',
    message: 'No host has reported a service "dbb"',
    hint: 'Did you mean db?',
  })
  assert.equal((await fleet.get('/api/v1/host?name=nobody')).status, 404)
  for (const path of ['/api/v1/nothing', '/api/v1', '/api/v1/graph/', '/api/v1/../v1/graph'])
    assert.equal((await fleet.get(path)).status, 404, path)
})

test('only GET without a body is answered', async () => {
  for (const method of ['POST', 'PUT', 'DELETE', 'HEAD', 'OPTIONS', 'PATCH']) {
    const { status, headers } = await fleet.get('/api/v1/graph', { method })
    assert.equal(status, 405, method)
    assert.equal(headers.allow, 'GET')
  }
  const { status } = await fleet
    .get('/api/v1/graph', { headers: { 'content-length': '3' } })
    .catch((): Pick<Answer, 'status'> => ({ status: 400 }))
  assert.equal(status, 400)
})

test('a request that names another server is refused: a page cannot rebind its name', async () => {
  const asked = (host: string): Promise<Answer> => fleet.get('/api/v1/graph', { headers: { host } })
  for (const host of [
    'evil.example',
    '127.0.0.1.evil.example',
    'localhost.evil.example:80',
    '[::2]',
  ])
    assert.equal((await asked(host)).status, 421, host)
  for (const host of ['localhost', 'localhost:15190', 'LOCALHOST.', '127.0.0.1:1', '[::1]:15190'])
    assert.equal((await asked(host)).status, 200, host)
})

test('every answer tells a browser what it may not do with it', async () => {
  for (const path of ['/', '/api/v1/graph', '/nothing', OPENAPI_PATH]) {
    const { headers } = await fleet.get(path)
    assert.match(
      String(headers['content-security-policy']),
      /default-src 'none'.*frame-ancestors 'none'/,
    )
    assert.equal(headers['x-content-type-options'], 'nosniff')
    assert.equal(headers['cross-origin-resource-policy'], 'same-origin')
    assert.equal(headers['access-control-allow-origin'], undefined)
  }
})

test('a large answer is compressed for who takes it', async () => {
  const plain = await fleet.get(OPENAPI_PATH)
  const packed = await fleet.get(OPENAPI_PATH, { headers: { 'accept-encoding': 'br, gzip;q=0.5' } })
  assert.equal(packed.headers['content-encoding'], 'gzip')
  assert.equal(gunzipSync(packed.bytes).toString(), plain.text)
  const refused = await fleet.get(OPENAPI_PATH, { headers: { 'accept-encoding': 'gzip;q=0' } })
  assert.equal(refused.headers['content-encoding'], undefined)
})

test('who asks the same within a second gets one answer, made once', async () => {
  const { asked } = fleet.store
  const askedBefore = asked.pairs
  const path = '/api/v1/services?window=47m'
  await Promise.all(Array.from({ length: 20 }, () => fleet.get(path)))
  assert.equal(asked.pairs, askedBefore + 1)
  await fleet.get(path)
  assert.equal(asked.pairs, askedBefore + 1)
  clock.pass(1_001)
  await fleet.get(path)
  assert.equal(asked.pairs, askedBefore + 2)
})

test('a failure of the store is an answer, and is not given again', async () => {
  const { store } = fleet
  store.readFailure = new Error('secret path /x')
  const failed = await fleet.get('/api/v1/hosts?window=33m')
  store.readFailure = undefined
  assert.equal(failed.status, 500)
  assert.doesNotMatch(failed.text, /secret/)
  assert.equal((await fleet.get('/api/v1/hosts?window=33m')).status, 200)
})

test('metrics are Prometheus text of the fleet', async () => {
  const { text, headers } = await fleet.get('/metrics')
  assert.match(headers['content-type'] ?? '', /^text\/plain; version=0\.0\.4/)
  assert.match(text, /^hostmesh_fleet_hosts\{state="silent"\} 1$/m)
  assert.match(
    text,
    /^hostmesh_fleet_pair_closed\{source_service="x",destination_service="db",outcome="denied"\} 30$/m,
  )
  const names = [...text.matchAll(/^# TYPE (\S+)/gm)].map(([, name]) => name)
  assert.equal(new Set(names).size, names.length)
})

test('healthz answers everybody', async () => {
  assert.equal((await fleet.get('/healthz')).text, 'ok\n')
})

test('an event of the live view is made once for all listeners', async () => {
  const { store } = fleet
  const readBefore = store.asked.live
  const facts = reportedFacts([reportedService('web')])
  const pair = { reporter: 'source', source: 'web', destination: 'db', opened: 7 } as const
  await store.accept(
    hostReport('a', { sequence: 7, spanMs: 1_000, facts, pairs: [pair] }),
    clock.wallMs(),
  )
  const listeners = await Promise.all(Array.from({ length: 10 }, () => listen(fleet)))
  await eventually(() => {
    for (const listener of listeners) assert.ok(listener.events.length >= 2)
  })
  for (const { events } of listeners) liveEventSchema.parse(events[0])
  const [edge] = listeners[0]?.events[0]?.graph.edges ?? []
  assert.equal(edge?.traffic.openedPerSecond, 7)
  const reads = store.asked.live - readBefore
  assert.ok(reads <= 5, `${reads} reads for 10 listeners`)
  for (const listener of listeners) listener.close()
})

test('a listener too many is refused', async () => {
  const listeners = await Promise.all(Array.from({ length: 100 }, () => listen(fleet)))
  const { status, headers } = await fleet.get(LIVE_PATH)
  assert.equal(status, 503)
  assert.equal(headers['retry-after'], '5')
  for (const listener of listeners) listener.close()
  await eventually(async () => (await listen(fleet)).close())
})

interface Listener {
  readonly events: LiveEvent[]
  close(): void
}

function listen({ aggregator }: TestAggregator): Promise<Listener> {
  return new Promise((resolve, reject) => {
    const { port } = aggregator.address
    const sent = get({ host: '127.0.0.1', port, path: LIVE_PATH, agent: false }, (response) => {
      if (response.statusCode !== 200) {
        reject(new Error(`status ${response.statusCode}`))
        return
      }
      const events: LiveEvent[] = []
      let text = ''
      response.on('data', (chunk: Buffer) => {
        text += chunk.toString()
        const blocks = text.split('\n\n')
        text = blocks.pop() ?? ''
        for (const block of blocks)
          if (block.startsWith('data: ')) events.push(JSON.parse(block.slice('data: '.length)))
      })
      response.on('error', () => undefined)
      resolve({ events, close: () => sent.destroy() })
    })
    sent.on('error', reject)
  })
}

test('the dashboard is served from memory, with validators, and every path of its own is its page', async () => {
  const dashboard = await mkdtemp(join(tmpdir(), 'hostmesh-dashboard-'))
  await writeFile(join(dashboard, 'index.html'), `<!doctype html>${' '.repeat(2_000)}`)
  await writeFile(join(dashboard, 'app-AB12CD34.js'), 'export {}')
  await writeFile(join(dashboard, 'app-AB12CD34.js.map'), '{}')
  await using own = await startTestAggregator('', { dashboard })
  await rm(dashboard, { recursive: true })
  const page = await own.get('/', { headers: { 'accept-encoding': 'gzip' } })
  assert.equal(page.headers['content-type'], 'text/html; charset=utf-8')
  assert.equal(page.headers['content-encoding'], 'gzip')
  const etag = page.headers.etag ?? ''
  assert.equal((await own.get('/', { headers: { 'if-none-match': etag } })).status, 304)
  const script = await own.get('/app-AB12CD34.js')
  assert.match(script.headers['cache-control'] ?? '', /immutable/)
  const accept = 'text/html,*/*'
  assert.equal((await own.get('/services/db', { headers: { accept } })).status, 200)
  assert.equal((await own.get('/services/db')).status, 404)
  for (const path of ['/app-AB12CD34.js.map', '/../aggregator.yaml', '/%2e%2e/api.sock'])
    assert.equal((await own.get(path)).status, 404, path)
})

test('without a dashboard the page says how to get it', async () => {
  const { status, text } = await fleet.get('/')
  assert.equal(status, 404)
  assert.match(text, /npm run build/)
})
