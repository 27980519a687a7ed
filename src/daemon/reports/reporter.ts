/**
 * Reports this host to its aggregators: a live view every second, a record every 10 s (src/model/report.ts).
 *
 * Counts are never lost on the way: a record is kept until it is accepted, over a restart too, and a record that
 * cannot be delivered for long is merged with its neighbours. Aggregators are independent of each other.
 */
import type { Socket } from 'node:net'
import { Retry } from '../../lib/backoff.ts'
import { type Clock, type Random, systemClock, systemRandom } from '../../lib/clock.ts'
import { formatDuration } from '../../lib/duration.ts'
import { describeError } from '../../lib/errors.ts'
import type { Log } from '../../lib/log.ts'
import { WakeableLoop } from '../../lib/wakeable-loop.ts'
import { Problem } from '../../model/problem.ts'
import {
  type HostReport,
  type HostState,
  type Interval,
  type LiveView,
  RECORD_SPAN_MS,
  REPORT_VERSION,
  type ReportedFacts,
  reportLimits,
  type WorkloadUse,
} from '../../model/report.ts'
import { type CounterReading, IntervalMeter, mergeIntervals } from '../../telemetry/interval.ts'
import { Delivery } from './delivery.ts'
import {
  type KeptRecord,
  type QueueLimits,
  RecordQueue,
  type RunOfRecords,
} from './record-queue.ts'

/** The parts of the host that are reported. */
export interface ReporterOptions {
  /** Service names of the aggregators. */
  readonly aggregators: readonly string[]
  /** How long records are kept in full resolution, milliseconds. */
  readonly keepMs: number
  /** See {@link HostReport}. */
  readonly key: string
  readonly run: RunOfRecords
  /** The name of this host at present. */
  readonly host: () => string
  readonly read: () => CounterReading
  readonly view: () => { readonly state: HostState; readonly problems: readonly string[] }
  readonly facts: () => Promise<ReportedFacts>
  readonly workloads: () => Promise<readonly WorkloadUse[]>
  /** A connection to an aggregator. @throws when none can be made */
  readonly dial: (aggregator: string) => Socket
  /** Records that an earlier process could not deliver, by aggregator. */
  readonly kept: KeptReports
  /** Called when the records to keep have changed. */
  readonly onKept: (kept: KeptReports) => void
  readonly log: Log
  readonly clock?: Clock
  readonly random?: Random
}

/** Undelivered records of several runs, by aggregator. */
export type KeptReports = Readonly<
  Record<string, readonly (RunOfRecords & { readonly records: readonly KeptRecord[] })[]>
>

/** What the metrics say of one aggregator. */
export interface DeliveryStatus {
  readonly aggregator: string
  /** Records that wait for it. */
  readonly waiting: number
  /** Spans of 10 s that it refused, or that could not be kept until it took them. */
  readonly dropped: number
  /** Wall clock of the last accepted report; undefined before the first. */
  readonly lastSuccessMs: number | undefined
}

/** Interval of live views, milliseconds. */
const TICK_MS = 1_000

/** Facts are sent again after this time although nothing has changed, milliseconds. */
const FACTS_MS = 300_000

/** With the first reports of a run, and always with records, the columns are sent. */
const FIRST_REPORTS = 3

/** Numbers in the waiting records of one run, and of all: what a file of 32 MiB can hold for two aggregators. */
const MAX_WEIGHT = 1_000_000
const MAX_WEIGHT_OF_ALL = 2 * MAX_WEIGHT

/** Runs of which records are kept for one aggregator; of older ones they are given up. */
const MAX_RUNS = 16

/** Records of one request after a success. After a failure one is tried alone. */
const BATCH = 16

/** An aggregator without an answer for so long is a problem of this host, milliseconds. */
const PROBLEM_MS = 60_000

const BACKOFF = { minMs: 1_000, maxMs: 15_000 } as const

