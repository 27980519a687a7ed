/**
 * The catalog changes under traffic: instances leave and return, the local Consul agent crashes.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'

import { eventually } from '../harness/eventually.ts'
import { startMesh } from '../harness/mesh.ts'
import type { RunningService } from '../harness/service.ts'

test('with a real Consul', async (t) => {
  await using mesh = await startMesh({ hosts: ['a', 'b', 'c'], catalog: 'consul' })
  const web = await mesh.host('a').service('web').start()
  const one = await mesh.host('b').service('db', { id: 'db-1', listens: 5432 }).start()
  const two = await mesh.host('c').service('db', { id: 'db-2', listens: 5432 }).start()
  await mesh.allow('web', 'db')
  await mesh.up()
  await eventually(() => web.call('db'))

  await t.test('an instance that leaves the catalog is not called any more', async () => {
    await one.leave()
    await mesh.settled()
    assert.deepEqual(await instancesReached(web), ['db-2'])
  })

  await t.test('an instance that returns is called again', async () => {
    await one.join()
    await mesh.settled()
    assert.deepEqual(await instancesReached(web), ['db-1', 'db-2'])
  })

  await t.test('an instance whose process died is passed over without an error', async () => {
    // Its port answers with a reset; the catalog still says it is well.
    await two.workload.ask({ op: 'unlisten' })
    assert.deepEqual(await instancesReached(web), ['db-1'])
    await two.workload.listen('::', 5432, 'echo')
  })

  await t.test('calls go on while the local agent is down', async () => {
    const agent = mesh.catalog.agent('a')
    await agent.kill()
    for (let i = 0; i < 10; i += 1) await web.call('db')
    await eventually(async () => {
      const { catalog } = await mesh.host('a').daemon.status()
      assert.notDeepEqual(catalog.problems, [], 'the status must say that the catalog is gone')
    })
    await web.call('db')
  })

  await t.test('after the agent has restarted, changes arrive again', async () => {
    await mesh.catalog.agent('a').start()
    await mesh.catalog.agent('a').ready()
    await eventually(
      async () => {
        const { catalog } = await mesh.host('a').daemon.status()
        assert.deepEqual(catalog.problems, [])
      },
      { withinMs: 20_000 },
    )
    await two.leave()
    await mesh.settled()
    assert.deepEqual(await instancesReached(web), ['db-1'])
    await two.join()
    await mesh.settled()
  })

  await t.test('an agent that lost its services is told of them again', async () => {
    const agent = mesh.catalog.agent('b')
    const registered = async (): Promise<string[]> =>
      Object.keys((await agent.get('/v1/agent/services')) as object)
    const proxies = (await registered()).filter((id) => id !== 'db-1')
    assert.equal(proxies.length, 1, 'the daemon has registered one proxy')
    await agent.put(`/v1/agent/service/deregister/${proxies[0]}`, undefined)
    await eventually(
      async () =>
        assert.deepEqual((await registered()).toSorted(), ['db-1', ...proxies].toSorted()),
      { withinMs: 30_000 },
    )
    // Callers hear of it a moment later than the agent; what follows needs an instance that is known to them.
    await mesh.settled()
  })

  await t.test('a stopped daemon takes its services out of the catalog', async () => {
    await mesh.host('c').daemon.stop()
    await eventually(async () => {
      const left = (await mesh.catalog.server.get('/v1/health/connect/db')) as {
        Node: { Node: string }
      }[]
      assert.deepEqual(
        left.map(({ Node }) => Node.Node),
        ['b'],
      )
    })
    assert.deepEqual(await instancesReached(web), ['db-1'])
  })
})

async function instancesReached(caller: RunningService): Promise<readonly string[]> {
  const reached = new Set<string>()
  for (let i = 0; i < 30; i += 1) reached.add((await caller.call('db')).instance)
  return [...reached].toSorted()
}
