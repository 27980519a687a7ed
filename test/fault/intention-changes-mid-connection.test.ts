/**
 * Policy holds for connections that are open, too: an intention that turns to deny ends what it now denies
 * within 5 s, on another host and on the same one, and leaves the rest alone. Consul's own proxies keep them.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { eventually, within } from '../harness/eventually.ts'
import { startMesh } from '../harness/mesh.ts'
import { echo, manual } from '../harness/service.ts'

test('an intention that changes while connections are open', async (t) => {
  await using mesh = await startMesh({ hosts: ['a', 'b'], catalog: 'file' })
  const web = await mesh.host('a').service('web').start()
  const near = await mesh.host('a').service('cache', { listens: 6379 }).start(manual)
  const far = await mesh.host('b').service('db', { listens: 5432 }).start(manual)
  const spared = await mesh.host('b').service('queue', { listens: 5672 }).start(manual)
  await mesh.host('b').service('probe', { listens: 7007 }).start(echo)
  for (const name of ['cache', 'db', 'queue', 'probe']) await mesh.allow('web', name)
  await mesh.up()
  await eventually(() => web.call('probe'))
  const [untouched, untouchedCallee] = await web.connectTo(spared)

  for (const { where, name, callee } of [
    { where: 'on another host', name: 'db', callee: far },
    { where: 'on the same host', name: 'cache', callee: near },
  ])
    await t.test(`a live connection ${where} is reset, at both ends`, async () => {
      const [caller, called] = await web.connectTo(callee)
      await called.write('hello')
      assert.equal(await caller.read(5), 'hello')
      await mesh.deny('web', name)
      const endings = await within(
        5_000,
        'the end of a denied connection',
        Promise.all([caller.readRest(), called.readRest()]),
      )
      assert.deepEqual(
        endings.map(({ ending }) => ending),
        ['ECONNRESET', 'ECONNRESET'],
      )
    })

  await t.test('a connection that is still allowed goes on', async () => {
    await untouchedCallee.write('alive')
    assert.equal(await untouched.read(5), 'alive')
    await untouched.end()
    await untouchedCallee.end()
    assert.equal((await untouched.readRest()).ending, 'end')
  })

  await t.test('a pair that is allowed again connects within 5 s', async () => {
    await mesh.deny('web', 'probe')
    await eventually(() => assert.rejects(web.call('probe')))
    await mesh.allow('web', 'probe')
    await within(
      5_000,
      'a connection after allow',
      eventually(() => web.call('probe')),
    )
  })
})
