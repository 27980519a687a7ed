/**
 * Reads all values of a host at one moment, for whoever exports them.
 */
import { type Clock, systemClock } from '../lib/clock.ts'
import type { HostReading } from './host-reading.ts'
import { IdlePairs } from './idle-pairs.ts'
import type { Reading } from './metrics.ts'
import type { WorkerTotals } from './totals.ts'

/** The sources of the values. */
export interface MetricsSource {
  readonly version: string
  readonly totals: Pick<WorkerTotals, 'traffic' | 'cells' | 'cellsByWorker'>
  /** Called once per reading; must be quick and must not throw. */
  readonly host: () => HostReading
  readonly clock?: Pick<Clock, 'monotonicMs'>
}

/** Reads the values. One for each daemon, because it remembers which service pairs are in use. */
export class MetricsReader {
  readonly #source: MetricsSource
  readonly #idlePairs: IdlePairs

  constructor(source: MetricsSource) {
    this.#source = source
    this.#idlePairs = new IdlePairs(source.clock ?? systemClock)
  }

  /** The present values. Service pairs that are idle are not among them. */
  read(): Reading {
    const { totals, version, host } = this.#source
    return {
      host: host(),
      traffic: this.#idlePairs.withoutIdle(totals.traffic()),
      cells: totals.cells(),
      cellsByWorker: totals.cellsByWorker(),
      version,
    }
  }
}
