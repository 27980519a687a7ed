/**
 * The counts of the node: the sum over its workers, ended ones included.
 *
 * {@link WorkerTotals.retire} adds the memory of a crashed worker to the retired sums, so that no total decreases when
 * the worker is replaced; connections that were open then become `lost`. So opened = closed + lost + active, always.
 */
import { addCells, type Numbers } from './columns.ts'
import {
  initialTrafficLabels,
  OTHER_SERVICE,
  type Reporter,
  readTraffic,
  readWorker,
  TrafficCounters,
  type TrafficLabels,
  type TrafficRow,
  trafficKey,
  trafficLayout,
  WorkerCounters,
  type workerColumns,
  workerLayout,
} from './counters.ts'

/** Maximum service pairs of the node that are counted separately, over all workers and restarts. */
export const MAX_NODE_PAIRS = 2_048

/** The memory in which a worker counts: pass it to the thread that starts. */
export interface WorkerMemory {
  readonly traffic: SharedArrayBuffer
  readonly counters: SharedArrayBuffer
}

/** A row summed over workers. */
export interface TrafficTotal extends TrafficRow {
  /** Open now, in running workers. */
  readonly active: number
  /** Open when their worker crashed. */
  readonly lost: number
}

interface LiveWorker extends WorkerMemory {
  readonly labels: (TrafficLabels | undefined)[]
}

/** Memory and sums of all workers of this node. Belongs to the main thread. */
export class WorkerTotals {
  private readonly live = new Map<number, LiveWorker>()
  private readonly pairs = new Set<string>()
  private readonly retiredTraffic = new Map<string, TrafficTotal>()
  private readonly retiredCells = workerLayout.empty()

  /**
   * Makes the memory for a worker that is about to start. `worker` names it until it is retired.
   * @throws RangeError when that worker exists already: its counts would be lost.
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
    const key = trafficKey(labels)
    const isKnown = this.pairs.has(key)
    if (!isKnown && this.pairs.size >= MAX_NODE_PAIRS) {
      memory.labels[row] = otherLabels(labels.reporter)
      return
    }
    this.pairs.add(key)
    memory.labels[row] = labels
  }

  /**
   * A worker has ended: its counts stay, its gauges end, its open connections are lost. Call it on the thread's `exit`
   * event, before which Node delivers every message that the thread has posted.
   */
  retire(worker: number): void {
    const memory = this.live.get(worker)
    if (memory === undefined) return
    this.live.delete(worker)
    for (const row of readTraffic(memory.traffic, memory.labels))
      addRow(this.retiredTraffic, { ...row, active: 0, lost: openIn(row) })
    const cells = readWorker(memory.counters)
    workerLayout.endGauges(cells)
    addCells(this.retiredCells, cells)
  }

  /** All service pairs that were ever counted, each once. */
  traffic(): readonly TrafficTotal[] {
    const totals = new Map<string, TrafficTotal>()
    for (const row of this.retiredTraffic.values())
      addRow(totals, { ...row, cells: new Float64Array(row.cells) })
    for (const memory of this.live.values())
      for (const row of readTraffic(memory.traffic, memory.labels))
        addRow(totals, { ...row, active: openIn(row), lost: 0 })
    return [...totals.values()]
  }

  /** Counts without a service pair, of all workers, and gauges of the running ones. By {@link workerLayout}. */
  cells(): Float64Array {
    const sum = Float64Array.from(this.retiredCells)
    for (const memory of this.live.values()) addCells(sum, readWorker(memory.counters))
    return sum
  }

  /** The same as numbers. */
  numbers(): Numbers<typeof workerColumns> {
    return workerLayout.read(this.cells())
  }

  /** The cells of each running worker. */
  cellsByWorker(): ReadonlyMap<number, Float64Array> {
    return new Map([...this.live].map(([worker, { counters }]) => [worker, readWorker(counters)]))
  }
}

function openIn({ cells }: TrafficRow): number {
  return Math.max(0, trafficLayout.total(cells, 'opened') - trafficLayout.total(cells, 'closed'))
}

function otherLabels(reporter: Reporter): TrafficLabels {
  return { reporter, source: OTHER_SERVICE, destination: OTHER_SERVICE }
}

/** Adds a row to the sum of its pair; its cells become those of the sum. */
function addRow(totals: Map<string, TrafficTotal>, row: TrafficTotal): void {
  const key = trafficKey(row.labels)
  const before = totals.get(key)
  const { cells } = row
  if (before !== undefined) addCells(cells, before.cells)
  totals.set(key, {
    labels: row.labels,
    cells,
    active: row.active + (before?.active ?? 0),
    lost: row.lost + (before?.lost ?? 0),
  })
}
