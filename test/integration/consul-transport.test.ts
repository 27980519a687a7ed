/**
 * Claims about the HTTP client, over real sockets against a scripted agent.
 */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { gzipSync } from 'node:zlib'
import { ruleFor } from '../../src/controlplane/catalog/consul/rights.ts'
import { createTransport, requireOk } from '../../src/controlplane/catalog/consul/transport.ts'
import { errorCode } from '../../src/lib/errors.ts'
import { TestClock } from '../harness/test-clock.ts'
import { eventually, type FakeAnswer, startFakeAgent } from './consul-fake-agent.ts'

const requestTimeout = 5_000

function scratch(): Disposable & { readonly path: string } {
  const path = mkdtempSync(join(tmpdir(), 'hostmesh-consul-'))
  return { path, [Symbol.dispose]: () => rmSync(path, { recursive: true, force: true }) }
}

async function failureOf(work: Promise<unknown>): Promise<string> {
  return work.then(
    () => 'no failure',
    (error: unknown) => errorCode(error),
  )
}

test('a gzip answer is unpacked, and the headers that matter are read', async () => {
  await using agent = await startFakeAgent()
  using transport = createTransport({ address: agent.address, requestTimeout })
  agent.answer('/v1/x', {
    headers: {
      'content-encoding': 'gzip',
      'x-consul-index': '42',
      'x-consul-lastcontact': '17',
      'x-consul-default-acl-policy': 'deny',
    },
    body: gzipSync('{"a":["é"]}'),
  })
  const answer = await transport.call('GET', '/v1/x?q=1')
  assert.deepEqual(answer.body, { a: ['é'] })
  assert.equal(answer.index, '42')
  assert.equal(answer.lastContactMs, 17)
  assert.equal(answer.defaultAclPolicy, 'deny')
  assert.equal(agent.requests[0]?.headers['accept-encoding'], 'gzip')
})

test('where only some levels are read, what is below them may be of any size, up to a limit', async () => {
  await using agent = await startFakeAgent()
  using transport = createTransport({ address: agent.address, requestTimeout: 10_000 })
  const answer = (mebibytes: number) => ({
    body: `{"db":[],"evil":["${'x'.repeat(mebibytes * 1_048_576)}"]}`,
  })
  agent.answer('/v1/catalog/services', answer(40), answer(130))
  const { body } = await transport.call('GET', '/v1/catalog/services', { levels: 1 })
  assert.deepEqual(body, { db: [], evil: [] })
  await assert.rejects(transport.call('GET', '/v1/catalog/services', { levels: 1 }), {
    code: 'HM_CONSUL_ANSWER_TOO_LARGE',
  })
})

test('answers that are not acceptable JSON fail with their own code', async () => {
  await using agent = await startFakeAgent()
  using transport = createTransport({ address: agent.address, requestTimeout })
  const cases: [string, FakeAnswer][] = [
    ['HM_CONSUL_ANSWER_MALFORMED', { body: '<html><body>proxy error</body></html>' }],
    ['HM_CONSUL_ANSWER_MALFORMED', { body: '[{"Node":' }],
    ['HM_CONSUL_ANSWER_MALFORMED', { body: '\uFEFF[]' }],
    ['HM_CONSUL_ANSWER_MALFORMED', { body: '[NaN]' }],
    ['HM_CONSUL_ANSWER_MALFORMED', { body: 'rpc error: No cluster leader' }],
    ['HM_CONSUL_ANSWER_MALFORMED', { headers: { 'content-encoding': 'gzip' }, body: '[]' }],
    ['HM_CONSUL_ANSWER_MALFORMED', { headers: { 'content-encoding': 'br' }, body: '[]' }],
    ['HM_CONSUL_ANSWER_TOO_DEEP', { body: '['.repeat(10_000) + ']'.repeat(10_000) }],
    ['HM_CONSUL_ANSWER_TOO_LARGE', { body: `"${'x'.repeat(17 * 1024 * 1024)}"` }],
    [
      'HM_CONSUL_ANSWER_TOO_LARGE',
      { headers: { 'content-encoding': 'gzip' }, body: gzipSync(Buffer.alloc(200_000_000, 32)) },
    ],
    ['HM_CONSUL_ANSWER_TOO_LARGE', { status: 500, body: 'x'.repeat(3 * 1024 * 1024) }],
    ['HM_CONSUL_UNREACHABLE', (response) => void response.socket?.destroy()],
    [
      'HM_CONSUL_UNREACHABLE',
      (response) => {
        response.writeHead(200, { 'content-length': '100' })
        response.write('[')
        setTimeout(() => response.socket?.destroy(), 20)
      },
    ],
    ['HM_CONSUL_UNREACHABLE', (response) => void response.socket?.end('garbage\r\n\r\n')],
  ]
  for (const [position, [code, answer]] of cases.entries()) {
    agent.answer(`/v1/case/${position}`, answer)
    // A reset on a reused connection is tried once more, hence the second copy.
    if (typeof answer === 'function') agent.answer(`/v1/case/${position}`, answer)
    assert.equal(
      await failureOf(transport.call('GET', `/v1/case/${position}`)),
      code,
      `case ${position}`,
    )
  }
})

