/** Claims about src/config/load.ts and lib/yaml-document.ts: every mistake is named, at its place, at once. */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { chmodSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, test } from 'node:test'
import * as fc from 'fast-check'
import { stringify } from 'yaml'
import { describeConfig } from '../../src/config/describe.ts'
import { checkConfig, checkConfigText, loadConfig } from '../../src/config/load.ts'
import type { Config } from '../../src/config/schema.ts'
import { MeshError } from '../../src/lib/errors.ts'

const folder = mkdtempSync(join(tmpdir(), 'hostmesh-config-'))
after(() => rmSync(folder, { recursive: true, force: true }))

const LEAST = `catalog: {kind: file, path: catalog.yaml}
certificates: {kind: files, directory: certs}
`
const WITH_CONSUL = 'catalog: {kind: consul}\ncertificates: {kind: consul}\n'

function problemsOf(text: string, env: Record<string, string> = {}): readonly string[] {
  const checked = checkConfigText(text, { path: '/etc/h.yaml', env, isReadableByAll: true })
  return 'problems' in checked ? checked.problems : []
}

function configOf(text: string, env: Record<string, string> = {}): Config {
  const checked = checkConfigText(text, { path: '/etc/h.yaml', env, isReadableByAll: false })
  assert.ok('config' in checked, 'problems' in checked ? checked.problems.join('\n') : '')
  return checked.config
}

function fileWith(name: string, content: string | Uint8Array): string {
  const path = join(folder, name)
  writeFileSync(path, content)
  return path
}

test('the least configuration gets every default', () => {
  const config = configOf(LEAST)
  assert.equal(config.datacenter, 'dc1')
  assert.equal(config.tunnel.port, 15_443)
  assert.equal(config.capture.mode, 'off')
  assert.equal(config.timeouts.idle, 3_600_000)
  assert.equal(config.timeouts.halfClosed, 300_000)
  assert.deepEqual(config.services, [])
})

test('durations become milliseconds and addresses canonical', () => {
  const config = configOf(
    `${LEAST}node: {address: '::FFFF:10.0.0.5'}\ntimeouts: {connect: 1m500ms, drain: 0s}\n`,
  )
  assert.equal(config.node.address, '10.0.0.5')
  assert.equal(config.timeouts.connect, 60_500)
  assert.equal(config.timeouts.drain, 0)
})

test('relative paths are taken from the folder of the file', () => {
  const config = configOf(`${LEAST}admin: {socket: run/admin.sock}\n`)
  assert.ok(config.catalog.kind === 'file' && config.certificates.kind === 'files')
  assert.equal(config.catalog.path, '/etc/catalog.yaml')
  assert.equal(config.certificates.directory, '/etc/certs')
  assert.equal(config.admin.socket, '/etc/run/admin.sock')
})

test('every violation is reported at once, in the order of the file, with line and column', () => {
  const problems = problemsOf(`catalog: {kind: flie}
certificates: {kind: files, directory: certs}
services:
  - nme: web
    port: "80"
    upstreams:
      - {destination: db, bindport: 5432}
capture: {mode: onn}
workers: 0
timeouts: {idle: 1 hour}
`)
  assert.deepEqual(problems, [
    '/etc/h.yaml:1:17: catalog.kind: Must be one of file, consul, got "flie"; did you mean "file"?',
    '/etc/h.yaml:4:5: services[0].name: Is missing; must be text',
    '/etc/h.yaml:4:5: services[0]: Unknown key "nme"; did you mean "name"?',
    '/etc/h.yaml:5:11: services[0].port: Must be a number, got text; write it without quotes',
    '/etc/h.yaml:7:27: services[0].upstreams[0]: Unknown key "bindport"; did you mean "bindPort"?',
    '/etc/h.yaml:8:17: capture.mode: Must be one of off, on, got "onn"; did you mean "on"?',
    '/etc/h.yaml:9:10: workers: Must be at least 1, got 0',
    '/etc/h.yaml:10:18: timeouts.idle: Must be a duration such as 500ms, 10s or 1h30m, 1ms to 365d, got "1 hour"',
  ])
})

