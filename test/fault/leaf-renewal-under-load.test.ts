/**
 * Certificates that live eight seconds and are renewed every three, on both hosts, under load: not one new
 * connection fails, and no tunnel outlives the certificates it was made with.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { eventually } from '../harness/eventually.ts'
import { startMesh } from '../harness/mesh.ts'
import { echo } from '../harness/service.ts'
import { issueShortLeaf } from './short-leaves.ts'

const LIFETIME_MS = 8_000
const RENEW_EVERY_MS = 3_000
const ROUNDS = 7

test('renewing short-lived leaves costs no connection', async () => {
  await using mesh = await startMesh({ hosts: ['a', 'b'], catalog: 'file' })
  const web = await mesh.host('a').service('web').start()
  await mesh.host('b').service('db', { listens: 5432 }).start(echo)
  await mesh.allow('web', 'db')
  await mesh.up()
  await eventually(() => web.call('db'))
  const renew = async (): Promise<void> => {
    await issueShortLeaf(mesh.catalog, { host: 'a', service: 'web', lifetimeMs: LIFETIME_MS })
    await issueShortLeaf(mesh.catalog, { host: 'b', service: 'db', lifetimeMs: LIFETIME_MS })
  }

  const failures: string[] = []
  let calls = 0
  const over = new AbortController()
  const caller = async (): Promise<void> => {
    while (!over.signal.aborted) {
      calls += 1
      await web.call('db').catch((error: unknown) => failures.push(String(error)))
    }
  }
  const callers = Promise.all(Array.from({ length: 4 }, caller))
  let oldestMs = 0
  for (let round = 0; round < ROUNDS; round += 1) {
    await renew()
    // The pace of the renewals is what is tested, not a wait for anything.
    await sleep(RENEW_EVERY_MS)
    // Tunnels of the certificates that the mesh started with may end in order.
    for (const host of ['a', 'b'])
      for (const { openedAt } of (await mesh.host(host).daemon.peers()).tunnels)
        if (round > 2) oldestMs = Math.max(oldestMs, Date.now() - Date.parse(openedAt))
  }
  over.abort()
  await callers
  assert.deepEqual(failures, [], `of ${calls} calls`)
  assert.ok(calls > 200, `${calls} calls were made`)
  assert.ok(oldestMs > 0 && oldestMs < LIFETIME_MS + 5_000, `the oldest tunnel was ${oldestMs} ms`)
  for (const host of ['a', 'b'])
    assert.equal(
      await mesh
        .host(host)
        .daemon.metric('hostmesh_tunnel_sessions_closed_total', { reason: 'expired' }),
      0,
      `tunnels cut by expiry on ${host}`,
    )
})
