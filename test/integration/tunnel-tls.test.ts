/**
 * Who gets in: the tunnel port and the dialer with real certificates. docs/tunnel-protocol.md, "Carrier".
 */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { type AddressInfo, connect as connectTcp, createServer, type Socket } from 'node:net'
import { describe, test } from 'node:test'
import tls from 'node:tls'
import { issueLeaf } from '../../src/authority/issue-certificate.ts'
import { SocketStream } from '../../src/dataplane/io/socket-stream.ts'
import { Credentials } from '../../src/dataplane/tunnel/credentials.ts'
import { dialPeer } from '../../src/dataplane/tunnel/dial.ts'
import { eventually, within } from '../harness/eventually.ts'
import {
  altNames,
  craft,
  HOUR_MS,
  makeAuthority,
  makeLeaf,
  TRUST_DOMAIN,
  URI,
  WEB_ID,
} from '../unit/identity-fixtures.ts'
import {
  authority,
  Collector,
  credentialsOf,
  DATACENTER,
  dialAs,
  leafOf,
  openTunnelPort,
  type TunnelPort,
} from './tunnel-fixtures.ts'

const SERVER_NAME = `db.default.${DATACENTER}.internal.${TRUST_DOMAIN}`

/** A TLS client that checks nothing, so that what the port decides is seen. */
function client(port: number, options: Omit<tls.ConnectionOptions, 'port'> = {}): tls.TLSSocket {
  const leaf = leafOf('web')
  const socket = tls.connect({
    host: '127.0.0.1',
    port,
    servername: SERVER_NAME,
    cert: leaf.certificatePem,
    key: leaf.privateKeyPem,
    rejectUnauthorized: false,
    ...options,
  })
  socket.on('error', () => undefined)
  return socket
}

/** Resolves when a client was cut off, with or without error. */
async function cutOff(socket: Socket): Promise<void> {
  socket.on('error', () => undefined)
  socket.resume()
  if (socket.closed) return
  await within(6_000, 'the cut', new Promise((resolve) => socket.once('close', resolve)))
}

async function refusal(port: TunnelPort, socket: tls.TLSSocket): Promise<string> {
  await cutOff(socket)
  await eventually(() => assert.ok(port.refusals.length > 0))
  assert.equal(port.accepted.length, 0, 'nobody was admitted')
  assert.equal(port.refusals.length, 1, `counted once: ${port.refusals.join(', ')}`)
  return port.refusals[0]!
}

test('two daemons: TLS 1.3, hostmesh/1, each knows who the other is', async () => {
  await using port = await openTunnelPort(['db', 'cache'])
  const [dialed, accepted] = await Promise.all([dialAs(port.port), port.next()])
  assert.ok(dialed.isTunnel && accepted.isTunnel)
  assert.equal(dialed.socket.getProtocol(), 'TLSv1.3')
  assert.equal(dialed.peer.spiffeId, `spiffe://${TRUST_DOMAIN}/ns/default/dc/dc1/svc/db`)
  assert.equal(dialed.peer.service, 'db')
  assert.equal(accepted.peer.spiffeId, WEB_ID)
  assert.equal(accepted.destination, 'db')
  dialed.socket.destroy()
})

test('the server name chooses the certificate', async () => {
  await using port = await openTunnelPort(['db', 'cache'])
  const [dialed, accepted] = await Promise.all([dialAs(port.port, 'web', 'cache'), port.next()])
  assert.equal(dialed.peer.service, 'cache')
  assert.equal(accepted.destination, 'cache')
  dialed.socket.destroy()
})

