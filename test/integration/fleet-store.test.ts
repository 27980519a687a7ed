/** The aggregator's store with its file and its thread, and a clock that the tests move. */
import assert from 'node:assert/strict'
import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { DatabaseSync } from 'node:sqlite'
import test from 'node:test'
import {
  type FleetStoreOptions,
  openFleetStore,
  type SqliteFleetStore,
} from '../../src/aggregator/open-fleet-store.ts'
import type { StoredReport } from '../../src/aggregator/store/protocol.ts'
import { Store } from '../../src/aggregator/store/store.ts'
import { MeshError } from '../../src/lib/errors.ts'
import { type Log, silentLog } from '../../src/lib/log.ts'
import type { ReportRecord } from '../../src/model/report.ts'
import {
  hostReport,
  keyOf,
  reportColumns,
  reportedFacts,
  reportRecord,
  runOf,
} from '../harness/host-report.ts'
import { TestClock } from '../harness/test-clock.ts'

/** The begin of an hour. */
const BEGIN_MS = Date.UTC(2026, 0, 1)

const HOUR_MS = 3_600_000
const DAY_MS = 24 * HOUR_MS

/** A folder that is removed after the test, and stores in it. */
class Site implements AsyncDisposable {
  readonly directory = mkdtempSync(join(tmpdir(), 'hostmesh-fleet-store-'))
  readonly path = join(this.directory, 'fleet.db')
  readonly #stores: SqliteFleetStore[] = []

  async open(options: Partial<FleetStoreOptions> = {}): Promise<SqliteFleetStore> {
    // Its wall clock is before everything that the tests store, so that nothing happens unasked.
    const clock = new TestClock({ wallMs: 0 })
    const store = await openFleetStore({ path: this.path, clock, log: silentLog, ...options })
    this.#stores.push(store)
    return store
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const store of this.#stores) await store[Symbol.asyncDispose]()
    rmSync(this.directory, { recursive: true, force: true })
  }
}

/** Does all that is due. */
async function maintain(store: SqliteFleetStore, nowMs: number): Promise<void> {
  while (!(await store.maintain(nowMs, 1_000))) continue
}

/** Connections that were opened in a span, by the name of the host. */
async function opened(
  store: SqliteFleetStore,
  fromMs: number,
  toMs: number,
): Promise<Record<string, number>> {
  const sums: Record<string, number> = {}
  for (const { host, figures } of await store.pairs({ fromMs, toMs }))
    sums[host] = (sums[host] ?? 0) + (figures.counts.get('opened') ?? 0)
  return sums
}

async function openedBySteps(
  store: SqliteFleetStore,
  fromMs: number,
  toMs: number,
  stepMs: number,
): Promise<[number, number][]> {
  const steps = await store.history({ fromMs, toMs, stepMs })
  return steps.map(({ atMs, pairs }) => [
    atMs,
    pairs.reduce((sum, { figures }) => sum + (figures.counts.get('opened') ?? 0), 0),
  ])
}

function coded(code: string): (thrown: unknown) => boolean {
  return (thrown) => thrown instanceof MeshError && thrown.code === code
}

test('what was stored is answered with all kinds of columns', async () => {
  await using site = new Site()
  await using store = await site.open()
  const report = hostReport({
    records: [
      reportRecord(1, 8, {
        workloads: [
          { service: 'web', cpuMs: 5_000, memoryBytes: 100, tasks: 3, pressure: { cpu: 0.25 } },
        ],
      }),
      reportRecord(2, 4, {
        workloads: [
          { service: 'web', cpuMs: 1_000, memoryBytes: 50, tasks: 4, pressure: { cpu: 0.75 } },
        ],
      }),
    ],
  })
  assert.deepEqual(await store.accept(report, BEGIN_MS), { kind: 'accepted', accepted: 2 })
  const [pair, ...others] = await store.pairs({ fromMs: BEGIN_MS - 60_000, toMs: BEGIN_MS })
  assert.equal(others.length, 0)
  assert.ok(pair !== undefined)
  const { figures, ...row } = pair
  assert.deepEqual(
    [pair.host, pair.reporter, pair.source, pair.destination, pair.active, pair.lost],
    ['a', 'source', 'web', 'db', 2, 0],
    JSON.stringify(row),
  )
  assert.equal(figures.counts.get('opened'), 12)
  assert.deepEqual([...(figures.splits.get('closed') ?? [])], [['-', 12]])
  assert.deepEqual(figures.histograms.get('connect'), {
    bounds: [2 ** -0.5],
    counts: [12],
    sum: 1.5,
  })
  const host = await store.hostFigures({ fromMs: BEGIN_MS - 60_000, toMs: BEGIN_MS }, 'a')
  assert.deepEqual(Object.fromEntries(host.counts), { handshakes: 12, sessions: 2 })
  assert.deepEqual(await store.workloads({ fromMs: BEGIN_MS - 60_000, toMs: BEGIN_MS }), [
    {
      host: 'a',
      spanMs: 20_000,
      use: {
        service: 'web',
        cpuMs: 6_000,
        memoryBytes: 50,
        tasks: 4,
        pressure: { cpu: 0.5 },
      },
    },
  ])
})

