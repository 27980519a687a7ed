/**
 * Whoever is at the other end must prove who it is: strangers, foreign certificates and the wrong peer at
 * the right address get nothing and cost nobody a byte.
 */
import assert from 'node:assert/strict'
import { readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { test } from 'node:test'
import { hostmesh } from '../harness/daemon.ts'
import { eventually } from '../harness/eventually.ts'
import { issueLeaves, TRUST_DOMAIN, TUNNEL_PORT } from '../harness/file-catalog.ts'
import { startMesh } from '../harness/mesh.ts'
import { mustRun } from '../harness/owned-process.ts'
import { startTlsPeer, type TlsOutcome, tlsCall } from '../harness/tls-peer.ts'

test('with a stranger on the same network', async (t) => {
  await using mesh = await startMesh({
    hosts: ['a', 'b', 'c', 'outside'],
    catalog: 'file',
    daemonless: ['outside'],
  })
  const { catalog } = mesh
  const [b, outside] = [mesh.host('b').namespace, mesh.host('outside').namespace]
  const web = await mesh.host('a').service('web').start()
  await mesh.host('b').service('db', { listens: 5432 }).start()
  await mesh.host('c').service('cache', { listens: 6379 }).start()
  await mesh.allow('web', 'db')
  await mesh.up()
  await eventually(() => web.call('db'))

  const own = join(mesh.folder, 'own')
  const foreign = join(mesh.folder, 'foreign')
  await issueLeaves(catalog.caFolder, ['web'], own)
  await mustRun([
    hostmesh,
    'ca',
    'init',
    '--directory',
    `${foreign}-ca`,
    '--trust-domain',
    TRUST_DOMAIN,
  ])
  await issueLeaves(`${foreign}-ca`, ['web'], foreign)
  const dbName = `db.default.dc1.internal.${TRUST_DOMAIN}`
  const delivered = async (): Promise<number> =>
    mesh.host('b').daemon.metric('hostmesh_tcp_connections_opened_total', {
      destination_service: 'db',
    })
  const call = (certificates: string | undefined, serverName = dbName): Promise<TlsOutcome> =>
    tlsCall(outside, { ip: b.ip, port: TUNNEL_PORT, serverName, certificates })

  await t.test('a Connect peer with a certificate of the mesh is served', async () => {
    const outcome = await call(own)
    assert.equal(outcome.answer?.service, 'db', outcome.error)
  })

  await t.test('a stranger without a certificate gets no answer', async () => {
    const before = await delivered()
    const outcome = await call(undefined)
    assert.equal(outcome.answer, undefined)
    assert.equal(await delivered(), before)
  })

  await t.test(
    'a certificate of another CA under the same trust domain gets no answer',
    async () => {
      const before = await delivered()
      const outcome = await call(foreign)
      assert.equal(outcome.answer, undefined)
      assert.equal(await delivered(), before)
    },
  )

  await t.test('a service that this host does not have is not served', async () => {
    const outcome = await call(own, `cache.default.dc1.internal.${TRUST_DOMAIN}`)
    assert.equal(outcome.answer, undefined)
  })

  await t.test('plaintext at the tunnel port is cut off', async () => {
    const stranger = await mesh.host('a').stranger().start()
    const socket = await stranger.workload.dial(b.ip, TUNNEL_PORT)
    await socket.write('GET / HTTP/1.1\r\nhost: db\r\n\r\n')
    const rest = await socket.readRest()
    assert.doesNotMatch(rest.tail, /HTTP|hostmesh/, 'it says nothing of itself')
  })

  await t.test('a wrong peer at the right address is refused and gets no byte', async () => {
    // c is a host of the mesh with valid certificates, but it is not where db runs.
    await catalog.amend('b', 'db', { Address: mesh.host('c').namespace.ip })
    await eventually(() => assert.rejects(web.call('db'), { code: 'ECONNRESET' }))
    assert.equal(
      await mesh.host('c').daemon.metric('hostmesh_tcp_connections_opened_total', {
        source_service: 'web',
      }),
      0,
    )
  })

  await t.test('an impostor with the certificate of another service is refused', async () => {
    await using impostor = await startTlsPeer(outside, {
      port: TUNNEL_PORT,
      certificates: mesh.catalog.certificateFolder('c'),
    })
    await catalog.amend('b', 'db', { Address: outside.ip })
    await eventually(async () => {
      await assert.rejects(web.call('db'), { code: 'ECONNRESET' })
      assert.notEqual(impostor.handshakes, 0, 'nobody has called the impostor yet')
    })
    assert.equal(impostor.received, '', 'bytes that the impostor was given')
    await catalog.amend('b', 'db', { Address: b.ip })
    await eventually(() => web.call('db'))
  })

  await t.test('two hosts that swap their addresses are not taken for each other', async () => {
    await mesh.network.swapAddresses('b', 'c')
    await eventually(() => assert.rejects(web.call('db'), { code: 'ECONNRESET' }), {
      withinMs: 20_000,
    })
    for (let i = 0; i < 5; i += 1) await assert.rejects(web.call('db'), { code: 'ECONNRESET' })
    await mesh.network.swapAddresses('b', 'c')
    await eventually(() => web.call('db'), { withinMs: 20_000 })
  })

  await t.test('certificate folders hold one key each, readable by their owner alone', async () => {
    const files = await readdir(mesh.catalog.certificateFolder('b'))
    assert.ok(
      files.some((name) => name.includes('key')),
      files.join(),
    )
    const listed = await mustRun([
      'find',
      mesh.catalog.certificateFolder('b'),
      '-name',
      '*key*',
      '-perm',
      '/077',
    ])
    assert.equal(listed, '')
  })
})