test('a gzip bomb is cut off before it costs memory', async () => {
  await using agent = await startFakeAgent()
  using transport = createTransport({ address: agent.address, requestTimeout })
  const bomb = gzipSync(Buffer.alloc(500_000_000, 32))
  agent.answer('/v1/x', { headers: { 'content-encoding': 'gzip' }, body: bomb })
  const before = process.memoryUsage.rss()
  await failureOf(transport.call('GET', '/v1/x'))
  const grownMiB = (process.memoryUsage.rss() - before) / 1_048_576
  assert.ok(grownMiB < 128, `grew by ${Math.round(grownMiB)} MiB`)
})

test('an answer that trickles is given up at the deadline', async () => {
  await using agent = await startFakeAgent()
  using transport = createTransport({ address: agent.address, requestTimeout: 300 })
  agent.answer('/v1/x', (response) => {
    response.writeHead(200)
    const drip = setInterval(() => response.write(' '), 20)
    response.on('close', () => clearInterval(drip))
  })
  const startedAtMs = performance.now()
  assert.equal(await failureOf(transport.call('GET', '/v1/x')), 'HM_CONSUL_TIMEOUT')
  assert.ok(performance.now() - startedAtMs < 2_000)
})

test('a redirect is an error and is not followed', async () => {
  await using elsewhere = await startFakeAgent()
  await using agent = await startFakeAgent()
  using transport = createTransport({ address: agent.address, token: 'secret', requestTimeout })
  agent.answer('/v1/x', { status: 301, headers: { location: `${elsewhere.address}/v1/x` } })
  const answer = await transport.call('GET', '/v1/x')
  assert.throws(
    () => requireOk(answer, 'reading x'),
    (error) => errorCode(error) === 'HM_CONSUL_REFUSED',
  )
  assert.equal(elsewhere.requests.length, 0)
})

test('statuses become codes that tell what to do', async () => {
  await using agent = await startFakeAgent()
  using transport = createTransport({ address: agent.address, requestTimeout })
  for (const [status, code] of [
    [403, 'HM_CONSUL_FORBIDDEN'],
    [401, 'HM_CONSUL_FORBIDDEN'],
    [429, 'HM_CONSUL_RATE_LIMITED'],
    [500, 'HM_CONSUL_REFUSED'],
    [404, 'HM_CONSUL_REFUSED'],
  ] as const) {
    agent.answer('/v1/x', { status, body: 'Permission\r\ndenied' })
    const answer = await transport.call('GET', '/v1/x')
    assert.throws(
      () => requireOk(answer, 'reading x'),
      (error) =>
        errorCode(error) === code &&
        error instanceof Error &&
        /Permission denied/.test(error.message),
    )
  }
})

