/**
 * What the store of the aggregator costs: `node bench/fleet-store.ts [--hosts N] [--pairs N] [--minutes N]`.
 *
 * Hosts report in turn, as fast as the store takes it, with a clock that is passed in: N minutes of a fleet. Printed are
 * the share of a core that the same fleet would take in real time, and how long the questions of the pages take.
 */
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { openFleetStore, type SqliteFleetStore } from '../src/aggregator/open-fleet-store.ts'
import { checkReport } from '../src/aggregator/report-schema.ts'
import { systemClock } from '../src/lib/clock.ts'
import { silentLog } from '../src/lib/log.ts'
import type { HostReport, ReportColumns, ReportPair } from '../src/model/report.ts'

const STEP_MS = 10_000

const columns: ReportColumns = {
  pair: [
    { name: 'opened', kind: 'count' },
    {
      name: 'closed',
      kind: 'split',
      label: 'response_flags',
      values: ['-', 'UF', 'UH', 'DC', 'UC', 'NR', 'UO', 'RBAC'],
    },
    { name: 'connect_failures', kind: 'count' },
    { name: 'sent_bytes', kind: 'count' },
    { name: 'received_bytes', kind: 'count' },
    { name: 'connectLatency', kind: 'exponential', scale: 3, offset: -100, cells: 160 },
    { name: 'first_byte', kind: 'exponential', scale: 3, offset: -100, cells: 160 },
    { name: 'duration', kind: 'histogram', boundsSeconds: [0.01, 0.1, 1, 10, 100] },
  ],
  host: [
    { name: 'handshakes', kind: 'count' },
    { name: 'sessions', kind: 'gauge' },
  ],
}

function reportOf(host: number, sequence: number, pairs: number): HostReport {
  const names = Array.from(
    { length: pairs + 4 },
    (_, i) => `service-${((host % 50) * 7 + i * 3) % 300}`,
  )
  const rows = Array.from({ length: pairs }, (_, i): ReportPair => {
    const cells: number[] = [0, 100 + i, 1, 99, 10, 123_456 + sequence, 11, 7_654_321 + i]
    for (let bucket = 0; bucket < 6; bucket += 1)
      cells.push(12 + 40 + ((i + bucket) % 60), 15 + bucket)
    cells.push(171, 0.345)
    for (let bucket = 0; bucket < 6; bucket += 1)
      cells.push(172 + 50 + ((i + bucket) % 60), 15 + bucket)
    cells.push(331, 1.75, 334, 98, 335, 2, 338, 12.5)
    return [i % 2 === 0 ? 0 : 1, i % 4, 4 + i, i, 0, cells]
  })
  return {
    version: 1,
    host: `host-${host}`,
    key: 'k'.repeat(42) + String.fromCharCode(65 + (host % 26)),
    run: 'r'.repeat(22),
    clockMs: Date.now(),
    layout: 'a',
    columns,
    records: [
      {
        sequence,
        ageMs: 0,
        merged: 1,
        spanMs: STEP_MS,
        names,
        pairs: rows,
        host: [0, 3, 1, 12],
        workloads: [
          { service: 'hostmesh', cpuMs: 120, memoryBytes: 90_000_000, tasks: 12, sockets: 40 },
        ],
      },
    ],
  }
}

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      hosts: { type: 'string', default: '500' },
      pairs: { type: 'string', default: '40' },
      minutes: { type: 'string', default: '20' },
    },
  })
  const [hosts, pairs, minutes] = [values.hosts, values.pairs, values.minutes].map(Number) as [
    number,
    number,
    number,
  ]
  const directory = mkdtempSync(join(tmpdir(), 'hostmesh-bench-store-'))
  try {
    await using store = await openFleetStore({
      path: join(directory, 'fleet.db'),
      clock: systemClock,
      log: silentLog,
    })
    const figures = {
      hosts,
      pairs,
      minutes,
      ...measureCheck(pairs),
      ...(await fill(store, hosts, pairs, minutes)),
    }
    process.stdout.write(`${JSON.stringify(figures, null, 2)}\n`)
  } finally {
    rmSync(directory, { recursive: true, force: true })
  }
}

