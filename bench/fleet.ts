/**
 * `npm run bench:fleet`: what an aggregator costs under a fleet that reports to it, and whether two of them agree after
 * one was killed. Real processes, real HTTP, simulated hosts.
 *
 * Ends with code 0 when everything could be measured, whatever the figures say.
 */
import { spawn } from 'node:child_process'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { cpus, loadavg, tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { text } from 'node:stream/consumers'
import { setTimeout as delay } from 'node:timers/promises'
import { parseArgs } from 'node:util'
import { describeError, MeshError } from '../src/lib/errors.ts'
import { AggregatorProcess } from './fleet/aggregator-process.ts'
import { Asker, cpuOfDocuments, type DocumentTimes } from './fleet/asker.ts'
import type { HostsResult, HostsSettings } from './fleet/hosts.ts'
import type { FleetSize } from './fleet/simulated-host.ts'
import { differing, sentSums, storedSums } from './fleet/sums.ts'
import { cpuMicroseconds } from './measure/proc.ts'

const HELP = `Usage: npm run bench:fleet -- [options]

Measures, with real aggregators and simulated hosts that report over HTTP:
  load  CPU, memory, database and answers of one aggregator while the documents of all pages are asked every second
  away  whether two aggregators have the same sums, those that were sent, after one was killed and came back
Takes about four minutes.

  --scenario NAME  load, away or all (default all)
  --hosts N        simulated hosts (default 500)
  --pairs N        pairs of services of each host (default 40)
  --seconds N      length of the measurement of load (default 60)
  --away N         seconds for which one aggregator is away (default 60)
  --json FILE      writes the figures there
  --profile DIR    has the aggregator of load write CPU profiles there (slows it: not for results)
`

/** Issue "See the fleet": what 500 hosts with 40 pairs each may take. */
const TARGETS = { coreShare: 0.5, peakBytes: 400e6, p95Ms: 200 } as const

/** Until all hosts have reported and the code of the aggregator is compiled. */
const WARM_UP_SECONDS = 20

const DRAIN_SECONDS = 60

/** Before and after the absence. */
const TOGETHER_SECONDS = 20

interface LoadFigures {
  readonly coreShare: number
  readonly peakBytes: number
  readonly databaseBytesPerHour: number
  readonly documents: Readonly<Record<string, DocumentTimes>>
  readonly documentCpuMs: Readonly<Record<string, number>>
  readonly hosts: HostsResult['deliveries'][number] | undefined
  readonly latestTickMs: number
  readonly loadAverage: number
  readonly differingPairs: number
}

interface AwayFigures {
  readonly awaySeconds: number
  readonly pairs: number
  readonly recordsSent: number
  readonly differingBetween: number
  readonly differingFromSent: readonly number[]
  readonly deliveries: HostsResult['deliveries']
}

async function main(): Promise<number> {
  const { values } = parseArgs({
    options: {
      scenario: { type: 'string', default: 'all' },
      hosts: { type: 'string', default: '500' },
      pairs: { type: 'string', default: '40' },
      seconds: { type: 'string', default: '60' },
      away: { type: 'string', default: '60' },
      json: { type: 'string' },
      profile: { type: 'string' },
      help: { type: 'boolean', default: false },
    },
  })
  if (values.help) {
    process.stdout.write(HELP)
    return 0
  }
  const { scenario } = values
  if (!['load', 'away', 'all'].includes(scenario))
    throw new MeshError('HM_BENCH_USAGE', `There is no scenario ${scenario}`, {
      hint: 'See: npm run bench:fleet -- --help',
    })
  const size: FleetSize = { hosts: Number(values.hosts), pairs: Number(values.pairs) }
  const directory = mkdtempSync(join(tmpdir(), 'hostmesh-bench-fleet-'))
  try {
    const profiles = values.profile === undefined ? undefined : resolve(values.profile)
    const loadBefore = loadavg()[0] ?? 0
    const load =
      scenario === 'away'
        ? undefined
        : await measureLoad(size, { directory, seconds: Number(values.seconds), profiles })
    const away =
      scenario === 'load'
        ? undefined
        : await measureAway(size, { directory, awaySeconds: Number(values.away) })
    const processor = cpus()
    const machine = { cpu: processor[0]?.model.trim(), cpus: processor.length, loadBefore }
    const results = { date: new Date().toISOString(), machine, size, load, away }
    const written = `${JSON.stringify(results, null, 2)}\n`
    process.stdout.write(written)
    if (load !== undefined) process.stdout.write(verdicts(load))
    if (values.json !== undefined) writeFileSync(values.json, written)
    return 0
  } finally {
    rmSync(directory, { recursive: true, force: true })
  }
}

async function measureLoad(
  size: FleetSize,
  {
    directory,
    seconds,
    profiles,
  }: {
    readonly directory: string
    readonly seconds: number
    readonly profiles?: string | undefined
  },
): Promise<LoadFigures> {
  await using aggregator = await AggregatorProcess.start(join(directory, 'load'), profiles)
  const reporting = simulateHosts({
    size,
    ports: [aggregator.reportPort],
    seconds: WARM_UP_SECONDS + seconds,
    drainSeconds: DRAIN_SECONDS,
  })
  const asker = new Asker(aggregator, size)
  await delay(WARM_UP_SECONDS * 1_000)
  asker.start()
  const startedMs = performance.now()
  const before = cpuMicroseconds([aggregator.pid])
  await delay(seconds * 1_000)
  const used = cpuMicroseconds([aggregator.pid]) - before
  const tookMs = performance.now() - startedMs
  const loadAverage = loadavg()[0] ?? 0
  const documents = await asker.stop()
  const { records, deliveries, latestTickMs } = await reporting
  const peakBytes = aggregator.peakBytes()
  const documentCpuMs = await cpuOfDocuments(aggregator, size)
  const [stored = new Map()] = await storedSums([aggregator])
  await aggregator[Symbol.asyncDispose]()
  const storedSeconds = (10 * records.reduce((sum, count) => sum + count, 0)) / size.hosts
  return {
    coreShare: round(used / 1_000 / tookMs, 3),
    peakBytes,
    databaseBytesPerHour: Math.round((aggregator.databaseBytes() / storedSeconds) * 3_600),
    documents,
    documentCpuMs,
    hosts: deliveries[0],
    latestTickMs,
    loadAverage,
    differingPairs: differing(stored, sentSums(size, records)),
  }
}

async function measureAway(
  size: FleetSize,
  { directory, awaySeconds }: { readonly directory: string; readonly awaySeconds: number },
): Promise<AwayFigures> {
  await using steady = await AggregatorProcess.start(join(directory, 'steady'))
  await using killed = await AggregatorProcess.start(join(directory, 'killed'))
  const reporting = simulateHosts({
    size,
    ports: [steady.reportPort, killed.reportPort],
    seconds: awaySeconds + 2 * TOGETHER_SECONDS,
    drainSeconds: DRAIN_SECONDS,
  })
  await delay(TOGETHER_SECONDS * 1_000)
  await killed.kill()
  await delay(awaySeconds * 1_000)
  await killed.restart()
  const { records, deliveries } = await reporting
  const sent = sentSums(size, records)
  const [left = new Map(), right = new Map()] = await storedSums([steady, killed])
  return {
    awaySeconds,
    pairs: sent.size,
    recordsSent: records.reduce((sum, count) => sum + count, 0),
    differingBetween: differing(left, right),
    differingFromSent: [differing(left, sent), differing(right, sent)],
    deliveries,
  }
}

/** Runs the hosts as a process of their own, to their end. */
async function simulateHosts(settings: HostsSettings): Promise<HostsResult> {
  const child = spawn(
    process.execPath,
    [...process.execArgv, resolve(import.meta.dirname, 'fleet/hosts.ts'), JSON.stringify(settings)],
    { stdio: ['ignore', 'pipe', 'inherit'] },
  )
  const end = (): void => void child.kill()
  process.once('exit', end)
  const written = await text(child.stdout)
  process.off('exit', end)
  if (written === '') throw new MeshError('HM_BENCH_COMMAND', 'The simulated hosts have failed')
  return JSON.parse(written) as HostsResult
}

function verdicts({ coreShare, peakBytes, documents }: LoadFigures): string {
  const worst = Math.max(...Object.values(documents).map(({ p95 }) => p95))
  const line = (what: string, found: string, isMet: boolean): string =>
    `${isMet ? 'met   ' : 'MISSED'}  ${what}: ${found}\n`
  return [
    line(
      `at most ${TARGETS.coreShare * 100} % of one core`,
      `${round(coreShare * 100, 1)} %`,
      coreShare <= TARGETS.coreShare,
    ),
    line(
      `at most ${TARGETS.peakBytes / 1e6} MB`,
      `${Math.round(peakBytes / 1e6)} MB`,
      peakBytes <= TARGETS.peakBytes,
    ),
    line(`p95 of each document at most ${TARGETS.p95Ms} ms`, `${worst} ms`, worst <= TARGETS.p95Ms),
  ].join('')
}

function round(number: number, digits: number): number {
  return Number(number.toFixed(digits))
}

try {
  process.exitCode = await main()
} catch (error) {
  process.stderr.write(`bench:fleet: ${describeError(error)}\n`)
  process.exitCode = 1
}
