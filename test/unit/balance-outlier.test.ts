/**
 * Outlier detection: which endpoints are ejected, for how long, and which never are. Time stands still unless it is moved.
 */
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { array, assert as check, constantFrom, integer, nat, property, record } from 'fast-check'
import {
  FAILURES_TO_EJECT,
  FIRST_EJECTION_MS,
  FORGET_MS,
  FORGIVE_MS,
  LONGEST_EJECTION_MS,
  MAX_OUTLIERS,
  OutlierDetector,
} from '../../src/dataplane/balance/outlier.ts'
import { Balancer } from '../../src/dataplane/balance/picker.ts'
import type { Endpoint } from '../../src/model/endpoint.ts'
import { endpoint } from '../harness/builders.ts'
import { TestClock } from '../harness/test-clock.ts'

function uniform(seed: number): () => number {
  let state = seed
  return () => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0
    return state / 2 ** 32
  }
}

const none: ReadonlySet<string> = new Set()
const quick = { cost: 'quick', reason: 'refused' } as const
const slow = { cost: 'slow', reason: 'no answer' } as const
const always = (): boolean => true

function setUp(...endpoints: readonly Endpoint[]) {
  const clock = new TestClock()
  const balancer = new Balancer(clock, uniform(1))
  const fail = (one: Endpoint, failure: typeof quick | typeof slow, times = 1): void => {
    for (let i = 0; i < times; i += 1) {
      balancer.started(one)
      balancer.failed(one, endpoints, failure)
      balancer.finished(one)
    }
  }
  const succeed = (one: Endpoint): void => {
    balancer.started(one)
    balancer.succeeded(one, 1)
    balancer.finished(one)
  }
  const reached = (except = none): string[] => {
    const keys = new Set<string | undefined>()
    for (let i = 0; i < 200; i += 1) keys.add(balancer.pick(endpoints, except)?.key)
    return [...keys].map((key) => key ?? 'nobody').toSorted()
  }
  return { clock, balancer, fail, succeed, reached }
}

