/**
 * Claim: of ten instances six that come and go once a second, unnoticed by the catalog, cost less than one call in a
 * hundred; never more than half of the instances are ejected at once, and no tunnel is dialed anew for it.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'

import { eventually } from '../harness/eventually.ts'
import { startMesh } from '../harness/mesh.ts'
import type { RunningService } from '../harness/service.ts'

const DB = 15_000
const [INSTANCES, FLAPPING] = [10, 6]
const ROUNDS = 10

test('flapping instances', async () => {
  await using mesh = await startMesh({ hosts: ['a', 'b', 'c'], catalog: 'file', capture: 'off' })
  const web = await mesh
    .host('a')
    .service('web', { upstreams: { db: DB } })
    .start()
  const instances: RunningService[] = []
  for (let i = 0; i < INSTANCES; i += 1) {
    const host = mesh.host(i % 2 === 0 ? 'b' : 'c')
    instances.push(await host.service('db', { id: `db-${i}`, listens: 5_400 + i }).start())
  }
  await mesh.allow('web', 'db')
  await mesh.up()
  await eventually(() => web.callPort(DB))
  const a = mesh.host('a').daemon
  const reached = new Set<string>()
  await eventually(async () => {
    reached.add((await web.callPort(DB)).instance)
    assert.equal(reached.size, INSTANCES)
  })
  const handshakes = await a.metric('hostmesh_tunnel_handshakes_total')

  const flapping = instances.slice(0, FLAPPING)
  const over = new AbortController()
  let calls = 0
  const failures: unknown[] = []
  const caller = async (): Promise<void> => {
    while (!over.signal.aborted) {
      calls += 1
      await web.callPort(DB).catch((error: unknown) => failures.push(error))
    }
  }
  let mostEjected = 0
  const observer = async (): Promise<void> => {
    while (!over.signal.aborted) {
      mostEjected = Math.max(mostEjected, await a.metric('hostmesh_outlier_ejected_endpoints'))
      await sleep(200)
    }
  }
  const callers = [caller(), caller(), caller(), caller(), observer()]
  for (let round = 0; round < ROUNDS; round += 1) {
    await Promise.all(flapping.map((one) => one.workload.ask({ op: 'unlisten' })))
    await sleep(500)
    await Promise.all(flapping.map((one, i) => one.workload.listen('::', 5_400 + i, 'echo')))
    await sleep(500)
  }
  over.abort()
  await Promise.all(callers)

  assert.ok(calls > 500, `only ${calls} calls: that says nothing`)
  assert.ok(failures.length <= calls / 100, `${failures.length} of ${calls} calls failed`)
  assert.ok(mostEjected >= 1, 'an instance was ejected')
  assert.ok(mostEjected <= INSTANCES / 2, `${mostEjected} of ${INSTANCES} were ejected at once`)
  assert.equal(await a.metric('hostmesh_tunnel_handshakes_total'), handshakes)
})