describe('the dialer refuses', () => {
  const dial = (port: number, credentials = credentialsOf(['web']), timeoutMs = 3_000) =>
    dialPeer({
      address: { ip: '127.0.0.1', port },
      credential: credentials.of('web')!,
      destination: { datacenter: DATACENTER, service: 'db' },
      timeoutMs,
    })

  /** A TLS server that shows this certificate to everybody. */
  async function impostor(
    certificate: { certificatePem: string; privateKeyPem: string },
    options: tls.TlsOptions = {},
  ): Promise<{ port: number } & AsyncDisposable> {
    const server = tls.createServer({
      cert: certificate.certificatePem,
      key: certificate.privateKeyPem,
      ALPNProtocols: ['hostmesh/1'],
      ...options,
    })
    server.on('tlsClientError', () => undefined)
    server.on('secureConnection', (socket) => socket.on('error', () => undefined).resume())
    server.listen(0, '127.0.0.1')
    await once(server, 'listening')
    return {
      port: (server.address() as AddressInfo).port,
      [Symbol.asyncDispose]: async () => {
        server.close()
        await once(server, 'close')
      },
    }
  }

  test('another service of the mesh at the address it asked for', async () => {
    await using peer = await impostor(leafOf('evil'))
    await assert.rejects(dial(peer.port), (error: Error) => {
      assert.equal('code' in error && error.code, 'HM_TLS_IDENTITY')
      assert.match(error.message, /svc\/db/)
      assert.match(error.message, /svc\/evil/)
      return true
    })
  })

  test('the right name from a CA it does not know', async () => {
    await using peer = await impostor(makeLeaf(makeAuthority(), 'db'))
    await assert.rejects(dial(peer.port), { code: 'HM_DIAL_FAILED' })
  })

  test('the right service of another trust domain', async () => {
    const identity = { trustDomain: 'other.test', datacenter: 'dc1', service: 'db' }
    await using peer = await impostor(
      issueLeaf(authority, identity, { nowMs: Date.now(), lifetimeMs: HOUR_MS }),
    )
    await assert.rejects(dial(peer.port), { code: 'HM_TLS_IDENTITY' })
  })

  test('the right service of another datacenter', async () => {
    const identity = { trustDomain: TRUST_DOMAIN, datacenter: 'dc2', service: 'db' }
    await using peer = await impostor(
      issueLeaf(authority, identity, { nowMs: Date.now(), lifetimeMs: HOUR_MS }),
    )
    await assert.rejects(dial(peer.port), { code: 'HM_TLS_IDENTITY' })
  })

  const dbId = WEB_ID.replace('/web', '/db')
  for (const [name, names] of [
    [
      'two URIs, one of them right',
      [
        [URI, dbId],
        [URI, WEB_ID],
      ],
    ],
    [
      'the right URI twice',
      [
        [URI, dbId],
        [URI, dbId],
      ],
    ],
    ['the right URI in upper case', [[URI, dbId.replace('/svc/', '/SVC/')]]],
    ['the right URI with something behind it', [[URI, `${dbId}/`]]],
    ['the right URI with a NUL behind it', [[URI, `${dbId}\0x`]]],
    ['the right URI as a DNS name', [[2, dbId]]],
  ] as const)
    test(`a certificate with ${name}`, async () => {
      await using peer = await impostor(craft(authority, { extensions: [altNames(...names)] }))
      await assert.rejects(dial(peer.port), { code: 'HM_TLS_IDENTITY' })
    })

  test('an expired certificate', async () => {
    await using peer = await impostor(expired('db'))
    await assert.rejects(dial(peer.port), { code: 'HM_DIAL_FAILED' })
  })

  test('hostmesh/1 on TLS 1.2', async () => {
    await using peer = await impostor(leafOf('db'), { maxVersion: 'TLSv1.2' })
    await assert.rejects(dial(peer.port), /TLS below 1.3/)
  })

  test('nobody: a port that is closed', async () => {
    const server = createServer().listen(0, '127.0.0.1')
    await once(server, 'listening')
    const { port } = server.address() as AddressInfo
    server.close()
    await once(server, 'close')
    await assert.rejects(dial(port), { code: 'HM_DIAL_FAILED' })
  })

  test('a peer that says nothing, at its deadline', async () => {
    const server = createServer((socket) => socket.on('error', () => undefined).resume()).listen(
      0,
      '127.0.0.1',
    )
    await once(server, 'listening')
    await assert.rejects(dial((server.address() as AddressInfo).port, undefined, 100), {
      code: 'HM_DIAL_TIMEOUT',
    })
    server.close()
    await once(server, 'close')
  })

  test('a peer that hangs up', async () => {
    const server = createServer((socket) => socket.destroy()).listen(0, '127.0.0.1')
    await once(server, 'listening')
    await assert.rejects(dial((server.address() as AddressInfo).port), { code: 'HM_DIAL_FAILED' })
    server.close()
    await once(server, 'close')
  })
})

