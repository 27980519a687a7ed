/**
 * Sums over workers: they agree with what each counted and never go backwards, crashes included.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import * as fc from 'fast-check'
import type { Numbers } from '../../src/telemetry/columns.ts'
import {
  TrafficCounters,
  type TrafficLabels,
  type trafficColumns,
  trafficLayout,
  WorkerCounters,
} from '../../src/telemetry/counters.ts'
import { MAX_NODE_PAIRS, WorkerTotals } from '../../src/telemetry/totals.ts'

/** A worker as a thread would set itself up, in this thread. */
function startWorker(
  totals: WorkerTotals,
  id: number,
): { traffic: TrafficCounters; counters: WorkerCounters } {
  const memory = totals.attach(id)
  return {
    traffic: new TrafficCounters(memory.traffic, (row, labels) => totals.announce(id, row, labels)),
    counters: new WorkerCounters(memory.counters),
  }
}

interface Row extends Numbers<typeof trafficColumns> {
  readonly labels: TrafficLabels
  readonly active: number
  readonly lost: number
}

function rowsOf(totals: WorkerTotals): readonly Row[] {
  return totals
    .traffic()
    .map(({ cells, ...others }) => ({ ...trafficLayout.read(cells), ...others }))
}

function onlyRow(totals: WorkerTotals): Row {
  const rows = rowsOf(totals)
  assert.equal(rows.length, 1)
  const [row] = rows
  assert.ok(row !== undefined)
  return row
}

function sumOf(counts: readonly number[]): number {
  return counts.reduce((sum, count) => sum + count, 0)
}

test('workers that count the same pair in different rows are summed', () => {
  const totals = new WorkerTotals()
  const first = startWorker(totals, 0)
  const second = startWorker(totals, 1)
  second.traffic.row('source', 'x', 'y')
  first.traffic.sent(first.traffic.row('source', 'web', 'db'), 1)
  second.traffic.sent(second.traffic.row('source', 'web', 'db'), 2)
  first.counters.inc('tunnelHandshakes', 3)
  second.counters.inc('tunnelHandshakes', 4)
  second.counters.roundTrip(0.05)
  const web = rowsOf(totals).find(({ labels }) => labels.source === 'web')
  assert.equal(web?.sentBytes, 3)
  assert.equal(totals.numbers().tunnelHandshakes, 7)
  assert.equal(totals.numbers().tunnelRoundTrip.buckets[0], 1)
  assert.deepEqual([...totals.cellsByWorker().keys()], [0, 1])
})

test('totals do not go backwards when a worker crashes and another takes its place', () => {
  const totals = new WorkerTotals()
  const before = startWorker(totals, 0)
  const row = before.traffic.row('source', 'web', 'db')
  before.traffic.opened(row)
  before.traffic.opened(row)
  before.traffic.closed(row, 'UF', 5)
  before.traffic.sent(row, 100)
  before.traffic.connected(row, 500)
  before.traffic.answered(row, 2_000)
  before.counters.inc('acceptedConnections', 9)
  before.counters.set('tunnelSessionsActive', 4)
  assert.equal(onlyRow(totals).active, 1)

  totals.retire(0)
  const crashed = onlyRow(totals)
  assert.equal(crashed.opened, 2)
  assert.equal(crashed.active, 0)
  assert.equal(crashed.lost, 1)
  assert.equal(crashed.sentBytes, 100)
  assert.deepEqual([crashed.connectLatency.seconds, crashed.firstByte.seconds], [0.5, 2])
  assert.equal(totals.numbers().acceptedConnections, 9)
  assert.equal(totals.numbers().tunnelSessionsActive, 0, 'gauges end with their worker')

  const after = startWorker(totals, 0)
  const again = after.traffic.row('source', 'web', 'db')
  after.traffic.opened(again)
  after.traffic.sent(again, 11)
  after.traffic.connected(again, 500)
  after.traffic.answered(again, 1_000)
  after.counters.inc('acceptedConnections')
  const sum = onlyRow(totals)
  assert.equal(sum.opened, 3)
  assert.equal(sum.active, 1)
  assert.equal(sum.lost, 1)
  assert.equal(sum.sentBytes, 111)
  assert.equal(sum.connectLatency.seconds, 1)
  assert.equal(sum.connectLatency.buckets[13 * 8 - 1], 2, '0.5 s, of both workers')
  assert.equal(sum.firstByte.seconds, 3)
  assert.equal(sumOf(sum.firstByte.buckets), 2)
  assert.deepEqual(onlyRow(totals), sum, 'a reading changes nothing')
  assert.equal(totals.numbers().acceptedConnections, 10)
  assert.equal(totals.numbers().tunnelSessionsActive, 0)
})

