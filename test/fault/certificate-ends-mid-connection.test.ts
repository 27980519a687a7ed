/**
 * No connection outlives a certificate that it rests on: tunnels and Connect peers' connections, the peer's
 * certificate and our own. What is cut is counted under a flag that says so.
 */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { test } from 'node:test'
import tls from 'node:tls'
import { readLeaf } from '../../src/controlplane/identity/x509.ts'
import type { Leaf } from '../../src/model/certificate.ts'
import { eventually, within } from '../harness/eventually.ts'
import { ending } from '../integration/dataplane-fixtures.ts'
import { authority, DATACENTER, leafOf, TRUST_DOMAIN } from '../integration/tunnel-fixtures.ts'
import { makeLeaf } from '../unit/identity-fixtures.ts'
import { startCertificatePair } from './certificate-pair.ts'

const LIFE_MS = 4_000

function shortLeaf(service: string): Leaf {
  const nowMs = Date.now()
  return readLeaf(
    { service, ...makeLeaf(authority, service, nowMs, LIFE_MS) },
    authority.bundle,
    nowMs,
  )
}

for (const [whose, services] of [
  ['the caller', ['web']],
  ['the callee', ['db']],
] as const)
  test(`a stream ends when the certificate of ${whose} does, at most 5 s late`, async () => {
    await using pair = await startCertificatePair()
    const leaf = shortLeaf(services[0])
    ;(services[0] === 'web' ? pair.web : pair.db).pool.setLeaf(leaf)
    const [caller, called] = await pair.connect()
    const ended = await within(
      LIFE_MS + 5_000,
      'the end of the stream',
      Promise.all([ending(caller), ending(called)]),
    )
    assert.ok(Date.now() >= leaf.notAfterMs, 'not before')
    assert.deepEqual(
      ended.map(({ how }) => how),
      ['ECONNRESET', 'ECONNRESET'],
    )
    await eventually(() => {
      // Who notices first says why; the other host may only see the tunnel go.
      const flags = { ...pair.web.closedByFlag('source'), ...pair.db.closedByFlag('destination') }
      assert.equal(flags['TLS'], 1)
    })
  })

for (const whose of ['its own', 'ours'] as const)
  test(`a Connect peer's connection ends when a certificate of it does: ${whose}`, async () => {
    await using pair = await startCertificatePair()
    const theirs = whose === 'its own' ? shortLeaf('web') : leafOf('web')
    if (whose === 'ours') pair.db.pool.setLeaf(shortLeaf('db'))
    const socket = tls.connect({
      host: '127.0.0.1',
      port: pair.db.tunnelPort,
      servername: `db.default.${DATACENTER}.internal.${TRUST_DOMAIN}`,
      cert: theirs.certificatePem,
      key: theirs.privateKeyPem,
      rejectUnauthorized: false,
    })
    socket.on('error', () => undefined)
    await once(socket, 'secureConnect')
    socket.write('>')
    const called = await pair.application.next()
    await within(
      LIFE_MS + 5_000,
      'the end of the connection',
      Promise.all([ending(socket), ending(called)]),
    )
    await eventually(() => assert.deepEqual(pair.db.closedByFlag('destination'), { TLS: 1 }))
  })

test('a connection to a Connect peer ends with the certificate of that peer', async () => {
  await using pair = await startCertificatePair()
  const sidecar = await startSidecar(shortLeaf('db'))
  await pair.web.publish(pair.snapshotWith(sidecar.port))
  const caller = await pair.dialWeb()
  caller.write('>')
  const { how, bytes } = await within(LIFE_MS + 5_000, 'the end of the connection', ending(caller))
  assert.equal(bytes.toString(), '>', 'it was served until then')
  assert.equal(how, 'ECONNRESET')
  await eventually(() => assert.deepEqual(pair.web.closedByFlag('source'), { TLS: 1 }))
  await sidecar.close()
})

/** A sidecar in front of an echo, on a port of loopback. */
async function startSidecar(leaf: Leaf): Promise<{ port: number; close(): Promise<void> }> {
  const server = tls.createServer({
    cert: leaf.certificatePem,
    key: leaf.privateKeyPem,
    ca: [...authority.bundle.rootsPem],
    requestCert: true,
  })
  const sockets = new Set<tls.TLSSocket>()
  server.on('secureConnection', (socket) => {
    sockets.add(socket)
    socket.on('error', () => undefined)
    socket.pipe(socket)
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const address = server.address()
  if (address === null || typeof address === 'string') throw new Error('No port')
  return {
    port: address.port,
    close: async () => {
      for (const socket of sockets) socket.destroy()
      server.close()
      await once(server, 'close')
    },
  }
}
