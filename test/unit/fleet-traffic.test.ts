/** Sums of what hosts counted: flags, quantiles, the side of a pair that counts, and that no connection counts twice. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import * as fc from 'fast-check'
import { graphDocument } from '../../src/aggregator/documents/graph.ts'
import { HistogramSum } from '../../src/aggregator/documents/histogram-sum.ts'
import { overviewDocument } from '../../src/aggregator/documents/overview.ts'
import { countedRows, pairsOf } from '../../src/aggregator/documents/pairs.ts'
import { TrafficSum } from '../../src/aggregator/documents/traffic.ts'
import type { PairFigures } from '../../src/aggregator/figures.ts'
import type { GroupBy } from '../../src/model/fleet.ts'
import { reportedService } from '../harness/fleet-reports.ts'
import { momentOf, reading, row } from './fleet-fixtures.ts'

const status = {
  bytes: 1,
  maxBytes: 2,
  oldestMs: { seconds: 0, minutes: undefined, hours: undefined },
  dropped: { names: 0, cells: 0, records: 0 },
}

test('errors are the flags that say that the mesh or the instance failed', () => {
  const sum = new TrafficSum()
  const flags = ['-', 'DENY', 'NC', 'UH', 'UF', 'UC', 'UO', 'DC', 'UT', 'SELF', 'TLS', 'DR', 'PE']
  const closed = Object.fromEntries([...flags, 'NEW'].map((flag) => [flag, 1]))
  sum.add(row('h', 'source', ['a', 'b'], { closed, lost: 2 }))
  assert.deepEqual(sum.endings(), { ended: 16, failed: 10 })
  assert.equal(sum.over(1_000).closed['LOST'], 2)
})

test('nothing ended is no share of errors, and nothing measured no quantile', () => {
  const sum = new TrafficSum()
  sum.add(row('h', 'source', ['a', 'b'], { opened: 3, active: 3 }))
  const { errorShare, connectMs, openedPerSecond } = sum.over(60_000)
  assert.deepEqual([errorShare, connectMs, openedPerSecond], [null, null, 0.05])
})

test('a quantile is the upper edge of its bucket; above the highest bound it is that bound', () => {
  const sum = new HistogramSum()
  sum.add({ bounds: [0.001, 0.01, 0.1, Infinity], counts: [90, 9, 0, 1], sum: 0 })
  assert.deepEqual(sum.quantiles(), { p50: 1, p90: 1, p99: 10 })
  const above = new HistogramSum()
  above.add({ bounds: [0.001, Infinity], counts: [0, 5], sum: 50 })
  assert.deepEqual(above.quantiles(), { p50: 1, p90: 1, p99: 1 })
  assert.equal(new HistogramSum().quantiles(), null)
})

test('quantiles of any histograms lie between those of each, whatever the layouts', () => {
  const histogram = fc
    .uniqueArray(fc.integer({ min: 1, max: 60 }), { minLength: 1, maxLength: 12 })
    .chain((edges) =>
      fc.record({
        bounds: fc.constant(edges.toSorted((a, b) => a - b).map((edge) => edge / 1_000)),
        counts: fc.array(fc.nat(50), { minLength: edges.length, maxLength: edges.length }),
        sum: fc.constant(0),
      }),
    )
  fc.assert(
    fc.property(fc.array(histogram, { minLength: 1, maxLength: 20 }), (all) => {
      const sum = new HistogramSum()
      for (const one of all) sum.add(one)
      const values = all.flatMap(({ bounds, counts }) =>
        bounds.flatMap((bound, i) => Array<number>(counts[i] ?? 0).fill(bound)),
      )
      const ordered = values.toSorted((a, b) => a - b)
      const expected = (share: number): number =>
        Math.round((ordered[Math.ceil(share * ordered.length) - 1] ?? 0) * 1e6) / 1e3
      assert.deepEqual(
        sum.quantiles(),
        ordered.length === 0
          ? null
          : { p50: expected(0.5), p90: expected(0.9), p99: expected(0.99) },
      )
    }),
  )
})

test("figures of a pair are the callers', unless the called side has counted more", () => {
  const calling = row('a', 'source', ['web', 'db'], { opened: 10 })
  const called = row('b', 'destination', ['web', 'db'], { opened: 7 })
  const alone = row('a', 'source', ['web', 'cache'], { opened: 3 })
  const silent = row('b', 'destination', ['sidecar', 'db'], { opened: 2 })
  const one = row('a', 'source', ['mail', 'db'], { opened: 4 })
  const all = row('b', 'destination', ['mail', 'db'], { opened: 9 })
  const pairs = pairsOf([calling, called, alone, silent, one, all])
  assert.deepEqual(pairs.map(countedRows), [[calling], [alone], [silent], [all]])
})

const services = ['web', 'db', 'cache', 'mail']
const hosts = ['h1', 'h2', 'h3', 'h4', 'h5']
const rows: fc.Arbitrary<PairFigures[]> = fc.array(
  fc
    .record({
      host: fc.constantFrom(...hosts),
      reporter: fc.constantFrom('source' as const, 'destination' as const),
      source: fc.constantFrom(...services),
      destination: fc.constantFrom(...services),
      opened: fc.nat(1_000),
      active: fc.nat(50),
      failed: fc.nat(20),
      connect: fc.tuple(fc.nat(9), fc.nat(9), fc.nat(9), fc.nat(9)),
    })
    .map(({ host, reporter, source, destination, failed, ...figures }) =>
      row(host, reporter, [source, destination], { ...figures, closed: { UF: failed } }),
    ),
  { maxLength: 40 },
)

test('however the graph is grouped, its edges sum up to what one side of each pair has counted', () => {
  const fleet = hosts.map((name, i) =>
    reading(name, [reportedService(services[i % 3] ?? '')], {
      facts: { zone: `zone-${i % 2}`, datacenter: i === 4 ? 'dc2' : 'dc1' },
    }),
  )
  const moment = momentOf(fleet)
  fc.assert(
    fc.property(rows, (all) => {
      const counted = pairsOf(all).flatMap(countedRows)
      const opened = counted.reduce(
        (sum, { figures }) => sum + (figures.counts.get('opened') ?? 0),
        0,
      )
      const failed = counted.reduce(
        (sum, { figures }) => sum + (figures.splits.get('closed')?.get('UF') ?? 0),
        0,
      )
      for (const group of ['service', 'host', 'zone', 'datacenter'] as const satisfies GroupBy[]) {
        const { edges, nodes, omitted } = graphDocument(moment, all, group)
        const sum = edges.reduce((total, { traffic }) => total + traffic.openedPerSecond * 60, 0)
        assert.ok(Math.abs(sum - opened) < 1e-6, `${group}: ${sum} of ${opened}`)
        const errors = edges.reduce((total, { traffic }) => total + (traffic.closed['UF'] ?? 0), 0)
        assert.ok(Math.abs(errors - failed) < 1e-6, `${group}: ${errors} of ${failed}`)
        const ids = new Set(nodes.map(({ id }) => id))
        assert.equal(ids.size, nodes.length)
        for (const { source, destination } of edges) {
          assert.ok(ids.has(source) && ids.has(destination))
        }
        assert.equal(omitted, 0)
      }
      const { traffic } = overviewDocument(moment, all, { version: '1', store: status })
      assert.ok(Math.abs(traffic.openedPerSecond * 60 - opened) < 1e-6)
    }),
    { numRuns: 60 },
  )
})

test('a graph of groups is exact where each end is in one group, and says where it is not', () => {
  const moment = momentOf([
    reading('a', [reportedService('web')], { facts: { zone: 'north' } }),
    reading('b', [reportedService('db')], { facts: { zone: 'south' } }),
    reading('c', [reportedService('web')], { facts: { zone: 'south' } }),
  ])
  const called = row('b', 'destination', ['web', 'db'], { opened: 40, connect: [1, 0, 0, 0] })
  const exact = graphDocument(
    moment,
    [called, row('a', 'source', ['web', 'db'], { opened: 39 })],
    'zone',
  )
  assert.deepEqual(
    exact.edges.map(({ source, destination, traffic }) => [
      source,
      destination,
      traffic.openedPerSecond * 60,
      traffic.connectMs?.p50,
    ]),
    [['north', 'south', 40, 1]],
  )
  assert.deepEqual(exact.coverage.notes, [])
  const divided = graphDocument(
    moment,
    [
      called,
      row('a', 'source', ['web', 'db'], { opened: 27 }),
      row('c', 'source', ['web', 'db'], { opened: 9 }),
    ],
    'zone',
  )
  assert.deepEqual(
    divided.edges.map(({ source, traffic }) => [source, traffic.openedPerSecond * 60]),
    [
      ['north', 30],
      ['south', 10],
    ],
  )
  assert.match(divided.coverage.notes.join(), /1 pairs of services .* an estimate/)
})

test('a graph beyond the limits keeps what has most traffic, and says how much it left out', () => {
  const all = Array.from({ length: 2_100 }, (_, i) =>
    row('h', 'source', [`s${i}`, 'hub'], { opened: i }),
  )
  const { nodes, edges, omitted } = graphDocument(momentOf([]), all, 'service')
  assert.equal(nodes.length, 2_000)
  assert.equal(omitted, 101 + 101)
  assert.equal(edges.length, 1_999)
  assert.ok(edges.some(({ source }) => source === 's2099'))
  assert.ok(!edges.some(({ source }) => source === 's0'))
})
