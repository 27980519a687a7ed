/**
 * A daemon that knows nothing and can ask nobody carries nothing: started with Consul gone and no state, it
 * is not ready, says what it waits for, and forwards not one connection; when Consul comes, it serves.
 */
import assert from 'node:assert/strict'
import { readdir } from 'node:fs/promises'
import { test } from 'node:test'
import { eventually } from '../harness/eventually.ts'
import { startMesh } from '../harness/mesh.ts'
import { echo } from '../harness/service.ts'

const UPSTREAM_PORT = 9_100

/** What a daemon keeps that it has not heard from anybody: addresses that it gives out, and its ports. */
const OF_ITS_OWN: ReadonlySet<string> = new Set(['virtual-addresses.json', 'capture-ports.json'])

test('a start without Consul and without state', async (t) => {
  await using mesh = await startMesh({ hosts: ['a', 'b'], catalog: 'consul' })
  const [a, b] = [mesh.host('a'), mesh.host('b')]
  const web = await a.service('web', { upstreams: { db: UPSTREAM_PORT } }).start()
  await b.service('db', { listens: 5432 }).start(echo)
  await mesh.allow('web', 'db')
  for (const name of ['a', 'b']) await mesh.catalog.agent(name).kill()
  await mesh.catalog.server.kill()
  for (const host of [a, b]) {
    await mesh.prepare(host)
    await host.daemon.launch()
  }
  // Ports are open although nothing is known: who calls is made to wait, then refused.
  for (const host of [a, b])
    await eventually(
      async () => assert.equal((await host.daemon.status()).workers[0]?.state, 'running'),
      { withinMs: 20_000 },
    )

  await t.test('is not ready, says so in words, and remembers nothing', async () => {
    for (const host of [a, b]) {
      const status = await host.daemon.status()
      assert.equal(status.ready, false)
      assert.ok(status.awaited.includes('roots'), status.awaited.join())
      assert.deepEqual(
        status.state.parts.map(({ state }) => state),
        ['none', 'none', 'none'],
      )
      assert.equal(status.catalog.ageMs, null)
      const { stdout, code } = await host.daemon.cli('status')
      assert.equal(code, 1)
      assert.match(stdout, /Not ready: waiting for .*roots/)
      assert.match(stdout, /Cannot reach Consul/)
      assert.equal(await host.daemon.metric('hostmesh_ready'), 0)
    }
  })

  await t.test('no connection is forwarded', async () => {
    const calls = Array.from({ length: 3 }, () => web.callPort(UPSTREAM_PORT))
    await Promise.all(calls.map((call) => assert.rejects(call)))
    assert.equal(await a.daemon.metric('hostmesh_accepted_connections_total'), 3)
    assert.equal(await b.daemon.metric('hostmesh_tcp_connections_opened_total'), 0)
    assert.equal(await a.daemon.metric('hostmesh_tcp_sent_bytes_total'), 0)
    assert.deepEqual(
      (await readdir(a.daemon.stateFolder)).filter((name) => !OF_ITS_OWN.has(name)),
      [],
    )
  })

  await t.test('it serves by itself when Consul comes', async () => {
    await mesh.catalog.server.start()
    for (const name of ['a', 'b']) await mesh.catalog.agent(name).start()
    for (const host of [a, b]) await host.daemon.ready()
    await mesh.settled()
    await eventually(() => web.call('db'), { withinMs: 20_000 })
  })
})
