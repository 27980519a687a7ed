/**
 * Who is calling, for callers beyond users and units: containers by their address, and processes that the host
 * knows nothing of, which are refused or get the identity that the host gives them.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Container } from '../harness/container.ts'
import { eventually } from '../harness/eventually.ts'
import { startMesh } from '../harness/mesh.ts'

/** How a caller is told that nobody is there: by a reset for its SYN. */
const REFUSED = { code: 'ECONNREFUSED' }

/** The kernel's counters are read every 10 s. */
const COUNTED = { withinMs: 20_000 }

test('a container is the service of its address, and its neighbor is nobody', async (t) => {
  await using mesh = await startMesh({ hosts: ['a', 'b'], catalog: 'file' })
  const [a, b] = [mesh.host('a'), mesh.host('b')]
  const box = await Container.attach(a, 2)
  mesh.own(box)
  const other = await Container.attach(a, 3)
  mesh.own(other)
  const shop = await a.service('shop', { container: box }).start()
  const neighbor = await a.stranger({ container: other }).start()
  await a.service('cache', { listens: 6379 }).start()
  await b.service('db', { listens: 5432 }).start()
  await b.service('queue', { listens: 5672 }).start()
  for (const name of ['db', 'cache']) await mesh.allow('shop', name)
  await mesh.up()

  await t.test('what its service may reach, it reaches, on both hosts, in its name', async () => {
    await eventually(() => shop.call('db'))
    assert.equal((await shop.call('cache')).service, 'cache')
    await eventually(async () => {
      const opened = await b.daemon.metric('hostmesh_tcp_connections_opened_total', {
        source_service: 'shop',
        destination_service: 'db',
      })
      assert.ok(opened > 0)
    })
  })

  await t.test('what its service may not reach is denied', async () => {
    await assert.rejects(shop.call('queue'), { code: 'ECONNRESET' })
  })

  await t.test('a container of no service is refused at a virtual address', async () => {
    await assert.rejects(neighbor.call('db'), REFUSED)
  })

  await t.test(
    'a process of the host that uses the port of the container is not the container',
    async () => {
      const { local } = await a.daemon.services()
      const port = local.find(({ name }) => name === 'shop')?.capturePort ?? 0
      const stranger = await a.stranger().start()
      for (const ip of ['127.0.0.1', '172.30.0.1'])
        await assert.rejects(stranger.callAddress(ip, port), { code: 'ECONNRESET' })
      await assert.rejects(neighbor.callAddress('172.30.0.1', port), { code: 'ECONNRESET' })
    },
  )
})

test('processes that the host knows nothing of', async (t) => {
  await using mesh = await startMesh({ hosts: ['a', 'b', 'c'], catalog: 'file' })
  const [a, b, c] = [mesh.host('a'), mesh.host('b'), mesh.host('c')]
  a.configure({ capture: { mode: 'on', unknownCallers: 'host' } })
  c.configure({ capture: { mode: 'on', unknownToInstances: 'refuse' } })
  a.service('host', { identity: 'none' })
  const web = await a.service('web').start()
  const onC = await c.service('batch').start()
  const queue = await b.service('queue', { listens: 5672 }).start()
  const cache = await c.service('cache', { listens: 6379 }).start()
  await b.service('db', { listens: 5432 }).start()
  await mesh.allow('host', 'db')
  await mesh.allow('web', 'queue')
  await mesh.allow('batch', 'queue')
  await mesh.up()
  const [strangerOnA, strangerOnB, strangerOnC] = await Promise.all(
    [a, b, c].map((host) => host.stranger().start()),
  )
  assert.ok(strangerOnA !== undefined && strangerOnB !== undefined && strangerOnC !== undefined)
  const instance = [b.namespace.ip, 5672] as const

  await t.test(
    'get the identity of the host where it has one, and what that may reach',
    async () => {
      await eventually(() => strangerOnA.call('db'))
      await assert.rejects(strangerOnA.call('queue'), { code: 'ECONNRESET' })
      await assert.rejects(strangerOnA.callAddress(...instance), { code: 'ECONNRESET' })
      const sources = async (source: string): Promise<number> =>
        b.daemon.metric('hostmesh_tcp_connections_opened_total', { source_service: source })
      assert.ok((await sources('host')) > 0)
    },
  )

  await t.test('which takes nobody else with it: a service is still itself', async () => {
    await eventually(() => web.call('queue'))
    await assert.rejects(web.call('db'), { code: 'ECONNRESET' })
  })

  await t.test(
    'are refused at virtual addresses, and pass at instances, unless told otherwise',
    async () => {
      await assert.rejects(strangerOnB.call('queue'), REFUSED)
      const answer = await strangerOnB.callAddress(c.namespace.ip, 6379)
      assert.equal(answer.instance, cache.service.id)
      assert.match(answer.from, new RegExp(`${b.namespace.ip}$`), 'it came directly')
      await eventually(async () => {
        const refused = await b.daemon.metric('hostmesh_unknown_callers_refused_total', {
          destination: 'virtual',
        })
        assert.equal(refused, 1)
      }, COUNTED)
    },
  )

  await t.test('are refused at instances, too, where the host says so, and counted', async () => {
    await assert.rejects(strangerOnC.call('queue'), REFUSED)
    await assert.rejects(strangerOnC.callAddress(...instance), REFUSED)
    assert.equal((await onC.callAddress(...instance)).instance, queue.service.id)
    assert.equal((await onC.call('queue')).service, 'queue')
    await eventually(async () => {
      const refused = await c.daemon.metric('hostmesh_unknown_callers_refused_total', {
        destination: 'instance',
      })
      assert.ok(refused >= 1)
    }, COUNTED)
  })
})