test('a report that is sent again changes nothing, and a gap is counted as lost', async () => {
  await using site = new Site()
  await using store = await site.open()
  const first = hostReport({ records: [reportRecord(1, 1), reportRecord(2, 10)] })
  await store.accept(first, BEGIN_MS)
  assert.deepEqual(await store.accept(first, BEGIN_MS + 10_000), { kind: 'accepted', accepted: 2 })
  const later = hostReport({ records: [reportRecord(2, 10), reportRecord(6, 100)] })
  assert.deepEqual(await store.accept(later, BEGIN_MS + 20_000), { kind: 'accepted', accepted: 6 })
  assert.deepEqual(await opened(store, BEGIN_MS - 60_000, BEGIN_MS + 60_000), { a: 111 })
  const [host] = await store.hosts(BEGIN_MS + 20_000)
  assert.equal(host?.lostRecords, 3)
})

test('two runs of a host overlap: both count, and open connections are those of both', async () => {
  await using site = new Site()
  await using store = await site.open()
  const [older, newer] = [runOf('older'), runOf('newer')]
  await store.accept(hostReport({ run: older, records: [reportRecord(1, 1)] }), BEGIN_MS + 1_000)
  await store.accept(hostReport({ run: older, records: [reportRecord(2, 2)] }), BEGIN_MS + 11_000)
  await store.accept(hostReport({ run: newer, records: [reportRecord(1, 4)] }), BEGIN_MS + 12_000)
  await store.accept(hostReport({ run: older, records: [reportRecord(1, 1)] }), BEGIN_MS + 13_000)
  const [pair] = await store.pairs({ fromMs: BEGIN_MS, toMs: BEGIN_MS + 20_000 })
  assert.equal(pair?.figures.counts.get('opened'), 7)
  assert.equal(pair?.active, 3)
  const [host] = await store.hosts(BEGIN_MS + 13_000)
  assert.equal(host?.lostRecords, 0)
})

test('minutes and hours are sums of the finer tier, whenever a record comes', async () => {
  await using site = new Site()
  await using store = await site.open()
  let total = 0
  // Two hours; every seventh record comes 90 minutes late.
  const late: ReportRecord[] = []
  const waiting: Promise<unknown>[] = []
  for (let i = 1; i <= 720; i += 1) {
    const endMs = BEGIN_MS + i * 10_000
    total += i
    if (i % 7 === 0) {
      late.push(reportRecord(late.length + 1, i, { ageMs: -endMs }))
      continue
    }
    waiting.push(store.accept(hostReport({ records: [reportRecord(i, i)] }), endMs))
    if (i % 36 !== 0) continue
    await Promise.all(waiting.splice(0))
    await maintain(store, endMs + 15_000)
  }
  await Promise.all(waiting)
  const afterMs = BEGIN_MS + 4 * HOUR_MS
  await maintain(store, afterMs)
  for (let i = 0; i < late.length; i += 50) {
    const records = late
      .slice(i, i + 50)
      .map((record) => ({ ...record, ageMs: afterMs + record.ageMs }))
    await store.accept(hostReport({ run: runOf('late'), records }), afterMs)
  }
  const span = [BEGIN_MS, BEGIN_MS + 2 * HOUR_MS] as const
  const fine = await openedBySteps(store, ...span, 10_000)
  const minutes = await openedBySteps(store, ...span, 60_000)
  const hours = await openedBySteps(store, ...span, HOUR_MS)
  assert.equal(fine.length, 720)
  assert.deepEqual(minutes, folded(fine, 60_000))
  assert.deepEqual(hours, folded(fine, HOUR_MS))
  assert.deepEqual(await opened(store, ...span), { a: total })
})

