/**
 * Whole hosts: real worker threads, real tunnels, applications on loopback.
 */
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import type { Socket } from 'node:net'
import { describe, test } from 'node:test'
import tls from 'node:tls'
import type { Worker } from 'node:worker_threads'
import { resetCodes } from '../../src/dataplane/tunnel/frame.ts'
import { encodePreface, readPreface } from '../../src/dataplane/tunnel/preface.ts'
import { StreamResetError } from '../../src/dataplane/tunnel/stream.ts'
import { errorCode } from '../../src/lib/errors.ts'
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
import {
  Collector,
  dialAs,
  leafOf,
  openTunnelPort,
  type SessionEnd,
  startSession,
} from './tunnel-fixtures.ts'

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

/** Sends `bytes`, ends, and returns all that comes back. */
async function roundTrip(port: number, bytes: Buffer): Promise<{ bytes: Buffer; how: string }> {
  const socket = await dial(port)
  const answer = ending(socket)
  socket.end(bytes)
  return within(15_000, 'the answer', answer)
}

const large = randomBytes(6_000_000)

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
    assert.equal(row?.sentBytes, 70_001 + large.length)
    assert.equal(row?.receivedBytes, 70_001 + large.length)
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
    db.publish(snapshotOf('db', [], [['web', 'deny']]))
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
    db.publish({ ...rules, policies: new Map() })
    const caller = await dial(port)
    caller.write('early')
    await eventually(async () => assert.equal((await db.peers())[0]?.streams, 1))
    assert.equal((await db.pool.connections(9)).connections.length, 0, 'it has no place yet')
    assert.equal(application.connections.length, 0)
    db.publish(rules)
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
    web.publish(rules)
    db.publish({
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
    db.publish(snapshotOf('db', [], [['web', 'allow']]))
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
    for (const host of [callers, db]) host.publish(both)
    const web = await dial(ports.web)
    web.write('w')
    const webCalled = await application.next()
    const api = await dial(ports.api)
    api.write('a')
    const apiCalled = await application.next()
    assert.deepEqual([await read(webCalled, 1), await read(apiCalled, 1)], ['w', 'a'])
    const fates = Promise.all([ending(web), ending(webCalled)])
    db.publish(
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
    for (const host of [web, good, bad]) host?.publish(snapshot)
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
          failures = web.totals.traffic()[0]?.connectFailures ?? 0
        }
        assert.ok(failures > 0, 'the bad one was tried at least once')
      })

  test('so at most 64 KiB go to one that has not confirmed; the rest follows its confirmation', async () => {
    await using undo = new AsyncDisposableStack()
    const tunnelPort = undo.use(await openTunnelPort(['db']))
    const { host: web, port } = await startWeb()
    undo.use(web)
    web.publish(snapshotOf('db', [endpoint('db', tunnelPort.port)]))
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
    for (const host of [web, ...hosts]) host.publish(snapshot)
    assert.equal((await roundTrip(port, Buffer.from('x'))).how, 'ECONNRESET')
    await eventually(() => assert.deepEqual(web.closedByFlag('source'), { DENY: 1 }))
    assert.equal(web.totals.traffic()[0]?.connectFailures, 1)
  })

  test('and when none can be reached the caller is reset soon', async () => {
    await using undo = new AsyncDisposableStack()
    const { host: web, port } = await startWeb()
    undo.use(web)
    web.publish(
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
    web.publish(snapshotOf('db', [endpoint('db', db.tunnelPort, { health: 'critical' })]))
    assert.equal((await roundTrip(port, Buffer.from('x'))).how, 'ECONNRESET')
    await eventually(() => assert.deepEqual(web.closedByFlag('source'), { UH: 1 }))
  })
})