const MISTAKES: readonly [claim: string, text: string, problem: RegExp][] = [
  ['an empty file', '', /^\/etc\/h\.yaml: The file is empty$/],
  ['only a comment', '# nothing\n', /The file is empty/],
  ['a list in place of a map', '- a\n', /Must be a map of keys and values, got a list/],
  [
    'a duplicate key',
    `${LEAST}workers: 1\nworkers: 2\n`,
    /:4:1: Duplicate key "workers", first given in line 3/,
  ],
  ['a tab as indentation', 'catalog:\n\tkind: file\n', /:2:1: Tabs are not allowed/],
  ['an unclosed bracket', 'catalog: {kind: file\n', /:\d+:\d+: .*\}/],
  ['a second document', `${LEAST}---\n${LEAST}`, /:3:1: .*one document/],
  ['an unknown tag', 'catalog: !!js/function x\n', /Unresolved tag/],
  ['a merge key', 'catalog: {kind: file, path: a, <<: {path: b}}\n', /Unknown key "<<"/],
  ['an unknown anchor', 'catalog: *nothing\n', /Unresolved alias/],
  ['a key that is a list', '? [a, b]\n: c\n', /:1:3: A key must be plain text/],
  ['a prototype key', `${LEAST}__proto__: {workers: 3}\n`, /A key must be plain text/],
  [
    'an octal-looking port',
    `${LEAST}tunnel: {port: 0o755000}\n`,
    /tunnel\.port: Must be at most 65535/,
  ],
  ['port 0', `${LEAST}tunnel: {port: 0}\n`, /tunnel\.port: Must be at least 1, got 0/],
  ['port 65536', `${LEAST}tunnel: {port: 65536}\n`, /Must be at most 65535, got 65536/],
  ['a negative number', `${LEAST}workers: -1\n`, /workers: Must be at least 1, got -1/],
  ['not a number', `${LEAST}workers: .nan\n`, /workers: Must be .*number/],
  ['infinity', `${LEAST}workers: .inf\n`, /workers: Must be .*number/],
  ['a fraction', `${LEAST}workers: 1.5\n`, /workers: Must be a whole number, got 1\.5/],
  [
    'yes for true',
    'catalog: {kind: consul, register: yes}\ncertificates: {kind: consul}\n',
    /register: Must be true or false, got "yes"/,
  ],
  [
    'a huge duration',
    `${LEAST}timeouts: {idle: 999999999999999d}\n`,
    /timeouts\.idle: Must be a duration/,
  ],
  ['a negative duration', `${LEAST}timeouts: {idle: -5s}\n`, /timeouts\.idle: Must be a duration/],
  [
    'a duration without unit',
    `${LEAST}timeouts: {idle: 5}\n`,
    /timeouts\.idle: Must be a duration, got a number; give it a unit: 5s or 5ms/,
  ],
  ['a zero timeout', `${LEAST}timeouts: {connect: 0s}\n`, /timeouts\.connect: Must be a duration/],
  [
    'a number for a TLS version',
    `${LEAST}tunnel: {inboundMinVersion: 1.3}\n`,
    /write it in quotes: "1\.3"/,
  ],
  ['nothing for a list', `${LEAST}services:\n`, /:3:1: services: Must be a list, got nothing/],
  [
    'two identities in one',
    `${LEAST}services: [{name: a, identity: {user: a, cgroup: b}}]\n`,
    /Must have exactly one of the keys cgroup, user, sourceAddress/,
  ],
  [
    'a mistyped identity',
    `${LEAST}services: [{name: a, identity: {usr: a}}]\n`,
    /Unknown key "usr"; did you mean "user"/,
  ],
  [
    'an empty identity',
    `${LEAST}services: [{name: a, identity: {}}]\n`,
    /Must have exactly one of the keys/,
  ],
  [
    'a cgroup with a leading slash',
    `${LEAST}services: [{name: a, identity: {cgroup: /a}}]\n`,
    /identity\.cgroup: .*without leading slash/,
  ],
  [
    'a service name with a star',
    `${LEAST}services: [{name: 'a*', port: 1}]\n`,
    /services\[0\]\.name: Must be a service name/,
  ],
  [
    'an address with a zone',
    `${LEAST}node: {address: 'fe80::1%eth0'}\n`,
    /node\.address: Must be an IPv4 or IPv6 address/,
  ],
  [
    'a key far from any known one',
    `${LEAST}qqqqqq: 1\n`,
    /Unknown key "qqqqqq"; known here: node, datacenter, catalog/,
  ],
  [
    'an OTLP endpoint that is no HTTP URL',
    `${LEAST}metrics: {otlp: {endpoint: 'ftp://h'}}\n`,
    /metrics\.otlp\.endpoint: Must be a URL that begins with http/,
  ],
  [
    'a header that breaks the request',
    `${LEAST}metrics: {otlp: {endpoint: 'https://h', headers: {a: "b\\r\\nc: d"}}}\n`,
    /metrics\.otlp\.headers\.a: Must be printable ASCII/,
  ],
  [
    'a header that the request sets itself',
    `${LEAST}metrics: {otlp: {endpoint: 'https://h', headers: {Content-Type: x}}}\n`,
    /metrics\.otlp\.headers: Must have names of headers as keys, but none that a request sets/,
  ],
  [
    'a key of the other kind of catalog',
    `catalog: {kind: file, path: x, token: y}\ncertificates: {kind: files, directory: c}\n`,
    /Unknown key "token"; known here: kind, path$/,
  ],
]

