/**
 * A private key is in its file and in memory, and nowhere else that a host shows: not in the log at its most
 * talkative, the admin API, the metrics, the environment or command line of the process, or a core dump.
 */
import assert from 'node:assert/strict'
import { readdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { test } from 'node:test'
import { httpOverSocket } from '../harness/daemon.ts'
import { eventually } from '../harness/eventually.ts'
import { startMesh } from '../harness/mesh.ts'
import { echo } from '../harness/service.ts'
import { issueShortLeaf } from './short-leaves.ts'

test('a running host shows its keys nowhere', async () => {
  await using mesh = await startMesh({
    hosts: ['a', 'b'],
    catalog: 'file',
    config: { log: { level: 'debug', format: 'json' } },
  })
  const web = await mesh.host('a').service('web').start()
  await mesh.host('b').service('db', { listens: 5432 }).start(echo)
  await mesh.allow('web', 'db')
  await mesh.up()
  await eventually(() => web.call('db'))
  const { daemon } = mesh.host('a')
  const folder = mesh.catalog.certificateFolder('a')
  const keys: string[] = []
  const noteKeys = async (): Promise<void> => {
    for (const name of await readdir(folder))
      if (name.endsWith('.key')) keys.push(await readFile(join(folder, name), 'utf8'))
  }
  await noteKeys()
  // A renewal, and a certificate beside the wrong key, are occasions to say too much.
  const { leaves } = await daemon.certs()
  await issueShortLeaf(mesh.catalog, { host: 'a', service: 'web', lifetimeMs: 3_600_000 })
  await eventually(async () =>
    assert.notEqual((await daemon.certs()).leaves[0]?.serialNumber, leaves[0]?.serialNumber),
  )
  await noteKeys()
  await issueShortLeaf(mesh.catalog, { host: 'b', service: 'db', lifetimeMs: 3_600_000 })
  await eventually(() => web.call('db'))

  // Any stretch of the base64 body gives a key away, line ends or not.
  const secrets = keys.flatMap((pem) => {
    const body = pem.replaceAll(/-----[^-]+-----|\s/g, '')
    const half = Math.floor(body.length / 2)
    return [
      body.slice(half, half + 40),
      Buffer.from(body, 'base64').toString('hex').slice(-80, -20),
    ]
  })
  assert.ok(secrets.length >= 4 && secrets.every((secret) => secret.length >= 40))
  const places: Record<string, string> = {
    'the log': daemon.log,
    environ: await readFile(`/proc/${daemon.pid}/environ`, 'utf8'),
    cmdline: await readFile(`/proc/${daemon.pid}/cmdline`, 'utf8'),
  }
  for (const path of ['status', 'services', 'peers', 'connections', 'certs'])
    places[path] = await httpOverSocket(daemon.socketPath, { path: `/v1/${path}` })
  places['metrics'] = await httpOverSocket(daemon.socketPath, { path: '/metrics' })
  for (const [place, text] of Object.entries(places)) {
    assert.ok(text.length > 0, `${place} was read`)
    const bare = text.replaceAll(/\\n|\s/g, '')
    assert.ok(!bare.includes('PRIVATEKEY'), `a key in ${place}`)
    for (const secret of secrets) assert.ok(!bare.includes(secret), `a key in ${place}`)
  }
  for (const path of ['/debug/heap', '/v1/heap', '/v1/keys', '/json/list'])
    await assert.rejects(httpOverSocket(daemon.socketPath, { path }), /: 404/)
  const unit = await readFile(join(import.meta.dirname, '../../systemd/hostmesh.service'), 'utf8')
  assert.match(unit, /^LimitCORE=0$/m)
  assert.match(unit, /^UnsetEnvironment=.*\bSSLKEYLOGFILE\b/m)
})
