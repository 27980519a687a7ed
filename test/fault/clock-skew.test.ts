/**
 * A host whose clock is wrong, and one whose clock is put right under way: four minutes are borne, an hour is
 * refused with both times in the log, and no step stops the daemon or its timers.
 */
import assert from 'node:assert/strict'
import { globSync } from 'node:fs'
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { test } from 'node:test'
import { eventually, within } from '../harness/eventually.ts'
import { TRUST_DOMAIN, TUNNEL_PORT } from '../harness/file-catalog.ts'
import { startMesh } from '../harness/mesh.ts'
import { echo } from '../harness/service.ts'
import { type TlsOutcome, tlsCall } from '../harness/tls-peer.ts'
import { issueShortLeaf } from './short-leaves.ts'

test('a host with a clock of its own', async (t) => {
  const [library] = globSync('/usr/lib/*/faketime/libfaketimeMT.so.1')
  assert.ok(library !== undefined, 'install the Debian package faketime')
  await using mesh = await startMesh({
    hosts: ['a', 'b', 'outside'],
    catalog: 'file',
    daemonless: ['outside'],
  })
  const clock = join(mesh.folder, 'clock')
  const setClock = (offset: string): Promise<void> => writeFile(clock, `${offset}\n`)
  const web = await mesh.host('a').service('web').start()
  const b = mesh.host('b')
  await b.service('db', { listens: 5432 }).start(echo)
  await mesh.allow('web', 'db')
  await setClock('+0')
  await mesh.prepare(b)
  await b.daemon.start([
    'env',
    `LD_PRELOAD=${library}`,
    `FAKETIME_TIMESTAMP_FILE=${clock}`,
    'FAKETIME_NO_CACHE=1',
    'FAKETIME_DONT_FAKE_MONOTONIC=1',
    'NO_FAKE_STAT=1',
  ])
  await mesh.up()
  await eventually(() => web.call('db'))
  // A Connect peer shakes hands at each call; its certificate lives for half an hour.
  const certificates = mesh.catalog.certificateFolder('outside')
  await mesh.catalog.prepare('outside', ['web'])
  await issueShortLeaf(mesh.catalog, { host: 'outside', service: 'web', lifetimeMs: 1_800_000 })
  const call = (): Promise<TlsOutcome> =>
    tlsCall(mesh.host('outside').namespace, {
      ip: b.namespace.ip,
      port: TUNNEL_PORT,
      serverName: `db.default.dc1.internal.${TRUST_DOMAIN}`,
      certificates,
    })
  const live = await web.dial('db')
  const alive = async (): Promise<void> => {
    await live.write('hello\n')
    // The first line is answered with a name, later ones come back.
    assert.match(await live.readLine(), /db|hello/)
  }
  await alive()

  for (const offset of ['+4m', '-4m'])
    await t.test(`${offset}: handshakes succeed`, async () => {
      await setClock(offset)
      const outcome = await call()
      assert.equal(outcome.answer?.service, 'db', outcome.error)
    })

  for (const [offset, code, what] of [
    ['-1h', 'CERT_NOT_YET_VALID', 'is not valid yet'],
    ['+1h', 'CERT_HAS_EXPIRED', 'has expired'],
  ] as const)
    await t.test(`${offset}: a handshake is refused, and the log has both times`, async () => {
      await setClock(offset)
      assert.equal((await call()).answer, undefined)
      const time = String.raw`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ`
      await eventually(() =>
        assert.match(
          b.daemon.log,
          new RegExp(
            `${code}.*valid from ${time} to ${time}; it ${what}, as the clock of this host says ${time}`,
          ),
        ),
      )
      // What holds is left alone: neither timers nor tunnels care for the step.
      await alive()
      assert.equal((await web.call('db')).service, 'db')
    })

  await t.test('+73h: what has ended is cut, and status names the clock', async () => {
    await setClock('+73h')
    const { ending } = await within(10_000, 'the end of a live connection', live.readRest())
    assert.equal(ending, 'ECONNRESET')
    await assert.rejects(web.call('db'))
    await eventually(() =>
      assert.match(b.daemon.log, /its certificate ended at .*, and the clock of this host says/),
    )
    assert.match((await b.daemon.status()).certificates.problems.join(), /expired at/)
  })

  await t.test('put right again, it serves within 10 s', async () => {
    await setClock('+0')
    await within(
      10_000,
      'a connection',
      eventually(() => web.call('db')),
    )
    assert.equal((await call()).answer?.service, 'db')
  })
})
