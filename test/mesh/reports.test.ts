/** Hosts report through the mesh: as a service of their own, under intentions, on the aggregator's own host too. */
import assert from 'node:assert/strict'
import { join } from 'node:path'
import { test } from 'node:test'
import type { HostReport, ReportedFacts } from '../../src/model/report.ts'
import { eventually } from '../harness/eventually.ts'
import { startMesh } from '../harness/mesh.ts'
import type { OwnedProcess } from '../harness/owned-process.ts'

const sink = join(import.meta.dirname, '../harness/services/report-sink.ts')
const AGGREGATOR = 'hostmesh-aggregator'
const PORT = 15_191

function reportsIn(program: OwnedProcess): readonly HostReport[] {
  return program.output
    .split('\n')
    .filter((line) => line.startsWith('{'))
    .map((line): HostReport => JSON.parse(line))
}

/** Connections that a host has reported in records as their caller. */
function openedBy(host: string, reports: readonly HostReport[]): number {
  const seen = new Set<string>()
  let sum = 0
  for (const { host: name, run, records, columns } of reports) {
    if (name !== host) continue
    const opened = columns?.pair.findIndex((column) => column.name === 'opened') ?? 0
    for (const { sequence, names, pairs } of records) {
      if (seen.has(`${run} ${sequence}`)) continue
      seen.add(`${run} ${sequence}`)
      for (const [reporter, source, , , , cells] of pairs)
        if (reporter === 0 && names[source] === 'web')
          for (let i = 0; i < cells.length; i += 2)
            if (cells[i] === opened) sum += cells[i + 1] ?? 0
    }
  }
  return sum
}

test('hosts report through the mesh, and only where an intention allows it', async (t) => {
  await using mesh = await startMesh({
    hosts: ['a', 'b'],
    catalog: 'file',
    config: { reports: { to: [AGGREGATOR] }, node: { zone: 'rack-1' } },
  })
  const [a, b] = [mesh.host('a'), mesh.host('b')]
  a.configure({ node: { name: 'a', zone: 'rack-1' } })
  b.configure({ node: { name: 'b' } })
  const web = await a.service('web').start()
  await b.service('db', { listens: 5432 }).start()
  const program = await b
    .service(AGGREGATOR, { listens: PORT, identity: 'none' })
    .run([process.execPath, sink, String(PORT)])
  await mesh.allow('web', 'db')
  await mesh.up()
  for (let i = 0; i < 5; i += 1) await web.call('db')

  await t.test('without an intention nothing arrives, and the status says so in time', async () => {
    await new Promise((resolve) => setTimeout(resolve, 3_000))
    assert.deepEqual(reportsIn(program), [])
  })

  await t.test('with one both hosts report every second', async () => {
    await mesh.allow('hostmesh', AGGREGATOR)
    await eventually(() => {
      const hosts = reportsIn(program).map(({ host }) => host)
      assert.ok(hosts.filter((host) => host === 'a').length >= 3)
      assert.ok(hosts.filter((host) => host === 'b').length >= 3)
    })
  })

  await t.test('the records have what was counted before they could be delivered', async () => {
    await eventually(() => assert.equal(openedBy('a', reportsIn(program)), 5), {
      withinMs: 25_000,
    })
  })

  await t.test('the facts say what the host is, and not a key or a token', async () => {
    const factsOf = (name: string): ReportedFacts | undefined =>
      reportsIn(program)
        .filter(({ host }) => host === name)
        .flatMap(({ records }) => records)
        .findLast(({ facts }) => facts !== undefined)?.facts
    assert.equal(factsOf('a')?.zone, 'rack-1')
    assert.deepEqual(
      factsOf('a')?.services.map(({ name, captured }) => [name, captured]),
      [['web', true]],
    )
    await eventually(
      () =>
        assert.deepEqual(
          factsOf('b')?.services.find(({ name }) => name === 'db')?.policy?.intentions,
          [{ source: 'web', destination: 'db', action: 'allow', precedence: 9 }],
        ),
      { withinMs: 25_000 },
    )
    assert.doesNotMatch(program.output, /PRIVATE KEY/)
  })

  await t.test('what is counted until a restart arrives after it, once', async () => {
    for (let i = 0; i < 4; i += 1) await web.call('db')
    await a.daemon.stop()
    await a.daemon.start()
    await mesh.settled()
    await eventually(() => assert.equal(openedBy('a', reportsIn(program)), 9), {
      withinMs: 25_000,
    })
  })
})