function folded(steps: readonly [number, number][], stepMs: number): [number, number][] {
  const sums = new Map<number, number>()
  for (const [atMs, value] of steps) {
    const at = Math.ceil(atMs / stepMs) * stepMs
    sums.set(at, (sums.get(at) ?? 0) + value)
  }
  return [...sums]
}

test('what is older than its tier is deleted there and still in the coarser one', async () => {
  await using site = new Site()
  await using store = await site.open({
    secondsMs: HOUR_MS,
    minutesMs: DAY_MS,
    hoursMs: 10 * DAY_MS,
  })
  for (let i = 1; i <= 12; i += 1)
    await store.accept(hostReport({ records: [reportRecord(i, 1)] }), BEGIN_MS + i * 10_000)
  const minutesLaterMs = BEGIN_MS + 3 * HOUR_MS
  await maintain(store, minutesLaterMs)
  assert.equal((await openedBySteps(store, BEGIN_MS, BEGIN_MS + HOUR_MS, 10_000)).length, 0)
  assert.equal((await openedBySteps(store, BEGIN_MS, BEGIN_MS + HOUR_MS, 60_000)).length, 2)
  assert.deepEqual(await opened(store, BEGIN_MS, BEGIN_MS + 60_000), { a: 6 })
  // Late for the finest tier: added to the coarser ones.
  const late = reportRecord(13, 5, { ageMs: minutesLaterMs - BEGIN_MS - 130_000 })
  await store.accept(hostReport({ records: [late] }), minutesLaterMs)
  assert.deepEqual(await opened(store, BEGIN_MS, BEGIN_MS + HOUR_MS), { a: 17 })
  await maintain(store, BEGIN_MS + 3 * DAY_MS)
  assert.equal((await openedBySteps(store, BEGIN_MS, BEGIN_MS + HOUR_MS, 60_000)).length, 0)
  assert.deepEqual(await opened(store, BEGIN_MS, BEGIN_MS + HOUR_MS), { a: 17 })
  const { oldestMs } = await store.status()
  assert.deepEqual(oldestMs, { seconds: undefined, minutes: undefined, hours: BEGIN_MS })
  await maintain(store, BEGIN_MS + 20 * DAY_MS)
  assert.deepEqual(await store.hosts(BEGIN_MS + 20 * DAY_MS), [])
  const older = reportRecord(14, 5, { ageMs: 20 * DAY_MS })
  await store.accept(hostReport({ records: [older] }), BEGIN_MS + 20 * DAY_MS)
  assert.equal((await store.status()).dropped.records, 1)
})

test('another key with a name is a conflict that changes nothing of the host', async () => {
  await using site = new Site()
  await using store = await site.open()
  await store.accept(hostReport({ records: [reportRecord(1, 1)] }), BEGIN_MS)
  const forged = hostReport({
    key: keyOf('another'),
    clockMs: 5e15,
    records: [reportRecord(2, 1_000, { facts: reportedFacts({ version: '9.9.9' }) })],
    live: { spanMs: 1_000, names: [], pairs: [], host: [], state: 'draining', problems: [] },
  })
  assert.deepEqual(await store.accept(forged, BEGIN_MS + 1_000), { kind: 'conflict' })
  assert.deepEqual(await opened(store, BEGIN_MS - 60_000, BEGIN_MS + 60_000), { a: 1 })
  const [host] = await store.hosts(BEGIN_MS + 1_000)
  assert.equal(host?.isConflicting, true)
  assert.equal(host?.lastReportAtMs, BEGIN_MS)
  assert.equal(host?.facts, undefined)
  assert.equal(host?.state, undefined)
  const [later] = await store.hosts(BEGIN_MS + HOUR_MS)
  assert.equal(later?.isConflicting, false)
})

