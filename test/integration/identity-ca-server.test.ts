/**
 * The CA's server on loopback: hosts that do as the protocol says, and everybody else.
 */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { X509Certificate } from 'node:crypto'
import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { connect, createServer as createTcpServer, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, test } from 'node:test'
import { type ConnectionOptions, connect as tlsConnect } from 'node:tls'
import {
  CertificateAuthority,
  type CertificateAuthorityOptions,
} from '../../src/authority/certificate-authority.ts'
import { createAuthority } from '../../src/authority/roots.ts'
import { type CaServer, type CaServerLimits, startCaServer } from '../../src/authority/server.ts'
import { createBuiltinSource } from '../../src/controlplane/identity/builtin-ca.ts'
import {
  CaClient,
  type CaTrust,
  type HostCredential,
} from '../../src/controlplane/identity/ca-client.ts'
import type { CertificateSource } from '../../src/controlplane/identity/certificate-source.ts'
import { makeSigningRequest } from '../../src/controlplane/identity/csr.ts'
import { type Clock, systemClock } from '../../src/lib/clock.ts'
import { type Log, silentLog } from '../../src/lib/log.ts'
import type { Leaf, TrustBundle } from '../../src/model/certificate.ts'
import { formatJoinToken, type JoinToken, parseJoinToken } from '../../src/model/join-token.ts'
import { eventually } from '../harness/eventually.ts'
import { misdated } from '../harness/test-clock.ts'
import { makeAuthority, makeLeaf } from '../unit/identity-fixtures.ts'

const HOUR_MS = 3_600_000

interface Options {
  readonly authority?: Partial<CertificateAuthorityOptions>
  readonly limits?: Partial<CaServerLimits>
}

/** A CA with its server, and what hosts of it would have. */
class Fixture implements AsyncDisposable {
  readonly folder = mkdtempSync(join(tmpdir(), 'hostmesh-ca-server-'))
  readonly lines: string[] = []
  private readonly options: Options
  private readonly sources: CertificateSource[] = []
  private readonly log: Log
  authority: CertificateAuthority
  server!: CaServer

  private constructor(options: Options) {
    this.options = options
    const record = (message: string, fields?: Record<string, unknown>): void => {
      this.lines.push(`${message} ${JSON.stringify(fields)}`)
    }
    this.log = { ...silentLog, info: record, warn: record, error: record, child: () => this.log }
    createAuthority(join(this.folder, 'ca'), 'mesh.test', Date.now())
    this.authority = this.openAuthority()
  }

  static async create(options: Options = {}): Promise<Fixture> {
    const fixture = new Fixture(options)
    await fixture.listen(0)
    return fixture
  }

  get address(): string {
    return `127.0.0.1:${this.server.address.port}`
  }

  /** Ends the server and its authority; returns how to bring both back at the same port. */
  async goAway(): Promise<() => Promise<void>> {
    const { port } = this.server.address
    await this.server[Symbol.asyncDispose]()
    this.authority[Symbol.dispose]()
    return async () => {
      this.authority = this.openAuthority()
      await this.listen(port)
    }
  }

  token(host = 'a', services: readonly string[] = ['web']): JoinToken {
    const request = { host, datacenter: 'dc1', services, ttlMs: HOUR_MS, address: this.address }
    return parseJoinToken(this.authority.createToken(request).token, 'the test')
  }

  /** Enrolls by single calls, as a host does. */
  async enroll(
    host = 'a',
  ): Promise<{ trust: CaTrust; credential: HostCredential; token: JoinToken }> {
    const token = this.token(host)
    using client = new CaClient(this.address)
    const { csrPem, privateKeyPem } = makeSigningRequest()
    const trust = await client.fetchRoot(token)
    const { certificate } = await client.enroll(trust, token, csrPem)
    return { trust, credential: { certificatePem: certificate, privateKeyPem }, token }
  }

