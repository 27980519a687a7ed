/**
 * The end of a worker, by accident and in order: what becomes of the connections that it carries.
 */
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { ListeningSockets } from '../../src/daemon/listening-sockets.ts'
import { openListeningSocket } from '../../src/lib/listening-socket.ts'
import { silentLog } from '../../src/lib/log.ts'
import { trafficLayout } from '../../src/telemetry/counters.ts'
import { eventually, within } from '../harness/eventually.ts'
import {
  dial,
  ending,
  endpoint,
  freePort,
  localService,
  read,
  snapshotOf,
  startApplication,
  startEcho,
  startHost,
} from './dataplane-fixtures.ts'
import { large, roundTrip, startDb, startPair, startWeb, threadsOf } from './dataplane-pair.ts'

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
    const { connections } = await web.pool.views.connections(1_000)
    const survivors = connections.filter(({ state }) => state === 'open')
    assert.ok(survivors.length > 0 && survivors.length < 24, `${survivors.length} are left`)
    let alive = 0
    for (const socket of open) if (!socket.destroyed && socket.write('y')) alive += 1
    assert.ok(alive >= survivors.length)
    for (const socket of open) socket.destroy()
    await Promise.all(fates)
  })
})

describe('a host that has fewer workers than the one before it', () => {
  const EARLIER = 3

  test('serves who waits in the sockets of all of those, and who comes', async () => {
    await using undo = new AsyncDisposableStack()
    const [port, tunnelPort] = [await freePort(), await freePort()]
    const kept = new Map<string, number>()
    const inherited = [
      { name: `upstream/web/127.0.0.1/${port}`, port },
      { name: 'tunnel', port: tunnelPort },
    ].flatMap((listener) =>
      Array.from({ length: EARLIER }, (_, worker) => ({
        name: `${listener.name}/${worker}`,
        fd: openListeningSocket({ kind: 'tcp', ip: '127.0.0.1', port: listener.port }),
      })),
    )
    const keeper = {
      keep: (name: string, fd: number) => void kept.set(name, fd),
      forget: (name: string) => void kept.delete(name),
    }
    const sockets = undo.use(new ListeningSockets(silentLog, { keeper, inherited }))
    // So many that the kernel has surely dealt some to each.
    const callers = await Promise.all(Array.from({ length: 40 }, () => dial(port)))
    const strangers = await Promise.all(Array.from({ length: 40 }, () => dial(tunnelPort)))

    const application = undo.use(await startEcho())
    const db = undo.use(await startDb(application))
    const upstreams = [{ destination: 'db', bind: { ip: '127.0.0.1', port } }]
    const services = [localService('web', { upstreams })]
    const web = undo.use(await startHost({ services, sockets, tunnelPort }))
    const snapshot = snapshotOf('db', [endpoint('db', db.tunnelPort)])
    await web.publish(snapshot)
    await db.publish(snapshot)

    callers.push(...(await Promise.all(Array.from({ length: 40 }, () => dial(port)))))
    for (const socket of callers) socket.write('x')
    const answers = Promise.all(callers.map((socket) => read(socket, 1)))
    assert.deepEqual(new Set(await within(10_000, 'the answers', answers)), new Set(['x']))
    // Nobody but a worker ends those: they do not speak TLS.
    strangers.push(...(await Promise.all(Array.from({ length: 40 }, () => dial(tunnelPort)))))
    const ends = Promise.all(strangers.map((socket) => ending(socket)))
    for (const socket of strangers) socket.write('GET / HTTP/1.0\r\n\r\n')
    await within(10_000, 'the ends of strangers', ends)
    assert.deepEqual([...kept.keys()].toSorted(), inherited.map(({ name }) => name).toSorted())
    for (const socket of callers) socket.destroy()

    await web.pool.drain(0)
    assert.equal(kept.size, 0)
    await assert.rejects(dial(port))
  })
})

describe('a peer whose daemon is slow to come back, while systemd holds its sockets', () => {
  test('serves all who have not waited for as long as they may', async () => {
    await using undo = new AsyncDisposableStack()
    const application = undo.use(await startEcho())
    const db = undo.use(await startDb(application))
    const thawed = Promise.withResolvers<void>()
    // Takes connections, and says nothing before it is told.
    const frozen = undo.use(
      await startApplication((socket) => {
        void thawed.promise.then(async () => {
          const through = await dial(db.tunnelPort)
          socket.pipe(through).pipe(socket)
          socket.once('close', () => through.destroy())
        })
      }),
    )
    const { host: web, port } = await startWeb({ connectMs: 3_000 })
    undo.use(web)
    await web.publish(snapshotOf('db', [endpoint('db', frozen.port)]))
    await db.publish(snapshotOf('db', [endpoint('db', db.tunnelPort)]))
    const first = await dial(port)
    const firstEnding = ending(first)
    await new Promise((resolve) => setTimeout(resolve, 2_000))
    const later = await Promise.all(Array.from({ length: 20 }, () => dial(port)))
    for (const socket of later) socket.write('x')
    const answers = Promise.all(later.map((socket) => read(socket, 1)))
    assert.equal((await within(10_000, 'the first one', firstEnding)).how, 'ECONNRESET')
    assert.deepEqual(
      later.map(({ destroyed }) => destroyed),
      later.map(() => false),
    )
    thawed.resolve()
    await within(10_000, 'the answers', answers)
    for (const socket of later) socket.destroy()
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
        assert.ok(
          db.totals.traffic().some(({ cells }) => trafficLayout.read(cells).receivedBytes > 0),
        ),
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