test('an agent that is not there is named with its address', async () => {
  using transport = createTransport({ address: 'http://127.0.0.1:1', requestTimeout })
  await assert.rejects(
    transport.call('GET', '/v1/x'),
    /Cannot reach Consul at http:\/\/127.0.0.1:1/,
  )
})

test('a call can be called off, and no call is made after disposal', async () => {
  await using agent = await startFakeAgent()
  const transport = createTransport({ address: agent.address, requestTimeout })
  const aborter = new AbortController()
  const hanging = failureOf(transport.call('GET', '/v1/x', { signal: aborter.signal }))
  await eventually('request', () => agent.requests.length === 1)
  aborter.abort()
  assert.equal(await hanging, 'HM_CONSUL_CLOSED')
  transport[Symbol.dispose]()
  assert.equal(await failureOf(transport.call('GET', '/v1/x')), 'HM_CONSUL_CLOSED')
})

test('a kept connection that the agent closed is no failure', async () => {
  await using agent = await startFakeAgent()
  using transport = createTransport({ address: agent.address, requestTimeout })
  const drop: FakeAnswer = (response) => void response.socket?.destroy()
  agent.answer('/v1/x', { body: 1 }, drop, { body: 2 }, drop, drop)
  assert.equal((await transport.call('GET', '/v1/x')).body, 1)
  assert.equal((await transport.call('GET', '/v1/x')).body, 2)
  assert.equal(await failureOf(transport.call('GET', '/v1/x')), 'HM_CONSUL_UNREACHABLE')
})

test('a hundred long polls do not keep a plain call waiting', async () => {
  await using agent = await startFakeAgent()
  using transport = createTransport({ address: agent.address, requestTimeout })
  const polls = Array.from({ length: 100 }, (_, i) =>
    failureOf(transport.call('GET', `/v1/poll/${i}`, { pool: 'watch', timeoutMs: 60_000 })),
  )
  await eventually('polls in flight', () => agent.requests.length >= 64)
  agent.answer('/v1/plain', { body: [] })
  const startedAtMs = performance.now()
  await transport.call('GET', '/v1/plain')
  assert.ok(performance.now() - startedAtMs < 1_000)
  assert.equal(agent.requests.length, 65, 'no more than 64 connections for long polls')
  transport[Symbol.dispose]()
  assert.deepEqual(new Set(await Promise.all(polls)), new Set(['HM_CONSUL_CLOSED']))
})

test('the token is sent, and a token file is read again when it changes', async () => {
  using directory = scratch()
  await using agent = await startFakeAgent()
  agent.always('/v1/x', () => ({ body: [] }))
  const tokenFile = join(directory.path, 'token')
  writeFileSync(tokenFile, 'first-token\n')
  const clock = new TestClock()
  using transport = createTransport({ address: agent.address, tokenFile, requestTimeout }, clock)
  const sentToken = async (): Promise<unknown> => {
    await transport.call('GET', '/v1/x')
    return agent.requests.at(-1)?.headers['x-consul-token']
  }
  assert.equal(await sentToken(), 'first-token')
  writeFileSync(tokenFile, 'second-token-is-longer\n')
  clock.pass(10_000)
  assert.equal(await sentToken(), 'second-token-is-longer')
  rmSync(tokenFile)
  clock.pass(10_000)
  assert.equal(await sentToken(), 'second-token-is-longer', 'a vanished file keeps the last token')
  assert.match(transport.problems().join(), /Cannot read the Consul token from .*token/)
})