  /** The daemon's source for a host, and all that it reports. */
  host(
    name: string,
    options: { tokenFile?: string; clock?: Clock; server?: string } = {},
  ): HostView {
    const tokenFile = options.tokenFile ?? join(this.folder, `${name}.token`)
    const source = createBuiltinSource({
      host: name,
      server: options.server,
      tokenFile,
      directory: join(this.folder, `host-${name}`),
      log: this.log,
      datacenter: 'dc1',
      clock: options.clock ?? systemClock,
    })
    this.sources.push(source)
    const view: HostView = { source, leaves: [], bundles: [] }
    source.watchLeaf('web', (leaf) => view.leaves.push(leaf))
    source.watchRoots((bundle) => view.bundles.push(bundle))
    return view
  }

  putToken(name: string, services: readonly string[] = ['web']): JoinToken {
    const token = this.token(name, services)
    writeFileSync(join(this.folder, `${name}.token`), `${formatJoinToken(token)}\n`, {
      mode: 0o600,
    })
    return token
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const source of this.sources) await source[Symbol.asyncDispose]()
    await this.server[Symbol.asyncDispose]()
    this.authority[Symbol.dispose]()
    rmSync(this.folder, { recursive: true })
  }

  private openAuthority(): CertificateAuthority {
    return new CertificateAuthority({
      directory: join(this.folder, 'ca'),
      log: this.log,
      clock: systemClock,
      ...this.options.authority,
    })
  }

  private async listen(port: number): Promise<void> {
    this.server = await startCaServer({
      authority: this.authority,
      listen: { ip: '127.0.0.1', port },
      log: this.log,
      ...(this.options.limits !== undefined && { limits: this.options.limits }),
    })
  }
}

interface HostView {
  readonly source: CertificateSource
  readonly leaves: Leaf[]
  readonly bundles: TrustBundle[]
}

/** One raw request over TLS, nothing verified; what came back before the end. */
function rawCall(fixture: Fixture, text: string, options: ConnectionOptions = {}): Promise<string> {
  return new Promise((resolve) => {
    const socket = tlsConnect({
      host: '127.0.0.1',
      port: fixture.server.address.port,
      rejectUnauthorized: false,
      ...options,
    })
    let answer = ''
    socket.on('secureConnect', () => socket.write(text))
    socket.on('data', (chunk: Buffer) => (answer += chunk.toString()))
    socket.on('error', (error) => (answer += `[${error.message}]`))
    socket.on('close', () => resolve(answer))
  })
}

function post(path: string, body: unknown, type = 'application/json'): string {
  const text = typeof body === 'string' ? body : JSON.stringify(body)
  return `POST ${path} HTTP/1.1\r\nhost: ca\r\nconnection: close\r\ncontent-type: ${type}\r\ncontent-length: ${text.length}\r\n\r\n${text}`
}

const GET_BUNDLE = 'GET /v1/bundle?have=x HTTP/1.1\r\nhost: ca\r\nconnection: close\r\n\r\n'

test('a host enrolls, is certified and stays so over a restart without the CA; openssl verifies the chain', async () => {
  await using fixture = await Fixture.create()
  const token = fixture.putToken('a')
  const host = fixture.host('a')
  await eventually(() => assert.equal(host.leaves.length, 1))
  assert.deepEqual(host.source.problems(), [])
  const [leaf] = host.leaves
  const [bundle] = host.bundles
  assert.equal(leaf?.spiffeId, 'spiffe://mesh.test/ns/default/dc/dc1/svc/web')
  const files = { leaf: join(fixture.folder, 'leaf'), roots: join(fixture.folder, 'roots') }
  writeFileSync(files.leaf, leaf.certificatePem)
  writeFileSync(files.roots, bundle?.rootsPem.join('') ?? '')
  for (const purpose of ['sslclient', 'sslserver'])
    execFileSync(
      'openssl',
      ['verify', '-x509_strict', '-purpose', purpose, '-CAfile', files.roots, files.leaf],
      { stdio: 'pipe' },
    )
  await host.source[Symbol.asyncDispose]()
  const comeBack = await fixture.goAway()
  const again = fixture.host('a')
  await eventually(() => assert.equal(again.leaves[0]?.serialNumber, leaf.serialNumber))
  await eventually(() => assert.match(again.source.problems().join(), /Cannot reach the CA/))
  await comeBack()
  await eventually(() => assert.deepEqual(again.source.problems(), []))

  // Keys: on the disk of the host, its owner's alone; nowhere else.
  const directory = join(fixture.folder, 'host-a')
  const names = readdirSync(directory, { recursive: true, withFileTypes: true }).filter((one) =>
    one.isFile(),
  )
  assert.equal(names.length, 3)
  for (const { parentPath, name } of names)
    assert.equal(statSync(join(parentPath, name)).mode & 0o777, 0o600, name)
  const said = fixture.lines.join('\n') + again.source.problems().join()
  assert.doesNotMatch(said, /PRIVATE KEY/)
  for (const secret of [
    token.secret,
    formatJoinToken(token),
    ...leaf.privateKeyPem.split('\n').filter((line) => line.length === 64),
  ])
    assert.ok(!said.includes(secret))
})

