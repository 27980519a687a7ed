/**
 * The set-up finds Debian's own entry among a machine's apt sources and derives bullseye from it.
 *
 * The samples are entries as Debian, its cloud images, mirrors and third parties write them. What goes
 * wrong here would put a foreign repository, or an unsigned one, into a machine's sources.
 */
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { globSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { after, test } from 'node:test'

const scripts = resolve(import.meta.dirname, '../../scripts')
const setup = join(scripts, 'setup.sh')
const aptSource = join(scripts, 'setup/apt-source.ts')
const folder = mkdtempSync(join(tmpdir(), 'hostmesh-setup-source-'))
after(() => rmSync(folder, { recursive: true }))

/** What the set-up prints for a machine of `codename` with these source files; undefined when it finds none. */
function derive(codename: string, files: Readonly<Record<string, string>>): string | undefined {
  const paths = Object.entries(files).map(([name, text]) => {
    const path = join(folder, name)
    writeFileSync(path, text)
    return path
  })
  const run = spawnSync(process.execPath, [aptSource, codename, ...paths], { encoding: 'utf8' })
  assert.equal(run.stderr, '')
  assert.equal(run.status === 0, run.stdout !== '', `status ${run.status} with '${run.stdout}'`)
  return run.status === 0 ? run.stdout.trimEnd() : undefined
}

const keyring = '/usr/share/keyrings/debian-archive-keyring.gpg'

test('a deb822 entry keeps its URI and keyring, and comments inside of it do no harm', () => {
  const stanza = derive('bookworm', {
    'debian.sources': `Types: deb
# http://snapshot.example.net/archive/debian/20250520T000000Z
URIs: http://mirror.example.net/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: ${keyring}

Types: deb
URIs: http://mirror.example.net/debian-security
Suites: bookworm-security
Components: main
Signed-By: ${keyring}
`,
  })
  assert.equal(
    stanza,
    `Types: deb
URIs: http://mirror.example.net/debian
Suites: bullseye
Components: main
Signed-By: ${keyring}`,
  )
})

test('a one-line entry without options becomes a stanza that leaves the choice of keyring to apt', () => {
  const stanza = derive('bookworm', {
    'sources.list': `# see sources.list(5)
deb-src http://mirror.example.net/debian bookworm main
deb http://mirror.example.net/debian/ bookworm main contrib non-free-firmware # the main one
deb http://security.example.net/debian-security bookworm-security main
`,
  })
  assert.equal(
    stanza,
    `Types: deb
URIs: http://mirror.example.net/debian/
Suites: bullseye
Components: main`,
  )
})

test('options of a one-line entry are carried over: keyring, architectures, trust', () => {
  const stanza = derive('trixie', {
    'a.list': `deb [ arch=amd64,arm64 signed-by=${keyring} trusted=yes ] https://mirror.example.net/debian trixie main\n`,
  })
  assert.equal(
    stanza,
    `Types: deb
URIs: https://mirror.example.net/debian
Suites: bullseye
Components: main
Architectures: amd64 arm64
Trusted: yes
Signed-By: ${keyring}`,
  )
})

test("the mirror list of Debian's cloud images is taken as it is", () => {
  const stanza = derive('bookworm', {
    'debian.sources': `Types: deb deb-src
URIs: mirror+file:/etc/apt/mirrors/debian.list
Suites: bookworm bookworm-updates bookworm-backports
Components: main

Types: deb deb-src
URIs: mirror+file:/etc/apt/mirrors/debian-security.list
Suites: bookworm-security
Components: main
`,
  })
  assert.match(stanza ?? '', /^URIs: mirror\+file:\/etc\/apt\/mirrors\/debian\.list$/m)
})

test('a key embedded in the entry is carried over line by line', () => {
  const key = ` -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 mDMEY865UxYJKwYBBAHaRw8BAQdAd7Z0srwuhlB6JKFkcf4HU4SSS/xcRfwEQWzr
 -----END PGP PUBLIC KEY BLOCK-----`
  const stanza = derive('bookworm', {
    'debian.sources': `Types: deb
URIs: https://mirror.example.net/debian
Suites: bookworm
Components: main
Signed-By:
${key}
`,
  })
  assert.ok(stanza?.endsWith(`Signed-By:\n${key}`), stanza)
})

test('third parties that publish "bookworm main" are passed over, whatever their order', () => {
  const files = {
    'aaa-vendor.list':
      'deb [signed-by=/usr/share/keyrings/vendor.gpg] https://apt.vendor.example bookworm main\n',
    'bbb-container.list':
      'deb [signed-by=/etc/apt/keyrings/container.asc] https://download.container.example/linux/debian bookworm stable\n',
    'ccc-database.list': 'deb https://apt.database.example/pub/repos/apt bookworm-pgdg main\n',
    'debian.sources': `Types: deb\nURIs: http://mirror.example.net/debian\nSuites: bookworm\nComponents: main\nSigned-By: ${keyring}\n`,
    'zzz-other.list': 'deb https://packages.other.example/debian bookworm main\n',
  }
  assert.match(derive('bookworm', files) ?? '', /^URIs: http:\/\/mirror\.example\.net\/debian$/m)
  const reversed = Object.fromEntries(Object.entries(files).toReversed())
  assert.match(derive('bookworm', reversed) ?? '', /^URIs: http:\/\/mirror\.example\.net\/debian$/m)
})

test('a machine with no Debian source of its own release gets none', () => {
  assert.equal(
    derive('bookworm', {
      'vendor.list':
        'deb [signed-by=/usr/share/keyrings/vendor.gpg] https://apt.vendor.example bookworm main\n',
      'security.list': 'deb http://mirror.example.net/debian-security bookworm-security main\n',
      'disc.list': 'deb cdrom:[Debian GNU/Linux 12 _Bookworm_]/ bookworm main\n',
      'off.sources': `Enabled: no\nTypes: deb\nURIs: http://mirror.example.net/debian\nSuites: bookworm\nComponents: main\nSigned-By: ${keyring}\n`,
      'sources.sources': `Types: deb-src\nURIs: http://mirror.example.net/debian\nSuites: bookworm\nComponents: main\nSigned-By: ${keyring}\n`,
    }),
    undefined,
  )
  assert.equal(derive('bookworm', {}), undefined)
})

test('a source that follows "stable" serves when none names the release', () => {
  const stanza = derive('bookworm', {
    'sources.list': 'deb http://mirror.example.net/debian stable main\n',
  })
  assert.match(stanza ?? '', /^Suites: bullseye$/m)
})

test('no mirror or registry is named by the set-up itself', () => {
  for (const path of [setup, ...globSync(join(scripts, 'setup/*'))])
    assert.doesNotMatch(
      readFileSync(path, 'utf8'),
      /https?:\/\/|\b(?:deb|ftp|archive)\.debian|npmjs|pypi/,
      path,
    )
})

test('an unknown purpose is refused with the list of known ones', () => {
  const run = spawnSync('sh', [setup, 'everything'], { encoding: 'utf8' })
  assert.equal(run.status, 1)
  assert.match(run.stderr, /unknown purpose\n {2}next: use one of check, test, demo, bench/)
})
