/**
 * A mesh whose hosts join with tokens and get their certificates from a real `hostmesh ca serve`: traffic,
 * renewal, revocation and a new root, all under load.
 */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { X509Certificate } from 'node:crypto'
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { AGGREGATOR, Aggregator } from '../harness/aggregator.ts'
import { CaProcess, certificatesFromCa } from '../harness/ca.ts'
import { eventually, within } from '../harness/eventually.ts'
import { underLoad } from '../harness/load.ts'
import { startMesh } from '../harness/mesh.ts'

test('with hosts that joined by token', async (t) => {
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
    arguments: [
      '--leaf-lifetime',
      '12s',
      '--renew-within',
      '1s',
      '--catalog-file',
      mesh.catalog.path,
    ],
  })
  const web = await mesh.host('a').service('web').start()
  await mesh.host('b').service('db', { listens: 5432 }).start()
  await mesh.allow('web', 'db')
  // web is no instance in the catalog, so its token has to name it; db is one.
  const tokens = [await ca.admit('a', ['web']), await ca.admit('b', [])]
  await mesh.up()
  const kept = (host: string, name: string): string =>
    readFileSync(join(folder, `kept-${host}`, name), 'utf8')
  const leafSerial = (host: string, service: string): string =>
    new X509Certificate(
      kept(host, `services/${service}.pem`).replace(/^[^]*?(?=-----BEGIN CERT)/, ''),
    ).serialNumber

  await t.test(
    'services reach each other, and openssl verifies what they prove themselves with',
    async () => {
      await eventually(() => web.call('db'))
      const bundle = JSON.parse(kept('b', 'bundle.json')) as { bundle: { roots: string[] } }
      assert.equal(bundle.bundle.roots.length, 1)
      execFileSync(
        'openssl',
        ['verify', '-CAfile', join(ca.directory, 'ca.pem'), join(folder, 'kept-b/services/db.pem')],
        { stdio: 'pipe' },
      )
    },
  )

  await t.test('renewals under load let no connection fail', async () => {
    const before = [leafSerial('a', 'web'), leafSerial('b', 'db')]
    const { calls, failures } = await underLoad(web, 'db', async () => {
      for (let round = 0; round < 2; round += 1) {
        const [oldWeb, oldDb] = [leafSerial('a', 'web'), leafSerial('b', 'db')]
        await eventually(
          () => {
            assert.notEqual(leafSerial('a', 'web'), oldWeb)
            assert.notEqual(leafSerial('b', 'db'), oldDb)
          },
          { withinMs: 30_000 },
        )
      }
    })
    assert.notDeepEqual([leafSerial('a', 'web'), leafSerial('b', 'db')], before)
    assert.deepEqual(failures, [])
    assert.ok(calls > 20, `only ${calls} calls`)
  })

  await t.test('a revocation is in the bundle of every host within ten seconds', async () => {
    const serial = leafSerial('b', 'db')
    await ca.command('revoke', '--serial', serial)
    for (const host of ['a', 'b'])
      await eventually(() => assert.ok(kept(host, 'bundle.json').includes(serial)), {
        withinMs: 10_000,
      })
    await eventually(() => assert.notEqual(leafSerial('b', 'db'), serial))
    await eventually(() => web.call('db'))
  })

  await t.test('a new root from start to finish under load lets no connection fail', async () => {
    const old = (await ca.status()).activeRoot
    const { calls, failures } = await underLoad(web, 'db', async () => {
      await ca.rotate('start')
      // What it has said it will do, it does after a crash as well.
      await ca.kill()
      await ca.serve()
      // Host certificates, too, follow within the second that the CA was given.
      await eventually(async () => assert.deepEqual((await ca.rotate('status')).lagging, []), {
        withinMs: 60_000,
        everyMs: 300,
      })
      await ca.rotate('finish')
      for (const host of ['a', 'b'])
        await eventually(() => {
          const { bundle } = JSON.parse(kept(host, 'bundle.json')) as {
            bundle: { roots: string[]; activeRoot: string }
          }
          assert.equal(bundle.roots.length, 1)
          assert.notEqual(bundle.activeRoot, old)
        })
    })
    assert.deepEqual(failures, [])
    assert.ok(calls > 10, `only ${calls} calls`)
    await web.call('db')
  })

  await t.test(
    'a revoked host is cut off within ten seconds, live connections included, and may join again',
    async () => {
      const live = await web.dial('db')
      await live.write('hello')
      const rest = live.readRest()
      await ca.command('revoke', '--host', 'b')
      const { ending } = await within(10_000, 'The end of the live connection', rest)
      assert.equal(ending, 'ECONNRESET')
      await assert.rejects(web.call('db'), { code: 'ECONNRESET' })
      await eventually(async () =>
        assert.match(
          (await mesh.host('b').daemon.status()).certificates.problems.join(),
          /was revoked|refused? the join token/,
        ),
      )
      for (const host of ['a', 'b']) {
        const { code, stdout } = await mesh
          .host(host)
          .daemon.cli('explain', '--from', 'web', '--to', 'db')
        assert.equal(code, 1, stdout)
        assert.doesNotMatch(stdout, /ALLOWED/)
      }
      tokens.push(await ca.admit('b', []))
      await eventually(() => web.call('db'), { withinMs: 60_000 })
      const after = await mesh
        .host('a')
        .daemon.cli('explain', '--from', 'web', '--to', 'db', '--probe')
      assert.equal(after.code, 0, after.stdout)
    },
  )

  await t.test('no key and no token is in a log or in what the admin API says', async () => {
    const secrets = tokens.map((token) => token.slice(8))
    for (const host of ['a', 'b'])
      for (const name of [
        'host.pem',
        ...readdirSync(join(folder, `kept-${host}/services`)).map((one) => `services/${one}`),
      ]) {
        const key = /-----BEGIN PRIVATE KEY-----\n([^-]+)\n-----END/.exec(kept(host, name))?.[1]
        secrets.push(...(key?.split('\n') ?? []))
      }
    assert.ok(secrets.length > 6)
    const said = [ca.log]
    for (const host of ['a', 'b']) {
      const { daemon } = mesh.host(host)
      said.push(daemon.log)
      for (const command of ['status', 'certs', 'services', 'peers', 'connections'])
        said.push((await daemon.cli(command, '-o', 'json')).stdout)
    }
    const all = said.join('\n')
    assert.match(all, /hostmesh CA at/)
    for (const secret of secrets) assert.ok(!all.includes(secret))
    assert.doesNotMatch(all, /PRIVATE KEY/)
  })
})

test('hosts that joined by token report as a service that neither their token nor the catalog has', async () => {
  let folder = ''
  const certificates = certificatesFromCa(() => folder)
  await using mesh = await startMesh({
    hosts: ['a', 'b', 'ca'],
    catalog: 'file',
    daemonless: ['ca'],
    config: (host) => ({ ...certificates(host), reports: { to: [AGGREGATOR] } }),
  })
  folder = mesh.folder
  const ca = await CaProcess.start(mesh, {
    host: 'ca',
    arguments: ['--catalog-file', mesh.catalog.path],
  })
  const aggregator = new Aggregator(mesh, mesh.host('b'))
  await aggregator.join()
  await aggregator.start()
  for (const host of ['a', 'b']) await ca.admit(host, [])
  await mesh.up()
  await eventually(
    async () => {
      const { hosts } = await aggregator.ask('hosts')
      assert.deepEqual(hosts.map(({ name, state }) => `${name} ${state}`).toSorted(), [
        'a ready',
        'b ready',
      ])
    },
    { withinMs: 30_000 },
  )
})
