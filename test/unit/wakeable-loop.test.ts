/**
 * Claims about a loop of passes and pauses: what ends a pause, what waits for what, and where errors go.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { setImmediate as nextTurn } from 'node:timers/promises'
import { WakeableLoop, type WakeableLoopOptions } from '../../src/lib/wakeable-loop.ts'
import { TestClock } from '../harness/test-clock.ts'

/** A loop that pauses 100 ms after each pass, and what it has done. */
function start(options: Partial<WakeableLoopOptions> = {}) {
  const clock = new TestClock()
  const closing = new AbortController()
  const events: string[] = []
  const loop = new WakeableLoop({
    clock,
    signal: closing.signal,
    async pass() {
      events.push('pass')
      return 100
    },
    ...options,
  })
  return { clock, closing, events, loop, close: () => closing.abort() }
}

test('the first pass begins in the next turn, the others after the pause that the last one asked for', async () => {
  const { clock, events, loop, close } = start()
  assert.deepEqual(events, [])
  await nextTurn()
  assert.deepEqual(events, ['pass'])
  clock.pass(99)
  await nextTurn()
  assert.deepEqual(events, ['pass'])
  clock.pass(1)
  await nextTurn()
  assert.deepEqual(events, ['pass', 'pass'])
  close()
  await loop.ended
})

test('it can begin with a pause, which ends like any other', async () => {
  const { clock, events, loop, close } = start({ firstPauseMs: 30 })
  await nextTurn()
  assert.deepEqual([events.length, clock.sleeping], [0, 1])
  loop.wake()
  await nextTurn()
  assert.deepEqual(events, ['pass'])
  close()
  await loop.ended
})

test('who wakes it ends the pause; a pass that is under way is followed by another, once', async () => {
  let release = Promise.withResolvers<void>()
  let passes = 0
  const { clock, loop, close } = start({
    async pass() {
      passes += 1
      await release.promise
      return 100
    },
  })
  await nextTurn()
  loop.wake()
  loop.wake()
  await nextTurn()
  assert.equal(passes, 1, 'never two at once')
  release.resolve()
  await nextTurn()
  assert.deepEqual([passes, clock.sleeping], [2, 1])
  loop.wake()
  await nextTurn()
  assert.deepEqual([passes, clock.sleeping], [3, 1])
  release = Promise.withResolvers()
  loop.wake()
  await nextTurn()
  close()
  let isEnded = false
  const ended = loop.ended.then(() => (isEnded = true))
  await nextTurn()
  assert.equal(isEnded, false, 'the pass that is under way is waited for')
  release.resolve()
  await ended
  assert.equal(passes, 4)
})

test('what is serialized waits for the pass that is under way, and the next pass for it', async () => {
  const first = Promise.withResolvers<void>()
  const events: string[] = []
  const { loop, close } = start({
    async pass() {
      events.push('pass begins')
      await first.promise
      events.push('pass ends')
      return 100
    },
  })
  await nextTurn()
  const act = Promise.withResolvers<void>()
  const done = loop.serialize(async () => {
    events.push('act begins')
    await act.promise
    events.push('act ends')
    return 7
  })
  const failed = loop.serialize(async () => assert.fail('for its caller'))
  loop.wake()
  first.resolve()
  await nextTurn()
  act.resolve()
  assert.equal(await done, 7)
  await assert.rejects(failed, /for its caller/)
  await nextTurn()
  assert.deepEqual(events, [
    'pass begins',
    'pass ends',
    'act begins',
    'act ends',
    'pass begins',
    'pass ends',
  ])
  close()
  await loop.ended
})

test('it ends without another pass, in a pause and before the first', async () => {
  const paused = start()
  await nextTurn()
  paused.close()
  await paused.loop.ended
  assert.deepEqual(paused.events, ['pass'])
  const fresh = start()
  fresh.close()
  await fresh.loop.ended
  assert.deepEqual(fresh.events, [])
})

test('what a pass throws is handed out, and the answer is how long to pause; not after the end', async () => {
  const thrown: unknown[] = []
  const act = Promise.withResolvers<void>()
  const { clock, loop, close } = start({
    async pass() {
      if (thrown.length > 0) await act.promise
      throw new Error(`no ${thrown.length}`)
    },
    onError(error) {
      thrown.push(error)
      return 50
    },
  })
  await nextTurn()
  assert.deepEqual(thrown.map(String), ['Error: no 0'])
  clock.pass(50)
  await nextTurn()
  close()
  act.resolve()
  await loop.ended
  assert.equal(thrown.length, 1)
})

test('without a taker for it, what a pass throws ends the loop', async () => {
  const { loop } = start({ pass: async () => assert.fail('a defect') })
  await assert.rejects(loop.ended, /a defect/)
})
