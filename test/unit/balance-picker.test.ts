/**
 * Which endpoint takes the next connection: turns by weight, and who is passed over. Dice and clock are fixed.
 */
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import * as fc from 'fast-check'
import {
  isSlower,
  latencyOf,
  observeFailure,
  observeSuccess,
  untriedLoad,
} from '../../src/dataplane/balance/latency.ts'
import { Balancer, candidates } from '../../src/dataplane/balance/picker.ts'
import type { Endpoint, Health } from '../../src/model/endpoint.ts'
import { endpoint } from '../harness/builders.ts'
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

/** The first turn is that of the first of two, then they take turns; the other one is always what it is compared with. */
function facing(): () => number {
  return dice(0, 0.99, 0.99, 0, 0.99, 0)
}

test('of two, one that holds much more is passed over', () => {
  const balancer = new Balancer(new TestClock(), facing())
  for (let i = 0; i < 30; i += 1) balancer.started(a)
  assert.equal(balancer.pick([a, b], none)?.key, 'b')
  const again = new Balancer(new TestClock(), facing())
  for (let i = 0; i < 30; i += 1) again.started(a)
  for (let i = 0; i < 30; i += 1) again.finished(a)
  assert.equal(again.pick([a, b], none)?.key, 'a')
})

test('a slow instance gets fewer connections soon, and its share back as time goes by', () => {
  const clock = new TestClock()
  const endpoints = [a, b]
  const balancer = new Balancer(clock, facing())
  for (let i = 0; i < 4; i += 1) {
    balancer.succeeded(a, 400)
    balancer.succeeded(b, 20)
  }
  assert.equal(balancer.pick(endpoints, none)?.key, 'b')
  clock.pass(60_000)
  assert.equal(balancer.pick(endpoints, none)?.key, 'b')
  assert.equal(balancer.pick(endpoints, none)?.key, 'a')
})

test('a failed instance gets fewer connections until its failure is old', () => {
  const clock = new TestClock()
  const endpoints = [a, b]
  const balancer = new Balancer(clock, facing())
  balancer.failed(a, endpoints, { cost: 'quick', reason: 'refused' })
  for (let i = 0; i < 50; i += 1) balancer.started(b)
  assert.equal(balancer.pick(endpoints, none)?.key, 'b')
  clock.pass(120_000)
  assert.equal(balancer.pick(endpoints, none)?.key, 'a')
  assert.equal(balancer.pick(endpoints, none)?.key, 'a')
})

test('equal instances get equal shares', () => {
  const counts = shares(new Balancer(new TestClock(), uniform(7)), [a, b, c], 3_000)
  for (const key of ['a', 'b', 'c'])
    assert.ok(Math.abs(counts[key]! - 1_000) < 150, JSON.stringify(counts))
})

test('what is in flight never goes below zero', () => {
  const balancer = new Balancer(new TestClock(), facing())
  balancer.finished(a)
  balancer.finished(a)
  balancer.started(a)
  assert.equal(balancer.peek(a)?.inFlight, 1)
})

/** Connections of random length to instances that are all the same, `atOnce` of them at a time; who got how many. */
function calls(
  balancer: Balancer,
  endpoints: readonly Endpoint[],
  { times, atOnce, random }: { times: number; atOnce: number; random: () => number },
): Map<string, number> {
  const counts = new Map<string, number>(endpoints.map(({ key }) => [key, 0]))
  const open: Endpoint[] = []
  for (let i = 0; i < times; i += 1) {
    if (open.length >= atOnce)
      balancer.finished(open.splice(Math.floor(random() * open.length), 1)[0]!)
    const picked = balancer.pick(endpoints, none)!
    balancer.started(picked)
    balancer.succeeded(picked, 1 + 4 * random())
    counts.set(picked.key, counts.get(picked.key)! + 1)
    open.push(picked)
  }
  return counts
}

