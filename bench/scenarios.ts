/**
 * How each scenario is sampled: put the load on, wait until it is steady, read the counters, wait, read
 * them again. Rates and CPU are taken between the two readings, so that the handshakes with which a load
 * begins do not count against whoever does them slowly.
 */
import { MeshError } from '../src/lib/errors.ts'
import { type AttackMode, endAttack, startAttack, startBurner } from './load/attack.ts'
import { parseBulkReport, startBulk } from './load/bulk.ts'
import { openIdleConnections } from './load/idle.ts'
import { startWrk, stopWrk, type WrkLoad, type WrkReport } from './load/wrk.ts'
import { cpuMicroseconds, receivedBytes, rssKb } from './measure/proc.ts'
import type { MetricName, Reading } from './metrics.ts'
import type { ScenarioName } from './scenario-names.ts'
import { waitFor } from './site/process.ts'
import type { Stage } from './site/stage.ts'

/** How a scenario is measured. */
export interface Scenario {
  /** Length of the measured part of a sample in a full run, in seconds. */
  readonly seconds: number
  /** What a sample takes beyond that, roughly; for the ETA. */
  readonly overheadSeconds: number
  /** Rounds it takes at most: some figures hardly vary. */
  readonly maxRounds: number
  /** Whether a short unmeasured round comes first. */
  readonly warmUp: boolean
  sample(stage: Stage, seconds: number): Promise<Reading>
}

const ALWAYS = Number.POSITIVE_INFINITY

/** How long a load may take to get all its connections through. */
const STEADY_DEADLINE_MS = 15_000

/** Connections that are held idle. */
const IDLE_CONNECTIONS = 5_000

/** The load of the pair that is watched while somebody misbehaves. */
const WATCHED: WrkLoad = { connections: 16, rested: true }

/** Connections rest before their first request; see wrk.ts. */
const WATCHED_REST_SECONDS = 0.5

/** How a peer misbehaves, and the figure that this is for. */
const ATTACKS: readonly (readonly [AttackMode, MetricName])[] = [
  ['openreset', 'p99OpenReset'],
  ['open-denied', 'p99OpenDenied'],
  ['zerowindow', 'p99ZeroWindow'],
  ['sessions', 'p99Sessions'],
]

/** All scenarios. */
export const SCENARIO_SAMPLERS: Readonly<Record<ScenarioName, Scenario>> = {
  'requests-1': requests(1, 1.5, 0.3),
  'requests-64': requests(64, 2.5, 0.7),
  'requests-256': requests(256, 2.5, 1.6),
  connections: {
    seconds: 2,
    overheadSeconds: 0.4,
    maxRounds: ALWAYS,
    warmUp: true,
    sample: (stage, seconds) => sampleConnections(stage, seconds),
  },
  bulk: {
    seconds: 2,
    overheadSeconds: 0.2,
    maxRounds: ALWAYS,
    warmUp: true,
    sample: (stage, seconds) => sampleBulk(stage, Math.max(1, Math.round(seconds))),
  },
  mixed: {
    seconds: 3.5,
    overheadSeconds: 1,
    maxRounds: ALWAYS,
    warmUp: true,
    sample: (stage, seconds) => sampleMixed(stage, seconds),
  },
  memory: {
    seconds: 4,
    overheadSeconds: 4,
    maxRounds: 2,
    warmUp: false,
    sample: (stage, seconds) => sampleMemory(stage, seconds / 2),
  },
  fair: {
    seconds: 10,
    overheadSeconds: 6,
    maxRounds: 3,
    warmUp: false,
    sample: (stage, seconds) => sampleFairness(stage, seconds / (1 + ATTACKS.length)),
  },
}

function requests(connections: number, seconds: number, overheadSeconds: number): Scenario {
  return {
    seconds,
    overheadSeconds,
    maxRounds: ALWAYS,
    warmUp: true,
    sample: (stage, length) => sampleRequests(stage, connections, length),
  }
}

