/**
 * In which order names are looked at where not all can be.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import * as fc from 'fast-check'
import { fairOrder } from '../../src/lib/fair-order.ts'

test('names that begin alike come in turn with the others', () => {
  assert.deepEqual(fairOrder(['web', 'evil3', 'evil1', 'db', 'evil2', 'vault']), [
    'db',
    'evil1',
    'vault',
    'web',
    'evil2',
    'evil3',
  ])
})

test('thousands of names that all begin with the same text push nobody out', () => {
  const evil = Array.from({ length: 20_000 }, (_, i) => `evil${i.toString(36)}`)
  const others = ['db', 'eve', 'evi', 'evidence', 'evil', 'events', 'vault', 'web', 'zeta']
  const first = new Set(fairOrder([...evil, ...others]).slice(0, 200))
  for (const name of others) assert.ok(first.has(name), name)
})

test('nothing is lost, nothing comes twice, and the order they came in does not matter', () => {
  fc.assert(
    fc.property(fc.array(fc.string({ maxLength: 6 })), (names) => {
      const order = fairOrder(names)
      assert.deepEqual(order.toSorted(), [...new Set(names)].toSorted())
      assert.deepEqual(fairOrder(names.toReversed()), order)
    }),
  )
})
