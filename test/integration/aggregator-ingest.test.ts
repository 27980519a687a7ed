/**
 * Where reports arrive: what is taken, what is refused and how, and that nothing that is posted there costs others.
 */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { request } from 'node:http'
import { connect } from 'node:net'
import { test } from 'node:test'
import { createIngestServer, type IngestLimits } from '../../src/aggregator/ingest.ts'
import { AggregatorCounters } from '../../src/aggregator/metrics.ts'
import { errorSchema } from '../../src/aggregator/schema.ts'
import { closeServer, portOf } from '../../src/lib/json-http.ts'
import { silentLog } from '../../src/lib/log.ts'
import { type HostReport, REPORT_PATH, reportLimits } from '../../src/model/report.ts'
import { eventually } from '../harness/eventually.ts'
import { hostReport, reportedFacts, reportedService } from '../harness/fleet-reports.ts'
import type { MemoryFleetStore } from '../harness/memory-fleet-store.ts'
import { TestClock } from '../harness/test-clock.ts'
import { startTestAggregator } from './aggregator-fixtures.ts'

const facts = reportedFacts([reportedService('web')])

test('a report is stored and answered with what need not be sent again', async () => {
  await using fleet = await startTestAggregator()
  const first = await fleet.post(hostReport('a', { facts, sequence: 1 }))
  assert.deepEqual([first.status, first.json], [200, { accepted: 1 }])
  const again = await fleet.post(hostReport('a', { facts, sequence: 1 }))
  assert.deepEqual(again.json, { accepted: 1 })
  assert.equal(fleet.store.records.length, 1)
  const { text } = await fleet.get('/metrics')
  assert.match(text, /^hostmesh_aggregator_reports_total\{outcome="accepted"\} 2$/m)
})

test('a report with the name of another host is a conflict, and soon not even looked at', async () => {
  await using fleet = await startTestAggregator()
  await fleet.post(hostReport('a', { facts }))
  const posing = await fleet.post(hostReport('a', { facts, key: 'other' }))
  assert.equal(posing.status, 409)
  let asked = 0
  const accept = fleet.store.accept.bind(fleet.store)
  fleet.store.accept = (...report) => {
    asked += 1
    return accept(...report)
  }
  for (let i = 0; i < 30; i += 1) {
    const { status } = await fleet.post(hostReport('a', { facts, key: `other-${i}` }))
    assert.equal(status, 409)
  }
  assert.ok(asked < 12, `the store was asked ${asked} times`)
  assert.equal((await fleet.post(hostReport('a', { facts, sequence: 2 }))).status, 200)
})

test('what is no report is refused, each with its status', async () => {
  await using fleet = await startTestAggregator()
  const statusOf = async (body: unknown, options = {}): Promise<number> =>
    (await fleet.post(body, options)).status
  assert.equal(await statusOf('{"host":'), 400)
  assert.equal(await statusOf({}), 400)
  assert.equal(await statusOf({}, { path: '/other' }), 404)
  assert.equal(await statusOf({}, { headers: { 'content-type': 'text/plain' } }), 415)
  assert.equal(await statusOf({}, { headers: { origin: 'http://localhost' } }), 403)
  assert.equal(await statusOf('', { method: 'GET' }), 405)
  assert.equal(await statusOf('x'.repeat(reportLimits.bytes + 1)), 413)
  const { json } = await fleet.post({ records: [] })
  assert.match(errorSchema.parse(json).error.message, /host: Is missing/)
})

test('a store that fails has the host send again', async () => {
  await using fleet = await startTestAggregator()
  fleet.store.failure = new Error('disk full at /secret')
  const { status, headers, text } = await fleet.post(hostReport('a', { facts }))
  assert.equal(status, 503)
  assert.equal(headers['retry-after'], '2')
  assert.doesNotMatch(text, /secret/)
})

test('a host that reports too often is slowed down, and others are not', async () => {
  await using fleet = await startTestAggregator()
  const statuses: number[] = []
  for (let i = 0; i < 60; i += 1)
    statuses.push((await fleet.post(hostReport('loud', { facts, sequence: i + 1 }))).status)
  assert.ok(statuses.filter((status) => status === 429).length >= 10)
  assert.equal((await fleet.post(hostReport('quiet', { facts }))).status, 200)
})

async function ingest(
  accept: (report: HostReport) => ReturnType<MemoryFleetStore['accept']>,
  limits: Partial<IngestLimits>,
): Promise<AsyncDisposable & { readonly port: number }> {
  const server = createIngestServer({
    store: { accept },
    checkReport: (value) => value as HostReport,
    counters: new AggregatorCounters(),
    clock: new TestClock(),
    log: silentLog,
    limits,
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  return { port: portOf(server), [Symbol.asyncDispose]: () => closeServer(server) }
}

function post(port: number, body: string): Promise<number> {
  return new Promise((resolve, reject) => {
    const headers = { 'content-type': 'application/json' }
    const sent = request(
      { host: '127.0.0.1', port, method: 'POST', path: REPORT_PATH, headers, agent: false },
      (response) => {
        response.resume()
        resolve(response.statusCode ?? 0)
      },
    )
    sent.on('error', reject)
    sent.end(body)
  })
}

test('more reports at once than are stored at once are refused, not queued', async () => {
  const waiting: (() => void)[] = []
  await using server = await ingest(
    () =>
      new Promise((resolve) => {
        waiting.push(() => resolve({ kind: 'accepted', accepted: 1 }))
      }),
    { reports: 3 },
  )
  const body = (i: number): string => JSON.stringify(hostReport(`h${i}`, { facts }))
  const taken = [0, 1, 2].map((i) => post(server.port, body(i)))
  await eventually(() => assert.equal(waiting.length, 3))
  assert.equal(await post(server.port, body(3)), 503)
  for (const finish of waiting) finish()
  assert.deepEqual(await Promise.all(taken), [200, 200, 200])
})

test('a body that is never finished is broken off when others need the memory', async () => {
  await using server = await ingest(async () => ({ kind: 'accepted', accepted: 1 }), {
    bytes: 64 * 1_024,
  })
  const socket = connect(server.port, '127.0.0.1')
  socket.on('error', () => undefined)
  await once(socket, 'connect')
  socket.write(
    `POST ${REPORT_PATH} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 100000\r\n\r\n${'x'.repeat(70_000)}`,
  )
  const isBrokenOff = once(socket, 'close')
  const body = JSON.stringify(hostReport('a', { facts }))
  await eventually(async () => {
    assert.equal(await post(server.port, body), 200)
    assert.ok(socket.destroyed)
  })
  await isBrokenOff
})
