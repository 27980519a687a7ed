/**
 * Who may ask the aggregator: by what the kernel says of a process, by token, by client certificate, by the header of a
 * proxy that is known; and nobody by what a request merely claims.
 */
import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { createHash } from 'node:crypto'
import { chmod, mkdtemp, readFile, rm, stat, utimes, writeFile } from 'node:fs/promises'
import { createServer, type RequestOptions } from 'node:http'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, test } from 'node:test'
import { promisify } from 'node:util'
import { Access } from '../../src/aggregator/access.ts'
import { AuditLog } from '../../src/aggregator/audit.ts'
import { checkAggregatorConfig } from '../../src/aggregator/config-load.ts'
import { errorSchema } from '../../src/aggregator/schema.ts'
import { TokenList } from '../../src/aggregator/token-list.ts'
import { systemClock } from '../../src/lib/clock.ts'
import { silentLog } from '../../src/lib/log.ts'
import { listenOnUnixSocket } from '../../src/lib/unix-socket.ts'
import { TestClock } from '../harness/test-clock.ts'
import { type Answer, startTestAggregator, type TestAggregator } from './aggregator-fixtures.ts'

const run = promisify(execFile)
let directory = ''

before(async () => {
  directory = await mkdtemp(join(tmpdir(), 'hostmesh-access-'))
  await chmod(directory, 0o755)
  const openssl = (...args: string[]): Promise<unknown> => run('openssl', args, { cwd: directory })
  const key = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-days', '2']
  const authority = async (name: string): Promise<unknown> =>
    openssl(
      'req',
      '-x509',
      ...key,
      '-subj',
      `/CN=${name}`,
      '-keyout',
      `${name}.key`,
      '-out',
      `${name}.pem`,
    )
  await authority('ca')
  await authority('other-ca')
  const signed = (name: string, ca: string, subject: string, san: string): Promise<unknown> =>
    openssl(
      'req',
      '-x509',
      ...key,
      '-CA',
      `${ca}.pem`,
      '-CAkey',
      `${ca}.key`,
      '-subj',
      subject,
      '-addext',
      `subjectAltName=${san}`,
      '-addext',
      'basicConstraints=critical,CA:FALSE',
      '-keyout',
      `${name}.key`,
      '-out',
      `${name}.pem`,
    )
  await Promise.all([
    signed('server', 'ca', '/CN=server', 'DNS:localhost,IP:127.0.0.1'),
    signed('prometheus', 'ca', '/CN=prometheus', 'DNS:prometheus'),
    signed('admin', 'ca', '/CN=prometheus', 'URI:spiffe://fleet/admin'),
    signed('nobody', 'ca', '/CN=nobody', 'DNS:nobody'),
    signed('posing', 'ca', '/CN=spiffe:\\/\\/fleet\\/admin', 'DNS:x'),
    signed('foreign', 'other-ca', '/CN=prometheus', 'DNS:prometheus'),
    signed('proxy', 'ca', '/CN=proxy', 'DNS:proxy'),
  ])
})
after(() => rm(directory, { recursive: true, force: true }))

const digest = (token: string): string => createHash('sha256').update(token).digest('hex')
const tokens = `
- {name: grafana, role: viewer, sha256: ${digest('good')}, expires: 2099-01-01T00:00:00Z}
- {name: gone, role: operator, sha256: ${digest('late')}, expires: 2020-01-01T00:00:00Z}
`
const bearer = (token: string): RequestOptions => ({
  headers: { authorization: `Bearer ${token}` },
})

async function withTls(access: string): Promise<TestAggregator> {
  await writeFile(join(directory, 'tokens.yaml'), tokens)
  return startTestAggregator(`
listen: {socket: DIR/api.sock, address: 0.0.0.0}
tls: {certificate: ${directory}/server.pem, key: ${directory}/server.key}
access:
  tokens: ${directory}/tokens.yaml
  clientCertificates:
    roots: ${directory}/ca.pem
    roles:
      - {name: prometheus, role: viewer}
      - {name: 'spiffe://fleet/admin', role: operator}
${access}`)
}

async function shows(name: string): Promise<RequestOptions> {
  const [cert, key] = await Promise.all(
    ['pem', 'key'].map((end) => readFile(join(directory, `${name}.${end}`))),
  )
  return { cert, key } as RequestOptions
}

const tls = { tls: true, rejectUnauthorized: false }

