/**
 * Aggregators that never answer, or answer with nonsense: the applications of a host do not notice, an aggregator that
 * works gets every report, and nothing of it delays a reload or a stop.
 */
import assert from 'node:assert/strict'
import { readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { test } from 'node:test'
import type { HostReport } from '../../src/model/report.ts'
import { eventually } from '../harness/eventually.ts'
import { startMesh } from '../harness/mesh.ts'
import { keepConnecting } from '../harness/steady-calls.ts'

const services = join(import.meta.dirname, '../harness/services')
const PORTS = { good: 15_191, hang: 15_192, rage: 15_193 } as const

test('with one aggregator that works, one that hangs and one that rages', async (t) => {
  await using mesh = await startMesh({
    hosts: ['a', 'b'],
    catalog: 'file',
    config: (host) => (host === 'a' ? { reports: { to: ['hang', 'rage', 'good'] } } : {}),
  })
  const [a, b] = [mesh.host('a'), mesh.host('b')]
  const web = a.service('web')
  await web.start()
  await b.service('db', { listens: 5432 }).start()
  const good = await b
    .service('good', { listens: PORTS.good, identity: 'none' })
    .run([process.execPath, join(services, 'report-sink.ts'), String(PORTS.good)])
  for (const mode of ['hang', 'rage'] as const)
    await b
      .service(mode, { listens: PORTS[mode], identity: 'none' })
      .run([process.execPath, join(services, 'hostile-aggregator.ts'), String(PORTS[mode]), mode])
  await mesh.allow('web', 'db')
  for (const name of ['good', 'hang', 'rage']) await mesh.allow('hostmesh', name)
  await mesh.up()
  const reports = (): readonly HostReport[] =>
    good.output
      .split('\n')
      .filter((line) => line.startsWith('{') && line.endsWith('}'))
      .map((line): HostReport => JSON.parse(line))
  await eventually(() => assert.ok(reports().length > 3))
  const { pid } = await a.daemon.status()
  const descriptors = async (): Promise<number> => (await readdir(`/proc/${pid}/fd`)).length

  await t.test('for half a minute applications notice nothing', async () => {
    const { ip, port } = await mesh.virtualAddress('db', a)
    const before = { MiB: a.daemon.residentMiB, descriptors: await descriptors() }
    await using calls = await keepConnecting(web, { targets: [`${ip}:${port}`] })
    await new Promise((resolve) => setTimeout(resolve, 30_000))
    const { outcomes, longestMs, served } = await calls.stop()
    t.diagnostic(`${JSON.stringify(outcomes)}, longest ${longestMs} ms`)
    assert.deepEqual(outcomes, { served })
    assert.ok(longestMs < 1_000, `a call took ${longestMs} ms`)
    const after = { MiB: a.daemon.residentMiB, descriptors: await descriptors() }
    t.diagnostic(JSON.stringify({ before, after }))
    assert.ok(after.MiB < before.MiB + 60, JSON.stringify({ before, after }))
    assert.ok(after.descriptors < before.descriptors + 10, JSON.stringify({ before, after }))
  })

  await t.test('the one that works has a report of every second', () => {
    const lives = reports().filter(({ live }) => live !== undefined)
    assert.ok(lives.length >= 28, `${lives.length} reports in 30 s`)
  })

  await t.test('connections of reports are listed by their names', async () => {
    const { connections } = await a.daemon.connections()
    const ofReports = connections.filter(({ source }) => source === 'hostmesh')
    assert.ok(ofReports.some(({ destination }) => destination === 'good'))
    for (const { destination } of ofReports)
      assert.equal(
        ofReports.filter((one) => one.destination === destination).length,
        1,
        `connections to ${destination}: ${JSON.stringify(ofReports)}`,
      )
  })

  await t.test('the status says which ones do not take reports', async () => {
    await eventually(
      async () => {
        const { problems } = await a.daemon.status()
        const undelivered = problems
          .filter(({ code }) => code === 'HM_REPORTS_UNDELIVERED')
          .map(({ message }) => message.replace(/ .*/s, ''))
        assert.ok(undelivered.includes('hang'))
        assert.ok(!undelivered.includes('good'))
      },
      { withinMs: 60_000 },
    )
  })

  await t.test('a stop does not wait for them', async () => {
    const startedAt = performance.now()
    await a.daemon.stop()
    const tookMs = performance.now() - startedAt
    t.diagnostic(`stopped in ${Math.round(tookMs)} ms`)
    assert.ok(tookMs < 5_000, `${tookMs} ms`)
  })
})
