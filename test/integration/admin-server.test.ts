/**
 * The admin API over real sockets: who gets in, what is answered, and what bounds hold against bad readers.
 */
import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { once } from 'node:events'
import { chmod, lstat, readdir, stat, writeFile } from 'node:fs/promises'
import { connect, createServer, type Socket } from 'node:net'
import { join } from 'node:path'
import { test } from 'node:test'
import { promisify } from 'node:util'
import { startAdminServer } from '../../src/daemon/admin-server.ts'
import { explain } from '../../src/daemon/explain/explain.ts'
import { type ErrorCode, MeshError } from '../../src/lib/errors.ts'
import { silentLog } from '../../src/lib/log.ts'
import { eventually } from '../harness/eventually.ts'
import { facts } from '../unit/explain-fixtures.ts'
import {
  ask,
  certs,
  connections,
  peers,
  scriptedView,
  services,
  startScripted,
  temporaryDirectory,
  wellStatus,
} from './admin-fixtures.ts'

const view = scriptedView()

function meshError(code: string): (error: unknown) => boolean {
  return (error) => error instanceof MeshError && error.code === code
}

function listening(socketPath: string): Parameters<typeof startAdminServer>[0] {
  return { socketPath, view, log: silentLog }
}

/** Sends bytes as they are and gives back all that came until the server closed. */
async function raw(socketPath: string, text: string): Promise<string> {
  const socket = connect(socketPath)
  socket.on('error', () => undefined)
  socket.write(text)
  let answer = ''
  socket.on('data', (chunk) => {
    answer += chunk.toString('latin1')
  })
  await once(socket, 'close')
  return answer
}

test('each path answers with its document as JSON, and /metrics with its text', async () => {
  await using server = await startScripted(view)
  const expected: [string, unknown][] = [
    ['/v1/status', wellStatus],
    ['/v1/services', services],
    ['/v1/peers', peers],
    ['/v1/connections', connections],
    ['/v1/certs', certs],
  ]
  for (const [path, document] of expected) {
    const answer = await ask(server.socketPath, path)
    assert.equal(answer.status, 200)
    assert.equal(answer.headers['content-type'], 'application/json; charset=utf-8')
    assert.deepEqual(JSON.parse(answer.body), document)
  }
  const metrics = await ask(server.socketPath, '/metrics?x=1')
  assert.equal(metrics.status, 200)
  assert.equal(metrics.headers['content-type'], 'text/plain; version=0.0.4; charset=utf-8')
  assert.match(metrics.body, /^a 1$/m)
})

test('everything but a plain GET of a known path is refused with a reason in JSON', async () => {
  await using server = await startScripted(view)
  const refused: [string, string, number, string][] = [
    ['GET', '/', 404, 'HM_ADMIN_PATH_NOT_FOUND'],
    ['GET', '/v1/status/', 404, 'HM_ADMIN_PATH_NOT_FOUND'],
    ['GET', '/v1/../v1/status', 404, 'HM_ADMIN_PATH_NOT_FOUND'],
    ['GET', '/v1/%73tatus', 404, 'HM_ADMIN_PATH_NOT_FOUND'],
    ['GET', '/shutdown', 404, 'HM_ADMIN_PATH_NOT_FOUND'],
    ['GET', '/__proto__', 404, 'HM_ADMIN_PATH_NOT_FOUND'],
    ['POST', '/v1/status', 405, 'HM_ADMIN_METHOD_REFUSED'],
    ['DELETE', '/v1/connections', 405, 'HM_ADMIN_METHOD_REFUSED'],
    ['TRACE', '/v1/status', 405, 'HM_ADMIN_METHOD_REFUSED'],
    ['POST', '/shutdown', 404, 'HM_ADMIN_PATH_NOT_FOUND'],
  ]
  for (const [method, path, status, code] of refused) {
    const answer = await ask(server.socketPath, path, { method })
    assert.equal(answer.status, status, `${method} ${path}`)
    const { error } = JSON.parse(answer.body)
    assert.equal(error.code, code)
    assert.ok(error.message.length > 10)
    assert.equal(answer.headers['allow'], status === 405 ? 'GET' : undefined)
  }
  const withBody = await ask(server.socketPath, '/v1/status', { body: 'x'.repeat(100) })
  assert.equal(withBody.status, 400)
  assert.equal(withBody.headers['connection'], 'close')
})

