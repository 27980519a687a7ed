/**
 * Explicit upstream ports work without iptables and without any privilege: the daemon runs with an empty
 * capability bounding set.
 */
import assert from 'node:assert/strict'
import { readFile } from 'node:fs/promises'
import { test } from 'node:test'

import { eventually } from '../harness/eventually.ts'
import { startMesh } from '../harness/mesh.ts'

test('without capture and without capabilities', async (t) => {
  await using mesh = await startMesh({ hosts: ['a', 'b'], catalog: 'file', capture: 'off' })
  const [a, b] = [mesh.host('a'), mesh.host('b')]
  const web = await a
    .service('web', { identity: 'none', upstreams: { db: 9001, vault: 9002 } })
    .start()
  await b.service('db', { listens: 5432, identity: 'none' }).start()
  await b.service('vault', { listens: 8200, identity: 'none' }).start()
  await mesh.allow('web', 'db')
  await mesh.up(['setpriv', '--bounding-set=-all', '--inh-caps=-all', '--no-new-privs'])

  await t.test('the daemon has no capability', async () => {
    const status = await readFile(`/proc/${a.daemon.pid}/status`, 'utf8')
    assert.match(status, /^CapEff:\s+0+$/m)
  })

  await t.test('its local port leads to the service', async () => {
    assert.equal((await eventually(() => web.callPort(9001))).service, 'db')
  })

  await t.test('a denied service is denied at its local port too', async () => {
    await assert.rejects(web.callPort(9002), { code: 'ECONNRESET' })
  })

  await t.test('no rule was made', async () => {
    assert.doesNotMatch(await a.namespace.rules(), /HOSTMESH/i)
  })
})
