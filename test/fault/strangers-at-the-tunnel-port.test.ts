/**
 * Hundreds of strangers at the tunnel port, silent ones and ones with every wrong kind of certificate: no
 * application sees a byte of them, they are gone after the handshake timeout, and the mesh goes on meanwhile.
 */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { connect, type Socket } from 'node:net'
import { test } from 'node:test'
import tls from 'node:tls'
import forge from 'node-forge'
import { eventually } from '../harness/eventually.ts'
import { ending, read } from '../integration/dataplane-fixtures.ts'
import { authority, DATACENTER, TRUST_DOMAIN } from '../integration/tunnel-fixtures.ts'
import { uri } from '../unit/forged-identities.ts'
import { craft, HOUR_MS, makeAuthority, makeLeaf, WEB_ID } from '../unit/identity-fixtures.ts'
import { startCertificatePair } from './certificate-pair.ts'

const EACH = 40

const { asn1 } = forge
const SERVER_AUTH = '1.3.6.1.5.5.7.3.1'

/** Good for a server, and so not for who calls. */
const serverOnly = {
  oid: '2.5.29.37',
  critical: false,
  value: asn1.create(asn1.Class.UNIVERSAL, asn1.Type.SEQUENCE, true, [
    asn1.create(asn1.Class.UNIVERSAL, asn1.Type.OID, false, asn1.oidToDer(SERVER_AUTH).getBytes()),
  ]),
}

const certificates = {
  'no certificate': undefined,
  'a foreign CA': makeLeaf(makeAuthority()),
  'an expired certificate': makeLeaf(authority, 'web', Date.now() - 3 * HOUR_MS, HOUR_MS),
  'a certificate of tomorrow': makeLeaf(authority, 'web', Date.now() + 24 * HOUR_MS, HOUR_MS),
  'a certificate for servers only': craft(authority, { extensions: [...uri(WEB_ID), serverOnly] }),
  'a CA certificate': craft(authority, { extensions: uri(WEB_ID), isCa: true }),
}

test('strangers get nothing, and do not keep the mesh from working', async (t) => {
  await using pair = await startCertificatePair()
  const { db } = pair
  const [caller, called] = await pair.connect()
  const failuresBefore = db.totals.numbers().tunnelHandshakeFailures
  const alive = async (): Promise<void> => {
    caller.write('ping')
    assert.equal(await read(called, 4), 'ping')
  }

  await t.test(
    'one that is silent, or sends half a hello, hears nothing and is cut off',
    async () => {
      const silent: Socket[] = []
      for (let i = 0; i < EACH; i += 1) {
        const socket = connect(db.tunnelPort, '127.0.0.1')
        socket.on('error', () => undefined)
        // A record that announces 512 bytes and brings three.
        if (i % 2 === 0) socket.write(Buffer.from([0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01]))
        silent.push(socket)
      }
      const all = Promise.all(silent.map((socket) => ending(socket)))
      await alive()
      // At most an alert: 7 bytes, and no name in them.
      for (const { bytes } of await all) assert.ok(bytes.length <= 7, bytes.toString('latin1'))
    },
  )

  for (const [name, certificate] of Object.entries(certificates))
    await t.test(`one with ${name}`, async () => {
      const sockets = await Promise.all(
        Array.from({ length: EACH }, async () => {
          const socket = tls.connect({
            host: '127.0.0.1',
            port: db.tunnelPort,
            servername: `db.default.${DATACENTER}.internal.${TRUST_DOMAIN}`,
            ...(certificate !== undefined && {
              cert: certificate.certificatePem,
              key: certificate.privateKeyPem,
            }),
            rejectUnauthorized: false,
          })
          socket.on('error', () => undefined)
          socket.write('>')
          const { bytes } = await ending(socket)
          assert.equal(bytes.length, 0)
          return socket
        }),
      )
      assert.equal(sockets.length, EACH)
      await alive()
    })

  await t.test('each was counted, and no application has seen one', async () => {
    const strangers = EACH * (Object.keys(certificates).length + 1)
    await eventually(() =>
      assert.equal(db.totals.numbers().tunnelHandshakeFailures - failuresBefore, strangers),
    )
    assert.equal(pair.application.connections.length, 0)
    assert.equal((await db.peers()).length, 1, 'the tunnel of web')
  })

  await t.test('new connections of the mesh are served as before', async () => {
    assert.equal(await pair.call(), 'end')
    caller.end()
    called.end()
    await once(caller, 'close')
  })
})
