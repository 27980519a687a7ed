/**
 * A network that loses, doubles, delays and reorders: every byte arrives, once and in order, in connections that share
 * tunnels. And one whose path takes less than its interfaces say, and tells nobody (an MTU black hole).
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { BadWire } from '../harness/bad-wire.ts'
import { eventually, within } from '../harness/eventually.ts'
import { startPair } from '../harness/pair.ts'
import type { RunningService } from '../harness/service.ts'

/** Sends as much both ways at once, and compares hashes. */
async function exchange(web: RunningService, db: RunningService, bytes: number): Promise<void> {
  const [near, far] = await web.connectTo(db)
  const sides = [
    [near, far],
    [far, near],
  ] as const
  const results = sides.map(async ([from, to]) => {
    const received = to.readRest()
    const sent = await from.writePattern(bytes)
    await from.end()
    const { sha256, ending } = await received
    assert.deepEqual({ sha256, ending }, { sha256: sent.sha256, ending: 'end' })
  })
  await Promise.all(results)
}

test('loss, duplicates, delay and reordering: bytes are exact', async () => {
  await using pair = await startPair()
  const { mesh, web, db } = pair
  await using wire = await BadWire.of(mesh, 2)
  await eventually(() => exchange(web, db, 1_000))
  await wire.be({ loss: 0.02, duplicate: 0.02, delayMs: 2, jitterMs: 6 })
  await Promise.all(Array.from({ length: 4 }, () => exchange(web, db, 250_000)))
  const report = await wire.be({ loss: 0, duplicate: 0, delayMs: 0, jitterMs: 0 })
  for (const what of ['lost', 'duplicated', 'overtaken'] as const)
    assert.ok(report[what] > 20, JSON.stringify(report))
  await exchange(web, db, 250_000)
})

/** Ethernet, IP and TCP headers with options: what a frame is longer than its segment. */
const HEADER_BYTES = 100

/** What the black hole lets pass. */
const MAX_FRAME_BYTES = 1_200

test('an MTU black hole: cut in time with a reason; with smaller segments all arrives', async () => {
  await using pair = await startPair()
  const { mesh, web, db } = pair
  await using wire = await BadWire.of(mesh, 2)
  await eventually(() => exchange(web, db, 100_000))
  await wire.be({ maxBytes: MAX_FRAME_BYTES })
  // Not after the kernel's quarter of an hour: what is behind the lost segments has no answer.
  const [near, far] = await web.connectTo(db)
  const ended = Promise.all([near.readRest(), far.readRest()])
  await Promise.all([near.writePattern(100_000), far.writePattern(100_000)])
  assert.deepEqual(
    (await within(10_000, 'the end', ended)).map(({ ending }) => ending),
    ['ECONNRESET', 'ECONNRESET'],
  )
  const [a, b] = [mesh.host('a'), mesh.host('b')]
  // Whichever host finds out first.
  assert.match(a.daemon.log + b.daemon.log, /no answer for 2000 ms/)
  // Nor can another tunnel be made: the certificates do not pass.
  assert.equal((await (await web.dial('db')).readRest()).ending, 'ECONNRESET')
  assert.match(a.daemon.log, /Cannot reach db at .* in 3000 ms/)

  await b.daemon.stop()
  b.configure({ tunnel: { maxSegment: MAX_FRAME_BYTES - HEADER_BYTES } })
  await b.daemon.writeConfig(b.config())
  await b.daemon.start()
  const { tooBig } = await wire.be({})
  await exchange(web, db, 200_000)
  assert.equal((await wire.be({})).tooBig, tooBig, 'no segment was too big any more')
})