/** The reports of one daemon. */
export class Reporter implements AsyncDisposable {
  readonly #options: ReporterOptions
  readonly #clock: Clock
  readonly #meter = new IntervalMeter()
  readonly #senders: readonly Sender[]
  readonly #ending = new AbortController()
  readonly #loop: WakeableLoop
  #tickAtMs: number
  /** Summed up since the last record. */
  #open: Interval | undefined
  #sequence = 0
  #factsKey = ''
  #factsAtMs = Number.NEGATIVE_INFINITY

  constructor(options: ReporterOptions) {
    const { clock = systemClock } = options
    this.#options = options
    this.#clock = clock
    this.#tickAtMs = clock.monotonicMs()
    this.#senders = options.aggregators.map(
      (aggregator) => new Sender(aggregator, options, () => this.#keep()),
    )
    this.#loop = new WakeableLoop({
      clock,
      signal: this.#ending.signal,
      firstPauseMs: TICK_MS,
      pass: () => this.#tick(),
      onError: (thrown) => {
        options.log.error('Cannot report', { error: describeError(thrown) })
        return TICK_MS
      },
    })
  }

  /** The state of each delivery. */
  statuses(): readonly DeliveryStatus[] {
    return this.#senders.map((sender) => sender.status())
  }

  /** One for each aggregator that has not answered for long. */
  problems(): readonly Problem[] {
    return this.#senders.flatMap((sender) => sender.problem() ?? [])
  }

  /** Ends the connections to the aggregators. What is counted meanwhile is kept. */
  suspend(): void {
    for (const sender of this.#senders) sender.suspend()
  }

  /** Delivers again. */
  resume(): void {
    for (const sender of this.#senders) sender.resume()
  }

  /** Gives up all records that were not delivered: another process delivers them. Only while suspended. */
  release(): KeptReports {
    const kept = this.#kept()
    for (const sender of this.#senders) sender.forget()
    return kept
  }

  /** Takes records of another process of this host. */
  adopt(kept: KeptReports): void {
    for (const sender of this.#senders) sender.adopt(kept[sender.aggregator] ?? [])
  }

  /** Makes the last record, of all that was counted until now. */
  async finish(): Promise<void> {
    if (this.#ending.signal.aborted) return
    this.#ending.abort()
    await this.#loop.ended
    this.suspend()
    this.#measure()
    await this.#record()
  }

  /** Makes the last record and keeps what was not delivered. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.finish()
    this.#keep()
  }

  async #tick(): Promise<number> {
    const startedMs = this.#clock.monotonicMs()
    const interval = this.#measure()
    if ((this.#open?.spanMs ?? 0) >= RECORD_SPAN_MS) await this.#record()
    const view: LiveView = { ...interval, ...this.#options.view() }
    for (const sender of this.#senders) sender.send(view)
    return Math.max(1, TICK_MS - (this.#clock.monotonicMs() - startedMs))
  }

  #measure(): Interval {
    const nowMs = this.#clock.monotonicMs()
    const interval = this.#meter.take(this.#options.read(), nowMs - this.#tickAtMs)
    this.#tickAtMs = nowMs
    this.#open = this.#open === undefined ? interval : mergeIntervals(this.#open, interval)
    return interval
  }

  async #record(): Promise<void> {
    const open = this.#open
    if (open === undefined) return
    this.#open = undefined
    const endMs = this.#clock.wallMs()
    this.#sequence += 1
    const sequence = this.#sequence
    const [workloads, facts] = await Promise.all([
      this.#options.workloads().catch(() => []),
      this.#facts().catch(() => undefined),
    ])
    const record = {
      ...open,
      sequence,
      merged: 1,
      workloads,
      ...(facts !== undefined && { facts }),
    }
    for (const sender of this.#senders) sender.add({ endMs, record })
  }

  /** The facts if they are to be reported now. */
  async #facts(): Promise<ReportedFacts | undefined> {
    const facts = await this.#options.facts()
    const key = constantPart(facts)
    const nowMs = this.#clock.monotonicMs()
    if (key === this.#factsKey && nowMs - this.#factsAtMs < FACTS_MS) return undefined
    this.#factsKey = key
    this.#factsAtMs = nowMs
    return facts
  }

  #keep(): void {
    this.#options.onKept(this.#kept())
  }

  #kept(): KeptReports {
    return Object.fromEntries(this.#senders.map((sender) => [sender.aggregator, sender.kept()]))
  }
}

/** Facts without what changes by itself: ages, and the count of a kernel's counter. */
function constantPart({ services, capture, ...facts }: ReportedFacts): string {
  const { plainInbound, ...constant } = capture
  return JSON.stringify({
    ...facts,
    startedMsAgo: 0,
    capture: { ...constant, hasPlain: (plainInbound ?? 0) > 0 },
    services: services.map(({ certificate, ...service }) => ({
      ...service,
      // A renewed certificate has a longer time left than the one before: another quarter of its life.
      certificate: certificate && Math.ceil((4 * certificate.leftMs) / certificate.lifeMs),
    })),
  })
}

/** The reports to one aggregator. */
class Sender {
  readonly aggregator: string
  readonly #options: ReporterOptions
  readonly #onUndelivered: () => void
  readonly #clock: Clock
  /** Undefined while suspended. */
  #delivery: Delivery | undefined
  readonly #retry: Retry
  readonly #log: Log
  readonly #limits: QueueLimits
  /** The one of this process is the last. */
  #queues: RecordQueue[]
  #isSending = false
  #sentReports = 0
  #dropped = 0
  #lastSuccessMs: number | undefined
  #failure: { readonly sinceMs: number; readonly reason: string } | undefined

  constructor(aggregator: string, options: ReporterOptions, onUndelivered: () => void) {
    const { clock = systemClock, random = systemRandom, run, keepMs, kept } = options
    this.aggregator = aggregator
    this.#options = options
    this.#onUndelivered = onUndelivered
    this.#clock = clock
    this.#log = options.log
    this.#retry = new Retry(BACKOFF, clock, random)
    const records = Math.max(4, Math.ceil(keepMs / RECORD_SPAN_MS))
    this.#limits = { records, weight: MAX_WEIGHT, batch: BATCH }
    this.#queues = [new RecordQueue(run, this.#limits)]
    this.adopt(kept[aggregator] ?? [])
    this.resume()
  }

  add(record: KeptRecord): void {
    this.#giveUp(this.#own.add(record))
    this.#bound()
  }

  /** Sends a report, unless one is under way or a failure was just now. */
  send(live: LiveView): void {
    if (this.#isSending || this.#delivery === undefined || !this.#retry.isDue) return
    this.#isSending = true
    void this.#post(this.#delivery, live).finally(() => {
      this.#isSending = false
    })
  }

  kept(): KeptReports[string] {
    return this.#queues.flatMap(({ of, all }) => (all.length === 0 ? [] : { ...of, records: all }))
  }

  status(): DeliveryStatus {
    return {
      aggregator: this.aggregator,
      waiting: this.#queues.reduce((sum, { length }) => sum + length, 0),
      dropped: this.#dropped,
      lastSuccessMs: this.#lastSuccessMs,
    }
  }

  problem(): Problem | undefined {
    if (this.#failure === undefined) return undefined
    const { sinceMs, reason } = this.#failure
    const forMs = this.#clock.monotonicMs() - sinceMs
    if (forMs < PROBLEM_MS) return undefined
    return new Problem(
      'HM_REPORTS_UNDELIVERED',
      `${this.aggregator} has taken no report for ${formatDuration(Math.floor(forMs / 1_000) * 1_000)}: ${reason}`,
      { subject: this.aggregator },
    )
  }

  suspend(): void {
    this.#delivery?.[Symbol.dispose]()
    this.#delivery = undefined
  }

  resume(): void {
    this.#delivery ??= new Delivery(() => this.#options.dial(this.aggregator))
  }

  forget(): void {
    this.#queues = [new RecordQueue(this.#options.run, this.#limits)]
  }

  adopt(runs: NonNullable<KeptReports[string]>): void {
    const own = this.#own
    const earlier = this.#queues.slice(0, -1)
    for (const { records, ...of } of runs) {
      const known = earlier.find((queue) => queue.of.run === of.run)
      // What follows records that are here already was never sent.
      if (known === undefined) earlier.push(new RecordQueue(of, this.#limits, records))
      else for (const record of records) this.#giveUp(known.add(record))
    }
    this.#queues = [...earlier, own]
    this.#bound()
  }

  /** Gives up the oldest runs while there is too much of all. */
  #bound(): void {
    let weight = this.#queues.reduce((sum, queue) => sum + queue.weight, 0)
    while (
      this.#queues.length > 1 &&
      (this.#queues.length > MAX_RUNS + 1 || weight > MAX_WEIGHT_OF_ALL)
    ) {
      const oldest = this.#queues.shift()
      weight -= oldest?.weight ?? 0
      this.#giveUp(oldest?.spans ?? 0)
    }
  }

  #giveUp(spans: number): void {
    if (spans === 0) return
    this.#dropped += spans
    this.#log.warn('Records are given up: there is no room to keep them', {
      aggregator: this.aggregator,
      spans,
    })
  }

  get #own(): RecordQueue {
    const own = this.#queues.at(-1)
    if (own === undefined) throw new Error('A sender has a queue of its own')
    return own
  }

  async #post(delivery: Delivery, live: LiveView): Promise<void> {
    const queue = this.#queues.find(({ length }) => length > 0) ?? this.#own
    const isOwn = queue === this.#own
    const { of } = queue
    const isFailing = this.#retry.isFailing
    const records = queue.next(this.#clock.wallMs(), isFailing ? 1 : BATCH)
    const isFirst = this.#sentReports < FIRST_REPORTS
    // After a failure a record goes alone: whether it is refused must not depend on the live view.
    const hasLive = isOwn && !(isFailing && records.length > 0)
    const report: HostReport = {
      version: REPORT_VERSION,
      host: this.#options.host(),
      key: this.#options.key,
      run: of.run,
      clockMs: this.#clock.wallMs(),
      layout: of.layout,
      ...((records.length > 0 || isFirst) && { columns: of.columns }),
      ...(hasLive && { live }),
      records,
    }
    const outcome = await delivery.post(report)
    // Suspended meanwhile: the records may belong to another process by now.
    if (this.#delivery !== delivery) return
    if (outcome.kind === 'accepted') {
      this.#accepted(queue, records, outcome.accepted)
    } else {
      const [alone] = records
      if (outcome.kind === 'refused' && isFailing && alone !== undefined) {
        this.#dropped += queue.drop(alone.sequence)
        this.#log.warn('An aggregator refuses a record, which is given up', {
          aggregator: this.aggregator,
          reason: outcome.reason,
        })
      }
      this.#failed(outcome.reason)
    }
    if (records.length > 0) this.#onUndelivered()
  }

  #accepted(queue: RecordQueue, sent: readonly unknown[], sequence: number): void {
    if (queue.accepted(sequence) === 0 && sent.length > 0) {
      this.#failed('it accepts none of the records')
      return
    }
    this.#sentReports += 1
    this.#succeeded()
    if (queue !== this.#own && queue.length === 0)
      this.#queues = this.#queues.filter((one) => one !== queue)
  }

  #succeeded(): void {
    this.#retry.reset()
    this.#lastSuccessMs = this.#clock.wallMs()
    if (this.#failure !== undefined)
      this.#log.info('Reports are delivered again', { aggregator: this.aggregator })
    this.#failure = undefined
  }

  #failed(reason: string): void {
    this.#retry.failed()
    const text = reason.slice(0, reportLimits.textLength)
    if (this.#failure === undefined)
      this.#log.info('A report was not delivered', { aggregator: this.aggregator, reason: text })
    this.#failure = { sinceMs: this.#failure?.sinceMs ?? this.#clock.monotonicMs(), reason: text }
  }
}
