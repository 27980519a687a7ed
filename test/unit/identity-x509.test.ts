/**
 * What is refused as a service's certificate, and what the refusal says; what issuing promises.
 */
import assert from 'node:assert/strict'
import { createPrivateKey, generateKeyPairSync, X509Certificate } from 'node:crypto'
import { describe, test } from 'node:test'
import {
  type Authority,
  basicConstraints,
  distinguishedName,
  extendedKeyUsage,
  issueLeaf,
  issueRoot,
  signCertificate,
  uriSan,
} from '../../src/authority/issue-certificate.ts'
import {
  isTrustDomain,
  type LeafCandidate,
  readLeaf,
  readRoots,
} from '../../src/controlplane/identity/x509.ts'
import { MeshError } from '../../src/lib/errors.ts'
import type { TrustBundle } from '../../src/model/certificate.ts'
import {
  altNames,
  craft,
  HOUR_MS,
  makeAuthority,
  makeLeaf,
  TRUST_DOMAIN,
  URI,
  WEB_ID,
} from './identity-fixtures.ts'

const nowMs = Date.parse('2026-03-01T12:00:00Z')
const authority = makeAuthority(nowMs)
const leaf = makeLeaf(authority, 'web', nowMs)

function refusal(
  candidate: Partial<LeafCandidate>,
  bundle: TrustBundle = authority.bundle,
  atMs = nowMs,
): MeshError {
  try {
    readLeaf({ service: 'web', ...leaf, ...candidate }, bundle, atMs)
  } catch (thrown) {
    assert.ok(thrown instanceof MeshError)
    assert.ok(!thrown.message.includes('PRIVATE KEY'))
    return thrown
  }
  throw new Error('It was taken')
}

test('a leaf that its CA has revoked is refused, and the message has its serial number', () => {
  const { serialNumber } = new X509Certificate(leaf.certificatePem)
  const error = refusal({}, { ...authority.bundle, revokedSerials: [serialNumber] })
  assert.equal(error.code, 'HM_CERT_REVOKED')
  assert.ok(error.message.includes(serialNumber))
})

test('a leaf is read with the facts of its certificate', () => {
  const read = readLeaf({ service: 'web', datacenter: 'dc1', ...leaf }, authority.bundle, nowMs)
  const certificate = new X509Certificate(leaf.certificatePem)
  assert.deepEqual(read, {
    service: 'web',
    certificatePem: leaf.certificatePem,
    privateKeyPem: leaf.privateKeyPem,
    spiffeId: WEB_ID,
    serialNumber: certificate.serialNumber,
    notBeforeMs: nowMs - 300_000,
    notAfterMs: nowMs + HOUR_MS,
  })
})

test('a key in SEC1 form is taken', () => {
  const privateKeyPem = createPrivateKey(leaf.privateKeyPem)
    .export({ type: 'sec1', format: 'pem' })
    .toString()
  assert.match(privateKeyPem, /BEGIN EC PRIVATE KEY/)
  assert.equal(
    readLeaf({ service: 'web', ...leaf, privateKeyPem }, authority.bundle, nowMs).spiffeId,
    WEB_ID,
  )
})

