/** Answers that are given again: never when what they say has changed. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { RecentAnswers } from '../../src/aggregator/recent-answers.ts'

const NOW = 1_000_000
const span = { fromMs: NOW - 60_000, toMs: NOW }

/** Asks for the span; the answer is how often it was made. */
function counted(): {
  answers: RecentAnswers<number>
  get: (nowMs?: number) => Promise<number>
} {
  const answers = new RecentAnswers<number>()
  let made = 0
  return { answers, get: (nowMs = NOW) => answers.get(span, nowMs, async () => (made += 1)) }
}

test('an answer is given again until a record is stored that belongs into its span', async () => {
  const { answers, get } = counted()
  assert.equal(await get(), 1)
  answers.changed(span.toMs, span.toMs + 10_000)
  answers.changed(span.fromMs - 10_000, span.fromMs)
  assert.equal(await get(), 1)
  answers.changed(span.toMs - 10_000, span.toMs)
  assert.equal(await get(), 2)
})

test('a record that is stored while an answer is made voids it', async () => {
  const { answers, get } = counted()
  const first = get()
  answers.changed(span.fromMs, span.fromMs + 10_000)
  assert.equal(await first, 1)
  assert.equal(await get(), 2)
})

test('an answer is kept for ten seconds at most, also when the clock is set back', async () => {
  const { get } = counted()
  assert.equal(await get(), 1)
  assert.equal(await get(NOW + 9_999), 1)
  assert.equal(await get(NOW + 10_000), 2)
  assert.equal(await get(NOW - 1), 3)
})

test('a failure is not given again', async () => {
  const answers = new RecentAnswers<number>()
  const failing = answers.get(span, NOW, () => Promise.reject(new Error('no')))
  await assert.rejects(failing)
  assert.equal(await answers.get(span, NOW, async () => 7), 7)
})

test('answers to many spans do not pile up', async () => {
  const { answers, get } = counted()
  assert.equal(await get(), 1)
  for (let i = 1; i <= 4; i += 1)
    await answers.get({ fromMs: span.fromMs - i, toMs: NOW }, NOW, async () => i)
  assert.equal(await get(), 2)
})
