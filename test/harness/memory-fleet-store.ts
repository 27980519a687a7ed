/**
 * A store of the fleet in memory, for tests of what asks it: everything is kept as it came, and summed up anew for each
 * question. It has one tier of 10 s and no limits.
 */
import type { Figures, Histogram, PairFigures } from '../../src/aggregator/figures.ts'
import type {
  Accepted,
  FleetStore,
  HostReading,
  PairFilter,
  Span,
  Step,
  WorkloadReading,
} from '../../src/aggregator/fleet-store.ts'
import type {
  HostReport,
  HostState,
  Interval,
  ReportColumn,
  ReportColumns,
  ReportedFacts,
  ReportRecord,
  SparseCells,
  WorkloadUse,
} from '../../src/model/report.ts'

interface StoredRecord {
  readonly host: string
  readonly endMs: number
  readonly spanMs: number
  readonly pairs: readonly PairFigures[]
  readonly own: Figures
  readonly workloads: readonly WorkloadUse[]
}

interface KnownHost {
  readonly key: string
  readonly firstReportAtMs: number
  lastReportAtMs: number
  isConflicting: boolean
  state: HostState | undefined
  lateMs: number
  clockOffsetMs: number
  readonly facts: { readonly atMs: number; readonly facts: ReportedFacts }[]
  readonly runs: Map<string, number>
  lostRecords: number
  live: { readonly atMs: number; readonly spanMs: number; readonly pairs: readonly PairFigures[] }
}

/** Live views that are older count for nothing. */
const LIVE_MS = 3_000

/** The store. */
export class MemoryFleetStore implements FleetStore {
  readonly hostsByName = new Map<string, KnownHost>()
  readonly records: StoredRecord[] = []
  /** Set to have every record refused. */
  failure: Error | undefined
  /** Set to have every question about hosts fail. */
  readFailure: Error | undefined
  /** How often pairs, and live views, were asked for. */
  readonly asked = { pairs: 0, live: 0 }
  readonly #layouts = new Map<string, ReportColumns>()

  async accept(report: HostReport, receivedAtMs: number): Promise<Accepted> {
    if (this.failure !== undefined) throw this.failure
    const { host, key, run, layout, columns, live, records, clockMs } = report
    const known = this.hostsByName.get(host) ?? newHost(key, receivedAtMs)
    this.hostsByName.set(host, known)
    if (known.key !== key) {
      known.isConflicting = true
      return { kind: 'conflict' }
    }
    known.lastReportAtMs = receivedAtMs
    known.clockOffsetMs = clockMs - receivedAtMs
    if (columns !== undefined) this.#layouts.set(layout, columns)
    const held = this.#layouts.get(layout)
    if (live !== undefined && held !== undefined) {
      known.state = live.state
      known.live = {
        atMs: receivedAtMs,
        spanMs: live.spanMs,
        pairs: pairsOf(host, live, held),
      }
    }
    if (held !== undefined)
      for (const record of records) this.#store(known, { host, run, record, held }, receivedAtMs)
    return { kind: 'accepted', accepted: known.runs.get(run) ?? 0 }
  }

  async pairs(span: Span, filter: PairFilter = {}): Promise<readonly PairFigures[]> {
    this.asked.pairs += 1
    const rows = this.#within(span).flatMap(({ pairs }) => pairs.filter((row) => fits(row, filter)))
    const byHost = sumPairs(rows)
    if (filter.sumHosts !== true) return byHost
    return sumPairs(byHost.map((row) => ({ ...row, host: '' }))).map((row) => ({
      ...row,
      active: byHost
        .filter(({ reporter, source, destination }) =>
          isSamePair(row, { reporter, source, destination }),
        )
        .reduce((sum, { active }) => sum + active, 0),
    }))
  }

  livePairs(nowMs: number): { readonly spanMs: number; readonly pairs: readonly PairFigures[] } {
    this.asked.live += 1
    const fresh = [...this.hostsByName.values()].filter(({ live }) => nowMs - live.atMs <= LIVE_MS)
    return {
      spanMs: Math.max(1_000, ...fresh.map(({ live }) => live.spanMs)),
      pairs: fresh.flatMap(({ live }) => live.pairs),
    }
  }

