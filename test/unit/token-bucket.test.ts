/**
 * How often something may happen.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { TokenBucket } from '../../src/dataplane/io/token-bucket.ts'

test('so many at once, then as many as the rate says, and never more than at once', () => {
  const bucket = new TokenBucket(10, 3, 1_000)
  assert.deepEqual(
    [1, 2, 3, 4].map(() => bucket.take(1_000)),
    [true, true, true, false],
  )
  assert.equal(bucket.take(1_099), false)
  assert.equal(bucket.take(1_100), true)
  assert.equal(bucket.take(1_100), false)
  assert.deepEqual(
    [1, 2, 3, 4].map(() => bucket.take(60_000)),
    [true, true, true, false],
  )
})

test('what cannot be taken whole is not taken at all, and what has happened is owed, up to a whole bucket', () => {
  const bucket = new TokenBucket(1, 10, 0)
  assert.equal(bucket.take(0, 11), false)
  assert.equal(bucket.take(0, 10), true)
  assert.equal(bucket.hasAny(999), false)
  assert.equal(bucket.hasAny(1_000), true)
  bucket.drain(1_000, 4)
  assert.equal(bucket.hasAny(4_999), false)
  assert.equal(bucket.hasAny(5_000), true)
  bucket.drain(5_000, 1_000)
  assert.equal(bucket.hasAny(15_999), false)
  assert.equal(bucket.hasAny(16_000), true)
})

test('a clock that goes back changes nothing', () => {
  const bucket = new TokenBucket(1_000, 5, 1_000)
  for (let i = 0; i < 5; i += 1) bucket.take(1_000)
  assert.equal(bucket.take(0), false)
  assert.equal(bucket.take(1_001), true)
  assert.equal(bucket.isFull(1_004), false)
  assert.equal(bucket.isFull(1_006), true)
})