test('the key of a name is known after a restart; after a long silence another one may take it', async () => {
  await using site = new Site()
  {
    await using store = await site.open()
    await store.accept(hostReport(), BEGIN_MS)
  }
  await using store = await site.open({ rebindAfterMs: DAY_MS })
  const other = hostReport({ key: keyOf('another'), records: [reportRecord(1, 3)] })
  assert.deepEqual(await store.accept(other, BEGIN_MS + DAY_MS - 1), { kind: 'conflict' })
  assert.deepEqual(await store.accept(other, BEGIN_MS + DAY_MS), { kind: 'accepted', accepted: 1 })
  assert.deepEqual(await store.accept(hostReport(), BEGIN_MS + DAY_MS), { kind: 'conflict' })
})

test('of two first reports with one name and two keys the first is the host', async () => {
  await using site = new Site()
  await using store = await site.open()
  const answers = await Promise.all([
    store.accept(hostReport({ records: [reportRecord(1, 1)] }), BEGIN_MS),
    store.accept(hostReport({ key: keyOf('x'), records: [reportRecord(1, 5)] }), BEGIN_MS),
  ])
  assert.deepEqual(
    answers.map(({ kind }) => kind),
    ['accepted', 'conflict'],
  )
  assert.deepEqual(await opened(store, BEGIN_MS - 60_000, BEGIN_MS), { a: 1 })
})

test('facts are those of the moment that is asked for, and are written only when they change', async () => {
  await using site = new Site()
  await using store = await site.open()
  const version = (i: number): string => (i < 4 ? '1.0.0' : '2.0.0')
  for (let i = 1; i <= 6; i += 1) {
    const atMs = BEGIN_MS + i * 300_000
    const facts = reportedFacts({
      version: version(i),
      startedMsAgo: i * 300_000,
      tunnels: { sessions: i, peers: i },
    })
    const [service] = facts.services
    const services =
      service?.certificate === undefined
        ? []
        : [{ ...service, certificate: { ...service.certificate, leftMs: 7_200_000 - i * 300_000 } }]
    const record = reportRecord(i, 1, { facts: { ...facts, services } })
    await store.accept(hostReport({ records: [record] }), atMs)
  }
  const at = async (i: number): Promise<string | undefined> =>
    (await store.hosts(BEGIN_MS + i * 300_000))[0]?.facts?.version
  assert.equal(await at(0.5), undefined)
  assert.equal(await at(3.9), '1.0.0')
  assert.equal(await at(4.1), '2.0.0')
  const [present] = await store.hosts(BEGIN_MS + 6 * 300_000)
  assert.equal(present?.facts?.tunnels.sessions, 6)
  assert.equal(present?.factsAtMs, BEGIN_MS + 6 * 300_000)
  await store[Symbol.asyncDispose]()
  const file = new DatabaseSync(site.path)
  const [row] = file.prepare('SELECT count(*) AS count FROM facts').all()
  file.close()
  assert.equal(row?.['count'], 2)
})

test('live views are summed for 3 s, and give the state of the host', async () => {
  await using site = new Site()
  await using store = await site.open()
  for (let i = 1; i <= 5; i += 1)
    await store.accept(
      hostReport({
        live: {
          spanMs: 1_000,
          names: ['web', 'db'],
          pairs: [[1, 0, 1, i, 0, [0, 10 ** i]]],
          host: [],
          state: 'degraded',
          problems: [],
        },
      }),
      BEGIN_MS + i * 1_000,
    )
  const { spanMs, pairs } = store.livePairs(BEGIN_MS + 5_500)
  assert.equal(spanMs, 3_000)
  assert.deepEqual(
    pairs.map(({ active, figures }) => [active, figures.counts.get('opened')]),
    [[5, 111_000]],
  )
  const [host] = await store.hosts(BEGIN_MS + 6_000)
  assert.equal(host?.state, 'degraded')
  const empty = store.livePairs(BEGIN_MS + 60_000)
  assert.deepEqual(empty, { spanMs: 0, pairs: [] })
})

