/**
 * A host that vanishes (a power cut, a pulled cable: neither FIN nor RST) costs no call that has somewhere else to go:
 * calls into its tunnel move on as soon as its round trip says that nobody is there, and nothing is delivered twice.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'

import { eventually, patient, within } from '../harness/eventually.ts'
import { type Mesh, startMesh } from '../harness/mesh.ts'
import { echo, manual, type RunningService } from '../harness/service.ts'
import type { RemoteSocket } from '../harness/workload.ts'
import type { Answer, Behavior } from '../harness/workload-protocol.ts'

const DB = 15_000

/** The daemon's own: what calls waited for before. Milliseconds. */
const CONNECT_TIMEOUT_MS = 5_000

/** A quarter of a second, and what a busy machine adds. */
const MOVED_WITHIN_MS = 1_500

/** Beside calls that may have been seen, or that are being answered: 3 s, and what a busy machine adds. */
const MOVED_FROM_OTHERS_WITHIN_MS = CONNECT_TIMEOUT_MS - 500

/** What began so soon after the last sign of life may have arrived: the kernel's word on it is no more exact. Milliseconds. */
const UNSURE_MS = 50

function start(): Promise<Mesh> {
  return startMesh({
    hosts: ['a', 'b', 'c'],
    catalog: 'file',
    capture: 'off',
    config: { timeouts: { connect: '5s', handshake: '3s', keepalive: '10s', drain: '5s' } },
  })
}

async function serve(mesh: Mesh, behavior: Behavior) {
  const db = (host: string, id: string): Promise<RunningService> =>
    mesh.host(host).service('db', { id, listens: 5_432 }).start(behavior)
  const web = await mesh
    .host('a')
    .service('web', { upstreams: { db: DB } })
    .start()
  const gone = await db('b', 'db-gone')
  const stays = await db('c', 'db-stays')
  await mesh.allow('web', 'db')
  await mesh.up()
  const wire = (state: 'up' | 'down'): Promise<unknown> =>
    mesh.network.wire.run('ip', 'link', 'set', 'port2', state)
  return { web, gone, stays, wire }
}

/**
 * Calls by several at a time, until told to stop: how long the longest took, and what failed. Of those that began before
 * `vanishes` some may be at the host already, and nobody can move them: they do not count.
 */
function callOften(web: RunningService, atOnce: number) {
  const over = new AbortController()
  const report = { calls: 0, longestMs: 0, failures: [] as string[] }
  let vanishedMs = Number.POSITIVE_INFINITY
  let pause = Promise.resolve()
  let underWay = 0
  const call = async (): Promise<void> => {
    const startedMs = performance.now()
    const counts = (): boolean => startedMs >= vanishedMs
    await web.callPort(DB).catch((error: unknown) => {
      if (counts()) report.failures.push(String(error))
    })
    report.calls += 1
    if (counts()) report.longestMs = Math.max(report.longestMs, performance.now() - startedMs)
  }
  const caller = async (): Promise<void> => {
    while (!over.signal.aborted) {
      await pause
      underWay += 1
      await call()
      underWay -= 1
      await sleep(10)
    }
  }
  const running = Promise.all(Array.from({ length: atOnce }, caller))
  return {
    vanishes: (sinceMs: number) => {
      vanishedMs = performance.now() + sinceMs
    },
    /** Lets nobody call until what it returns is called, and waits for those who do. */
    async hold() {
      const held = Promise.withResolvers<void>()
      pause = held.promise
      await eventually(() => assert.equal(underWay, 0))
      return held.resolve
    },
    async stop() {
      over.abort()
      await running
      return report
    },
  }
}

