/**
 * A virtual address, once given, keeps its meaning: the next run of the daemon gives the service the same one,
 * also where it would choose another by itself. Consul's own (1.11 and later) wins over what is kept.
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

interface Proxy {
  readonly Service: {
    readonly TaggedAddresses?: Readonly<Record<string, { readonly Address: string }>>
  }
}

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
  const proxy = await eventually(async () => {
    const [one] = (await mesh.catalog.server.get('/v1/health/connect/db')) as Proxy[]
    assert.ok(one !== undefined, 'it is registered again')
    return one
  })
  const expected = proxy.Service.TaggedAddresses?.['consul-virtual']?.Address ?? '240.9.8.7'
  assert.equal((await mesh.virtualAddress('db', host)).ip, expected)
  await eventually(() => web.call('db'))
  await eventually(async () => {
    // The second line is the body.
    const [, body = ''] = (await readFile(path, 'utf8')).split('\n')
    const kept = JSON.parse(body) as Record<string, readonly string[]>
    assert.ok(kept['db']?.includes(expected))
    assert.ok(!kept['elder']?.includes(expected), 'nobody else has it')
  })
})
