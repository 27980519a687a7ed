/**
 * Service pairs that are idle have no series; their counts stay and go on.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { TrafficCounters } from '../../src/telemetry/counters.ts'
import { createExposition } from '../../src/telemetry/exposition.ts'
import { MetricsReader } from '../../src/telemetry/metrics-reader.ts'
import { WorkerTotals } from '../../src/telemetry/totals.ts'
import { TestClock } from '../harness/test-clock.ts'
import { quietHost } from './telemetry-fixtures.ts'

const MINUTE_MS = 60_000
const OPENED = 'hostmesh_tcp_connections_opened_total'

function scene() {
  const totals = new WorkerTotals()
  const traffic = new TrafficCounters(totals.attach(0).traffic, (row, labels) =>
    totals.announce(0, row, labels),
  )
  const clock = new TestClock()
  const reader = new MetricsReader({ version: '1', totals, host: () => quietHost, clock })
  const exposition = createExposition(() => reader.read())
  return {
    traffic,
    clock,
    row: traffic.row('source', 'web', 'db'),
    /** The lines of a service pair. */
    series: async (source: string): Promise<readonly string[]> =>
      (await exposition.metrics())
        .split('\n')
        .filter((line) => line.includes(`source_service="${source}"`)),
  }
}

function opened(lines: readonly string[]): number | undefined {
  const line = lines.find((text) => text.startsWith(`${OPENED}{`))
  return line === undefined ? undefined : Number(line.split(' ').at(-1))
}

test('a pair has no series when nothing was counted of it for an hour and nothing is open', async () => {
  const { traffic, clock, row, series } = scene()
  traffic.opened(row)
  traffic.closed(row, '-', 5)
  assert.equal(opened(await series('web')), 1)
  clock.pass(59 * MINUTE_MS)
  assert.equal(opened(await series('web')), 1)
  clock.pass(MINUTE_MS)
  assert.deepEqual(await series('web'), [])
})

test('a pair that counts again continues where it ended', async () => {
  const { traffic, clock, row, series } = scene()
  for (let i = 0; i < 7; i += 1) {
    traffic.opened(row)
    traffic.closed(row, '-', 5)
  }
  await series('web')
  clock.pass(90 * MINUTE_MS)
  assert.deepEqual(await series('web'), [])
  traffic.opened(row)
  traffic.closed(row, 'UF', 5)
  assert.equal(opened(await series('web')), 8)
})

test('a pair with an open connection keeps its series, and for an hour after its end', async () => {
  const { traffic, clock, row, series } = scene()
  traffic.opened(row)
  await series('web')
  clock.pass(24 * 60 * MINUTE_MS)
  assert.equal(opened(await series('web')), 1)
  traffic.closed(row, '-', 5)
  clock.pass(59 * MINUTE_MS)
  assert.equal(opened(await series('web')), 1)
})

test('a pair that nobody has read for an hour is shown once', async () => {
  const { traffic, clock, row, series } = scene()
  traffic.opened(row)
  traffic.closed(row, '-', 5)
  clock.pass(120 * MINUTE_MS)
  assert.equal(opened(await series('web')), 1)
  clock.pass(60 * MINUTE_MS)
  assert.deepEqual(await series('web'), [])
})

test('an idle pair does not take the others with it', async () => {
  const { traffic, clock, row, series } = scene()
  traffic.opened(row)
  traffic.closed(row, '-', 5)
  await series('web')
  clock.pass(30 * MINUTE_MS)
  traffic.opened(traffic.row('destination', 'cron', 'db'))
  await series('cron')
  clock.pass(45 * MINUTE_MS)
  assert.deepEqual(await series('web'), [])
  assert.equal(opened(await series('cron')), 1)
})
