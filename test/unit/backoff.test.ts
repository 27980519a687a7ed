/**
 * Claims about waiting after failures.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { backoffMs, Retry } from '../../src/lib/backoff.ts'
import { TestClock } from '../harness/test-clock.ts'

const BACKOFF = { minMs: 100, maxMs: 1_000 }

test('the longest wait doubles with each failure up to the limit, and chance spreads it from the first on', () => {
  const range = (failures: number): number[] =>
    [0, 0.5, 1].map((chance) => backoffMs(failures, BACKOFF, () => chance))
  assert.deepEqual(range(1), [100, 150, 200])
  assert.deepEqual(range(2), [100, 250, 400])
  assert.deepEqual(range(4), [100, 550, 1_000])
  assert.deepEqual(range(5_000), [100, 550, 1_000])
})

test('a thing that failed is due again after its wait, and at once when it works', () => {
  const clock = new TestClock()
  const retry = new Retry(BACKOFF, clock, () => 1)
  assert.deepEqual([retry.isDue, retry.isFailing], [true, false])
  assert.equal(retry.failed(), 200)
  assert.equal(retry.failed(), 400)
  clock.pass(399)
  assert.deepEqual([retry.isDue, retry.isFailing], [false, true])
  clock.pass(1)
  assert.deepEqual([retry.isDue, retry.isFailing], [true, true])
  assert.equal(retry.failed({ minMs: 5, maxMs: 10 }), 10, 'a failure of another kind')
  retry.makeDue()
  assert.deepEqual([retry.isDue, retry.isFailing], [true, true])
  assert.equal(retry.failed(), 1_000, 'it has failed three times before')
  retry.reset()
  assert.deepEqual([retry.isDue, retry.isFailing], [true, false])
  assert.equal(retry.failed(), 200)
})
