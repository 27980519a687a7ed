/**
 * A daemon that gets a tenth of a processor, in slices, as a control group's quota or a crowded host gives it: all is slower, nothing
 * breaks, and no watchdog takes slowness for being stuck.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { eventually } from '../harness/eventually.ts'
import { startPair } from '../harness/pair.ts'

/** Of each period a process runs so long. Longer than what a ping of a tunnel is waited for would be a host that is dead. */
const PERIOD_MS = 1_000
const SLICE_MS = 100

const PERIODS = 8

/** Lets a process run in slices until the result is disposed. */
function starve(pid: number): AsyncDisposable {
  const over = new AbortController()
  const done = (async (): Promise<void> => {
    while (!over.signal.aborted) {
      process.kill(pid, 'SIGSTOP')
      await sleep(PERIOD_MS - SLICE_MS)
      process.kill(pid, 'SIGCONT')
      await sleep(SLICE_MS)
    }
  })()
  return {
    [Symbol.asyncDispose]: async () => {
      over.abort()
      await done
    },
  }
}

test('with a tenth of a processor nothing breaks, and nothing is restarted', async () => {
  await using pair = await startPair()
  const { mesh, web, db } = pair
  const [a, b] = [mesh.host('a'), mesh.host('b')]
  const [near, far] = await eventually(() => web.connectTo(db))
  const { pid } = await b.daemon.status()
  {
    await using _starving = starve(b.daemon.pid)
    for (let i = 0; i < PERIODS; i += 1) {
      await near.write(`line ${i}\n`)
      assert.equal(await far.readLine(), `line ${i}`)
      const [caller, called] = await web.connectTo(db)
      await called.write('new\n')
      assert.equal(await caller.readLine(), 'new')
      await caller.end()
      await called.end()
      assert.equal((await caller.readRest()).ending, 'end')
    }
    const sent = far.writePattern(2_000_000)
    const received = await near.readBytes(2_000_000)
    assert.equal(received.length, 2_000_000)
    await sent
  }
  const status = await b.daemon.status()
  assert.deepEqual([status.pid, status.ready], [pid, true])
  assert.equal(await b.daemon.metric('hostmesh_worker_restarts_total'), 0)
  assert.equal(await a.daemon.metric('hostmesh_worker_restarts_total'), 0)
  await near.end()
  await far.end()
  assert.equal((await near.readRest()).ending, 'end')
})