describe('weights are shares', () => {
  const dozen = Array.from({ length: 12 }, (_, i) => endpoint(`m${i}`, { weight: 1 + i }))
  const mixes: readonly (readonly Endpoint[])[] = [
    [a, b],
    [endpoint('heavy', { weight: 10 }), a],
    [a, endpoint('heavy', { weight: 100 })],
    [endpoint('heavy', { weight: 10 }), endpoint('other', { weight: 10 }), a, b, c],
    [endpoint('heavy', { weight: 65_535 }), endpoint('half', { weight: 32_768 }), a],
    dozen,
  ]
  for (const mix of mixes) {
    const name = mix.map(({ weight }) => weight).join(':')
    test(`${name}, whatever the dice say and however many are open`, () => {
      const total = mix.reduce((sum, { weight }) => sum + weight, 0)
      for (const atOnce of [1, 2, 16, 100, 1_000])
        for (const seed of [1, 2, 3, 4, 5]) {
          const random = uniform(seed * 7_919)
          const balancer = new Balancer(new TestClock(), random)
          const counts = calls(balancer, mix, { times: 3_300, atOnce, random })
          for (const { key, weight } of mix) {
            const off = Math.abs(counts.get(key)! / 3_300 - weight / total)
            assert.ok(off < 0.01, `${atOnce} at once, dice ${seed}: ${JSON.stringify([...counts])}`)
          }
        }
    })
  }

  test('a few calls are dealt out as well as many', () => {
    for (let seed = 1; seed <= 50; seed += 1) {
      const balancer = new Balancer(new TestClock(), uniform(seed))
      const counts = shares(balancer, [endpoint('heavy', { weight: 10 }), a], 110)
      assert.ok(Math.abs(counts['a']! - 10) <= 1, JSON.stringify(counts))
    }
  })

  test('now and then a spike of latency does not shift them', () => {
    const endpoints = [endpoint('heavy', { weight: 10 }), a]
    for (let seed = 1; seed <= 20; seed += 1) {
      const random = uniform(seed * 31)
      const clock = new TestClock()
      const balancer = new Balancer(clock, random)
      let light = 0
      for (let i = 0; i < 1_100; i += 1) {
        clock.pass(2)
        const picked = balancer.pick(endpoints, none)!
        balancer.succeeded(picked, random() < 0.1 ? 20 + 80 * random() : 1 + 4 * random())
        if (picked === a) light += 1
      }
      assert.ok(Math.abs(light - 100) < 11, `dice ${seed}: ${light}`)
    }
  })

  test('of what was tried already the others have the shares', () => {
    const balancer = new Balancer(new TestClock(), uniform(5))
    const endpoints = [endpoint('huge', { weight: 65_535 }), endpoint('heavy', { weight: 3 }), a]
    let light = 0
    for (let i = 0; i < 2_000; i += 1)
      if (balancer.pick(endpoints, new Set(['huge']))?.key === 'a') light += 1
    assert.ok(Math.abs(light - 500) < 80, `${light}`)
  })
})

describe('latency steers within what weights allow', () => {
  const heavy = endpoint('heavy', { weight: 10 })

  /** The share of `a` beside `other`, with connect times of so many milliseconds. */
  function shareOfA(other: Endpoint, timesMs: Record<string, number>): number {
    const clock = new TestClock()
    const balancer = new Balancer(clock, uniform(9))
    const endpoints = [other, a]
    let light = 0
    for (let i = 0; i < 4_000; i += 1) {
      clock.pass(1)
      const picked = balancer.pick(endpoints, none)!
      balancer.started(picked)
      balancer.succeeded(picked, timesMs[picked.key]!)
      balancer.finished(picked)
      if (picked === a) light += 1
    }
    return light / 4_000
  }

  test('a slow one of two equals gets half of its share', () => {
    const share = shareOfA(b, { a: 60, b: 1 })
    assert.ok(Math.abs(share - 1 / 4) < 0.03, `${share}`)
  })

  test('a slow light one gets next to nothing, and a slow heavy one does not drown the light one', () => {
    const slowLight = shareOfA(heavy, { a: 60, heavy: 1 })
    assert.ok(slowLight < 0.02, `${slowLight}`)
    const slowHeavy = shareOfA(heavy, { a: 1, heavy: 60 })
    assert.ok(Math.abs(slowHeavy - 21 / 121) < 0.03, `${slowHeavy}`)
  })

  test('one that keeps its connections open passes new ones on', () => {
    const balancer = new Balancer(new TestClock(), uniform(9))
    const endpoints = [heavy, a]
    let stuck = 0
    for (let i = 0; i < 1_100; i += 1) {
      const picked = balancer.pick(endpoints, none)!
      balancer.started(picked)
      balancer.succeeded(picked, 1)
      if (picked === a) stuck += 1
      else balancer.finished(picked)
    }
    // 100 by weight.
    assert.ok(stuck < 30, `${stuck}`)
  })
})

