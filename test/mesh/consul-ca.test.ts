/**
 * Certificates from a real Consul agent: arrival, rotation of the CA, restart of the agent.
 */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { generateKeyPairSync } from 'node:crypto'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, describe, test } from 'node:test'
import { Follower } from '../../src/controlplane/catalog/consul/blocking-query.ts'
import {
  type ConsulTransport,
  createTransport,
} from '../../src/controlplane/catalog/consul/transport.ts'
import type { CertificateSource } from '../../src/controlplane/identity/certificate-source.ts'
import { createConsulSource } from '../../src/controlplane/identity/consul-ca.ts'
import { parseCertificates, readLeaf } from '../../src/controlplane/identity/x509.ts'
import { silentLog } from '../../src/lib/log.ts'
import type { Leaf, TrustBundle } from '../../src/model/certificate.ts'
import { ConsulAgent, LONE_SERVER } from '../harness/consul.ts'
import { eventually } from '../harness/eventually.ts'
import { Network } from '../harness/network.ts'

describe('with a real Consul agent', () => {
  const work = mkdtempSync(join(tmpdir(), 'hostmesh-consul-ca-'))
  const leavesByService = new Map<string, Leaf[]>()
  const bundles: TrustBundle[] = []
  let network: Network
  let agent: ConsulAgent
  let transport: ConsulTransport
  let follower: Follower
  let source: CertificateSource

  const leaves = (service: string): Leaf[] => leavesByService.get(service) ?? []
  const watch = (service: string): void => {
    leavesByService.set(service, [])
    source.watchLeaf(service, (leaf) => leaves(service).push(leaf))
  }

  before(async () => {
    network = await Network.create(['consul'])
    agent = new ConsulAgent(join(work, 'agent'), network.host('consul'))
    await agent.start({
      ...LONE_SERVER,
      node_name: 'consul-server',
    })
    await agent.ready()
    transport = createTransport({ address: `unix://${agent.socketPath}`, requestTimeout: 10_000 })
    follower = new Follower(transport, { log: silentLog })
    source = createConsulSource({ follower, log: silentLog, datacenter: 'dc1' })
    source.watchRoots((bundle) => bundles.push(bundle))
    watch('web')
    watch('db')
  })

  after(async () => {
    await source?.[Symbol.asyncDispose]()
    follower?.[Symbol.dispose]()
    transport?.[Symbol.dispose]()
    await agent?.[Symbol.asyncDispose]()
    await network?.[Symbol.asyncDispose]()
    rmSync(work, { recursive: true, force: true })
  })

  test('each service gets a leaf of its own that its roots stand behind', async () => {
    await eventually(() => assert.ok(leaves('web').length === 1 && leaves('db').length === 1), {
      withinMs: 30_000,
    })
    const [bundle] = bundles
    assert.ok(bundle !== undefined && bundle.rootsPem.length === 1)
    assert.match(bundle.trustDomain, /^[0-9a-f-]{36}\.consul$/)
    for (const service of ['web', 'db']) {
      const [leaf] = leaves(service)
      assert.equal(
        leaf?.spiffeId,
        `spiffe://${bundle.trustDomain}/ns/default/dc/dc1/svc/${service}`,
      )
      assert.match(leaf.privateKeyPem, /BEGIN EC PRIVATE KEY/)
      assert.ok(leaf.notAfterMs > Date.now() + 71 * 3_600_000)
    }
    assert.notEqual(leaves('web')[0]?.privateKeyPem, leaves('db')[0]?.privateKeyPem)
    assert.deepEqual(source.problems(), [])
  })

  test('an agent that was restarted issues new leaves, and they are taken', async () => {
    const serial = leaves('web').at(-1)?.serialNumber
    await agent.kill()
    await agent.start()
    await agent.ready()
    await eventually(() => assert.notEqual(leaves('web').at(-1)?.serialNumber, serial), {
      withinMs: 60_000,
      everyMs: 100,
    })
    assert.equal(bundles.length, 1)
    assert.deepEqual(source.problems(), [])
  })

  test('a rotation to an RSA root brings the second root, then leaves that hold for both', async () => {
    const old = bundles.at(-1)
    assert.ok(old)
    const serials = ['web', 'db'].map((service) => leaves(service).at(-1)?.serialNumber)
    await agent.put('/v1/connect/ca/configuration', {
      Provider: 'consul',
      Config: {
        PrivateKey: generateKeyPairSync('rsa', { modulusLength: 2048 })
          .privateKey.export({ type: 'pkcs1', format: 'pem' })
          .toString(),
        PrivateKeyType: 'rsa',
        PrivateKeyBits: 2048,
        LeafCertTTL: '72h',
      },
    })
    await eventually(() => assert.equal(bundles.at(-1)?.rootsPem.length, 2), { withinMs: 30_000 })
    assert.equal(bundles.at(-1)?.trustDomain, old.trustDomain)
    await eventually(
      () =>
        assert.ok(
          ['web', 'db'].every((service, i) => leaves(service).at(-1)?.serialNumber !== serials[i]),
        ),
      { withinMs: 90_000, everyMs: 100 },
    )
    const renewed = leaves('web').at(-1)
    assert.ok(renewed)
    assert.equal(parseCertificates(renewed.certificatePem, 'the chain').length, 2)
    // A host that does not have the new root yet still accepts the new leaf, and OpenSSL agrees.
    assert.equal(readLeaf(renewed, old, Date.now()).spiffeId, renewed.spiffeId)
    const rootPath = join(work, 'old-root.pem')
    const chainPath = join(work, 'chain.pem')
    writeFileSync(rootPath, old.rootsPem.join(''))
    writeFileSync(chainPath, renewed.certificatePem)
    assert.match(
      execFileSync(
        'openssl',
        [
          'verify',
          '-purpose',
          'sslserver',
          '-CAfile',
          rootPath,
          '-untrusted',
          chainPath,
          chainPath,
        ],
        { encoding: 'utf8' },
      ),
      /OK/,
    )
    assert.deepEqual(source.problems(), [])
  })

  test('an agent that is gone leaves certificates and roots in use', async () => {
    await agent.kill()
    await eventually(() => assert.ok(follower.health().some(({ unreachable }) => unreachable)), {
      withinMs: 60_000,
    })
    assert.deepEqual(source.problems(), [])
    const late: Leaf[] = []
    source.watchLeaf('web', (leaf) => late.push(leaf))
    await eventually(() => assert.equal(late.length, 1))
    assert.equal(late[0]?.serialNumber, leaves('web').at(-1)?.serialNumber)
  })
})
