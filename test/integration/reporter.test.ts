/** The reporter of a host against aggregators that work, fail, hang, lie and say nonsense; over real sockets. */
import assert from 'node:assert/strict'
import { createServer, type Server, type ServerResponse } from 'node:http'
import { connect } from 'node:net'
import { after, test } from 'node:test'
import type { KeptReports, Reporter as ReporterType } from '../../src/daemon/reports/reporter.ts'
import { Reporter } from '../../src/daemon/reports/reporter.ts'
import { portOf } from '../../src/lib/json-http.ts'
import { createLog } from '../../src/lib/log.ts'
import type { HostReport, ReportedFacts } from '../../src/model/report.ts'
import { trafficLayout, workerLayout } from '../../src/telemetry/counters.ts'
import { reportColumns } from '../../src/telemetry/report-columns.ts'
import type { TrafficTotal } from '../../src/telemetry/totals.ts'
import { eventually } from '../harness/eventually.ts'
import { hurried } from '../harness/test-clock.ts'

const log = createLog({ level: 'error', format: 'text' })
const COLUMNS = reportColumns()
const FACTS: ReportedFacts = {
  version: '0.1.0',
  nodeVersion: 'v24.0.0',
  datacenter: 'dc1',
  startedMsAgo: 0,
  state: 'ready',
  workers: 1,
  problems: [],
  services: [],
  capture: { mode: 'off' },
  tunnels: { sessions: 0, peers: 0 },
}

/** Stores each record once, like a real one. */
class FakeAggregator {
  readonly server: Server
  readonly reports: HostReport[] = []
  readonly stored = new Map<string, number>()
  opened = 0
  lost = 0
  /** What it does with a report instead of taking it: undefined takes it. */
  behave: ((response: ServerResponse, take: () => number) => void) | undefined

  constructor() {
    this.server = createServer((request, response) => {
      const chunks: Buffer[] = []
      request.on('data', (chunk: Buffer) => chunks.push(chunk))
      request.on('end', () => {
        const report: HostReport = JSON.parse(Buffer.concat(chunks).toString())
        const take = (): number => this.take(report)
        if (this.behave === undefined) response.end(JSON.stringify({ accepted: take() }))
        else this.behave(response, take)
      })
    })
    this.server.listen(0, '127.0.0.1')
    after(() => this.server.close().closeAllConnections())
  }

  private take(report: HostReport): number {
    this.reports.push(report)
    let last = this.stored.get(report.run) ?? 0
    for (const { sequence, merged, pairs } of report.records) {
      if (sequence <= last) continue
      this.lost += sequence - last - merged
      last = sequence
      for (const [, , , , , cells] of pairs) this.opened += cells[1] ?? 0
    }
    this.stored.set(report.run, last)
    return last
  }
}

/** Counts of one pair, as a data plane would make them. */
class Traffic {
  opened = 0

  read(): { traffic: readonly TrafficTotal[]; cells: Float64Array } {
    const cells = trafficLayout.empty()
    cells[trafficLayout.start.opened] = this.opened
    const labels = { reporter: 'source', source: 'web', destination: 'db' } as const
    return { traffic: [{ labels, cells, active: 0, lost: 0 }], cells: workerLayout.empty() }
  }
}

let runs = 0

/** A minute of the reporter takes 600 ms. */
function start(
  aggregators: Readonly<Record<string, FakeAggregator>>,
  traffic: Traffic,
  kept: KeptReports = {},
): { reporter: ReporterType; kept: () => KeptReports } {
  let keptNow: KeptReports = {}
  runs += 1
  const reporter = new Reporter({
    aggregators: Object.keys(aggregators),
    keepMs: 3_600_000,
    key: 'k'.repeat(43),
    run: { run: `run ${runs}`, layout: 'layout', columns: COLUMNS },
    host: () => 'host-a',
    read: () => traffic.read(),
    view: () => ({ state: 'ready', problems: [] }),
    facts: async () => FACTS,
    workloads: async () => [],
    dial: (name) => {
      const server = aggregators[name]?.server
      assert.ok(server)
      return connect(portOf(server), '127.0.0.1')
    },
    kept,
    onKept: (now) => {
      keptNow = now
    },
    log,
    clock: hurried(100),
  })
  return { reporter, kept: () => keptNow }
}

test('live views come every second and records every 10 s, with facts only when they change', async () => {
  const aggregator = new FakeAggregator()
  const traffic = new Traffic()
  traffic.opened = 3
  const { reporter } = start({ main: aggregator }, traffic)
  await eventually(() => assert.equal(aggregator.stored.get(`run ${runs}`), 3))
  await reporter[Symbol.asyncDispose]()
  const records = aggregator.reports.flatMap((report) => report.records)
  assert.equal(aggregator.opened, 3)
  assert.equal(records.filter(({ facts }) => facts !== undefined).length, 1)
  assert.ok(records.every(({ spanMs }) => spanMs >= 10_000))
  const lives = aggregator.reports.filter(({ live }) => live !== undefined)
  assert.ok(lives.length >= 20, `${lives.length} live views`)
  assert.deepEqual(aggregator.reports[0]?.columns, COLUMNS)
})

test('an aggregator that comes back gets all that was counted, and another is not held up by it', async () => {
  const [away, present] = [new FakeAggregator(), new FakeAggregator()]
  const traffic = new Traffic()
  away.behave = (response) => response.destroy()
  const { reporter } = start({ away, present }, traffic)
  for (let i = 0; i < 20; i += 1) {
    traffic.opened += 5
    await new Promise((resolve) => setTimeout(resolve, 50))
  }
  await eventually(() => assert.ok(reporter.problems().length > 0))
  assert.match(reporter.problems()[0]?.message ?? '', /^away has taken no report for /)
  assert.equal(away.opened, 0)
  away.behave = undefined
  await eventually(() => assert.equal(away.opened, 100))
  await eventually(() => assert.equal(present.opened, 100))
  assert.deepEqual(reporter.problems(), [])
  assert.equal(away.lost, 0)
  await reporter[Symbol.asyncDispose]()
})

