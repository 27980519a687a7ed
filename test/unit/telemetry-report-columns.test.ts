/**
 * The columns and cells of a report: what an aggregator reads with them is what was counted.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import * as fc from 'fast-check'
import { type ReportColumn, reportLimits, type SparseCells } from '../../src/model/report.ts'
import {
  TrafficCounters,
  trafficColumns,
  trafficLayout,
  WorkerCounters,
  workerLayout,
} from '../../src/telemetry/counters.ts'
import { reportColumns, sparse } from '../../src/telemetry/report-columns.ts'
import { WorkerTotals } from '../../src/telemetry/totals.ts'

/** The number of cells by what src/model/report.ts says of each kind. */
function cellsOf(column: ReportColumn): number {
  if (column.kind === 'split') return column.values.length
  if (column.kind === 'histogram') return column.boundsSeconds.length + 2
  return column.kind === 'exponential' ? column.cells : 1
}

/** The first cell of a column. */
function startOf(columns: readonly ReportColumn[], name: string): number {
  const at = columns.findIndex((column) => column.name === name)
  assert.ok(at >= 0, name)
  return columns.slice(0, at).reduce((sum, column) => sum + cellsOf(column), 0)
}

function dense(cells: SparseCells, width: number): Float64Array {
  const all = new Float64Array(width)
  for (let at = 0; at < cells.length; at += 2) all[cells[at] ?? 0] = cells[at + 1] ?? 0
  return all
}

test('a report has every column in the order of its cells, within the limits of a report', () => {
  const { pair, host } = reportColumns()
  for (const [columns, layout] of [
    [pair, trafficLayout],
    [host, workerLayout],
  ] as const) {
    assert.deepEqual(
      columns.map(({ name }) => [name, startOf(columns, name)]),
      Object.entries(layout.start),
    )
    const width = columns.reduce((sum, column) => sum + cellsOf(column), 0)
    assert.equal(width, layout.width)
    assert.ok(columns.length <= reportLimits.columns)
    assert.ok(width <= reportLimits.cells)
  }
})

test('each kind is told with what a reader needs', () => {
  const { pair, host } = reportColumns()
  assert.deepEqual(
    pair.find(({ name }) => name === 'firstByte'),
    { name: 'firstByte', kind: 'exponential', scale: 3, offset: -112, cells: 161 },
  )
  assert.deepEqual(
    pair.find(({ name }) => name === 'duration'),
    {
      name: 'duration',
      kind: 'histogram',
      boundsSeconds: trafficColumns.duration.boundsSeconds,
    },
  )
  assert.deepEqual(
    pair.find(({ name }) => name === 'closed'),
    {
      name: 'closed',
      kind: 'split',
      label: 'response_flags',
      values: trafficColumns.closed.values,
    },
  )
  assert.deepEqual(
    host.find(({ name }) => name === 'heldBytes'),
    { name: 'heldBytes', kind: 'gauge' },
  )
})

test('sparse cells are those that are not zero, and lose nothing', () => {
  assert.deepEqual(sparse(Float64Array.of(0, 5, 0, 0.25)), [1, 5, 3, 0.25])
  const cell = fc.oneof(fc.constant(0), fc.double({ min: 0, max: 1e12, noNaN: true }))
  fc.assert(
    fc.property(fc.array(cell, { maxLength: 50 }), (values) => {
      const cells = Float64Array.from(values)
      assert.deepEqual(dense(sparse(cells), cells.length), cells)
    }),
  )
})

test('what was counted between two readings is their difference, whichever worker counted it', () => {
  const totals = new WorkerTotals()
  const start = (id: number): TrafficCounters =>
    new TrafficCounters(totals.attach(id).traffic, (row, labels) =>
      totals.announce(id, row, labels),
    )
  const reading = (): Float64Array => totals.traffic()[0]?.cells ?? trafficLayout.empty()
  const first = start(0)
  const second = start(1)
  first.connected(first.row('source', 'web', 'db'), 250)
  const earlier = reading()
  first.connected(first.row('source', 'web', 'db'), 1_000)
  second.answered(second.row('source', 'web', 'db'), 0.01)
  totals.retire(1)
  const { pair } = reportColumns()
  const connect = startOf(pair, 'connectLatency')
  const firstByte = startOf(pair, 'firstByte')
  // 1 s is the upper bound of a bucket: 8 for each of the 14 doublings below it.
  assert.deepEqual(sparse(trafficLayout.since(reading(), earlier)), [
    connect + 8 * 14 - 1,
    1,
    connect + 160,
    1,
    firstByte,
    1,
    firstByte + 160,
    0.000_01,
  ])
  assert.deepEqual(sparse(trafficLayout.since(reading(), reading())), [])
})

test('a gauge in a difference is its present value', () => {
  const totals = new WorkerTotals()
  const worker = new WorkerCounters(totals.attach(0).counters)
  worker.inc('overflow', 7)
  worker.set('tunnelSessionsActive', 4)
  const earlier = totals.cells()
  worker.inc('overflow', 2)
  worker.set('tunnelSessionsActive', 3)
  const { overflow, tunnelSessionsActive } = workerLayout.read(
    workerLayout.since(totals.cells(), earlier),
  )
  assert.deepEqual([overflow, tunnelSessionsActive], [2, 3])
})
