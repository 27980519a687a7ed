/**
 * Certificates that a genuine CA was tricked into signing: whatever stands where the one SPIFFE ID should,
 * the tunnel port accepts no caller with it, and the dialer accepts no peer with it.
 */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import type { AddressInfo } from 'node:net'
import { test } from 'node:test'
import tls from 'node:tls'
import { dialPeer } from '../../src/dataplane/tunnel/dial.ts'
import { eventually, within } from '../harness/eventually.ts'
import {
  authority,
  credentialsOf,
  DATACENTER,
  openTunnelPort,
  TRUST_DOMAIN,
} from '../integration/tunnel-fixtures.ts'
import { forgeries, uri } from '../unit/forged-identities.ts'
import { craft, makeAuthority, WEB_ID } from '../unit/identity-fixtures.ts'

/** WEB is a service like any other, just not web: the tunnel port accepts it under that name. */
const forged = Object.entries(forgeries).filter(([name]) => name !== 'an upper-case service')

test(`the tunnel port and the dialer refuse ${forged.length} forged identities`, async (t) => {
  await using port = await openTunnelPort(['db', 'cache'])
  const call = (certificate: { certificatePem: string; privateKeyPem: string }): tls.TLSSocket => {
    const socket = tls.connect({
      host: '127.0.0.1',
      port: port.port,
      servername: `db.default.${DATACENTER}.internal.${TRUST_DOMAIN}`,
      cert: certificate.certificatePem,
      key: certificate.privateKeyPem,
      ALPNProtocols: ['hostmesh/1'],
      rejectUnauthorized: false,
    })
    socket.on('error', () => undefined)
    return socket
  }
  for (const [name, extensions] of forged)
    await t.test(name, async () => {
      const certificate = craft(authority, { extensions, commonName: 'web' })
      const refusedBefore = port.refusals.length
      const caller = call(certificate)
      caller.resume()
      await within(6_000, 'the cut', new Promise((resolve) => caller.once('close', resolve)))
      await eventually(() => assert.equal(port.refusals.length, refusedBefore + 1))
      assert.equal(port.accepted.length, 0)

      const impostor = tls.createServer({
        cert: certificate.certificatePem,
        key: certificate.privateKeyPem,
        ALPNProtocols: ['hostmesh/1'],
      })
      impostor.on('tlsClientError', () => undefined)
      impostor.on('secureConnection', (socket) => socket.on('error', () => undefined).resume())
      impostor.listen(0, '127.0.0.1')
      await once(impostor, 'listening')
      await assert.rejects(
        dialPeer({
          address: { ip: '127.0.0.1', port: (impostor.address() as AddressInfo).port },
          credential: credentialsOf(['db']).of('db')!,
          destination: { datacenter: DATACENTER, service: 'web' },
          timeoutMs: 3_000,
        }),
        (error: Error) =>
          'code' in error && ['HM_TLS_IDENTITY', 'HM_DIAL_FAILED'].includes(String(error.code)),
      )
      impostor.close()
      await once(impostor, 'close')
    })

  await t.test('a CA certificate as a leaf, and a root that signs itself', async () => {
    const own = makeAuthority()
    for (const certificate of [
      craft(authority, { extensions: uri(WEB_ID), isCa: true }),
      {
        certificatePem: own.certificatePem,
        privateKeyPem: own.privateKey.export({ type: 'pkcs8', format: 'pem' }).toString(),
      },
    ]) {
      const caller = call(certificate)
      caller.resume()
      await within(6_000, 'the cut', new Promise((resolve) => caller.once('close', resolve)))
      assert.equal(port.accepted.length, 0)
    }
  })

  await t.test(
    'an honest certificate is admitted, so the others fail for their own reason',
    async () => {
      const caller = call(craft(authority, { extensions: uri(WEB_ID), commonName: 'web' }))
      assert.equal((await port.next()).peer.spiffeId, WEB_ID)
      caller.destroy()
    },
  )
})
