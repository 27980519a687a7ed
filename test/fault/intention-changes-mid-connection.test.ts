/**
 * Policy holds for connections that are open, too: an intention that turns to deny ends what it now denies
 * within 5 s, on another host and on the same one, and leaves the rest alone. Consul's own proxies keep them.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { eventually, within } from '../harness/eventually.ts'
import { startMesh } from '../harness/mesh.ts'
import { echo, manual, type RunningService } from '../harness/service.ts'
import type { RemoteSocket } from '../harness/workload.ts'

/** Live connections of a pair that turns to deny. */
const MANY = 200

/** Connections that are opened at once. */
const AT_ONCE = 20

for (const catalog of ['file', 'consul'] as const)
  test(`an intention that changes while connections are open, with the ${catalog} catalog`, async (t) => {
    await using mesh = await startMesh({ hosts: ['a', 'b'], catalog })
    const web = await mesh.host('a').service('web').start()
    const near = await mesh.host('a').service('cache', { listens: 6379 }).start(manual)
    const far = await mesh.host('b').service('db', { listens: 5432 }).start(manual)
    const spared = await mesh.host('b').service('queue', { listens: 5672 }).start(manual)
    await mesh.host('b').service('probe', { listens: 7007 }).start(echo)
    for (const name of ['cache', 'db', 'queue', 'probe']) await mesh.allow('web', name)
    await mesh.up()
    await eventually(() => web.call('probe'))
    const [untouched, untouchedCallee] = await web.connectTo(spared)

    for (const { where, name, callee, count } of [
      { where: 'on another host', name: 'db', callee: far, count: MANY },
      { where: 'on the same host', name: 'cache', callee: near, count: 1 },
    ])
      await t.test(`live connections ${where} (${count}) are reset, at both ends`, async () => {
        await eventually(async () => (await web.connectTo(callee))[0].reset())
        const sockets = await openMany(web, callee, count)
        const [first, called] = [sockets[0], sockets.at(-1)]
        await called?.write('hello')
        await first?.write('hello')
        const endings = Promise.all(sockets.map((socket) => socket.readRest()))
        await mesh.deny('web', name)
        const how = (await within(5_000, 'the end of denied connections', endings)).map(
          ({ ending }) => ending,
        )
        assert.deepEqual(new Set(how), new Set(['ECONNRESET']))
        assert.equal(how.length, 2 * count)
      })

    await t.test('a connection that is still allowed goes on', async () => {
      await untouchedCallee.write('alive')
      assert.equal(await untouched.read(5), 'alive')
      await untouched.end()
      await untouchedCallee.end()
      assert.equal((await untouched.readRest()).ending, 'end')
    })

    await t.test('a pair that is allowed again connects within 5 s, and stays', async () => {
      await mesh.deny('web', 'probe')
      await eventually(() => assert.rejects(web.call('probe')))
      await mesh.allow('web', 'probe')
      await within(
        5_000,
        'a connection after allow',
        eventually(() => web.call('probe')),
      )
      for (let call = 0; call < 50; call += 1) await web.call('probe')
    })
  })

/** Opens connections that carried a byte; returns the ends of the caller, then those of the called. */
async function openMany(
  caller: RunningService,
  callee: RunningService,
  count: number,
): Promise<readonly RemoteSocket[]> {
  const near: RemoteSocket[] = []
  const far: RemoteSocket[] = []
  while (near.length < count) {
    const size = Math.min(AT_ONCE, count - near.length)
    const pairs = await Promise.all(Array.from({ length: size }, () => caller.connectTo(callee)))
    for (const [one, other] of pairs) {
      near.push(one)
      far.push(other)
    }
  }
  return [...near, ...far]
}
