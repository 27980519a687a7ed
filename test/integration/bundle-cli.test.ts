/**
 * `hostmesh bundle`: canary secrets in everything that it reads, none in the archive, and the rest still there.
 */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { stat, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { test } from 'node:test'
import { makeBundle } from '../../src/cli/bundle.ts'
import { redact } from '../../src/lib/redact.ts'
import {
  fromNow,
  hostmesh,
  scriptedView,
  services,
  startScripted,
  temporaryDirectory,
  wellStatus,
} from './admin-fixtures.ts'

/** A part of every canary; no test of a pattern may depend on it. */
const canaries = {
  tokenInFile: '11111111-aaaa-4bbb-8ccc-0123456789ab',
  odd: 'plain words are a token too',
  header: 'otlp-Key-77',
  join: 'hm1.eyJhIjoiY2EuZXhhbXBsZS5jb206MTU0NDQiLCJmIjoiMDAifQ',
  bearer: 'c2VjcmV0LWJlYXJlcg',
  password: 'hunter2!',
  jwt: 'eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl',
  pem: 'MIGHAgEAMBMGByqGSM49',
  hex: '0123456789abcdef0123456789abcdef',
  cookie: 'sid=abc; theme=dark',
  inUrl: 's3cr3t-pw',
} as const

const leaks = [
  `token: ${canaries.tokenInFile}`,
  `sent ${canaries.odd} twice, and header ${canaries.header}`,
  `joined with ${canaries.join}`,
  `Authorization: Bearer ${canaries.bearer}`,
  `{"msg":"x","password":"${canaries.password}","n":1}`,
  `{"inner":"{\\"apiKey\\":\\"${canaries.password}\\"}"}`,
  `got ${canaries.jwt}`,
  `-----BEGIN EC PRIVATE KEY-----\n${canaries.pem}\n-----END EC PRIVATE KEY-----`,
  `key ${canaries.hex}`,
  `Cookie: ${canaries.cookie}`,
  `GET https://user:${canaries.inUrl}@consul.example.com/v1?token=${canaries.password}&dc=1`,
]
const leaking = leaks.join('\n')

function canariesIn(text: string): string[] {
  return Object.entries(canaries).flatMap(([name, value]) => (text.includes(value) ? [name] : []))
}

/** The text of all files of an archive, by name. */
async function unpack(directory: string, archive: Buffer): Promise<Map<string, string>> {
  const path = join(directory, 'x.tar.gz')
  await writeFile(path, archive)
  const list = execFileSync('tar', ['-tzf', path], { encoding: 'utf8' }).trim().split('\n')
  return new Map(
    list.map((name) => [
      name.replace('hostmesh-bundle/', ''),
      execFileSync('tar', ['-xOzf', path, name], { encoding: 'utf8' }),
    ]),
  )
}

test('secrets planted in documents, metrics, configuration, tools and log are not in the archive', async () => {
  await using directory = await temporaryDirectory()
  const inDirectory = (name: string): string => join(directory.path, name)
  await writeFile(inDirectory('token'), `${canaries.odd}\n`, { mode: 0o600 })
  const configuration = [
    `catalog: {kind: consul, tokenFile: ${inDirectory('token')}}`,
    'certificates: {kind: consul}',
    'services: [{name: web, port: 8080}]',
    `metrics: {otlp: {endpoint: "http://127.0.0.1:4318", headers: {x-key: ${canaries.header}}}}`,
  ].join('\n')
  await writeFile(inDirectory('hostmesh.yaml'), configuration, { mode: 0o600 })
  const problem = { code: 'HM_X_Y', message: leaking, hint: leaking, blocks: false }
  const [first] = services.services
  assert.ok(first !== undefined)
  await using server = await startScripted(
    scriptedView({
      status: () =>
        Promise.resolve({
          ...wellStatus,
          warnings: leaks,
          problems: [{ ...problem, since: fromNow(-1_000) }],
        }),
      services: () =>
        Promise.resolve({
          ...services,
          services: [
            {
              ...first,
              endpoints: first.endpoints.map((each) => ({ ...each, failingCheck: leaking })),
            },
          ],
        }),
      metrics: () => Promise.resolve(leaks.map((text) => `# ${text}\n`).join('')),
    }),
  )
  const ran: string[] = []
  const { archive, missing } = await makeBundle(
    { addr: `unix://${server.socketPath}`, config: inDirectory('hostmesh.yaml'), unit: 'hostmesh' },
    Date.now(),
    (tool, args) => {
      ran.push([tool, ...args].join(' '))
      return Promise.resolve({ status: 0, stdout: `${tool} line\n${leaking}`, stderr: leaking })
    },
  )
  assert.deepEqual(missing, [])
  const files = await unpack(directory.path, archive)
  for (const [name, text] of files) assert.deepEqual(canariesIn(text), [], name)
  for (const name of [
    'services',
    'routes',
    'intentions',
    'peers',
    'connections',
    'refused',
    'certs',
  ])
    assert.doesNotThrow(() => JSON.parse(files.get(`${name}.json`) ?? ''), name)
  assert.match(files.get('status.json') ?? '', /"node": "host-a"/)
  assert.match(files.get('services.json') ?? '', /10\.0\.0\.7:15443/)
  assert.match(files.get('peers.json') ?? '', /spiffe:\/\/mesh\.example\.com\/ns\/default\/dc\/dc1/)
  assert.match(files.get('config.json') ?? '', /"x-key": "\(redacted\)"/)
  assert.match(files.get('log.txt') ?? '', /journalctl line/)
  assert.ok(ran.includes('journalctl -u hostmesh -n 2000 -o short-iso --no-pager -q'))
  for (const name of ['metrics.txt', 'capture.json', 'versions.json', 'kernel.txt', 'tools.txt'])
    assert.ok(files.has(name), name)
})

test('a token in the configuration is not in the archive, whether the configuration is valid or not', async () => {
  await using directory = await temporaryDirectory()
  const config = join(directory.path, 'hostmesh.yaml')
  const valid = `catalog: {kind: consul, token: "${canaries.odd}"}\ncertificates: {kind: consul}\nservices: []\n`
  for (const text of [valid, `${valid}workers: none\n`]) {
    await writeFile(config, text, { mode: 0o600 })
    const { archive } = await makeBundle(
      { addr: 'unix:///nonexistent/a.sock', config, unit: 'hostmesh' },
      Date.now(),
      () => Promise.resolve({ status: 0, stdout: `used ${canaries.odd} once`, stderr: '' }),
    )
    const files = await unpack(directory.path, archive)
    for (const [name, content] of files) assert.deepEqual(canariesIn(content), [], name)
    assert.match(files.get('log.txt') ?? '', /used \(redacted\) once/)
  }
})

test('without a daemon the archive has the rest, says what is missing, and only its owner may read it', async () => {
  await using directory = await temporaryDirectory()
  const path = join(directory.path, 'out.tar.gz')
  const { code, stdout, stderr } = await hostmesh([
    'bundle',
    '-o',
    path,
    '--config',
    '/nonexistent',
    '--addr',
    'unix:///nonexistent/a.sock',
  ])
  assert.equal(code, 0)
  assert.equal(stdout, `${path}\n`)
  assert.match(stderr, /Not in the archive: status\.json \(Cannot reach the daemon/)
  assert.equal((await stat(path)).mode & 0o777, 0o600)
  const list = execFileSync('tar', ['-tzf', path], { encoding: 'utf8' })
  assert.match(list, /hostmesh-bundle\/versions\.json/)
  assert.match(list, /hostmesh-bundle\/missing\.txt/)
})

test('each kind of secret is removed by its form alone, and ordinary text stays as it is', () => {
  for (const text of leaks.filter((leak) => !leak.startsWith('sent')))
    assert.deepEqual(canariesIn(redact(text)), [], text)
  for (const text of [
    'host-a db-1 10.0.0.7:15443 240.0.0.1',
    'spiffe://11111111-aaaa-4bbb-8ccc-0123456789ab.consul/ns/default/dc/dc1/svc/web',
    '"tokenFile": "/etc/hostmesh/token"',
    'hostmesh_tcp_connections_opened_total{source="web",destination="db"} 12',
    '2026-11-28T21:00:00.000Z level=info Ready services=web',
    '/sys/fs/cgroup/system.slice/web.service',
  ])
    assert.equal(redact(text), text)
})
