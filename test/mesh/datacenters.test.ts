/**
 * Two real Consul datacenters, joined over the WAN: redirect and failover from one to the other, through real daemons
 * in both. Identity and intentions are checked as within one datacenter.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'

import { eventually } from '../harness/eventually.ts'
import { startMesh } from '../harness/mesh.ts'
import type { RunningService } from '../harness/service.ts'

const [DB, OLD_DB] = [15_000, 15_001]

test('with two federated datacenters', async (t) => {
  await using mesh = await startMesh({
    hosts: ['a', 'b', 'x', 'y'],
    catalog: 'consul',
    datacenters: { x: 'dc2', y: 'dc2' },
    capture: 'off',
  })
  const { catalog } = mesh
  const upstreams = { db: DB, 'old-db': OLD_DB }
  const web = await mesh.host('a').service('web', { upstreams, listens: 8_080 }).start()
  const other = await mesh
    .host('a')
    .service('other', { upstreams: { db: 15_002 } })
    .start()
  const near = await mesh.host('b').service('db', { id: 'db-near', listens: 5_432 }).start()
  const far = await mesh.host('x').service('db', { id: 'db-far', listens: 5_432 }).start()
  await mesh.host('y').service('db', { id: 'db-far-2', listens: 5_432 }).start()
  await mesh.allow('web', 'db')
  const a = mesh.host('a').daemon
  const resolver = (Name: string, rest: Record<string, unknown>): Promise<void> =>
    catalog.server.put('/v1/config', { Kind: 'service-resolver', Name, ...rest })
  await mesh.up()

  await t.test('without config entries each datacenter keeps to itself', async () => {
    await eventually(() => web.callPort(DB))
    assert.deepEqual(await instancesReached(web, DB), ['db-near'])
  })

  await t.test(
    'a redirect leads to the other datacenter, to an instance that proves to be of it',
    async () => {
      await resolver('old-db', { Redirect: { Service: 'db', Datacenter: 'dc2' } })
      await eventually(
        async () => assert.deepEqual(await instancesReached(web, OLD_DB), ['db-far', 'db-far-2']),
        { withinMs: 30_000 },
      )
      const { tunnels } = await a.peers()
      const there = tunnels.filter(({ peerAddress }) =>
        peerAddress.startsWith(far.service.host.namespace.ip),
      )
      assert.ok(there.length > 0, JSON.stringify(tunnels))
      for (const { peerSpiffeId, destination } of there) {
        assert.match(String(peerSpiffeId), /^spiffe:\/\/[^/]+\/ns\/default\/dc\/dc2\/svc\/db$/)
        assert.equal(destination, 'db')
      }
      const { services } = await a.services()
      const redirected = services.find(({ name }) => name === 'old-db')
      assert.deepEqual(
        redirected?.endpoints.map(({ service, datacenter, priority }) => [
          service,
          datacenter,
          priority,
        ]),
        [
          ['db', 'dc2', 0],
          ['db', 'dc2', 0],
        ],
      )
      assert.ok(
        (await a.metric('hostmesh_tcp_connections_opened_total', {
          source_service: 'web',
          destination_service: 'old-db',
        })) > 0,
        'it counts for the service that was asked for',
      )
    },
  )

  await t.test('a subset of it is found by its meta, on daemons as on sidecars', async () => {
    for (const [host, id, version] of [
      ['x', 'db-far', '1'],
      ['y', 'db-far-2', '2'],
    ] as const)
      await catalog.agent(host).put('/v1/agent/service/register', {
        Name: 'db',
        ID: id,
        Address: mesh.host(host).namespace.ip,
        Port: 5_432,
        Meta: { version },
      })
    await resolver('db', { Subsets: { second: { Filter: 'Service.Meta.version == 2' } } })
    await resolver('old-db', {
      Redirect: { Service: 'db', ServiceSubset: 'second', Datacenter: 'dc2' },
    })
    await eventually(
      async () => assert.deepEqual(await instancesReached(web, OLD_DB), ['db-far-2']),
      { withinMs: 30_000 },
    )
    await resolver('old-db', { Redirect: { Service: 'db', Datacenter: 'dc2' } })
    await eventually(
      async () => assert.deepEqual(await instancesReached(web, OLD_DB), ['db-far', 'db-far-2']),
      { withinMs: 30_000 },
    )
  })

  await t.test(
    'the intention for the service that is reached decides, in its own datacenter',
    async () => {
      await mesh.deny('web', 'db')
      await eventually(() => assert.rejects(web.callPort(OLD_DB), { code: 'ECONNRESET' }), {
        withinMs: 30_000,
      })
      await eventually(() => assert.rejects(web.callPort(DB), { code: 'ECONNRESET' }))
      await mesh.allow('web', 'db')
      await eventually(() => web.callPort(OLD_DB), { withinMs: 30_000 })
      await eventually(() => web.callPort(DB))
      await assert.rejects(other.callPort(15_002), { code: 'ECONNRESET' })
    },
  )

  await t.test(
    'failover knows the other datacenter and leaves it alone while ours is well',
    async () => {
      await resolver('db', { Failover: { '*': { Datacenters: ['dc2'] } } })
      await eventually(
        async () => assert.deepEqual(await rolesOf(a, 'db'), ['dc1 0', 'dc2 1', 'dc2 1']),
        { withinMs: 20_000 },
      )
      assert.deepEqual(await instancesReached(web, DB), ['db-near'])
    },
  )

  await t.test(
    'when our instances turn critical the other datacenter takes over, and they take it back',
    async () => {
      const agent = catalog.agent('b')
      const maintain = (enable: boolean): Promise<void> =>
        agent.put(`/v1/agent/service/maintenance/db-near?enable=${enable}`, undefined)
      await maintain(true)
      await eventually(
        async () => assert.deepEqual(await instancesReached(web, DB), ['db-far', 'db-far-2']),
        { withinMs: 20_000 },
      )
      await maintain(false)
      await eventually(async () => assert.deepEqual(await instancesReached(web, DB), ['db-near']), {
        withinMs: 20_000,
      })
    },
  )

  await t.test(
    'an instance that dies unnoticed by the catalog costs no call: the other datacenter answers',
    async () => {
      await near.workload.ask({ op: 'unlisten' })
      for (let i = 0; i < 10; i += 1) assert.match((await web.callPort(DB)).instance, /^db-far/)
      const [primary] =
        (await a.services()).services.find(({ name }) => name === 'db')?.endpoints ?? []
      assert.match(String(primary?.ejected?.reason), /unreachable/)
      await near.workload.listen('::', 5_432, 'echo')
    },
  )

  await t.test(
    'a datacenter that Consul cannot reach keeps its last instances, and ours go on changing',
    async () => {
      await catalog.serverOf('dc2').kill()
      await eventually(
        async () => {
          const { catalog: state } = await a.status()
          assert.match(state.problems.join('\n'), /health\/connect\/db: /)
        },
        { withinMs: 60_000 },
      )
      assert.match((await web.callPort(OLD_DB)).instance, /^db-far/)
      const agent = catalog.agent('b')
      await agent.put('/v1/agent/service/maintenance/db-near?enable=true', undefined)
      await eventually(
        async () => assert.deepEqual(await rolesOf(a, 'db', 'passing'), ['dc2 1', 'dc2 1']),
        { withinMs: 20_000 },
      )
      assert.match((await web.callPort(DB)).instance, /^db-far/)
    },
  )
})

async function rolesOf(
  daemon: {
    services(): Promise<{
      services: readonly {
        name: string
        endpoints: readonly { datacenter: string; priority: number; health: string }[]
      }[]
    }>
  },
  name: string,
  health?: string,
): Promise<string[]> {
  const { services } = await daemon.services()
  const endpoints = services.find((service) => service.name === name)?.endpoints ?? []
  return endpoints
    .filter((endpoint) => health === undefined || endpoint.health === health)
    .map(({ datacenter, priority }) => `${datacenter} ${priority}`)
}

async function instancesReached(caller: RunningService, port: number): Promise<readonly string[]> {
  const reached = new Set<string>()
  for (let i = 0; i < 16; i += 1) reached.add((await caller.callPort(port)).instance)
  return [...reached].toSorted()
}
