/**
 * The last seconds of all hosts, in memory only.
 *
 * Bounded: views, runs of a host and pairs in all; a view beyond the limits is left out and counted. When there are too
 * many pairs, the host with the most of them loses views, not the one that happens to report.
 */
import type { HostReport, HostState, LiveView, ReportColumns } from '../model/report.ts'
import type { Figures, PairFigures } from './figures.ts'
import { ByteReader, ByteWriter } from './store/bytes.ts'
import { type CellMeaning, FiguresBuilder, meaningsOf } from './store/cells.ts'

/** How old a view may be, milliseconds. */
const LIVE_MS = 3_000

/** Views of a run within that time; hosts send one a second. */
const MAX_VIEWS = 6

/** Runs of a host that report at the same time; a reload has two. */
const MAX_RUNS = 8

/** Pairs of all views, unless given. */
const MAX_PAIRS = 500_000

/** Layouts that are shared by runs; all hosts of one version have the same. */
const MAX_LAYOUTS = 64

interface Run {
  layout: string
  meanings: readonly CellMeaning[] | undefined
  views: HeldView[]
}

/**
 * A view as it is held: its pairs as bytes, since a million numbers in lists that live for three seconds would cost the
 * garbage collector more than everything else here.
 */
interface HeldView {
  readonly receivedAtMs: number
  readonly spanMs: number
  readonly names: readonly string[]
  readonly pairs: number
  readonly bytes: Uint8Array
}

interface Host {
  readonly runs: Map<string, Run>
  /** Of all its views. */
  pairs: number
  state: HostState
  stateAtMs: number
}

/** The cells of a pair in one view. */
interface Part {
  readonly meanings: readonly CellMeaning[]
  readonly bytes: Uint8Array
  readonly start: number
  readonly end: number
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
  readonly #writer = new ByteWriter()
  readonly #cells = new ByteWriter()
  readonly #maxPairs: number
  #pairs = 0
  /** Views that were left out. */
  dropped = 0

  constructor(maxPairs: number = MAX_PAIRS) {
    this.#maxPairs = maxPairs
  }

  /** Takes the view of a report, and its columns. */
  add(report: HostReport, receivedAtMs: number): void {
    const { live, layout, columns } = report
    if (live === undefined && columns === undefined) return
    let host = this.#hosts.get(report.host)
    if (host === undefined) {
      host = { runs: new Map(), pairs: 0, state: 'starting', stateAtMs: -Infinity }
      this.#hosts.set(report.host, host)
    }
    const run = this.#runOf(host, report.run, layout)
    if (columns !== undefined && run.meanings === undefined)
      run.meanings = this.#meaningsOf(columns)
    this.#expire(host, run, receivedAtMs)
    if (live === undefined) return
    host.state = live.state
    host.stateAtMs = receivedAtMs
    if (run.views.length >= MAX_VIEWS) {
      this.dropped += 1
      return
    }
    run.views.push(this.#hold(live, receivedAtMs, run.views.at(-1)?.names))
    this.#count(host, live.pairs.length)
    while (this.#pairs > this.#maxPairs) this.#shed()
  }

  /** The state of the host in its last view, if that came after this time. */
  stateOf(host: string, afterMs: number): HostState | undefined {
    const known = this.#hosts.get(host)
    return known !== undefined && known.stateAtMs >= afterMs ? known.state : undefined
  }

  /** Forgets what is too old, and hosts without views for a minute. */
  expire(nowMs: number): void {
    for (const [name, host] of this.#hosts) {
      for (const run of host.runs.values()) this.#expire(host, run, nowMs)
      if (nowMs - host.stateAtMs < 60_000) continue
      for (const run of host.runs.values()) this.#expire(host, run, Infinity)
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

  #hold(
    { spanMs, names, pairs }: LiveView,
    receivedAtMs: number,
    before: readonly string[] | undefined,
  ): HeldView {
    const writer = this.#writer
    const ofPair = this.#cells
    writer.clear()
    for (const [reporter, source, destination, active, lost, cells] of pairs) {
      ofPair.clear()
      let last = 0
      for (let i = 0; i + 1 < cells.length; i += 2) {
        const cell = cells[i] ?? 0
        ofPair.signed(cell - last)
        ofPair.value(cells[i + 1] ?? 0)
        last = cell
      }
      for (const number of [2 * source + reporter, destination, active, lost, ofPair.length])
        writer.whole(number)
      writer.bytes(ofPair.view())
    }
    // Most views of a run have the names of the one before.
    const isSame = before?.length === names.length && names.every((name, i) => name === before[i])
    return {
      receivedAtMs,
      spanMs,
      names: isSame ? before : names,
      pairs: pairs.length,
      bytes: writer.copy(),
    }
  }

  #runOf(host: Host, token: string, layout: string): Run {
    let run = host.runs.get(token)
    if (run === undefined) {
      if (host.runs.size >= MAX_RUNS) this.#forgetOldest(host)
      run = { layout, meanings: undefined, views: [] }
      host.runs.set(token, run)
    } else if (run.layout !== layout) {
      this.#expire(host, run, Infinity)
      run.layout = layout
      run.meanings = undefined
    }
    return run
  }

  #forgetOldest(host: Host): void {
    const { runs } = host
    const ages = Array.from(runs, ([token, { views }]) => ({
      token,
      atMs: views.at(-1)?.receivedAtMs ?? -Infinity,
    }))
    const [oldest] = ages.toSorted((left, right) => left.atMs - right.atMs)
    if (oldest === undefined) return
    const run = runs.get(oldest.token)
    if (run !== undefined) this.#expire(host, run, Infinity)
    runs.delete(oldest.token)
  }

  #expire(host: Host, run: Run, nowMs: number): void {
    while (run.views[0] !== undefined && run.views[0].receivedAtMs < nowMs - LIVE_MS)
      this.#dropOldest(host, run)
  }

