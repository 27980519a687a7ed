/**
 * Whoever looks at a host finds the daemon by its name: in the list of listening ports, and thread by thread.
 */
import assert from 'node:assert/strict'
import { readdir, readFile } from 'node:fs/promises'
import { test } from 'node:test'

import { TUNNEL_PORT } from '../harness/file-catalog.ts'
import { startMesh } from '../harness/mesh.ts'

test('ports and threads of the daemon bear its name', async () => {
  await using mesh = await startMesh({ hosts: ['a'], catalog: 'file', workers: 2 })
  const { namespace, daemon } = mesh.host('a')
  await mesh.host('a').service('db', { listens: 5432 }).start()
  await mesh.up()
  const listening = await namespace.run('ss', '-Hltnp', `sport = :${TUNNEL_PORT}`)
  assert.match(listening, new RegExp(`\\("hostmesh",pid=${daemon.pid},`))
  const tasks = `/proc/${daemon.pid}/task`
  const names = await Promise.all(
    (await readdir(tasks)).map(async (task) =>
      (await readFile(`${tasks}/${task}/comm`, 'utf8')).trim(),
    ),
  )
  for (const name of ['hostmesh', 'hostmesh-w0', 'hostmesh-w1'])
    assert.equal(names.filter((other) => other === name).length, 1, name)
})
