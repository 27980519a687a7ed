/** Claims about src/lib/structural-equal.ts, by which compile() keeps what did not change. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { isDeepStrictEqual } from 'node:util'
import * as fc from 'fast-check'
import { isStructurallyEqual } from '../../src/lib/structural-equal.ts'

/** Few distinct values, so that equal ones are drawn often. */
const value = fc.letrec((tie) => ({
  node: fc.oneof(
    { maxDepth: 3 },
    fc.constantFrom(0, 1, 'a', '', true, null, Number.NaN),
    fc.array(tie('node'), { maxLength: 2 }),
    fc.dictionary(fc.constantFrom('x', 'y'), tie('node'), { maxKeys: 2, noNullPrototype: true }),
  ),
})).node

test('plain values are equal exactly when node:util says so', () => {
  fc.assert(
    fc.property(value, value, (left, right) => {
      assert.equal(isStructurallyEqual(left, right), isDeepStrictEqual(left, right))
      assert.ok(isStructurallyEqual(left, structuredClone(left)))
    }),
    { numRuns: 2_000 },
  )
})

test('a key with value undefined equals an absent key, in both directions', () => {
  assert.ok(isStructurallyEqual({ a: 1, b: undefined }, { a: 1 }))
  assert.ok(isStructurallyEqual({ a: 1 }, { a: 1, b: undefined }))
  assert.ok(!isStructurallyEqual({ a: 1, b: undefined }, { a: 1, b: null }))
})

test('an inherited name is no key', () => {
  assert.ok(!isStructurallyEqual({}, { toString: 'x' }))
  assert.ok(!isStructurallyEqual({ constructor: 1 }, {}))
})