test('hosts with other columns are summed by the names of the columns; unknown ones are carried', async () => {
  await using site = new Site()
  await using store = await site.open()
  await store.accept(hostReport({ host: 'old', records: [reportRecord(1, 1)] }), BEGIN_MS)
  const columns = {
    pair: [
      { name: 'requests', kind: 'split', label: 'code', values: ['200', '500'] },
      { name: 'opened', kind: 'count' },
      { name: 'connect', kind: 'exponential', scale: 2, offset: -8, cells: 10 },
    ],
    host: [],
  } as const
  const record = reportRecord(1, 0, {
    pairs: [[0, 0, 1, 0, 0, [1, 7, 2, 5, 6, 1, 8, 1, 12, 0.5]]],
    host: [],
  })
  await store.accept(
    hostReport({ host: 'new', layout: 'new', columns, records: [record] }),
    BEGIN_MS,
  )
  const [sum, ...others] = await store.pairs(
    { fromMs: BEGIN_MS - 60_000, toMs: BEGIN_MS },
    { sumHosts: true },
  )
  assert.equal(others.length, 0)
  assert.equal(sum?.host, '')
  assert.equal(sum?.figures.counts.get('opened'), 6)
  assert.deepEqual([...(sum?.figures.splits.get('requests') ?? [])], [['500', 7]])
  // 2^(-1/2) is an edge of both scales.
  assert.deepEqual(sum?.figures.histograms.get('connect'), {
    bounds: [2 ** -1, 2 ** -0.5],
    counts: [1, 2],
    sum: 0.625,
  })
})

test('steps say how many hosts have reported, and filters choose pairs', async () => {
  await using site = new Site()
  await using store = await site.open()
  for (const [index, host] of ['a', 'b', 'c'].entries())
    await store.accept(
      hostReport({ host, records: [reportRecord(1, 1, { names: ['web', `db-${index}`] })] }),
      BEGIN_MS + 10_000,
    )
  await store.accept(hostReport({ host: 'a', records: [reportRecord(2, 1)] }), BEGIN_MS + 20_000)
  const span = { fromMs: BEGIN_MS, toMs: BEGIN_MS + 60_000 }
  const reporting = async (stepMs: number): Promise<number[]> =>
    (await store.history({ ...span, stepMs }, { destination: 'db-1' })).map(
      (step) => step.reporting,
    )
  assert.deepEqual(await reporting(10_000), [3, 1])
  assert.deepEqual(await reporting(60_000), [3])
  await maintain(store, BEGIN_MS + 120_000)
  assert.deepEqual(await reporting(60_000), [3])
  const chosen = await store.pairs(span, { destination: 'db-1' })
  assert.deepEqual(
    chosen.map(({ host, destination }) => [host, destination]),
    [['b', 'db-1']],
  )
  assert.deepEqual(await store.pairs(span, { source: 'nobody' }), [])
  assert.equal((await store.pairs(span, { source: 'web', host: 'c' })).length, 1)
  await assert.rejects(store.history({ ...span, stepMs: 5_000 }), coded('HM_STORE_STEP_UNKNOWN'))
})

test('the file stays within its limit: the oldest of the finest tier goes first', async () => {
  await using site = new Site()
  const maxBytes = 8 * 1_024 * 1_024
  await using store = await site.open({ maxBytes })
  // 400 KB a minute.
  const pairs = 1_500
  const names = Array.from({ length: pairs + 1 }, (_, i) => `service-${i}`)
  const rows = Array.from({ length: pairs }, (_, i) => {
    return [0, 0, i + 1, 0, 0, [0, 1_000_000 + i, 1, 1_000_000 + i, 4, i, 5, i, 6, i]] as const
  })
  let sequence = 0
  for (let i = 1; i <= 240; i += 1) {
    sequence += 1
    const atMs = BEGIN_MS + i * 10_000
    const record = reportRecord(sequence, 1, { names, pairs: rows })
    await store.accept(hostReport({ records: [record] }), atMs)
    if (i % 3 === 0) await maintain(store, atMs)
    assert.ok((await store.status()).bytes <= maxBytes)
  }
  const endMs = BEGIN_MS + 2_400_000
  const { oldestMs } = await store.status()
  assert.ok((oldestMs.seconds ?? 0) > BEGIN_MS + 600_000, 'the first seconds are gone')
  assert.equal(oldestMs.minutes, BEGIN_MS)
  // The sum over everything is still right, since the minutes have what the seconds lost.
  const [one] = await store.pairs({ fromMs: BEGIN_MS, toMs: endMs }, { destination: 'service-1' })
  assert.equal(one?.figures.counts.get('opened'), 240 * 1_000_000)
})