describe('an endpoint', () => {
  const [a, b, c] = [endpoint('a'), endpoint('b'), endpoint('c')]

  test('is ejected after three quick failures in a row', () => {
    const { fail, reached, succeed } = setUp(a, b)
    fail(a, quick, FAILURES_TO_EJECT - 1)
    succeed(a)
    fail(a, quick, FAILURES_TO_EJECT - 1)
    assert.deepEqual(reached(), ['a', 'b'])
    fail(a, quick)
    assert.deepEqual(reached(), ['b'])
  })

  test('is ejected after one failure that cost a deadline', () => {
    const { fail, reached } = setUp(a, b)
    fail(a, slow)
    assert.deepEqual(reached(), ['b'])
  })

  test('comes back by the first connection that succeeds, and one alone tries it', () => {
    const { balancer, clock, fail, reached } = setUp(a, b, c)
    fail(a, slow)
    clock.pass(FIRST_EJECTION_MS - 1)
    assert.deepEqual(reached(), ['b', 'c'])
    clock.pass(1)
    assert.deepEqual(reached(), ['a', 'b', 'c'])
    balancer.started(a)
    assert.deepEqual(reached(), ['b', 'c'], 'while one connection tries it')
    balancer.succeeded(a, 1)
    assert.equal(balancer.ejectedCount, 0)
    balancer.finished(a)
    assert.deepEqual(reached(), ['a', 'b', 'c'])
  })

  test('whose probe came to no verdict is probed again', () => {
    const { balancer, clock, fail, reached } = setUp(a, b)
    fail(a, slow)
    clock.pass(FIRST_EJECTION_MS)
    balancer.started(a)
    balancer.finished(a)
    assert.deepEqual(reached(), ['a', 'b'])
  })

  test('takes its full share as soon as it is back', () => {
    const { balancer, clock, fail, succeed } = setUp(a, b)
    succeed(b)
    fail(a, slow)
    clock.pass(FIRST_EJECTION_MS)
    succeed(a)
    let picked = 0
    for (let i = 0; i < 1_000; i += 1) if (balancer.pick([a, b], none)?.key === 'a') picked += 1
    assert.ok(picked > 400, `picked ${picked} times of 1000`)
  })

  test('whose probe fails is ejected for twice as long, up to five minutes', () => {
    const { balancer, clock, fail, reached } = setUp(a, b)
    fail(a, slow)
    const lengths: number[] = []
    for (let i = 0; i < 6; i += 1) {
      const [{ leftMs } = { leftMs: 0 }] = balancer.ejections()
      lengths.push(leftMs)
      clock.pass(leftMs - 1)
      assert.deepEqual(reached(), ['b'])
      clock.pass(1)
      fail(a, quick)
    }
    assert.deepEqual(lengths, [30_000, 60_000, 120_000, 240_000, 300_000, 300_000])
    assert.equal(LONGEST_EJECTION_MS, 300_000)
  })

  test('has its record shortened by time in use', () => {
    const { balancer, clock, fail, succeed } = setUp(a, b)
    const eject = (): number => {
      fail(a, slow)
      const [{ leftMs } = { leftMs: 0 }] = balancer.ejections()
      clock.pass(leftMs)
      succeed(a)
      return leftMs
    }
    assert.deepEqual([eject(), eject(), eject()], [30_000, 60_000, 120_000])
    clock.pass(2 * FORGIVE_MS)
    assert.equal(eject(), 60_000)
    clock.pass(10 * FORGIVE_MS)
    assert.equal(eject(), 30_000)
  })

  test('stays ejected when the snapshot changes around it', () => {
    const { balancer, fail } = setUp(a, b)
    fail(a, slow)
    const next = [{ ...a, weight: 7 }, b, c]
    for (let i = 0; i < 100; i += 1) assert.notEqual(balancer.pick(next, none)?.key, 'a')
  })

  test('that is gone is forgotten', () => {
    const { balancer, clock, fail } = setUp(a, b)
    fail(a, slow)
    clock.pass(FIRST_EJECTION_MS + FORGET_MS - 1)
    balancer.tick()
    assert.equal(balancer.ejectedCount, 1)
    clock.pass(1)
    balancer.tick()
    assert.equal(balancer.ejectedCount, 0)
  })

  test('says why it is ejected', () => {
    const { balancer, fail } = setUp(a, b)
    fail(a, slow)
    assert.deepEqual(balancer.ejections(), [
      { key: 'a', reason: 'no answer', leftMs: FIRST_EJECTION_MS, times: 1 },
    ])
  })
})

describe('a service', () => {
  test('of one instance keeps it, however often it fails', () => {
    const only = endpoint('only')
    const { fail, reached } = setUp(only)
    fail(only, slow, 10)
    assert.deepEqual(reached(), ['only'])
  })

  test('of two or three loses one, of ten loses five', () => {
    for (const [count, left] of [
      [2, 1],
      [3, 2],
      [10, 5],
    ] as const) {
      const endpoints = Array.from({ length: count }, (_, i) => endpoint(`e${i}`))
      const { fail, reached } = setUp(...endpoints)
      for (const one of endpoints) fail(one, slow, 5)
      assert.equal(reached().length, left, `${count} endpoints`)
    }
  })

  test('counts only instances that the catalog offers', () => {
    const endpoints = [endpoint('a'), endpoint('b'), endpoint('c', { health: 'critical' })]
    const { fail, reached } = setUp(...endpoints)
    for (const one of endpoints.slice(0, 2)) fail(one, slow, 5)
    assert.deepEqual(reached(), ['b'])
  })

  test('uses ejected instances when the others were tried in vain', () => {
    const [a, b] = [endpoint('a'), endpoint('b')]
    const { fail, reached } = setUp(a, b)
    fail(a, slow)
    assert.deepEqual(reached(new Set(['b'])), ['a'])
    assert.deepEqual(reached(new Set(['a', 'b'])), ['nobody'])
  })
})