describe('latency', () => {
  test('is not concluded from one sample, but from few', () => {
    for (const tookMs of [60, 300, 5_000]) {
      const slow = untriedLoad(0)
      observeSuccess(slow, tookMs, 10)
      assert.equal(isSlower(slow, untriedLoad(0), 10), false)
      for (let i = 0; i < 3; i += 1) observeSuccess(slow, tookMs, 10)
      assert.equal(isSlower(slow, untriedLoad(0), 10), true)
      assert.equal(isSlower(untriedLoad(0), slow, 10), false)
    }
  })

  test('comes back as quick samples come, or as time goes by', () => {
    const load = untriedLoad(0)
    observeSuccess(load, 400, 0)
    for (let i = 0; i < 40; i += 1) observeSuccess(load, 2, 0)
    assert.equal(isSlower(load, untriedLoad(0), 0), false)
    const alone = untriedLoad(0)
    observeSuccess(alone, 4_000, 0)
    const seen = [0, 5_000, 20_000, 100_000].map((nowMs) => latencyOf(alone, nowMs))
    assert.deepEqual(
      seen.toSorted((x, y) => y - x),
      seen,
    )
    assert.ok(seen.at(-1)! < 1.1)
  })

  test('an old estimate gives way to a new sample', () => {
    const load = untriedLoad(0)
    observeSuccess(load, 800, 0)
    observeSuccess(load, 5, 100_000)
    assert.ok(Math.abs(latencyOf(load, 100_000) - 5) < 0.1)
  })

  test('counts a failure as five seconds, and a success ends the row of failures', () => {
    const load = untriedLoad(0)
    observeFailure(load, 0)
    observeFailure(load, 0)
    assert.equal(load.failures, 2)
    assert.equal(latencyOf(load, 0), 5_000)
    assert.equal(isSlower(load, untriedLoad(0), 0), true)
    observeSuccess(load, 2, 1)
    assert.equal(load.failures, 0)
  })

  test('a clock that steps back does no harm', () => {
    const load = untriedLoad(1_000)
    observeSuccess(load, 101, 1_000)
    assert.equal(latencyOf(load, 500), 26)
  })
})

describe('candidates', () => {
  const shape = fc.record({
    health: fc.constantFrom<Health>('passing', 'warning', 'critical'),
    priority: fc.integer({ min: 0, max: 2 }),
    failures: fc.integer({ min: 0, max: 4 }),
    isSlow: fc.boolean(),
  })

  test('are those that the balancer picks, whatever failed before and how long ago', () => {
    fc.assert(
      fc.property(
        fc.array(shape, { maxLength: 6 }),
        fc.constantFrom(0, 29_000, 31_000),
        fc.integer(),
        (shapes, laterMs, seed) => {
          const clock = new TestClock()
          const balancer = new Balancer(clock, uniform(seed))
          const endpoints = shapes
            .toSorted((left, right) => left.priority - right.priority)
            .map((each, index) => ({ ...each, endpoint: endpoint(`e${index}`, each) }))
          const all = endpoints.map((each) => each.endpoint)
          for (const each of endpoints)
            for (let i = 0; i < each.failures; i += 1) {
              balancer.started(each.endpoint)
              const cost = each.isSlow ? 'slow' : 'quick'
              balancer.failed(each.endpoint, all, { cost, reason: 'refused' })
              balancer.finished(each.endpoint)
            }
          clock.pass(laterMs)
          const expected = candidates(all, (each) => balancer.peek(each)?.ejectionReason ?? null)
            .filter(({ exclusionReason }) => exclusionReason === undefined)
            .map((each) => each.endpoint.key)
          const picked = new Set<string>()
          for (let i = 0; i < 200; i += 1) {
            const one = balancer.pick(all, none)
            if (one !== undefined) picked.add(one.key)
          }
          for (const key of picked)
            assert.ok(expected.includes(key), `${key} of ${expected.join()}`)
          assert.equal(picked.size > 0, expected.length > 0)
        },
      ),
      { numRuns: 300 },
    )
  })

  test('one that is due to be tried again is among them', () => {
    const clock = new TestClock()
    const balancer = new Balancer(clock, uniform(1))
    balancer.failed(a, [a, b], { cost: 'slow', reason: 'timed out' })
    const excluded = (): (string | undefined)[] =>
      candidates([a, b], (each) => balancer.peek(each)?.ejectionReason ?? null).map(
        ({ exclusionReason }) => exclusionReason,
      )
    assert.deepEqual(excluded(), ['connections to it failed (timed out)', undefined])
    clock.pass(30_000)
    assert.deepEqual(excluded(), [undefined, undefined])
  })
})
