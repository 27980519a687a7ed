/** `hostmesh capture clear` and `capture guard clear` where a daemon runs: they say that it does, and it repairs. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { eventually } from '../harness/eventually.ts'
import { startPair } from '../harness/pair.ts'
import { echo } from '../harness/service.ts'

test('who clears beside a daemon is told its process, and the daemon puts everything back', async () => {
  await using pair = await startPair({ behavior: echo })
  const { mesh, web } = pair
  await eventually(() => web.call('db'))
  const { ip, port } = await mesh.virtualAddress('db', mesh.host('a'))
  const { daemon } = mesh.host('a')
  for (const [command, says] of [
    [['capture', 'clear'], 'Capture rules are removed\n'],
    [['capture', 'guard', 'clear'], 'The guard is removed\n'],
  ] as const) {
    const { code, stdout, stderr } = await daemon.cli(...command)
    assert.deepEqual([code, stdout], [0, says], stderr)
    assert.match(stderr, new RegExp(`A daemon runs, process ${daemon.pid}: .* puts back`))
    await eventually(() => web.callAddress(ip, port))
    await eventually(async () => {
      const shown = await daemon.cli('capture', 'guard', 'show')
      assert.match(shown.stdout, /hostmesh_guard/)
      assert.deepEqual((await daemon.status()).problems, [])
    })
  }
})
