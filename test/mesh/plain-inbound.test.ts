/**
 * Callers from other hosts that reach a service's own port, around the mesh: counted, or refused where the operator says so; the mesh
 * and the host itself are not meant.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { eventually } from '../harness/eventually.ts'
import { startMesh } from '../harness/mesh.ts'

const PORT = 8_080

const REFUSED = { code: 'ECONNREFUSED' }

test('plaintext from outside to the port of a service', async (t) => {
  await using mesh = await startMesh({ hosts: ['a', 'b'], catalog: 'file' })
  const [a, b] = [mesh.host('a'), mesh.host('b')]
  const web = await a.service('web').start()
  const outsider = await a.stranger().start()
  const neighbor = await b.stranger().start()
  await b.service('api', { listens: PORT }).start()
  await mesh.allow('web', 'api')
  await mesh.up()
  const counted = (): Promise<number> => b.daemon.metric('hostmesh_plain_inbound_total')
  const fromMesh = async (): Promise<void> => {
    assert.equal((await eventually(() => web.call('api'))).service, 'api')
    assert.equal((await web.callAddress(b.namespace.ip, PORT)).service, 'api')
  }

  await t.test('is counted and passes', async () => {
    await fromMesh()
    for (const ip of [b.namespace.ip, b.namespace.ip6]) {
      assert.equal((await outsider.callAddress(ip, PORT)).service, 'api')
      assert.equal((await neighbor.callAddress(ip, PORT)).service, 'api')
    }
    await eventually(async () => assert.equal(await counted(), 2))
  })

  await t.test(
    'is refused with capture.plainInbound: refuse, also while the daemon is stopped',
    async () => {
      await b.daemon.stop()
      b.configure({ capture: { mode: 'on', plainInbound: 'refuse' } })
      await b.daemon.writeConfig(b.config())
      await b.daemon.start()
      await fromMesh()
      for (const ip of [b.namespace.ip, b.namespace.ip6]) {
        await assert.rejects(outsider.callAddress(ip, PORT), REFUSED)
        assert.equal((await neighbor.callAddress(ip, PORT)).service, 'api')
      }
      await eventually(async () => assert.ok((await counted()) >= 2))
      await b.daemon.stop()
      await assert.rejects(outsider.callAddress(b.namespace.ip, PORT), REFUSED)
      assert.equal((await neighbor.callAddress('127.0.0.1', PORT)).service, 'api')
      await b.daemon.start()
      await fromMesh()
    },
  )
})
