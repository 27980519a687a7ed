/**
 * A fleet as an operator has it: hosts report through the mesh to a real aggregator, and its books are exact although it
 * is away for a while, a daemon is reloaded and another one restarted.
 */
import assert from 'node:assert/strict'
import { type TestContext, test } from 'node:test'
import type { FleetDocuments, GraphEdge } from '../../src/model/fleet.ts'
import { AGGREGATOR, Aggregator } from '../harness/aggregator.ts'
import { eventually } from '../harness/eventually.ts'
import { startMesh } from '../harness/mesh.ts'
import type { RunningService } from '../harness/service.ts'

function byName([left]: readonly unknown[], [right]: readonly unknown[]): number {
  return String(left).localeCompare(String(right))
}

async function callMany(web: RunningService, count: number): Promise<void> {
  for (let i = 0; i < count; i += 1) await web.call('db')
}

function edge(graph: FleetDocuments['graph'], source: string, destination: string): GraphEdge {
  const found = graph.edges.find((one) => one.source === source && one.destination === destination)
  assert.ok(found, `edge ${source} -> ${destination} in ${JSON.stringify(graph.edges)}`)
  return found
}

test('the picture of a fleet is complete and exact', async (t: TestContext) => {
  await using mesh = await startMesh({
    hosts: ['a', 'b', 'c'],
    catalog: 'file',
    config: { reports: { to: [AGGREGATOR] } },
  })
  const [a, b, c] = [mesh.host('a'), mesh.host('b'), mesh.host('c')]
  const web = await a.service('web').start()
  await b.service('db', { listens: 5432 }).start()
  const stranger = await c.service('stranger').start()
  const aggregator = new Aggregator(mesh, b)
  await aggregator.join()
  await mesh.allow('web', 'db')
  await aggregator.start()
  await mesh.up()
  let sent = 0
  const call = async (count: number): Promise<void> => {
    await callMany(web, count)
    sent += count
  }

  const bothSidesCounted = async (): Promise<void> => {
    for (const host of [a, b])
      await eventually(
        async () => assert.equal(await aggregator.opened('web', 'db', host), sent, host.name),
        { withinMs: 60_000 },
      )
  }

  await t.test('hosts, their state and their services appear within seconds', async () => {
    await eventually(
      async () => {
        const { hosts } = await aggregator.ask('hosts')
        assert.deepEqual(
          hosts.map(({ name, state, services }) => [name, state, services]).toSorted(byName),
          [
            ['a', 'ready', ['web']],
            ['b', 'ready', ['db', AGGREGATOR]],
            ['c', 'ready', ['stranger']],
          ],
        )
      },
      { withinMs: 30_000 },
    )
  })

  await t.test(
    'a call and a refused call are edges, with latency and the rule that decides',
    async () => {
      await call(20)
      await assert.rejects(stranger.call('db'))
      await eventually(
        async () => {
          const graph = await aggregator.ask('graph', '?window=5m')
          const { traffic, policy } = edge(graph, 'web', 'db')
          assert.ok(traffic.openedPerSecond > 0)
          assert.equal(traffic.closed['-'], 20)
          assert.ok((traffic.connectMs?.p50 ?? 0) > 0)
          assert.ok((traffic.firstByteMs?.p50 ?? 0) > 0)
          assert.deepEqual([policy?.allow, policy?.rule?.source], [true, 'web'])
          const denied = edge(graph, 'stranger', 'db')
          assert.equal(denied.traffic.closed['DENY'], 1)
          assert.equal(denied.policy?.allow, false)
        },
        { withinMs: 30_000 },
      )
    },
  )

  await t.test('what happens while it is away is delivered when it is back', async () => {
    await aggregator.stop()
    await call(30)
    await new Promise((resolve) => setTimeout(resolve, 12_000))
    await call(10)
    await aggregator.start()
    await bothSidesCounted()
  })

  await t.test('a reload and a restart of the daemon lose nothing and double nothing', async () => {
    await call(15)
    const { code, stderr } = await a.daemon.cli('reload')
    assert.equal(code, 0, stderr)
    await call(15)
    // The successor is a child of process 1, not of the harness.
    const { pid } = await a.daemon.status()
    process.kill(pid, 'SIGTERM')
    await eventually(() => assert.throws(() => process.kill(pid, 0)))
    await a.daemon.start()
    await mesh.settled()
    await call(5)
    await bothSidesCounted()
    const { hosts } = await aggregator.ask('hosts')
    const lost = hosts.map(({ name, lostRecords }) => [name, lostRecords])
    assert.deepEqual(lost.toSorted(byName), [
      ['a', 0],
      ['b', 0],
      ['c', 0],
    ])
  })
})
