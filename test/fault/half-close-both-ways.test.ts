/**
 * Either side may finish sending first; what the other side still has to say arrives whole.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'

import { startPair } from '../harness/pair.ts'

test('each direction ends on its own', async (t) => {
  await using pair = await startPair()
  const { web, db } = pair

  for (const bytes of [0, 1, 10 * 1024 * 1024]) {
    await t.test(`the caller ends first, then is sent ${bytes} bytes`, async () => {
      const [caller, called] = await web.connectTo(db)
      await caller.end()
      assert.deepEqual(await pick(called.readRest()), { bytes: 0, ending: 'end' })
      const [rest, sent] = await Promise.all([
        caller.readRest(),
        called.writePattern(bytes).then(async (result) => {
          await called.end()
          return result
        }),
      ])
      assert.deepEqual(rest.ending, 'end')
      assert.equal(rest.bytes, bytes)
      assert.equal(rest.sha256, sent.sha256)
    })

    await t.test(`the callee ends first, then is sent ${bytes} bytes`, async () => {
      const [caller, called] = await web.connectTo(db)
      await called.end()
      assert.deepEqual(await pick(caller.readRest()), { bytes: 0, ending: 'end' })
      const [rest, sent] = await Promise.all([
        called.readRest(),
        caller.writePattern(bytes).then(async (result) => {
          await caller.end()
          return result
        }),
      ])
      assert.deepEqual(rest.ending, 'end')
      assert.equal(rest.bytes, bytes)
      assert.equal(rest.sha256, sent.sha256)
    })
  }
})

async function pick(
  rest: Promise<{ bytes: number; ending: string }>,
): Promise<{ bytes: number; ending: string }> {
  const { bytes, ending } = await rest
  return { bytes, ending }
}