async function sampleRequests(
  stage: Stage,
  connections: number,
  seconds: number,
): Promise<Reading> {
  // A lone connection's handshake is one request in thousands, and the rest costs wrk time.
  const load = { connections, rested: connections > 1 }
  const { report, ratePerSecond, cpuPerRequest } = await sampleWrk(stage, load, seconds)
  return withCpu(
    { requestsPerSecond: ratePerSecond, p50: report.p50Us, p99: report.p99Us },
    cpuPerRequest,
  )
}

async function sampleConnections(stage: Stage, seconds: number): Promise<Reading> {
  const load = { connections: 64, rested: false, headers: ['Connection: close'] }
  const { report, ratePerSecond, cpuPerRequest } = await sampleWrk(stage, load, seconds)
  return withCpu(
    { connectionsPerSecond: ratePerSecond, p50: report.p50Us, p99: report.p99Us },
    cpuPerRequest,
  )
}

async function sampleBulk(stage: Stage, downloads: number): Promise<Reading> {
  const cpuBefore = cpuMicroseconds(stage.hopPids)
  const curl = startBulk(stage, downloads)
  try {
    await waitFor(
      'the bulk downloads end',
      { deadlineMs: 60_000, signal: stage.signal },
      () => curl.end,
    )
    const cpuSeconds = (cpuMicroseconds(stage.hopPids) - cpuBefore) / 1e6
    const { bytes, seconds } = parseBulkReport(curl.output(), downloads)
    const reading = { throughput: bytes / seconds / 1e9 }
    return stage.hopPids.length === 0
      ? reading
      : { ...reading, cpuPerGigabyte: cpuSeconds / (bytes / 1e9) }
  } finally {
    await curl.stop()
  }
}

async function sampleMixed(stage: Stage, seconds: number): Promise<Reading> {
  const bulks = [startBulk(stage, 1_000), startBulk(stage, 1_000)]
  try {
    await stage.backend.reached(bulks.length, steady(stage))
    const load = { connections: 16, rested: true }
    const { report, ratePerSecond, bulkThroughput } = await sampleWrk(stage, load, seconds)
    for (const bulk of bulks)
      if (bulk.end !== undefined)
        throw new MeshError(
          'HM_BENCH_LOAD',
          `A bulk download ended early: ${bulk.end}\n${bulk.outputTail()}`,
        )
    return {
      requestsPerSecond: ratePerSecond,
      p50: report.p50Us,
      p99: report.p99Us,
      bulkThroughput,
    }
  } finally {
    await Promise.all(bulks.map((bulk) => bulk.stop()))
  }
}

async function sampleMemory(stage: Stage, settleSeconds: number): Promise<Reading> {
  if (stage.hopPids.length === 0) return {}
  await stage.restartHops()
  await stage.pause(settleSeconds)
  const before = stage.hopPids.map((pid) => rssKb(pid))
  const load = await openIdleConnections(stage, IDLE_CONNECTIONS)
  try {
    await stage.backend.reached(IDLE_CONNECTIONS, steady(stage))
    await stage.pause(settleSeconds)
    const after = stage.hopPids.map((pid) => rssKb(pid))
    // The larger of the two hops: a host that is mostly called and one that mostly calls must both do.
    const growth = after.map((kb, hop) => kb - (before[hop] ?? 0))
    return {
      rssIdle: (Math.max(...before) * 1024) / 1e6,
      rssPerConnection: Math.max(...growth) / IDLE_CONNECTIONS,
    }
  } finally {
    await load.stop()
  }
}

