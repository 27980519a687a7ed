/**
 * The files certificate source on real files: what it takes, what it refuses, and that whatever breaks
 * leaves what it had.
 */
import assert from 'node:assert/strict'
import { chmodSync, mkdtempSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, test } from 'node:test'
import { initCa, issueCertificates } from '../../src/authority/operations.ts'
import type { CertificateSource } from '../../src/controlplane/identity/certificate-source.ts'
import { createFilesSource } from '../../src/controlplane/identity/files-source.ts'
import { type Log, silentLog } from '../../src/lib/log.ts'
import type { Leaf, TrustBundle } from '../../src/model/certificate.ts'
import { eventually } from '../harness/eventually.ts'
import { misdated } from '../harness/test-clock.ts'

const HOUR_MS = 3_600_000

/** A CA and a host in a directory of their own, and a source that follows the host's files. */
class Fixture implements AsyncDisposable {
  readonly work = mkdtempSync(join(tmpdir(), 'hostmesh-identity-files-'))
  readonly host = join(this.work, 'host')
  readonly leaves: Leaf[] = []
  readonly bundles: TrustBundle[] = []
  readonly lines: string[] = []
  /** Added to the wall clock that the source sees. */
  clockOffsetMs = 0
  source: CertificateSource | undefined

  constructor() {
    initCa(join(this.work, 'ca'), 'mesh.test')
  }

  issue(ca = 'ca', lifetimeMs?: number): void {
    issueCertificates({
      directory: join(this.work, ca),
      datacenter: 'dc1',
      services: ['web'],
      out: this.host,
      lifetimeMs,
    })
  }

  follow(datacenter?: string): CertificateSource {
    const clock = misdated(() => this.clockOffsetMs)
    const record = (message: string, fields?: Record<string, unknown>): void => {
      this.lines.push(`${message} ${JSON.stringify(fields)}`)
    }
    const log: Log = { ...silentLog, debug: record, info: record, warn: record, error: record }
    this.source = createFilesSource({
      files: { directory: this.host },
      log,
      clock,
      datacenter,
      pollMs: 20,
    })
    this.source.watchRoots((bundle) => this.bundles.push(bundle))
    this.source.watchLeaf('web', (leaf) => this.leaves.push(leaf))
    return this.source
  }

  path(name: string): string {
    return join(this.host, name)
  }

  async hasProblem(pattern: RegExp): Promise<void> {
    await eventually(() => assert.match(this.source?.problems().join('\n') ?? '', pattern))
  }

  async hasNoProblem(): Promise<void> {
    await eventually(() => assert.deepEqual(this.source?.problems(), []))
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.source?.[Symbol.asyncDispose]()
    rmSync(this.work, { recursive: true })
  }
}

test('leaf and roots of a host are handed over once, in a later turn', async () => {
  await using fixture = new Fixture()
  fixture.issue()
  const source = fixture.follow('dc1')
  assert.equal(fixture.leaves.length, 0)
  await eventually(() => assert.equal(fixture.leaves.length, 1))
  assert.equal(fixture.leaves[0]?.spiffeId, 'spiffe://mesh.test/ns/default/dc/dc1/svc/web')
  assert.equal(fixture.bundles.length, 1)
  assert.equal(fixture.bundles[0]?.trustDomain, 'mesh.test')
  assert.deepEqual(source.problems(), [])
})

test('certificates that are issued after the start are taken', async () => {
  await using fixture = new Fixture()
  const source = fixture.follow()
  assert.match(source.problems().join('\n'), /trust-domain: no such file/)
  fixture.issue()
  await eventually(() => assert.equal(fixture.leaves.length, 1))
  await fixture.hasNoProblem()
})

test('a new certificate replaces the old one', async () => {
  await using fixture = new Fixture()
  fixture.issue()
  fixture.follow()
  await eventually(() => assert.equal(fixture.leaves.length, 1))
  fixture.issue()
  await eventually(() => assert.equal(fixture.leaves.length, 2))
  const [before, after] = fixture.leaves
  assert.notEqual(before?.serialNumber, after?.serialNumber)
})