test('certificates are renewed at half of their life, each with a new key, and none is missed', async () => {
  await using fixture = await Fixture.create({
    authority: { lifetimes: { leafMs: 4_000, hostMs: 6_000 } },
  })
  fixture.putToken('a')
  const host = fixture.host('a')
  const hostSerials = new Set<string>()
  await eventually(
    () => {
      hostSerials.add(
        new X509Certificate(readFileSync(join(fixture.folder, 'host-a', 'host.pem'))).serialNumber,
      )
      assert.ok(host.leaves.length >= 5 && hostSerials.size >= 3)
    },
    { withinMs: 40_000 },
  )
  assert.equal(
    new Set(host.leaves.map(({ privateKeyPem }) => privateKeyPem)).size,
    host.leaves.length,
  )
  for (const [index, leaf] of host.leaves.entries()) {
    const next = host.leaves[index + 1]
    if (next !== undefined) assert.ok(next.notBeforeMs < leaf.notAfterMs, 'the next came in time')
  }
  assert.deepEqual(
    fixture.lines.filter((line) => line.startsWith('The CA does not answer')),
    [],
  )
})

test('a directory that cannot be written to is named, and renewal goes on without it', async () => {
  await using fixture = await Fixture.create({ authority: { lifetimes: { leafMs: 3_000 } } })
  fixture.putToken('a')
  const host = fixture.host('a')
  await eventually(() => assert.equal(host.leaves.length, 1))
  rmSync(join(fixture.folder, 'host-a', 'services'), { recursive: true })
  writeFileSync(join(fixture.folder, 'host-a', 'services'), '')
  await eventually(() => assert.ok(host.leaves.length >= 3))
  assert.match(host.source.problems().join(), /Cannot keep certificates at .*web\.pem/)
})

test('a revocation and a new root reach every host within moments', async () => {
  await using fixture = await Fixture.create({ authority: { lifetimes: { renewWithinMs: 1_000 } } })
  fixture.putToken('a')
  fixture.putToken('b')
  const [a, b] = [fixture.host('a'), fixture.host('b')]
  await eventually(() => assert.equal(a.leaves.length + b.leaves.length, 2))
  const serial = a.leaves[0]?.serialNumber ?? ''
  await eventually(() =>
    assert.equal(
      fixture.authority.trust.rotationStatus().hosts.filter(({ hasRoots }) => hasRoots).length,
      2,
    ),
  )
  fixture.authority.revoke({ serial })
  for (const { bundles } of [a, b])
    await eventually(() => assert.deepEqual(bundles.at(-1)?.revokedSerials, [serial]), {
      withinMs: 5_000,
    })
  await eventually(() => assert.equal(a.leaves.length, 2), { withinMs: 5_000 })

  const old = fixture.authority.trust.bundle.activeRoot
  fixture.authority.trust.startRotation()
  await eventually(() => assert.deepEqual(fixture.authority.trust.rotationStatus().lagging, []), {
    withinMs: 30_000,
  })
  fixture.authority.trust.finishRotation(false)
  for (const { bundles } of [a, b])
    await eventually(() => assert.equal(bundles.at(-1)?.rootsPem.length, 1))
  assert.notEqual(fixture.authority.trust.bundle.activeRoot, old)
  await eventually(() => assert.deepEqual(a.source.problems(), []))
  // The server proves itself by the new root now, and hosts still know it.
  fixture.authority.revoke({ serial: b.leaves.at(-1)?.serialNumber })
  await eventually(() => assert.equal(a.bundles.at(-1)?.revokedSerials.length, 2), {
    withinMs: 5_000,
  })
})

