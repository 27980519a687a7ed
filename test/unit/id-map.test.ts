/** {@link IdMap} against the Map of the language. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import * as fc from 'fast-check'
import { IdMap } from '../../src/dataplane/io/id-map.ts'

/** Few ids, so that they collide and come again; some at the edges of the range. */
const ids = fc.oneof(fc.integer({ min: 1, max: 80 }), fc.constantFrom(2 ** 31 - 1, 2 ** 30, 65_537))

const steps = fc.array(
  fc.record({ id: ids, act: fc.constantFrom('set', 'set', 'delete', 'get', 'clear') }),
  { maxLength: 400 },
)

test('whatever is done to it, it holds what a Map holds', () => {
  fc.assert(
    fc.property(steps, (todo) => {
      const map = new IdMap<{ readonly id: number }>()
      const model = new Map<number, { readonly id: number }>()
      for (const { id, act } of todo) {
        if (act === 'set') {
          const value = { id }
          map.set(id, value)
          model.set(id, value)
        } else if (act === 'delete') assert.equal(map.delete(id), model.delete(id))
        else if (act === 'get') assert.equal(map.get(id), model.get(id))
        else if (model.size > 40) {
          map.clear()
          model.clear()
        }
        assert.equal(map.size, model.size)
      }
      for (const [id, value] of model) assert.equal(map.get(id), value)
      assert.deepEqual(new Set(map.list()), new Set(model.values()))
    }),
  )
})

test('odd ids in sequence, thousands of them, grow it and shrink it without a loss', () => {
  const map = new IdMap<{ readonly id: number }>()
  for (let id = 1; id < 40_000; id += 2) map.set(id, { id })
  assert.equal(map.size, 20_000)
  for (let id = 1; id < 39_900; id += 2) assert.equal(map.delete(id), true)
  assert.equal(map.size, 50)
  for (let id = 39_901; id < 40_000; id += 2) assert.equal(map.get(id)?.id, id)
  assert.equal(map.get(1), undefined)
})
