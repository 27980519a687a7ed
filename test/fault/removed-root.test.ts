/**
 * Roots come and go: a new one disturbs nobody, and with the last root behind a certificate go the
 * connections that rest on it, whichever side had it. A chain over an intermediate counts like any other.
 */
import assert from 'node:assert/strict'
import { generateKeyPairSync, type KeyObject, X509Certificate } from 'node:crypto'
import { test } from 'node:test'
import forge from 'node-forge'
import {
  distinguishedName,
  type Extension,
  signCertificate,
} from '../../src/authority/issue-certificate.ts'
import { readLeaf } from '../../src/controlplane/identity/x509.ts'
import type { Leaf, TrustBundle } from '../../src/model/certificate.ts'
import { eventually } from '../harness/eventually.ts'
import { read } from '../integration/dataplane-fixtures.ts'
import { authority } from '../integration/tunnel-fixtures.ts'
import { HOUR_MS, makeAuthority, makeLeaf, TRUST_DOMAIN } from '../unit/identity-fixtures.ts'
import { endings, startCertificatePair } from './certificate-pair.ts'

const next = makeAuthority()
const only = (...pems: string[]): TrustBundle => ({
  trustDomain: TRUST_DOMAIN,
  rootsPem: pems,
  revokedSerials: [],
})
const OLD = authority.bundle.rootsPem[0]!
const NEW = next.bundle.rootsPem[0]!

for (const side of ['caller', 'callee'] as const)
  test(`a live connection ends when the last root behind the ${side}'s certificate is removed`, async () => {
    await using pair = await startCertificatePair()
    const [caller, called] = await pair.connect()
    const judge = side === 'caller' ? pair.db : pair.web
    judge.pool.setRoots(only(OLD, NEW))
    // A leaf that holds under both sets of roots; the live connection keeps the one it began with.
    const own = side === 'caller' ? 'db' : 'web'
    judge.pool.setLeaf(readLeaf({ service: own, ...makeLeaf(next, own) }, next.bundle, Date.now()))
    caller.write('still here')
    assert.equal(await read(called, 10), 'still here')
    assert.equal(judge.totals.numbers().tunnelSessionsClosed.untrusted, 0)
    const ended = endings([caller, called], 10_000)
    judge.pool.setRoots(only(NEW))
    assert.deepEqual(await ended, ['ECONNRESET', 'ECONNRESET'])
    await eventually(() =>
      assert.deepEqual(judge.closedByFlag(side === 'caller' ? 'destination' : 'source'), {
        TLS: 1,
      }),
    )
    assert.notEqual(await pair.call(), 'end')
  })

test('roots replaced in order, old and new together meanwhile, cost no connection', async () => {
  await using pair = await startCertificatePair()
  const hosts = [
    { host: pair.web, name: 'web' },
    { host: pair.db, name: 'db' },
  ]
  const [caller, called] = await pair.connect()
  for (const { host } of hosts) host.pool.setRoots(only(OLD, NEW))
  assert.equal(await pair.call(), 'end')
  for (const { host, name } of hosts) {
    host.pool.setLeaf(readLeaf({ service: name, ...makeLeaf(next, name) }, next.bundle, Date.now()))
    assert.equal(await pair.call(), 'end', `with the new leaf of ${name}`)
  }
  const renewedMs = performance.now()
  caller.write('old')
  assert.equal(await read(called, 3), 'old')
  caller.end()
  called.end()
  // Sessions of the old leaves are gone once their last stream is.
  for (const { host } of hosts)
    await eventually(async () => {
      const sinceMs = performance.now() - renewedMs
      assert.ok((await host.peers()).every(({ ageMs }) => ageMs < sinceMs))
    })
  for (const { host } of hosts) host.pool.setRoots(only(NEW))
  assert.equal(await pair.call(), 'end')
  for (const { host } of hosts)
    assert.equal(host.totals.numbers().tunnelSessionsClosed.untrusted, 0)
})

for (const side of ['caller', 'callee'] as const)
  test(`a ${side}'s certificate that reaches its root over an intermediate is judged by that root`, async () => {
    const { root, leaf } = overIntermediate(side === 'caller' ? 'web' : 'db')
    await using pair = await startCertificatePair()
    for (const { pool } of [pair.web, pair.db]) pool.setRoots(only(OLD, root))
    ;(side === 'caller' ? pair.web : pair.db).pool.setLeaf(leaf)
    const judge = side === 'caller' ? pair.db : pair.web
    const [caller, called] = await pair.connect()
    judge.pool.setRoots(only(OLD, root, NEW))
    caller.write('alive')
    assert.equal(await read(called, 5), 'alive')
    const ended = endings([caller, called], 10_000)
    judge.pool.setRoots(only(OLD, NEW))
    assert.deepEqual(await ended, ['ECONNRESET', 'ECONNRESET'])
  })

const { asn1 } = forge

/** A CA that may sign other CAs: ours may not. */
const anyDepth: Extension = {
  oid: '2.5.29.19',
  critical: true,
  value: asn1.create(asn1.Class.UNIVERSAL, asn1.Type.SEQUENCE, true, [
    asn1.create(asn1.Class.UNIVERSAL, asn1.Type.BOOLEAN, false, '\xff'),
  ]),
}

/** A leaf, the intermediate that issued it (its PEM behind the leaf's), and the root above. */
function overIntermediate(service: string): { root: string; leaf: Leaf } {
  const nowMs = Date.now()
  const times = { notBeforeMs: nowMs - HOUR_MS, notAfterMs: nowMs + HOUR_MS }
  const authorityOf = (name: string, issuer: { name: string; key: KeyObject } | undefined) => {
    const { publicKey, privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' })
    const certificatePem = signCertificate(
      {
        subject: distinguishedName(name),
        issuer: distinguishedName(issuer?.name ?? name),
        publicKey,
        ...times,
        extensions: [anyDepth],
      },
      issuer?.key ?? privateKey,
    )
    return { certificatePem, privateKey, certificate: new X509Certificate(certificatePem) }
  }
  const root = authorityOf('a root', undefined)
  const intermediate = authorityOf('between', { name: 'a root', key: root.privateKey })
  const issued = makeLeaf(intermediate, service, nowMs, HOUR_MS / 2)
  const bundle = only(root.certificate.toString())
  return {
    root: root.certificate.toString(),
    leaf: readLeaf(
      {
        service,
        certificatePem: issued.certificatePem + intermediate.certificatePem,
        privateKeyPem: issued.privateKeyPem,
      },
      bundle,
      nowMs,
    ),
  }
}
