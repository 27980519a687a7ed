/**
 * A carrier that is lost in the middle is never a clean end: whoever still waited for bytes sees a reset.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'

import type { Daemon } from '../harness/daemon.ts'
import { eventually, within } from '../harness/eventually.ts'
import { startPair } from '../harness/pair.ts'
import type { RemoteSocket } from '../harness/workload.ts'

const ENDLESS = 64 * 1024 * 1024 * 1024

test('when the daemon of the other host is killed in the middle of a transfer', async (t) => {
  await using pair = await startPair()
  const { mesh, web, db } = pair

  await t.test('a caller that receives sees a reset, not an end', async () => {
    const [caller, called] = await web.connectTo(db)
    const sending = called.writePattern(ENDLESS, { stallMs: 1_000 }).catch(() => undefined)
    const receiving = caller.readRest()
    await hasMoved(mesh.host('a').daemon)
    await mesh.host('b').daemon.kill()
    const rest = await within(15_000, 'an ending', receiving)
    assert.equal(rest.ending, 'ECONNRESET')
    assert.ok(rest.bytes > 0)
    await sending
    await mesh.host('b').daemon.start()
    await eventually(async () => closeBoth(await web.connectTo(db)))
  })

  await t.test('a callee that receives sees a reset, not an end', async () => {
    const [caller, called] = await web.connectTo(db)
    const sending = caller.writePattern(ENDLESS, { stallMs: 1_000 }).catch(() => undefined)
    const receiving = called.readRest()
    await hasMoved(mesh.host('b').daemon)
    await mesh.host('a').daemon.kill()
    const rest = await within(15_000, 'an ending', receiving)
    assert.equal(rest.ending, 'ECONNRESET')
    await sending
    await mesh.host('a').daemon.start()
    await eventually(async () => closeBoth(await web.connectTo(db)))
  })

  await t.test('a caller that waits for a reply after its own end sees a reset', async () => {
    const [caller, called] = await web.connectTo(db)
    await caller.end()
    assert.equal((await called.readRest()).ending, 'end')
    await called.write('half a reply')
    assert.equal(await caller.read(12), 'half a reply')
    await mesh.host('b').daemon.kill()
    const rest = await within(15_000, 'an ending', caller.readRest())
    assert.equal(rest.ending, 'ECONNRESET')
    await mesh.host('b').daemon.start()
    await eventually(async () => closeBoth(await web.connectTo(db)))
  })
})

test('when a daemon is killed, the applications of both hosts see a reset, those of its own too', async (t) => {
  await using pair = await startPair()
  const { mesh, web, db } = pair

  for (const killed of ['a', 'b'])
    await t.test(`the daemon of ${killed}`, async () => {
      const idle = await web.connectTo(db)
      const answered = await web.connectTo(db)
      await answered[1].write('the first half of an answer')
      assert.equal(await answered[0].read(9), 'the first')
      const ended = await web.connectTo(db)
      await ended[0].end()
      assert.equal((await ended[1].readRest()).ending, 'end')
      await mesh.host(killed).daemon.kill()
      const endings = await within(
        15_000,
        'endings on both hosts',
        Promise.all([...idle, ...answered, ended[0]].map((end) => end.readRest())),
      )
      for (const { ending } of endings) assert.equal(ending, 'ECONNRESET')
      await mesh.host(killed).daemon.start()
      await eventually(async () => closeBoth(await web.connectTo(db)))
    })
})

test('when the wire is cut', async () => {
  await using pair = await startPair()
  const { mesh, web, db } = pair
  const [caller, called] = await web.connectTo(db)
  await called.write('first')
  assert.equal(await caller.read(5), 'first')
  await mesh.network.wire.run('ip', 'link', 'set', 'port2', 'down')
  // Two pings that are not answered, at the harness's keepalive of 2 s.
  const [near, far] = await within(
    20_000,
    'endings on both hosts',
    Promise.all([caller.readRest(), called.readRest()]),
  )
  assert.equal(near.ending, 'ECONNRESET', 'the caller')
  assert.equal(far.ending, 'ECONNRESET', 'the callee')
  await mesh.network.wire.run('ip', 'link', 'set', 'port2', 'up')
  await eventually(async () => closeBoth(await web.connectTo(db)), { withinMs: 20_000 })
})

/** Waits until payload has come through a host, whichever direction it has. */
async function hasMoved(daemon: Daemon): Promise<void> {
  const moved = async (): Promise<number> =>
    (await daemon.metric('hostmesh_tcp_sent_bytes_total')) +
    (await daemon.metric('hostmesh_tcp_received_bytes_total'))
  const before = await moved()
  await eventually(async () => assert.ok((await moved()) > before + 1_000_000))
}

async function closeBoth(ends: readonly RemoteSocket[]): Promise<void> {
  for (const end of ends) await end.end()
  for (const end of ends) await end.readRest()
}