/** A leaf whose time was an hour ago. */
function expired(service: string): { certificatePem: string; privateKeyPem: string } {
  return makeLeaf(authority, service, Date.now() - 3 * HOUR_MS, HOUR_MS)
}

describe('the tunnel port refuses', () => {
  for (const services of [['db'], ['db', 'cache']] as const)
    describe(`on a host with ${services.length === 1 ? 'one service' : 'two services'}`, () => {
      test('a peer without certificate', async () => {
        await using port = await openTunnelPort(services)
        const reason = await refusal(port, client(port.port, { cert: undefined, key: undefined }))
        assert.equal(reason, 'ERR_SSL_PEER_DID_NOT_RETURN_A_CERTIFICATE')
      })

      test('a certificate of a CA it does not know', async () => {
        await using port = await openTunnelPort(services)
        const leaf = makeLeaf(makeAuthority(), 'web')
        const socket = client(port.port, { cert: leaf.certificatePem, key: leaf.privateKeyPem })
        assert.match(await refusal(port, socket), /^(UNABLE_TO|SELF_SIGNED|CERT_SIGNATURE)/)
      })

      test('an expired certificate', async () => {
        await using port = await openTunnelPort(services)
        const leaf = expired('web')
        const socket = client(port.port, { cert: leaf.certificatePem, key: leaf.privateKeyPem })
        assert.equal(await refusal(port, socket), 'CERT_HAS_EXPIRED')
      })

      test('a certificate that is not valid yet', async () => {
        await using port = await openTunnelPort(services)
        const leaf = makeLeaf(authority, 'web', Date.now() + HOUR_MS, HOUR_MS)
        const socket = client(port.port, { cert: leaf.certificatePem, key: leaf.privateKeyPem })
        assert.equal(await refusal(port, socket), 'CERT_NOT_YET_VALID')
      })

      for (const [name, names] of [
        [
          'two URIs',
          [
            [URI, WEB_ID],
            [URI, `${WEB_ID}2`],
          ],
        ],
        ['no URI', [[2, 'web.mesh.test']]],
        ['the ID of an agent', [[URI, `spiffe://${TRUST_DOMAIN}/agent/client/dc/dc1/id/x`]]],
        ['another trust domain', [[URI, 'spiffe://other.test/ns/default/dc/dc1/svc/web']]],
        ['another namespace', [[URI, WEB_ID.replace('/ns/default', '/ns/team')]]],
        ['a NUL in its URI', [[URI, `${WEB_ID}\0.evil`]]],
        ['a percent-encoded URI', [[URI, WEB_ID.replace('web', 'w%65b')]]],
      ] as const)
        test(`a certificate with ${name}`, async () => {
          await using port = await openTunnelPort(services)
          const leaf = craft(authority, { extensions: [altNames(...names)] })
          const socket = client(port.port, { cert: leaf.certificatePem, key: leaf.privateKeyPem })
          assert.equal(await refusal(port, socket), 'HM_TLS_IDENTITY')
        })

      for (const name of [
        `evil.default.${DATACENTER}.internal.${TRUST_DOMAIN}`,
        `db.default.dc2.internal.${TRUST_DOMAIN}`,
        `db.default.${DATACENTER}.internal.other.test`,
        `*.default.${DATACENTER}.internal.${TRUST_DOMAIN}`,
        `.default.${DATACENTER}.internal.${TRUST_DOMAIN}`,
        `v1.evil.default.${DATACENTER}.internal.${TRUST_DOMAIN}`,
        `a.v1.db.default.${DATACENTER}.internal.${TRUST_DOMAIN}`,
        `_v1.db.default.${DATACENTER}.internal.${TRUST_DOMAIN}`,
        'db',
      ])
        test(`the server name ${name}`, async () => {
          await using port = await openTunnelPort(services)
          const reason = await refusal(port, client(port.port, { servername: name }))
          assert.equal(reason, 'HM_TLS_UNKNOWN_SERVICE')
        })

      test('hostmesh/1 on TLS 1.2', async () => {
        await using port = await openTunnelPort(services)
        const socket = client(port.port, { maxVersion: 'TLSv1.2', ALPNProtocols: ['hostmesh/1'] })
        assert.equal(await refusal(port, socket), 'HM_TLS_VERSION')
      })

      test('TLS 1.1, and TLS 1.2 with a suite without forward secrecy or AEAD', async () => {
        await using port = await openTunnelPort(services)
        for (const options of [
          { minVersion: 'TLSv1.1', maxVersion: 'TLSv1.1', ciphers: 'ALL:@SECLEVEL=0' },
          { maxVersion: 'TLSv1.2', ciphers: 'ECDHE-ECDSA-AES128-SHA' },
          { maxVersion: 'TLSv1.2', ciphers: 'AES128-GCM-SHA256' },
        ] as const) {
          let secured = false
          const socket = client(port.port, options).on('secureConnect', () => {
            secured = true
          })
          await cutOff(socket)
          assert.equal(secured, false, JSON.stringify(options))
        }
        assert.equal(port.accepted.length, 0)
      })

      test('TLS 1.2 when only 1.3 is allowed', async () => {
        await using port = await openTunnelPort(services, {
          credentials: credentialsOf(services, 'TLSv1.3'),
        })
        const reason = await refusal(port, client(port.port, { maxVersion: 'TLSv1.2' }))
        assert.equal(reason, 'ERR_SSL_UNSUPPORTED_PROTOCOL')
      })

      for (const version of ['TLSv1.2', 'TLSv1.3'] as const)
        test(`to resume a session of ${version}: the second handshake is a full one`, async () => {
          await using port = await openTunnelPort(services)
          const sessions: Buffer[] = []
          const first = client(port.port, { maxVersion: version, minVersion: version })
          first.on('session', (session) => sessions.push(session))
          await once(first, 'secureConnect')
          const { socket } = await port.next()
          socket.write('so that what a server sends after the handshake has arrived')
          await once(first, 'data')
          const session = sessions.at(-1) ?? first.getSession()
          first.destroy()
          const second = client(port.port, {
            maxVersion: version,
            minVersion: version,
            ...(session !== undefined && { session }),
          })
          await once(second, 'secureConnect')
          assert.equal(second.isSessionReused(), false)
          assert.equal((await port.next()).socket.isSessionReused(), false)
          second.destroy()
        })
    })

  test('a peer that names no service, where there are two', async () => {
    await using port = await openTunnelPort(['db', 'cache'])
    await cutOff(client(port.port, { servername: '' }))
    assert.equal(port.accepted.length, 0)
  })

  test('everybody, before there are certificates', async () => {
    await using port = await openTunnelPort(['db'], { credentials: new Credentials('TLSv1.2') })
    await cutOff(client(port.port))
    assert.equal(port.accepted.length, 0)
  })
})