test('a request that is too long, or never ends, costs a bounded time and is refused', async () => {
  await using server = await startScripted(view)
  const longLine = await raw(server.socketPath, `GET /${'a'.repeat(20_000)} HTTP/1.1\r\n\r\n`)
  assert.match(longLine, /^HTTP\/1\.1 431 /)
  const longHeader = await raw(
    server.socketPath,
    `GET /v1/status HTTP/1.1\r\nx: ${'b'.repeat(20_000)}\r\n\r\n`,
  )
  assert.match(longHeader, /^HTTP\/1\.1 431 /)
  assert.match(await raw(server.socketPath, 'not http at all\r\n\r\n'), /^HTTP\/1\.1 400 /)
  const startMs = performance.now()
  assert.match(
    await raw(server.socketPath, 'GET /v1/status HTTP/1.1\r\nx: never'),
    /^HTTP\/1\.1 408 /,
  )
  assert.ok(performance.now() - startMs < 9_000)
})

test('of more connections than the limit those that were idle longest are closed, and the API goes on answering', async () => {
  await using server = await startScripted(view)
  const closed: number[] = []
  const sockets = Array.from({ length: 100 }, (_, index) => {
    const socket = connect(server.socketPath)
    socket.on('error', () => undefined)
    socket.on('close', () => closed.push(index))
    socket.resume()
    return socket
  })
  await eventually(() => assert.equal(closed.length, 36))
  assert.ok(Math.max(...closed) < 40, `the first ones: ${closed.join(' ')}`)
  for (let i = 0; i < 3; i += 1)
    assert.equal((await ask(server.socketPath, '/v1/status')).status, 200)
  for (const socket of sockets) socket.destroy()
})

test('parallel requests for one document make it once', async () => {
  let made = 0
  const release = Promise.withResolvers<void>()
  await using server = await startScripted(
    scriptedView({
      metrics: async () => {
        made += 1
        await release.promise
        return 'a 1\n'
      },
    }),
  )
  const answers = Array.from({ length: 40 }, () => ask(server.socketPath, '/metrics'))
  await eventually(() => assert.equal(made, 1))
  // One more round trip on another path: by then all forty are in.
  assert.equal((await ask(server.socketPath, '/v1/status')).status, 200)
  release.resolve()
  for (const answer of await Promise.all(answers)) assert.equal(answer.body, 'a 1\n')
  assert.equal(made, 1)
  await ask(server.socketPath, '/metrics')
  assert.equal(made, 2, 'a later request sees a later document')
})

test('readers that do not read are cut off, and meanwhile the API says that it is busy', async () => {
  const huge = 'x'.repeat(33 * 1_024 * 1_024)
  await using server = await startScripted(scriptedView({ metrics: () => Promise.resolve(huge) }), {
    view: 5_000,
    reader: 1_500,
  })
  const slow: Socket[] = []
  for (let i = 0; i < 2; i += 1) {
    const socket = connect(server.socketPath)
    socket.on('error', () => undefined)
    socket.pause()
    socket.write('GET /metrics HTTP/1.1\r\n\r\n')
    slow.push(socket)
    // The second must not share the first one's answer: wait until that is on its way.
    await eventually(() => assert.ok(!socket.connecting))
    await ask(server.socketPath, '/v1/status')
  }
  const busy = await eventually(async () => {
    const answer = await ask(server.socketPath, '/v1/status')
    assert.equal(answer.status, 503)
    return answer
  })
  assert.equal(JSON.parse(busy.body).error.code, 'HM_ADMIN_BUSY')
  assert.equal(busy.headers['retry-after'], '5')
  await eventually(async () =>
    assert.equal((await ask(server.socketPath, '/v1/status')).status, 200),
  )
  for (const socket of slow) socket.destroy()
})