test('a revoked host hears it, keeps what it has, and is a member again with a new token', async () => {
  await using fixture = await Fixture.create()
  fixture.putToken('a')
  const host = fixture.host('a')
  await eventually(() => assert.equal(host.leaves.length, 1))
  fixture.authority.revoke({ host: 'a' })
  await eventually(() =>
    assert.match(
      host.source.problems().join(),
      /was revoked, or the host enrolled again|refused the join token/,
    ),
  )
  fixture.putToken('a')
  await eventually(() => assert.equal(host.leaves.length, 2), { withinMs: 60_000 })
  await eventually(() => assert.deepEqual(host.source.problems(), []))
})

test('a host whose CA is gone for good is a member of the one that a new token names, and stays so', async () => {
  await using old = await Fixture.create()
  await using next = await Fixture.create()
  old.putToken('a')
  const host = old.host('a')
  await eventually(() => assert.equal(host.leaves.length, 1))
  const comeBack = await old.goAway()
  writeFileSync(join(old.folder, 'a.token'), formatJoinToken(next.token('a')), { mode: 0o600 })
  await eventually(() => assert.equal(next.authority.status().hosts.length, 1), {
    withinMs: 15_000,
  })
  await eventually(() => assert.deepEqual(host.source.problems(), []), { withinMs: 15_000 })
  assert.equal(host.source.description, `hostmesh CA at ${next.address}`)
  assert.equal(old.host('a').source.description, host.source.description, 'after a restart too')
  await comeBack()
})

test('a host certificate whose bundle is lost is of no use: a new token makes the host a member again', async () => {
  await using fixture = await Fixture.create()
  fixture.putToken('a')
  const first = fixture.host('a')
  await eventually(() => assert.equal(first.leaves.length, 1))
  await first.source[Symbol.asyncDispose]()
  rmSync(join(fixture.folder, 'host-a', 'bundle.json'))
  const second = fixture.host('a')
  await eventually(() => assert.match(second.source.problems().join(), /the join token/))
  fixture.putToken('a')
  await eventually(() => assert.deepEqual(second.source.problems(), []))
  assert.ok(second.leaves.length > 0)
})

test('a new token is tried at once, however long a refused host was to wait', async () => {
  await using fixture = await Fixture.create()
  fixture.putToken('a')
  let stoodStillAtMs: number | undefined
  const clock: Clock = {
    ...systemClock,
    monotonicMs: () => stoodStillAtMs ?? systemClock.monotonicMs(),
  }
  const host = fixture.host('a', { clock })
  await eventually(() => assert.equal(host.leaves.length, 1))
  fixture.authority.revoke({ host: 'a' })
  await eventually(() => assert.match(host.source.problems().join(), /was revoked/))
  stoodStillAtMs = performance.now()
  fixture.putToken('a')
  await eventually(() => assert.deepEqual(host.source.problems(), []))
  assert.equal(host.leaves.length, 2)
})

test('a service that the CA refuses is named, and certified when the catalog has learned of it', async () => {
  let runs = false
  await using fixture = await Fixture.create({ authority: { runsService: async () => runs } })
  fixture.putToken('a', [])
  const host = fixture.host('a')
  await eventually(() =>
    assert.match(
      host.source.problems().join(),
      /No new certificate for web: .*neither its token nor the catalog/,
    ),
  )
  assert.equal(host.leaves.length, 0)
  runs = true
  await eventually(() => assert.equal(host.leaves.length, 1), { withinMs: 40_000 })
})

test('a host whose clock is wrong says so with its own time and that of the certificate', async () => {
  await using fixture = await Fixture.create()
  fixture.putToken('a')
  const clock = misdated(() => -2 * HOUR_MS)
  const host = fixture.host('a', { clock })
  await eventually(() => {
    const said = host.source.problems().join('\n')
    const [, from = '', here = ''] =
      /certificate of web: it is valid from (\S+), and the clock of this host says (\S+)/.exec(
        said,
      ) ?? []
    assert.ok(Math.abs(Date.parse(from) - Date.now()) < HOUR_MS / 4, said)
    assert.ok(Math.abs(Date.parse(here) - clock.wallMs()) < HOUR_MS / 4, said)
  })
  assert.equal(host.leaves.length, 0)
})

