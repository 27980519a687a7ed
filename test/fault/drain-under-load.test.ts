/**
 * SIGTERM: what is open may finish, nothing new is taken, and a deadline ends what does not finish.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'

import { eventually, within } from '../harness/eventually.ts'
import { startMesh } from '../harness/mesh.ts'
import { startPair } from '../harness/pair.ts'
import { echo } from '../harness/service.ts'

for (const [role, name] of [
  ['caller', 'a'],
  ['callee', 'b'],
] as const) {
  test(`a stop of the ${role}'s daemon lets open connections finish`, async () => {
    await using pair = await startPair()
    const { mesh, web, db } = pair
    const { daemon } = mesh.host(name)
    const [caller, called] = await web.connectTo(db)
    daemon.signal('SIGTERM')
    await eventually(async () => assert.equal((await daemon.status()).draining, true))
    await called.write('still here')
    assert.equal(await caller.read(10), 'still here')
    const [sent, rest] = await Promise.all([
      caller.writePattern(4_000_000).then(async (result) => {
        await caller.end()
        return result
      }),
      called.readRest(),
    ])
    assert.equal(rest.sha256, sent.sha256)
    await called.end()
    assert.equal((await caller.readRest()).ending, 'end')
    const exit = await within(4_000, 'the end of the daemon', daemon.exited)
    assert.deepEqual(exit, { code: 0, signal: null })
    assert.equal((await daemon.command('capture', 'clear')).code, 0)
    await mesh.assertRulesGone(mesh.host(name))
  })
}

test('a stop resets what has not finished at its deadline', async () => {
  await using pair = await startPair({
    config: { timeouts: { drain: '1s', keepalive: '2s' } },
  })
  const { mesh, web, db } = pair
  const [caller, called] = await web.connectTo(db)
  mesh.host('a').daemon.signal('SIGTERM')
  const endings = Promise.all([caller.readRest(), called.readRest()])
  const [near, far] = await within(5_000, 'the deadline', endings)
  assert.equal(near.ending, 'ECONNRESET', 'the caller')
  assert.equal(far.ending, 'ECONNRESET', 'the callee')
  assert.equal((await mesh.host('a').daemon.exited).code, 0)
})

test('a stop of one of two hosts fails no call', async () => {
  await using mesh = await startMesh({ hosts: ['a', 'b', 'c'], catalog: 'file' })
  const web = await mesh.host('a').service('web').start()
  for (const name of ['b', 'c'])
    await mesh
      .host(name)
      .service('db', { id: `db-${name}`, listens: 5432 })
      .start(echo)
  await mesh.allow('web', 'db')
  await mesh.up()
  await eventually(() => web.call('db'))

  const reached = new Set<string>()
  const { daemon } = mesh.host('b')
  let calls = 0
  const callFor = async (times: number): Promise<void> => {
    for (let i = 0; i < times; i += 1, calls += 1) reached.add((await web.call('db')).instance)
  }
  await callFor(30)
  assert.deepEqual([...reached].toSorted(), ['db-b', 'db-c'])
  daemon.signal('SIGTERM')
  while (daemon.isRunning) await callFor(1)
  reached.clear()
  await callFor(30)
  assert.deepEqual([...reached], ['db-c'])
})
