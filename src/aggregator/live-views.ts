/**
 * The last seconds of all hosts, in memory only.
 *
 * Bounded: views, runs of a host and pairs in all; a view beyond the limits is left out and counted.
 */
import type {
  HostReport,
  HostState,
  LiveView,
  ReportColumns,
  SparseCells,
} from '../model/report.ts'
import type { Figures, PairFigures } from './figures.ts'
import { type CellMeaning, FiguresBuilder, meaningsOf } from './store/cells.ts'

/** How old a view may be, milliseconds. */
const LIVE_MS = 3_000

/** Views of a run within that time; hosts send one a second. */
const MAX_VIEWS = 6

/** Runs of a host that report at the same time; a reload has two. */
const MAX_RUNS = 8

/** Pairs of all views. */
const MAX_PAIRS = 500_000

/** Layouts that are shared by runs; all hosts of one version have the same. */
const MAX_LAYOUTS = 64

interface Run {
  layout: string
  meanings: readonly CellMeaning[] | undefined
  views: { readonly receivedAtMs: number; readonly view: LiveView }[]
}

interface Host {
  readonly runs: Map<string, Run>
  state: HostState
  stateAtMs: number
}

/** The cells of a pair in one view. */
interface Part {
  readonly meanings: readonly CellMeaning[]
  readonly cells: SparseCells
  readonly isLast: boolean
}

/** A pair in the last seconds; its figures are summed when somebody looks at them. */
class LivePair implements PairFigures {
  readonly host: string
  readonly reporter: 'source' | 'destination'
  readonly source: string
  readonly destination: string
  active = 0
  lost = 0
  readonly parts: Part[] = []
  #figures: Figures | undefined

  constructor(host: string, reporter: 0 | 1, source: string, destination: string) {
    this.host = host
    this.reporter = reporter === 0 ? 'source' : 'destination'
    this.source = source
    this.destination = destination
  }

  get figures(): Figures {
    this.#figures ??= sum(this.parts)
    return this.#figures
  }
}

/** See the head of this file. */
export class LiveViews {
  readonly #hosts = new Map<string, Host>()
  readonly #layouts = new Map<string, readonly CellMeaning[]>()
  #pairs = 0
  /** Views that were left out. */
  dropped = 0

  /** Takes the view of a report, and its columns. */
  add(report: HostReport, receivedAtMs: number): void {
    const { live, layout, columns } = report
    if (live === undefined && columns === undefined) return
    let host = this.#hosts.get(report.host)
    if (host === undefined) {
      host = { runs: new Map(), state: 'starting', stateAtMs: -Infinity }
      this.#hosts.set(report.host, host)
    }
    const run = this.#runOf(host, report.run, layout)
    if (columns !== undefined && run.meanings === undefined)
      run.meanings = this.#meaningsOf(columns)
    this.#expire(run, receivedAtMs)
    if (live === undefined) return
    host.state = live.state
    host.stateAtMs = receivedAtMs
    if (run.views.length >= MAX_VIEWS || this.#pairs + live.pairs.length > MAX_PAIRS) {
      this.dropped += 1
      return
    }
    run.views.push({ receivedAtMs, view: live })
    this.#pairs += live.pairs.length
  }

  /** The state of the host in its last view, if that came after this time. */
  stateOf(host: string, afterMs: number): HostState | undefined {
    const known = this.#hosts.get(host)
    return known !== undefined && known.stateAtMs >= afterMs ? known.state : undefined
  }

  /** Forgets what is too old, and hosts without views for a minute. */
  expire(nowMs: number): void {
    for (const [name, host] of this.#hosts) {
      for (const run of host.runs.values()) this.#expire(run, nowMs)
      if (nowMs - host.stateAtMs < 60_000) continue
      for (const run of host.runs.values()) this.#expire(run, Infinity)
      this.#hosts.delete(name)
    }
  }