/** wrk fails the sample when a single connection of the watched pair is refused or reset. */
async function sampleFairness(stage: Stage, seconds: number): Promise<Reading> {
  const { attack } = stage.subject
  if (attack === undefined) return {}
  const burner = startBurner(stage)
  let controlUs: number
  try {
    controlUs = await watchedP99('a CPU burner', stage, seconds)
  } finally {
    await burner.stop()
  }
  const memoryKb = (): readonly number[] => stage.hopPids.map((pid) => rssKb(pid))
  const before = memoryKb()
  let grownKb = 0
  const reading: Partial<Record<MetricName, number>> = {}
  for (const [mode, metric] of ATTACKS) {
    const attacker = await startAttack(stage, attack, mode)
    try {
      reading[metric] = (await watchedP99(mode, stage, seconds)) / controlUs
      const grown = memoryKb().map((kb, hop) => kb - (before[hop] ?? 0))
      grownKb = Math.max(grownKb, ...grown)
      await endAttack(mode, attacker)
    } finally {
      await attacker.stop()
    }
    // Nothing of one attack is left for the next.
    await stage.backend.quiet(stage.signal)
  }
  return { ...reading, rssAttacked: (grownKb * 1024) / 1e6 }
}

/** The p99 of the watched pair in microseconds. What the backend counts is no help here: an attacker asks it, too. */
async function watchedP99(besideWhat: string, stage: Stage, seconds: number): Promise<number> {
  const wrk = startWrk(stage, WATCHED)
  try {
    await stage.pause(WATCHED_REST_SECONDS + seconds)
    return (await stopWrk(wrk)).p99Us
  } catch (error) {
    throw new MeshError('HM_BENCH_LOAD', `The watched pair, beside ${besideWhat}`, { cause: error })
  } finally {
    await wrk.stop()
  }
}

interface Observation {
  readonly report: WrkReport
  readonly ratePerSecond: number
  /** GB/s that reached host A, small answers and encryption included. */
  readonly bulkThroughput: number
  /** CPU of both hops in microseconds a request; undefined when there are none. */
  readonly cpuPerRequest: number | undefined
}

/** Puts wrk on, and when all its connections are at work watches the counters for `seconds`. */
async function sampleWrk(stage: Stage, load: WrkLoad, seconds: number): Promise<Observation> {
  const start = await stage.backend.status()
  const wrk = startWrk(stage, load)
  try {
    await waitFor('requests of every connection reach the backend', steady(stage), async () => {
      if (wrk.end !== undefined)
        throw new MeshError('HM_BENCH_LOAD', `wrk ended early: ${wrk.outputTail()}`)
      const { requests: seen } = await stage.backend.status()
      return seen >= start.requests + 2 * load.connections ? true : undefined
    })
    const before = await readCounters(stage, wrk.pid)
    await stage.pause(seconds)
    const after = await readCounters(stage, wrk.pid)
    const report = await stopWrk(wrk)
    const elapsedSeconds = (after.atMs - before.atMs) / 1000
    // The second reading of the counter is a request of its own.
    const answered = after.requests - before.requests - 1
    return {
      report,
      ratePerSecond: answered / elapsedSeconds,
      bulkThroughput: (after.receivedBytes - before.receivedBytes) / elapsedSeconds / 1e9,
      cpuPerRequest:
        stage.hopPids.length === 0 ? undefined : (after.cpuUs - before.cpuUs) / answered,
    }
  } finally {
    await wrk.stop()
  }
}

interface Counters {
  readonly atMs: number
  readonly requests: number
  readonly cpuUs: number
  readonly receivedBytes: number
}

/** `loadPid` lives on host A, whose traffic is counted. */
async function readCounters(stage: Stage, loadPid: number): Promise<Counters> {
  const { requests: answered } = await stage.backend.status()
  return {
    atMs: performance.now(),
    requests: answered,
    cpuUs: cpuMicroseconds(stage.hopPids),
    receivedBytes: receivedBytes(loadPid),
  }
}

function withCpu(reading: Reading, cpuPerRequest: number | undefined): Reading {
  return cpuPerRequest === undefined ? reading : { ...reading, cpuPerRequest }
}

function steady(stage: Stage): { readonly deadlineMs: number; readonly signal: AbortSignal } {
  return { deadlineMs: STEADY_DEADLINE_MS, signal: stage.signal }
}