  async history(
    { fromMs, toMs, stepMs }: Span & { readonly stepMs: number },
    filter: PairFilter = {},
  ): Promise<readonly Step[]> {
    const steps: Step[] = []
    for (let at = fromMs; at < toMs; at += stepMs) {
      const span = { fromMs: at, toMs: at + stepMs }
      const hosts = new Set(
        this.#within(span)
          .map(({ host }) => host)
          .filter((host) => filter.host === undefined || filter.host === host),
      )
      const pairs = await this.pairs(span, filter)
      steps.push({ atMs: span.toMs, pairs, reporting: hosts.size })
    }
    return steps
  }

  async hosts(atMs: number): Promise<readonly HostReading[]> {
    if (this.readFailure !== undefined) throw this.readFailure
    return [...this.hostsByName].flatMap(([name, known]): HostReading[] => {
      if (known.firstReportAtMs > atMs) return []
      const held = known.facts.findLast((one) => one.atMs <= atMs)
      return [
        {
          name,
          isConflicting: known.isConflicting,
          firstReportAtMs: known.firstReportAtMs,
          lastReportAtMs: Math.min(known.lastReportAtMs, atMs),
          state: known.state ?? held?.facts.state,
          lateMs: known.lateMs,
          lostRecords: known.lostRecords,
          clockOffsetMs: known.clockOffsetMs,
          facts: held?.facts,
          factsAtMs: held?.atMs,
        },
      ]
    })
  }

  async hostFigures(span: Span, host: string): Promise<Figures> {
    return sumFigures(
      this.#within(span)
        .filter((record) => record.host === host)
        .map(({ own }) => own),
    )
  }

  async workloads(span: Span, host?: string): Promise<readonly WorkloadReading[]> {
    const sums = new Map<string, WorkloadReading>()
    for (const record of this.#within(span)) {
      if (host !== undefined && record.host !== host) continue
      for (const use of record.workloads) {
        const key = JSON.stringify([record.host, use.service])
        const before = sums.get(key)
        const cpuMs = (before?.use.cpuMs ?? 0) + (use.cpuMs ?? 0)
        const spanMs = (before?.spanMs ?? 0) + record.spanMs
        sums.set(key, { host: record.host, spanMs, use: { ...use, cpuMs } })
      }
    }
    return [...sums.values()]
  }

  async status(): ReturnType<FleetStore['status']> {
    const begins = this.records.map(({ endMs, spanMs }) => endMs - spanMs)
    const seconds = begins.length === 0 ? undefined : Math.min(...begins)
    return {
      bytes: this.records.length * 1_000,
      maxBytes: 1e9,
      oldestMs: { seconds, minutes: undefined, hours: undefined },
      dropped: { names: 0, cells: 0, records: 0 },
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.records.length = 0
  }

  #store(
    known: KnownHost,
    {
      host,
      run,
      record,
      held,
    }: {
      readonly host: string
      readonly run: string
      readonly record: ReportRecord
      readonly held: ReportColumns
    },
    receivedAtMs: number,
  ): void {
    const last = known.runs.get(run) ?? 0
    if (record.sequence <= last) return
    known.lostRecords += record.sequence - last - 1
    known.runs.set(run, record.sequence)
    known.lateMs = record.ageMs
    const endMs = receivedAtMs - record.ageMs
    if (record.facts !== undefined) known.facts.push({ atMs: endMs, facts: record.facts })
    this.records.push({
      host,
      endMs,
      spanMs: record.spanMs,
      pairs: pairsOf(host, record, held),
      own: decode(record.host, held.host),
      workloads: record.workloads,
    })
  }

  #within({ fromMs, toMs }: Span): readonly StoredRecord[] {
    return this.records.filter(({ endMs }) => endMs > fromMs && endMs <= toMs)
  }
}

function newHost(key: string, nowMs: number): KnownHost {
  return {
    key,
    firstReportAtMs: nowMs,
    lastReportAtMs: nowMs,
    isConflicting: false,
    state: undefined,
    lateMs: 0,
    clockOffsetMs: 0,
    facts: [],
    runs: new Map(),
    lostRecords: 0,
    live: { atMs: 0, spanMs: 0, pairs: [] },
  }
}

function isSamePair(
  row: PairFigures,
  { reporter, source, destination }: Pick<PairFigures, 'reporter' | 'source' | 'destination'>,
): boolean {
  return row.reporter === reporter && row.source === source && row.destination === destination
}