  /** Sums of the last 3 s; `spanMs` is what a host's views cover, on average. */
  read(nowMs: number): { readonly spanMs: number; readonly pairs: readonly PairFigures[] } {
    let totalMs = 0
    let hosts = 0
    const pairs: PairFigures[] = []
    for (const [name, host] of this.#hosts) {
      const coveredMs = readHost(name, host, nowMs, pairs)
      if (coveredMs === 0) continue
      totalMs += coveredMs
      hosts += 1
    }
    return { spanMs: hosts === 0 ? 0 : Math.round(totalMs / hosts), pairs }
  }

  #runOf(host: Host, token: string, layout: string): Run {
    let run = host.runs.get(token)
    if (run === undefined) {
      if (host.runs.size >= MAX_RUNS) this.#forgetOldest(host)
      run = { layout, meanings: undefined, views: [] }
      host.runs.set(token, run)
    } else if (run.layout !== layout) {
      this.#expire(run, Infinity)
      run.layout = layout
      run.meanings = undefined
    }
    return run
  }

  #forgetOldest({ runs }: Host): void {
    const ages = Array.from(runs, ([token, { views }]) => ({
      token,
      atMs: views.at(-1)?.receivedAtMs ?? -Infinity,
    }))
    const [oldest] = ages.toSorted((left, right) => left.atMs - right.atMs)
    if (oldest === undefined) return
    const run = runs.get(oldest.token)
    if (run !== undefined) this.#expire(run, Infinity)
    runs.delete(oldest.token)
  }

  #expire(run: Run, nowMs: number): void {
    while (run.views[0] !== undefined && run.views[0].receivedAtMs < nowMs - LIVE_MS) {
      this.#pairs -= run.views[0].view.pairs.length
      run.views.shift()
    }
  }

  #meaningsOf({ pair }: ReportColumns): readonly CellMeaning[] {
    const key = JSON.stringify(pair)
    const known = this.#layouts.get(key)
    if (known !== undefined) return known
    const meanings = pair.flatMap(meaningsOf)
    if (this.#layouts.size >= MAX_LAYOUTS) this.#layouts.clear()
    this.#layouts.set(key, meanings)
    return meanings
  }
}

/** Adds the pairs of a host; returns the time that its views cover. */
function readHost(name: string, { runs }: Host, nowMs: number, into: PairFigures[]): number {
  const pairs = new Map<string, LivePair>()
  let coveredMs = 0
  for (const { meanings, views } of runs.values()) {
    if (meanings === undefined) continue
    const recent = views.filter(({ receivedAtMs }) => receivedAtMs >= nowMs - LIVE_MS)
    const last = recent.at(-1)
    for (const entry of recent)
      for (const [reporter, from, to, active, lost, cells] of entry.view.pairs) {
        const source = entry.view.names[from] ?? ''
        const destination = entry.view.names[to] ?? ''
        const key = `${reporter} ${source} ${destination}`
        let pair = pairs.get(key)
        if (pair === undefined)
          pairs.set(key, (pair = new LivePair(name, reporter, source, destination)))
        if (entry === last) pair.active += active
        pair.lost += lost
        pair.parts.push({ meanings, cells, isLast: entry === last })
      }
    const ofRunMs = recent.reduce((total, { view }) => total + view.spanMs, 0)
    coveredMs = Math.max(coveredMs, ofRunMs)
  }
  for (const pair of pairs.values()) into.push(pair)
  return coveredMs
}

function sum(parts: readonly Part[]): Figures {
  const figures = new FiguresBuilder()
  for (const { meanings, cells, isLast } of parts)
    for (let i = 0; i + 1 < cells.length; i += 2) {
      const meaning = meanings[cells[i] ?? -1]
      if (meaning === undefined || (meaning.kind === 'gauge' && !isLast)) continue
      figures.add(meaning, cells[i + 1] ?? 0)
    }
  return figures.finish()
}