test('a CA whose clock is wrong is refused with the time of this host and that of its certificate', async () => {
  for (const offMs of [HOUR_MS, -30 * 24 * HOUR_MS]) {
    const clock = misdated(() => offMs)
    await using fixture = await Fixture.create({ authority: { clock } })
    const token = fixture.token()
    using client = new CaClient(fixture.address)
    const trust = await client.fetchRoot(token)
    await assert.rejects(
      client.enroll(trust, token, makeSigningRequest().csrPem),
      (thrown: { code: string; message: string }) => {
        assert.equal(thrown.code, 'HM_CA_UNTRUSTED')
        const [, from = '', here = ''] =
          /its certificate is valid from (\S+) to \S+, and the clock of this host says (\S+)/.exec(
            thrown.message,
          ) ?? []
        assert.ok(Math.abs(Date.parse(from) - Date.now() - offMs) < HOUR_MS / 4, thrown.message)
        assert.ok(Math.abs(Date.parse(here) - Date.now()) < HOUR_MS / 4, thrown.message)
        return true
      },
    )
    assert.equal(fixture.authority.status().hosts.length, 0)
  }
})

test('a CA whose clock was ahead and is corrected is accepted at once, not when its certificate begins', async () => {
  let aheadMs = 24 * HOUR_MS
  const clock = misdated(() => aheadMs)
  await using fixture = await Fixture.create({ authority: { clock } })
  using client = new CaClient(fixture.address)
  const trust = await client.fetchRoot(fixture.token('a'))
  const enroll = (): Promise<unknown> =>
    client.enroll(trust, fixture.token('a'), makeSigningRequest().csrPem)
  await assert.rejects(enroll(), { code: 'HM_CA_UNTRUSTED' })
  aheadMs = 0
  await eventually(enroll, { withinMs: 15_000 })
})

test('a clock that went two hours ahead and came back leaves no problem behind', async () => {
  let aheadMs = 0
  const clock = misdated(() => aheadMs)
  let runs = true
  await using fixture = await Fixture.create({
    authority: { lifetimes: { leafMs: 3 * HOUR_MS }, runsService: async () => runs },
  })
  fixture.putToken('a', [])
  const host = fixture.host('a', { clock })
  await eventually(() => assert.equal(host.leaves.length, 1))
  // The CA would not give another one, and by this clock one is due.
  runs = false
  aheadMs = 2 * HOUR_MS
  await eventually(
    () => assert.match(host.source.problems().join(), /No new certificate for web/),
    { withinMs: 60_000 },
  )
  aheadMs = 0
  await eventually(() => assert.deepEqual(host.source.problems(), []), { withinMs: 60_000 })
})

test('an expired host certificate is renewed within the grace limit', async () => {
  // The CA renews the certificate of its server, which lives as long, every 5 s.
  await using fixture = await Fixture.create({
    authority: { lifetimes: { hostMs: 6_000, leafMs: 2_000 } },
  })
  fixture.putToken('a')
  const host = fixture.host('a')
  await eventually(() => assert.equal(host.leaves.length, 1))
  const comeBack = await fixture.goAway()
  await eventually(() =>
    assert.match(host.source.problems().join('\n'), /certificate of this host has ended/),
  )
  await comeBack()
  await eventually(() => assert.deepEqual(host.source.problems(), []), { withinMs: 15_000 })
})