describe('a leaf is refused that', () => {
  test('has the key of another', () => {
    const { privateKeyPem } = makeLeaf(authority, 'web', nowMs)
    const error = refusal({ privateKeyPem })
    assert.equal(error.code, 'HM_CERT_KEY_MISMATCH')
    assert.match(error.message, /certificate of web: the private key .* belongs to another/)
  })

  test('has expired, with both times in the message', () => {
    const error = refusal({}, authority.bundle, nowMs + HOUR_MS)
    assert.equal(error.code, 'HM_CERT_EXPIRED')
    assert.match(
      error.message,
      /expired at 2026-03-01T13:00:00Z.* clock of this host says 2026-03-01T13:00:00Z/,
    )
  })

  test('is not valid yet, with both times in the message', () => {
    const error = refusal({}, authority.bundle, nowMs - HOUR_MS)
    assert.equal(error.code, 'HM_CERT_NOT_YET_VALID')
    assert.match(
      error.message,
      /valid from 2026-03-01T11:55:00Z.* clock of this host says 2026-03-01T11:00:00Z/,
    )
  })

  test('is of another root', () => {
    const error = refusal({}, makeAuthority(nowMs).bundle)
    assert.equal(error.code, 'HM_CERT_UNTRUSTED')
    assert.match(error.message, /none of the 1 roots of mesh\.test .*CN=hostmesh CA/)
  })

  test('is of a root that has the same name and another key', () => {
    const twin = makeAuthority(nowMs)
    const { publicKey, privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' })
    const name = distinguishedName('twin')
    const forTwin = (key: typeof privateKey): TrustBundle =>
      readRoots(
        signCertificate(
          {
            subject: name,
            issuer: name,
            publicKey: key === privateKey ? publicKey : twin.certificate.publicKey,
            notBeforeMs: nowMs,
            notAfterMs: nowMs + HOUR_MS,
            extensions: [basicConstraints(true)],
          },
          key,
        ),
        TRUST_DOMAIN,
      )
    const trusted = forTwin(twin.privateKey)
    const other = forTwin(privateKey)
    const signer: Authority = {
      certificate: new X509Certificate(trusted.rootsPem[0]!),
      privateKey: twin.privateKey,
    }
    const issued = makeLeaf(signer, 'web', nowMs, 1_000)
    assert.equal(readLeaf({ service: 'web', ...issued }, trusted, nowMs).service, 'web')
    assert.equal(refusal(issued, other).code, 'HM_CERT_UNTRUSTED')
  })

  test('is a CA certificate', () => {
    const error = refusal(
      craft(authority, { isCa: true, extensions: [uriSan(WEB_ID, true)] }),
      authority.bundle,
      Date.now(),
    )
    assert.equal(error.code, 'HM_CERT_PURPOSE')
    assert.match(error.message, /it is a CA certificate/)
  })

  test('is the root itself', () => {
    const error = refusal({ certificatePem: authority.certificatePem })
    assert.equal(error.code, 'HM_CERT_IDENTITY')
  })

  test('is for servers only', () => {
    const serverAuth = extendedKeyUsage('1.3.6.1.5.5.7.3.1')
    const error = refusal(
      craft(authority, { extensions: [uriSan(WEB_ID, true), serverAuth] }),
      authority.bundle,
      Date.now(),
    )
    assert.equal(error.code, 'HM_CERT_PURPOSE')
    assert.match(error.message, /lacks clientAuth or serverAuth/)
  })

  test('names another service, another datacenter or another trust domain', () => {
    const other = makeLeaf(authority, 'db', nowMs)
    assert.match(
      refusal(other).message,
      /certificate of web: it must name spiffe:\/\/mesh\.test\/.*svc\/web and names ".*svc\/db"/,
    )
    assert.equal(refusal({ datacenter: 'dc2' }).code, 'HM_CERT_IDENTITY')
    const elsewhere = readRoots(authority.certificatePem, 'other.test')
    assert.equal(refusal({}, elsewhere).code, 'HM_CERT_IDENTITY')
  })

  test('names two services', () => {
    const two = craft(authority, { extensions: [altNames([URI, WEB_ID], [URI, `${WEB_ID}2`])] })
    const error = refusal(two, authority.bundle, Date.now())
    assert.match(error.message, /names not exactly one URI/)
  })

  for (const [name, certificatePem] of Object.entries({
    'is empty': '',
    'is no PEM': 'certificate',
    'is cut off': leaf.certificatePem.slice(0, 300),
    'has a damaged body': leaf.certificatePem.replace(/^MII./m, 'AAAA'),
    'comes with 40 more': leaf.certificatePem.repeat(41),
    'comes in a megabyte of text': `${'#'.repeat(1_048_576)}\n${leaf.certificatePem}`,
  }))
    test(name, () => {
      const error = refusal({ certificatePem })
      assert.equal(error.code, 'HM_CERT_UNREADABLE')
      assert.match(error.message, /^Cannot read the certificate of web: /)
    })

  test('has no readable key, without a word of the key in the message', () => {
    for (const privateKeyPem of ['', 'secret-1234', leaf.privateKeyPem.slice(0, 100)]) {
      const error = refusal({ privateKeyPem })
      assert.equal(error.code, 'HM_CERT_KEY_UNREADABLE')
      assert.equal(error.cause, undefined)
      assert.doesNotMatch(`${error.message}${error.hint}`, /secret|MIG/)
    }
  })
})

describe('a chain', () => {
  const oldRoot = makeAuthority(nowMs)
  const newRoot = makeAuthority(nowMs)
  const newLeaf = makeLeaf(newRoot, 'web', nowMs)

  /** The new root's name and key, signed by the old root: what Consul sends during a rotation. */
  function crossSigned(notAfterMs: number): string {
    return signCertificate(
      {
        subject: distinguishedName(commonNameOf(newRoot)),
        issuer: distinguishedName(commonNameOf(oldRoot)),
        publicKey: newRoot.certificate.publicKey,
        notBeforeMs: nowMs - 300_000,
        notAfterMs,
        extensions: [basicConstraints(true)],
      },
      oldRoot.privateKey,
    )
  }
  const chain = (notAfterMs = nowMs + HOUR_MS): string =>
    `${newLeaf.certificatePem}${crossSigned(notAfterMs)}`

  test('through a cross-signed intermediate holds for who knows only the old root', () => {
    const candidate = { service: 'web', ...newLeaf, certificatePem: chain() }
    for (const bundle of [
      oldRoot.bundle,
      newRoot.bundle,
      readRoots(`${newRoot.certificatePem}${oldRoot.certificatePem}`, TRUST_DOMAIN),
    ])
      assert.equal(readLeaf(candidate, bundle, nowMs).certificatePem, candidate.certificatePem)
    assert.equal(refusal({ ...newLeaf }, oldRoot.bundle).code, 'HM_CERT_UNTRUSTED')
  })

  test('through an expired intermediate is refused by its name, unless there is another way', () => {
    const candidate = { ...newLeaf, certificatePem: chain(nowMs - 1_000) }
    const error = refusal(candidate, oldRoot.bundle)
    assert.equal(error.code, 'HM_CERT_EXPIRED')
    assert.match(error.message, /certificate of web with its issuer "CN=hostmesh CA/)
    assert.equal(readLeaf({ service: 'web', ...candidate }, newRoot.bundle, nowMs).service, 'web')
  })

  test('of certificates that sign each other ends', () => {
    const loop = `${newLeaf.certificatePem}${newRoot.certificatePem}${newRoot.certificatePem}${crossSigned(nowMs + HOUR_MS)}`
    assert.equal(
      refusal({ ...newLeaf, certificatePem: loop }, authority.bundle).code,
      'HM_CERT_UNTRUSTED',
    )
  })

  test('is not made by a service: a leaf signed by a leaf is refused', () => {
    const signer: Authority = {
      certificate: new X509Certificate(leaf.certificatePem),
      privateKey: createPrivateKey(leaf.privateKeyPem),
    }
    const byLeaf = makeLeaf(signer, 'web', nowMs, 1_000)
    const error = refusal({
      ...byLeaf,
      certificatePem: byLeaf.certificatePem + leaf.certificatePem,
    })
    assert.equal(error.code, 'HM_CERT_UNTRUSTED')
  })
})

describe('roots', () => {
  test('are taken once each, in order', () => {
    const other = makeAuthority(nowMs)
    const bundle = readRoots(
      `# old\n${authority.certificatePem}# new\n${other.certificatePem}${authority.certificatePem}`,
      TRUST_DOMAIN,
    )
    assert.deepEqual(bundle.rootsPem, [authority.certificatePem, other.certificatePem])
  })

  test('that are no CA certificates are refused', () => {
    assert.throws(() => readRoots(leaf.certificatePem, TRUST_DOMAIN), {
      code: 'HM_CERT_ROOT_INVALID',
    })
  })

  test('are never none', () => {
    assert.throws(() => readRoots('', TRUST_DOMAIN), { code: 'HM_CERT_UNREADABLE' })
  })

  test('belong to a trust domain that fits a SPIFFE ID', () => {
    for (const name of [
      '',
      'Mesh.test',
      'mesh.test.',
      '.test',
      'a..b',
      'a/b',
      '*',
      'spiffe://a',
      'a'.repeat(129),
    ]) {
      assert.equal(isTrustDomain(name), false, name)
      assert.throws(() => readRoots(authority.certificatePem, name), {
        code: 'HM_CERT_TRUST_DOMAIN',
      })
    }
    assert.equal(isTrustDomain('ba23d348-d165-abd5-ee24-68d8a5ee095e.consul'), true)
  })
})

describe('issuing', () => {
  test('gives every certificate its own positive serial of 127 bits', () => {
    const serials = Array.from({ length: 200 }, () => {
      const { certificatePem } = makeLeaf(authority, 'web', nowMs)
      return new X509Certificate(certificatePem).serialNumber
    })
    assert.equal(new Set(serials).size, serials.length)
    for (const serial of serials) assert.match(serial, /^[4-7][0-9A-F]{31}$/)
  })

  test('writes dates before and after 2050 that are read as they were meant', () => {
    for (const year of [2026, 2049, 2050, 2051, 2120]) {
      const startMs = Date.parse(`${year}-06-01T00:00:00Z`)
      const root = new X509Certificate(
        issueRoot(TRUST_DOMAIN, { nowMs: startMs, lifetimeMs: HOUR_MS }).certificatePem,
      )
      assert.equal(root.validFromDate.getTime(), startMs - 300_000)
      assert.equal(root.validToDate.getTime(), startMs + HOUR_MS)
    }
  })

  test('refuses a leaf that would outlive its root, and one without a life', () => {
    for (const lifetimeMs of [2_000 * HOUR_MS, 0, -1, Number.NaN])
      assert.throws(() => makeLeaf(authority, 'web', nowMs, lifetimeMs), {
        code: 'HM_CA_LIFETIME_INVALID',
      })
  })

  test('refuses a service whose TLS server name could not be sent', () => {
    const identity = { trustDomain: 'a'.repeat(128), datacenter: 'dc1', service: 'b'.repeat(128) }
    assert.throws(() => issueLeaf(authority, identity, { nowMs, lifetimeMs: HOUR_MS }), {
      code: 'HM_CA_NAME_INVALID',
    })
  })
})

function commonNameOf(ca: Authority): string {
  return ca.certificate.subject.replace(/^CN=/, '')
}