function fits(row: PairFigures, filter: PairFilter): boolean {
  return (
    (filter.host === undefined || filter.host === row.host) &&
    (filter.source === undefined || filter.source === row.source) &&
    (filter.destination === undefined || filter.destination === row.destination)
  )
}

function pairsOf(host: string, interval: Interval, columns: ReportColumns): PairFigures[] {
  return interval.pairs.map(([reporter, source, destination, active, lost, cells]) => ({
    host,
    reporter: reporter === 0 ? 'source' : 'destination',
    source: interval.names[source] ?? '',
    destination: interval.names[destination] ?? '',
    active,
    lost,
    figures: decode(cells, columns.pair),
  }))
}

const boundsByColumn = new WeakMap<ReportColumn, readonly number[]>()

function boundsOf(column: ReportColumn): readonly number[] {
  const known = boundsByColumn.get(column)
  if (known !== undefined) return known
  const bounds =
    column.kind === 'histogram'
      ? [...column.boundsSeconds, Number.POSITIVE_INFINITY]
      : column.kind === 'exponential'
        ? Array.from(
            { length: column.cells - 1 },
            (_, i) => 2 ** ((column.offset + i + 1) / 2 ** column.scale),
          )
        : []
  boundsByColumn.set(column, bounds)
  return bounds
}

function widthOf(column: ReportColumn): number {
  switch (column.kind) {
    case 'split':
      return column.values.length
    case 'histogram':
      return column.boundsSeconds.length + 2
    case 'exponential':
      return column.cells
    case 'count':
    case 'gauge':
      return 1
    default:
      return column satisfies never
  }
}

function decode(sparse: SparseCells, columns: readonly ReportColumn[]): Figures {
  const cells = new Map<number, number>()
  for (let i = 0; i + 1 < sparse.length; i += 2) cells.set(sparse[i] ?? 0, sparse[i + 1] ?? 0)
  const counts = new Map<string, number>()
  const splits = new Map<string, ReadonlyMap<string, number>>()
  const histograms = new Map<string, Histogram>()
  let start = 0
  for (const column of columns) {
    const width = widthOf(column)
    const values = Array.from({ length: width }, (_, i) => cells.get(start + i) ?? 0)
    start += width
    if (values.every((value) => value === 0)) continue
    if (column.kind === 'split')
      splits.set(
        column.name,
        new Map(
          column.values.flatMap((label, i) =>
            values[i] ? [[label, values[i] ?? 0] as const] : [],
          ),
        ),
      )
    else if (column.kind === 'histogram' || column.kind === 'exponential')
      histograms.set(column.name, {
        bounds: boundsOf(column),
        counts: values.slice(0, -1),
        sum: values.at(-1) ?? 0,
      })
    else counts.set(column.name, values[0] ?? 0)
  }
  return { counts, splits, histograms }
}

function sumPairs(rows: readonly PairFigures[]): PairFigures[] {
  const groups = Map.groupBy(rows, ({ host, reporter, source, destination }) =>
    JSON.stringify([host, reporter, source, destination]),
  )
  return [...groups.values()].map((group) => {
    const last = group.at(-1)!
    return {
      ...last,
      lost: group.reduce((sum, { lost }) => sum + lost, 0),
      figures: group.length === 1 ? last.figures : sumFigures(group.map((row) => row.figures)),
    }
  })
}

function sumFigures(all: readonly Figures[]): Figures {
  const counts = new Map<string, number>()
  const splits = new Map<string, Map<string, number>>()
  const histograms = new Map<string, { bounds: readonly number[]; counts: number[]; sum: number }>()
  for (const figures of all) {
    for (const [name, count] of figures.counts) counts.set(name, (counts.get(name) ?? 0) + count)
    for (const [name, split] of figures.splits) {
      const sum = splits.get(name) ?? new Map<string, number>()
      splits.set(name, sum)
      for (const [label, count] of split) sum.set(label, (sum.get(label) ?? 0) + count)
    }
    for (const [name, histogram] of figures.histograms) {
      const sum = histograms.get(name)
      if (sum === undefined) histograms.set(name, { ...histogram, counts: [...histogram.counts] })
      else {
        histogram.counts.forEach((count, i) => (sum.counts[i] = (sum.counts[i] ?? 0) + count))
        sum.sum += histogram.sum
      }
    }
  }
  return { counts, splits, histograms }
}
