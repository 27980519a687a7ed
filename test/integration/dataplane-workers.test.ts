/**
 * Whole hosts: real worker threads, real tunnels, applications on loopback.
 */
import assert from 'node:assert/strict'
import type { Socket } from 'node:net'
import { describe, test } from 'node:test'
import tls from 'node:tls'
import { readPreface } from '../../src/dataplane/tunnel/preface.ts'
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
  type TestHost,
} from './dataplane-fixtures.ts'
import {
  large,
  roundTrip,
  startDb,
  startPair,
  startTogether,
  startWeb,
  threadsOf,
} from './dataplane-pair.ts'
import { Collector, leafOf, openTunnelPort, startSession } from './tunnel-fixtures.ts'

function connectFailuresOf({ totals }: TestHost): number {
  const [row] = totals.traffic()
  return row === undefined ? 0 : trafficLayout.read(row.cells).connectFailures
}

describe('a connection through two hosts', () => {
  test('carries bytes of any size both ways, and is counted once on each', async () => {
    await using undo = new AsyncDisposableStack()
    const { web, db, port } = await startPair(undo, await startEcho())
    for (const size of [0, 1, 70_000, large.length]) {
      const { bytes, how } = await roundTrip(port, large.subarray(0, size))
      assert.equal(how, 'end')
      assert.ok(bytes.equals(large.subarray(0, size)), `${size} bytes come back`)
    }
    await eventually(() => {
      assert.deepEqual(web.closedByFlag('source'), { '-': 4 })
      assert.deepEqual(db.closedByFlag('destination'), { '-': 4 })
    })
    const [row] = web.totals.traffic()
    assert.ok(row !== undefined)
    const { sentBytes, receivedBytes } = trafficLayout.read(row.cells)
    assert.deepEqual([sentBytes, receivedBytes], [70_001 + large.length, 70_001 + large.length])
  })

  test('uses one tunnel for many', async () => {
    await using undo = new AsyncDisposableStack()
    const { web, db, port } = await startPair(undo, await startEcho())
    const answers = await Promise.all(
      Array.from({ length: 60 }, (_, i) => roundTrip(port, Buffer.from(`call ${i}`))),
    )
    for (const [i, { bytes }] of answers.entries()) assert.equal(bytes.toString(), `call ${i}`)
    assert.equal((await web.peers()).length, 1)
    const [inbound] = await db.peers()
    assert.equal(inbound?.spiffeId, 'spiffe://mesh.test/ns/default/dc/dc1/svc/web')
  })

  test('lets the called one speak first', async () => {
    await using undo = new AsyncDisposableStack()
    const application = await startApplication((socket) => {
      socket.write('220 ready\r\n')
    })
    const { port } = await startPair(undo, application)
    const caller = await dial(port)
    assert.equal(await within(5_000, 'the banner', read(caller, 11)), '220 ready\r\n')
    caller.destroy()
  })

  for (const [name, breakOff] of [
    ['caller', ([caller]: readonly [Socket, Socket]) => caller],
    ['called', ([, called]: readonly [Socket, Socket]) => called],
  ] as const)
    test(`a reset by the ${name} is one for the other side`, async () => {
      await using undo = new AsyncDisposableStack()
      const application = await startApplication()
      const { web, db, port } = await startPair(undo, application)
      const caller = await dial(port)
      caller.write('x')
      const called = await application.next()
      assert.equal(await read(called, 1), 'x')
      const sockets = [caller, called] as const
      const victim = name === 'caller' ? called : caller
      const fate = ending(victim)
      breakOff(sockets).resetAndDestroy()
      assert.equal((await within(5_000, 'the reset', fate)).how, 'ECONNRESET')
      const flags = name === 'caller' ? ['DC', 'DC'] : ['UC', 'UC']
      await eventually(() => {
        assert.deepEqual(web.closedByFlag('source'), { [flags[0]!]: 1 })
        assert.deepEqual(db.closedByFlag('destination'), { [flags[1]!]: 1 })
      })
    })

  test('a reset while the other side does not read arrives too', async () => {
    await using undo = new AsyncDisposableStack()
    const application = await startApplication()
    const { port } = await startPair(undo, application)
    const caller = await dial(port)
    caller.write('x')
    const called = await application.next()
    called.pause()
    caller.write(large)
    await eventually(() => assert.ok(caller.writableLength > 0))
    caller.resetAndDestroy()
    const fate = ending(called)
    called.resume()
    assert.equal((await within(5_000, 'the reset', fate)).how, 'ECONNRESET')
  })

  test('whose tunnel is lost is reset on both sides, never ended', async () => {
    await using undo = new AsyncDisposableStack()
    const application = await startApplication()
    const { db, port } = await startPair(undo, application)
    const caller = await dial(port)
    caller.write('x')
    const called = await application.next()
    await read(called, 1)
    const answered = ending(caller)
    called.write('half an answer')
    await eventually(() => assert.ok(caller.bytesRead > 0))
    // The whole data plane of the far host dies, as in a crash.
    await threadsOf(db)[0]!.terminate()
    assert.equal((await within(5_000, 'the reset', answered)).how, 'ECONNRESET')
  })
})

