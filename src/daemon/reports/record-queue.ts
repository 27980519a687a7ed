/**
 * The records that one aggregator has not accepted yet, oldest first. Bounded in number and size: beyond the limits they
 * are merged into longer records, so that nothing that was counted is lost; what cannot be merged is given up and counted.
 *
 * A record that was sent may have been stored although no answer came; it is sent again as it is and never merged.
 */
import { type ReportColumns, type ReportRecord, reportLimits } from '../../model/report.ts'
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
  /** Numbers in all records beyond which records are merged, see {@link RecordQueue.weight}. */
  readonly weight: number
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
  #weight = 0

  constructor(of: RunOfRecords, limits: QueueLimits, records: readonly KeptRecord[] = []) {
    this.of = of
    this.#limits = limits
    this.#records = [...records]
    // Of a former process: each may have been sent.
    this.#sent = records.length
    for (const { record } of records) this.#weight += weightOf(record)
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

  /** What the records take, in numbers of 8 bytes. */
  get weight(): number {
    return this.#weight
  }

  /** Spans of 10 s that the records sum up. */
  get spans(): number {
    return this.#records.reduce((sum, { record }) => sum + record.merged, 0)
  }

  /** Appends the next record. Returns how many spans of others had to be given up for it. */
  add(record: KeptRecord): number {
    this.#records.push(record)
    this.#weight += weightOf(record.record)
    let givenUp = 0
    while (this.#isFull && this.#records.length > 1)
      // What was sent may have been stored: what certainly was not is given up first.
      if (!this.#merge())
        givenUp += this.#remove(this.#sent < this.#records.length ? this.#sent : 0)
    return givenUp
  }

  /** The records to send next: at most `most`, and those that were sent before first. */
  next(nowMs: number, most: number = this.#limits.batch): readonly ReportRecord[] {
    const batch = this.#records.slice(0, most)
    this.#sent = Math.max(this.#sent, batch.length)
    return batch.map(({ endMs, record }) => ({ ...record, ageMs: Math.max(0, nowMs - endMs) }))
  }

  /** The aggregator has all records up to this number, of those that were sent. Returns how many are gone. */
  accepted(sequence: number): number {
    let gone = 0
    while (this.#sent > 0 && (this.#records[0]?.record.sequence ?? Infinity) <= sequence) {
      this.#remove(0)
      gone += 1
    }
    return gone
  }

  /** Gives up the oldest record, which the aggregator refuses, if it has this number. Returns how many spans it sums up. */
  drop(sequence: number): number {
    return this.#records[0]?.record.sequence === sequence ? this.#remove(0) : 0
  }

  get #isFull(): boolean {
    return this.#records.length > this.#limits.records || this.#weight > this.#limits.weight
  }

  #remove(index: number): number {
    const [removed] = this.#records.splice(index, 1)
    if (removed === undefined) return 0
    if (index < this.#sent) this.#sent -= 1
    this.#weight -= weightOf(removed.record)
    return removed.record.merged
  }

  /** Merges neighbours in the older half of what was never sent. Returns whether there were any that fit together. */
  #merge(): boolean {
    const from = this.#sent
    const to = from + Math.max(2, Math.floor((this.#records.length - from) / 2))
    const before = this.#records.length
    const older = this.#records.slice(from, to)
    const merged: KeptRecord[] = []
    for (let i = 0; i < older.length; i += 2) {
      const [earlier, later] = [older[i], older[i + 1]]
      if (earlier !== undefined)
        merged.push(...(later === undefined ? [earlier] : joined(earlier, later)))
    }
    this.#records = [...this.#records.slice(0, from), ...merged, ...this.#records.slice(to)]
    this.#weight = this.#records.reduce((sum, { record }) => sum + weightOf(record), 0)
    return this.#records.length < before
  }
}

/** One record in place of two, unless it would be longer than a report may be. */
function joined(earlier: KeptRecord, later: KeptRecord): readonly KeptRecord[] {
  const merged = mergeRecords(earlier, later)
  const { pairs, names } = merged.record
  const isTooLong = pairs.length > reportLimits.pairs || names.length > reportLimits.names
  return isTooLong ? [earlier, later] : [merged]
}

/** What a record takes, in numbers of 8 bytes; a rough figure for texts. */
function weightOf({ names, pairs, host, workloads, facts }: KeptRecord['record']): number {
  let weight = names.length * 4 + host.length + workloads.length * 16
  for (const [, , , , , cells] of pairs) weight += cells.length + 8
  if (facts === undefined) return weight
  weight += facts.problems.length * 16
  for (const { upstreams, policy } of facts.services)
    weight += 32 + upstreams.length * 4 + (policy?.intentions.length ?? 0) * 16
  return weight
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
