/**
 * F7: somebody registers the service of others at his own host. Without ACLs Consul lets him; what he gets is a
 * handshake that he cannot pass. With ACLs his token may not even register it.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { eventually } from '../harness/eventually.ts'
import { startMesh } from '../harness/mesh.ts'
import { manual } from '../harness/service.ts'
import { keepCalling } from '../harness/steady-calls.ts'

const poison = {
  Kind: 'connect-proxy',
  Name: 'db-hostmesh',
  ID: 'db-poison',
  Port: 15_443,
  Proxy: { DestinationServiceName: 'db', DestinationServiceID: 'db' },
}

test('a service that is registered at a host without its certificate attracts no call', async () => {
  await using mesh = await startMesh({ hosts: ['a', 'b', 'c'], catalog: 'consul' })
  const web = await mesh.host('a').service('web').start()
  await mesh.host('b').service('db', { listens: 5432 }).start()
  const evil = await mesh.host('c').service('evil', { listens: 5432 }).start(manual)
  await mesh.allow('web', 'db')
  await mesh.allow('web', 'evil')
  await mesh.up()
  await eventually(() => web.call('db'))

  await mesh.catalog.agent('c').put('/v1/agent/service/register', poison)
  const { daemon } = mesh.host('a')
  await eventually(async () => {
    const { services } = await daemon.services()
    const nodes = services.find(({ name }) => name === 'db')?.endpoints.map(({ node }) => node)
    assert.deepEqual(nodes?.toSorted(), ['b', 'c'])
  })
  await using calls = keepCalling(() => web.call('db'))
  await calls.more(100)
  assert.deepEqual(await calls.failures(), [], 'another instance is tried')
  assert.deepEqual([...calls.instances()], ['db'])
  assert.equal(evil.workload.unclaimed, 0)
  const refused = await daemon.metric('hostmesh_tcp_connect_failures_total', {
    destination_service: 'db',
  })
  assert.ok(refused > 0, 'the false instance was tried, and refused')
})

test("with ACLs a host's token cannot register the service of others", async () => {
  await using mesh = await startMesh({ hosts: ['c'], catalog: 'consul', cluster: { acl: 'deny' } })
  await mesh.host('c').service('evil', { listens: 5432 }).start()
  await mesh.up()
  const { acl } = mesh.catalog
  const agent = mesh.catalog.agent('c')
  agent.token = acl.tokenOf('c').secret
  await assert.rejects(agent.put('/v1/agent/service/register', poison), /403: Permission denied/)
  await assert.rejects(agent.get('/v1/agent/connect/ca/leaf/db'), /403: .*Permission denied/i)
  agent.token = acl.management
})
