/**
 * Which endpoint takes the next connection: power of two choices over peak EWMA. Dice and clock are fixed.
 */
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import {
  costOf,
  observeFailure,
  observeSuccess,
  untriedLoad,
} from '../../src/dataplane/balance/peak-ewma.ts'
import { Balancer } from '../../src/dataplane/balance/picker.ts'
import type { Endpoint, Health } from '../../src/model/endpoint.ts'
import { TestClock } from '../harness/test-clock.ts'

/** Numbers in turn, then again from the first. */
function dice(...values: readonly number[]): () => number {
  let at = 0
  return () => values[at++ % values.length]!
}

/** Uniform, the same in every run. */
function uniform(seed: number): () => number {
  let state = seed
  return () => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0
    return state / 2 ** 32
  }
}

function endpoint(
  key: string,
  parts: { health?: Health; weight?: number; priority?: number } = {},
): Endpoint {
  return {
    key,
    service: 'db',
    datacenter: 'dc1',
    priority: parts.priority ?? 0,
    id: key,
    node: key,
    tunnel: { ip: '10.0.0.1', port: 1 },
    application: undefined,
    health: parts.health ?? 'passing',
    weight: parts.weight ?? 1,
    local: false,
  }
}

const none: ReadonlySet<string> = new Set()
const a = endpoint('a')
const b = endpoint('b')
const c = endpoint('c')

function shares(
  balancer: Balancer,
  endpoints: readonly Endpoint[],
  times: number,
): Record<string, number> {
  const counts: Record<string, number> = {}
  for (let i = 0; i < times; i += 1) {
    const { key } = balancer.pick(endpoints, none)!
    counts[key] = (counts[key] ?? 0) + 1
  }
  return counts
}

test('nobody is picked from nobody', () => {
  assert.equal(new Balancer(new TestClock(), dice(0)).pick([], none), undefined)
})

test('critical instances are left out, warning ones stay', () => {
  const balancer = new Balancer(new TestClock(), uniform(1))
  const endpoints = [
    endpoint('critical', { health: 'critical' }),
    endpoint('warning', { health: 'warning' }),
    endpoint('passing'),
  ]
  assert.deepEqual(Object.keys(shares(balancer, endpoints, 200)).toSorted(), ['passing', 'warning'])
})

test('when all are critical, or tried already, nobody is picked', () => {
  const balancer = new Balancer(new TestClock(), uniform(1))
  const critical = endpoint('x', { health: 'critical' })
  assert.equal(balancer.pick([critical], none), undefined)
  assert.equal(balancer.pick([critical, critical], none), undefined)
  assert.equal(balancer.pick([a], new Set(['a'])), undefined)
  assert.equal(balancer.pick([a, b], new Set(['a', 'b'])), undefined)
})

test('what was tried is not picked again, whatever the dice say', () => {
  for (const first of [0, 0.34, 0.99])
    for (const second of [0, 0.34, 0.99]) {
      const balancer = new Balancer(new TestClock(), dice(first, second))
      assert.equal(balancer.pick([a, b, c], new Set(['a', 'c']))?.key, 'b')
    }
})

test('of two, the one with less in flight is picked', () => {
  const balancer = new Balancer(new TestClock(), dice(0, 0.99))
  balancer.started(a)
  assert.equal(balancer.pick([a, b], none)?.key, 'b')
  balancer.started(b)
  balancer.started(b)
  assert.equal(balancer.pick([a, b], none)?.key, 'a')
  balancer.finished(b)
  balancer.finished(b)
  assert.equal(balancer.pick([a, b], none)?.key, 'b')
})

test('a slow instance is avoided at once, and comes back as time goes by', () => {
  const clock = new TestClock()
  const balancer = new Balancer(clock, dice(0, 0.99))
  balancer.succeeded(a, 400)
  balancer.succeeded(b, 20)
  assert.equal(balancer.pick([a, b], none)?.key, 'b')
  clock.pass(60_000)
  for (let i = 0; i < 3; i += 1) balancer.started(b)
  assert.equal(balancer.pick([a, b], none)?.key, 'a')
})

test('a failed instance is avoided until its failure is old', () => {
  const clock = new TestClock()
  const balancer = new Balancer(clock, dice(0, 0.99))
  balancer.failed(a, [a, b], { cost: 'quick', reason: 'refused' })
  for (let i = 0; i < 50; i += 1) balancer.started(b)
  assert.equal(balancer.pick([a, b], none)?.key, 'b')
  clock.pass(120_000)
  assert.equal(balancer.pick([a, b], none)?.key, 'a')
})

test('equal instances get equal shares', () => {
  const counts = shares(new Balancer(new TestClock(), uniform(7)), [a, b, c], 3_000)
  for (const key of ['a', 'b', 'c'])
    assert.ok(Math.abs(counts[key]! - 1_000) < 150, JSON.stringify(counts))
})

test('weight is a share: with connections that stay, twice the weight holds about twice as many', () => {
  const balancer = new Balancer(new TestClock(), uniform(3))
  const heavy = endpoint('heavy', { weight: 2 })
  const counts: Record<string, number> = { heavy: 0, a: 0 }
  for (let i = 0; i < 600; i += 1) {
    const picked = balancer.pick([heavy, a], none)!
    balancer.started(picked)
    counts[picked.key]! += 1
  }
  const ratio = counts['heavy']! / counts['a']!
  assert.ok(ratio > 1.6 && ratio < 2.4, JSON.stringify(counts))
})

test('what is in flight never goes below zero', () => {
  const balancer = new Balancer(new TestClock(), dice(0, 0.99))
  balancer.finished(a)
  balancer.finished(a)
  balancer.started(a)
  assert.equal(balancer.pick([a, b], none)?.key, 'b')
})

describe('peak EWMA', () => {
  test('believes a slow sample at once', () => {
    const load = untriedLoad(0)
    observeSuccess(load, 300, 10)
    assert.equal(costOf(load, 1, 10), 300)
  })

  test('forgets two thirds of it in ten seconds of quick ones', () => {
    const load = untriedLoad(0)
    observeSuccess(load, 301, 0)
    observeSuccess(load, 1, 10_000)
    assert.ok(Math.abs(costOf(load, 1, 10_000) - (1 + 300 / Math.E)) < 0.01)
  })

  test('decays even when nobody tries', () => {
    const load = untriedLoad(0)
    observeSuccess(load, 1_000, 0)
    const costs = [0, 5_000, 20_000, 100_000].map((nowMs) => costOf(load, 1, nowMs))
    assert.deepEqual(
      costs.toSorted((x, y) => y - x),
      costs,
    )
    assert.ok(costs.at(-1)! < 1.1)
  })

  test('counts a failure as five seconds, and a success ends the row of failures', () => {
    const load = untriedLoad(0)
    observeFailure(load, 0)
    observeFailure(load, 0)
    assert.equal(load.failures, 2)
    assert.equal(costOf(load, 1, 0), 5_000)
    observeSuccess(load, 2, 1)
    assert.equal(load.failures, 0)
  })

  test('multiplies by what is in flight and divides by weight', () => {
    const load = untriedLoad(0)
    observeSuccess(load, 10, 0)
    load.inFlight = 4
    assert.equal(costOf(load, 1, 0), 50)
    assert.equal(costOf(load, 5, 0), 10)
    assert.equal(costOf(load, 0, 0), 50)
  })

  test('a clock that steps back does no harm', () => {
    const load = untriedLoad(1_000)
    observeSuccess(load, 100, 1_000)
    assert.equal(costOf(load, 1, 500), 100)
  })
})