function measureCheck(pairs: number): object {
  const parsed: unknown = JSON.parse(JSON.stringify(reportOf(1, 1, pairs)))
  for (let i = 0; i < 2_000; i += 1) checkReport(parsed)
  const startedMs = performance.now()
  for (let i = 0; i < 5_000; i += 1) checkReport(parsed)
  return { checkMicroseconds: round((performance.now() - startedMs) / 5) }
}

async function fill(
  store: SqliteFleetStore,
  hosts: number,
  pairs: number,
  minutes: number,
): Promise<object> {
  const beginMs = Math.floor(Date.now() / 3_600_000) * 3_600_000 - minutes * 60_000
  const steps = minutes * 6
  let nowMs = beginMs
  let slowestMaintainMs = 0
  let cpuMs = 0
  let maintainMs = 0
  const startedMs = performance.now()
  for (let step = 1; step <= steps; step += 1) {
    // One tenth of the fleet a second, as hosts that began at different times do.
    for (let part = 0; part < 10; part += 1) {
      nowMs = beginMs + step * STEP_MS + part * 1_000
      const reports: HostReport[] = []
      for (let host = part; host < hosts; host += 10) reports.push(reportOf(host, step, pairs))
      const before = process.cpuUsage()
      // In real time they come spread over the second: forty transactions. Here ten at a time are one.
      for (let i = 0; i < reports.length; i += 3)
        await Promise.all(reports.slice(i, i + 3).map((report) => store.accept(report, nowMs)))
      const maintainedMs = performance.now()
      await store.maintain(nowMs)
      const tookMs = performance.now() - maintainedMs
      maintainMs += tookMs
      slowestMaintainMs = Math.max(slowestMaintainMs, tookMs)
      const used = process.cpuUsage(before)
      cpuMs += (used.user + used.system) / 1_000
    }
  }
  const tookMs = performance.now() - startedMs
  const status = await store.status()
  return {
    rowsPerSecondOfFleet: (hosts * pairs) / 10,
    shareOfCore: round(cpuMs / (minutes * 60_000), 4),
    rowsPerSecondTaken: Math.round((hosts * pairs * steps) / (tookMs / 1_000)),
    slowestMaintainMs: round(slowestMaintainMs),
    maintainShare: round(maintainMs / (minutes * 60_000), 4),
    megabytes: round(status.bytes / 1e6),
    bytesOfPairAndStep: Math.round(status.bytes / (hosts * pairs * steps)),
    lastMinuteMs: await time(
      async () => (await store.pairs({ fromMs: nowMs - 60_000, toMs: nowMs })).length,
    ),
    lastMinuteAndFiguresMs: await time(async () => {
      let opened = 0
      for (const pair of await store.pairs({ fromMs: nowMs - 60_000, toMs: nowMs }))
        opened += pair.figures.counts.get('opened') ?? 0
      return opened
    }),
    graphOfLastMinuteMs: await time(async () => {
      const edges = await store.pairs({ fromMs: nowMs - 60_000, toMs: nowMs }, { sumHosts: true })
      for (const edge of edges) edge.figures.counts.get('opened')
      return edges.length
    }),
    allMinutesMs: await time(
      async () => (await store.pairs({ fromMs: beginMs, toMs: nowMs })).length,
    ),
    historyOfPairMs: await time(
      async () =>
        (
          await store.history(
            { fromMs: beginMs, toMs: nowMs, stepMs: 10_000 },
            { source: 'service-7', sumHosts: true },
          )
        ).length,
    ),
    hostsMs: await time(async () => (await store.hosts(nowMs)).length),
    hostsOfPastMs: await time(async () => (await store.hosts(nowMs - 60_000)).length),
    statusMs: await time(async () => (await store.status()).bytes),
  }
}

/** Medians of seven: time that passed, time of processors, and what was answered. */
async function time(act: () => Promise<number>): Promise<string> {
  const times: number[] = []
  const used: number[] = []
  let result = 0
  for (let i = 0; i < 7; i += 1) {
    const startedMs = performance.now()
    const before = process.cpuUsage()
    result = await act()
    times.push(performance.now() - startedMs)
    const { user, system } = process.cpuUsage(before)
    used.push((user + system) / 1_000)
  }
  return `${median(times)}, CPU ${median(used)} (${result})`
}

function median(numbers: readonly number[]): number {
  return round(numbers.toSorted((left, right) => left - right)[3] ?? 0)
}

function round(number: number, digits = 1): number {
  return Number(number.toFixed(digits))
}

await main()
