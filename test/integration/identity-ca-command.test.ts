/**
 * `hostmesh ca` as a person meets it: files, permissions, words, exit codes.
 */
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import {
  chmodSync,
  chownSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, beforeEach, describe, test } from 'node:test'
import { initCa } from '../../src/authority/operations.ts'

const top = mkdtempSync(join(tmpdir(), 'hostmesh-identity-command-'))
after(() => rmSync(top, { recursive: true }))
let work = top
let ca = ''
let host = ''
beforeEach(() => {
  work = mkdtempSync(join(top, 'case-'))
  ca = join(work, 'ca')
  host = join(work, 'host')
})

interface Outcome {
  readonly code: number | null
  readonly out: string
  readonly err: string
}

const program = join(import.meta.dirname, '../../scripts/hostmesh')

/** Runs the program under the widest umask: permissions must not depend on it. */
function hostmesh(...argv: string[]): Outcome {
  const { status, stdout, stderr } = spawnSync(
    'sh',
    ['-c', 'umask 0; exec "$0" "$@"', program, ...argv],
    { encoding: 'utf8', timeout: 20_000 },
  )
  return { code: status, out: stdout, err: stderr }
}

function init(): Outcome {
  return hostmesh('ca', 'init', '--directory', ca, '--trust-domain', 'mesh.test')
}

function issue(...more: string[]): Outcome {
  return hostmesh('ca', 'issue', '--directory', ca, '--out', host, ...more)
}

function modeOf(path: string): string {
  return (statSync(path).mode & 0o7777).toString(8)
}

test('init makes a key that only its owner can read, and says what it made', () => {
  const { code, out, err } = init()
  assert.equal(`${code}${err}`, '0')
  assert.deepEqual(readdirSync(ca).toSorted(), ['ca.key', 'ca.pem'])
  assert.deepEqual(
    [modeOf(ca), modeOf(join(ca, 'ca.key')), modeOf(join(ca, 'ca.pem'))],
    ['700', '600', '644'],
  )
  assert.match(out, /trust domain {2}mesh\.test\n/)
  assert.match(out, /valid {9}\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ to 20\d\d-/)
  assert.doesNotMatch(out, /PRIVATE/)
  assert.equal(
    hostmesh('ca', 'show', '--directory', ca).out.split('\n').slice(1).join(),
    out.split('\n').slice(1).join(),
  )
})

test('init never replaces a CA, not even half of one', () => {
  init()
  const before = readFileSync(join(ca, 'ca.key'), 'utf8')
  for (const missing of [undefined, 'ca.pem']) {
    if (missing !== undefined) rmSync(join(ca, missing))
    const { code, err } = init()
    assert.equal(code, 1)
    assert.match(err, /Cannot make a CA in .*: it holds one already/)
    assert.equal(readFileSync(join(ca, 'ca.key'), 'utf8'), before)
  }
})

test('issue writes what a host needs, keys for their owner only, and says when they expire', () => {
  initCa(ca, 'mesh.test')
  const { code, out, err } = issue('--service', 'web', '--service', 'db', '--lifetime', '24h')
  assert.equal(`${code}${err}`, '0')
  assert.deepEqual(readdirSync(host).toSorted(), [
    'db.key',
    'db.pem',
    'roots.pem',
    'trust-domain',
    'web.key',
    'web.pem',
  ])
  assert.deepEqual(
    ['db.key', 'db.pem', 'web.key', 'roots.pem'].map((name) => modeOf(join(host, name))),
    ['600', '644', '600', '644'],
  )
  assert.equal(readFileSync(join(host, 'trust-domain'), 'utf8'), 'mesh.test\n')
  assert.equal(
    readFileSync(join(host, 'roots.pem'), 'utf8'),
    readFileSync(join(ca, 'ca.pem'), 'utf8'),
  )
  assert.match(out, /^Issued 2 certificates; the host trusts 1 root of mesh\.test\n/)
  const [, end = ''] =
    /spiffe:\/\/mesh\.test\/ns\/default\/dc\/dc1\/svc\/web, expires (\S+),/.exec(out) ?? []
  assert.ok(Math.abs(Date.parse(end) - Date.now() - 86_400_000) < 60_000, out)
  for (const name of readdirSync(host)) assert.ok(out.includes(`  ${join(host, name)}\n`), out)
})

