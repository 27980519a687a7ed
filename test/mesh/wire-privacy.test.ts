/**
 * Nothing crosses the wire in plaintext. The same text is first shown to be visible there without the mesh,
 * or its absence would prove nothing.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'

import { eventually } from '../harness/eventually.ts'
import { startPair } from '../harness/pair.ts'
import { echo } from '../harness/service.ts'
import { canary } from '../harness/wire-capture.ts'

test('what a service sends and receives is not to be seen on the wire', async () => {
  await using pair = await startPair({ behavior: echo })
  const { mesh, web } = pair
  const stranger = await mesh.host('a').stranger().start()
  const wire = await mesh.listenOnWire()
  const { ip } = mesh.host('b').namespace

  const visible = canary()
  const open = await stranger.workload.dial(ip, 5432)
  await open.write(`${visible}\n`)
  assert.match(await open.readLine(), new RegExp(visible))
  await wire.sees(visible)
  await open.reset()

  const hidden = canary()
  await eventually(() => web.call('db'))
  for (const dial of [
    () => web.dial('db'),
    () => web.dial('db', 6),
    () => web.workload.dial(ip, 5432),
  ]) {
    const socket = await dial()
    await socket.write(`${hidden}\n`)
    assert.match(await socket.readLine(), new RegExp(hidden))
    await socket.write(hidden.repeat(100))
    await socket.end()
    assert.equal((await socket.readRest()).bytes, hidden.length * 100)
  }

  // The capture has caught up with the mesh's traffic once it has seen what was sent after it.
  const marker = canary()
  const after = await stranger.workload.dial(ip, 5432)
  await after.write(`${marker}\n`)
  await after.readLine()
  await wire.sees(marker)
  await after.reset()
  assert.equal(await wire.has(hidden), false, 'the text was seen on the wire')
  assert.equal((await wire.has('"service":"db"')) && !(await wire.has(visible)), false)
})
