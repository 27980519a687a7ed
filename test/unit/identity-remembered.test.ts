/**
 * Claims about src/controlplane/identity/remembered.ts, with real certificates and an inner source whose
 * offers the test makes.
 */
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import type { CertificateSource } from '../../src/controlplane/identity/certificate-source.ts'
import { RememberedCertificates } from '../../src/controlplane/identity/remembered.ts'
import { readLeaf } from '../../src/controlplane/identity/x509.ts'
import { type Log, silentLog } from '../../src/lib/log.ts'
import type { Leaf, TrustBundle } from '../../src/model/certificate.ts'
import type { Problem } from '../../src/model/problem.ts'
import { TestClock } from '../harness/test-clock.ts'
import { HOUR_MS, makeAuthority, makeLeaf, type TestAuthority } from './identity-fixtures.ts'
import { FakeDisk } from './remembered-fixtures.ts'

class ScriptedSource implements CertificateSource {
  readonly description: string = 'Consul Connect CA'
  readonly leaves = new Map<string, (leaf: Leaf) => void>()
  giveRoots: (bundle: TrustBundle) => void = () => assert.fail('no watch')
  watchLeaf(service: string, onLeaf: (leaf: Leaf) => void): Disposable {
    this.leaves.set(service, onLeaf)
    return { [Symbol.dispose]: () => this.leaves.delete(service) }
  }
  watchRoots(onRoots: (bundle: TrustBundle) => void): Disposable {
    this.giveRoots = onRoots
    return { [Symbol.dispose]: () => undefined }
  }
  problems(): readonly Problem[] {
    return []
  }
  async [Symbol.asyncDispose](): Promise<void> {}
}

/** One host over several runs. */
class Scene {
  readonly disk = new FakeDisk()
  readonly logged: string[] = []
  readonly clock = new TestClock({ wallMs: Date.now() })
  inner = new ScriptedSource()
  source: RememberedCertificates | undefined
  leaves: Leaf[] = []
  bundles: TrustBundle[] = []

  start(services: readonly string[] = ['web']): RememberedCertificates {
    const note = (message: string, fields?: object): void => {
      this.logged.push(`${message} ${JSON.stringify(fields)}`)
    }
    const log: Log = { ...silentLog, info: note, warn: note, child: () => log }
    this.inner = new ScriptedSource()
    this.leaves = []
    this.bundles = []
    const source = new RememberedCertificates(this.inner, {
      file: this.disk.open(),
      log,
      datacenter: 'dc1',
      clock: this.clock,
    })
    source.watchRoots((bundle) => this.bundles.push(bundle))
    for (const service of services) source.watchLeaf(service, (leaf) => this.leaves.push(leaf))
    return source
  }

  give(authority: TestAuthority, service = 'web', lifetimeMs = HOUR_MS): Leaf {
    const pem = makeLeaf(authority, service, this.clock.wallMs(), lifetimeMs)
    const leaf = readLeaf({ service, ...pem }, authority.bundle, this.clock.wallMs())
    this.inner.leaves.get(service)?.(leaf)
    return leaf
  }

  /** A run that gets roots and a leaf for each service. */
  async run(authority: TestAuthority, services: readonly string[] = ['web']): Promise<void> {
    const source = this.start(services)
    this.inner.giveRoots(authority.bundle)
    for (const service of services) this.give(authority, service)
    this.disk.writtenAtMs = this.clock.wallMs()
    await source[Symbol.asyncDispose]()
  }
}

const turn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve))