test('issue gives the files to the owner of the directory when root runs it', () => {
  assert.equal(process.getuid?.(), 0, 'this test must run as root')
  initCa(ca, 'mesh.test')
  mkdirSync(host)
  chownSync(host, 12_345, 12_346)
  issue('--service', 'web')
  for (const name of readdirSync(host)) {
    const { uid, gid } = statSync(join(host, name))
    assert.deepEqual([uid, gid], [12_345, 12_346], name)
  }
})

describe('issue refuses, with a hint and without writing anything,', () => {
  const cases: Record<
    string,
    { before?: () => void; words: string[]; code: number; says: RegExp }
  > = {
    'a service name that is none': {
      words: ['--service', 'Web_1'],
      code: 2,
      says: /"Web_1": it is not a service name[\s\S]*Use a-z/,
    },
    'a service name that leaves the directory': {
      words: ['--service', 'x/../../etc'],
      code: 2,
      says: /it is not a service name/,
    },
    'the name roots': {
      words: ['--service', 'roots'],
      code: 2,
      says: /Give the service another name/,
    },
    'a second service that is wrong': {
      words: ['--service', 'web', '*'],
      code: 2,
      says: /"\*": it is not a service name/,
    },
    'a datacenter that is none': {
      words: ['--service', 'web', '--datacenter', 'dc/1'],
      code: 2,
      says: /datacenter "dc\/1"/,
    },
    'a lifetime without unit': {
      words: ['--service', 'web', '--lifetime', '72'],
      code: 2,
      says: /Must be a duration such as 72h/,
    },
    'a lifetime of a second': {
      words: ['--service', 'web', '--lifetime', '1s'],
      code: 2,
      says: /1m to 365d/,
    },
    'no service': { words: [], code: 2, says: /--service/ },
    'a CA that is not there': {
      before: () => rmSync(ca, { recursive: true }),
      words: ['--service', 'web'],
      code: 1,
      says: /there is no ca\.pem[\s\S]*hostmesh ca init/,
    },
    'a CA whose key others may read': {
      before: () => chmodSync(join(ca, 'ca.key'), 0o644),
      words: ['--service', 'web'],
      code: 1,
      says: /ca\.key: its mode is 0644[\s\S]*chmod 0600/,
    },
    'a CA whose key is that of another': {
      before: () => {
        initCa(join(work, 'b'), 'b.test')
        writeFileSync(join(ca, 'ca.key'), readFileSync(join(work, 'b', 'ca.key')))
      },
      words: ['--service', 'web'],
      code: 1,
      says: /ca\.key does not belong to ca\.pem/,
    },
  }
  for (const [name, { before, words, code, says }] of Object.entries(cases))
    test(name, () => {
      initCa(ca, 'mesh.test')
      before?.()
      const outcome = issue(...words)
      assert.match(outcome.err, says)
      assert.equal(outcome.code, code, outcome.err)
      assert.throws(() => readdirSync(host), { code: 'ENOENT' })
    })

  test('the directory of a CA, and the host of another mesh', () => {
    initCa(ca, 'mesh.test')
    const other = join(work, 'other')
    initCa(other, 'other.test')
    issue('--service', 'web')
    const before = readFileSync(join(host, 'web.pem'), 'utf8')
    const intoCa = hostmesh('ca', 'issue', '--directory', ca, '--out', other, '--service', 'web')
    assert.match(intoCa.err, /it is the directory of a CA/)
    assert.deepEqual(readdirSync(other).toSorted(), ['ca.key', 'ca.pem'])
    const mixed = hostmesh('ca', 'issue', '--directory', other, '--out', host, '--service', 'web')
    assert.match(mixed.err, /that host is of trust domain mesh\.test, the CA of other\.test/)
    assert.equal(readFileSync(join(host, 'web.pem'), 'utf8'), before)
  })
})

test('init refuses a trust domain that fits no SPIFFE ID', () => {
  for (const name of ['Mesh.Test', 'spiffe://mesh.test', 'mesh.test/', 'a'.repeat(129)]) {
    const outcome = hostmesh('ca', 'init', '--directory', ca, '--trust-domain', name)
    assert.equal(outcome.code, 2)
    assert.match(outcome.err, /as trust domain: it is not a lower-case DNS name/)
  }
  assert.throws(() => readdirSync(ca), { code: 'ENOENT' })
})

test('issue leaves no temporary file behind when it cannot write', () => {
  initCa(ca, 'mesh.test')
  mkdirSync(join(host, 'web.key'), { recursive: true })
  const { code, err } = issue('--service', 'web')
  assert.equal(code, 1)
  assert.match(err, /Cannot write certificates into/)
  assert.deepEqual(
    readdirSync(host).filter((name) => name.endsWith('.tmp')),
    [],
  )
})
