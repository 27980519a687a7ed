/**
 * The main claim, with either catalog: what a service sends to another service's address arrives at an
 * instance of that service, in its name, if and only if an intention allows it.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'

import { eventually } from '../harness/eventually.ts'
import { startMesh } from '../harness/mesh.ts'

for (const catalog of ['file', 'consul'] as const) {
  test(`with the ${catalog} catalog`, async (t) => {
    await using mesh = await startMesh({ hosts: ['a', 'b', 'c'], catalog })
    const [a, b, c] = [mesh.host('a'), mesh.host('b'), mesh.host('c')]
    const web = await a.service('web').start()
    const batch = await a.service('batch', { identity: 'cgroup' }).start()
    const cache = await a.service('cache', { listens: 6379 }).start()
    const one = await b.service('db', { id: 'db-1', listens: 5432 }).start()
    const two = await c.service('db', { id: 'db-2', listens: 5432 }).start()
    const queue = await c.service('queue', { listens: 5672 }).start()
    const stranger = await a.stranger().start()
    await mesh.allow('web', '*')
    await mesh.allow('batch', 'queue')
    await mesh.up()

    await t.test('a call reaches an instance of the service it asked for', async () => {
      await eventually(() => web.call('db'))
      for (const family of [4, 6] as const) {
        const answer = await web.call('db', family)
        assert.equal(answer.service, 'db')
        assert.ok(['db-1', 'db-2'].includes(answer.instance), answer.instance)
        assert.equal((await web.call('queue', family)).service, 'queue')
      }
    })

    await t.test('calls are spread over all instances of a service', async () => {
      const reached = new Set<string>()
      for (let i = 0; i < 40; i += 1) reached.add((await web.call('db')).instance)
      assert.deepEqual([...reached].toSorted(), ['db-1', 'db-2'])
    })

    await t.test('a call to the address of an instance reaches that instance', async () => {
      for (const instance of [one, two, one, two]) {
        const answer = await web.callAddress(instance.service.host.namespace.ip, 5432)
        assert.equal(answer.instance, instance.service.id)
        assert.match(answer.from, /^(::ffff:127\.|127\.|::1)/, 'it came through the daemon')
      }
    })

    await t.test('an instance on the same host is reached without a tunnel', async () => {
      const tunnels = await a.daemon.metric('hostmesh_tunnel_handshakes_total')
      assert.equal((await web.call('cache')).instance, cache.service.id)
      assert.equal(await a.daemon.metric('hostmesh_tunnel_handshakes_total'), tunnels)
    })

    await t.test('two local users that reach for the same address are told apart', async () => {
      const { ip, port } = await mesh.virtualAddress('db', a)
      await web.callAddress(ip, port)
      await assert.rejects(batch.callAddress(ip, port), { code: 'ECONNRESET' })
      assert.equal((await batch.call('queue')).service, 'queue')
      const asWhom = async (source: string): Promise<number> => {
        const opened = [b, c].map(({ daemon }) =>
          daemon.metric('hostmesh_tcp_connections_opened_total', { source_service: source }),
        )
        return (await Promise.all(opened)).reduce((sum, value) => sum + value, 0)
      }
      const before = { web: await asWhom('web'), batch: await asWhom('batch') }
      await web.call('queue')
      await batch.call('queue')
      await eventually(async () => {
        assert.equal(await asWhom('web'), before.web + 1)
        assert.equal(await asWhom('batch'), before.batch + 1)
      })
    })

    await t.test('a pair that no intention allows is denied, at the destination', async () => {
      const denials = async (): Promise<number> => {
        const closed = [b, c].map(({ daemon }) =>
          daemon.metric('hostmesh_tcp_connections_closed_total', {
            source_service: 'batch',
            response_flags: 'DENY',
          }),
        )
        return (await Promise.all(closed)).reduce((sum, value) => sum + value, 0)
      }
      const before = await denials()
      await assert.rejects(batch.call('db'), { code: 'ECONNRESET' })
      await eventually(async () => assert.equal(await denials(), before + 1))
    })

    await t.test('a denied pair is denied on the same host too', async () => {
      await assert.rejects(batch.call('cache'), { code: 'ECONNRESET' })
    })

    await t.test('an intention that changes decides the next calls', async () => {
      await mesh.allow('batch', 'db')
      await eventually(() => batch.call('db'))
      await mesh.deny('batch', 'db')
      await eventually(() => assert.rejects(batch.call('db'), { code: 'ECONNRESET' }))
    })

    await t.test('a process of no service is left alone', async () => {
      const answer = await stranger.callAddress(c.namespace.ip, 5672)
      assert.equal(answer.instance, queue.service.id)
      assert.match(answer.from, new RegExp(`${a.namespace.ip}$`), 'it came directly')
    })

    await t.test('a service stays reachable for itself at its own port', async () => {
      assert.equal((await cache.callAddress('127.0.0.1', 6379)).instance, 'cache')
    })
  })
}
