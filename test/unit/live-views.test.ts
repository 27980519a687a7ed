/** The limits of what the aggregator keeps in memory: whoever has the most loses it, and others lose nothing. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { FactsBudget, type HasFacts } from '../../src/aggregator/facts-budget.ts'
import { LiveViews } from '../../src/aggregator/live-views.ts'
import type { HostReport } from '../../src/model/report.ts'
import { hostReport, reportedFacts, reportedService } from '../harness/fleet-reports.ts'

/** A report of `host` in which `count` services call `db` once. */
function report(host: string, count: number, run = 'r'): HostReport {
  const pairs = Array.from({ length: count }, (_, i) => ({
    reporter: 'source' as const,
    source: `web-${i}`,
    destination: 'db',
    opened: 1,
  }))
  return { ...hostReport(host, { pairs }), run: run.repeat(22) }
}

test('hosts with endless pairs, runs and names do not push the views of others out', () => {
  const views = new LiveViews(3_000)
  for (let second = 0; second < 3; second += 1)
    for (let i = 0; i < 100; i += 1) {
      const atMs = second * 1_000 + i
      views.add(report(`honest-${i}`, 10), atMs)
      for (const run of ['a', 'b', 'c']) views.add(report(`hostile-${i % 4}`, 300, run), atMs)
    }
  const { pairs } = views.read(3_000)
  assert.ok(pairs.length <= 3_000, `${pairs.length} pairs`)
  const ofHonest = pairs.filter(({ host }) => host.startsWith('honest'))
  assert.equal(ofHonest.length, 1_000)
  assert.ok(ofHonest.every(({ figures }) => figures.counts.get('opened') === 3))
  assert.ok(views.dropped > 0)
})

test('what is left of all views is nothing, however they went', () => {
  const views = new LiveViews(5_000)
  for (let i = 0; i < 200; i += 1)
    views.add(report(`host-${i % 7}`, 100 * (i % 20), String(i % 10)), i * 50)
  views.expire(1_000_000)
  for (let i = 0; i < 4; i += 1) views.add(report('later', 1_250), 1_000_000 + i)
  assert.equal(views.read(1_000_003).pairs.length, 1_250)
  const dropped = views.dropped
  views.add(report('later', 1), 1_000_004)
  assert.equal(views.dropped, dropped + 1, 'the limit is still where it was')
})

test('facts of all hosts are bounded: the largest go first, and come again', () => {
  const budget = new FactsBudget(1_000)
  const host = (): HasFacts => ({ facts: undefined })
  const services = (count: number) =>
    reportedFacts(Array.from({ length: count }, (_, i) => reportedService(`s${i}`)))
  const honest = Array.from({ length: 20 }, host)
  for (const one of honest) budget.set(one, services(10))
  for (let i = 0; i < 100; i += 1) budget.set(host(), services(900))
  assert.ok(honest.every(({ facts }) => facts?.services.length === 10))
  const [first] = honest
  assert.ok(first)
  budget.forget(first)
  budget.set(first, services(700))
  assert.equal(first.facts?.services.length, 700)
})