test('a view that hangs or throws becomes an error answer without the inner message', async () => {
  await using server = await startScripted(
    scriptedView({
      peers: () => Promise.withResolvers<never>().promise,
      certs: () => Promise.reject(new Error('token s3cr3t was refused')),
      services: () =>
        Promise.reject(new MeshError('HM_CATALOG_AWAY', 'Cannot list services: not yet')),
    }),
    { view: 100, reader: 1_000 },
  )
  const hanging = await ask(server.socketPath, '/v1/peers')
  assert.equal(hanging.status, 504)
  assert.equal(JSON.parse(hanging.body).error.code, 'HM_ADMIN_VIEW_TIMEOUT')
  const throwing = await ask(server.socketPath, '/v1/certs')
  assert.equal(throwing.status, 500)
  assert.equal(JSON.parse(throwing.body).error.code, 'HM_INTERNAL')
  assert.doesNotMatch(throwing.body, /s3cr3t/)
  const ours = await ask(server.socketPath, '/v1/services')
  assert.deepEqual(JSON.parse(ours.body).error, {
    code: 'HM_CATALOG_AWAY',
    message: 'Cannot list services: not yet',
  })
  assert.equal((await ask(server.socketPath, '/v1/status')).status, 200)
})

test('the socket is 0660 in a directory of 0755, whatever the umask, and is gone after close', async () => {
  await using directory = await temporaryDirectory()
  const socketPath = join(directory.path, 'run/deep/admin.sock')
  const umask = process.umask(0o077)
  try {
    const server = await startAdminServer(listening(socketPath))
    assert.equal((await lstat(socketPath)).mode & 0o777, 0o660)
    assert.equal((await stat(join(directory.path, 'run/deep'))).mode & 0o777, 0o755)
    assert.equal((await stat(join(directory.path, 'run'))).mode & 0o777, 0o755)
    assert.equal(process.umask(), 0o077)
    await server.close()
  } finally {
    process.umask(umask)
  }
  assert.deepEqual(await readdir(join(directory.path, 'run/deep')), [])
})

test('closing does not wait for open connections', async () => {
  await using directory = await temporaryDirectory()
  const socketPath = join(directory.path, 'admin.sock')
  const server = await startAdminServer(listening(socketPath))
  const socket = connect(socketPath)
  await once(socket, 'connect')
  const closed = once(socket.resume(), 'close')
  await server.close()
  await closed
})

test('the socket is given to the group by name or number, and an unknown group is an error', async () => {
  await using directory = await temporaryDirectory()
  const socketPath = join(directory.path, 'admin.sock')
  const gid = process.getgid?.() ?? 0
  const { stdout } = await promisify(execFile)('getent', ['group', String(gid)])
  for (const group of [String(gid), stdout.split(':')[0] ?? '']) {
    await using _server = await startAdminServer({ ...listening(socketPath), group })
    assert.equal((await lstat(socketPath)).gid, gid)
  }
  await assert.rejects(
    startAdminServer({ ...listening(socketPath), group: 'no-such-group-of-hostmesh' }),
    meshError('HM_ADMIN_GROUP_UNKNOWN'),
  )
  assert.deepEqual(await readdir(directory.path), [], 'nothing is left behind')
})

test('a second daemon is refused and the first goes on', async () => {
  await using server = await startScripted(view)
  await assert.rejects(
    startAdminServer(listening(server.socketPath)),
    meshError('HM_ADMIN_SOCKET_IN_USE'),
  )
  assert.equal((await ask(server.socketPath, '/v1/status')).status, 200)
})