test('a second watch hears the current leaf, and a closed one hears nothing more', async () => {
  await using fixture = new Fixture()
  fixture.issue()
  const source = fixture.follow()
  await eventually(() => assert.equal(fixture.leaves.length, 1))
  const late: Leaf[] = []
  const watch = source.watchLeaf('web', (leaf) => late.push(leaf))
  await eventually(() => assert.equal(late.length, 1))
  watch[Symbol.dispose]()
  watch[Symbol.dispose]()
  fixture.issue()
  await eventually(() => assert.equal(fixture.leaves.length, 2))
  assert.equal(late.length, 1)
})

describe('the last good certificate stays, and the problem is named, when', () => {
  const breakages: Record<string, { readonly spoil: (f: Fixture) => void; readonly says: RegExp }> =
    {
      'the certificate is cut off': {
        spoil: (f) =>
          writeFileSync(f.path('web.pem'), readFileSync(f.path('web.pem')).subarray(0, 200)),
        says: /certificate of web: a CERTIFICATE block is not complete/,
      },
      'the certificate is emptied': {
        spoil: (f) => writeFileSync(f.path('web.pem'), ''),
        says: /certificate of web: it holds no CERTIFICATE block/,
      },
      'the certificate is gone': {
        spoil: (f) => renameSync(f.path('web.pem'), f.path('web.pem.old')),
        says: /web\.pem: no such file/,
      },
      'the key is that of another certificate': {
        spoil: (f) => {
          const key = readFileSync(f.path('web.key'))
          f.issue()
          writeFileSync(f.path('web.key'), key)
        },
        says: /the private key beside it belongs to another certificate/,
      },
      'the key may be read by others': {
        spoil: (f) => chmodSync(f.path('web.key'), 0o644),
        says: /private key .*web\.key: its mode is 0644, so others may read/,
      },
      'the roots are damaged': {
        spoil: (f) => writeFileSync(f.path('roots.pem'), 'nothing'),
        says: /Cannot read the roots: there is no CERTIFICATE block/,
      },
      'the trust domain is another': {
        spoil: (f) => writeFileSync(f.path('trust-domain'), 'Other Mesh'),
        says: /"Other Mesh" as trust domain/,
      },
    }
  for (const [name, { spoil, says }] of Object.entries(breakages))
    test(name, async () => {
      await using fixture = new Fixture()
      fixture.issue()
      fixture.follow()
      await eventually(() => assert.equal(fixture.leaves.length, 1))
      spoil(fixture)
      await fixture.hasProblem(says)
      const last = fixture.leaves.at(-1)
      assert.equal(fixture.bundles.length, 1)
      // And the next good files are taken, without a restart.
      rmSync(fixture.host, { recursive: true })
      fixture.issue()
      await fixture.hasNoProblem()
      await eventually(() =>
        assert.notEqual(fixture.leaves.at(-1)?.serialNumber, last?.serialNumber),
      )
    })
})

test('no line of the log contains a part of a private key', async () => {
  await using fixture = new Fixture()
  fixture.issue()
  fixture.follow()
  await eventually(() => assert.equal(fixture.leaves.length, 1))
  const key = readFileSync(fixture.path('web.key'), 'utf8')
  writeFileSync(fixture.path('web.pem'), key)
  await fixture.hasProblem(/no CERTIFICATE block/)
  writeFileSync(fixture.path('web.key'), key.slice(0, 120))
  fixture.issue()
  await eventually(() => assert.equal(fixture.leaves.length, 2))
  const secrets = key.split('\n').filter((line) => line.length > 20 && !line.includes('---'))
  assert.ok(secrets.length > 0 && fixture.lines.length > 3)
  for (const secret of secrets)
    for (const line of fixture.lines) assert.ok(!line.includes(secret.slice(0, 16)), line)
})

test('a leaf for another datacenter is refused', async () => {
  await using fixture = new Fixture()
  fixture.issue()
  fixture.follow('dc2')
  await fixture.hasProblem(/must name spiffe:\/\/mesh\.test\/ns\/default\/dc\/dc2\/svc\/web/)
  assert.deepEqual(fixture.leaves, [])
})

