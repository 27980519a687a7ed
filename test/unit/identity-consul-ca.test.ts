/**
 * The Consul certificate source against an agent whose answers the test chooses: order of arrival, bad
 * answers, rotation.
 */
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import type { CertificateSource } from '../../src/controlplane/identity/certificate-source.ts'
import { createConsulSource } from '../../src/controlplane/identity/consul-ca.ts'
import { silentLog } from '../../src/lib/log.ts'
import type { Leaf, TrustBundle } from '../../src/model/certificate.ts'
import { makeAuthority, makeLeaf, type TestAuthority, TRUST_DOMAIN } from './identity-fixtures.ts'

const ROOTS = '/v1/agent/connect/ca/roots'
const WEB = '/v1/agent/connect/ca/leaf/web'

/** A follower whose answers are given by hand, and what the source told its watchers. */
class Scene implements AsyncDisposable {
  readonly open = new Map<string, (body: unknown) => void>()
  readonly leaves: Leaf[] = []
  readonly bundles: TrustBundle[] = []
  readonly source: CertificateSource

  constructor(datacenter?: string) {
    this.source = createConsulSource({
      follower: {
        follow: (path, onAnswer) => {
          assert.ok(!this.open.has(path), `${path} is followed twice`)
          this.open.set(path, onAnswer)
          return { [Symbol.dispose]: () => this.open.delete(path) }
        },
      },
      log: silentLog,
      datacenter,
    })
    this.source.watchRoots((bundle) => this.bundles.push(bundle))
  }

  watchWeb(): Disposable {
    return this.source.watchLeaf('web', (leaf) => this.leaves.push(leaf))
  }

  async answer(path: string, body: unknown): Promise<void> {
    const onAnswer = this.open.get(path)
    assert.ok(onAnswer, `${path} is not followed`)
    onAnswer(body)
    await Promise.resolve()
  }

  problems(): string {
    return this.source.problems().join('\n')
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.source[Symbol.asyncDispose]()
    assert.equal(this.open.size, 0, 'queries are left open')
  }
}

/** Roots as Consul 1.8.7 answers, the first one active. */
function rootsBody(...authorities: TestAuthority[]): unknown {
  return {
    ActiveRootID: 'x',
    TrustDomain: TRUST_DOMAIN,
    Roots: authorities.map((authority, index) => ({
      ID: String(index),
      Name: 'Consul CA Root Cert',
      RootCert: authority.certificatePem,
      IntermediateCerts: null,
      Active: index === 0,
    })),
  }
}

function leafBody(authority: TestAuthority, service = 'web'): Record<string, unknown> {
  const { certificatePem, privateKeyPem } = makeLeaf(authority, service)
  return {
    SerialNumber: '08',
    CertPEM: certificatePem,
    PrivateKeyPEM: privateKeyPem,
    Service: service,
  }
}

const oldRoot = makeAuthority()
const newRoot = makeAuthority()

test('roots are followed at once, a leaf while it is watched', async () => {
  await using scene = new Scene()
  assert.deepEqual([...scene.open.keys()], [ROOTS])
  const first = scene.watchWeb()
  const second = scene.watchWeb()
  assert.deepEqual([...scene.open.keys()], [ROOTS, WEB])
  first[Symbol.dispose]()
  first[Symbol.dispose]()
  assert.ok(scene.open.has(WEB))
  second[Symbol.dispose]()
  assert.ok(!scene.open.has(WEB))
  scene.watchWeb()
  assert.ok(scene.open.has(WEB))
})

test('a leaf that comes before its roots is handed over when they come', async () => {
  await using scene = new Scene('dc1')
  scene.watchWeb()
  await scene.answer(WEB, leafBody(oldRoot))
  assert.deepEqual(scene.leaves, [])
  await scene.answer(ROOTS, rootsBody(oldRoot))
  assert.equal(scene.leaves.length, 1)
  assert.equal(scene.bundles.length, 1)
  assert.equal(scene.problems(), '')
})

test('a leaf of a new root waits for it while the old leaf stays in use', async () => {
  await using scene = new Scene()
  scene.watchWeb()
  await scene.answer(ROOTS, rootsBody(oldRoot))
  await scene.answer(WEB, leafBody(oldRoot))
  assert.equal(scene.leaves.length, 1)
  await scene.answer(WEB, leafBody(newRoot))
  assert.equal(scene.leaves.length, 1)
  assert.match(scene.problems(), /none of the 1 roots/)
  await scene.answer(ROOTS, rootsBody(newRoot, oldRoot))
  assert.equal(scene.leaves.length, 2)
  assert.equal(scene.bundles.at(-1)?.rootsPem.length, 2)
  assert.equal(scene.problems(), '')
})

