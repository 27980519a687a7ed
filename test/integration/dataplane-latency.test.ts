/**
 * The latencies of a connection, as the hosts of both sides count them, between clocks of caller and application.
 */
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import tls from 'node:tls'
import type { BucketCounts } from '../../src/telemetry/columns.ts'
import { trafficLayout } from '../../src/telemetry/counters.ts'
import { eventually, within } from '../harness/eventually.ts'
import {
  type Application,
  dial,
  ending,
  read,
  startApplication,
  type TestHost,
} from './dataplane-fixtures.ts'
import { roundTrip, startPair, startTogether } from './dataplane-pair.ts'
import { leafOf } from './tunnel-fixtures.ts'

/** How long the application takes for its answer, milliseconds. */
const ANSWER_MS = 50

/** Who counts a connection from web to db. */
interface Counting {
  readonly host: TestHost
  readonly reporter: 'source' | 'destination'
}

interface Scene {
  readonly port: number
  readonly counting: readonly Counting[]
}

const scenes: readonly (readonly [
  name: string,
  start: (undo: AsyncDisposableStack, application: Application) => Promise<Scene>,
])[] = [
  [
    'through a tunnel',
    async (undo, application) => {
      const { web, db, port } = await startPair(undo, application)
      const counting: Counting[] = [
        { host: web, reporter: 'source' },
        { host: db, reporter: 'destination' },
      ]
      return { port, counting }
    },
  ],
  [
    'on the same host',
    async (undo, application) => {
      const { host, port } = await startTogether(undo, application)
      return { port, counting: [{ host, reporter: 'source' }] }
    },
  ],
]

function latenciesOf({ host, reporter }: Counting): {
  readonly connectLatency: BucketCounts
  readonly firstByte: BucketCounts
} {
  const rows = host.totals.traffic().filter(({ labels }) => labels.reporter === reporter)
  assert.deepEqual(
    rows.map(({ labels }) => [labels.source, labels.destination]),
    [['web', 'db']],
  )
  return trafficLayout.read(rows[0]?.cells ?? trafficLayout.empty())
}

function total({ buckets }: BucketCounts): number {
  return buckets.reduce((sum, count) => sum + count, 0)
}

/** The numbers of connections in the two histograms, for each host that counts. */
function countsOf(counting: readonly Counting[]): readonly (readonly number[])[] {
  return counting.map((each) => {
    const { connectLatency, firstByte } = latenciesOf(each)
    return [total(connectLatency), total(firstByte)]
  })
}

for (const [name, start] of scenes)
  describe(`a connection ${name}`, () => {
    test('counts the time to connect without that of the answer, which counts from the first bytes', async () => {
      await using undo = new AsyncDisposableStack()
      const application = await startApplication()
      const { port, counting } = await start(undo, application)
      const dialedMs = performance.now()
      const caller = await dial(port)
      const askedMs = performance.now()
      caller.write('ask')
      const called = await application.next()
      assert.equal(await within(5_000, 'the question', read(called, 3)), 'ask')
      const heardMs = performance.now()
      // Whoever waits for the answer has counted the connection before.
      await eventually(() =>
        assert.deepEqual(
          countsOf(counting),
          counting.map(() => [1, 0]),
        ),
      )
      const connectedMs = performance.now()
      await sleep(ANSWER_MS)
      const answeredMs = performance.now()
      called.write('yes')
      assert.equal(await within(5_000, 'the answer', read(caller, 3)), 'yes')
      const readMs = performance.now()
      caller.write('again')
      assert.equal(await within(5_000, 'the next question', read(called, 5)), 'again')
      called.end('and more')
      assert.equal(await within(5_000, 'the next answer', read(caller, 8)), 'and more')
      caller.destroy()
      for (const each of counting) {
        const { connectLatency, firstByte } = latenciesOf(each)
        assert.deepEqual([total(connectLatency), total(firstByte)], [1, 1], 'once a connection')
        const connectMs = connectLatency.seconds * 1_000
        assert.ok(connectMs > 0 && connectMs <= connectedMs - dialedMs, `${connectMs} ms`)
        const firstMs = firstByte.seconds * 1_000
        assert.ok(
          firstMs >= answeredMs - heardMs,
          `${firstMs} ms: not less than at the application`,
        )
        assert.ok(firstMs >= ANSWER_MS - 1, `${firstMs} ms`)
        assert.ok(firstMs <= readMs - askedMs, `${firstMs} ms: not more than at the caller`)
      }
    })

    test('in which the called side speaks first has no first byte of an answer', async () => {
      await using undo = new AsyncDisposableStack()
      const application = await startApplication((socket) => {
        socket.write('220 ready')
        socket.pipe(socket)
      })
      const { port, counting } = await start(undo, application)
      const caller = await dial(port)
      assert.equal(await within(5_000, 'the banner', read(caller, 9)), '220 ready')
      caller.write('hello')
      assert.equal(await within(5_000, 'the answer', read(caller, 5)), 'hello')
      caller.destroy()
      assert.deepEqual(
        countsOf(counting),
        counting.map(() => [1, 0]),
      )
    })

    test('that gets no answer, or sends nothing, has none either', async () => {
      await using undo = new AsyncDisposableStack()
      const application = await startApplication((socket) => {
        socket.on('end', () => socket.end()).resume()
      })
      const { port, counting } = await start(undo, application)
      for (const bytes of ['', 'no answer to this'])
        assert.equal((await roundTrip(port, Buffer.from(bytes))).how, 'end')
      assert.deepEqual(
        countsOf(counting),
        counting.map(() => [2, 0]),
      )
    })
  })

test('a connection that is denied, or whose application is away, counts neither', async () => {
  await using undo = new AsyncDisposableStack()
  const application = await startApplication()
  const denied = await startTogether(undo, application, 'deny')
  assert.equal((await roundTrip(denied.port, Buffer.from('x'))).how, 'ECONNRESET')
  // The label of a row comes by a message of the worker.
  await eventually(() =>
    assert.deepEqual(countsOf([{ host: denied.host, reporter: 'source' }]), [[0, 0]]),
  )
  const { web, db, port } = await startPair(undo, await startApplication())
  await db.publish({ services: new Map(), policies: new Map() })
  assert.equal((await roundTrip(port, Buffer.from('x'))).how, 'ECONNRESET')
  await eventually(() => assert.deepEqual(countsOf([{ host: web, reporter: 'source' }]), [[0, 0]]))
})

test("a Connect peer's connection counts both at the destination", async () => {
  await using undo = new AsyncDisposableStack()
  const application = await startApplication((socket) => socket.pipe(socket))
  const { db } = await startPair(undo, application)
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
  socket.end('ask')
  assert.equal((await within(10_000, 'the answer', answer)).bytes.toString(), 'ask')
  assert.deepEqual(countsOf([{ host: db, reporter: 'destination' }]), [[1, 1]])
})
