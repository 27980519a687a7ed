/**
 * A caller whom every intention denies, beside one that is allowed, on the same few local ports: a port that was reset
 * a moment ago belongs to whoever uses it now. Nobody is taken for the other, and none of the allowed calls fails.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'

import { eventually } from '../harness/eventually.ts'
import { startMesh } from '../harness/mesh.ts'
import { keepConnecting } from '../harness/steady-calls.ts'

const DB_PORT = 5_432
const RATE = 80
const CALLS = 1_200

test('80 denied calls a second do no harm to the allowed ones beside them', async (t) => {
  await using mesh = await startMesh({ hosts: ['a', 'b'], catalog: 'file' })
  const [a, b] = [mesh.host('a'), mesh.host('b')]
  const good = await a.service('good').start()
  const evil = a.service('evil')
  await b.service('db', { listens: DB_PORT }).start()
  await mesh.allow('good', 'db')
  await mesh.deny('evil', 'db')
  await a.namespace.run('sysctl', '-qw', 'net.ipv4.ip_local_port_range=40000 42999')
  await mesh.up()
  await eventually(() => good.call('db'))
  const [v4, v6] = await Promise.all([
    mesh.virtualAddress('db', a, 4),
    mesh.virtualAddress('db', a, 6),
  ])
  const options = {
    targets: [`${v4.ip}:${v4.port}`, `[${v6.ip}]:${v6.port}`, `${b.namespace.ip}:${DB_PORT}`],
    rate: RATE,
  }
  await using allowed = await keepConnecting(good.service, options)
  await using denied = await keepConnecting(evil, options)
  await allowed.more(CALLS)
  const bad = await denied.stop()
  const { outcomes, calls } = await allowed.stop()
  t.diagnostic(`allowed ${JSON.stringify(outcomes)}, denied ${JSON.stringify(bad.outcomes)}`)
  assert.deepEqual(outcomes, { served: calls })
  assert.equal(bad.served, 0)
  assert.ok(bad.reset >= CALLS / 4, 'the denied ones were reset')
})