test('the same roots and the same leaf again are no news', async () => {
  await using scene = new Scene()
  scene.watchWeb()
  const body = leafBody(oldRoot)
  for (let round = 0; round < 3; round += 1) {
    await scene.answer(ROOTS, rootsBody(oldRoot))
    await scene.answer(WEB, { ...body, ModifyIndex: round })
  }
  assert.equal(scene.leaves.length, 1)
  assert.equal(scene.bundles.length, 1)
})

test('a root that is withdrawn makes its leaf a problem and keeps it', async () => {
  await using scene = new Scene()
  scene.watchWeb()
  await scene.answer(ROOTS, rootsBody(oldRoot))
  await scene.answer(WEB, leafBody(oldRoot))
  await scene.answer(ROOTS, rootsBody(newRoot))
  assert.match(scene.problems(), /certificate of web: none of the 1 roots/)
  assert.equal(scene.leaves.length, 1)
  await scene.answer(WEB, leafBody(newRoot))
  assert.equal(scene.leaves.length, 2)
  assert.equal(scene.problems(), '')
})

describe('an answer is named as a problem and changes nothing that', () => {
  const key = String(leafBody(oldRoot)['PrivateKeyPEM'])
  const cases: Record<string, readonly [path: string, body: unknown, says: RegExp]> = {
    'is not found': [WEB, undefined, /certificate of web from Consul: Consul does not know it/],
    'is no object': [ROOTS, 'No cluster leader', /roots from Consul: .*expected object/],
    'is null': [ROOTS, null, /roots from Consul/],
    'has no roots': [ROOTS, { TrustDomain: TRUST_DOMAIN, Roots: [] }, /roots from Consul: Roots/],
    'has null for roots': [ROOTS, { TrustDomain: TRUST_DOMAIN, Roots: null }, /Roots: .*array/],
    'has 33 roots': [
      ROOTS,
      { TrustDomain: TRUST_DOMAIN, Roots: Array.from({ length: 33 }, () => ({ RootCert: '' })) },
      /Roots: /,
    ],
    'has a damaged root': [
      ROOTS,
      { TrustDomain: TRUST_DOMAIN, Roots: [{ RootCert: 'x' }] },
      /Cannot read the roots/,
    ],
    'has an odd trust domain': [
      ROOTS,
      { TrustDomain: 'a b', Roots: [{ RootCert: oldRoot.certificatePem }] },
      /"a b" as trust domain/,
    ],
    'lacks the key': [WEB, { CertPEM: 'x' }, /certificate of web from Consul: PrivateKeyPEM/],
    'has the key in the place of the certificate': [
      WEB,
      { CertPEM: key, PrivateKeyPEM: key },
      /holds no CERTIFICATE block/,
    ],
    'is for another service': [
      WEB,
      leafBody(oldRoot, 'db'),
      /must name .*svc\/web and names .*svc\/db/,
    ],
  }
  for (const [name, [path, body, says]] of Object.entries(cases))
    test(name, async () => {
      await using scene = new Scene()
      scene.watchWeb()
      await scene.answer(ROOTS, rootsBody(oldRoot))
      await scene.answer(WEB, leafBody(oldRoot))
      await scene.answer(path, body)
      assert.match(scene.problems(), says)
      assert.ok(!scene.problems().includes(key.split('\n')[1] ?? key))
      assert.equal(scene.leaves.length, 1)
      assert.equal(scene.bundles.length, 1)
      await scene.answer(ROOTS, rootsBody(oldRoot))
      await scene.answer(WEB, leafBody(oldRoot))
      assert.equal(scene.problems(), '')
    })
})

test('another trust domain is taken whole: its roots first, then its leaves', async () => {
  await using scene = new Scene()
  scene.watchWeb()
  await scene.answer(ROOTS, rootsBody(oldRoot))
  await scene.answer(WEB, leafBody(oldRoot))
  await scene.answer(ROOTS, { ...(rootsBody(oldRoot) as object), TrustDomain: 'other.consul' })
  assert.equal(scene.bundles.at(-1)?.trustDomain, 'other.consul')
  assert.match(scene.problems(), /must name spiffe:\/\/other\.consul/)
  assert.equal(scene.leaves.length, 1)
})
