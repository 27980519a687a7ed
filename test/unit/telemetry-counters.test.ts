/**
 * The counters of one worker: rows, columns, bounds, and what is left of them when their thread dies.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Worker } from 'node:worker_threads'
import * as fc from 'fast-check'
import { responseFlags } from '../../src/model/response-flag.ts'
import type { Numbers } from '../../src/telemetry/columns.ts'
import {
  initialTrafficLabels,
  MAX_TRAFFIC_ROWS,
  readTraffic,
  readWorker,
  TrafficCounters,
  type TrafficLabels,
  trafficColumns,
  trafficFlags,
  trafficLayout,
  WorkerCounters,
  workerColumns,
  workerLayout,
} from '../../src/telemetry/counters.ts'

type Row = Numbers<typeof trafficColumns> & { readonly labels: TrafficLabels }

function readRows(
  memory: SharedArrayBuffer,
  labels: readonly (TrafficLabels | undefined)[],
): readonly Row[] {
  return readTraffic(memory, labels).map((row) => ({
    ...trafficLayout.read(row.cells),
    labels: row.labels,
  }))
}

const durationBoundsSeconds = trafficColumns.duration.boundsSeconds
const roundTripBoundsSeconds = workerColumns.tunnelRoundTrip.boundsSeconds

function total(counts: Readonly<Record<string, number>>): number {
  return Object.values(counts).reduce((sum, count) => sum + count, 0)
}

function setUp(): {
  counters: TrafficCounters
  memory: SharedArrayBuffer
  labels: (TrafficLabels | undefined)[]
  announced: number[]
  read: () => readonly Row[]
} {
  const memory = TrafficCounters.createMemory()
  const labels = initialTrafficLabels()
  const announced: number[] = []
  const counters = new TrafficCounters(memory, (row, label) => {
    labels[row] = label
    announced.push(row)
  })
  return { counters, memory, labels, announced, read: () => readRows(memory, labels) }
}

test('a service pair keeps its row and is announced once, before anything is counted', () => {
  const { counters, announced, read } = setUp()
  const row = counters.row('source', 'web', 'db')
  assert.deepEqual(announced, [row])
  assert.equal(counters.row('source', 'web', 'db'), row)
  assert.notEqual(counters.row('destination', 'web', 'db'), row)
  assert.notEqual(counters.row('source', 'db', 'web'), row)
  assert.equal(announced.length, 3)
  assert.deepEqual(
    read().map(({ labels }) => labels),
    [
      { reporter: 'source', source: 'web', destination: 'db' },
      { reporter: 'destination', source: 'web', destination: 'db' },
      { reporter: 'source', source: 'db', destination: 'web' },
    ],
  )
})

test('what is counted in one row is read back from that row and from no other', () => {
  const { counters, read } = setUp()
  const web = counters.row('source', 'web', 'db')
  const api = counters.row('source', 'api', 'db')
  counters.opened(web)
  counters.opened(web)
  counters.opened(web)
  counters.sent(web, 100)
  counters.sent(web, 23)
  counters.received(web, 2 ** 40)
  counters.connectFailed(web)
  counters.closed(web, '-', 12)
  counters.closed(web, 'DENY', 0)
  counters.sent(api, 7)
  const [webRow, apiRow] = read()
  assert.ok(webRow !== undefined && apiRow !== undefined)
  assert.equal(webRow.opened, 3)
  assert.equal(total(webRow.closed), 2)
  assert.equal(webRow.sentBytes, 123)
  assert.equal(webRow.receivedBytes, 2 ** 40)
  assert.equal(webRow.connectFailures, 1)
  assert.equal(webRow.closed.DENY, 1)
  assert.equal(webRow.duration.seconds, 0.012)
  assert.equal(apiRow.opened, 0)
  assert.equal(apiRow.sentBytes, 7)
  assert.equal(total(apiRow.closed), 0)
})

test('every response flag has a column of its own', () => {
  assert.deepEqual(trafficFlags, Object.keys(responseFlags))
  for (const flag of trafficFlags) {
    const { counters, read } = setUp()
    counters.closed(counters.row('source', 'a', 'b'), flag, 0)
    const expected: Record<string, number> = Object.fromEntries(
      trafficFlags.map((other) => [other, Number(other === flag)]),
    )
    assert.deepEqual(read()[0]?.closed, expected)
  }
})

test('a duration is counted in the first bucket whose bound is not below it', () => {
  const { counters, read } = setUp()
  const row = counters.row('source', 'a', 'b')
  for (const bound of durationBoundsSeconds) counters.closed(row, '-', bound * 1_000)
  counters.closed(row, '-', 86_400_001)
  assert.deepEqual(
    read()[0]?.duration.buckets,
    Array.from({ length: durationBoundsSeconds.length + 1 }, () => 1),
  )
})

test('latencies are counted in buckets of their own column, and summed in seconds', () => {
  const { counters, read } = setUp()
  const row = counters.row('source', 'a', 'b')
  counters.row('source', 'c', 'd')
  counters.connected(row, 1_000)
  counters.connected(row, 1_000)
  counters.answered(row, 250)
  counters.answered(row, 1e9)
  const [ab, cd] = read()
  assert.ok(ab !== undefined && cd !== undefined)
  const counted = ({ buckets }: { readonly buckets: readonly number[] }): unknown =>
    buckets.flatMap((count, bucket) => (count === 0 ? [] : [[bucket, count]]))
  // 8 buckets for each doubling from 2^-14 s on; a bound belongs to the bucket below it.
  assert.deepEqual(counted(ab.connectLatency), [[14 * 8 - 1, 2]])
  assert.equal(ab.connectLatency.seconds, 2)
  assert.deepEqual(counted(ab.firstByte), [
    [12 * 8 - 1, 1],
    [159, 1],
  ])
  assert.equal(ab.firstByte.seconds, 1_000_000.25)
  assert.equal(ab.duration.buckets.length, durationBoundsSeconds.length + 1)
  assert.deepEqual([counted(cd.connectLatency), counted(cd.firstByte)], [[], []])
})

test('pairs beyond the last row share one row per reporter, and memory does not grow', () => {
  const { counters, memory, announced, read } = setUp()
  const bytes = memory.byteLength
  for (let i = 0; i < MAX_TRAFFIC_ROWS; i += 1) counters.row('source', `s${i}`, 'db')
  assert.equal(announced.length, MAX_TRAFFIC_ROWS)
  const late = counters.row('source', 'late', 'db')
  assert.equal(counters.row('source', 'later', 'db'), late)
  const lateInbound = counters.row('destination', 'late', 'db')
  assert.notEqual(late, lateInbound)
  counters.opened(late)
  counters.opened(counters.row('source', 'later', 'db'))
  counters.opened(lateInbound)
  assert.equal(announced.length, MAX_TRAFFIC_ROWS, 'the shared rows are never announced')
  assert.equal(memory.byteLength, bytes)
  const others = read().filter(({ labels }) => labels.destination === 'other')
  assert.deepEqual(
    others.map(({ labels, opened }) => [labels.reporter, labels.source, opened]),
    [
      ['source', 'other', 2],
      ['destination', 'other', 1],
    ],
  )
  assert.equal(counters.row('source', 's0', 'db'), 2, 'rows given out before stay')
})

test('a row that is not announced yet is left out, then appears with its full counts', () => {
  const { counters, labels, read } = setUp()
  const row = counters.row('source', 'a', 'b')
  counters.sent(row, 5)
  const announced = labels[row]
  labels[row] = undefined
  assert.deepEqual(read(), [])
  labels[row] = announced
  assert.equal(read()[0]?.sentBytes, 5)
})

test('names such as __proto__ are service names like any other', () => {
  const { counters, read } = setUp()
  for (const name of ['__proto__', 'constructor', 'toString'])
    counters.sent(counters.row('source', name, name), 1)
  assert.deepEqual(
    read().map(({ labels, sentBytes }) => [labels.source, sentBytes]),
    [
      ['__proto__', 1],
      ['constructor', 1],
      ['toString', 1],
    ],
  )
})

test('any sequence of counts adds up', () => {
  const step = fc.record({
    pair: fc.integer({ min: 0, max: 3 }),
    bytes: fc.integer({ min: 0, max: 1e9 }),
    flag: fc.constantFrom(...trafficFlags),
    durationMs: fc.integer({ min: 0, max: 1e9 }),
  })
  fc.assert(
    fc.property(fc.array(step, { maxLength: 60 }), (steps) => {
      const { counters, read } = setUp()
      for (const { pair, bytes, flag, durationMs } of steps) {
        const row = counters.row('destination', `s${pair}`, 'db')
        counters.opened(row)
        counters.sent(row, bytes)
        counters.received(row, bytes * 2)
        counters.closed(row, flag, durationMs)
      }
      const rows = read()
      const sum = (valueOf: (row: Row) => number): number =>
        rows.reduce((so, row) => so + valueOf(row), 0)
      const sentBytes = steps.reduce((so, { bytes }) => so + bytes, 0)
      assert.equal(
        sum((row) => row.opened),
        steps.length,
      )
      assert.equal(
        sum((row) => total(row.closed)),
        steps.length,
      )
      assert.equal(
        sum((row) => row.sentBytes),
        sentBytes,
      )
      assert.equal(
        sum((row) => row.receivedBytes),
        2 * sentBytes,
      )
      for (const row of rows) {
        assert.equal(
          row.duration.buckets.reduce((a, b) => a + b, 0),
          total(row.closed),
        )
      }
    }),
    { numRuns: 100 },
  )
})

test('single numbers are told apart by name, and gauges go down again', () => {
  const memory = WorkerCounters.createMemory()
  const counters = new WorkerCounters(memory)
  counters.inc('tunnelHandshakes')
  counters.inc('tunnelHandshakes', 4)
  counters.inc('protocolErrors')
  counters.set('tunnelSessionsActive', 3)
  counters.set('tunnelSessionsActive', 2)
  counters.refused('memory', 6)
  counters.sessionClosed('lost')
  counters.set('eventLoopDelayMs', 7.5)
  const counts = workerLayout.read(readWorker(memory))
  assert.equal(counts.tunnelHandshakes, 5)
  assert.equal(counts.protocolErrors, 1)
  assert.equal(counts.tunnelHandshakeFailures, 0)
  assert.equal(counts.tunnelSessionsActive, 2)
  assert.equal(counts.eventLoopDelayMs, 7.5)
  assert.deepEqual([total(counts.limitRefusals), counts.limitRefusals.memory], [6, 6])
  assert.deepEqual([total(counts.tunnelSessionsClosed), counts.tunnelSessionsClosed.lost], [1, 1])
})

test('round trips fall into their buckets and sum up in seconds', () => {
  const memory = WorkerCounters.createMemory()
  const counters = new WorkerCounters(memory)
  for (const bound of roundTripBoundsSeconds) counters.roundTrip(bound * 1_000)
  counters.roundTrip(5_000)
  const { tunnelRoundTrip: roundTrips } = workerLayout.read(readWorker(memory))
  assert.deepEqual(
    roundTrips.buckets,
    Array.from({ length: roundTripBoundsSeconds.length + 1 }, () => 1),
  )
  const seconds = roundTripBoundsSeconds.reduce((a, b) => a + b, 0) + 5
  assert.ok(Math.abs(roundTrips.seconds - seconds) < 1e-9)
})

test('what a worker thread counted is read here after the thread has crashed', async () => {
  const memory = TrafficCounters.createMemory()
  const module = new URL('../../src/telemetry/counters.ts', import.meta.url).href
  const worker = new Worker(
    `const { workerData, parentPort } = require('node:worker_threads')
     import(${JSON.stringify(module)}).then(({ TrafficCounters }) => {
       const counters = new TrafficCounters(workerData, (row, labels) => parentPort.postMessage({ row, labels }))
       const row = counters.row('source', 'web', 'db')
       for (let i = 0; i < 1000; i += 1) counters.sent(row, 3)
       process.exit(7)
     })`,
    { eval: true, workerData: memory },
  )
  const labels = initialTrafficLabels()
  worker.on('message', (message: { row: number; labels: TrafficLabels }) => {
    labels[message.row] = message.labels
  })
  const code = await new Promise((resolve) => worker.once('exit', resolve))
  assert.equal(code, 7)
  // The announcement was posted just before process.exit: Node must deliver it before 'exit'.
  assert.deepEqual(
    readRows(memory, labels).map((row) => [row.labels.source, row.sentBytes]),
    [['web', 3_000]],
  )
})
