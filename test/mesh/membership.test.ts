/**
 * Who is of the mesh stays of it while its proxy is away: a connection to the address of such an instance is refused
 * with a reason and never leaves in plaintext, unless the operator has named the service as permissive. An instance
 * on the caller's own host is no exception to anything.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'

import { eventually } from '../harness/eventually.ts'
import { startMesh } from '../harness/mesh.ts'

/** Who accepted saw the daemon of its own host, not the caller. */
const THROUGH_DAEMON = /^(::ffff:127\.|127\.|::1)/

for (const catalog of ['consul', 'file'] as const)
  test(`an instance on the caller's own host is captured like any other, with the ${catalog} catalog`, async () => {
    await using mesh = await startMesh({ hosts: ['a'], catalog })
    const a = mesh.host('a')
    const web = await a.service('web').start()
    const batch = await a.service('batch').start()
    await a.service('cache', { listens: 6379 }).start()
    await mesh.allow('web', 'cache')
    await mesh.up()
    const { ip } = a.namespace
    await eventually(async () => {
      const answer = await web.callAddress(ip, 6379)
      assert.match(answer.from, THROUGH_DAEMON)
    })
    await assert.rejects(batch.callAddress(ip, 6379), { code: 'ECONNRESET' })
    const { stdout } = await a.daemon.cli('explain', '--from', 'batch', '--to', `${ip}:6379`)
    assert.match(stdout, /DENIED/)
  })

test('an instance without a proxy is refused, over restarts too, and permitted where that is configured', async (t) => {
  await using mesh = await startMesh({
    hosts: ['a', 'b', 'c'],
    catalog: 'consul',
    config: (host) => (host === 'c' ? { capture: { mode: 'on', permissive: ['db'] } } : {}),
  })
  const [a, b, c] = [mesh.host('a'), mesh.host('b'), mesh.host('c')]
  const web = await a.service('web').start()
  const migrating = await c.service('batch').start()
  const db = await b.service('db', { listens: 5432 }).start()
  await mesh.allow('*', 'db')
  await mesh.up()
  const { ip } = b.namespace
  const served = async (): Promise<void> => {
    const answer = await web.callAddress(ip, 5432)
    assert.match(answer.from, THROUGH_DAEMON)
  }
  const refused = async (): Promise<void> => {
    await assert.rejects(web.callAddress(ip, 5432), { code: 'ECONNRESET' })
  }
  await eventually(served)

  await t.test(
    'its proxy is taken away: refused with a reason, and the status says so',
    async () => {
      await b.daemon.stop()
      await eventually(async () => {
        const { warnings = [] } = await a.daemon.status()
        assert.match(warnings.join('\n'), new RegExp(`No proxy serves db at ${ip}:5432`))
      })
      await refused()
      assert.ok(
        (await a.daemon.metric('hostmesh_tcp_connections_closed_total', {
          destination_service: 'db',
          response_flags: 'UH',
        })) >= 1,
      )
      const { stdout } = await a.daemon.cli('explain', '--from', 'web', '--to', `${ip}:5432`)
      assert.match(stdout, /no proxy serves/i)
    },
  )

  await t.test(
    'a host on which the service is permissive lets it pass, as without a mesh',
    async () => {
      await eventually(async () => {
        const answer = await migrating.callAddress(ip, 5432)
        assert.match(answer.from, new RegExp(`${c.namespace.ip}$`))
      })
    },
  )

  await t.test(
    'the instance is taken away as well: refused, after a restart of the caller too',
    async () => {
      await mesh.catalog.leave(db.service.instance ?? assert.fail())
      await eventually(async () => {
        const known = (await mesh.catalog.server.get('/v1/catalog/service/db')) as unknown[]
        assert.equal(known.length, 0)
      })
      await new Promise((resolve) => setTimeout(resolve, 1_000))
      await refused()
      await a.daemon.stop()
      await a.daemon.start()
      await eventually(async () => {
        assert.equal((await a.daemon.status()).capture.inSync, true)
      })
      await refused()
    },
  )

  await t.test('all are back: served through the tunnel, here as there', async () => {
    await mesh.catalog.join(db.service.instance ?? assert.fail())
    await b.daemon.start()
    await eventually(served, { withinMs: 15_000 })
    await eventually(async () => {
      assert.match((await migrating.callAddress(ip, 5432)).from, THROUGH_DAEMON)
    })
  })
})

test('an instance of a service that is not followed is captured as well, and its first connection is carried', async () => {
  await using mesh = await startMesh({
    hosts: ['a', 'b'],
    catalog: 'consul',
    config: { catalog: { kind: 'consul', watch: 'on-demand' } },
  })
  const [a, b] = [mesh.host('a'), mesh.host('b')]
  const web = await a.service('web').start()
  await b.service('db', { listens: 5432 }).start()
  await mesh.allow('web', 'db')
  await mesh.up()
  await eventually(async () => {
    const { stdout } = await a.daemon.cli('capture', 'show')
    assert.match(stdout, /Instance addresses: 1 IPv4/)
  })
  const followed = async (): Promise<readonly string[]> =>
    (await a.daemon.services()).services.map(({ name }) => name)
  assert.deepEqual(await followed(), [])
  assert.match((await web.callAddress(b.namespace.ip, 5432)).from, THROUGH_DAEMON)
  assert.deepEqual(await followed(), ['db'])
})
