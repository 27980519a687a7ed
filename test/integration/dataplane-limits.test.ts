/**
 * What callers may have of a worker: descriptors, memory, connections, streams; and peers that open streams by hand.
 */
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { resetCodes } from '../../src/dataplane/tunnel/frame.ts'
import { encodePreface } from '../../src/dataplane/tunnel/preface.ts'
import { StreamResetError } from '../../src/dataplane/tunnel/stream.ts'
import { errorCode } from '../../src/lib/errors.ts'
import { eventually, within } from '../harness/eventually.ts'
import {
  dial,
  ending,
  read,
  snapshotOf,
  startApplication,
  startEcho,
  type TestHost,
} from './dataplane-fixtures.ts'
import { large, roundTrip, startDb, startPair } from './dataplane-pair.ts'
import { Collector, dialAs, type SessionEnd, startSession } from './tunnel-fixtures.ts'

describe('what a caller may have', () => {
  test('descriptors: a caller has half of what is free, another one still its part, and endings give them back', async () => {
    await using undo = new AsyncDisposableStack()
    const application = undo.use(await startEcho())
    // 24 for connections: the tunnel port is the only listener of this host.
    const db = undo.use(await startDb(application, { descriptors: 40 }))
    await db.publish(
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
    assert.equal(db.totals.numbers().limitRefusals.descriptors, 15 - served)
    const meek = await tunnel('api')
    assert.equal(await within(10_000, 'an answer', open(meek)), 'served')
    hog.socket.destroy()
    await eventually(() =>
      assert.equal(db.totals.numbers().connectionDescriptors, 2, 'those of api'),
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
    const held = (): number => web.totals.numbers().heldBytes
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
    assert.equal(web.totals.numbers().overflow, 1)
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