test('a record whose answer was lost is sent again and counts once', async () => {
  const aggregator = new FakeAggregator()
  const traffic = new Traffic()
  let turn = 0
  aggregator.behave = (response, take) => {
    turn += 1
    const accepted = take()
    if (turn % 2 === 0) response.destroy()
    else response.end(JSON.stringify({ accepted }))
  }
  const { reporter } = start({ main: aggregator }, traffic)
  for (let i = 0; i < 10; i += 1) {
    traffic.opened += 1
    await new Promise((resolve) => setTimeout(resolve, 50))
  }
  aggregator.behave = undefined
  await eventually(() => assert.equal(reporter.statuses()[0]?.waiting, 0))
  await eventually(() => assert.equal(aggregator.opened, 10))
  await reporter[Symbol.asyncDispose]()
})

test('what the process could not deliver the next one does, as the run that counted it', async () => {
  const aggregator = new FakeAggregator()
  aggregator.behave = (response) => response.destroy()
  const traffic = new Traffic()
  traffic.opened = 7
  const first = start({ main: aggregator }, traffic)
  await new Promise((resolve) => setTimeout(resolve, 300))
  traffic.opened = 9
  await first.reporter[Symbol.asyncDispose]()
  const kept: KeptReports = JSON.parse(JSON.stringify(first.kept()))
  aggregator.behave = undefined
  const second = start({ main: aggregator }, new Traffic(), kept)
  await eventually(() => assert.equal(aggregator.opened, 9))
  await eventually(() => assert.deepEqual(second.kept()['main'], []))
  await second.reporter[Symbol.asyncDispose]()
})

test('an aggregator that hangs, redirects, says nonsense or answers without end changes nothing', async () => {
  const behaviours: readonly FakeAggregator['behave'][] = [
    (response) => response.writeHead(302, { location: 'http://127.0.0.1:1/' }).end(),
    (response) => response.end('<html>'),
    (response) => response.end('{"accepted":"all"}'),
    (response) => response.end('{"accepted":1e308}'),
    (response) => {
      response.writeHead(200)
      for (let i = 0; i < 100; i += 1) response.write('x'.repeat(10_000))
    },
    (response) => response.socket?.end('HTTP/9.9 nonsense\r\n\r\n'),
    (response) => response.end('{"accepted":-9007199254740991}'),
    (response) => response.end('{"accepted":0,"__proto__":{"accepted":5}}'),
    (response) =>
      response.socket?.write(
        'HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n',
      ),
    (response) => response.socket?.end('HTTP/1.1 103 Early Hints\r\n\r\n'.repeat(10_000)),
    (response) => {
      response.writeHead(200, { 'content-length': 100_000_000 })
      response.write('{"accepted":', () => response.socket?.resetAndDestroy())
    },
    (response) =>
      response.writeHead(200, { 'x-filler': 'x'.repeat(100_000) }).end('{"accepted":1}'),
    (response) => response.writeHead(204).end(),
    (response) => response.writeHead(500).end('{"accepted":1}'),
  ]
  for (const behave of behaviours) {
    const aggregator = new FakeAggregator()
    aggregator.behave = behave
    const traffic = new Traffic()
    traffic.opened = 4
    const { reporter } = start({ main: aggregator }, traffic)
    await eventually(() => assert.ok((reporter.statuses()[0]?.waiting ?? 0) > 0))
    aggregator.behave = undefined
    await eventually(() => assert.equal(aggregator.opened, 4))
    await reporter[Symbol.asyncDispose]()
  }
})

test('a record that is refused on its own is given up and counted, and the next ones are delivered', async () => {
  const aggregator = new FakeAggregator()
  let refusals = 0
  const traffic = new Traffic()
  aggregator.behave = (response, take) => {
    if (reporter.statuses()[0]?.waiting === 0 || (reporter.statuses()[0]?.dropped ?? 0) > 0)
      response.end(JSON.stringify({ accepted: take() }))
    else {
      refusals += 1
      response.writeHead(400).end('{}')
    }
  }
  const { reporter } = start({ main: aggregator }, traffic)
  await eventually(() => assert.ok((reporter.statuses()[0]?.dropped ?? 0) > 0))
  await eventually(() => assert.ok((aggregator.stored.get(`run ${runs}`) ?? 0) > 1))
  assert.ok(refusals >= 2)
  await reporter[Symbol.asyncDispose]()
})

test('a process that is replaced hands its records to the next one, and nothing is lost or doubled', async () => {
  const aggregator = new FakeAggregator()
  const [before, later] = [new Traffic(), new Traffic()]
  const old = start({ main: aggregator }, before)
  before.opened = 3
  await eventually(() => assert.equal(aggregator.opened, 3))
  before.opened = 5
  old.reporter.suspend()
  const next = start({ main: aggregator }, later)
  next.reporter.adopt(old.reporter.release())
  later.opened = 10
  // The old one goes on to carry its connections, and is heard through the next one.
  for (let i = 0; i < 5; i += 1) {
    before.opened += 1
    await new Promise((resolve) => setTimeout(resolve, 60))
    next.reporter.adopt(old.reporter.release())
  }
  await old.reporter.finish()
  next.reporter.adopt(old.reporter.release())
  await old.reporter[Symbol.asyncDispose]()
  await eventually(() => assert.equal(aggregator.opened, 20))
  await next.reporter[Symbol.asyncDispose]()
  assert.equal(aggregator.opened, 20)
  assert.equal(aggregator.lost, 0)
})
