/**
 * Reloads under load, with connections that stay open, cost no count and count nothing twice: what the aggregator has
 * is what was called.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { setTimeout as delay } from 'node:timers/promises'
import { AGGREGATOR, Aggregator } from '../harness/aggregator.ts'
import { eventually } from '../harness/eventually.ts'
import type { Host } from '../harness/host.ts'
import { startMesh } from '../harness/mesh.ts'
import { echo, manual } from '../harness/service.ts'
import { keepConnecting } from '../harness/steady-calls.ts'
import type { RemoteSocket } from '../harness/workload.ts'

const RATE = 100

/** The replaced processes still have to hand over their last records, each through those after it. Milliseconds. */
const DELIVERED_MS = 60_000

test('reloads under load keep the books exact', async (t) => {
  await using mesh = await startMesh({
    hosts: ['a', 'b'],
    catalog: 'file',
    config: { reports: { to: [AGGREGATOR] } },
  })
  const [a, b] = [mesh.host('a'), mesh.host('b')]
  const web = await a.service('web').start()
  const db = await b.service('db', { listens: 5432 }).start(manual)
  await b.service('quick', { listens: 5433 }).start(echo)
  const aggregator = new Aggregator(mesh, b)
  await aggregator.join()
  await aggregator.start()
  await mesh.allow('web', 'db')
  await mesh.allow('web', 'quick')
  await mesh.up()
  const { ip, port } = await mesh.virtualAddress('quick', a)
  await using undo = new AsyncDisposableStack()
  undo.defer(() => endDaemons([a, b]))
  const open: (readonly [RemoteSocket, RemoteSocket])[] = []
  let served = 0

  /** Calls all the time while something is done, with one more connection that stays open. */
  async function underLoad(work: () => Promise<void>): Promise<void> {
    open.push(await eventually(() => web.connectTo(db)))
    await using calls = await keepConnecting(web.service, {
      targets: [`${ip}:${port}`],
      rate: RATE,
    })
    await calls.more(RATE)
    await work()
    await calls.more(RATE)
    const summary = await calls.stop()
    assert.deepEqual(summary.outcomes, { served: summary.calls })
    served += summary.calls
  }

  async function booksAreExact(): Promise<void> {
    for (const [destination, count] of [
      ['quick', served],
      ['db', open.length],
    ] as const)
      for (const host of [a, b])
        await eventually(
          async () =>
            assert.equal(
              await aggregator.opened('web', destination, host),
              count,
              `to ${destination}, as ${host.name} has counted`,
            ),
          { withinMs: DELIVERED_MS },
        )
  }

  await t.test('of each host in turn', async () => {
    for (const host of [a, b]) await underLoad(() => reload(host))
    await booksAreExact()
  })

  await t.test('twice within a second, on both hosts at once', async () => {
    await underLoad(async () => {
      await Promise.all([a, b].map((host) => reloadTwice(host)))
    })
    await booksAreExact()
  })

  await t.test('and what the replaced processes count until their end comes, too', async () => {
    for (const [caller, called] of open) {
      await called.write('still here')
      assert.equal(await caller.read(10), 'still here')
      await caller.end()
      await called.end()
      assert.equal((await caller.readRest()).ending, 'end')
      assert.equal((await called.readRest()).ending, 'end')
    }
    await eventually(
      async () => {
        const { edges } = await aggregator.ask('graph', '?window=1h')
        for (const [destination, count] of [
          ['quick', served],
          ['db', open.length],
        ] as const) {
          const edge = edges.find((one) => one.source === 'web' && one.destination === destination)
          assert.deepEqual(edge?.traffic.closed, { '-': count })
          assert.equal(edge?.traffic.active, 0)
        }
      },
      { withinMs: DELIVERED_MS },
    )
    await booksAreExact()
    const { hosts } = await aggregator.ask('hosts')
    assert.deepEqual(
      hosts.map(({ name, state, lostRecords }) => `${name} ${state} ${lostRecords}`).toSorted(),
      ['a ready 0', 'b ready 0'],
    )
  })
})

async function reload({ daemon }: Host): Promise<void> {
  const { code, stdout, stderr } = await daemon.cli('reload')
  assert.equal(code, 0, stdout + stderr + daemon.log)
}

/** The second is asked for while the first is under way; both are carried out. */
async function reloadTwice(host: Host): Promise<void> {
  const before = (await host.daemon.status()).reload?.count ?? 0
  const first = reload(host)
  await delay(200)
  await Promise.all([first, reload(host)])
  const { reload: after } = await host.daemon.status()
  assert.deepEqual([after?.count, after?.state], [before + 2, 'done'])
}

/** Successors are children of process 1, not of the harness. */
async function endDaemons(hosts: readonly Host[]): Promise<void> {
  for (const { daemon } of hosts) {
    const { pid } = await daemon.status()
    process.kill(pid, 'SIGTERM')
    await eventually(() => assert.throws(() => process.kill(pid, 0)))
  }
}