describe('the tunnel port admits', () => {
  test('who came before the first roots and the first certificate, once there are both', async () => {
    const credentials = new Credentials('TLSv1.2')
    let looks: (() => void)[] = []
    const wake = (): void => {
      for (const look of looks.splice(0)) look()
    }
    const until = <T>(look: () => T | undefined): Promise<T | undefined> =>
      new Promise((resolve) => {
        const again = (): void => {
          const found = look()
          if (found === undefined) looks = [...looks, again]
          else resolve(found)
        }
        again()
      })
    await using port = await openTunnelPort(['db'], { credentials, until })
    const dialed = dialAs(port.port)
    await eventually(() => assert.equal(looks.length, 1))
    credentials.setBundle(authority.bundle)
    wake()
    assert.equal(looks.length, 1)
    credentials.setLeaf(leafOf('db'))
    wake()
    const { socket, peer } = await dialed
    assert.equal(peer.service, 'db')
    assert.equal((await port.next()).peer.service, 'web')
    socket.destroy()
    // A name that no certificate will ever be for does not wait.
    await assert.rejects(dialAs(port.port, 'web', 'cache'), { code: 'HM_DIAL_FAILED' })
    assert.deepEqual([looks, port.refusals], [[], ['HM_TLS_UNKNOWN_SERVICE']])
  })

  test('a peer that names no service, where there is only one', async () => {
    await using port = await openTunnelPort(['db'])
    const socket = client(port.port, { servername: '' })
    assert.equal((await port.next()).destination, 'db')
    socket.destroy()
  })

  test('a server name in capitals', async () => {
    await using port = await openTunnelPort(['db', 'cache'])
    const socket = client(port.port, { servername: SERVER_NAME.toUpperCase() })
    assert.equal((await port.next()).destination, 'db')
    socket.destroy()
  })

  test('a sidecar that asks for a subset of the service', async () => {
    await using port = await openTunnelPort(['db', 'cache'])
    const socket = client(port.port, { servername: `v1.${SERVER_NAME}` })
    assert.equal((await port.next()).destination, 'db')
    socket.destroy()
  })

  for (const version of ['TLSv1.2', 'TLSv1.3'] as const)
    for (const [offer, answer] of [
      [undefined, false],
      [['http/1.1'], 'http/1.1'],
      [['h2', 'http/1.1'], 'h2'],
      [['x', 'y'], 'x'],
    ] as const)
      test(`a Connect peer with ${version} and ALPN ${offer === undefined ? 'none' : offer.join(', ')}: its first offer is echoed`, async () => {
        await using port = await openTunnelPort(['db', 'cache'])
        const socket = client(port.port, {
          minVersion: version,
          maxVersion: version,
          ...(offer !== undefined && { ALPNProtocols: [...offer] }),
        })
        await once(socket, 'secureConnect')
        assert.equal(socket.alpnProtocol, answer)
        const peer = await port.next()
        assert.equal(peer.isTunnel, false)
        assert.equal(peer.peer.service, 'web')
        socket.destroy()
      })

  test('a dialer against a Connect peer: no tunnel, but the same proof', async () => {
    const leaf = leafOf('db')
    const server = tls.createServer({
      cert: leaf.certificatePem,
      key: leaf.privateKeyPem,
      ca: [...authority.bundle.rootsPem],
      requestCert: true,
    })
    server.on('secureConnection', (socket) => socket.on('error', () => undefined))
    server.listen(0, '127.0.0.1')
    await once(server, 'listening')
    const dialed = await dialAs((server.address() as AddressInfo).port)
    assert.equal(dialed.isTunnel, false)
    assert.equal(dialed.peer.service, 'db')
    dialed.socket.destroy()
    server.close()
    await once(server, 'close')
  })

  test('new certificates and roots for the next handshake, while old connections stay', async () => {
    const credentials = credentialsOf(['db', 'cache'])
    await using port = await openTunnelPort(['db', 'cache'], { credentials })
    const before = await dialAs(port.port)
    const shownBefore = (await port.next()).socket.getX509Certificate()
    const next = makeAuthority()
    credentials.setBundle({
      trustDomain: TRUST_DOMAIN,
      rootsPem: [...next.bundle.rootsPem, ...authority.bundle.rootsPem],
      revokedSerials: [],
    })
    credentials.setLeaf(leafOf('db', next))
    const trusting = credentialsOf(['web'])
    trusting.setBundle({
      trustDomain: TRUST_DOMAIN,
      rootsPem: [...next.bundle.rootsPem, ...authority.bundle.rootsPem],
      revokedSerials: [],
    })
    const [after, accepted] = await Promise.all([
      dialAs(port.port, 'web', 'db', trusting),
      port.next(),
    ])
    const shownAfter = accepted.socket.getX509Certificate()
    assert.ok(shownBefore !== undefined && shownAfter !== undefined)
    assert.notEqual(shownBefore.serialNumber, shownAfter.serialNumber)
    assert.equal(before.socket.destroyed, false)
    before.socket.destroy()
    after.socket.destroy()
  })
})

