/**
 * The CA's decisions: who gets which certificate, and who does not.
 */
import assert from 'node:assert/strict'
import { X509Certificate } from 'node:crypto'
import {
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { DatabaseSync } from 'node:sqlite'
import { describe, test } from 'node:test'
import {
  CertificateAuthority,
  type CertificateAuthorityOptions,
} from '../../src/authority/certificate-authority.ts'
import type { HostCaller } from '../../src/authority/hosts.ts'
import { certify, certifyService } from '../../src/authority/issue-certificate.ts'
import { createAuthority, readAuthority } from '../../src/authority/roots.ts'
import { makeSigningRequest } from '../../src/controlplane/identity/csr.ts'
import { readLeaf, readRoots } from '../../src/controlplane/identity/x509.ts'
import { MeshError } from '../../src/lib/errors.ts'
import { type Log, silentLog } from '../../src/lib/log.ts'
import { singleUriSan } from '../../src/lib/uri-san.ts'
import { type JoinToken, parseJoinToken } from '../../src/model/join-token.ts'
import { REPORTER_SERVICE } from '../../src/model/report.ts'
import { TestClock } from '../harness/test-clock.ts'

const HOUR_MS = 3_600_000
const DAY_MS = 24 * HOUR_MS

/** A CA in a directory of its own, with a clock that stands still. */
class Fixture implements Disposable {
  readonly directory = mkdtempSync(join(tmpdir(), 'hostmesh-authority-'))
  readonly lines: string[] = []
  readonly clock = new TestClock({ wallMs: Date.UTC(2026, 5, 1) })
  private readonly options: Partial<CertificateAuthorityOptions>
  authority: CertificateAuthority

  constructor(options: Partial<CertificateAuthorityOptions> = {}) {
    this.options = options
    createAuthority(this.directory, 'mesh.test', this.nowMs)
    this.authority = this.open()
  }

  open(): CertificateAuthority {
    const record = (message: string, fields?: Record<string, unknown>): void => {
      this.lines.push(`${message} ${JSON.stringify(fields)}`)
    }
    const log: Log = { ...silentLog, info: record, warn: record, error: record }
    return new CertificateAuthority({
      directory: this.directory,
      log,
      clock: this.clock,
      ...this.options,
    })
  }

  get nowMs(): number {
    return this.clock.wallMs()
  }

  /** Changes what it keeps, while nobody has it open. */
  editDatabase(sql: string): void {
    const sqlite = new DatabaseSync(join(this.directory, 'state.db'))
    sqlite.exec(sql)
    sqlite.close()
  }

  reopen(): void {
    this.authority[Symbol.dispose]()
    this.authority = this.open()
  }

  token(host = 'a', services: readonly string[] = ['web'], ttlMs = HOUR_MS): JoinToken {
    const request = { host, datacenter: 'dc1', services, ttlMs, address: 'ca.test:15444' }
    return parseJoinToken(this.authority.createToken(request).token, 'the test')
  }

  enroll(host = 'a', services: readonly string[] = ['web']): HostCaller {
    const { id, secret } = this.token(host, services)
    const pem = this.authority.enroll(
      { id, secret, host, csr: makeSigningRequest().csrPem },
      'here',
    )
    return this.authority.identifyHost(new X509Certificate(pem))
  }

  [Symbol.dispose](): void {
    this.authority[Symbol.dispose]()
    rmSync(this.directory, { recursive: true })
  }
}

function csr(): string {
  return makeSigningRequest().csrPem
}

/** The serial number of a certificate in PEM. */
function serialOf(pem: string): string {
  return new X509Certificate(pem).serialNumber
}

test('a token makes one host: its certificate names the host and is no identity of a service', () => {
  using fixture = new Fixture()
  const { certificate } = fixture.enroll('a')
  assert.equal(singleUriSan(certificate.raw), 'spiffe://mesh.test/host/a')
  assert.equal(certificate.ca, false)
  assert.deepEqual(certificate.keyUsage, ['1.3.6.1.5.5.7.3.2'], 'a client and nothing else')
  const { roots, trustDomain } = fixture.authority.trust.bundle
  const asService = {
    service: 'a',
    certificatePem: certificate.toString(),
    privateKeyPem: makeSigningRequest().privateKeyPem,
  }
  assert.throws(() => readLeaf(asService, readRoots(roots.join(''), trustDomain), fixture.nowMs), {
    code: 'HM_CERT_IDENTITY',
  })
})

describe('a token is refused, and the log says why, when', () => {
  const cases: Record<string, (f: Fixture) => { token: JoinToken; reason: RegExp }> = {
    'it has expired': (f) => {
      const token = f.token('a', [], HOUR_MS)
      f.clock.pass(HOUR_MS)
      return { token, reason: /expired token/ }
    },
    'another key has used it': (f) => {
      const token = f.token()
      f.authority.enroll({ ...token, csr: csr() }, 'here')
      return { token, reason: /used token/ }
    },
    'it was used before a restart': (f) => {
      const token = f.token()
      f.authority.enroll({ ...token, csr: csr() }, 'here')
      f.reopen()
      return { token, reason: /used token/ }
    },
    'it is for another host': (f) => ({
      token: { ...f.token('b'), host: 'a' },
      reason: /token of b/,
    }),
    'its secret is wrong': (f) => ({
      token: { ...f.token(), secret: f.token().secret },
      reason: /wrong secret/,
    }),
    'nobody made it': (f) => ({
      token: { ...f.token(), id: 'feedfeedfeedfeed' },
      reason: /unknown token/,
    }),
    'its host was revoked since': (f) => {
      f.enroll('a')
      const token = f.token('a')
      f.authority.revoke({ host: 'a' })
      return { token, reason: /unknown token/ }
    },
  }
  for (const [name, make] of Object.entries(cases))
    test(name, () => {
      using fixture = new Fixture()
      const { token, reason } = make(fixture)
      const before = fixture.authority.status()
      assert.throws(
        () => fixture.authority.enroll({ ...token, csr: csr() }, 'here'),
        (thrown) => {
          assert.ok(thrown instanceof MeshError)
          assert.equal(thrown.code, 'HM_CA_TOKEN_REFUSED')
          // The answer does not say which of them it is.
          assert.match(thrown.message, /unknown, used, expired or for another host/)
          return true
        },
      )
      assert.match(fixture.lines.at(-1) ?? '', reason)
      assert.deepEqual(fixture.authority.status().hosts, before.hosts)
      assert.equal(fixture.authority.status().failedEnrollments, before.failedEnrollments + 1)
    })
})

test('the host whose answer was lost may ask again with the same key, and nobody else', () => {
  using fixture = new Fixture()
  const token = fixture.token()
  const request = csr()
  const first = fixture.authority.enroll({ ...token, csr: request }, 'here')
  const second = fixture.authority.enroll({ ...token, csr: request }, 'here')
  assert.ok(new X509Certificate(first).publicKey.equals(new X509Certificate(second).publicKey))
  assert.throws(() => fixture.authority.enroll({ ...token, csr: csr() }, 'here'), {
    code: 'HM_CA_TOKEN_REFUSED',
  })
})

test('a bad request does not spend the token', () => {
  using fixture = new Fixture()
  const token = fixture.token()
  assert.throws(() => fixture.authority.enroll({ ...token, csr: 'x' }, 'here'), {
    code: 'HM_CA_CSR_INVALID',
  })
  fixture.authority.enroll({ ...token, csr: csr() }, 'here')
})

test('a leaf is for the service that was asked for, whatever the request says, and holds for its lifetime', async () => {
  using fixture = new Fixture({ lifetimes: { leafMs: 2 * HOUR_MS } })
  const caller = fixture.enroll()
  const request = makeSigningRequest()
  const certificatePem = await fixture.authority.sign(caller, 'web', request.csrPem)
  const { roots, trustDomain } = fixture.authority.trust.bundle
  const leaf = readLeaf(
    { service: 'web', datacenter: 'dc1', certificatePem, privateKeyPem: request.privateKeyPem },
    readRoots(roots.join(''), trustDomain),
    fixture.nowMs,
  )
  assert.equal(leaf.notAfterMs, fixture.nowMs + 2 * HOUR_MS)
  assert.equal(leaf.notBeforeMs, fixture.nowMs - 300_000)
})

test('a short-lived leaf is backdated by a tenth, so that it is not past its half when it is made', async () => {
  using fixture = new Fixture({ lifetimes: { leafMs: 30_000 } })
  const pem = await fixture.authority.sign(fixture.enroll(), 'web', csr())
  assert.equal(new X509Certificate(pem).validFromDate.getTime(), fixture.nowMs - 3_000)
})

test('a host gets no certificate for a service that neither its token nor the catalog gives it', async () => {
  const asked: string[] = []
  using fixture = new Fixture({
    runsService: async (host, service) => {
      asked.push(`${host} ${service}`)
      if (service === 'broken') throw new Error('no catalog')
      return service === 'api'
    },
  })
  const caller = fixture.enroll('a', ['web'])
  await fixture.authority.sign(caller, 'web', csr())
  await fixture.authority.sign(caller, 'api', csr())
  for (const service of ['db', 'broken', '', '../ca', 'WEB', 'a'.repeat(200)])
    await assert.rejects(fixture.authority.sign(caller, service, csr()), {
      code: 'HM_CA_SERVICE_REFUSED',
    })
  assert.deepEqual(asked, ['a api', 'a db', 'a broken'])
})

test('every enrolled host gets a certificate of the service as which it reports, whatever token and catalog say', async () => {
  using fixture = new Fixture({
    runsService: async () => {
      throw new Error('the catalog is not asked')
    },
  })
  const caller = fixture.enroll('a', [])
  const pem = await fixture.authority.sign(caller, REPORTER_SERVICE, csr())
  assert.equal(
    singleUriSan(new X509Certificate(pem).raw),
    'spiffe://mesh.test/ns/default/dc/dc1/svc/hostmesh',
  )
  fixture.authority.revoke({ host: 'a' })
  await assert.rejects(fixture.authority.sign(caller, REPORTER_SERVICE, csr()), {
    code: 'HM_CA_HOST_REFUSED',
  })
})

test('what was certified while the clock of the CA was ahead is good for renewal alone once it is right', async () => {
  using fixture = new Fixture()
  const { authority } = fixture
  fixture.clock.pass(10 * DAY_MS)
  const { certificate } = fixture.enroll()
  fixture.clock.setWall(fixture.nowMs - 10 * DAY_MS)
  assert.throws(() => authority.identifyHost(certificate), { code: 'HM_CA_HOST_EXPIRED' })
  const early = authority.identifyHost(certificate, { mayHaveExpired: true })
  const renewed = authority.identifyHost(new X509Certificate(authority.renew(early, csr())))
  await authority.sign(renewed, 'web', csr())
})

test('every renewal needs a new key, and a service never gets the key of its host', async () => {
  using fixture = new Fixture()
  const token = fixture.token()
  const request = csr()
  const pem = fixture.authority.enroll({ ...token, csr: request }, 'here')
  const caller = fixture.authority.identifyHost(new X509Certificate(pem))
  assert.throws(() => fixture.authority.renew(caller, request), { code: 'HM_CA_KEY_REFUSED' })
  await assert.rejects(fixture.authority.sign(caller, 'web', request), {
    code: 'HM_CA_KEY_REFUSED',
  })
})

test('an expired host certificate is good for renewal alone, and after the grace limit for nothing', async () => {
  using fixture = new Fixture({ lifetimes: { hostMs: DAY_MS, graceMs: DAY_MS } })
  const { authority } = fixture
  const { certificate } = fixture.enroll()
  fixture.clock.pass(DAY_MS + 1_000)
  assert.throws(() => authority.identifyHost(certificate), { code: 'HM_CA_HOST_EXPIRED' })
  const late = authority.identifyHost(certificate, { mayHaveExpired: true })
  const renewed = authority.identifyHost(new X509Certificate(authority.renew(late, csr())))
  await authority.sign(renewed, 'web', csr())
  fixture.clock.pass(DAY_MS)
  assert.throws(() => authority.identifyHost(certificate, { mayHaveExpired: true }), {
    code: 'HM_CA_HOST_REFUSED',
    message: /2026-06-02.*the clock of the CA says 2026-06-03/,
  })
})

describe('nobody is taken for a host who shows', () => {
  const { publicKey } = new X509Certificate(readFixtureRoot())
  const shown: Record<string, (f: Fixture) => Promise<X509Certificate> | X509Certificate> = {
    'the certificate of a service': async (f) =>
      new X509Certificate(await f.authority.sign(f.enroll(), 'web', csr())),
    'a certificate of another CA': () => {
      using other = new Fixture()
      return other.enroll('a').certificate
    },
    'the root itself': (f) => readAuthority(f.directory).certificate,
    'a host certificate that the CA does not remember': (f) => {
      f.enroll('a')
      const what = {
        publicKey,
        uri: 'spiffe://mesh.test/host/a',
        purpose: 'client',
        what: 'x',
      } as const
      const times = { nowMs: f.nowMs, lifetimeMs: HOUR_MS }
      return new X509Certificate(certify(readAuthority(f.directory), what, times))
    },
    'a service that is called like a host': (f) => {
      f.enroll('a')
      const identity = { trustDomain: 'mesh.test', datacenter: 'dc1', service: 'a' }
      const times = { nowMs: f.nowMs, lifetimeMs: HOUR_MS }
      return new X509Certificate(
        certifyService(readAuthority(f.directory), identity, publicKey, times),
      )
    },
    'the certificate from before a new enrollment': (f) => {
      const { certificate } = f.enroll('a')
      f.enroll('a')
      return certificate
    },
    'the certificate of a revoked host': (f) => {
      const { certificate } = f.enroll('a')
      f.authority.revoke({ host: 'a' })
      return certificate
    },
    'a host certificate that was revoked by its serial number': (f) => {
      const { certificate } = f.enroll('a')
      f.authority.revoke({ serial: certificate.serialNumber })
      return certificate
    },
  }
  for (const [name, make] of Object.entries(shown))
    test(name, async () => {
      using fixture = new Fixture()
      const certificate = await make(fixture)
      assert.throws(() => fixture.authority.identifyHost(certificate, { mayHaveExpired: true }), {
        code: 'HM_CA_HOST_REFUSED',
      })
    })
})

/** Any public key will do. */
function readFixtureRoot(): string {
  using fixture = new Fixture()
  return readAuthority(fixture.directory).certificatePem
}

test('revoking a host lists every certificate of it that has not expired, across a restart, and longer than they live', async () => {
  using fixture = new Fixture()
  const a = fixture.enroll('a')
  const b = fixture.enroll('b')
  const ofA = serialOf(await fixture.authority.sign(a, 'web', csr()))
  const ofB = serialOf(await fixture.authority.sign(b, 'web', csr()))
  let changes = 0
  fixture.authority.trust.onBundle(() => (changes += 1))
  const before = fixture.authority.trust.bundle
  fixture.authority.revoke({ host: 'a' })
  assert.equal(changes, 1)
  assert.notEqual(fixture.authority.trust.bundle.id, before.id)
  assert.equal(fixture.authority.trust.bundle.rootsId, before.rootsId)
  assert.deepEqual(
    fixture.authority.trust.bundle.revoked,
    [ofA, a.certificate.serialNumber].toSorted(),
  )
  assert.ok(!fixture.authority.trust.bundle.revoked.includes(ofB))
  fixture.reopen()
  assert.deepEqual(
    fixture.authority.trust.bundle.revoked,
    [ofA, a.certificate.serialNumber].toSorted(),
  )
  fixture.clock.pass(DAY_MS + HOUR_MS)
  fixture.authority.maintain()
  assert.deepEqual(
    fixture.authority.trust.bundle.revoked,
    [ofA, a.certificate.serialNumber].toSorted(),
    'a host whose clock is late may still take the leaf for one that holds',
  )
  assert.equal(fixture.authority.status().revoked, 1, 'of those that have not expired')
})

test('a clock of the CA that was years ahead for a while has cost no revocation', async () => {
  using fixture = new Fixture()
  const a = fixture.enroll('a')
  const ofA = serialOf(await fixture.authority.sign(a, 'web', csr()))
  fixture.authority.revoke({ host: 'a' })
  fixture.clock.pass(2_000 * DAY_MS)
  fixture.authority.maintain()
  fixture.reopen()
  fixture.clock.setWall(fixture.nowMs - 2_000 * DAY_MS)
  assert.deepEqual(
    fixture.authority.trust.bundle.revoked,
    [ofA, a.certificate.serialNumber].toSorted(),
  )
})

test('of more than a thousand revocations the oldest go, a day after their certificates have ended', async () => {
  using fixture = new Fixture()
  const a = fixture.enroll('a')
  const first = serialOf(await fixture.authority.sign(a, 'web', csr()))
  fixture.authority.revoke({ serial: first })
  let last = ''
  for (let i = 0; i < 1_000; i += 1) last = serialOf(await fixture.authority.sign(a, 'web', csr()))
  fixture.authority.revoke({ host: 'a' })
  fixture.authority.maintain()
  assert.equal(
    fixture.authority.trust.bundle.revoked.length,
    1_002,
    'none has ended, and the host has one itself',
  )
  fixture.clock.pass(2 * DAY_MS + HOUR_MS)
  fixture.authority.maintain()
  assert.equal(
    fixture.authority.trust.bundle.revoked.length,
    1_001,
    'that of the host has not ended',
  )
  assert.ok(!fixture.authority.trust.bundle.revoked.includes(first))
  assert.ok(fixture.authority.trust.bundle.revoked.includes(last))
})

test('revoking a service of a host takes it off its token too; the rest of the host goes on', async () => {
  using fixture = new Fixture()
  const caller = fixture.enroll('a', ['web', 'api'])
  const web = serialOf(await fixture.authority.sign(caller, 'web', csr()))
  await fixture.authority.sign(caller, 'api', csr())
  fixture.authority.revoke({ host: 'a', service: 'web' })
  assert.deepEqual(fixture.authority.trust.bundle.revoked, [web])
  await assert.rejects(fixture.authority.sign(caller, 'web', csr()), {
    code: 'HM_CA_SERVICE_REFUSED',
  })
  await fixture.authority.sign(caller, 'api', csr())
  assert.throws(() => fixture.authority.revoke({ serial: 'AB' }), {
    code: 'HM_CA_NOTHING_TO_REVOKE',
  })
})

test('a host that is revoked while the catalog is asked gets nothing', async () => {
  const answer = Promise.withResolvers<boolean>()
  using fixture = new Fixture({ runsService: () => answer.promise })
  const signing = fixture.authority.sign(fixture.enroll('a', []), 'web', csr())
  fixture.authority.revoke({ host: 'a' })
  answer.resolve(true)
  await assert.rejects(signing, { code: 'HM_CA_HOST_REFUSED' })
})

test('a host certificate that was revoked by its serial number cannot be renewed once it has expired, nor had again with its token', () => {
  using fixture = new Fixture({ lifetimes: { hostMs: DAY_MS, graceMs: 7 * DAY_MS } })
  const token = fixture.token('a', ['web'], 5 * DAY_MS)
  const request = csr()
  const stolen = new X509Certificate(fixture.authority.enroll({ ...token, csr: request }, 'here'))
  fixture.authority.revoke({ serial: stolen.serialNumber })
  for (let day = 0; day < 4; day += 1) {
    fixture.authority.maintain()
    assert.throws(() => fixture.authority.identifyHost(stolen, { mayHaveExpired: true }), {
      code: 'HM_CA_HOST_REFUSED',
    })
    assert.throws(() => fixture.authority.enroll({ ...token, csr: request }, 'here'), {
      code: 'HM_CA_TOKEN_REFUSED',
    })
    fixture.clock.pass(DAY_MS)
  }
})

test('a host has a bounded number of certificates, by its token too, and room again when they are revoked', async () => {
  using fixture = new Fixture()
  const token = fixture.token()
  const request = csr()
  let pem = fixture.authority.enroll({ ...token, csr: request }, 'here')
  fixture.authority[Symbol.dispose]()
  fixture.editDatabase(`
    WITH RECURSIVE number (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM number WHERE n < 4095)
    INSERT INTO certificate SELECT NULL, printf('%X', n), host, service, issuedAtMs, notAfterMs, rootId, 0
      FROM certificate, number`)
  fixture.reopen()
  const limit = { code: 'HM_CA_RATE_LIMITED' }
  const caller = fixture.authority.identifyHost(new X509Certificate(pem))
  assert.throws(() => fixture.authority.enroll({ ...token, csr: request }, 'here'), limit)
  assert.throws(() => fixture.authority.renew(caller, csr()), limit)
  fixture.authority.revoke({ host: 'a' })
  pem = fixture.authority.enroll({ ...fixture.token(), csr: csr() }, 'here')
  await fixture.authority.sign(
    fixture.authority.identifyHost(new X509Certificate(pem)),
    'web',
    csr(),
  )
})

test('a CA does not open without its database, makes no other one, and loses no key over it', () => {
  using fixture = new Fixture()
  fixture.enroll()
  fixture.authority.trust.startRotation()
  fixture.authority[Symbol.dispose]()
  rmSync(join(fixture.directory, 'state.db'))
  const files = readdirSync(fixture.directory)
  const missing = { code: 'HM_CA_STATE_INVALID', message: /state\.db: it is missing/ }
  assert.throws(() => fixture.open(), missing)
  assert.throws(() => readAuthority(fixture.directory), missing)
  assert.throws(() => createAuthority(fixture.directory, 'mesh.test', 0), { code: 'HM_CA_EXISTS' })
  assert.deepEqual(readdirSync(fixture.directory), files)
})

test('a token is not made for what no datacenter is called', () => {
  using fixture = new Fixture()
  for (const datacenter of ['', 'DC1', 'dc1/svc/admin', 'dc 1'])
    assert.throws(
      () =>
        fixture.authority.createToken({
          host: 'a',
          datacenter,
          services: [],
          ttlMs: HOUR_MS,
          address: 'ca.test:1',
        }),
      { code: 'HM_CA_DATACENTER_INVALID' },
    )
})

test('a directory has one authority at a time', () => {
  using fixture = new Fixture()
  assert.throws(() => fixture.open(), { code: 'HM_CA_LOCKED' })
  fixture.reopen()
})

describe('a database is refused, and left as it is, that', () => {
  const cases: Record<string, { spoil: (path: string, f: Fixture) => void; says: RegExp }> = {
    'is empty': { spoil: (path) => writeFileSync(path, ''), says: /not the database of a CA/ },
    'is something else': {
      spoil: (path) => writeFileSync(path, 'not a database\n'.repeat(1_000)),
      says: /it is damaged/,
    },
    "is another program's": {
      spoil: (path, f) => {
        rmSync(path)
        f.editDatabase('CREATE TABLE host (name TEXT)')
      },
      says: /not the database of a CA/,
    },
    'is of a later version': {
      spoil: (_, f) => f.editDatabase('PRAGMA user_version = 2'),
      says: /it is of version 2, not 1/,
    },
    'was cut off': {
      spoil: (path) => truncateSync(path, statSync(path).size - 4_096),
      says: /it is damaged/,
    },
    'has a page of zeros': {
      spoil: (path) => {
        const bytes = readFileSync(path)
        writeFileSync(path, bytes.fill(0, bytes.length - 4_096))
      },
      says: /it is damaged/,
    },
    'is that of another CA': {
      spoil: (path) => {
        using other = new Fixture()
        writeFileSync(path, readFileSync(join(other.directory, 'state.db')))
      },
      says: /ca\.pem is not the root that state\.db names/,
    },
  }
  for (const [name, { spoil, says }] of Object.entries(cases))
    test(name, async () => {
      using fixture = new Fixture()
      await fixture.authority.sign(fixture.enroll(), 'web', csr())
      fixture.authority[Symbol.dispose]()
      const path = join(fixture.directory, 'state.db')
      spoil(path, fixture)
      const before = readFileSync(path)
      assert.throws(() => fixture.open(), { code: 'HM_CA_STATE_INVALID', message: says })
      assert.deepEqual(readFileSync(path), before)
    })
})

test('a copy of the database file alone has all that the CA knew', async () => {
  using fixture = new Fixture()
  const caller = fixture.enroll()
  await fixture.authority.sign(caller, 'web', csr())
  fixture.authority.revoke({ serial: caller.certificate.serialNumber })
  const path = join(fixture.directory, 'state.db')
  const { bundle } = fixture.authority.trust
  const status = fixture.authority.status()
  const copy = readFileSync(path)
  fixture.authority.revoke({ host: 'a' })
  fixture.authority[Symbol.dispose]()
  writeFileSync(path, copy)
  fixture.reopen()
  assert.deepEqual(fixture.authority.trust.bundle, bundle)
  assert.deepEqual(fixture.authority.status(), status)
})

test('what the CA keeps is its own to read, holds no secret of a token, and no log has one either', async () => {
  using fixture = new Fixture()
  const token = fixture.token()
  const request = makeSigningRequest()
  const pem = fixture.authority.enroll({ ...token, csr: request.csrPem }, 'here')
  const caller = fixture.authority.identifyHost(new X509Certificate(pem))
  await fixture.authority.sign(caller, 'web', csr())
  fixture.authority.trust.startRotation()
  for (const file of readdirSync(fixture.directory)) {
    const path = join(fixture.directory, file)
    const isPublic = file.endsWith('.pem')
    assert.equal(statSync(path).mode & 0o077, isPublic ? 0o044 : 0, file)
    assert.ok(!readFileSync(path, 'utf8').includes(token.secret), file)
  }
  const said = `${fixture.lines.join('\n')}${JSON.stringify(fixture.authority.status())}`
  assert.ok(!said.includes(token.secret))
  assert.doesNotMatch(said, /PRIVATE KEY/)
})

describe('a root is replaced', () => {
  test('so that nothing is signed by a root that a host does not have, and the old one goes last', async () => {
    using fixture = new Fixture()
    const [a, b] = [fixture.enroll('a'), fixture.enroll('b')]
    for (const caller of [a, b]) {
      fixture.authority.trust.noteRoots(caller.name, fixture.authority.trust.bundle.rootsId)
      await fixture.authority.sign(caller, 'web', csr())
    }
    const old = fixture.authority.trust.bundle.activeRoot
    assert.equal(fixture.authority.trust.startRotation().phase, 'spreading')
    const { rootsId, roots, activeRoot } = fixture.authority.trust.bundle
    assert.equal(roots.length, 2)
    assert.equal(activeRoot, old, 'the old one signs')
    fixture.authority.trust.noteRoots(a.name, rootsId)
    assert.deepEqual(fixture.authority.trust.rotationStatus().lagging, ['b'])
    assert.throws(() => fixture.authority.trust.finishRotation(false), {
      code: 'HM_CA_ROTATION_LAGGING',
    })
    fixture.reopen()
    assert.deepEqual(
      fixture.authority.trust.rotationStatus().lagging,
      ['a', 'b'],
      'they have to say it again',
    )
    fixture.authority.trust.noteRoots(a.name, rootsId)
    fixture.authority.trust.noteRoots(b.name, rootsId)
    assert.equal(fixture.authority.trust.rotationStatus().phase, 'reissuing')
    assert.notEqual(fixture.authority.trust.bundle.activeRoot, old)
    assert.deepEqual(fixture.authority.trust.rotationStatus().lagging, ['a', 'b'])
    for (const caller of [a, b]) {
      fixture.authority.renew(caller, csr())
      assert.throws(() => fixture.authority.trust.finishRotation(false), {
        code: 'HM_CA_ROTATION_LAGGING',
      })
      await fixture.authority.sign(caller, 'web', csr())
    }
    assert.deepEqual(fixture.authority.trust.rotationStatus().lagging, [])
    const status = fixture.authority.trust.finishRotation(false)
    assert.equal(status.phase, 'none')
    assert.equal(fixture.authority.trust.bundle.roots.length, 1)
    fixture.reopen()
    assert.notEqual(fixture.authority.trust.bundle.activeRoot, old)
    assert.deepEqual(
      readdirSync(fixture.directory).filter((file) => file.startsWith('ca.')),
      [],
      'the key of the old root is gone',
    )
    assert.throws(() => createAuthority(fixture.directory, 'mesh.test', 0), {
      code: 'HM_CA_EXISTS',
    })
  })

  test('not by two rotations at once, and not without one', () => {
    using fixture = new Fixture()
    assert.throws(() => fixture.authority.trust.finishRotation(true), {
      code: 'HM_CA_ROTATION_STATE',
    })
    assert.throws(() => fixture.authority.trust.abortRotation(), { code: 'HM_CA_ROTATION_STATE' })
    fixture.authority.trust.startRotation()
    assert.throws(() => fixture.authority.trust.startRotation(), { code: 'HM_CA_ROTATION_STATE' })
  })

  test('and a change of mind before the new one signs simply drops it', () => {
    using fixture = new Fixture()
    fixture.enroll('a')
    const before = fixture.authority.trust.bundle
    fixture.authority.trust.startRotation()
    assert.equal(fixture.authority.trust.abortRotation().phase, 'none')
    assert.deepEqual(fixture.authority.trust.bundle, before)
    assert.equal(readdirSync(fixture.directory).filter((file) => file.endsWith('.key')).length, 1)
  })

  test('and a change of mind after that issues everything again before the new one goes', () => {
    using fixture = new Fixture()
    const a = fixture.enroll('a')
    const old = fixture.authority.trust.bundle.activeRoot
    fixture.authority.trust.startRotation()
    fixture.authority.trust.noteRoots(a.name, fixture.authority.trust.bundle.rootsId)
    fixture.authority.renew(a, csr())
    assert.equal(fixture.authority.trust.abortRotation().phase, 'reissuing')
    assert.equal(fixture.authority.trust.bundle.activeRoot, old)
    assert.deepEqual(fixture.authority.trust.rotationStatus().lagging, ['a'])
    fixture.authority.renew(a, csr())
    fixture.authority.trust.finishRotation(false)
    assert.equal(fixture.authority.trust.bundle.activeRoot, old)
    assert.equal(fixture.authority.trust.bundle.roots.length, 1)
  })

  test('and a host that is long gone or revoked is not waited for', () => {
    using fixture = new Fixture()
    fixture.enroll('gone')
    fixture.clock.pass(15 * DAY_MS)
    const revoked = fixture.enroll('revoked')
    fixture.authority.trust.startRotation()
    assert.deepEqual(fixture.authority.trust.rotationStatus().lagging, [revoked.name])
    fixture.authority.revoke({ host: 'revoked' })
    assert.equal(fixture.authority.trust.rotationStatus().phase, 'reissuing')
  })

  test('and what a crash left of a new root is removed', () => {
    using fixture = new Fixture()
    writeFileSync(join(fixture.directory, 'root-deadbeef.key'), 'x')
    fixture.reopen()
    assert.ok(!readdirSync(fixture.directory).includes('root-deadbeef.key'))
    assert.ok(readdirSync(fixture.directory).includes('ca.key'))
  })
})

test('a join token is one word that says whom to trust, and anything else is refused', () => {
  using fixture = new Fixture()
  const { token } = fixture.authority.createToken({
    host: 'a',
    datacenter: 'dc1',
    services: [],
    ttlMs: HOUR_MS,
    address: '[fd00::1]:15444',
  })
  assert.match(token, /^hm1\.[A-Za-z0-9_-]+$/)
  const parsed = parseJoinToken(` ${token}\n`, 'x')
  assert.equal(parsed.address, '[fd00::1]:15444')
  assert.equal(
    parsed.fingerprint,
    readAuthority(fixture.directory).certificate.fingerprint256.replaceAll(':', '').toLowerCase(),
  )
  for (const bad of [
    '',
    'hm1.',
    'hm1.e30',
    token.slice(0, -9),
    `x${token}`,
    'hm1.'.padEnd(9_999, 'A'),
  ])
    assert.throws(() => parseJoinToken(bad, 'x'), { code: 'HM_CA_TOKEN_INVALID' })
  const wrong = { host: 'a', datacenter: 'dc1', services: [], ttlMs: HOUR_MS }
  assert.throws(() => fixture.authority.createToken(wrong), { code: 'HM_CA_TOKEN_REQUEST_INVALID' })
  for (const bad of [{ host: '../x' }, { host: '' }, { services: ['No'] }])
    assert.throws(() => fixture.authority.createToken({ ...wrong, address: 'x:1', ...bad }), {
      code: 'HM_CA_NAME_INVALID',
    })
})