for (const [claim, text, expected] of MISTAKES)
  test(`${claim} is an error that says so`, () => {
    const problems = problemsOf(text)
    assert.ok(
      problems.some((problem) => expected.test(problem)),
      `none of:\n${problems.join('\n')}\nmatches ${expected}`,
    )
  })

test('a problem behind an alias is shown where the alias stands', () => {
  const problems = problemsOf(`${LEAST}tunnel: &t {port: 0}\nmetrics: *t\n`)
  assert.deepEqual(
    problems.map((problem) => problem.split(': ').slice(0, 2)),
    [
      ['/etc/h.yaml:3:19', 'tunnel.port'],
      ['/etc/h.yaml:3:19', 'metrics.port'],
    ],
  )
})

test('a secret is never quoted in a problem', () => {
  for (const token of ['[SECRET-TOKEN]', '{a: SECRET-TOKEN}', 'SECRET-TOKEN, tokenfile: x'])
    for (const problem of problemsOf(`catalog: {kind: consul, token: ${token}}\n`))
      assert.ok(!problem.includes('SECRET-TOKEN'), problem)
})

test('a hundred problems are listed and the rest is counted', () => {
  const keys = Array.from({ length: 250 }, (_, index) => `key${index}: 1\n`).join('')
  const problems = problemsOf(LEAST + keys)
  assert.equal(problems.length, 101)
  assert.match(problems.at(-1) ?? '', /150 more problems/)
})

test('Windows line ends and a byte order mark do no harm', () => {
  const path = fileWith('crlf.yaml', `\uFEFF${LEAST.replaceAll('\n', '\r\n')}`)
  assert.ok('config' in checkConfig(path, {}))
})

test('Consul variables fill what the file leaves out', () => {
  const { catalog } = configOf(WITH_CONSUL, {
    CONSUL_HTTP_ADDR: '127.0.0.1:18500',
    CONSUL_HTTP_TOKEN: 'secret',
    CONSUL_CACERT: '/etc/ca.pem',
  })
  assert.ok(catalog.kind === 'consul')
  assert.equal(catalog.address, 'http://127.0.0.1:18500')
  assert.equal(catalog.token, 'secret')
  assert.equal(catalog.caFile, '/etc/ca.pem')
})

test('the file wins over Consul variables', () => {
  const { catalog } = configOf(
    'catalog: {kind: consul, address: "http://127.0.0.1:8500", tokenFile: t, caFile: c}\ncertificates: {kind: consul}\n',
    {
      CONSUL_HTTP_ADDR: 'https://other:1',
      CONSUL_HTTP_TOKEN: 'secret',
      CONSUL_CACERT: '/etc/ca.pem',
    },
  )
  assert.ok(catalog.kind === 'consul')
  assert.equal(catalog.address, 'http://127.0.0.1:8500')
  assert.equal(catalog.token, undefined)
  assert.equal(catalog.tokenFile, '/etc/t')
  assert.equal(catalog.caFile, '/etc/c')
})

test('a token file in the environment wins over a token there', () => {
  const { catalog } = configOf(WITH_CONSUL, {
    CONSUL_HTTP_TOKEN_FILE: '/run/token',
    CONSUL_HTTP_TOKEN: 'secret',
  })
  assert.ok(catalog.kind === 'consul')
  assert.equal(catalog.tokenFile, '/run/token')
  assert.equal(catalog.token, undefined)
})

test('a Consul variable that is no address is named as such', () => {
  assert.match(
    problemsOf(WITH_CONSUL, { CONSUL_HTTP_ADDR: 'ftp://x/y' })[0] ?? '',
    /CONSUL_HTTP_ADDR in the environment is no agent address/,
  )
})

