/**
 * What a daemon does a thousand times leaves nothing behind: heaps and descriptors are, after thousands of connections,
 * refusals, resets and snapshots, where they were after the first hundreds. Counted, not waited for.
 */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { readdirSync } from 'node:fs'
import { Session } from 'node:inspector/promises'
import { connect } from 'node:net'
import { test } from 'node:test'
import { eventually } from '../harness/eventually.ts'
import {
  dial,
  ending,
  endpoint,
  snapshotOf,
  startEcho,
  type TestHost,
} from '../integration/dataplane-fixtures.ts'
import { startPair } from '../integration/dataplane-pair.ts'

/** Rounds before the first look: tables, caches and compiled code have their size then. */
const WARM_UP = 40

const ROUNDS = 80

/** Connections of each kind in a round. */
const CONNECTIONS = 25

/** Snapshots in a round. */
const SNAPSHOTS = 10

/**
 * Growth of all heaps from the first look to the last; half of that was seen without a leak. An object that stays for each connection of one kind is
 * at least 100 bytes, and there are ROUNDS * CONNECTIONS of each kind.
 */
const MAX_GROWTH_BYTES = ROUNDS * CONNECTIONS * 90

interface HeapUsage {
  readonly usedSize: number
}

/** The heaps of this process: of its main thread and of each worker. */
class Heaps implements Disposable {
  private readonly session = new Session()
  private readonly workers = new Set<string>()
  private readonly waiting = new Map<number, (result: unknown) => void>()
  private lastId = 0

  async connect(): Promise<void> {
    const { session } = this
    session.connect()
    session.on('NodeWorker.attachedToWorker', ({ params }) => this.workers.add(params.sessionId))
    session.on('NodeWorker.detachedFromWorker', ({ params }) =>
      this.workers.delete(params.sessionId),
    )
    session.on('NodeWorker.receivedMessageFromWorker', ({ params }) => {
      const { id, result } = JSON.parse(params.message) as { id?: number; result?: unknown }
      if (id !== undefined) this.waiting.get(id)?.(result)
    })
    await session.post('NodeWorker.enable', { waitForDebuggerOnStart: false })
  }

  /** Bytes in use of all heaps together, after everything that nobody holds has been collected. */
  async used(): Promise<number> {
    const { session } = this
    await session.post('HeapProfiler.collectGarbage')
    const own = (await session.post('Runtime.getHeapUsage')) as unknown as HeapUsage
    let sum = own.usedSize
    for (const worker of this.workers) {
      await this.ask(worker, 'HeapProfiler.collectGarbage')
      const { usedSize } = (await this.ask(worker, 'Runtime.getHeapUsage')) as HeapUsage
      sum += usedSize
    }
    return sum
  }

  get workerCount(): number {
    return this.workers.size
  }

  [Symbol.dispose](): void {
    this.session.disconnect()
  }

  private async ask(sessionId: string, method: string): Promise<unknown> {
    this.lastId += 1
    const { promise, resolve } = Promise.withResolvers<unknown>()
    this.waiting.set(this.lastId, resolve)
    const message = JSON.stringify({ id: this.lastId, method })
    await this.session.post('NodeWorker.sendMessageToWorker', { sessionId, message })
    const result = await promise
    this.waiting.delete(this.lastId)
    return result
  }
}

function descriptors(): number {
  return readdirSync('/proc/self/fd').length
}

async function idle(...hosts: readonly TestHost[]): Promise<void> {
  await eventually(async () => {
    for (const { pool } of hosts) {
      const { countByWorker } = await pool.views.connections(0)
      assert.deepEqual([...countByWorker], [0])
    }
  })
}

test('connections, refusals, resets and snapshots leave no memory and no descriptor behind', async () => {
  await using undo = new AsyncDisposableStack()
  const { web, db, port } = await startPair(undo, await startEcho())
  using heaps = new Heaps()
  await heaps.connect()
  await eventually(() => assert.equal(heaps.workerCount, 2))
  const served = snapshotOf('db', [endpoint('db', db.tunnelPort)])
  const denied = { ...served, policies: new Map() }

  const orderly = async (): Promise<void> => {
    const socket = await dial(port)
    const answer = ending(socket)
    socket.end('some words')
    assert.equal((await answer).bytes.toString(), 'some words')
  }
  const aborted = async (): Promise<void> => {
    const socket = await dial(port)
    socket.write('some words')
    await once(socket, 'data')
    const closed = once(socket, 'close')
    socket.resetAndDestroy()
    await closed
  }
  const refused = async (): Promise<void> => {
    const socket = connect(port, '127.0.0.1')
    const [error] = await once(socket, 'error')
    assert.equal(error.code, 'ECONNRESET')
  }
  const many = (kind: () => Promise<void>): Promise<unknown> =>
    Promise.all(Array.from({ length: CONNECTIONS }, kind))

  const round = async (number: number): Promise<void> => {
    await many(orderly)
    await many(aborted)
    for (let i = 0; i < SNAPSHOTS; i += 1) {
      // Instances come and go, each at an address that was never seen before.
      const other = endpoint('db', 20_000 + ((number * SNAPSHOTS + i) % 40_000))
      await web.publish(snapshotOf('db', [endpoint('db', db.tunnelPort), other]))
    }
    await web.publish(snapshotOf('db', []))
    await many(refused)
    await db.publish(denied)
    await web.publish(served)
    await db.publish(served)
  }

  let number = 0
  const rounds = async (count: number): Promise<void> => {
    for (const last = number + count; number < last; number += 1) await round(number)
    await idle(web, db)
  }
  await rounds(WARM_UP)
  const before = { heap: await heaps.used(), open: descriptors() }
  await rounds(ROUNDS)
  await eventually(async () => {
    const after = { heap: await heaps.used(), open: descriptors() }
    assert.ok(after.open <= before.open + 2, `${before.open} descriptors, then ${after.open}`)
    const growth = after.heap - before.heap
    assert.ok(growth < MAX_GROWTH_BYTES, `the heaps have grown by ${growth} bytes`)
  })
})