describe('a token is not sent to', () => {
  test('a CA with another root', async () => {
    await using real = await Fixture.create()
    await using fake = await Fixture.create()
    const token = { ...real.token(), address: fake.address }
    using client = new CaClient(fake.address)
    await assert.rejects(client.fetchRoot(token), { code: 'HM_CA_UNTRUSTED' })
  })

  test('a man in the middle who hands out the right root but has another certificate', async () => {
    await using real = await Fixture.create()
    await using fake = await Fixture.create()
    const token = real.token()
    using toReal = new CaClient(real.address)
    const trust = await toReal.fetchRoot(token)
    using toFake = new CaClient(fake.address)
    const before = fake.lines.length
    await assert.rejects(toFake.enroll(trust, token, makeSigningRequest().csrPem), {
      code: 'HM_CA_UNTRUSTED',
    })
    assert.equal(fake.lines.length, before, 'the fake has heard of no enrollment')
  })

  test('a host of the mesh that plays the CA', async () => {
    await using fixture = await Fixture.create()
    const { trust, credential } = await fixture.enroll('evil')
    const { createServer } = await import('node:https')
    let requests = 0
    const impostor = createServer(
      { cert: credential.certificatePem, key: credential.privateKeyPem },
      () => (requests += 1),
    )
    await new Promise<void>((resolve) => impostor.listen(0, '127.0.0.1', resolve))
    const address = impostor.address()
    assert.ok(typeof address === 'object' && address !== null)
    using client = new CaClient(`127.0.0.1:${address.port}`)
    await assert.rejects(client.enroll(trust, fixture.token(), makeSigningRequest().csrPem), {
      code: 'HM_CA_UNTRUSTED',
    })
    impostor.close()
    assert.equal(requests, 0)
  })
})

describe('the server refuses', () => {
  test('a caller without a certificate everything but the roots and enrolling', async () => {
    await using fixture = await Fixture.create()
    assert.match(await rawCall(fixture, GET_BUNDLE), /401.*HM_CA_CERTIFICATE_REQUIRED/s)
    for (const path of ['/v1/renew', '/v1/sign'])
      assert.match(
        await rawCall(fixture, post(path, { csr: 'x', service: 'web' })),
        /401.*HM_CA_CERTIFICATE_REQUIRED/s,
      )
    assert.match(
      await rawCall(fixture, GET_BUNDLE.replace('bundle', 'roots')),
      /200 OK.*BEGIN CERTIFICATE/s,
    )
  })

  test('the certificate of a service as that of a host', async () => {
    await using fixture = await Fixture.create()
    const { trust, credential } = await fixture.enroll()
    using client = new CaClient(fixture.address)
    const { csrPem, privateKeyPem } = makeSigningRequest()
    const cert = await client.sign(trust, credential, { service: 'web', csr: csrPem })
    const answer = await rawCall(fixture, GET_BUNDLE, { cert, key: privateKeyPem })
    assert.match(answer, /403.*HM_CA_HOST_REFUSED/s)
  })

  test('a host certificate without its key', async () => {
    await using fixture = await Fixture.create()
    const { credential } = await fixture.enroll()
    const { privateKeyPem } = makeSigningRequest()
    assert.throws(
      () =>
        tlsConnect({
          port: fixture.server.address.port,
          cert: credential.certificatePem,
          key: privateKeyPem,
        }),
      /key values mismatch/,
    )
  })

  test('TLS 1.2', async () => {
    await using fixture = await Fixture.create()
    const answer = await rawCall(fixture, GET_BUNDLE, { maxVersion: 'TLSv1.2' })
    assert.match(answer, /protocol version/)
  })

  test('bodies that are too long, of another type, of another form, or no JSON', async () => {
    await using fixture = await Fixture.create()
    const good = { id: 'x', secret: 'x', host: 'a', csr: 'x' }
    const cases: [string, RegExp][] = [
      [post('/v1/enroll', { ...good, csr: 'x'.repeat(20_000) }), /413/],
      [post('/v1/enroll', good, 'text/plain'), /415/],
      [post('/v1/enroll', '{'), /400/],
      [post('/v1/enroll', { ...good, more: 1 }), /400/],
      [post('/v1/enroll', { ...good, host: '../../etc' }), /400/],
      [post('/v1/enroll', []), /400/],
      [post('/v1/nothing', good), /404/],
      [GET_BUNDLE.replace('bundle', '../v1/enroll'), /404/],
      [`GET / HTTP/1.1\r\nx: ${'y'.repeat(10_000)}\r\n\r\n`, /431|^$/],
    ]
    for (const [text, status] of cases)
      assert.match((await rawCall(fixture, text)).split('\r\n', 1)[0] ?? '', status)
  })

  test('many wrong secrets from one address, even when a right one follows', async () => {
    await using fixture = await Fixture.create({
      limits: { failedEnrollments: { burst: 3, perSecond: 0 } },
    })
    const token = fixture.token()
    const { csrPem: csr } = makeSigningRequest()
    const wrong = { id: token.id, secret: 'A'.repeat(43), host: 'a', csr }
    for (let i = 0; i < 3; i += 1)
      assert.match(await rawCall(fixture, post('/v1/enroll', wrong)), /403.*HM_CA_TOKEN_REFUSED/s)
    assert.match(
      await rawCall(fixture, post('/v1/enroll', { ...wrong, secret: token.secret })),
      /429/,
    )
    assert.equal(fixture.authority.status().failedEnrollments, 3)
    assert.equal(fixture.authority.status().hosts.length, 0)
  })

  test('more calls than an address may make', async () => {
    await using fixture = await Fixture.create({
      limits: { unauthenticatedCalls: { burst: 2, perSecond: 0 } },
    })
    const call = (): Promise<string> => rawCall(fixture, GET_BUNDLE.replace('bundle', 'roots'))
    assert.match(await call(), /200 OK/)
    assert.match(await call(), /200 OK/)
    assert.match(await call(), /429.*retry-after/is)
  })

  test('as many calls of a caller who brings a certificate of his own making', async () => {
    await using fixture = await Fixture.create({
      limits: { unauthenticatedCalls: { burst: 2, perSecond: 0 } },
    })
    const { credential } = await fixture.enroll()
    const stranger = makeLeaf(makeAuthority())
    const call = (pem: { certificatePem: string; privateKeyPem: string }): Promise<string> =>
      rawCall(fixture, GET_BUNDLE.replace('bundle', 'roots'), {
        cert: pem.certificatePem,
        key: pem.privateKeyPem,
      })
    // Enrolling was the first of the two.
    assert.match(await call(stranger), /200 OK|429/)
    assert.match(await call(stranger), /429/)
    assert.match(await call(stranger), /429/)
    assert.match(await call(credential), /200 OK/, 'a host at the same address is none')
  })
})