test("Consul's variables for TLS are honored, and CONSUL_HTTP_SSL makes an address https", () => {
  const env = {
    CONSUL_HTTP_ADDR: 'agent:8501',
    CONSUL_HTTP_SSL: 'true',
    CONSUL_CACERT: '/etc/ca.pem',
    CONSUL_CLIENT_CERT: '/etc/cert.pem',
    CONSUL_CLIENT_KEY: '/etc/key.pem',
    CONSUL_TLS_SERVER_NAME: 'client.dc1.consul',
    CONSUL_HTTP_SSL_VERIFY: '1',
  }
  const { catalog } = configOf(WITH_CONSUL, env)
  assert.ok(catalog.kind === 'consul')
  assert.equal(catalog.address, 'https://agent:8501')
  assert.equal(catalog.certFile, '/etc/cert.pem')
  assert.equal(catalog.keyFile, '/etc/key.pem')
  assert.equal(catalog.tlsServerName, 'client.dc1.consul')
  const plain = configOf(WITH_CONSUL, { ...env, CONSUL_HTTP_SSL: '0' })
  assert.ok(plain.catalog.kind === 'consul')
  assert.equal(plain.catalog.address, 'http://agent:8501')
  assert.equal(plain.catalog.certFile, undefined, 'there is no use for it')
  const local = configOf(WITH_CONSUL, { CONSUL_HTTP_SSL: 'true' })
  assert.ok(local.catalog.kind === 'consul')
  assert.equal(local.catalog.address, 'https://127.0.0.1:8500')
})

test('Consul variables that ask for what is not done are refused, not passed over', () => {
  const problem = (env: Record<string, string>): string => problemsOf(WITH_CONSUL, env).join('\n')
  const https = { CONSUL_HTTP_ADDR: 'https://agent:8501' }
  assert.match(problem({ ...https, CONSUL_HTTP_SSL_VERIFY: 'false' }), /hand the token to anybody/)
  assert.match(problem({ CONSUL_HTTP_SSL: 'yes' }), /CONSUL_HTTP_SSL .* must be true or false/)
  assert.match(problem({ CONSUL_CAPATH: '/etc/ssl' }), /CONSUL_CAPATH is set .* CONSUL_CACERT/)
  assert.match(problem({ CONSUL_HTTP_AUTH: 'u:secret' }), /basic authentication is not spoken/)
  assert.doesNotMatch(problem({ CONSUL_HTTP_AUTH: 'u:secret' }), /secret/)
  assert.match(problem({ ...https, CONSUL_CLIENT_CERT: '/c' }), /both certFile and keyFile/)
})

test('Consul variables say nothing to a file catalog', () => {
  assert.deepEqual(
    configOf(LEAST, { CONSUL_HTTP_ADDR: 'ftp://x/y', CONSUL_HTTP_TOKEN: 'secret' }),
    configOf(LEAST),
  )
})

test('a token in a file that everybody may read is refused, one in a private file is taken', () => {
  const path = fileWith(
    'token.yaml',
    'catalog: {kind: consul, token: abc}\ncertificates: {kind: consul}\n',
  )
  chmodSync(path, 0o644)
  const checked = checkConfig(path, {})
  assert.ok('problems' in checked)
  assert.match(checked.problems[0] ?? '', /:1:32: catalog\.token: Every user .* may read the file/)
  chmodSync(path, 0o640)
  assert.ok('config' in checkConfig(path, {}))
})

test('a file that is missing, a folder, a pipe, too large or not UTF-8 is named for what it is', () => {
  const pipe = join(folder, 'pipe.yaml')
  execFileSync('mkfifo', [pipe])
  const inner = join(folder, 'folder.yaml')
  mkdirSync(inner)
  const loop = join(folder, 'loop.yaml')
  symlinkSync(loop, loop)
  const rows: readonly [string, RegExp][] = [
    [join(folder, 'none.yaml'), /no such file/],
    [inner, /it is a directory/],
    [pipe, /not a regular file/],
    [loop, /too many symbolic links/],
    ['/dev/zero', /not a regular file/],
    [fileWith('latin1.yaml', Buffer.from('node: {name: caf\xe9}', 'latin1')), /not UTF-8/],
    [fileWith('large.yaml', '#'.repeat(1024 * 1024 + 1)), /larger than 1048576 bytes/],
  ]
  for (const [path, expected] of rows)
    assert.throws(
      () => loadConfig(path, {}),
      (thrown) =>
        thrown instanceof MeshError &&
        thrown.code === 'HM_CONFIG_INVALID' &&
        expected.test(thrown.message) &&
        thrown.message.includes(path),
      path,
    )
})

