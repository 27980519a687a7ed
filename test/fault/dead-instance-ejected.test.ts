/**
 * Claim: with the catalog gone and still naming it, a dead instance costs nothing five seconds after it died: no
 * call fails, none waits for it. The instance dies with its daemon, or is behind a link that is cut; it is used again when
 * it is back, without a change in the catalog.
 */
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'

import { eventually } from '../harness/eventually.ts'
import { startMesh } from '../harness/mesh.ts'
import type { RunningService } from '../harness/service.ts'

const DB = 15_000

/** What is promised. Milliseconds. */
const EJECTED_WITHIN_MS = 5_000

/** Shorter than any deadline that a dead instance could cost (the harness's connect timeout is 3 s). */
const NO_WAIT_MS = 2_000

async function setUp() {
  const mesh = await startMesh({ hosts: ['a', 'b', 'c'], catalog: 'consul', capture: 'off' })
  const web = await mesh
    .host('a')
    .service('web', { upstreams: { db: DB } })
    .start()
  await mesh.host('b').service('db', { id: 'db-1', listens: 5_432 }).start()
  await mesh.host('c').service('db', { id: 'db-2', listens: 5_432 }).start()
  await mesh.allow('web', 'db')
  await mesh.up()
  await eventually(() => web.callPort(DB))
  assert.deepEqual(await instancesReached(web), ['db-1', 'db-2'])
  await mesh.catalog.agent('a').kill()
  return { mesh, web }
}

/** Calls all the time; resolves when the promised time is over. Failures until then are forgiven. */
async function callThrough(web: RunningService): Promise<void> {
  const untilMs = performance.now() + EJECTED_WITHIN_MS
  const caller = async (): Promise<void> => {
    while (performance.now() < untilMs) {
      await web.callPort(DB).catch(() => undefined)
      await sleep(20)
    }
  }
  await Promise.all([caller(), caller(), sleep(EJECTED_WITHIN_MS)])
}

async function assertUnharmed(web: RunningService): Promise<void> {
  for (let i = 0; i < 50; i += 1) {
    const startedMs = performance.now()
    const { instance } = await web.callPort(DB)
    assert.equal(instance, 'db-2')
    const tookMs = performance.now() - startedMs
    assert.ok(tookMs < NO_WAIT_MS, `a call took ${Math.round(tookMs)} ms`)
  }
}

// Each in a mesh of its own, and mostly waiting.
describe('with the catalog gone', { concurrency: true }, () => {
  test('a killed daemon is ejected', async () => {
    const { mesh, web } = await setUp()
    await using _ = mesh
    const a = mesh.host('a').daemon
    await mesh.host('b').daemon.kill()
    await callThrough(web)
    await assertUnharmed(web)
    const { services } = await a.services()
    const dead = services
      .find(({ name }) => name === 'db')
      ?.endpoints.find(({ node }) => node === 'b')
    assert.equal(dead?.health, 'passing', 'the catalog has said nothing')
    assert.match(String(dead?.ejected?.reason), /\w/)
    assert.ok((await a.metric('hostmesh_outlier_ejections_total')) >= 1)
  })

  test('an instance behind a cut wire is ejected, and used again when it is back', async () => {
    const { mesh, web } = await setUp()
    await using _ = mesh
    await mesh.network.wire.run('ip', 'link', 'set', 'port2', 'down')
    await callThrough(web)
    await assertUnharmed(web)
    await mesh.network.wire.run('ip', 'link', 'set', 'port2', 'up')
    await eventually(
      async () => assert.deepEqual(await instancesReached(web), ['db-1', 'db-2']),
      // The first ejection lasts 30 s.
      { withinMs: 50_000 },
    )
    await eventually(async () =>
      assert.equal(await mesh.host('a').daemon.metric('hostmesh_outlier_ejected_endpoints'), 0),
    )
  })
})

async function instancesReached(caller: RunningService): Promise<readonly string[]> {
  const reached = new Set<string>()
  for (let i = 0; i < 24; i += 1) reached.add((await caller.callPort(DB)).instance)
  return [...reached].toSorted()
}
