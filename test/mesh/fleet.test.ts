/**
 * A fleet as an operator has it: hosts report through the mesh to a real aggregator, and its books are exact although it
 * is away for a while, a daemon is reloaded and another one restarted.
 */
import assert from 'node:assert/strict'
import { mkdir, writeFile } from 'node:fs/promises'
import { request } from 'node:http'
import { join } from 'node:path'
import { type TestContext, test } from 'node:test'
import type { FleetDocuments, GraphEdge } from '../../src/model/fleet.ts'
import { hostmesh } from '../harness/daemon.ts'
import { eventually } from '../harness/eventually.ts'
import { type Mesh, startMesh } from '../harness/mesh.ts'
import { OwnedProcess } from '../harness/owned-process.ts'
import type { RunningService } from '../harness/service.ts'

const AGGREGATOR = 'hostmesh-aggregator'
const PORT = 15_191

/** An aggregator on a host of a mesh; it can be stopped and started again with its database. */
class Aggregator {
  readonly socket: string
  readonly #mesh: Mesh
  readonly #host: string
  readonly #folder: string
  #process: OwnedProcess | undefined

  constructor(mesh: Mesh, host: string) {
    this.#mesh = mesh
    this.#host = host
    this.#folder = join(mesh.folder, 'aggregator')
    this.socket = join(this.#folder, 'api.sock')
  }

  async start(): Promise<void> {
    await mkdir(this.#folder, { recursive: true })
    const config = join(this.#folder, 'aggregator.yaml')
    await writeFile(
      config,
      JSON.stringify({
        listen: { socket: this.socket },
        reports: { port: PORT },
        store: { directory: this.#folder, maxBytes: '64MiB' },
      }),
    )
    this.#process = await OwnedProcess.start(
      this.#mesh.host(this.#host).namespace.inside([hostmesh, 'aggregator', '--config', config]),
      { name: 'aggregator' },
    )
    this.#mesh.own(this.#process)
    await eventually(() => this.ask('overview'))
  }

  async stop(): Promise<void> {
    await this.#process?.stop()
  }

  /** A document of its API. */
  async ask<Name extends keyof FleetDocuments>(
    name: Name,
    query = '',
  ): Promise<FleetDocuments[Name]> {
    const { promise, resolve, reject } = Promise.withResolvers<string>()
    const asked = request(
      { socketPath: this.socket, path: `/api/v1/${name}${query}`, headers: { host: 'localhost' } },
      (response) => {
        const chunks: Buffer[] = []
        response.on('data', (chunk: Buffer) => chunks.push(chunk))
        response.on('end', () => {
          const text = Buffer.concat(chunks).toString()
          if (response.statusCode === 200) resolve(text)
          else reject(new Error(`${response.statusCode}: ${text}`))
        })
      },
    )
    asked.on('error', reject)
    asked.end()
    return JSON.parse(await promise)
  }

  /** Connections from `source` to `destination` in all of the past. */
  async opened(source: string, destination: string): Promise<number> {
    const to = new Date().toISOString()
    const from = new Date(Date.now() - 1_200_000).toISOString()
    const { series, stepMs } = await this.ask(
      'history',
      `?source=${source}&destination=${destination}&from=${from}&to=${to}&step=10s`,
    )
    const sum = series.openedPerSecond.reduce<number>((all, rate) => all + (rate ?? 0), 0)
    return Math.round((sum * stepMs) / 1_000)
  }
}

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
  await b.service(AGGREGATOR, { listens: PORT, identity: 'none' }).join()
  await mesh.allow('web', 'db')
  await mesh.allow('hostmesh', AGGREGATOR)
  const aggregator = new Aggregator(mesh, 'b')
  await aggregator.start()
  await mesh.up()
  let sent = 0
  const call = async (count: number): Promise<void> => {
    await callMany(web, count)
    sent += count
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
    await eventually(async () => assert.equal(await aggregator.opened('web', 'db'), sent), {
      withinMs: 60_000,
    })
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
    await eventually(async () => assert.equal(await aggregator.opened('web', 'db'), sent), {
      withinMs: 60_000,
    })
    const { hosts } = await aggregator.ask('hosts')
    const lost = hosts.map(({ name, lostRecords }) => [name, lostRecords])
    assert.deepEqual(lost.toSorted(byName), [
      ['a', 0],
      ['b', 0],
      ['c', 0],
    ])
  })
})