test('a token file that is missing at start, or holds no token, is an error that names it', () => {
  using directory = scratch()
  const address = 'http://127.0.0.1:1'
  const tokenFile = join(directory.path, 'token')
  assert.throws(
    () => createTransport({ address, tokenFile, requestTimeout }),
    (error) => errorCode(error) === 'HM_CONSUL_TOKEN_UNREADABLE',
  )
  writeFileSync(tokenFile, 'two\nlines')
  assert.throws(
    () => createTransport({ address, tokenFile, requestTimeout }),
    (error) => errorCode(error) === 'HM_CONSUL_TOKEN_INVALID',
  )
  const unreadableCa = { address: 'https://127.0.0.1:1', caFile: tokenFile.concat('x') }
  assert.throws(
    () => createTransport({ ...unreadableCa, requestTimeout }),
    (error) => errorCode(error) === 'HM_CONSUL_CA_UNREADABLE',
  )
})

test('addresses of another form are refused', () => {
  for (const address of [
    '',
    'localhost:8500',
    'ftp://x',
    'unix://relative',
    'http://h/path',
    'http://u:p@h',
  ])
    assert.throws(
      () => createTransport({ address, requestTimeout }),
      (error) => errorCode(error) === 'HM_CONSUL_ADDRESS_INVALID',
      address,
    )
})

test('a Unix socket works like an address', async () => {
  using directory = scratch()
  await using agent = await startFakeAgent({ socketPath: join(directory.path, 'agent.sock') })
  using transport = createTransport({ address: agent.address, requestTimeout })
  agent.answer('/v1/x', { body: { ok: true } })
  assert.deepEqual((await transport.call('PUT', '/v1/x', { body: {} })).body, { ok: true })
})

test('https is accepted with the right roots only', async () => {
  using directory = scratch()
  const key = join(directory.path, 'key.pem')
  const cert = join(directory.path, 'cert.pem')
  const request = ['-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes']
  const name = ['-subj', '/CN=agent', '-addext', 'subjectAltName=IP:127.0.0.1']
  execFileSync('openssl', ['req', ...request, ...name, '-keyout', key, '-out', cert], {
    stdio: 'ignore',
  })
  await using agent = await startFakeAgent({
    tls: { key: readFileSync(key, 'utf8'), cert: readFileSync(cert, 'utf8') },
  })
  agent.always('/v1/x', () => ({ body: [] }))
  using trusting = createTransport({ address: agent.address, caFile: cert, requestTimeout })
  assert.deepEqual((await trusting.call('GET', '/v1/x')).body, [])
  using distrusting = createTransport({ address: agent.address, requestTimeout })
  assert.equal(await failureOf(distrusting.call('GET', '/v1/x')), 'HM_CONSUL_UNREACHABLE')
  assert.equal(agent.requests.length, 1)
})

test('a call that is refused with an old token is repeated with the new one', async () => {
  using directory = scratch()
  const tokenFile = join(directory.path, 'token')
  writeFileSync(tokenFile, 'old')
  await using agent = await startFakeAgent()
  using transport = createTransport({ address: agent.address, tokenFile, requestTimeout })
  agent.always('/v1/x', ({ headers }) =>
    headers['x-consul-token'] === 'new!' ? { body: [] } : { status: 403, body: 'ACL not found' },
  )
  let changes = 0
  transport.onTokenChange(() => {
    changes += 1
  })
  assert.equal((await transport.call('GET', '/v1/x')).status, 403)
  writeFileSync(tokenFile, 'new!')
  assert.equal((await transport.call('GET', '/v1/x')).status, 200)
  assert.equal(agent.requests.length, 3)
  assert.equal(changes, 1)
})

test('a refusal names the line of the policy that is missing, or the unknown token', () => {
  const answer = { status: 403, body: undefined, index: undefined, lastContactMs: undefined }
  const said = (text: string, rule?: string): string => {
    try {
      requireOk({ ...answer, text, defaultAclPolicy: undefined }, 'this', rule)
    } catch (error) {
      return error instanceof Error ? error.message : ''
    }
    return 'nothing'
  }
  assert.match(
    said('Permission denied', ruleFor('/v1/agent/connect/ca/leaf/db')),
    /does not allow this: .*denied; the policy of the token needs: service "db" \{ policy = "write" \}$/,
  )
  assert.match(said('ACL not found', 'x'), /the token is unknown: write a valid one into/)
})
