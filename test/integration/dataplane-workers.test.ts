/**
 * Whole hosts: real worker threads, real tunnels, applications on loopback.
 */
import assert from 'node:assert/strict'
import { createHash, randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { type AddressInfo, createServer } from 'node:net'
import { test } from 'node:test'
import { eventually, within } from '../harness/eventually.ts'
import {
  type Application,
  dial,
  ending,
  endpoint,
  freePort,
  type HostOptions,
  localService,
  read,
  snapshotOf,
  startApplication,
  startEcho,
  startHost,
  type TestHost,
} from './dataplane-fixtures.ts'

/** A host with service web that reaches db through an explicit upstream. */
async function startWeb(
  options: Omit<HostOptions, 'services'> = {},
): Promise<{ host: TestHost; port: number }> {
  const port = await freePort()
  const host = await startHost({
    ...options,
    services: [
      localService('web', {
        upstreams: [{ destination: 'db', bind: { ip: '127.0.0.1', port } }],
      }),
    ],
  })
  return { host, port }
}

/** A host with service db in front of `application`. */
function startDb(
  application: Pick<Application, 'port'>,
  options: Omit<HostOptions, 'services'> = {},
): Promise<TestHost> {
  return startHost({
    ...options,
    services: [localService('db', { target: { ip: '127.0.0.1', port: application.port } })],
  })
}

/** web on one host, db on another, web may reach db. */
async function startPair(
  undo: AsyncDisposableStack,
  application: Application,
  options: { web?: Omit<HostOptions, 'services'>; db?: Omit<HostOptions, 'services'> } = {},
): Promise<{ web: TestHost; db: TestHost; port: number }> {
  undo.use(application)
  const db = undo.use(await startDb(application, options.db))
  const { host: web, port } = await startWeb(options.web)
  undo.use(web)
  const snapshot = snapshotOf('db', [endpoint('db', db.tunnelPort)])
  web.publish(snapshot)
  db.publish(snapshot)
  return { web, db, port }
}

test('a stop of the calling host lets an open connection finish', async () => {
  await using undo = new AsyncDisposableStack()
  const application = await startApplication()
  const { web, port } = await startPair(undo, application)
  const caller = await dial(port)
  caller.write('hello')
  const called = await application.next()
  assert.equal(await read(called, 5), 'hello')
  const drained = web.pool.drain(20_000)
  const bytes = randomBytes(4_000_000)
  caller.end(bytes)
  const got = await within(5_000, 'the rest', ending(called))
  assert.equal(got.how, 'end')
  assert.equal(got.bytes.length, bytes.length)
  assert.ok(got.bytes.equals(bytes))
  called.end('bye')
  assert.deepEqual(await within(5_000, 'the answer', ending(caller)), {
    bytes: Buffer.from('bye'),
    how: 'end',
  })
  await within(5_000, 'the drain', drained)
})
