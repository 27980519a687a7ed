/**
 * The books of a fleet are exact: what was counted is what was sent, by response flag, although the aggregator is killed
 * twice and away for a quarter of the time, a daemon is reloaded and restarted under its callers, and workers crash.
 */
import assert from 'node:assert/strict'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { test } from 'node:test'
import { AGGREGATOR, Aggregator } from '../harness/aggregator.ts'
import { eventually } from '../harness/eventually.ts'
import { type Mesh, startMesh } from '../harness/mesh.ts'
import type { Service } from '../harness/service.ts'

const services = join(import.meta.dirname, '../harness/services')
const INSPECTOR_PORT = 9229

/** Answers each connection with a line of its own accord, and closes it. */
const SPEAKS_FIRST = `
import socket
server = socket.create_server(("", 5433), backlog=512)
while True:
    connection, _ = server.accept()
    try:
        connection.sendall(b"welcome\\n")
    except OSError:
        pass
    connection.close()
`

/** Connections by how the caller saw them end, for each pair. */
class Sent {
  readonly #mesh: Mesh
  readonly byPair = new Map<string, Map<string, number>>()

  constructor(mesh: Mesh) {
    this.#mesh = mesh
  }

  /** Opens so many connections from a service to others. */
  async send(from: Service, counts: Readonly<Record<string, number>>): Promise<void> {
    const names = new Map<string, string>()
    const targets: unknown[] = []
    for (const [name, count] of Object.entries(counts)) {
      const { ip, port } = await this.#mesh.virtualAddress(name, from.host)
      names.set(`${ip}:${port}`, name)
      targets.push([ip, port, count, name === 'banner'])
    }
    const program = await readFile(join(services, 'count-calls.py'), 'utf8')
    const { code, stdout, stderr } = await from.exec([
      '/usr/bin/python3',
      '-c',
      program,
      JSON.stringify({ targets, atOnce: 6 }),
    ])
    assert.equal(code, 0, stderr)
    const tally: Record<string, Record<string, number>> = JSON.parse(stdout)
    for (const [address, outcomes] of Object.entries(tally))
      for (const [outcome, count] of Object.entries(outcomes))
        this.#add(`${from.name} ${names.get(address)}`, outcome, count)
  }

  #add(pair: string, outcome: string, count: number): void {
    const outcomes = this.byPair.get(pair) ?? new Map<string, number>()
    this.byPair.set(pair, outcomes.set(outcome, (outcomes.get(outcome) ?? 0) + count))
  }

  get total(): number {
    return [...this.byPair.values()].reduce((sum, outcomes) => sum + sumOf(outcomes), 0)
  }

  get text(): string {
    return `sent ${JSON.stringify([...this.byPair].map(([pair, counts]) => [pair, [...counts]]))}`
  }
}