test('what does not fit at all is refused as full, and the store goes on', async () => {
  await using site = new Site()
  await using store = await site.open({ maxBytes: 8 * 1_024 * 1_024, maxHosts: 40 })
  const names = Array.from({ length: 4_000 }, (_, i) => `service-${i}`)
  const rows = Array.from({ length: 4_000 }, (_, i) => {
    return [0, 0, i, 9, 0, [0, 1e14, 1, 1e14, 4, 1e14, 5, 1e14, 6, 1e14, 7, 1e14]] as const
  })
  const outcomes = new Set<string>()
  for (let i = 0; i < 40; i += 1) {
    const report = hostReport({
      host: `host-${i}`,
      records: [reportRecord(1, 1, { names, pairs: rows })],
    })
    try {
      outcomes.add((await store.accept(report, BEGIN_MS)).kind)
    } catch (thrown) {
      outcomes.add(thrown instanceof MeshError ? thrown.code : String(thrown))
    }
  }
  assert.deepEqual(outcomes, new Set(['accepted', 'HM_STORE_FULL']))
  assert.ok((await store.hosts(BEGIN_MS)).length > 0)
  // An hour later the old figures make room.
  await maintain(store, BEGIN_MS + HOUR_MS)
  const again = hostReport({ host: 'host-0', records: [reportRecord(2, 1)] })
  assert.equal((await store.accept(again, BEGIN_MS + HOUR_MS)).kind, 'accepted')
})

test('more hosts than allowed are refused', async () => {
  await using site = new Site()
  await using store = await site.open({ maxHosts: 2 })
  await store.accept(hostReport({ host: 'a' }), BEGIN_MS)
  await store.accept(hostReport({ host: 'b' }), BEGIN_MS)
  await assert.rejects(store.accept(hostReport({ host: 'c' }), BEGIN_MS), coded('HM_STORE_FULL'))
  assert.equal((await store.accept(hostReport({ host: 'a' }), BEGIN_MS)).kind, 'accepted')
})

test('a host with endless columns and names fills its own share only', async () => {
  await using site = new Site()
  await using store = await site.open()
  for (let i = 1; i <= 12; i += 1) {
    const values = Array.from({ length: 1_000 }, (_, n) => `v${i}-${n}`)
    const columns = { pair: [{ name: 'x', kind: 'split', label: 'l', values }], host: [] } as const
    const names = Array.from({ length: 2_000 }, (_, n) => `n${i}-${n}`)
    const pairs = names.map((_, n) => [0, 0, n, 0, 0, [n % 1_000, 1]] as const)
    const record = reportRecord(i, 1, { names, pairs, host: [] })
    await store.accept(
      hostReport({ host: 'hostile', layout: `l${i}`, columns, records: [record] }),
      BEGIN_MS + i * 1_000,
    )
  }
  const { dropped } = await store.status()
  assert.ok(dropped.cells > 0 && dropped.names > 0)
  await store.accept(hostReport({ records: [reportRecord(1, 5)] }), BEGIN_MS + 20_000)
  const [pair] = await store.pairs({ fromMs: BEGIN_MS, toMs: BEGIN_MS + 60_000 }, { host: 'a' })
  assert.equal(pair?.figures.counts.get('opened'), 5)
  assert.equal(pair?.destination, 'db')
})