describe('remembered certificates', () => {
  test('are in use at once after a restart, until the source gives others', async () => {
    const scene = new Scene()
    const authority = makeAuthority()
    await scene.run(authority)
    await using source = scene.start()
    await turn()
    assert.deepEqual(scene.bundles, [authority.bundle])
    assert.equal(scene.leaves[0]?.service, 'web')
    assert.deepEqual(source.remembered(), {
      count: 2,
      isKnown: true,
      sinceMs: scene.disk.writtenAtMs,
    })
    const next = makeAuthority()
    const bundle = { ...authority.bundle, rootsPem: [next.certificatePem] }
    scene.inner.giveRoots(bundle)
    const leaf = scene.give(next)
    assert.deepEqual(scene.bundles.at(-1), bundle)
    assert.deepEqual(scene.leaves.at(-1), leaf)
    assert.deepEqual(source.remembered(), { count: 0, isKnown: true, sinceMs: undefined })
    await source[Symbol.asyncDispose]()
    scene.start()
    await turn()
    assert.deepEqual(scene.leaves, [leaf])
  })

  test('that have expired are not used, and that is a problem until the source has others', async () => {
    const scene = new Scene()
    const authority = makeAuthority()
    await scene.run(authority)
    scene.clock.pass(2 * HOUR_MS)
    await using source = scene.start()
    await turn()
    assert.deepEqual(scene.leaves, [])
    assert.match(source.problems().join(), /certificate of web.*expired/)
    scene.inner.giveRoots(authority.bundle)
    scene.give(authority)
    assert.deepEqual(source.problems(), [])
  })

  test('that no remembered root stands behind are not used', async () => {
    const scene = new Scene()
    await scene.run(makeAuthority())
    const other = makeAuthority()
    const body = JSON.parse(scene.disk.text ?? '') as Record<string, unknown>
    scene.disk.text = JSON.stringify({ ...body, rootsPem: [other.certificatePem] })
    await using source = scene.start()
    await turn()
    assert.deepEqual(scene.leaves, [])
    assert.match(source.problems().join(), /web/)
  })

  test('of services that do not run here any more are neither used nor kept', async () => {
    const scene = new Scene()
    const authority = makeAuthority()
    await scene.run(authority, ['web', 'gone'])
    assert.match(scene.disk.text ?? '', /"service":"gone"/)
    await scene.run(authority, ['web'])
    assert.doesNotMatch(scene.disk.text ?? '', /"service":"gone"/)
  })

  test('revoked serial numbers stay revoked', async () => {
    const scene = new Scene()
    const authority = makeAuthority()
    const source = scene.start()
    scene.inner.giveRoots({ ...authority.bundle, revokedSerials: ['0A'] })
    await source[Symbol.asyncDispose]()
    scene.start()
    await turn()
    assert.deepEqual(scene.bundles[0]?.revokedSerials, ['0A'])
  })

  test('roots that come alone do not cost the remembered leaves', async () => {
    const scene = new Scene()
    const authority = makeAuthority()
    await scene.run(authority)
    const source = scene.start()
    await turn()
    scene.inner.giveRoots(authority.bundle)
    await source[Symbol.asyncDispose]()
    scene.start()
    await turn()
    assert.equal(scene.leaves.length, 1)
  })

  test('of another shape are rejected, and neither log nor problem quotes a key', async () => {
    const scene = new Scene()
    const authority = makeAuthority()
    await scene.run(authority)
    const good = scene.disk.text ?? ''
    const key = /PRIVATE KEY-----\\n([A-Za-z0-9+/]{40})/.exec(good)?.[1] ?? assert.fail('no key')
    for (const bad of [
      good.replace('"leaves":[', '"leaves":["x",'),
      good.replace('"certificatePem"', '"certificate"'),
      good.replace(key, key.toLowerCase()),
    ]) {
      scene.disk.text = bad
      const source = scene.start()
      await turn()
      assert.deepEqual(scene.leaves, [])
      const told = `${scene.logged.join()}${source.problems().join()}${scene.disk.rejected}`
      assert.ok(!told.includes(key) && !told.includes(key.toLowerCase()))
      assert.doesNotMatch(told, /PRIVATE KEY/)
    }
    assert.match(scene.disk.rejected ?? '', /shape of certificates/)
  })
})
