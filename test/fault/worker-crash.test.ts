/**
 * A worker that crashes takes its own connections with it, as resets, and nothing else; it is replaced, and who comes
 * meanwhile waits for the successor.
 */
import assert from 'node:assert/strict'
import { resolve } from 'node:path'
import { test } from 'node:test'

import { eventually } from '../harness/eventually.ts'
import { startMesh } from '../harness/mesh.ts'
import { echo, manual } from '../harness/service.ts'
import { keepCalling } from '../harness/steady-calls.ts'
import type { RemoteSocket } from '../harness/workload.ts'

const INSPECTOR_PORT = 9229
const crashWorker = resolve(import.meta.dirname, '../harness/services/crash-worker.ts')

test('with two workers, one of which crashes', async (t) => {
  await using mesh = await startMesh({ hosts: ['a', 'b'], catalog: 'file', workers: 2 })
  const { daemon, namespace } = mesh.host('a')
  const web = await mesh.host('a').service('web').start()
  const db = await mesh.host('b').service('db', { listens: 5432 }).start(manual)
  await mesh.allow('web', 'db')
  await mesh.up(['env', `NODE_OPTIONS=--inspect=127.0.0.1:${INSPECTOR_PORT}`])

  const byWorker = await eventually(() => spreadOverWorkers())
  await namespace.run(process.execPath, crashWorker, String(INSPECTOR_PORT), '0')
  await eventually(async () => {
    const { workers } = await daemon.status()
    assert.equal(
      workers.reduce((sum, { restarts }) => sum + restarts, 0),
      1,
    )
    assert.deepEqual(
      workers.map(({ state }) => state),
      ['running', 'running'],
    )
  })
  const { workers } = await daemon.status()
  const crashed = workers.find(({ restarts }) => restarts === 1)?.id ?? -1

  await t.test('its connections are reset, never ended', async () => {
    for (const [caller, called] of byWorker.get(crashed) ?? []) {
      assert.equal((await caller.readRest()).ending, 'ECONNRESET', 'the caller')
      assert.equal((await called.readRest()).ending, 'ECONNRESET', 'the callee')
    }
  })

  await t.test('the connections of the other worker go on', async () => {
    for (const [caller, called] of byWorker.get(1 - crashed) ?? []) {
      await called.write('alive')
      assert.equal(await caller.read(5), 'alive')
      await caller.end()
      await called.end()
      assert.equal((await caller.readRest()).ending, 'end')
    }
  })

  await t.test('each of them is counted once, as broken on the way', async () => {
    const broken = await daemon.metric('hostmesh_tcp_connections_closed_total', {
      response_flags: 'UC',
    })
    assert.equal(broken, byWorker.get(crashed)?.length)
    assert.equal(await daemon.metric('hostmesh_tcp_connections_lost_total'), 0)
  })

  await t.test('both workers take new connections, and no id is given twice', async () => {
    const spread = await spreadOverWorkers()
    const { connections } = await daemon.connections()
    const successors = connections.filter(({ id }) => id.startsWith(`${crashed}.1-`))
    assert.equal(successors.length, spread.get(crashed)?.length)
    for (const ends of spread.values())
      for (const [caller, called] of ends) {
        await caller.end()
        await called.end()
        await caller.readRest()
        await called.readRest()
      }
  })

  /** Opens connections until both workers carry some; answers with them, by worker. */
  async function spreadOverWorkers(): Promise<
    Map<number, (readonly [RemoteSocket, RemoteSocket])[]>
  > {
    const spread = new Map<number, (readonly [RemoteSocket, RemoteSocket])[]>()
    const known = new Set((await daemon.connections()).connections.map(({ id }) => id))
    for (let i = 0; i < 60 && (i < 8 || spread.size < 2); i += 1) {
      const ends = await web.connectTo(db)
      const fresh = (await daemon.connections()).connections.find(({ id }) => !known.has(id))
      assert.ok(fresh, 'a new connection is listed')
      known.add(fresh.id)
      const worker = Number.parseInt(fresh.id, 10)
      spread.set(worker, [...(spread.get(worker) ?? []), ends])
    }
    assert.equal(spread.size, 2, 'connections went to both workers')
    return spread
  }
})

test('the only worker of either host crashes: nobody is refused', async () => {
  await using mesh = await startMesh({ hosts: ['a', 'b'], catalog: 'file' })
  const web = await mesh.host('a').service('web').start()
  await mesh.host('b').service('db', { listens: 5432 }).start(echo)
  await mesh.allow('web', 'db')
  await mesh.up(['env', `NODE_OPTIONS=--inspect=127.0.0.1:${INSPECTOR_PORT}`])
  await eventually(() => web.call('db'))
  for (const name of ['a', 'b']) {
    const { daemon, namespace } = mesh.host(name)
    await using calls = keepCalling(() => web.call('db'))
    await calls.more(5)
    await namespace.run(process.execPath, crashWorker, String(INSPECTOR_PORT), '0')
    await eventually(async () => {
      const { workers } = await daemon.status()
      assert.deepEqual(
        workers.map(({ state, restarts }) => [state, restarts]),
        [['running', 1]],
      )
    })
    await calls.more(5)
    const failures = await calls.failures()
    assert.ok(failures.length <= 1, `only what was under way is broken: ${failures.join()}`)
    assert.doesNotMatch(failures.join(), /REFUSED/)
  }
})
