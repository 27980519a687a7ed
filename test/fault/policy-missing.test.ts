/**
 * A host that has never heard what its intentions are forwards nothing: its Consul is away at its first start,
 * its certificates are good, callers come, and every one of them is denied after a wait.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { eventually } from '../harness/eventually.ts'
import { startMesh } from '../harness/mesh.ts'
import { manual } from '../harness/service.ts'

test('a host without any policy forwards nothing, and says what it waits for', async () => {
  await using mesh = await startMesh({ hosts: ['a', 'b'], catalog: 'file' })
  const [a, b] = [mesh.host('a'), mesh.host('b')]
  const web = await a.service('web').start()
  const db = await b.service('db', { listens: 5432 }).start(manual)
  await mesh.allow('web', 'db')
  // The caller must be more patient than the host that waits for its policy.
  a.configure({ timeouts: { connect: '20s', drain: '5s' } })
  b.configure({ catalog: { kind: 'consul', address: 'http://127.0.0.1:8500' } })
  for (const host of [a, b]) await mesh.prepare(host)
  await b.daemon.launch()
  await a.daemon.start()
  await eventually(async () => {
    const { ready, awaited, catalog } = await b.daemon.status()
    assert.equal(ready, false)
    assert.ok(awaited.includes('policies'), awaited.join())
    assert.match(catalog.problems.join(), /127\.0\.0\.1:8500/)
    // Certificates are there: what is missing is nothing but the policy.
    assert.ok(!awaited.some((what) => what.includes('certificate')), awaited.join())
  })

  const fates = await Promise.allSettled(Array.from({ length: 10 }, () => web.call('db')))
  assert.deepEqual(
    fates.map((fate) => fate.status === 'rejected' && (fate.reason as { code: string }).code),
    fates.map(() => 'ECONNRESET'),
  )
  assert.equal(db.workload.unclaimed, 0, 'connections that reached the application')
  await eventually(async () => {
    const denied = await b.daemon.metric('hostmesh_tcp_connections_closed_total', {
      source_service: 'web',
      response_flags: 'DENY',
    })
    assert.equal(denied, 10)
  })
  assert.match(b.daemon.log, /the intentions of the destination are not loaded yet/)
})