test('only for root, a file that everybody may write to is refused', () => {
  const path = fileWith('writable.yaml', LEAST)
  chmodSync(path, 0o666)
  const checked = checkConfig(path, {})
  assert.equal('problems' in checked, process.getuid?.() === 0)
})

test('a symbolic link to a sound file is followed', () => {
  const link = join(folder, 'link.yaml')
  symlinkSync(fileWith('target.yaml', LEAST), link)
  assert.ok('config' in checkConfig(link, {}))
})

test('an error lists all problems and says where to look', () => {
  const path = fileWith('two.yaml', 'workers: 0\n')
  assert.throws(
    () => loadConfig(path, {}),
    (thrown) =>
      thrown instanceof MeshError &&
      thrown.code === 'HM_CONFIG_INVALID' &&
      /has 3 problems:\n.*catalog: Is missing.*\n.*certificates: Is missing.*\n.*workers/.test(
        thrown.message,
      ) &&
      thrown.hint !== undefined,
  )
})

test('an anchors bomb is refused in no time', () => {
  const levels = Array.from({ length: 20 }, (_, i) =>
    i === 0 ? 'a0: &a0 [x, x]' : `a${i}: &a${i} [*a${i - 1}, *a${i - 1}, *a${i - 1}, *a${i - 1}]`,
  )
  const startedAt = performance.now()
  const problems = problemsOf(`${levels.join('\n')}\n`)
  assert.match(problems[0] ?? '', /Excessive alias count/)
  assert.ok(performance.now() - startedAt < 2_000)
})

test('hostile nesting is an error, not a crash', () => {
  for (const text of [
    '['.repeat(50_000),
    '{a: '.repeat(20_000),
    '- '.repeat(20_000),
    '? '.repeat(20_000),
  ])
    assert.ok(problemsOf(text).length > 0)
})

const WORDS = [
  ...'catalog kind file path services name port a 80 .nan null ~ __proto__ toString <<'.split(' '),
  ...': { } [ ] , *a " \' | #'.split(' '),
  ': ',
  '\n',
  '\n  ',
  '\n- ',
  '&a ',
  '!!x ',
  '\t',
  '---\n',
  '\u0000',
  '\u2028',
  '\ud800',
]

test('no text makes the check throw or take a wrong configuration for a sound one', () => {
  const words = fc.constantFrom(...WORDS)
  const text = fc.oneof(
    fc.string({ unit: 'binary', maxLength: 200 }),
    fc.array(words, { maxLength: 60 }).map((parts) => parts.join('')),
    fc.array(words, { maxLength: 20 }).map((parts) => LEAST + parts.join('')),
    fc.json().map((json) => `${LEAST}services: ${json}\n`),
    fc.object().map((value) => stringify(value)),
  )
  fc.assert(
    fc.property(text, (given) => {
      const checked = checkConfigText(given, { path: 'x', env: {}, isReadableByAll: true })
      if ('problems' in checked) assert.ok(checked.problems.length > 0)
      else assert.ok(Array.isArray(checked.config.services))
    }),
    { numRuns: 2_000 },
  )
})

test('loading arbitrary bytes throws nothing but HM_CONFIG_INVALID', () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 200 }), (bytes) => {
      try {
        loadConfig(fileWith('fuzz.yaml', bytes), {})
      } catch (thrown) {
        assert.ok(thrown instanceof MeshError && thrown.code === 'HM_CONFIG_INVALID')
      }
    }),
    { numRuns: 200 },
  )
})

test('what `config show` prints is the same configuration again, except for secrets', () => {
  const texts = [
    LEAST,
    WITH_CONSUL,
    `${LEAST}node: {name: a, address: '::FFFF:10.0.0.5'}
services:
  - {name: web, port: 80, identity: {user: 33}, upstreams: [{destination: db, bindPort: 5}]}
  - {name: db, id: db-2, port: 5432, identity: {cgroup: system.slice/db.service}}
capture: {mode: on, daemonUser: hostmesh}
timeouts: {idle: 1h30m, drain: 0s, keepalive: 1500ms}
`,
  ]
  for (const text of texts) {
    const config = configOf(text)
    assert.deepEqual(configOf(stringify(describeConfig(config))), config)
  }
})