test('beyond loopback a token or a certificate is needed, also from the machine itself', async () => {
  await using fleet = await withTls('')
  const asks = async (options: RequestOptions = {}): Promise<Answer> =>
    fleet.get('/api/v1/hosts', { ...tls, ...options })
  const refused = await asks()
  assert.equal(refused.status, 401)
  assert.equal(errorSchema.parse(refused.json).error.code, 'HM_API_UNAUTHENTICATED')
  assert.match(String(refused.headers['www-authenticate']), /Bearer/)
  assert.equal((await asks(bearer('good'))).status, 200)
  assert.equal((await asks(bearer('bad'))).status, 401)
  const expired = await asks(bearer('late'))
  assert.match(errorSchema.parse(expired.json).error.message, /token of gone has expired/)
  assert.equal((await asks({ headers: { authorization: 'good' } })).status, 401)
  const page = await fleet.get('/', tls)
  assert.equal(page.status, 404, 'the page itself needs no token: it asks for one')
  assert.equal((await fleet.get('/metrics', tls)).status, 401)
})

test('a client certificate counts by its name, and only when one of the roots has signed it', async () => {
  await using fleet = await withTls('')
  const statusOf = async (name: string): Promise<number> =>
    (await fleet.get('/api/v1/hosts', { ...tls, ...(await shows(name)) })).status
  assert.equal(await statusOf('prometheus'), 200)
  assert.equal(await statusOf('admin'), 200)
  assert.equal(await statusOf('nobody'), 403)
  assert.equal(await statusOf('posing'), 401, 'a common name is no URI')
  assert.equal(await statusOf('foreign'), 401)
  const both = { ...(await shows('nobody')), ...bearer('good') }
  assert.equal((await fleet.get('/api/v1/hosts', { ...tls, ...both })).status, 200)
})

test("a proxy's header counts only with the proxy's certificate", async () => {
  await using fleet = await withTls(
    '  proxy: {header: X-User, certificate: proxy, roles: [{name: alice, role: operator}]}',
  )
  const asks = async (name: string, user?: string | string[]): Promise<number> =>
    (
      await fleet.get('/api/v1/hosts', {
        ...tls,
        ...(await shows(name)),
        ...(user !== undefined && { headers: { 'x-user': user } }),
      })
    ).status
  assert.equal(await asks('proxy', 'alice'), 200)
  assert.equal(await asks('proxy', 'mallory'), 403)
  assert.equal(await asks('proxy'), 401)
  assert.equal(await asks('proxy', ['alice', 'alice']), 401, 'one of them may be of the user')
  assert.equal(await asks('nobody', 'alice'), 403)
})

test("a proxy's header counts on the socket of the proxy, and on no other", async () => {
  await using fleet = await startTestAggregator(
    'access: {proxy: {header: X-User, socket: DIR/proxy.sock, role: viewer}}',
  )
  const socketPath = join(fleet.directory, 'proxy.sock')
  const user = { headers: { 'x-user': 'bob' } }
  assert.equal((await fleet.get('/api/v1/hosts', { socketPath, ...user })).status, 200)
  assert.equal((await fleet.get('/api/v1/hosts', { socketPath })).status, 401)
  const host = { socketPath, headers: { 'x-user': 'bob', host: 'mesh.example.com' } }
  assert.equal((await fleet.get('/api/v1/hosts', host)).status, 200, 'the proxy has any name')
})

test('on loopback everybody is a viewer, but not what a proxy passes on from elsewhere', async () => {
  await using fleet = await startTestAggregator()
  assert.equal((await fleet.get('/api/v1/hosts')).status, 200)
  for (const name of ['x-forwarded-for', 'forwarded', 'via', 'x-real-ip']) {
    const { status } = await fleet.get('/api/v1/hosts', { headers: { [name]: '203.0.113.9' } })
    assert.equal(status, 401, name)
  }
  assert.equal(
    (await fleet.get('/api/v1/hosts', bearer('none'))).status,
    401,
    'a wrong token is no token',
  )
})

test('many refused requests from one address are answered no more, until time has passed', async () => {
  const clock = new TestClock()
  await using fleet = await startTestAggregator('', { clock })
  const statuses: number[] = []
  for (let i = 0; i < 25; i += 1)
    statuses.push((await fleet.get('/api/v1/hosts', bearer(`guess-${i}`))).status)
  assert.deepEqual(statuses, [...Array<number>(20).fill(401), ...Array<number>(5).fill(429)])
  clock.pass(2_000)
  assert.equal((await fleet.get('/api/v1/hosts')).status, 200)
})