describe('an instance on the same host', () => {
  async function startTogether(
    undo: AsyncDisposableStack,
    action: 'allow' | 'deny',
  ): Promise<{ host: TestHost; port: number }> {
    const echo = undo.use(await startEcho())
    const port = await freePort()
    const host = undo.use(
      await startHost({
        services: [
          localService('web', {
            upstreams: [{ destination: 'db', bind: { ip: '127.0.0.1', port } }],
          }),
          localService('db', { target: { ip: '127.0.0.1', port: echo.port } }),
        ],
      }),
    )
    host.publish(
      snapshotOf('db', [endpoint('db', host.tunnelPort, { local: true })], [['web', action]]),
    )
    return { host, port }
  }

  test('is reached without a tunnel, with large writes too', async () => {
    await using undo = new AsyncDisposableStack()
    const { host, port } = await startTogether(undo, 'allow')
    const { bytes, how } = await roundTrip(port, large)
    assert.equal(how, 'end')
    assert.ok(bytes.equals(large))
    assert.deepEqual(await host.peers(), [])
  })

  test('is guarded by the same policy, also for live connections', async () => {
    await using undo = new AsyncDisposableStack()
    const { host, port } = await startTogether(undo, 'deny')
    assert.equal((await roundTrip(port, Buffer.from('x'))).how, 'ECONNRESET')
    host.publish(snapshotOf('db', [endpoint('db', host.tunnelPort, { local: true })]))
    // The worker hears of it by a message, which a connection may overtake.
    await eventually(async () => assert.equal((await roundTrip(port, Buffer.from('x'))).how, 'end'))
    const caller = await dial(port)
    caller.write('x')
    assert.equal(await read(caller, 1), 'x')
    const fate = ending(caller)
    host.publish(
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
    const publish = (...rules: [string, 'allow' | 'deny'][]): void =>
      host.publish({
        ...snapshotOf('old-db', [own]),
        policies: snapshotOf('db', [], rules).policies,
      })
    publish(['web', 'deny'])
    const outcome = async (): Promise<string> =>
      roundTrip(port, Buffer.from('x')).then(({ how }) => how, String)
    assert.match(await outcome(), /ECONNRESET/)
    publish(['web', 'allow'])
    // Message and connection reach the worker by different ways.
    await eventually(async () => assert.equal(await outcome(), 'end'))
    const caller = await dial(port)
    caller.write('x')
    assert.equal(await read(caller, 1), 'x')
    publish(['web', 'allow'], ['other', 'deny'])
    caller.write('y')
    assert.equal(await read(caller, 1), 'y', 'another rule has changed')
    const fate = ending(caller)
    publish(['web', 'deny'])
    assert.equal((await within(5_000, 'the reset', fate)).how, 'ECONNRESET')
  })
})

describe('what a caller may have', () => {
  test('descriptors: a caller has half of what is free, another one still its part, and endings give them back', async () => {
    await using undo = new AsyncDisposableStack()
    const application = undo.use(await startEcho())
    // 24 for connections: this host has no door but the tunnel port.
    const db = undo.use(await startDb(application, { descriptors: 40 }))
    db.publish(
      snapshotOf(
        'db',
        [],
        [
          ['web', 'allow'],
          ['api', 'allow'],
        ],
      ),
    )
    const preface = encodePreface({
      source: undefined,
      destination: undefined,
      instance: undefined,
      traceparent: undefined,
    })
    const open = (end: SessionEnd): Promise<string> => {
      const stream = end.session.open(preface)
      const reader = new Collector(stream)
      return new Promise((resolve) => {
        const served = (): void => resolve('served')
        stream.onConfirmed = served
        void reader
          .until(() => reader.reset !== undefined)
          .then(() =>
            resolve(reader.reset instanceof StreamResetError ? reader.reset.reason : 'lost'),
          )
      })
    }
    const tunnel = async (source: string): Promise<SessionEnd> => {
      const { socket } = await dialAs(db.tunnelPort, source)
      undo.defer(() => {
        socket.destroy()
      })
      return startSession(socket, 'opener')
    }
    const hog = await tunnel('web')
    const outcomes: string[] = []
    for (let i = 0; i < 15; i += 1) outcomes.push(await within(10_000, 'an answer', open(hog)))
    assert.deepEqual([...new Set(outcomes)], ['served', 'overloaded'])
    const served = outcomes.filter((outcome) => outcome === 'served').length
    assert.ok(served >= 8 && served <= 11, `${served} of 24 descriptors`)
    assert.equal(db.totals.counters().limitDescriptors, 15 - served)
    const meek = await tunnel('api')
    assert.equal(await within(10_000, 'an answer', open(meek)), 'served')
    hog.socket.destroy()
    await eventually(() =>
      assert.equal(db.totals.gauges()[0]?.gauges.connectionDescriptors, 2, 'those of api'),
    )
    const again = await tunnel('web')
    assert.equal(await within(10_000, 'an answer', open(again)), 'served')
  })

  test('memory: downloads that nobody reads stay within the limit and give it back', async () => {
    const LIMIT = 8 * 1_048_576
    await using undo = new AsyncDisposableStack()
    const block = Buffer.alloc(65_536)
    const application = await startApplication((socket) => {
      const pour = (): void => {
        while (!socket.destroyed && socket.write(block));
      }
      socket.on('drain', pour)
      pour()
    })
    const { web, port } = await startPair(undo, application, { web: { heldBytes: LIMIT } })
    const held = (): number => web.totals.gauges()[0]?.gauges.heldBytes ?? 0
    const callers = await Promise.all(Array.from({ length: 40 }, () => dial(port)))
    for (const caller of callers) caller.pause()
    let most = 0
    await eventually(
      () => {
        most = Math.max(most, held())
        assert.ok(most > LIMIT / 4, `${most} bytes held`)
      },
      { withinMs: 30_000 },
    )
    for (let i = 0; i < 20; i += 1) {
      await new Promise((resolve) => setTimeout(resolve, 100))
      most = Math.max(most, held())
    }
    assert.ok(most <= LIMIT, `${most} bytes held`)
    for (const caller of callers) caller.destroy()
    await eventually(() => assert.equal(held(), 0, 'nothing remains'))
  })
})

describe('a peer that opens streams by hand', () => {
  async function openSession(db: TestHost): Promise<SessionEnd & Disposable> {
    const { socket } = await dialAs(db.tunnelPort)
    const end = startSession(socket, 'opener')
    return Object.assign(end, { [Symbol.dispose]: () => socket.destroy() })
  }

  const known = { source: undefined, destination: undefined, traceparent: undefined }

  for (const [name, first, reason] of [
    ['nonsense for a preface', Buffer.from('GET / HTTP/1.1\r\n\r\n'), 'malformed'],
    [
      'an unknown critical field',
      Buffer.from('0d0a0d0a000d0a515549540a20000003e10000', 'hex'),
      'malformed',
    ],
    [
      'an instance that is not there',
      encodePreface({ ...known, instance: 'db-9' }),
      'unknownService',
    ],
    [
      'the instance of another service',
      encodePreface({ ...known, instance: 'cache' }),
      'unknownService',
    ],
  ] as const)
    test(`with ${name} is told: ${reason}`, async () => {
      await using undo = new AsyncDisposableStack()
      const { db } = await startPair(undo, await startEcho())
      using end = await openSession(db)
      const reader = new Collector(end.session.open(first))
      await within(
        5_000,
        'the reset',
        reader.until(() => reader.reset !== undefined),
      )
      assert.ok(reader.reset instanceof StreamResetError)
      assert.equal(reader.reset.reason, reason)
      assert.ok(resetCodes[reason] > 0)
    })

  test('without a whole preface is cut off at its deadline', async () => {
    await using undo = new AsyncDisposableStack()
    const { db } = await startPair(undo, await startEcho(), { db: { handshakeMs: 150 } })
    using end = await openSession(db)
    const stream = end.session.open(Buffer.from('0d0a0d0a', 'hex'))
    const reader = new Collector(stream)
    await within(
      5_000,
      'the reset',
      reader.until(() => reader.reset !== undefined),
    )
    assert.ok(reader.reset instanceof StreamResetError)
    assert.equal(reader.reset.reason, 'timeout')
  })

  test('and sends its preface byte by byte, then data, is served', async () => {
    await using undo = new AsyncDisposableStack()
    const { db } = await startPair(undo, await startEcho())
    using end = await openSession(db)
    const preface = encodePreface({ ...known, instance: 'db' })
    const stream = end.session.open(preface.subarray(0, 1))
    const reader = new Collector(stream)
    stream.resume()
    for (const byte of preface.subarray(1)) {
      stream.write(Uint8Array.of(byte))
      await new Promise((resolve) => setImmediate(resolve))
    }
    stream.write(Buffer.from('hello'))
    stream.end()
    await within(
      5_000,
      'the echo',
      reader.until(() => reader.closedInOrder),
    )
    assert.equal(reader.bytes.toString(), 'hello')
  })

  test('with preface, data and end in one frame is served', async () => {
    await using undo = new AsyncDisposableStack()
    const { db } = await startPair(undo, await startEcho())
    using end = await openSession(db)
    const stream = end.session.open(
      Buffer.concat([encodePreface({ ...known, instance: undefined }), large.subarray(0, 200_000)]),
    )
    const reader = new Collector(stream)
    stream.end()
    stream.resume()
    await within(
      5_000,
      'the echo',
      reader.until(() => reader.closedInOrder),
    )
    assert.ok(reader.bytes.equals(large.subarray(0, 200_000)))
  })
})

describe('limits', () => {
  test('a caller beyond its connections is reset, and counted as overflow', async () => {
    await using undo = new AsyncDisposableStack()
    const { web, port } = await startPair(undo, await startEcho(), {
      web: { connectionsPerService: 2 },
    })
    const open = [await dial(port), await dial(port)]
    for (const socket of open) {
      socket.write('x')
      await read(socket, 1)
    }
    // The reset may come before the caller has noticed that it was connected.
    const refused = roundTrip(port, Buffer.from('x'))
    assert.equal(await refused.then(({ how }) => how, errorCode), 'ECONNRESET')
    assert.equal(web.totals.counters().overflow, 1)
    open[0]!.end()
    await eventually(async () => {
      assert.equal((await roundTrip(port, Buffer.from('y'))).bytes.toString(), 'y')
    })
    open[1]!.end()
  })

  test('a connection waits for room in the tunnel, and is refused when there is none in time', async () => {
    await using undo = new AsyncDisposableStack()
    const application = await startApplication()
    const { web, port } = await startPair(undo, application, {
      web: { streamsPerTunnel: 1, connectMs: 400 },
    })
    const first = await dial(port)
    first.write('1')
    const firstCalled = await application.next()
    const second = await dial(port)
    second.write('2')
    assert.equal((await within(5_000, 'the reset', ending(second))).how, 'ECONNRESET')
    await eventually(() => assert.deepEqual(web.closedByFlag('source'), { UO: 1 }))
    const third = await dial(port)
    third.write('3')
    first.destroy()
    firstCalled.destroy()
    assert.equal(await read(await within(5_000, 'its turn', application.next()), 1), '3')
    third.destroy()
  })
})

/** The living threads of a host's workers. */
function threadsOf(host: TestHost): Worker[] {
  const members = Reflect.get(host.pool, 'members') as { thread: Worker | undefined }[]
  return members.flatMap(({ thread }) => (thread === undefined ? [] : [thread]))
}

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
