/**
 * Which services a host goes on following, with whole daemons and a real Consul: those in use, for as long as they
 * are. A connection that stays open is use, even if no byte crosses it and nobody calls anew.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'

import { eventually } from '../harness/eventually.ts'
import type { Host } from '../harness/host.ts'
import { startMesh } from '../harness/mesh.ts'
import { manual } from '../harness/service.ts'

/** The shortest that the configuration takes. */
const UNUSED_AFTER = '10s'

/** A service is let go soon after that; patience for a slow machine beside it. */
const WITHIN = { withinMs: 40_000 }

async function followed(host: Host): Promise<readonly string[]> {
  return (await host.daemon.services()).services.map(({ name }) => name).toSorted()
}

test('services followed on demand', async (t) => {
  await using mesh = await startMesh({
    hosts: ['a', 'b', 'c'],
    catalog: 'consul',
    config: { catalog: { kind: 'consul', watch: 'on-demand', unusedAfter: UNUSED_AFTER } },
  })
  const [a, b] = [mesh.host('a'), mesh.host('b')]
  const web = await a.service('web').start()
  const db = await b.service('db', { id: 'db-1', listens: 5432 }).start(manual)
  const other = await mesh.host('c').service('db', { id: 'db-2', listens: 5432 }).start(manual)
  await b.service('cache', { listens: 6379 }).start()
  await mesh.allow('web', '*')
  await mesh.up()
  // So that the connection goes to the first instance.
  await other.leave()
  await mesh.settled()
  // The same on every host; asking host a for them would need a service that it follows already.
  const addresses = {
    db: await mesh.virtualAddress('db', b),
    cache: await mesh.virtualAddress('cache', b),
  }
  const callCache = async (): Promise<void> => {
    const { ip, port } = addresses.cache
    assert.equal((await web.callAddress(ip, port)).service, 'cache')
  }

  const near = await eventually(() => web.workload.dial(addresses.db.ip, addresses.db.port))
  await near.write('>')
  const far = await db.accept()
  assert.equal(await far.read(1), '>')

  await t.test(
    'one that is called no more is let go, one with an open connection is not',
    async () => {
      // Later than the only call of db: whenever cache is let go, db has had no call for longer. The second round
      // begins when all that was known of the first is over.
      for (const round of [1, 2]) {
        await callCache()
        assert.deepEqual(await followed(a), ['cache', 'db'], `round ${round}`)
        await eventually(
          async () => assert.deepEqual(await followed(a), ['db'], `round ${round}`),
          WITHIN,
        )
      }
      assert.equal(await a.daemon.metric('hostmesh_watched_services'), 1)
    },
  )

  await t.test('what changes in one that is still followed is learned', async () => {
    await other.join()
    await mesh.settled()
    await near.write('still\n')
    assert.equal(await far.readLine(), 'still')
  })

  await t.test('when its last connection has ended it is let go as well', async () => {
    await Promise.all([near.end(), far.end()])
    await eventually(async () => assert.deepEqual(await followed(a), []), WITHIN)
    assert.equal(await a.daemon.metric('hostmesh_watched_services'), 0)
  })

  await t.test('one that was let go is followed again from its next use on', async () => {
    await callCache()
    assert.deepEqual(await followed(a), ['cache'])
  })
})
