/**
 * Claims about a host that is busy when hostmesh comes: what is open goes on, what begins is captured.
 *
 * A namespace of its own tracks no connections until rules ask for it, as a fresh host does: for the kernel
 * every open connection is then a new one.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'

import { eventually } from '../harness/eventually.ts'
import { startMesh } from '../harness/mesh.ts'

test('a connection that is open when capture comes goes on, and the next one is captured', async () => {
  await using mesh = await startMesh({ hosts: ['a', 'b'], catalog: 'file' })
  const [a, b] = [mesh.host('a'), mesh.host('b')]
  const web = await a.service('web').start()
  await b.service('db', { listens: 5432 }).start()
  await mesh.allow('web', 'db')
  const before = await web.workload.dial(b.namespace.ip, 5432)
  await before.write('before\n')
  assert.match(await before.readLine(), /"service":"db"/)
  await mesh.up()
  for (const word of ['after', 'later']) {
    await before.write(`${word}\n`)
    assert.equal(await before.readLine(), word)
  }
  await eventually(async () => {
    const { from } = await web.callAddress(b.namespace.ip, 5432)
    assert.match(from, /^(::ffff:127\.|127\.|::1)/, 'a new one comes through the daemon')
  })
  await before.write('last\n')
  assert.equal(await before.readLine(), 'last')
  await before.reset()
})