describe('policy at the destination', () => {
  test('a denied pair is reset, and the application never hears of it', async () => {
    await using undo = new AsyncDisposableStack()
    const application = await startApplication()
    const { web, db, port } = await startPair(undo, application)
    await db.publish(snapshotOf('db', [], [['web', 'deny']]))
    const caller = await dial(port)
    const fate = ending(caller)
    caller.write('early bytes')
    assert.equal((await within(5_000, 'the reset', fate)).how, 'ECONNRESET')
    assert.equal(application.connections.length, 0)
    await eventually(() => {
      assert.deepEqual(web.closedByFlag('source'), { DENY: 1 })
      assert.deepEqual(db.closedByFlag('destination'), { DENY: 1 })
    })
  })

  test('a connection that comes before the policy waits for it, and is carried then', async () => {
    await using undo = new AsyncDisposableStack()
    const application = await startApplication()
    const { db, port } = await startPair(undo, application)
    const rules = snapshotOf('db', [endpoint('db', db.tunnelPort)])
    await db.publish({ ...rules, policies: new Map() })
    const caller = await dial(port)
    caller.write('early')
    await eventually(async () => assert.equal((await db.peers())[0]?.streams, 1))
    assert.equal((await db.pool.views.connections(9)).connections.length, 0, 'it has no place yet')
    assert.equal(application.connections.length, 0)
    await db.publish(rules)
    const called = await within(5_000, 'the call', application.next())
    assert.equal(await read(called, 5), 'early')
    caller.destroy()
  })

  test('a policy that does not come within 5 s denies, on another host and on the same one', async () => {
    await using undo = new AsyncDisposableStack()
    const application = undo.use(await startApplication())
    const nearPort = await freePort()
    const target = { ip: '127.0.0.1', port: application.port }
    const db = undo.use(
      await startHost({
        services: [
          localService('db', { target }),
          localService('near', {
            upstreams: [{ destination: 'db', bind: { ip: '127.0.0.1', port: nearPort } }],
          }),
        ],
      }),
    )
    const { host: web, port } = await startWeb({ connectMs: 30_000 })
    undo.use(web)
    const rules = snapshotOf('db', [endpoint('db', db.tunnelPort)])
    await web.publish(rules)
    await db.publish({
      ...snapshotOf('db', [endpoint('db', db.tunnelPort, { local: true })]),
      policies: new Map(),
    })
    const fates = await Promise.all([port, nearPort].map((p) => roundTrip(p, Buffer.from('x'))))
    assert.deepEqual(
      fates.map(({ how }) => how),
      ['ECONNRESET', 'ECONNRESET'],
    )
    assert.equal(application.connections.length, 0, 'nothing was forwarded')
    await eventually(() => {
      assert.deepEqual(db.closedByFlag('destination'), { DENY: 1 })
      assert.deepEqual(db.closedByFlag('source'), { DENY: 1 })
    })
  })

  test('a Connect peer that is denied is reset, and the worker lives on', async () => {
    await using undo = new AsyncDisposableStack()
    const { db, port } = await startPair(undo, await startEcho())
    await db.publish(snapshotOf('db', [], [['web', 'allow']]))
    const stranger = leafOf('evil')
    const socket = tls.connect({
      host: '127.0.0.1',
      port: db.tunnelPort,
      servername: 'db.default.dc1.internal.mesh.test',
      cert: stranger.certificatePem,
      key: stranger.privateKeyPem,
      rejectUnauthorized: false,
    })
    const fate = ending(socket)
    socket.write('hello?')
    assert.match((await within(5_000, 'the end', fate)).how, /ECONNRESET|end/)
    assert.equal(
      (await roundTrip(port, Buffer.from('still there'))).bytes.toString(),
      'still there',
    )
    assert.deepEqual(
      db.pool.statuses(() => 0).map(({ restarts }) => restarts),
      [0],
    )
  })

  test('a Connect peer that is allowed is served, early bytes included', async () => {
    await using undo = new AsyncDisposableStack()
    const { db } = await startPair(undo, await startEcho())
    const leaf = leafOf('web')
    const socket = tls.connect({
      host: '127.0.0.1',
      port: db.tunnelPort,
      servername: 'db.default.dc1.internal.mesh.test',
      cert: leaf.certificatePem,
      key: leaf.privateKeyPem,
      rejectUnauthorized: false,
      allowHalfOpen: true,
    } as tls.ConnectionOptions)
    const answer = ending(socket)
    socket.end(large)
    const { bytes, how } = await within(10_000, 'the answer', answer)
    assert.equal(how, 'end')
    assert.ok(bytes.equals(large))
  })

  test('a changed intention ends live connections that it denies, and only those', async () => {
    await using undo = new AsyncDisposableStack()
    const application = undo.use(await startApplication())
    const db = undo.use(await startDb(application))
    const ports = { web: await freePort(), api: await freePort() }
    const callers = undo.use(
      await startHost({
        services: (['web', 'api'] as const).map((name) =>
          localService(name, {
            upstreams: [{ destination: 'db', bind: { ip: '127.0.0.1', port: ports[name] } }],
          }),
        ),
      }),
    )
    const both = snapshotOf(
      'db',
      [endpoint('db', db.tunnelPort)],
      [
        ['web', 'allow'],
        ['api', 'allow'],
      ],
    )
    for (const host of [callers, db]) await host.publish(both)
    const web = await dial(ports.web)
    web.write('w')
    const webCalled = await application.next()
    const api = await dial(ports.api)
    api.write('a')
    const apiCalled = await application.next()
    assert.deepEqual([await read(webCalled, 1), await read(apiCalled, 1)], ['w', 'a'])
    const fates = Promise.all([ending(web), ending(webCalled)])
    await db.publish(
      snapshotOf(
        'db',
        [endpoint('db', db.tunnelPort)],
        [
          ['web', 'deny'],
          ['api', 'allow'],
        ],
      ),
    )
    const [near, far] = await within(5_000, 'the resets', fates)
    assert.deepEqual([near.how, far.how], ['ECONNRESET', 'ECONNRESET'])
    api.write('b')
    assert.equal(await read(apiCalled, 1), 'b')
    api.destroy()
  })
})

