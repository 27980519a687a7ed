/**
 * Log-linear buckets against the formula of OpenTelemetry.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import * as fc from 'fast-check'
import { trafficColumns } from '../../src/telemetry/counters.ts'
import { bucketCount, ExponentialBuckets } from '../../src/telemetry/exponential.ts'

const range = trafficColumns.firstByte.rangeSeconds
const buckets = new ExponentialBuckets(range)
const count = bucketCount(range)
const offset = range.fromPower * 2 ** range.scale

/** base^(index + 1), the upper bound of a bucket of the data model; base is 2^(2^-scale). */
function upperBound(bucket: number): number {
  return 2 ** ((offset + bucket + 1) / 2 ** range.scale)
}

const bits = new DataView(new ArrayBuffer(8))

/** The next greater number. */
function above(value: number): number {
  bits.setFloat64(0, value)
  bits.setBigUint64(0, bits.getBigUint64(0) + 1n)
  return bits.getFloat64(0)
}

test('latencies have 8 buckets for each doubling from 2^-14 s to 2^6 s', () => {
  assert.equal(range.scale, 3)
  assert.equal(count, 160)
  assert.equal(offset, -112)
  assert.equal(upperBound(-1), 2 ** -14)
  assert.equal(upperBound(count - 1), 2 ** 6)
})

test('a bucket has its upper bound, and what is greater by the least amount is in the next', () => {
  for (let bucket = 0; bucket < count; bucket += 1) {
    assert.equal(buckets.bucketOf(upperBound(bucket)), bucket)
    const next = Math.min(bucket + 1, count - 1)
    assert.equal(buckets.bucketOf(above(upperBound(bucket))), next)
  }
})

test('a value is in the bucket of the formula: index = ceil(log2(value) * 2^scale) - 1', () => {
  const value = fc.double({ min: 2 ** -14, max: 2 ** 6, minExcluded: true, noNaN: true })
  const any = fc.double({ min: -14, max: 6, noNaN: true }).map((power) => 2 ** power)
  fc.assert(
    fc.property(fc.oneof(value, any), (seconds) => {
      const position = Math.log2(seconds) * 2 ** range.scale
      // The logarithm is rounded: next to a bound it says nothing. The test above is for those.
      fc.pre(Math.abs(position - Math.round(position)) > 1e-9)
      assert.equal(buckets.bucketOf(seconds), Math.ceil(position) - 1 - offset)
    }),
    { numRuns: 2_000 },
  )
})

test('what is below or above the range is in the first or last bucket', () => {
  for (const seconds of [0, Number.MIN_VALUE, 1e-9, 2 ** -14]) {
    assert.equal(buckets.bucketOf(seconds), 0, String(seconds))
  }
  for (const seconds of [64.000_001, 1e9, Number.MAX_VALUE, Infinity])
    assert.equal(buckets.bucketOf(seconds), count - 1, String(seconds))
})

test('other scales and ranges follow the same formula', () => {
  const scene = fc.record({
    scale: fc.integer({ min: 0, max: 6 }),
    fromPower: fc.integer({ min: -30, max: 10 }),
    doublings: fc.integer({ min: 2, max: 12 }),
    share: fc.double({ min: 0, max: 1, noNaN: true }),
  })
  fc.assert(
    fc.property(scene, ({ scale, fromPower, doublings, share }) => {
      const toPower = fromPower + doublings
      const value = 2 ** (fromPower + share * doublings)
      const position = Math.log2(value) * 2 ** scale
      fc.pre(Math.abs(position - Math.round(position)) > 1e-9)
      const expected = Math.ceil(position) - 1 - fromPower * 2 ** scale
      const own = new ExponentialBuckets({ scale, fromPower, toPower })
      assert.equal(own.bucketOf(value), expected)
    }),
    { numRuns: 1_000 },
  )
})