test('the socket file of a daemon that was killed is replaced', async () => {
  await using directory = await temporaryDirectory()
  const socketPath = join(directory.path, 'admin.sock')
  const script = `require('node:net').createServer().listen(${JSON.stringify(socketPath)}, () => process.kill(process.pid, 'SIGKILL'))`
  await assert.rejects(promisify(execFile)(process.execPath, ['-e', script]))
  assert.ok((await lstat(socketPath)).isSocket(), 'the dead one left its file')
  await using _server = await startAdminServer(listening(socketPath))
  assert.equal((await ask(socketPath, '/v1/status')).status, 200)
})

test('a file that is not a socket is never removed', async () => {
  await using directory = await temporaryDirectory()
  const socketPath = join(directory.path, 'admin.sock')
  await writeFile(socketPath, 'precious')
  await assert.rejects(
    startAdminServer(listening(socketPath)),
    meshError('HM_ADMIN_SOCKET_PATH_TAKEN'),
  )
  assert.ok((await lstat(socketPath)).isFile())
})

test('a directory that cannot be made is an error that names the path', async () => {
  await using directory = await temporaryDirectory()
  const blocker = join(directory.path, 'file')
  await writeFile(blocker, '')
  await chmod(blocker, 0o600)
  await assert.rejects(
    startAdminServer(listening(join(blocker, 'admin.sock'))),
    (error) =>
      meshError('HM_ADMIN_SOCKET_FAILED')(error) &&
      error instanceof Error &&
      error.message.includes(blocker),
  )
})

test('the TCP port serves /metrics and nothing else', async () => {
  await using directory = await temporaryDirectory()
  await using server = await startAdminServer({
    ...listening(join(directory.path, 'admin.sock')),
    metrics: { ip: '127.0.0.1', port: 0 },
  })
  const base = `http://127.0.0.1:${server.metricsAddress?.port}`
  const metrics = await fetch(`${base}/metrics`)
  assert.equal(metrics.status, 200)
  assert.match(await metrics.text(), /^a 1$/m)
  for (const path of ['/v1/status', '/v1/connections', '/v1/certs', '/']) {
    const answer = await fetch(base + path)
    assert.equal(answer.status, 404, path)
    await answer.text()
  }
})

test('a taken metrics port fails the start and leaves no socket file behind', async () => {
  await using directory = await temporaryDirectory()
  const blocker = createServer().listen(0, '127.0.0.1')
  await once(blocker, 'listening')
  const address = blocker.address()
  assert.ok(typeof address === 'object' && address !== null)
  try {
    await assert.rejects(
      startAdminServer({
        ...listening(join(directory.path, 'admin.sock')),
        metrics: { ip: '127.0.0.1', port: address.port },
      }),
      meshError('HM_METRICS_LISTEN_FAILED'),
    )
  } finally {
    blocker.close()
  }
  assert.deepEqual(await readdir(directory.path), [])
})

test('explain hears its query, each its own, and a question that is wrong is told so', async () => {
  const heard: string[] = []
  const failures: Record<string, [ErrorCode, number]> = {
    'connection=0-1': ['HM_CONNECTION_NOT_FOUND', 404],
    'from=web': ['HM_USAGE_QUESTION', 400],
    'from=web&to=%20': ['HM_USAGE_DESTINATION', 400],
  }
  await using server = await startScripted(
    scriptedView({
      explain: (query) => {
        heard.push(query)
        const failure = failures[query]
        return failure === undefined
          ? Promise.resolve(explain(facts(), { kind: 'pair', from: 'web', to: query.slice(-2) }))
          : Promise.reject(new MeshError(failure[0], 'no'))
      },
    }),
  )
  const [first, second] = await Promise.all(
    ['from=web&to=db', 'from=web&to=xx'].map((query) =>
      ask(server.socketPath, `/v1/explain?${query}`),
    ),
  )
  assert.match(first?.body ?? '', /"service":"db"/)
  assert.match(second?.body ?? '', /"verdict":"unknownService"/)
  for (const [query, [code, status]] of Object.entries(failures)) {
    const answer = await ask(server.socketPath, `/v1/explain?${query}`)
    assert.equal(answer.status, status, query)
    assert.match(answer.body, new RegExp(code))
  }
  assert.equal(heard.length, 5)
})
