/** Intervals: what is counted between readings, and their sums. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import * as fc from 'fast-check'
import type { Interval } from '../../src/model/report.ts'
import { trafficLayout, workerLayout } from '../../src/telemetry/counters.ts'
import { IntervalMeter, mergeIntervals } from '../../src/telemetry/interval.ts'
import type { TrafficTotal } from '../../src/telemetry/totals.ts'

function total(
  destination: string,
  values: { readonly opened: number; readonly sentBytes?: number; readonly active?: number },
): TrafficTotal {
  const cells = trafficLayout.empty()
  cells[trafficLayout.start.opened] = values.opened
  cells[trafficLayout.start.sentBytes] = values.sentBytes ?? 0
  return {
    labels: { reporter: 'source', source: 'web', destination },
    cells,
    active: values.active ?? 0,
    lost: 0,
  }
}

function hostCells(handshakes: number, sessions: number): Float64Array {
  const cells = workerLayout.empty()
  cells[workerLayout.start.tunnelHandshakes] = handshakes
  cells[workerLayout.start.tunnelSessionsActive] = sessions
  return cells
}

/** The sum of one column over an interval, by destination. */
function sums({ names, pairs }: Interval, cell: number): Record<string, number> {
  const result: Record<string, number> = {}
  for (const [, , destination, , , cells] of pairs)
    for (let i = 0; i < cells.length; i += 2)
      if (cells[i] === cell) {
        const name = names[destination] ?? ''
        result[name] = (result[name] ?? 0) + (cells[i + 1] ?? 0)
      }
  return result
}

const { opened, sentBytes } = trafficLayout.start

test('an interval has what was counted since the one before, and leaves out pairs of which nothing was', () => {
  const meter = new IntervalMeter()
  const cells = hostCells(3, 2)
  meter.take({ traffic: [total('db', { opened: 5 }), total('idle', { opened: 1 })], cells }, 1_000)
  const interval = meter.take(
    {
      traffic: [total('db', { opened: 7, sentBytes: 10 }), total('idle', { opened: 1 })],
      cells: hostCells(4, 2),
    },
    1_000,
  )
  assert.deepEqual(interval, {
    spanMs: 1_000,
    names: ['web', 'db'],
    pairs: [[0, 0, 1, 0, 0, [opened, 2, sentBytes, 10]]],
    host: [workerLayout.start.tunnelHandshakes, 1, workerLayout.start.tunnelSessionsActive, 2],
  })
})

test('a pair with open connections is in the interval although nothing was counted', () => {
  const meter = new IntervalMeter()
  const reading = { traffic: [total('db', { opened: 1, active: 1 })], cells: hostCells(0, 0) }
  meter.take(reading, 1_000)
  assert.deepEqual(meter.take(reading, 1_000).pairs, [[0, 0, 1, 1, 0, []]])
})

test('merging adds counts, keeps the last gauges and the last number of open connections', () => {
  const meter = new IntervalMeter()
  const first = meter.take(
    { traffic: [total('db', { opened: 2, active: 2 })], cells: hostCells(1, 5) },
    1_000,
  )
  const second = meter.take(
    { traffic: [total('db', { opened: 3, active: 0 })], cells: hostCells(2, 4) },
    2_000,
  )
  assert.deepEqual(mergeIntervals(first, second), {
    spanMs: 3_000,
    names: ['web', 'db'],
    pairs: [[0, 0, 1, 0, 0, [opened, 3]]],
    host: [workerLayout.start.tunnelHandshakes, 2, workerLayout.start.tunnelSessionsActive, 4],
  })
})

test('intervals in any grouping sum up to what was counted', () => {
  const reading = fc.array(
    fc.record({ destination: fc.constantFrom('a', 'b', 'c'), more: fc.nat(9) }),
    { maxLength: 5 },
  )
  fc.assert(
    fc.property(fc.array(reading, { minLength: 1, maxLength: 12 }), (readings) => {
      const meter = new IntervalMeter()
      const counts = new Map<string, number>()
      const intervals = readings.map((changes) => {
        for (const { destination, more } of changes)
          counts.set(destination, (counts.get(destination) ?? 0) + more)
        const traffic = [...counts].map(([name, count]) => total(name, { opened: count }))
        return meter.take({ traffic, cells: hostCells(0, 0) }, 1_000)
      })
      const merged = intervals.reduce(mergeIntervals)
      const expected = [...counts].filter(([, count]) => count > 0)
      assert.deepEqual(new Map(Object.entries(sums(merged, opened))), new Map(expected))
    }),
  )
})