test('5,000 connections of known outcome are in the books, each once', async (t) => {
  await using mesh = await startMesh({
    hosts: ['a', 'b'],
    catalog: 'file',
    config: { reports: { to: [AGGREGATOR] } },
  })
  const [a, b] = [mesh.host('a'), mesh.host('b')]
  const [web, stranger] = [a.service('web'), a.service('stranger')]
  await web.join()
  await stranger.join()
  await b.service('db', { listens: 5432 }).start()
  await b.service('banner', { listens: 5433 }).run(['/usr/bin/python3', '-c', SPEAKS_FIRST])
  // Nothing listens at its port.
  await b.service('broken', { listens: 5434 }).join()
  const aggregator = new Aggregator(mesh, b)
  await aggregator.join()
  for (const name of ['db', 'banner', 'broken']) await mesh.allow('web', name)
  await aggregator.start()
  await mesh.up(['env', `NODE_OPTIONS=--inspect=127.0.0.1:${INSPECTOR_PORT}`])
  const sent = new Sent(mesh)
  const send = async (share: number): Promise<void> => {
    await Promise.all([
      sent.send(web, { db: 34 * share, banner: 15 * share, broken: share }),
      sent.send(stranger, { db: 5 * share }),
    ])
  }
  const crash = async (host: typeof a): Promise<void> => {
    const argv = [process.execPath, join(services, 'crash-worker.ts'), String(INSPECTOR_PORT), '0']
    await host.namespace.run(...argv)
  }

  await t.test('exactly, but for what a caller lost with its own worker', async () => {
    await send(20)
    // Killed in the middle of reports, and away while a daemon is reloaded under load.
    await Promise.all([send(24), aggregator.kill()])
    const reload = a.daemon.cli('reload')
    await send(24)
    const { code, stderr } = await reload
    assert.equal(code, 0, stderr)
    await aggregator.start()
    await Promise.all([send(20), crash(b)])
    await aggregator.kill()
    // The successor is a child of process 1, not of the harness.
    const { pid } = await a.daemon.status()
    process.kill(pid, 'SIGTERM')
    await eventually(() => assert.throws(() => process.kill(pid, 0)))
    await a.daemon.start(['env', `NODE_OPTIONS=--inspect=127.0.0.1:${INSPECTOR_PORT}`])
    await mesh.settled()
    await aggregator.start()
    await send(14)
    assert.ok(sent.total >= 5_000, sent.text)
    t.diagnostic(sent.text)
    await eventually(
      async () => {
        const books = await booked(aggregator)
        const seen = JSON.stringify([...books].map(([pair, counts]) => [pair, [...counts]]))
        for (const [pair, outcomes] of sent.byPair) {
          assert.equal(sumOf(books.get(pair)), sumOf(outcomes), `${pair}: ${seen}, ${sent.text}`)
          const right = books.get(pair)?.get(FLAGS[pair] ?? '') ?? 0
          const wrong = sumOf(books.get(pair)) - right
          // Those under way when the worker of the called host crashed.
          assert.ok(wrong <= 12, `${pair}: ${seen}, ${sent.text}`)
        }
        t.diagnostic(seen)
      },
      { withinMs: 40_000, everyMs: 1_000 },
    )
  })

  await t.test('and of those, no more than were under way', async () => {
    await Promise.all([send(10), crash(a)])
    let missing = Number.POSITIVE_INFINITY
    await eventually(
      async () => {
        const books = await booked(aggregator)
        missing = 0
        for (const [pair, outcomes] of sent.byPair) {
          const difference = sumOf(outcomes) - sumOf(books.get(pair))
          assert.ok(difference >= 0, `${pair} is counted twice: ${JSON.stringify([...books])}`)
          missing += difference
        }
        assert.ok(missing <= 12, `${missing} are missing`)
      },
      { withinMs: 40_000, everyMs: 1_000 },
    )
    t.diagnostic(`${missing} were lost with the worker`)
  })

  await t.test('no record is missing', async () => {
    const { hosts } = await aggregator.ask('hosts')
    assert.equal(hosts.length, 2)
    for (const { name, lostRecords } of hosts) assert.equal(lostRecords, 0, name)
  })
})

/** How each connection of a pair ends. */
const FLAGS: Readonly<Record<string, string>> = {
  'web db': '-',
  'web banner': '-',
  'web broken': 'UF',
  'stranger db': 'DENY',
}

function sumOf(counts: ReadonlyMap<string, number> | undefined): number {
  let sum = 0
  for (const count of counts?.values() ?? []) sum += count
  return sum
}

/** The connections of each pair by response flag. */
async function booked(
  aggregator: Aggregator,
): Promise<ReadonlyMap<string, ReadonlyMap<string, number>>> {
  const { edges } = await aggregator.ask('graph', '?window=15m')
  return new Map(
    edges.map(({ source, destination, traffic: { closed } }) => [
      `${source} ${destination}`,
      new Map(Object.entries(closed)),
    ]),
  )
}
