/**
 * The records that one aggregator has not accepted yet, oldest first. Bounded: what is kept longer than the limit is
 * merged into longer records, so that nothing that was counted is lost.
 *
 * A record that was sent may have been stored although no answer came; it is sent again as it is and never merged.
 */
import type { ReportColumns, ReportRecord } from '../../model/report.ts'
import { mergeIntervals } from '../../telemetry/interval.ts'

/** What identifies the records of one process. */
export interface RunOfRecords {
  readonly run: string
  readonly layout: string
  readonly columns: ReportColumns
}

/** A record with the time of its end; `ageMs` is computed when it is sent. */
export interface KeptRecord {
  /** Wall clock: records outlive the process. */
  readonly endMs: number
  readonly record: Omit<ReportRecord, 'ageMs'>
}

/** Limits of a queue. */
export interface QueueLimits {
  /** Records beyond which records are merged. */
  readonly records: number
  /** Records of one request. */
  readonly batch: number
}

/** The queue of the records of one run for one aggregator. */
export class RecordQueue {
  readonly of: RunOfRecords
  readonly #limits: QueueLimits
  #records: KeptRecord[] = []
  /** The first records that were sent without an answer. */
  #sent = 0

  constructor(of: RunOfRecords, limits: QueueLimits, records: readonly KeptRecord[] = []) {
    this.of = of
    this.#limits = limits
    this.#records = [...records]
    // Of a former process: each may have been sent.
    this.#sent = records.length
  }

  get length(): number {
    return this.#records.length
  }

  /** All records, for keeping them over a restart. */
  get all(): readonly KeptRecord[] {
    return this.#records
  }

  /** The end of the oldest record; undefined when all were accepted. */
  get oldestEndMs(): number | undefined {
    return this.#records[0]?.endMs
  }

  /** Appends the next record. */
  add(record: KeptRecord): void {
    this.#records.push(record)
    if (this.#records.length > this.#limits.records) this.#merge()
  }

  /** The records to send next: at most `most`, and those that were sent before first. */
  next(nowMs: number, most: number = this.#limits.batch): readonly ReportRecord[] {
    const batch = this.#records.slice(0, most)
    this.#sent = Math.max(this.#sent, batch.length)
    return batch.map(({ endMs, record }) => ({ ...record, ageMs: Math.max(0, nowMs - endMs) }))
  }

  /** The aggregator has all records up to this sequence number. */
  accepted(sequence: number): void {
    const before = this.#records.length
    this.#records = this.#records.filter(({ record }) => record.sequence > sequence)
    this.#sent = Math.max(0, this.#sent - (before - this.#records.length))
  }

  /** Gives up the oldest record, which the aggregator refuses. Returns how many spans it summed up. */
  drop(): number {
    this.#sent = Math.max(0, this.#sent - 1)
    return this.#records.shift()?.record.merged ?? 0
  }

  /** Merges neighbours in the older half of what was never sent. */
  #merge(): void {
    const from = this.#sent
    const to = from + Math.max(2, Math.floor((this.#records.length - from) / 2))
    const older = this.#records.slice(from, to)
    const merged: KeptRecord[] = []
    for (let i = 0; i < older.length; i += 2) {
      const [earlier, later] = [older[i], older[i + 1]]
      if (earlier !== undefined)
        merged.push(later === undefined ? earlier : mergeRecords(earlier, later))
    }
    this.#records = [...this.#records.slice(0, from), ...merged, ...this.#records.slice(to)]
  }
}

/** Two records as one. */
function mergeRecords(earlier: KeptRecord, later: KeptRecord): KeptRecord {
  const [first, second] = [earlier.record, later.record]
  const facts = second.facts ?? first.facts
  const cpuBefore = new Map(first.workloads.map(({ service, cpuMs }) => [service, cpuMs]))
  return {
    endMs: later.endMs,
    record: {
      ...mergeIntervals(first, second),
      sequence: second.sequence,
      merged: first.merged + second.merged,
      workloads: second.workloads.map((use) => {
        const before = cpuBefore.get(use.service)
        return use.cpuMs === undefined ? use : { ...use, cpuMs: use.cpuMs + (before ?? 0) }
      }),
      ...(facts !== undefined && { facts }),
    },
  }
}