describe('another instance is tried', () => {
  /** Two hosts with db: on the first nobody listens, the second echoes. */
  async function startThree(
    undo: AsyncDisposableStack,
    first: 'no application' | 'no tunnel' | 'unknown instance',
  ): Promise<{ web: TestHost; port: number }> {
    const echo = undo.use(await startEcho())
    const good = undo.use(await startDb(echo))
    const { host: web, port } = await startWeb()
    undo.use(web)
    const dead = { port: await freePort() }
    const bad = first === 'no tunnel' ? undefined : undo.use(await startDb(dead))
    const badPort = bad?.tunnelPort ?? dead.port
    const endpoints = [
      endpoint('db', badPort, first === 'unknown instance' ? { id: 'db-7' } : {}),
      endpoint('db', good.tunnelPort),
    ]
    const snapshot = snapshotOf('db', endpoints)
    for (const host of [web, good, bad]) await host?.publish(snapshot)
    return { web, port }
  }

  for (const first of ['no application', 'no tunnel', 'unknown instance'] as const)
    for (const size of [0, 10, 60_000, 300_000])
      test(`after one with ${first}: ${size} early bytes are said to the second, once`, async () => {
        await using undo = new AsyncDisposableStack()
        const { web, port } = await startThree(undo, first)
        let failures = 0
        for (let i = 0; i < 12 && failures === 0; i += 1) {
          const { bytes, how } = await roundTrip(port, large.subarray(i, i + size))
          assert.equal(how, 'end')
          assert.ok(bytes.equals(large.subarray(i, i + size)), 'exactly once')
          failures = connectFailuresOf(web)
        }
        assert.ok(failures > 0, 'the bad one was tried at least once')
      })

  test('so at most 64 KiB go to one that has not confirmed; the rest follows its confirmation', async () => {
    await using undo = new AsyncDisposableStack()
    const tunnelPort = undo.use(await openTunnelPort(['db']))
    const { host: web, port } = await startWeb()
    undo.use(web)
    await web.publish(snapshotOf('db', [endpoint('db', tunnelPort.port)]))
    const caller = await dial(port)
    caller.end(large.subarray(0, 1_000_000))
    const { socket } = await within(5_000, 'the tunnel', tunnelPort.next())
    const { nextStream } = startSession(socket, 'acceptor')
    const stream = await within(5_000, 'the stream', nextStream())
    const reader = new Collector(stream)
    stream.resume()
    let preface = 0
    await within(
      5_000,
      'early bytes',
      reader.until(() => {
        const reading = readPreface(reader.bytes)
        preface = reading.state === 'complete' ? reading.length : 0
        return preface > 0 && reader.length - preface >= 65_536
      }),
    )
    await new Promise((resolve) => setTimeout(resolve, 50))
    assert.equal(reader.length - preface, 65_536)
    assert.equal(reader.ended, false)
    stream.confirm()
    await within(
      5_000,
      'the rest',
      reader.until(() => reader.ended),
    )
    assert.ok(reader.bytes.subarray(preface).equals(large.subarray(0, 1_000_000)))
    stream.end()
    assert.equal((await within(5_000, 'the end', ending(caller))).how, 'end')
  })

  test('but not after a denial', async () => {
    await using undo = new AsyncDisposableStack()
    const application = undo.use(await startApplication())
    const hosts = [undo.use(await startDb(application)), undo.use(await startDb(application))]
    const { host: web, port } = await startWeb()
    undo.use(web)
    const snapshot = snapshotOf(
      'db',
      hosts.map((host) => endpoint('db', host.tunnelPort)),
      [['web', 'deny']],
    )
    for (const host of [web, ...hosts]) await host.publish(snapshot)
    assert.equal((await roundTrip(port, Buffer.from('x'))).how, 'ECONNRESET')
    await eventually(() => assert.deepEqual(web.closedByFlag('source'), { DENY: 1 }))
    assert.equal(connectFailuresOf(web), 1)
  })

  test('and when none can be reached the caller is reset soon', async () => {
    await using undo = new AsyncDisposableStack()
    const { host: web, port } = await startWeb()
    undo.use(web)
    await web.publish(
      snapshotOf('db', [endpoint('db', await freePort()), endpoint('db', await freePort())]),
    )
    const startedMs = performance.now()
    assert.equal((await roundTrip(port, Buffer.from('x'))).how, 'ECONNRESET')
    assert.ok(performance.now() - startedMs < 2_500)
    await eventually(() => assert.deepEqual(web.closedByFlag('source'), { UF: 1 }))
  })

  test('instances that are critical are not; without any other the caller is reset', async () => {
    await using undo = new AsyncDisposableStack()
    const { db, web, port } = await startPair(undo, await startEcho())
    await web.publish(snapshotOf('db', [endpoint('db', db.tunnelPort, { health: 'critical' })]))
    assert.equal((await roundTrip(port, Buffer.from('x'))).how, 'ECONNRESET')
    await eventually(() => assert.deepEqual(web.closedByFlag('source'), { UH: 1 }))
  })
})

