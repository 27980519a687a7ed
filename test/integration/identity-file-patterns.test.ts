/**
 * Certificates at paths of an operator's choice, as Vault Agent, step-ca and cert-manager write them.
 */
import assert from 'node:assert/strict'
import {
  copyFileSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { initCa, issueCertificates } from '../../src/authority/operations.ts'
import type { CertificateSource } from '../../src/controlplane/identity/certificate-source.ts'
import { createFilesSource } from '../../src/controlplane/identity/files-source.ts'
import { silentLog } from '../../src/lib/log.ts'
import type { Leaf, TrustBundle } from '../../src/model/certificate.ts'
import { eventually } from '../harness/eventually.ts'

/** Files as another tool would lay them out, and a source that follows them. */
class Fixture implements AsyncDisposable {
  readonly work = mkdtempSync(join(tmpdir(), 'hostmesh-patterns-'))
  readonly tls = join(this.work, 'tls')
  readonly leaves: Leaf[] = []
  readonly bundles: TrustBundle[] = []
  private readonly sources: CertificateSource[] = []
  private issues = 0

  constructor(trustDomain = 'mesh.test') {
    initCa(join(this.work, 'ca'), trustDomain)
    mkdirSync(this.tls)
  }

  /** Has a certificate made and returns the folder it is in. */
  issue(service: string): string {
    this.issues += 1
    const out = join(this.work, `issued-${this.issues}`)
    issueCertificates({
      directory: join(this.work, 'ca'),
      datacenter: 'dc1',
      services: [service],
      out,
    })
    return out
  }

  /** A folder with tls.crt and tls.key. */
  folder(service: string): string {
    const issued = this.issue(service)
    copyFileSync(join(issued, `${service}.pem`), join(issued, 'tls.crt'))
    copyFileSync(join(issued, `${service}.key`), join(issued, 'tls.key'))
    copyFileSync(join(issued, 'roots.pem'), join(this.tls, 'ca.crt'))
    return issued
  }

  follow(trustDomain?: string): CertificateSource {
    const source = createFilesSource({
      files: {
        certificate: join(this.tls, '{service}/tls.crt'),
        key: join(this.tls, '{service}/tls.key'),
        roots: join(this.tls, 'ca.crt'),
        trustDomain,
      },
      log: silentLog,
      datacenter: 'dc1',
      pollMs: 20,
    })
    this.sources.push(source)
    source.watchRoots((bundle) => this.bundles.push(bundle))
    source.watchLeaf('web', (leaf) => this.leaves.push(leaf))
    return source
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const source of this.sources) await source[Symbol.asyncDispose]()
    rmSync(this.work, { recursive: true })
  }
}

test('a certificate at a path of its own is taken, and says which trust domain the roots are of', async () => {
  await using fixture = new Fixture('some.other.test')
  symlinkSync(fixture.folder('web'), join(fixture.tls, 'web'))
  const source = fixture.follow()
  await eventually(() => assert.equal(fixture.leaves.length, 1))
  assert.equal(fixture.bundles[0]?.trustDomain, 'some.other.test')
  assert.deepEqual(source.problems(), [])
})

test('a folder that is replaced by swapping a symbolic link is read again', async () => {
  await using fixture = new Fixture()
  symlinkSync(fixture.folder('web'), join(fixture.tls, 'web'))
  const source = fixture.follow('mesh.test')
  await eventually(() => assert.equal(fixture.leaves.length, 1))
  symlinkSync(fixture.folder('web'), join(fixture.tls, 'new'))
  renameSync(join(fixture.tls, 'new'), join(fixture.tls, 'web'))
  await eventually(() => assert.equal(fixture.leaves.length, 2))
  assert.notEqual(fixture.leaves[0]?.serialNumber, fixture.leaves[1]?.serialNumber)
  await eventually(() => assert.deepEqual(source.problems(), []))
})

test('half of a new pair keeps the old one until the other half is there', async () => {
  await using fixture = new Fixture()
  const inUse = join(fixture.tls, 'web')
  renameSync(fixture.folder('web'), inUse)
  const source = fixture.follow('mesh.test')
  await eventually(() => assert.equal(fixture.leaves.length, 1))
  const next = fixture.folder('web')
  const certificate = readFileSync(join(next, 'tls.crt'))
  writeFileSync(join(inUse, 'tls.crt'), certificate.subarray(0, 300))
  await eventually(() =>
    assert.match(source.problems().join(), /CERTIFICATE block is not complete/),
  )
  writeFileSync(join(inUse, 'tls.crt'), certificate)
  await eventually(() => assert.match(source.problems().join(), /belongs to another certificate/))
  assert.equal(fixture.leaves.length, 1)
  renameSync(join(next, 'tls.key'), join(inUse, 'tls.key'))
  await eventually(() => assert.equal(fixture.leaves.length, 2))
  await eventually(() => assert.deepEqual(source.problems(), []))
})

test('a certificate of another trust domain than the one that was set is refused', async () => {
  await using fixture = new Fixture('evil.test')
  symlinkSync(fixture.folder('web'), join(fixture.tls, 'web'))
  const source = fixture.follow('mesh.test')
  await eventually(() =>
    assert.match(source.problems().join(), /it must name spiffe:\/\/mesh\.test/),
  )
  assert.equal(fixture.leaves.length, 0)
})

test('the certificate of another service is refused, and a name is never a path', async () => {
  await using fixture = new Fixture()
  symlinkSync(fixture.folder('db'), join(fixture.tls, 'web'))
  const source = fixture.follow('mesh.test')
  await eventually(() =>
    assert.match(source.problems().join(), /must name .*svc\/web and names .*svc\/db/),
  )
  source.watchLeaf('../web', () => assert.fail('It was taken'))
  await eventually(() => assert.match(source.problems().join(), /it is not a service name/))
})
