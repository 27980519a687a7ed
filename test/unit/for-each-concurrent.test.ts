/**
 * Claims about the same work for many items.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { setImmediate as nextTurn } from 'node:timers/promises'
import { forEachConcurrent } from '../../src/lib/for-each-concurrent.ts'

const { signal } = new AbortController()

test('items are begun in their order, never more at once than allowed', async () => {
  const begun: number[] = []
  let underWay = 0
  await forEachConcurrent([1, 2, 3, 4, 5], 2, signal, async (item) => {
    begun.push(item)
    underWay += 1
    assert.ok(underWay <= 2)
    await nextTurn()
    underWay -= 1
  })
  assert.deepEqual(begun, [1, 2, 3, 4, 5])
})

test('one that throws does not keep the others from their turn, and is thrown on when all have ended', async () => {
  const done: number[] = []
  const work = forEachConcurrent([1, 2, 3, 4], 2, signal, async (item) => {
    if (item === 1) throw new Error('no')
    await nextTurn()
    done.push(item)
  })
  await assert.rejects(work, /no/)
  assert.deepEqual(done, [2, 3, 4])
})

test('nothing more is begun when it is called off', async () => {
  const closing = new AbortController()
  const begun: number[] = []
  await forEachConcurrent([1, 2, 3], 1, closing.signal, async (item) => {
    begun.push(item)
    closing.abort()
  })
  assert.deepEqual(begun, [1])
})