test('a damaged file is set aside with an error in the log, and a new one is begun', async () => {
  await using site = new Site()
  {
    await using store = await site.open()
    for (let i = 1; i <= 50; i += 1)
      await store.accept(hostReport({ records: [reportRecord(i, 1)] }), BEGIN_MS + i * 10_000)
  }
  const bytes = readFileSync(site.path)
  bytes.fill(0xee, 100)
  writeFileSync(site.path, bytes)
  const errors: string[] = []
  const log: Log = { ...silentLog, error: (message) => void errors.push(message) }
  await using store = await site.open({ log })
  assert.deepEqual(errors, ['The store is damaged: it is set aside and a new one is begun'])
  assert.ok(readFileSync(`${site.path}.damaged`).equals(bytes))
  assert.deepEqual(await store.hosts(BEGIN_MS + HOUR_MS), [])
  await store.accept(hostReport({ records: [reportRecord(51, 2)] }), BEGIN_MS + 510_000)
  assert.deepEqual(await opened(store, BEGIN_MS, BEGIN_MS + HOUR_MS), { a: 2 })
  const [host] = await store.hosts(BEGIN_MS + HOUR_MS)
  assert.equal(host?.lostRecords, 0)
})

test('damage that is met while the store works has the same end, and the next report is stored', async () => {
  await using site = new Site()
  const settings = {
    path: site.path,
    maxBytes: 1e8,
    secondsMs: DAY_MS,
    minutesMs: DAY_MS,
    hoursMs: DAY_MS,
    maxHosts: 10,
  }
  const errors: string[] = []
  using store = new Store(settings, { ...silentLog, error: (message) => void errors.push(message) })
  const report = (sequence: number): StoredReport => ({
    ...hostReport({ records: [reportRecord(sequence, 1)] }),
    keyHash: 'hash',
    receivedAtMs: BEGIN_MS + sequence * 10_000,
    clockOffsetMs: 0,
    columns: reportColumns,
  })
  store.accept([report(1)])
  let tries = 0
  const found = store.attempt(0, () => {
    tries += 1
    // What SQLite throws for a malformed page.
    if (tries === 1) throw Object.assign(new Error('malformed'), { errcode: 11 })
    return store.reader.hosts(BEGIN_MS + HOUR_MS)
  })
  assert.deepEqual(found, [])
  assert.deepEqual(errors, ['The store is damaged: it is set aside and a new one is begun'])
  assert.ok(statSync(`${site.path}.damaged`).size > 0)
  const [result] = store.accept([report(2)])
  assert.ok(result !== undefined && !(result instanceof MeshError))
  assert.deepEqual([result.accepted, result.lost], [2, 0])
  assert.equal(store.takeMeanings()?.isReset, true)
})

test('a file that is no database at all is set aside; one of another program is left alone', async () => {
  await using site = new Site()
  writeFileSync(site.path, 'This is not a database, but long enough to be one'.repeat(100))
  {
    await using store = await site.open()
    await store.accept(hostReport(), BEGIN_MS)
  }
  rmSync(site.path)
  const other = new DatabaseSync(site.path)
  other.exec('CREATE TABLE recipes (name TEXT)')
  other.close()
  const before = readFileSync(site.path)
  await assert.rejects(site.open(), coded('HM_STORE_FOREIGN'))
  assert.ok(readFileSync(site.path).equals(before))
})

test('a second process is refused, and the file is for its owner alone', async () => {
  await using site = new Site()
  await using store = await site.open()
  await store.accept(hostReport(), BEGIN_MS)
  await assert.rejects(site.open(), coded('HM_STORE_FAILED'))
  for (const end of ['', '-wal'])
    assert.equal(statSync(site.path + end).mode & 0o777, 0o600, `fleet.db${end}`)
})

test('columns that are known need not come again with live views', async () => {
  await using site = new Site()
  await using store = await site.open()
  const { columns: _, ...bare } = hostReport({
    live: {
      spanMs: 1_000,
      names: ['web', 'db'],
      pairs: [[0, 0, 1, 0, 0, [0, 3]]],
      host: [],
      state: 'ready',
      problems: [],
    },
  })
  await store.accept(bare, BEGIN_MS)
  assert.deepEqual(store.livePairs(BEGIN_MS).pairs, [])
  await store.accept({ ...bare, columns: reportColumns }, BEGIN_MS + 1_000)
  await store.accept(bare, BEGIN_MS + 2_000)
  const [pair] = store.livePairs(BEGIN_MS + 2_000).pairs
  assert.ok((pair?.figures.counts.get('opened') ?? 0) >= 6)
})