test('tokens are read again when the file changes; a wrong file leaves the former ones', async () => {
  const path = join(directory, 'changing.yaml')
  await writeFile(path, tokens)
  const clock = new TestClock()
  const list = new TokenList(path, { clock, log: silentLog })
  assert.equal(list.ownerOf('good')?.name, 'grafana')
  const replace = async (text: string): Promise<void> => {
    await writeFile(path, text)
    await utimes(path, new Date(), new Date(Date.now() + clock.monotonicMs()))
    clock.pass(2_000)
  }
  await replace('- {name: grafana, role: king, sha256: x, expires: never}\n')
  assert.equal(list.ownerOf('good')?.name, 'grafana')
  await replace('[]\n')
  assert.equal(list.ownerOf('good'), undefined)
  await writeFile(path, `${tokens}${tokens}`)
  assert.throws(() => new TokenList(path, { clock, log: silentLog }), /two tokens have the digest/)
})

test('the unix socket knows users and groups of a process from the kernel', async () => {
  const group = 54_321
  const socketPath = join(directory, 'peer.sock')
  const checked = checkAggregatorConfig('listen: {}\n', join(directory, 'c.yaml'))
  assert.ok('config' in checked)
  using audit = new AuditLog(join(directory, 'peer.log'), { clock: systemClock, log: silentLog })
  const access = new Access({
    config: checked.config,
    gid: group,
    audit,
    clock: systemClock,
    log: silentLog,
  })
  const server = createServer((request, response) => {
    const { name, role } = access.admit(request, 'local', 'read')
    response.end(`${name} ${role}`)
  })
  await listenOnUnixSocket(server, { path: socketPath, mode: 0o666, name: 'socket', key: 'x' })
  const ask = async (...as: string[]): Promise<string> => {
    const script = `require('http').get({socketPath:${JSON.stringify(socketPath)},path:'/'},(r)=>r.pipe(process.stdout))`
    const { stdout } = await run('setpriv', [...as, '--', 'node', '-e', script])
    return stdout
  }
  try {
    assert.equal(await ask('--reuid=0', '--clear-groups'), 'uid 0 operator')
    assert.equal(await ask('--reuid=65534', '--regid=65534', '--clear-groups'), 'uid 65534 viewer')
    assert.equal(
      await ask('--reuid=65534', '--regid=65534', `--groups=7,${group}`),
      'uid 65534 operator',
    )
    assert.equal(
      await ask('--reuid=65534', `--regid=${group}`, '--clear-groups'),
      'uid 65534 operator',
    )
  } finally {
    server.close()
  }
})

test('the socket belongs to its group, and to nobody else', async () => {
  await using fleet = await startTestAggregator("listen: {socket: DIR/api.sock, group: '54321'}")
  const { mode, gid } = await stat(fleet.socket)
  assert.deepEqual([mode & 0o777, gid], [0o660, 54_321])
  assert.equal((await fleet.get('/api/v1/hosts', { socketPath: fleet.socket })).status, 200)
})

test('uses of tokens and refusals are in the audit log, once a minute with a count', async () => {
  const clock = new TestClock()
  await writeFile(join(directory, 'audited.yaml'), tokens)
  await using fleet = await startTestAggregator(`access: {tokens: ${directory}/audited.yaml}`, {
    clock,
  })
  for (let i = 0; i < 5; i += 1) await fleet.get('/api/v1/hosts?window=1m', bearer('good'))
  await fleet.get('/api/v1/graph', bearer('bad\u0041'))
  clock.pass(60_000)
  await fleet.get('/api/v1/hosts', bearer('good'))
  const text = await readFile(join(fleet.directory, 'audit.log'), 'utf8')
  const lines = text
    .trim()
    .split('\n')
    .map((line): Record<string, unknown> => JSON.parse(line))
  assert.deepEqual(
    lines.map(({ event, caller, path, reason, repeated }) => [
      event,
      caller,
      path,
      reason,
      repeated,
    ]),
    [
      ['token', 'grafana', '/api/v1/hosts', undefined, undefined],
      ['denied', 'unknown', '/api/v1/graph', 'HM_API_UNAUTHENTICATED', undefined],
      ['token', 'grafana', '/api/v1/hosts', undefined, 4],
    ],
  )
  assert.doesNotMatch(text, /good|bad/)
})

test('a full audit log is renamed once, so that two files are the most it takes', async () => {
  const path = join(directory, 'full.log')
  await writeFile(path, 'x'.repeat(16 * 1_024 * 1_024))
  using audit = new AuditLog(path, { clock: systemClock, log: silentLog })
  audit.record({ event: 'denied', caller: 'a\n"b', from: 'unix', path: '/x'.repeat(500) })
  const line: Record<string, unknown> = JSON.parse(await readFile(path, 'utf8'))
  assert.equal(line['caller'], 'a\n"b')
  assert.equal(String(line['path']).length, 200)
  assert.equal((await stat(`${path}.1`)).size, 16 * 1_024 * 1_024)
})
