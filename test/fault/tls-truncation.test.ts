/**
 * A FIN without close_notify from a Connect peer is a cut, not an end: anybody on the way could have sent it. The
 * application behind sees a reset, in both directions, and the log of its host says why.
 */
import assert from 'node:assert/strict'
import { join } from 'node:path'
import { test } from 'node:test'

import { eventually, within } from '../harness/eventually.ts'
import { issueLeaves, TRUST_DOMAIN, TUNNEL_PORT } from '../harness/file-catalog.ts'
import { startMesh } from '../harness/mesh.ts'
import { manual } from '../harness/service.ts'
import { startCutCaller, startCutServer } from '../harness/tls-peer.ts'

const HALF = 'half of what'

test('a Connect peer is cut off', async (t) => {
  await using mesh = await startMesh({
    hosts: ['a', 'b', 'outside'],
    catalog: 'file',
    daemonless: ['outside'],
  })
  const { catalog } = mesh
  const outside = mesh.host('outside')
  const web = await mesh.host('a').service('web').start()
  const db = await mesh.host('b').service('db', { listens: 5432 }).start(manual)
  await outside.service('cache', { listens: 6379 }).start()
  await mesh.allow('web', 'db')
  await mesh.allow('web', 'cache')
  await mesh.up()

  await t.test('a caller: the application sees a reset', async () => {
    const certificates = join(mesh.folder, 'web')
    await issueLeaves(catalog.caFolder, ['web'], certificates)
    await using caller = await startCutCaller(outside.namespace, {
      ip: mesh.host('b').namespace.ip,
      port: TUNNEL_PORT,
      serverName: `db.default.dc1.internal.${TRUST_DOMAIN}`,
      certificates,
    })
    const called = await db.accept()
    assert.equal(await called.read(HALF.length), HALF)
    caller.cut()
    const rest = await within(10_000, 'an ending', called.readRest())
    assert.equal(rest.ending, 'ECONNRESET')
    await eventually(() => assert.match(mesh.host('b').daemon.log, /without close_notify/))
  })

  await t.test('an answer: the caller sees a reset', async () => {
    const certificates = join(mesh.folder, 'cache')
    await issueLeaves(catalog.caFolder, ['cache'], certificates)
    await using sidecar = await startCutServer(outside.namespace, {
      port: TUNNEL_PORT,
      certificates,
    })
    const caller = await web.dial('cache')
    await caller.write('a question')
    assert.equal(await caller.read(HALF.length), HALF)
    sidecar.cut()
    const rest = await within(10_000, 'an ending', caller.readRest())
    assert.equal(rest.ending, 'ECONNRESET')
    await eventually(() => assert.match(mesh.host('a').daemon.log, /without close_notify/))
    assert.equal(
      await mesh.host('a').daemon.metric('hostmesh_tcp_connections_closed_total', {
        destination_service: 'cache',
        response_flags: 'UC',
      }),
      1,
    )
  })
})
