/**
 * A virtual address, once given, keeps its meaning: the next run of the daemon gives the service the same one,
 * also where it would choose another by itself.
 */
import assert from 'node:assert/strict'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { test } from 'node:test'
import { silentLog } from '../../src/lib/log.ts'
import { openStateFile } from '../../src/lib/state-file.ts'
import { eventually } from '../harness/eventually.ts'
import { startMesh } from '../harness/mesh.ts'
import { echo } from '../harness/service.ts'

test('a virtual address of an earlier run', async () => {
  await using mesh = await startMesh({ hosts: ['a'], catalog: 'consul' })
  const host = mesh.host('a')
  const web = await host.service('web').start()
  await host.service('db', { listens: 5432 }).start(echo)
  await mesh.allow('web', 'db')
  await mesh.up()
  const path = join(host.daemon.stateFolder, 'virtual-addresses.json')
  const chosen = await mesh.virtualAddress('db', host)
  await eventually(async () => assert.ok((await readFile(path, 'utf8')).includes(chosen.ip)))
  await host.daemon.stop()

  // As if another service had had the address when `db` was first seen.
  {
    await using file = openStateFile({
      path,
      format: 'hostmesh-virtual-addresses',
      version: 1,
      maxBytes: 1_000_000,
      log: silentLog,
    })
    assert.ok(file.stored !== undefined)
    file.save(() => JSON.stringify({ db: ['240.9.8.7'], elder: [chosen.ip] }))
  }
  await mesh.up()
  assert.equal((await mesh.virtualAddress('db', host)).ip, '240.9.8.7')
  await eventually(() => web.call('db'))
  await eventually(async () => assert.match(await readFile(path, 'utf8'), /240\.9\.8\.7/))
})
