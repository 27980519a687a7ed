/**
 * The CA is gone for longer than certificates live: everything works until they end, nothing after that, and all
 * of it again by itself when the CA is back. A restart of a daemon without the CA changes nothing.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { CaProcess, certificatesFromCa } from '../harness/ca.ts'
import { eventually, within } from '../harness/eventually.ts'
import { startMesh } from '../harness/mesh.ts'

test('while the CA is away traffic goes on until the certificates end, then fails closed, and comes back with it', async () => {
  let folder = ''
  await using mesh = await startMesh({
    hosts: ['a', 'b', 'ca'],
    catalog: 'file',
    daemonless: ['ca'],
    config: certificatesFromCa(() => folder),
  })
  folder = mesh.folder
  const ca = await CaProcess.start(mesh, {
    host: 'ca',
    arguments: ['--leaf-lifetime', '40s', '--host-lifetime', '40s'],
  })
  const web = await mesh.host('a').service('web').start()
  await mesh.host('b').service('db', { listens: 5432 }).start()
  await mesh.allow('web', 'db')
  await ca.admit('a', ['web'])
  await ca.admit('b', ['db'])
  await mesh.up()
  await eventually(() => web.call('db'))

  await ca.stop()
  const endOf = async (): Promise<number> => {
    const { leaves } = await mesh.host('b').daemon.certs()
    return Math.max(...leaves.map(({ notAfter }) => Date.parse(notAfter)))
  }
  const endMs = await endOf()
  await mesh.host('a').daemon.stop()
  await mesh.host('a').daemon.start()
  await mesh.settled()
  await eventually(() => web.call('db'))
  assert.ok(Date.now() < endMs, 'it was served while the certificate held')
  const status = await mesh.host('b').daemon.status()
  assert.match(status.certificates.problems.join(), /Cannot reach the CA/)

  await eventually(
    async () => {
      await assert.rejects(web.call('db'))
      assert.ok(Date.now() >= endMs)
    },
    { withinMs: 60_000 },
  )
  // At once: each waits for seconds for a certificate that may come.
  await Promise.all(Array.from({ length: 5 }, () => assert.rejects(web.call('db'))))
  assert.match(
    (await mesh.host('b').daemon.status()).certificates.problems.join(),
    /expired|has ended/,
  )
  assert.match(mesh.host('b').daemon.log, /ends soon and cannot be renewed/)

  await ca.serve()
  await within(
    10_000,
    'The recovery',
    eventually(() => web.call('db')),
  )
  await eventually(async () =>
    assert.deepEqual((await mesh.host('b').daemon.status()).certificates.problems, []),
  )
})
