/** An application whose accept queue is full for a moment: the caller waits for that moment, not for the kernel's next SYN. */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { type AddressInfo, connect, createServer, type Socket } from 'node:net'
import { test } from 'node:test'
import { dialLocal } from '../../src/dataplane/deliver/dial-local.ts'
import { errorCode } from '../../src/lib/errors.ts'
import {
  closeDescriptor,
  duplicateDescriptor,
  openListeningSocket,
} from '../../src/lib/listening-socket.ts'
import { eventually, within } from '../harness/eventually.ts'
import {
  dial,
  ending,
  endpoint,
  freePort,
  localService,
  snapshotOf,
  startHost,
} from './dataplane-fixtures.ts'

/** A listening socket from which nobody accepts, with room for one, and full. */
async function fullQueue(): Promise<{ port: number; fd: number; waiting: Socket[] }> {
  const port = await freePort()
  const fd = openListeningSocket({ kind: 'tcp', ip: '127.0.0.1', port })
  // Node's listen(2) makes the queue shorter; a server that is closed again leaves it so.
  const short = createServer().listen({ fd: duplicateDescriptor(fd) }, 1)
  await once(short, 'listening')
  short.close()
  await once(short, 'close')
  const waiting: Socket[] = []
  for (let i = 0; i < 2; i += 1) {
    const socket = connect(port, '127.0.0.1')
    await once(socket, 'connect')
    waiting.push(socket)
  }
  return { port, fd, waiting }
}

test('a connection is made as soon as there is room', async () => {
  const { port, fd, waiting } = await fullQueue()
  const startMs = performance.now()
  const dialed = dialLocal({ target: { ip: '127.0.0.1', port } }, 5_000, 'private')
  await new Promise((resolve) => setTimeout(resolve, 450))
  const server = createServer((socket) => socket.destroy()).listen({ fd })
  const stream = await dialed
  const tookMs = performance.now() - startMs
  assert.ok(tookMs >= 440 && tookMs < 950, `it took ${tookMs} ms`)
  stream.reset()
  for (const socket of waiting) socket.destroy()
  server.close()
})

test('without room it ends at its deadline', async () => {
  const { port, fd, waiting } = await fullQueue()
  const startMs = performance.now()
  await assert.rejects(
    dialLocal({ target: { ip: '127.0.0.1', port } }, 500, 'private'),
    (error) => errorCode(error) === 'HM_DELIVER_TIMEOUT',
  )
  const tookMs = performance.now() - startMs
  assert.ok(tookMs >= 490 && tookMs < 2_000, `it took ${tookMs} ms`)
  for (const socket of waiting) socket.destroy()
  closeDescriptor(fd)
})

test('nobody there is an error at once', async () => {
  const server = createServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  server.close()
  await once(server, 'close')
  await assert.rejects(
    dialLocal({ target: { ip: '127.0.0.1', port } }, 5_000, 'private'),
    (error) => errorCode(error) === 'HM_DELIVER_UNREACHABLE',
  )
})

test('a connection that is denied while it waits is not in flight any more', async () => {
  await using undo = new AsyncDisposableStack()
  const { port: target, fd, waiting } = await fullQueue()
  const port = await freePort()
  const host = undo.use(
    await startHost({
      services: [
        localService('web', {
          upstreams: [{ destination: 'db', bind: { ip: '127.0.0.1', port } }],
        }),
        localService('db', { target: { ip: '127.0.0.1', port: target } }),
      ],
    }),
  )
  const instances = [endpoint('db', host.tunnelPort, { local: true })]
  const inFlight = async (): Promise<number[]> =>
    (await host.pool.views.loads('db')).map((load) => load.inFlight)
  await host.publish(snapshotOf('db', instances))
  const caller = ending(await dial(port))
  await eventually(async () => assert.deepEqual(await inFlight(), [1]))
  await host.publish(snapshotOf('db', instances, [['web', 'deny']]))
  assert.equal((await within(5_000, 'the reset', caller)).how, 'ECONNRESET')
  const server = createServer((socket) => socket.destroy()).listen({ fd })
  undo.defer(() => {
    for (const socket of waiting) socket.destroy()
    server.close()
  })
  await eventually(() => assert.deepEqual(host.closedByFlag('source'), { DENY: 1 }))
  assert.deepEqual(await inFlight(), [0])
})