test('garbage, idle and dribbling callers are cut off, and hosts do not notice', async () => {
  await using fixture = await Fixture.create({
    limits: { deadlineMs: 1_000, connectionsPerAddress: 40 },
  })
  const sockets = Array.from({ length: 24 }, (_, index) => {
    const socket = connect(fixture.server.address.port, '127.0.0.1')
    socket.on('error', () => undefined)
    socket.resume()
    const ended = new Promise<void>((resolve) => socket.once('close', () => resolve()))
    if (index % 3 === 0) socket.write(Buffer.alloc(2_000, index))
    if (index % 3 === 1) socket.write(Buffer.from([0x16, 0x03, 0x01, 0x40, 0x00]))
    return { socket, ended }
  })
  const { trust, credential } = await fixture.enroll()
  const dribble = rawCall(
    fixture,
    'POST /v1/enroll HTTP/1.1\r\nhost: ca\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{',
  )
  using client = new CaClient(fixture.address)
  await client.sign(trust, credential, { service: 'web', csr: makeSigningRequest().csrPem })
  await Promise.all(sockets.map(({ ended }) => ended))
  assert.match(await dribble, /408|^$/)
})

test('an address that opens too many connections keeps those it has and gets no more', async () => {
  await using fixture = await Fixture.create({ limits: { connectionsPerAddress: 4 } })
  const open: Socket[] = []
  let closed = 0
  for (let i = 0; i < 10; i += 1) {
    const socket = connect(fixture.server.address.port, '127.0.0.1')
    socket.on('error', () => undefined)
    socket.on('close', () => (closed += 1))
    open.push(socket)
  }
  await eventually(() => assert.equal(closed, 6))
  for (const socket of open) socket.destroy()
  await eventually(() => assert.equal(closed, 10))
  await eventually(() => fixture.enroll())
})

test('a CA that accepts and says nothing is given up in time, and the host recovers from it', async () => {
  await using fixture = await Fixture.create()
  const silent = createTcpServer((socket) => socket.on('error', () => undefined))
  await new Promise<void>((resolve) => silent.listen(0, '127.0.0.1', resolve))
  const address = silent.address()
  assert.ok(typeof address === 'object' && address !== null)
  fixture.putToken('a')
  const host = fixture.host('a', { server: `127.0.0.1:${address.port}` })
  await eventually(
    () => assert.match(host.source.problems().join(), /did not answer .* in 10000 ms/),
    { withinMs: 20_000 },
  )
  silent.close()
})
