/**
 * The event-loop lag: what the window remembers, and that a real stall is seen.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { LagWindow, watchEventLoopLag } from '../../src/telemetry/event-loop-lag.ts'

test('a delay is remembered for 15 seconds and then forgotten', () => {
  const window = new LagWindow()
  window.note(100_000, 250)
  window.note(105_000, 3)
  assert.equal(window.longestMs(), 250)
  window.note(114_900, 1)
  assert.equal(window.longestMs(), 250)
  window.note(115_000, 1)
  assert.equal(window.longestMs(), 3)
})

test('after a pause longer than the window only what came after it counts', () => {
  const window = new LagWindow()
  window.note(1_000, 400)
  window.note(900_000, 2)
  assert.equal(window.longestMs(), 2)
})

test('a blocked event loop is reported with at least the part of the stall after the probe was due', async () => {
  const blockMs = 400
  const longest = await new Promise<number>((resolve, reject) => {
    // The watch keeps nothing alive, so this test must.
    const deadline = setTimeout(() => reject(new Error('The stall was not reported')), 10_000)
    const watch = watchEventLoopLag((longestMs) => {
      if (longestMs < blockMs / 2) return
      watch[Symbol.dispose]()
      clearTimeout(deadline)
      resolve(longestMs)
    })
    setTimeout(() => {
      const endMs = performance.now() + blockMs
      while (performance.now() < endMs);
    }, 10)
  })
  assert.ok(longest >= blockMs - 150, `${longest}`)
})
