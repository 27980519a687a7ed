/**
 * F2: two of three Consul servers are gone, so there is no leader. Traffic goes on, the status says that nothing
 * new is learned and how old the answers are, and all of it is over when the servers are back.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { eventually } from '../harness/eventually.ts'
import { startConsulPair } from './consul-pair.ts'

test('servers without a quorum cost no call, and are told', async () => {
  await using pair = await startConsulPair({ cluster: { servers: 3 } })
  const { mesh, web } = pair
  const { daemon } = mesh.host('a')
  await using calls = pair.calls()
  await calls.more(20)
  const healthy = await daemon.status()
  assert.ok((healthy.catalog.lastContactMs ?? Number.NaN) < 10_000)

  const lost = mesh.catalog.furtherServers
  assert.equal(lost.length, 2)
  await Promise.all(lost.map((server) => server.kill()))
  await eventually(
    async () => {
      assert.match(await pair.problems(), /have no leader/)
      assert.ok(((await daemon.status()).catalog.lastContactMs ?? 0) > 10_000)
      assert.ok((await daemon.metric('hostmesh_consul_last_contact_seconds')) > 10)
    },
    { withinMs: 60_000 },
  )
  await calls.more(20)

  await Promise.all(lost.map((server) => server.start()))
  await eventually(async () => assert.equal(await pair.problems(), ''), { withinMs: 60_000 })
  assert.ok(((await daemon.status()).catalog.lastContactMs ?? Number.NaN) < 10_000)
  assert.deepEqual(await calls.failures(), [])
  await mesh.deny('web', 'db')
  await eventually(() => assert.rejects(web.call('db')))
})
