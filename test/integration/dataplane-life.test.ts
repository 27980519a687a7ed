/**
 * The end of a worker, by accident and in order: what becomes of the connections that it carries.
 */
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { eventually, within } from '../harness/eventually.ts'
import { dial, ending, read, startApplication, startEcho } from './dataplane-fixtures.ts'
import { large, roundTrip, startPair, threadsOf } from './dataplane-pair.ts'

describe('a worker that dies', () => {
  test('leaves the other serving, is replaced, and takes only its own connections with it', async () => {
    await using undo = new AsyncDisposableStack()
    const { web, port } = await startPair(undo, await startEcho(), { web: { workers: 2 } })
    const open = await Promise.all(Array.from({ length: 24 }, () => dial(port)))
    for (const socket of open) socket.write('x')
    await Promise.all(open.map((socket) => read(socket, 1)))
    const fates = open.map((socket) => ending(socket))
    const [victim] = threadsOf(web)
    await victim!.terminate()
    // New connections are served at once, by whoever is left.
    for (let i = 0; i < 10; i += 1)
      assert.equal((await roundTrip(port, Buffer.from('new'))).bytes.toString(), 'new')
    await eventually(() => {
      const statuses = web.pool.statuses(() => 0)
      assert.deepEqual(
        statuses.map(({ state, restarts }) => `${state} ${restarts}`),
        ['running 1', 'running 0'],
      )
    })
    const { connections } = await web.pool.connections(1_000)
    const survivors = connections.filter(({ state }) => state === 'open')
    assert.ok(survivors.length > 0 && survivors.length < 24, `${survivors.length} are left`)
    let alive = 0
    for (const socket of open) if (!socket.destroyed && socket.write('y')) alive += 1
    assert.ok(alive >= survivors.length)
    for (const socket of open) socket.destroy()
    await Promise.all(fates)
  })
})

describe('a stop', () => {
  for (const side of ['calling', 'called'] as const)
    test(`of the ${side} host lets an open connection finish`, async () => {
      await using undo = new AsyncDisposableStack()
      const application = await startApplication()
      const { web, db, port } = await startPair(undo, application)
      const caller = await dial(port)
      caller.write('hello')
      const called = await application.next()
      assert.equal(await read(called, 5), 'hello')
      const drained = (side === 'calling' ? web : db).pool.drain(20_000)
      caller.end(large)
      const got = await within(10_000, 'the rest', ending(called))
      assert.equal(got.how, 'end')
      assert.ok(got.bytes.equals(large))
      called.end('bye')
      assert.deepEqual(await within(5_000, 'the answer', ending(caller)), {
        bytes: Buffer.from('bye'),
        how: 'end',
      })
      await within(5_000, 'the drain', drained)
    })

  for (const side of ['calling', 'called'] as const)
    test(`of the ${side} host gives a slow reader all that was sent before the end`, async () => {
      await using undo = new AsyncDisposableStack()
      const application = await startApplication((socket) => {
        socket.once('data', () => socket.end(large))
      })
      const { web, db, port } = await startPair(undo, application)
      const caller = await dial(port)
      caller.end('give')
      caller.pause()
      await eventually(() =>
        assert.ok(db.totals.traffic().some(({ receivedBytes }) => receivedBytes > 0)),
      )
      const drained = (side === 'calling' ? web : db).pool.drain(20_000)
      await new Promise((resolve) => setTimeout(resolve, 300))
      const { bytes, how } = await within(10_000, 'the bytes', ending(caller))
      assert.equal(how, 'end')
      assert.ok(bytes.equals(large), `${bytes.length} bytes`)
      await within(5_000, 'the drain', drained)
    })

  for (const side of ['calling', 'called'] as const)
    test(`of the ${side} host resets what is open at the deadline, on both sides`, async () => {
      await using undo = new AsyncDisposableStack()
      const application = await startApplication()
      const { web, db, port } = await startPair(undo, application)
      const caller = await dial(port)
      caller.write('x')
      const called = await application.next()
      await read(called, 1)
      const fates = Promise.all([ending(caller), ending(called)])
      const startedMs = performance.now()
      await within(5_000, 'the drain', (side === 'calling' ? web : db).pool.drain(300))
      assert.ok(performance.now() - startedMs >= 300)
      assert.deepEqual(
        (await within(5_000, 'the resets', fates)).map(({ how }) => how),
        ['ECONNRESET', 'ECONNRESET'],
      )
    })

  test('takes no new connections', async () => {
    await using undo = new AsyncDisposableStack()
    const application = await startApplication()
    const { web, port } = await startPair(undo, application)
    const caller = await dial(port)
    caller.write('x')
    await application.next()
    const drained = web.pool.drain(10_000)
    await eventually(async () => {
      const failed = await dial(port).then(
        (socket) => {
          socket.destroy()
          return false
        },
        () => true,
      )
      assert.ok(failed)
    })
    caller.resetAndDestroy()
    await within(5_000, 'the drain', drained)
  })
})
