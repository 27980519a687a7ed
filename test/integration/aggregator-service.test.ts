/** `hostmesh aggregator` as a process: it says what is wrong with its file, serves, tells systemd, and ends by a signal. */
import assert from 'node:assert/strict'
import { execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync } from 'node:fs'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { request } from 'node:http'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, test } from 'node:test'
import { promisify } from 'node:util'
import { portOf } from '../../src/lib/json-http.ts'
import { eventually } from '../harness/eventually.ts'

const run = promisify(execFile)

async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  const port = portOf(server)
  server.close()
  return port
}

const root = new URL('../..', import.meta.url).pathname
let directory = ''

before(async () => {
  directory = await mkdtemp(join(tmpdir(), 'hostmesh-service-'))
})
after(() => rm(directory, { recursive: true, force: true }))

test('a wrong file is exit code 2, with all that is wrong with it', async () => {
  const path = join(directory, 'wrong.yaml')
  await writeFile(path, 'listen: {address: 0.0.0.0}\nreports: {address: 0.0.0.0}\n')
  await assert.rejects(
    run(join(root, 'scripts/hostmesh'), ['aggregator', '--config', path]),
    (error: Error & { code?: number; stderr?: string }) => {
      assert.equal(error.code, 2)
      assert.match(error.stderr ?? '', /wrong\.yaml:1:19: listen\.address: .*\n.*wrong\.yaml:2:20/)
      assert.match(error.stderr ?? '', /hint: See .*observability\.md/)
      return true
    },
  )
})

test('it serves until SIGTERM, and leaves no socket behind', async () => {
  const path = join(directory, 'aggregator.yaml')
  const socketPath = join(directory, 'api.sock')
  await writeFile(
    path,
    `listen: {socket: ${socketPath}, port: ${await freePort()}}\nreports: {port: ${await freePort()}}\nstore: {directory: ${directory}}\n`,
  )
  const child = spawn(join(root, 'scripts/hostmesh'), ['aggregator', '--config', path], {
    stdio: ['ignore', 'inherit', 'pipe'],
  })
  let log = ''
  child.stderr.on('data', (chunk: Buffer) => (log += chunk.toString()))
  const exited = once(child, 'exit')
  await eventually(() => assert.match(log, /Serving the fleet/), { withinMs: 30_000 })
  const status = await new Promise((resolve, reject) => {
    request({ socketPath, path: '/api/v1/overview' }, (response) => resolve(response.statusCode))
      .on('error', reject)
      .end()
  })
  assert.equal(status, 200)
  child.kill('SIGTERM')
  assert.deepEqual(await exited, [0, null])
  assert.match(log, /"signal":"SIGTERM"/)
  assert.equal(existsSync(socketPath), false)
})