describe('priorities', () => {
  const primary = [endpoint('p1'), endpoint('p2')]
  const failover = [endpoint('f1', { priority: 1 }), endpoint('f2', { priority: 1 })]
  const last = [endpoint('l1', { priority: 2 })]

  test('the first alone takes traffic while anybody of it is healthy', () => {
    assert.deepEqual(setUp(...primary, ...failover).reached(), ['p1', 'p2'])
    const one = [{ ...primary[0]!, health: 'critical' as const }, primary[1]!]
    assert.deepEqual(setUp(...one, ...failover).reached(), ['p2'])
  })

  test('the next takes over when the catalog calls all of the first critical, and in order', () => {
    const dead = primary.map((one) => ({ ...one, health: 'critical' as const }))
    assert.deepEqual(setUp(...dead, ...failover, ...last).reached(), ['f1', 'f2'])
    const alsoDead = failover.map((one) => ({ ...one, health: 'critical' as const }))
    assert.deepEqual(setUp(...dead, ...alsoDead, ...last).reached(), ['l1'])
    assert.deepEqual(setUp(...failover, ...last).reached(), ['f1', 'f2'])
  })

  test('the next takes over when all of the first are ejected, and the first is back by itself', () => {
    const endpoints = [...primary, ...failover]
    const { clock, fail, reached, succeed } = setUp(...endpoints)
    for (const one of primary) fail(one, slow)
    assert.deepEqual(reached(), ['f1', 'f2'])
    clock.pass(FIRST_EJECTION_MS)
    assert.deepEqual(reached(), ['p1', 'p2'])
    succeed(primary[0]!)
    clock.pass(-1)
    assert.deepEqual(reached(), ['p1'])
  })

  test('within one connection the next is tried when the first was in vain', () => {
    assert.deepEqual(setUp(...primary, ...failover).reached(new Set(['p1', 'p2'])), ['f1', 'f2'])
  })

  test('the last keeps half of its instances', () => {
    const { fail, reached } = setUp(...primary, ...failover)
    for (const one of [...primary, ...failover]) fail(one, slow, 3)
    const left = reached()
    assert.equal(left.length, 1)
    assert.match(left[0] ?? '', /^f/)
  })
})

test('whatever happens: somebody is picked while anybody is offered, and of one priority half remain', () => {
  const step = record({
    at: nat({ max: 9 }),
    what: constantFrom('quick', 'slow', 'success', 'probe', 'giveUp'),
    waitMs: constantFrom(0, 10, 1_000, FIRST_EJECTION_MS, LONGEST_EJECTION_MS),
  })
  check(
    property(integer({ min: 1, max: 10 }), array(step, { maxLength: 200 }), (count, steps) => {
      const endpoints = Array.from({ length: count }, (_, i) => endpoint(`e${i}`))
      const { balancer, clock } = setUp(...endpoints)
      for (const { at, what, waitMs } of steps) {
        clock.pass(waitMs)
        const one = what === 'probe' ? balancer.pick(endpoints, none) : endpoints[at % count]
        assert.ok(one !== undefined)
        balancer.started(one)
        if (what === 'quick' || what === 'slow')
          balancer.failed(one, endpoints, what === 'quick' ? quick : slow)
        else if (what === 'success') balancer.succeeded(one, 1)
        balancer.finished(one)
        balancer.tick()
        assert.ok(balancer.ejectedCount <= count / 2, `${balancer.ejectedCount} of ${count}`)
        assert.equal(balancer.ejections().length, balancer.ejectedCount)
        for (const { leftMs } of balancer.ejections()) assert.ok(leftMs <= LONGEST_EJECTION_MS)
        assert.ok(balancer.pick(endpoints, none) !== undefined)
      }
    }),
  )
})

test('no number of failing endpoints is remembered without bound, and the count stays right', () => {
  const detector = new OutlierDetector()
  for (let i = 0; i < 3 * MAX_OUTLIERS; i += 1) detector.failed(`e${i}`, slow, i, always)
  const listed = detector.list(3 * MAX_OUTLIERS)
  assert.ok(listed.length <= MAX_OUTLIERS)
  assert.equal(detector.ejectedCount, listed.length)
  detector.sweep(Number.MAX_SAFE_INTEGER)
  assert.equal(detector.ejectedCount, 0)
})