describe('handshakes under way', () => {
  test('are cut off at their deadline', async () => {
    await using port = await openTunnelPort(['db'], { handshakeTimeoutMs: 100 })
    const socket = connectTcp({ host: '127.0.0.1', port: port.port })
    await cutOff(socket)
    assert.deepEqual(port.refusals, ['ERR_TLS_HANDSHAKE_TIMEOUT'])
  })

  test('are bounded: one more is reset, counted once, and there is room again when they are over', async () => {
    await using port = await openTunnelPort(['db'], { maxPending: 2 })
    const idle = [1, 2].map(() => connectTcp({ host: '127.0.0.1', port: port.port }))
    for (const socket of idle) socket.on('error', () => undefined)
    await Promise.all(idle.map((socket) => once(socket, 'connect')))
    const beyond = connectTcp({ host: '127.0.0.1', port: port.port })
    const [error] = (await once(beyond, 'error').catch((thrown: unknown) => [thrown])) as [
      NodeJS.ErrnoException,
    ]
    assert.equal(error.code, 'ECONNRESET')
    await eventually(() => assert.deepEqual(port.refusals, ['HM_TLS_TOO_MANY_HANDSHAKES']))
    for (const socket of idle) socket.destroy()
    const admitted = await eventually(async () => {
      const dialed = await dialAs(port.port)
      return dialed.socket
    })
    admitted.destroy()
  })

  test('that are done leave room: ten one after the other fit under a bound of one, all still open', async () => {
    await using port = await openTunnelPort(['db'], { maxPending: 1 })
    const open: tls.TLSSocket[] = []
    for (let i = 0; i < 10; i += 1) {
      const [dialed] = await Promise.all([dialAs(port.port), port.next()])
      open.push(dialed.socket)
    }
    assert.deepEqual(port.refusals, [])
    for (const socket of open) socket.destroy()
  })

  test('of nonsense are refused without harm', async () => {
    await using port = await openTunnelPort(['db'], { handshakeTimeoutMs: 200 })
    for (const bytes of [
      'GET / HTTP/1.1\r\n\r\n',
      '\x16\x03\x01\xff\xff',
      '\x80\x2e\x01',
      '\0'.repeat(70_000),
    ]) {
      const socket = connectTcp({ host: '127.0.0.1', port: port.port })
      socket.write(bytes, 'latin1')
      await cutOff(socket)
    }
    const [dialed] = await Promise.all([dialAs(port.port), port.next()])
    dialed.socket.destroy()
  })

  test('with a hello of one byte a segment succeed', async () => {
    await using port = await openTunnelPort(['db'])
    const tcp = connectTcp({ host: '127.0.0.1', port: port.port, noDelay: true })
    await once(tcp, 'connect')
    const relay = createServer((inbound) => {
      inbound.on('error', () => undefined)
      inbound.on('data', (chunk: Buffer) => {
        for (const byte of chunk) tcp.write(Uint8Array.of(byte))
      })
      tcp.pipe(inbound)
    }).listen(0, '127.0.0.1')
    await once(relay, 'listening')
    const [dialed] = await Promise.all([dialAs((relay.address() as AddressInfo).port), port.next()])
    assert.ok(dialed.isTunnel)
    dialed.socket.destroy()
    tcp.destroy()
    relay.close()
  })
})