test('a worker that is retired twice is counted once', () => {
  const totals = new WorkerTotals()
  const worker = startWorker(totals, 0)
  worker.traffic.sent(worker.traffic.row('source', 'a', 'b'), 5)
  totals.retire(0)
  totals.retire(0)
  assert.equal(onlyRow(totals).sentBytes, 5)
})

test('attaching a worker that still counts is refused', () => {
  const totals = new WorkerTotals()
  totals.attach(3)
  assert.throws(() => totals.attach(3), /Worker 3 already counts/)
})

test('pairs beyond the bound of the node are counted as other, through any number of workers', () => {
  const totals = new WorkerTotals()
  for (let id = 0; id < 4; id += 1) {
    const { traffic } = startWorker(totals, id)
    for (let i = 0; i < 1_000; i += 1) traffic.sent(traffic.row('source', `w${id}-${i}`, 'db'), 1)
    totals.retire(id)
  }
  const rows = rowsOf(totals)
  assert.equal(rows.length, MAX_NODE_PAIRS + 1)
  const other = rows.find(({ labels }) => labels.source === 'other')
  assert.equal(other?.sentBytes, 4_000 - MAX_NODE_PAIRS)
  assert.equal(
    rows.reduce((total, row) => total + row.sentBytes, 0),
    4_000,
  )
})

test('opened is closed plus lost plus active, and nothing shrinks, whatever workers do', () => {
  const action = fc.record({
    kind: fc.constantFrom('open', 'close', 'crash'),
    worker: fc.integer({ min: 0, max: 2 }),
    source: fc.constantFrom('a', 'b'),
  })
  fc.assert(
    fc.property(fc.array(action, { maxLength: 80 }), (actions) => {
      const totals = new WorkerTotals()
      const workers = [0, 1, 2].map((id) => ({ ...startWorker(totals, id), open: [] as number[] }))
      let openedBefore = 0
      let closedBefore = 0
      for (const { kind, worker: id, source } of actions) {
        const worker = workers[id]
        assert.ok(worker !== undefined)
        if (kind === 'open') {
          const row = worker.traffic.row('source', source, 'db')
          worker.traffic.opened(row)
          worker.open.push(row)
        } else if (kind === 'close') {
          const row = worker.open.pop()
          if (row !== undefined) worker.traffic.closed(row, '-', 1)
        } else {
          totals.retire(id)
          workers[id] = { ...startWorker(totals, id), open: [] }
        }
        let opened = 0
        let closed = 0
        for (const row of rowsOf(totals)) {
          const ended = Object.values(row.closed).reduce((sum, count) => sum + count, 0)
          assert.equal(row.opened, ended + row.lost + row.active)
          opened += row.opened
          closed += ended
        }
        assert.ok(opened >= openedBefore && closed >= closedBefore)
        openedBefore = opened
        closedBefore = closed
      }
      const active = rowsOf(totals).reduce((sum, row) => sum + row.active, 0)
      assert.equal(
        active,
        workers.reduce((sum, worker) => sum + worker.open.length, 0),
      )
    }),
    { numRuns: 100 },
  )
})
