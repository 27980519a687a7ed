/**
 * The node's counts: the sum over its workers, those that are gone included.
 *
 * A worker that crashed leaves its memory behind. {@link WorkerTotals.retire} adds it to the retired sums,
 * so that no total ever goes backwards when the worker is replaced; connections that were open at that
 * moment become `lost`. So opened = closed + lost + active, always.
 */
import {
  type BucketCounts,
  initialTrafficLabels,
  OTHER_SERVICE,
  type Reporter,
  readTraffic,
  readWorker,
  TrafficCounters,
  type TrafficLabels,
  type TrafficRow,
  type WorkerCounterName,
  WorkerCounters,
  type WorkerGaugeName,
  type WorkerReading,
  workerCounterNames,
} from './counters.ts'

/** Service pairs of the whole node that are told apart, over all its workers and their lives. */
export const MAX_NODE_PAIRS = 2_048

/** The memory a worker counts in: hand it to the thread that starts. */
export interface WorkerMemory {
  readonly traffic: SharedArrayBuffer
  readonly counters: SharedArrayBuffer
}

/** A row summed over workers. */
export interface TrafficTotal extends TrafficRow {
  /** Open now, in workers that are alive. */
  readonly active: number
  /** Were open when their worker crashed. */
  readonly lost: number
}

/** The gauges of one living worker. */
export interface WorkerGauges {
  readonly worker: number
  readonly gauges: Readonly<Record<WorkerGaugeName, number>>
}

interface LiveWorker extends WorkerMemory {
  readonly labels: (TrafficLabels | undefined)[]
}

/** Memory and sums of all workers of this node. Lives in the main thread. */
export class WorkerTotals {
  private readonly live = new Map<number, LiveWorker>()
  private readonly pairs = new Set<string>()
  private retiredTraffic = new Map<string, TrafficTotal>()
  private retiredReading: WorkerReading = readWorker(WorkerCounters.createMemory())

  /**
   * Makes the memory for a worker that is about to start. `worker` names it until it is retired.
   * @throws RangeError when that worker is already there: its counts would be lost.
   */
  attach(worker: number): WorkerMemory {
    if (this.live.has(worker)) throw new RangeError(`Worker ${worker} already counts`)
    const memory: LiveWorker = {
      traffic: TrafficCounters.createMemory(),
      counters: WorkerCounters.createMemory(),
      labels: initialTrafficLabels(),
    }
    this.live.set(worker, memory)
    return { traffic: memory.traffic, counters: memory.counters }
  }

  /** A worker began to use a row. Pairs beyond {@link MAX_NODE_PAIRS} are counted as `other`. */
  announce(worker: number, row: number, labels: TrafficLabels): void {
    const memory = this.live.get(worker)
    if (memory === undefined) return
    const key = keyOf(labels)
    const isKnown = this.pairs.has(key)
    if (!isKnown && this.pairs.size >= MAX_NODE_PAIRS) {
      memory.labels[row] = otherLabels(labels.reporter)
      return
    }
    this.pairs.add(key)
    memory.labels[row] = labels
  }

  /**
   * A worker is gone for good: its counts stay, its gauges end, its connections are lost. Call it on the
   * thread's `exit` event, before which Node delivers every message that the thread had posted.
   */
  retire(worker: number): void {
    const memory = this.live.get(worker)
    if (memory === undefined) return
    this.live.delete(worker)
    for (const row of readTraffic(memory.traffic, memory.labels))
      addRow(this.retiredTraffic, { ...row, active: 0, lost: Math.max(0, row.opened - row.closed) })
    this.retiredReading = addReadings(this.retiredReading, readWorker(memory.counters))
  }

  /** All service pairs that were ever counted, each once. */
  traffic(): readonly TrafficTotal[] {
    const totals = new Map(this.retiredTraffic)
    for (const memory of this.live.values()) {
      for (const row of readTraffic(memory.traffic, memory.labels))
        addRow(totals, { ...row, active: Math.max(0, row.opened - row.closed), lost: 0 })
    }
    return [...totals.values()]
  }

  /** The counts that have no service pair. */
  counters(): Readonly<Record<WorkerCounterName, number>> {
    return this.reading().counters
  }

  /** Tunnel round trips of all workers. */
  roundTrips(): BucketCounts {
    return this.reading().roundTrips
  }

  /** The gauges of each living worker. */
  gauges(): readonly WorkerGauges[] {
    return [...this.live].map(([worker, memory]) => ({
      worker,
      gauges: readWorker(memory.counters).gauges,
    }))
  }

  private reading(): WorkerReading {
    let sum = this.retiredReading
    for (const memory of this.live.values()) sum = addReadings(sum, readWorker(memory.counters))
    return sum
  }
}

function keyOf(labels: TrafficLabels): string {
  return `${labels.reporter}\n${labels.source}\n${labels.destination}`
}

function otherLabels(reporter: Reporter): TrafficLabels {
  return { reporter, source: OTHER_SERVICE, destination: OTHER_SERVICE }
}

function addRow(totals: Map<string, TrafficTotal>, row: TrafficTotal): void {
  const key = keyOf(row.labels)
  const before = totals.get(key)
  if (before === undefined) {
    totals.set(key, row)
    return
  }
  totals.set(key, {
    labels: before.labels,
    opened: before.opened + row.opened,
    closed: before.closed + row.closed,
    sentBytes: before.sentBytes + row.sentBytes,
    receivedBytes: before.receivedBytes + row.receivedBytes,
    connectFailures: before.connectFailures + row.connectFailures,
    closedByFlag: addArrays(before.closedByFlag, row.closedByFlag),
    durationBuckets: addArrays(before.durationBuckets, row.durationBuckets),
    durationSeconds: before.durationSeconds + row.durationSeconds,
    active: before.active + row.active,
    lost: before.lost + row.lost,
  })
}

/** Gauges of the first are kept: those of a sum mean nothing. */
function addReadings(a: WorkerReading, b: WorkerReading): WorkerReading {
  const counters = { ...a.counters }
  for (const name of workerCounterNames) counters[name] += b.counters[name]
  return {
    counters,
    gauges: a.gauges,
    roundTrips: {
      buckets: addArrays(a.roundTrips.buckets, b.roundTrips.buckets),
      seconds: a.roundTrips.seconds + b.roundTrips.seconds,
    },
  }
}

function addArrays(a: readonly number[], b: readonly number[]): readonly number[] {
  return a.map((value, index) => value + (b[index] ?? 0))
}
