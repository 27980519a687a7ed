/**
 * One byte at a time is still a stream: all of it arrives, in order, and soon.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'

import { startPair } from '../harness/pair.ts'

test('writes of one byte arrive whole and in order, in both directions', async () => {
  await using pair = await startPair()
  const [caller, called] = await pair.web.connectTo(pair.db)
  for (const [from, to] of [
    [caller, called],
    [called, caller],
  ] as const) {
    const [sent, rest] = await Promise.all([
      from.writePattern(20_000, { chunkBytes: 1 }).then(async (result) => {
        await from.end()
        return result
      }),
      to.readRest(),
    ])
    assert.equal(rest.bytes, 20_000)
    assert.equal(rest.sha256, sent.sha256)
    assert.equal(rest.ending, 'end')
  }
})

test('a conversation of single bytes is not delayed by batching', async (t) => {
  await using pair = await startPair()
  const [caller, called] = await pair.web.connectTo(pair.db)
  const startedAt = performance.now()
  const rounds = 100
  for (let i = 0; i < rounds; i += 1) {
    await caller.write('?')
    assert.equal(await called.read(1), '?')
    await called.write('!')
    assert.equal(await caller.read(1), '!')
  }
  const eachMs = (performance.now() - startedAt) / rounds
  t.diagnostic(`${eachMs.toFixed(2)} ms a round`)
  // Nagle against delayed acknowledgments would cost 40 ms and more.
  assert.ok(eachMs < 20, `${eachMs} ms a round`)
  await caller.end()
  await called.end()
})