  #dropOldest(host: Host, run: Run): void {
    this.#count(host, -(run.views.shift()?.pairs ?? 0))
  }

  #count(host: Host, pairs: number): void {
    host.pairs += pairs
    this.#pairs += pairs
  }

  /** Leaves out the oldest view of each run of the host with the most pairs. */
  #shed(): void {
    let largest: Host | undefined
    for (const host of this.#hosts.values())
      if (largest === undefined || host.pairs > largest.pairs) largest = host
    if (largest === undefined) return
    for (const run of largest.runs.values()) {
      if (run.views.length === 0) continue
      this.#dropOldest(largest, run)
      this.dropped += 1
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
    for (const view of recent) addView(view, { name, meanings, isLast: view === last, pairs })
    const ofRunMs = recent.reduce((total, { spanMs }) => total + spanMs, 0)
    coveredMs = Math.max(coveredMs, ofRunMs)
  }
  for (const pair of pairs.values()) into.push(pair)
  return coveredMs
}

/** Adds the pairs of one view to those of its host. */
function addView(
  { names, bytes }: HeldView,
  {
    name,
    meanings,
    isLast,
    pairs,
  }: {
    readonly name: string
    readonly meanings: readonly CellMeaning[]
    readonly isLast: boolean
    readonly pairs: Map<string, LivePair>
  },
): void {
  const reader = new ByteReader(bytes)
  while (reader.at < bytes.length) {
    const caller = reader.whole()
    const reporter = caller % 2 === 0 ? 0 : 1
    const source = names[Math.floor(caller / 2)] ?? ''
    const destination = names[reader.whole()] ?? ''
    const key = `${reporter} ${source} ${destination}`
    let pair = pairs.get(key)
    if (pair === undefined)
      pairs.set(key, (pair = new LivePair(name, reporter, source, destination)))
    const active = reader.whole()
    if (isLast) pair.active += active
    pair.lost += reader.whole()
    const length = reader.whole()
    pair.parts.push({ meanings, bytes, start: reader.at, end: reader.at + length, isLast })
    reader.at += length
  }
}

function sum(parts: readonly Part[]): Figures {
  const figures = new FiguresBuilder()
  for (const { meanings, bytes, start, end, isLast } of parts) {
    const reader = new ByteReader(bytes, start)
    let cell = 0
    while (reader.at < end) {
      cell += reader.signed()
      const value = reader.value()
      const meaning = meanings[cell]
      if (meaning === undefined || (meaning.kind === 'gauge' && !isLast)) continue
      figures.add(meaning, value)
    }
  }
  return figures.finish()
}