test('a host whose clock is behind takes its leaf as soon as the clock is right', async () => {
  await using fixture = new Fixture()
  fixture.issue()
  fixture.clockOffsetMs = -HOUR_MS
  fixture.follow()
  await fixture.hasProblem(/valid from .*, and the clock of this host says/)
  assert.deepEqual(fixture.leaves, [])
  fixture.clockOffsetMs = 0
  await eventually(() => assert.equal(fixture.leaves.length, 1), { withinMs: 15_000 })
  await fixture.hasNoProblem()
})

test('a certificate that was taken while the clock was ahead is a problem after it was put back, until it begins', async () => {
  await using fixture = new Fixture()
  fixture.issue('ca', HOUR_MS)
  const source = fixture.follow()
  await eventually(() => assert.equal(fixture.leaves.length, 1))
  fixture.clockOffsetMs = -2 * HOUR_MS
  assert.match(
    source.problems().join('\n'),
    /^The certificate of web is valid from .*: peers refuse it$/,
  )
  fixture.clockOffsetMs = 0
  assert.deepEqual(source.problems(), [])
})

test('a clock that is 4 minutes behind does no harm', async () => {
  await using fixture = new Fixture()
  fixture.issue()
  fixture.clockOffsetMs = -240_000
  fixture.follow()
  await eventually(() => assert.equal(fixture.leaves.length, 1))
})

test('a certificate near its end, and one past it, are problems', async () => {
  await using fixture = new Fixture()
  fixture.issue('ca', HOUR_MS)
  const source = fixture.follow()
  await eventually(() => assert.equal(fixture.leaves.length, 1))
  assert.deepEqual(source.problems(), [])
  fixture.clockOffsetMs = HOUR_MS * 0.9
  assert.match(
    source.problems().join('\n'),
    /^The certificate of web ends at .* has not been renewed$/,
  )
  fixture.clockOffsetMs = HOUR_MS * 2
  assert.match(
    source.problems().join('\n'),
    /^The certificate of web expired at .*: peers refuse it$/,
  )
})

test('a second CA of the same trust domain joins the roots, and leaves of both are taken', async () => {
  await using fixture = new Fixture()
  fixture.issue()
  fixture.follow()
  await eventually(() => assert.equal(fixture.leaves.length, 1))
  initCa(join(fixture.work, 'ca2'), 'mesh.test')
  fixture.issue('ca2')
  await eventually(() => assert.equal(fixture.leaves.length, 2))
  assert.equal(fixture.bundles.at(-1)?.rootsPem.length, 2)
  await fixture.hasNoProblem()
})

test('a leaf below a root that is not trusted waits for the root', async () => {
  await using fixture = new Fixture()
  fixture.issue()
  initCa(join(fixture.work, 'ca2'), 'mesh.test')
  const oldRoots = readFileSync(fixture.path('roots.pem'))
  fixture.issue('ca2')
  const newRoots = readFileSync(fixture.path('roots.pem'))
  writeFileSync(fixture.path('roots.pem'), oldRoots)
  fixture.follow()
  await fixture.hasProblem(/none of the 1 roots of mesh\.test stands behind it/)
  assert.deepEqual(fixture.leaves, [])
  writeFileSync(fixture.path('roots.pem'), newRoots)
  await eventually(() => assert.equal(fixture.leaves.length, 1))
})

test('a service that is called roots is refused by name', async () => {
  await using fixture = new Fixture()
  fixture.issue()
  const source = fixture.follow()
  source.watchLeaf('roots', () => assert.fail('It was taken'))
  await fixture.hasProblem(/service called roots/)
})

test('a closed source calls nobody any more', async () => {
  await using fixture = new Fixture()
  fixture.issue()
  await fixture.follow()[Symbol.asyncDispose]()
  const heardBeforeClose = fixture.leaves.length
  fixture.issue()
  // A second source sees the new files: the first would have, too.
  await using other = createFilesSource({
    files: { directory: fixture.host },
    log: silentLog,
    pollMs: 20,
  })
  const seen: Leaf[] = []
  other.watchLeaf('web', (leaf) => seen.push(leaf))
  await eventually(() => assert.equal(seen.length, 1))
  fixture.issue()
  await eventually(() => assert.equal(seen.length, 2))
  assert.equal(heardBeforeClose, 0)
  assert.deepEqual(fixture.leaves, [])
  assert.deepEqual(fixture.bundles, [])
})
