/**
 * Nobody gets in by omission: what holds where no intention speaks comes from Consul, is told to the operator
 * when it is allow, and can be insisted upon to be deny.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Consul } from '../harness/consul.ts'
import { eventually } from '../harness/eventually.ts'
import { type Mesh, startMesh } from '../harness/mesh.ts'

const WARNING = /default policy of the catalog is allow/

test('with ACLs off and no intention at all', async (t) => {
  await using mesh = await startMesh({ hosts: ['a', 'b'], catalog: 'consul' })
  const [a, b] = [mesh.host('a'), mesh.host('b')]
  const web = await a.service('web').start()
  await b.service('db', { listens: 5432 }).start()
  await mesh.up()
  await eventually(() => assert.rejects(web.call('db'), { code: 'ECONNRESET' }))

  await t.test(
    'a deny for everybody leaves no stranger for the default, and no warning',
    async () => {
      assert.deepEqual((await b.daemon.status()).warnings, [])
    },
  )

  await t.test("Consul's default is allow, and log and status warn of it", async () => {
    await forgetIntentions(mesh)
    await eventually(() => web.call('db'), { withinMs: 10_000 })
    const { warnings } = await b.daemon.status()
    assert.match(warnings?.join() ?? '', WARNING)
    assert.match(warnings?.join() ?? '', /may call db/)
    assert.match(b.daemon.log, WARNING)
    assert.deepEqual((await a.daemon.status()).warnings, [], 'nothing of its own can be called')
  })

  await t.test(
    'a host that insists on deny denies every call, says why, and does not warn',
    async () => {
      b.configure({ intentions: { default: 'deny' } })
      await b.daemon.stop()
      await mesh.up()
      await eventually(async () => {
        await assert.rejects(web.call('db'), { code: 'ECONNRESET' })
        assert.match(b.daemon.log, /no intention matches, the default policy says deny/)
      })
      for (let call = 0; call < 20; call += 1)
        await assert.rejects(web.call('db'), { code: 'ECONNRESET' })
      const served = await b.daemon.metric('hostmesh_tcp_connections_closed_total', {
        source_service: 'web',
        response_flags: '-',
      })
      assert.equal(served, 0)
      assert.deepEqual((await b.daemon.status()).warnings, [])
    },
  )

  await t.test('and an intention opens what it names there, as everywhere', async () => {
    await mesh.allow('web', 'db')
    await eventually(() => web.call('db'), { withinMs: 10_000 })
  })
})

/** Deletes every intention in Consul, the harness's own deny for all included. */
async function forgetIntentions({ catalog }: Mesh): Promise<void> {
  assert.ok(catalog instanceof Consul)
  const { server } = catalog
  const all = (await server.get('/v1/connect/intentions')) as readonly { readonly ID: string }[]
  for (const { ID } of all) await server.put(`/v1/connect/intentions/${ID}`, undefined, 'DELETE')
}
