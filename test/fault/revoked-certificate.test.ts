/**
 * A certificate that is revoked stops working at once, not at its end: 100 live streams are cut within 10 s,
 * so is a Connect peer's connection, and nobody gets in with it again. A revoked leaf of our own is not used.
 */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { test } from 'node:test'
import tls from 'node:tls'
import type { Leaf } from '../../src/model/certificate.ts'
import { eventually, within } from '../harness/eventually.ts'
import { ending } from '../integration/dataplane-fixtures.ts'
import { DATACENTER, leafOf, TRUST_DOMAIN } from '../integration/tunnel-fixtures.ts'
import { endings, revoking, startCertificatePair } from './certificate-pair.ts'

const LIMIT_MS = 10_000

/** A Connect peer: one TLS connection, one application connection. */
function sidecar(port: number, leaf: Leaf): tls.TLSSocket {
  const socket = tls.connect({
    host: '127.0.0.1',
    port,
    servername: `db.default.${DATACENTER}.internal.${TRUST_DOMAIN}`,
    cert: leaf.certificatePem,
    key: leaf.privateKeyPem,
    rejectUnauthorized: false,
  })
  socket.on('error', () => undefined)
  return socket
}

for (const side of ['caller', 'callee'] as const)
  test(`100 live streams of a revoked ${side} are reset within 10 s, and new ones are refused`, async () => {
    await using pair = await startCertificatePair()
    const live = await Promise.all(Array.from({ length: 100 }, () => pair.connect()))
    const { serialNumber } = side === 'caller' ? pair.webLeaf : pair.dbLeaf
    const judge = side === 'caller' ? pair.db : pair.web
    const ended = endings(live.flat(), LIMIT_MS)
    judge.pool.setRoots(revoking(serialNumber))
    assert.deepEqual(new Set(await ended), new Set(['ECONNRESET']))
    await eventually(() =>
      assert.equal(judge.closedByFlag(side === 'caller' ? 'destination' : 'source')['TLS'], 100),
    )
    // Counted when the last of its streams has been ended.
    await eventually(() => assert.equal(judge.totals.numbers().tunnelSessionsClosed.revoked, 1))
    for (let i = 0; i < 3; i += 1) assert.equal(await pair.call(), 'ECONNRESET')
    assert.equal(pair.application.connections.length, 0, 'the application has seen nobody since')

    const renewed = leafOf(side === 'caller' ? 'web' : 'db')
    ;(side === 'caller' ? pair.web : pair.db).pool.setLeaf(renewed)
    await eventually(async () => assert.equal(await pair.call(), 'end'))
  })

test('a Connect peer that is revoked is cut, and refused when it comes again', async () => {
  await using pair = await startCertificatePair()
  const leaf = leafOf('web')
  const spared = leafOf('web')
  const sockets: tls.TLSSocket[] = []
  for (const one of [leaf, spared]) {
    const socket = sidecar(pair.db.tunnelPort, one)
    sockets.push(socket)
    await once(socket, 'secureConnect')
    socket.write('>')
    await within(5_000, 'the connection at the application', pair.application.next())
  }
  const cut = ending(sockets[0]!)
  pair.db.pool.setRoots(revoking(leaf.serialNumber))
  await within(LIMIT_MS, 'the end of the revoked connection', cut)
  await eventually(() => assert.equal(pair.db.closedByFlag('destination')['TLS'], 1))
  const again = sidecar(pair.db.tunnelPort, leaf)
  again.write('>')
  assert.equal((await ending(again)).bytes.length, 0)
  assert.equal(pair.application.connections.length, 0)
  assert.equal(sockets[1]!.destroyed, false, 'the other certificate of the same service holds')
  sockets[1]!.destroy()
})

test('a leaf of our own that is revoked cuts its streams, and nothing is sent or taken with it', async () => {
  await using pair = await startCertificatePair()
  const live = await Promise.all(Array.from({ length: 3 }, () => pair.connect()))
  const ended = endings(live.flat(), LIMIT_MS)
  pair.web.pool.setRoots(revoking(pair.webLeaf.serialNumber))
  assert.deepEqual(new Set(await ended), new Set(['ECONNRESET']))
  // It waits for a better one, as it does before the first has come.
  assert.equal(await pair.call(), 'ECONNRESET')
  assert.equal(pair.web.closedByFlag('source')['TLS'], 4)
  pair.web.pool.setLeaf(leafOf('web'))
  await eventually(async () => assert.equal(await pair.call(), 'end'))

  pair.db.pool.setRoots(revoking(pair.dbLeaf.serialNumber))
  const refused = sidecar(pair.db.tunnelPort, leafOf('web'))
  refused.write('>')
  assert.equal((await ending(refused)).bytes.length, 0)
  pair.db.pool.setLeaf(leafOf('db'))
  await eventually(async () => assert.equal(await pair.call(), 'end'))
})
