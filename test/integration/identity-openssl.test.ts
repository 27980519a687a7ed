/**
 * The certificates we issue, judged by OpenSSL's own verifier and by TLS.
 */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, describe, test } from 'node:test'
import tls from 'node:tls'
import { initCa, issueCertificates } from '../../src/authority/operations.ts'
import { singleUriSan } from '../../src/lib/uri-san.ts'

const work = mkdtempSync(join(tmpdir(), 'hostmesh-identity-openssl-'))
const ca = join(work, 'ca')
const host = join(work, 'host')
const rootPath = join(ca, 'ca.pem')
const services = ['web', 'db', `${'long-'.repeat(24)}name`]

before(() => {
  initCa(ca, 'mesh.test')
  issueCertificates({ directory: ca, datacenter: 'dc1', services, out: host })
})
after(() => rmSync(work, { recursive: true }))

function openssl(...argv: string[]): string {
  return execFileSync('openssl', argv, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] })
}

function read(name: string): string {
  return readFileSync(join(host, name), 'utf8')
}

describe('OpenSSL', () => {
  for (const service of services) {
    for (const purpose of ['sslclient', 'sslserver'])
      test(`verifies ${service.slice(0, 20)} strictly as ${purpose}`, () => {
        const path = join(host, `${service}.pem`)
        const answer = openssl(
          'verify',
          '-x509_strict',
          '-purpose',
          purpose,
          '-CAfile',
          rootPath,
          path,
        )
        assert.equal(answer, `${path}: OK\n`)
      })

    test(`reads one critical URI and no subject in the certificate of ${service.slice(0, 20)}`, () => {
      const text = openssl('x509', '-noout', '-text', '-in', join(host, `${service}.pem`))
      assert.match(
        text,
        new RegExp(
          `Subject Alternative Name: critical\\n +URI:spiffe://mesh.test/ns/default/dc/dc1/svc/${service}\\n`,
        ),
      )
      assert.match(text, /Subject: *\n/)
      assert.match(text, /Key Usage: critical\n +Digital Signature\n/)
      assert.match(
        text,
        /Extended Key Usage: *\n +TLS Web Client Authentication, TLS Web Server Authentication\n/,
      )
      assert.match(text, /Basic Constraints: critical\n +CA:FALSE/)
      assert.match(text, /ASN1 OID: prime256v1/)
      assert.match(text, /Signature Algorithm: ecdsa-with-SHA256/)
    })
  }

  test('verifies the root strictly and reads a CA of path length 0 that names the trust domain', () => {
    assert.equal(
      openssl('verify', '-x509_strict', '-CAfile', rootPath, rootPath),
      `${rootPath}: OK\n`,
    )
    const text = openssl('x509', '-noout', '-text', '-in', rootPath)
    assert.match(text, /Basic Constraints: critical\n +CA:TRUE, pathlen:0/)
    assert.match(text, /Key Usage: critical\n +Certificate Sign, CRL Sign\n/)
    assert.match(text, /Subject Alternative Name: *\n +URI:spiffe:\/\/mesh\.test\n/)
    const years = openssl('x509', '-noout', '-enddate', '-in', rootPath)
    assert.match(years, new RegExp(`${new Date().getUTCFullYear() + 10}`))
  })

  test('finds the key identifier of the root in its leaves', () => {
    const idOf = (path: string, extension: string): string =>
      openssl('x509', '-noout', '-ext', extension, '-in', path).split('\n')[1]?.trim() ?? ''
    const rootId = idOf(rootPath, 'subjectKeyIdentifier')
    assert.match(rootId, /^([0-9A-F]{2}:){19}[0-9A-F]{2}$/)
    assert.equal(idOf(join(host, 'web.pem'), 'authorityKeyIdentifier'), rootId)
  })

  test('refuses a leaf as a CA, and a leaf below another root', () => {
    const other = join(work, 'other')
    initCa(other, 'mesh.test')
    assert.throws(() => openssl('verify', '-CAfile', join(other, 'ca.pem'), join(host, 'web.pem')))
    assert.throws(() =>
      openssl('verify', '-partial_chain', '-CAfile', join(host, 'db.pem'), join(host, 'web.pem')),
    )
  })

  test('signs for a CA that was made by OpenSSL, and the leaf verifies', () => {
    const foreign = join(work, 'foreign')
    execFileSync('mkdir', ['-m', '700', foreign])
    const key = join(foreign, 'ca.key')
    openssl('ecparam', '-name', 'prime256v1', '-genkey', '-noout', '-out', key)
    execFileSync('chmod', ['600', key])
    const request = `req -x509 -new -key ${key} -sha256 -days 30 -utf8 -out ${join(foreign, 'ca.pem')}`
    const subject = ['-subj', '/C=DE/O=Example & Söhne/CN=Mesh CA']
    const names = ['-addext', 'subjectAltName=URI:spiffe://foreign.test']
    const usage = ['-addext', 'keyUsage=critical,keyCertSign,cRLSign']
    openssl(...request.split(' '), ...subject, ...names, ...usage)
    const out = join(work, 'foreign-host')
    issueCertificates({ directory: foreign, datacenter: 'dc1', services: ['web'], out })
    const answer = openssl(
      'verify',
      '-x509_strict',
      '-CAfile',
      join(foreign, 'ca.pem'),
      join(out, 'web.pem'),
    )
    assert.match(answer, /OK/)
  })
})

test('two issued leaves prove themselves to each other over TLS 1.3', async () => {
  const roots = read('roots.pem')
  const server = tls.createServer({
    cert: read('db.pem'),
    key: read('db.key'),
    ca: roots,
    requestCert: true,
    rejectUnauthorized: true,
    minVersion: 'TLSv1.3',
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  const accepted = once(server, 'secureConnection')
  const client = tls.connect({
    host: '127.0.0.1',
    port,
    servername: 'db.default.dc1.internal.mesh.test',
    cert: read('web.pem'),
    key: read('web.key'),
    ca: roots,
    minVersion: 'TLSv1.3',
    rejectUnauthorized: true,
    checkServerIdentity: () => undefined,
  })
  await once(client, 'secureConnect')
  const [peer] = (await accepted) as [tls.TLSSocket]
  assert.equal(client.getProtocol(), 'TLSv1.3')
  assert.equal(client.authorized, true)
  assert.equal(
    singleUriSan(client.getPeerX509Certificate()!.raw),
    'spiffe://mesh.test/ns/default/dc/dc1/svc/db',
  )
  assert.equal(peer.authorized, true)
  assert.equal(
    singleUriSan(peer.getPeerX509Certificate()!.raw),
    'spiffe://mesh.test/ns/default/dc/dc1/svc/web',
  )
  client.end()
  peer.end()
  await once(client, 'close')
  server.close()
  await once(server, 'close')
})
