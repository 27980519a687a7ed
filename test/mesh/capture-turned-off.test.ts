/**
 * A host whose configuration has capture off is one without capture, whatever an earlier daemon left: no rules, and no
 * plan that a boot unit would apply.
 */
import assert from 'node:assert/strict'
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { eventually } from '../harness/eventually.ts'
import { startMesh } from '../harness/mesh.ts'

test('a daemon that starts with capture off takes away what one with it on has left', async () => {
  await using mesh = await startMesh({ hosts: ['a', 'b'], catalog: 'file' })
  const [a, b] = [mesh.host('a'), mesh.host('b')]
  a.configure({ capture: { mode: 'on', backend: 'nftables' } })
  const web = await a.service('web').start()
  await b.service('db', { listens: 5432 }).start()
  await mesh.allow('web', 'db')
  await mesh.up()
  await eventually(() => web.call('db'))
  const kept = join(a.daemon.stateFolder, 'capture.json')
  await a.daemon.stop()
  assert.equal(existsSync(kept), true)
  assert.match(await a.namespace.rules(), /table inet hostmesh/)
  await assert.rejects(web.callAddress(b.namespace.ip, 5432), { code: 'ECONNREFUSED' })
  a.configure({ capture: { mode: 'off' } })
  await a.daemon.writeConfig(a.config())
  await a.daemon.start()
  assert.doesNotMatch(await a.namespace.rules(), /hostmesh/)
  assert.equal(existsSync(kept), false)
  const { from } = await web.callAddress(b.namespace.ip, 5432)
  assert.match(from, new RegExp(`${a.namespace.ip}$`))
})
