/**
 * Captured connections on which only the called side speaks, and the caller cannot be reached any more: what it sends, and its
 * kernel's acknowledgments, get nowhere. Nobody would ever hear of it; the kernel asks, and both sides get a reset.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { eventually } from '../harness/eventually.ts'
import { startMesh } from '../harness/mesh.ts'
import { manual } from '../harness/service.ts'

/** docs/limits.md: 30 s of silence and three questions in 30 s; the rest is the machine's. */
const LONGEST_MS = 90_000

test('a caller that cannot be reached any more', async (t) => {
  await using mesh = await startMesh({ hosts: ['a', 'b'], catalog: 'file', workers: 1 })
  const [a, b] = [mesh.host('a'), mesh.host('b')]
  const lost = await a.service('lost').start()
  const quiet = await a.service('quiet').start()
  const db = await b.service('db', { listens: 5432 }).start(manual)
  for (const caller of ['lost', 'quiet']) await mesh.allow(caller, 'db')
  await mesh.up()
  const [near, far] = await lost.connectTo(db)
  const [asker, asked] = await quiet.connectTo(db)
  // One that has said all it has to say and waits for its answer: longer than it takes to find the other one out.
  await asker.end()
  await asked.readRest()
  const drop = `-m owner --uid-owner ${lost.service.uid} -p tcp -j DROP`
  const startedAtMs = performance.now()
  for (const iptables of ['iptables', 'ip6tables'])
    await a.namespace.run(iptables, '-I', 'OUTPUT', ...drop.split(' '))

  await t.test('is given up, with a reset for both sides', async () => {
    await eventually(
      async () => {
        assert.equal(await a.daemon.metric('hostmesh_tcp_connections_active'), 1, 'that of quiet')
      },
      { withinMs: LONGEST_MS },
    )
    t.diagnostic(`after ${((performance.now() - startedAtMs) / 1_000).toFixed(0)} s`)
    for (const iptables of ['iptables', 'ip6tables'])
      await a.namespace.run(iptables, '-D', 'OUTPUT', ...drop.split(' '))
    assert.equal((await near.readRest()).ending, 'ECONNRESET')
    assert.equal((await far.readRest()).ending, 'ECONNRESET')
  })

  await t.test('and one that is only silent, and half-closed, is not', async () => {
    await asked.write('the answer')
    await asked.end()
    const { bytes, ending } = await asker.readRest()
    assert.equal(bytes, 'the answer'.length)
    assert.equal(ending, 'end')
  })
})
