/**
 * Simulated hosts, a process of its own: `node bench/fleet/hosts.ts SETTINGS`, both settings and result as JSON.
 *
 * Each host makes a live view every second and a record every 10 s, and delivers them to each aggregator with the
 * daemon's own queue and delivery. Hosts begin spread over 10 s. After the given time nothing more is made, and what was
 * not accepted yet is delivered until a deadline.
 */
import { randomBytes } from 'node:crypto'
import { connect } from 'node:net'
import { setTimeout as delay } from 'node:timers/promises'
import { Delivery, type Outcome } from '../../src/daemon/reports/delivery.ts'
import { RecordQueue, type RunOfRecords } from '../../src/daemon/reports/record-queue.ts'
import { type HostReport, type LiveView, REPORT_VERSION } from '../../src/model/report.ts'
import { reportColumns } from '../../src/telemetry/report-columns.ts'
import { type FleetSize, hostName, liveView, recordOf } from './simulated-host.ts'

/** What the process is told. */
export interface HostsSettings {
  readonly size: FleetSize
  /** Report ports of the aggregators, on loopback. */
  readonly ports: readonly number[]
  readonly seconds: number
  /** For what is left at the end. */
  readonly drainSeconds: number
}

/** What it says at its end. */
export interface HostsResult {
  /** Records of each host. */
  readonly records: readonly number[]
  readonly deliveries: readonly DeliveryCounts[]
  /** Most milliseconds by which a second of a host began late: this process had no time. */
  readonly latestTickMs: number
}

/** Reports to one aggregator. */
export interface DeliveryCounts {
  accepted: number
  refused: number
  failed: number
  /** Answered after more than a second: the next report had to wait. */
  late: number
  /** Records that were not accepted until the end. */
  undelivered: number
  slowestMs: number
}

const TICK_MS = 1_000
const TICKS_OF_RECORD = 10
const FIRST_REPORTS = 3
const BATCH = 16

/** How often it is looked which hosts are due. */
const ROUND_MS = 10

const BACKOFF_MS = { min: 1_000, max: 15_000 }

/** The deliveries of one host to one aggregator. */
class Sender {
  readonly #host: SimulatedHost
  readonly #counts: DeliveryCounts
  readonly #delivery: Delivery
  readonly #queue: RecordQueue
  #isBusy = false
  #posted = 0
  #failures = 0
  #notBeforeMs = 0

  constructor(host: SimulatedHost, port: number, counts: DeliveryCounts) {
    this.#host = host
    this.#counts = counts
    this.#queue = new RecordQueue(host.run, { records: 360, weight: 1_000_000, batch: BATCH })
    this.#delivery = new Delivery(() => connect({ host: '127.0.0.1', port, noDelay: true }))
  }

  get waiting(): number {
    return this.#queue.length
  }

  add(record: Parameters<RecordQueue['add']>[0]): void {
    this.#queue.add(record)
  }

  /** Sends what there is, unless a report is under way or a failure is too recent. */
  async send(live: LiveView | undefined): Promise<void> {
    const startedMs = performance.now()
    if (this.#isBusy || startedMs < this.#notBeforeMs) return
    const records = this.#queue.next(Date.now(), this.#failures > 0 ? 1 : BATCH)
    if (live === undefined && records.length === 0) return
    this.#isBusy = true
    const hasColumns = records.length > 0 || this.#posted < FIRST_REPORTS
    this.#posted += 1
    const { run, layout, columns } = this.#host.run
    const report: HostReport = {
      version: REPORT_VERSION,
      host: this.#host.name,
      key: this.#host.key,
      run,
      clockMs: Date.now(),
      layout,
      ...(hasColumns && { columns }),
      ...(live !== undefined && { live }),
      records,
    }
    this.#note(await this.#delivery.post(report), performance.now() - startedMs)
    this.#isBusy = false
  }

  end(): void {
    this.#counts.undelivered += this.#queue.length
    this.#delivery[Symbol.dispose]()
  }

  #note(outcome: Outcome, tookMs: number): void {
    const counts = this.#counts
    counts[outcome.kind] += 1
    if (tookMs > TICK_MS) counts.late += 1
    counts.slowestMs = Math.max(counts.slowestMs, Math.round(tookMs))
    if (outcome.kind === 'accepted') {
      this.#failures = 0
      this.#queue.accepted(outcome.accepted)
      return
    }
    const waitMs = Math.min(BACKOFF_MS.max, BACKOFF_MS.min * 2 ** this.#failures)
    // Spread, as the backoff of a daemon is.
    this.#notBeforeMs = performance.now() + waitMs * (0.5 + 0.5 * Math.random())
    this.#failures = Math.min(this.#failures + 1, 10)
  }
}

class SimulatedHost {
  readonly name: string
  readonly key: string = randomBytes(32).toString('base64url')
  readonly run: RunOfRecords
  readonly senders: readonly Sender[]
  sequence = 0
  dueMs: number
  readonly #size: FleetSize
  readonly #number: number
  #ticks: number

  constructor(
    { size, ports }: HostsSettings,
    number: number,
    counts: readonly DeliveryCounts[],
    startMs: number,
  ) {
    this.#size = size
    this.#number = number
    this.name = hostName(number)
    this.run = { run: randomBytes(16).toString('base64url'), layout: 'bench-1', columns }
    this.senders = ports.map((port, i) => new Sender(this, port, counts[i] ?? noCounts()))
    this.dueMs = startMs + ((number * 0.618) % 1) * TICK_MS
    this.#ticks = number % TICKS_OF_RECORD
  }

  tick(): void {
    this.dueMs += TICK_MS
    this.#ticks += 1
    if (this.#ticks % TICKS_OF_RECORD === 0) {
      this.sequence += 1
      const record = recordOf(this.#size, this.#number, this.sequence)
      for (const sender of this.senders) sender.add({ endMs: Date.now(), record })
    }
    const live = liveView(this.#size, this.#number, this.#ticks)
    for (const sender of this.senders) void sender.send(live)
  }
}

const columns = reportColumns()

async function main(): Promise<void> {
  const settings: HostsSettings = JSON.parse(process.argv[2] ?? '')
  const deliveries = settings.ports.map(noCounts)
  const startMs = performance.now()
  const hosts = Array.from(
    { length: settings.size.hosts },
    (_, i) => new SimulatedHost(settings, i, deliveries, startMs),
  )
  const endMs = startMs + settings.seconds * 1_000
  let latestTickMs = 0
  while (performance.now() < endMs) {
    const nowMs = performance.now()
    for (const host of hosts) {
      if (host.dueMs > nowMs) continue
      latestTickMs = Math.max(latestTickMs, nowMs - host.dueMs)
      host.tick()
    }
    await delay(ROUND_MS)
  }
  const senders = hosts.flatMap((host) => host.senders)
  const giveUpMs = performance.now() + settings.drainSeconds * 1_000
  while (performance.now() < giveUpMs && senders.some(({ waiting }) => waiting > 0)) {
    for (const sender of senders) void sender.send(undefined)
    await delay(TICK_MS / 4)
  }
  for (const sender of senders) sender.end()
  const result: HostsResult = {
    records: hosts.map(({ sequence }) => sequence),
    deliveries,
    latestTickMs: Math.round(latestTickMs),
  }
  process.stdout.write(`${JSON.stringify(result)}\n`)
}

function noCounts(): DeliveryCounts {
  return { accepted: 0, refused: 0, failed: 0, late: 0, undelivered: 0, slowestMs: 0 }
}

if (import.meta.main) await main()