describe('a Connect connection', () => {
  test('loses nothing that the peer sent along with its handshake', async () => {
    await using port = await openTunnelPort(['db', 'cache'])
    const socket = client(port.port)
    socket.once('secureConnect', () => {
      socket.write('early ')
      socket.write('bytes')
    })
    const { socket: accepted } = await port.next()
    const stream = new SocketStream(accepted, 'private')
    const reader = new Collector(stream)
    await eventually(() => assert.ok(accepted.bytesRead > 0))
    await new Promise((resolve) => setTimeout(resolve, 30))
    socket.write(' and later ones')
    stream.resume()
    await within(
      3_000,
      'the bytes',
      reader.until(() => reader.length >= 26),
    )
    assert.equal(reader.bytes.toString(), 'early bytes and later ones')
    socket.destroy()
  })

  for (const side of ['accepted', 'dialed'] as const)
    test(`that is reset on the ${side} side is seen as reset by the other`, async () => {
      await using port = await openTunnelPort(['db', 'cache'])
      const [dialed, accepted] = await Promise.all([dialAs(port.port), port.next()])
      const ours = side === 'accepted' ? accepted.socket : dialed.socket
      const theirs = side === 'accepted' ? dialed.socket : accepted.socket
      const stream = new SocketStream(ours, 'private')
      const quiet = new Collector(stream)
      stream.resume()
      theirs.resume()
      theirs.write('one round trip, so that handshake and tickets are over')
      await quiet.until(() => quiet.length > 0)
      const failed = new Promise<NodeJS.ErrnoException>((resolve) => theirs.once('error', resolve))
      stream.reset()
      const error = await within(3_000, 'the reset', failed)
      assert.equal(error.code, 'ECONNRESET')
      await eventually(() => assert.ok(ours.destroyed && theirs.destroyed))
      assert.equal(quiet.reset, undefined, 'who resets is told nothing')
    })
})
