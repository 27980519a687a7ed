/**
 * A reset on either side arrives as a reset on the other, within a second, through the tunnel and on the
 * same host alike; never as an orderly end, which would make a cut-off reply look complete.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { eventually, within } from '../harness/eventually.ts'
import { startMesh } from '../harness/mesh.ts'
import { echo, manual } from '../harness/service.ts'

test('a reset stays a reset', async (t) => {
  await using mesh = await startMesh({ hosts: ['a', 'b'], catalog: 'file' })
  const web = await mesh.host('a').service('web').start()
  const near = await mesh.host('a').service('cache', { listens: 6379 }).start(manual)
  const far = await mesh.host('b').service('db', { listens: 5432 }).start(manual)
  await mesh.host('b').service('probe', { listens: 7007 }).start(echo)
  await mesh.allow('web', '*')
  await mesh.up()
  await eventually(() => web.call('probe'))

  for (const { where, callee } of [
    { where: 'on another host', callee: far },
    { where: 'on the same host', callee: near },
  ]) {
    await t.test(`a callee ${where} that resets resets its caller`, async () => {
      const [caller, called] = await web.connectTo(callee)
      await called.reset()
      assert.equal((await within(1_000, 'a reset', caller.readRest())).ending, 'ECONNRESET')
    })

    await t.test(`a caller resets its callee ${where}`, async () => {
      const [caller, called] = await web.connectTo(callee)
      await caller.reset()
      assert.equal((await within(1_000, 'a reset', called.readRest())).ending, 'ECONNRESET')
    })

    await t.test(
      `a reset arrives ${where} while the stream is held up by a slow reader`,
      async () => {
        const [caller, called] = await web.connectTo(callee)
        const { stalled } = await caller.writePattern(256 * 1024 * 1024, { stallMs: 500 })
        assert.ok(stalled, 'the writer must have stalled')
        await called.reset()
        assert.equal((await within(2_000, 'a reset', caller.readRest())).ending, 'ECONNRESET')
      },
    )
  }

  await t.test('an application that refuses connections resets its caller', async () => {
    await far.workload.ask({ op: 'unlisten' })
    const caller = await web.dial('db')
    await caller.write('>').catch(() => undefined)
    assert.equal((await within(2_000, 'a reset', caller.readRest())).ending, 'ECONNRESET')
  })
})