describe('an instance on the same host', () => {
  test('is reached without a tunnel, with large writes too', async () => {
    await using undo = new AsyncDisposableStack()
    const { host, port } = await startTogether(undo, await startEcho(), 'allow')
    const { bytes, how } = await roundTrip(port, large)
    assert.equal(how, 'end')
    assert.ok(bytes.equals(large))
    assert.deepEqual(await host.peers(), [])
  })

  test('is guarded by the same policy, also for live connections', async () => {
    await using undo = new AsyncDisposableStack()
    const { host, port } = await startTogether(undo, await startEcho(), 'deny')
    assert.equal((await roundTrip(port, Buffer.from('x'))).how, 'ECONNRESET')
    await host.publish(snapshotOf('db', [endpoint('db', host.tunnelPort, { local: true })]))
    assert.equal((await roundTrip(port, Buffer.from('x'))).how, 'end')
    const caller = await dial(port)
    caller.write('x')
    assert.equal(await read(caller, 1), 'x')
    const fate = ending(caller)
    await host.publish(
      snapshotOf('db', [endpoint('db', host.tunnelPort, { local: true })], [['web', 'deny']]),
    )
    assert.equal((await within(5_000, 'the reset', fate)).how, 'ECONNRESET')
  })

  test('is guarded as the service that it is, under whatever name it was called', async () => {
    await using undo = new AsyncDisposableStack()
    const echo = undo.use(await startEcho())
    const port = await freePort()
    const upstreams = [{ destination: 'old-db', bind: { ip: '127.0.0.1', port } }]
    const host = undo.use(
      await startHost({
        services: [
          localService('web', { upstreams }),
          localService('db', { target: { ip: '127.0.0.1', port: echo.port } }),
        ],
      }),
    )
    const own = endpoint('db', host.tunnelPort, { local: true })
    const publish = (...rules: [string, 'allow' | 'deny'][]): Promise<void> =>
      host.publish({
        ...snapshotOf('old-db', [own]),
        policies: snapshotOf('db', [], rules).policies,
      })
    await publish(['web', 'deny'])
    const outcome = async (): Promise<string> =>
      roundTrip(port, Buffer.from('x')).then(({ how }) => how, String)
    assert.match(await outcome(), /ECONNRESET/)
    await publish(['web', 'allow'])
    assert.equal(await outcome(), 'end')
    const caller = await dial(port)
    caller.write('x')
    assert.equal(await read(caller, 1), 'x')
    await publish(['web', 'allow'], ['other', 'deny'])
    caller.write('y')
    assert.equal(await read(caller, 1), 'y', 'another rule has changed')
    const fate = ending(caller)
    await publish(['web', 'deny'])
    assert.equal((await within(5_000, 'the reset', fate)).how, 'ECONNRESET')
  })
})
