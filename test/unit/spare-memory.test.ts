/**
 * Claims about when a worker gives back memory: by a clock that is passed in.
 */
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { SpareMemory } from '../../src/dataplane/spare-memory.ts'

/** A worker's memory, looked after each second; what was done, as [second, act]. */
function startScene(): {
  readonly memory: SpareMemory
  readonly acts: [number, string][]
  readonly pass: (seconds: number, isShort?: boolean) => void
} {
  const acts: [number, string][] = []
  let second = 0
  const memory = new SpareMemory({
    trim: () => acts.push([second, 'trim']),
    collect: () => acts.push([second, 'collect']),
  })
  return {
    memory,
    acts,
    pass(seconds, isShort = false) {
      for (let i = 0; i < seconds; i += 1) {
        second += 1
        if (isShort) memory.noteShort(second * 1_000)
        memory.tick(second * 1_000)
      }
    },
  }
}

describe('the memory of a worker', () => {
  test('is left alone where it was never short', () => {
    const { acts, pass } = startScene()
    pass(3_600)
    assert.deepEqual(acts, [])
  })

  test('is trimmed while short and never collected, however long that lasts', () => {
    const { acts, pass } = startScene()
    pass(100, true)
    assert.deepEqual(
      acts,
      Array.from({ length: 100 }, (_, index) => [index + 1, 'trim']),
    )
  })

  test('is collected once 5 s after, trimmed a second later, and left alone from then on', () => {
    const { acts, pass } = startScene()
    pass(1, true)
    pass(4)
    assert.ok(acts.every(([, act]) => act === 'trim'))
    acts.length = 0
    pass(3_600)
    assert.deepEqual(acts, [
      [6, 'collect'],
      [7, 'trim'],
    ])
  })

  test('is not collected in a calm of less than 5 s', () => {
    const { acts, pass } = startScene()
    for (let i = 0; i < 10; i += 1) {
      pass(1, true)
      pass(4)
    }
    assert.ok(acts.every(([, act]) => act === 'trim'))
  })

  test('is looked after again when shortage comes back before the last trim', () => {
    const { acts, pass } = startScene()
    pass(1, true)
    pass(5)
    acts.length = 0
    pass(1, true)
    pass(6)
    assert.deepEqual(acts.slice(-2), [
      [12, 'collect'],
      [13, 'trim'],
    ])
  })
})