test('calls that begin then move on, none fails and none waits', async () => {
  await using mesh = await start()
  const { web, wire } = await serve(mesh, echo)
  await eventually(() => web.callPort(DB))
  const calls = callOften(web, 4)
  await sleep(1_000)
  const goOn = await calls.hold()
  await wire('down')
  // All before it is long acknowledged, so nothing that comes may have been seen.
  await sleep(UNSURE_MS)
  calls.vanishes(0)
  goOn()
  await sleep(4_000)
  const { calls: made, longestMs, failures } = await calls.stop()
  // Also for the comparison of what is left on the host, should an assertion fail.
  await wire('up')
  assert.deepEqual(failures, [])
  assert.ok(longestMs < patient(MOVED_WITHIN_MS), `one took ${Math.round(longestMs)} ms`)
  assert.ok(made > 50, `${made} calls`)
})

test('in the middle of others, too, and none waits for a deadline', async () => {
  await using mesh = await start()
  const { web, wire } = await serve(mesh, echo)
  await eventually(() => web.callPort(DB))
  const calls = callOften(web, 4)
  await sleep(1_000)
  await wire('down')
  calls.vanishes(UNSURE_MS)
  await sleep(4_000)
  const { calls: made, longestMs, failures } = await calls.stop()
  await wire('up')
  assert.deepEqual(failures, [])
  assert.ok(longestMs < MOVED_FROM_OTHERS_WITHIN_MS, `one took ${Math.round(longestMs)} ms`)
  assert.ok(made > 50, `${made} calls`)
})

test('beside connections that stand to the host, too; those live through a short absence', async () => {
  await using mesh = await start()
  const { web, wire } = await serve(mesh, echo)
  const standing = await eventually(async () => {
    const connection = await openTo(web, 'db-gone')
    assert.ok(connection !== undefined)
    return connection
  })
  const calls = callOften(web, 4)
  await sleep(1_000)
  await wire('down')
  calls.vanishes(UNSURE_MS)
  await sleep(1_500)
  await wire('up')
  const { longestMs, failures } = await calls.stop()
  assert.deepEqual(failures, [])
  assert.ok(longestMs < MOVED_FROM_OTHERS_WITHIN_MS, `one took ${Math.round(longestMs)} ms`)
  await standing.write('still there?\n')
  assert.equal(await standing.readLine(), 'still there?')
  await standing.end()
  await standing.readRest()
})

test('nothing that has moved on is delivered to the first instance as well', async () => {
  await using mesh = await start()
  const { web, gone, stays, wire } = await serve(mesh, manual)
  // A tunnel to each stands. Nobody waits for a connection that may not come: it would take a later one.
  const first: RemoteSocket[] = []
  await eventually(async () => {
    first.push(await dialAndSay(web, 'first'))
    await eventually(() =>
      assert.equal(gone.workload.unclaimed + stays.workload.unclaimed, first.length),
    )
    assert.ok(gone.workload.unclaimed > 0 && stays.workload.unclaimed > 0)
  })
  for (const instance of [gone, stays])
    while (instance.workload.unclaimed > 0) first.push(await instance.accept())
  for (const end of first) await end.end()
  await wire('down')
  await sleep(UNSURE_MS)
  const callers = await Promise.all(Array.from({ length: 6 }, () => dialAndSay(web, 'hello')))
  for (let i = 0; i < callers.length; i += 1) {
    const called = await within(CONNECT_TIMEOUT_MS, 'a call that moved', stays.accept())
    assert.equal(await called.read(5), 'hello')
    await called.end()
  }
  await wire('up')
  await sleep(3_000)
  assert.equal(gone.workload.unclaimed, 0)
  for (const caller of callers) await caller.end()
})

async function dialAndSay(web: RunningService, text: string): Promise<RemoteSocket> {
  const socket = await web.workload.dial('127.0.0.1', DB)
  await socket.write(text)
  return socket
}

/** A connection to this instance, which echoes; undefined when another one was reached. */
async function openTo(web: RunningService, instance: string): Promise<RemoteSocket | undefined> {
  const socket = await web.workload.dial('127.0.0.1', DB)
  await socket.write('nonce\n')
  const answer = JSON.parse(await socket.readLine()) as Answer
  if (answer.instance === instance) {
    // What echo says after its answer is what it was sent.
    return socket
  }
  await socket.end()
  await socket.readRest()
  return undefined
}
