/**
 * A reader that stops reading stops its own writer, within bounded memory, and nobody else; when it reads
 * again, nothing is missing.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'

import { startPair } from '../harness/pair.ts'

const MIB = 1024 * 1024

/** All that may be on its way of one stalled stream: four kernel buffers and the stream's windows. */
const MOST_IN_FLIGHT = 48 * MIB

test('a slow reader holds up only its own writer', async (t) => {
  await using pair = await startPair()
  const { web, db } = pair
  const [writer, reader] = await web.connectTo(db)
  const sent = await writer.writePattern(1024 * MIB, { stallMs: 1_000 })

  await t.test('its writer stalls after a bounded number of bytes', () => {
    assert.ok(sent.stalled, 'the writer was never stopped')
    assert.ok(sent.bytes < MOST_IN_FLIGHT, `${sent.bytes / MIB} MiB were taken`)
    t.diagnostic(`stalled after ${(sent.bytes / MIB).toFixed(1)} MiB`)
  })

  await t.test('other connections of the same pair go on meanwhile', async () => {
    const startedAt = performance.now()
    for (let i = 0; i < 50; i += 1) {
      const [caller, called] = await web.connectTo(db)
      await called.write('reply')
      assert.equal(await caller.read(5), 'reply')
      await caller.end()
      await called.end()
      await caller.readRest()
    }
    t.diagnostic(`50 connections in ${Math.round(performance.now() - startedAt)} ms`)
  })

  await t.test('when it reads again, every byte arrives in order', async () => {
    await writer.end()
    const rest = await reader.readRest()
    assert.equal(rest.ending, 'end')
    assert.equal(rest.bytes, sent.bytes)
    assert.equal(rest.sha256, sent.sha256)
    await reader.end()
  })

  await t.test('a caller that does not read stalls its callee the same way', async () => {
    const [caller, called] = await web.connectTo(db)
    const { bytes, stalled } = await called.writePattern(1024 * MIB, { stallMs: 1_000 })
    assert.ok(stalled, 'the writer was never stopped')
    assert.ok(bytes < MOST_IN_FLIGHT, `${bytes / MIB} MiB were taken`)
    await caller.reset()
    assert.equal((await called.readRest()).ending, 'ECONNRESET')
  })
})
