/**
 * Our own CA beside a real Consul catalog: what Consul says a host runs, the host is certified for, and nothing
 * else.
 */
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { openHostServices } from '../../src/authority/host-services.ts'
import { silentLog } from '../../src/lib/log.ts'
import { CaProcess, certificatesFromCa } from '../harness/ca.ts'
import { eventually } from '../harness/eventually.ts'
import { startMesh } from '../harness/mesh.ts'

test('a host is certified for what Consul says it runs', async () => {
  let folder = ''
  await using mesh = await startMesh({
    hosts: ['a', 'b', 'ca'],
    catalog: 'consul',
    daemonless: ['ca'],
    config: certificatesFromCa(() => folder),
  })
  folder = mesh.folder
  const ca = await CaProcess.start(mesh, {
    host: 'ca',
    arguments: ['--consul-address', 'http://127.0.0.1:8500'],
  })
  const web = await mesh
    .host('a')
    .service('web', { upstreams: { db: 15_432 } })
    .start()
  await mesh.host('b').service('db', { listens: 5432 }).start()
  await mesh.allow('web', 'db')
  await ca.admit('a', ['web'])
  // Nothing in its token: its claim is what it has registered.
  await ca.admit('b', [])
  await mesh.up()
  await eventually(() => web.call('db'))
  assert.match(readFileSync(join(folder, 'kept-b/services/db.pem'), 'utf8'), /BEGIN CERTIFICATE/)

  const address = `unix://${mesh.catalog.agent('ca').socketPath}`
  await using services = openHostServices(
    { kind: 'consul', address, requestTimeout: 5_000 },
    silentLog,
  )
  assert.equal(await services.runsService('b', 'db'), true)
  assert.equal(await services.runsService('a', 'db'), false, 'a does not run db')
  assert.equal(await services.runsService('nobody', 'db'), false, 'a node that is not there')
  assert.equal(await services.runsService('b', 'b-sidecar-proxy'), false)
})
