/**
 * Answers questions about the past.
 */
import { MeshError } from '../../lib/errors.ts'
import type { PairFilter, Span } from '../fleet-store.ts'
import { ByteReader, ByteWriter } from './bytes.ts'
import type { Database } from './database.ts'
import type { FactsLog } from './facts-log.ts'
import type { HostTable, StoredHost } from './host-table.ts'
import type { PastHost, PastWorkload } from './protocol.ts'
import type { Registry } from './registry.ts'
import {
  type CellSums,
  type PairChoice,
  type Segment,
  Sums,
  segmentsOf,
  writePair,
} from './rows.ts'
import {
  type Rows,
  rowId,
  rowsOfSpan,
  stepMs,
  stepOf,
  stepOfRow,
  type TierName,
  tierNames,
} from './steps.ts'
import type { Tiers } from './tiers.ts'

/** The parts of the store that are read. */
interface ReaderOptions {
  readonly database: Database
  readonly hosts: HostTable
  readonly registry: Registry
  readonly tiers: Tiers
  readonly facts: FactsLog
  readonly cells: CellSums
}

/** Rows that one answer may be made from: about a second of work. Meanwhile nothing is stored. */
const MAX_ROWS = 120_000

/** Rows that are held for one host at a time. */
const MAX_BYTES_OF_HOST = 96 * 1_024 * 1_024

/** Rows that are held for sums of several hosts. */
const MAX_HELD_BYTES = 32 * 1_024 * 1_024

/** Size of one answer; the asker needs about ten times this. */
const MAX_ANSWER_BYTES = 32 * 1_024 * 1_024

/** A run whose last row ended this much before the last row of its host is still there: it reports as often. */
const SAME_TIME_MS = 10_000

/** In place of the number of a host: hosts are numbered from 1. */
const ALL_HOSTS = 0

/** The limit of rows that is left for a question. */
interface Budget {
  rows: number
}

/** See the head of this file. */
export class Reader {
  readonly #options: ReaderOptions
  readonly #reader = new ByteReader(new Uint8Array())
  readonly #cellBytes = new ByteWriter()

  constructor(options: ReaderOptions) {
    this.#options = options
  }

  /** @throws MeshError HM_STORE_QUESTION_TOO_LARGE, and what SQLite throws; as do the others */
  pairs(span: Span, filter: PairFilter): Uint8Array<ArrayBuffer> {
    const into = new ByteWriter(65_536)
    const choice = this.#choiceOf(filter)
    if (choice === 'none') return into.copy()
    const budget = { rows: MAX_ROWS }
    const ofAll =
      filter.sumHosts === true ? new SumsOfHosts(this.#reader, this.#options.cells) : undefined
    for (const host of this.#hostsOf(filter, choice)) {
      const segments = this.#segments(host, this.#rowsOf(host, span), budget)
      if (ofAll === undefined) this.#writePairs(host.id, this.#sum(segments, choice), into)
      else this.#addTo(ofAll.sums(0), segments, choice)
      ofAll?.held(bytesOf(segments))
    }
    if (ofAll !== undefined) this.#writePairs(ALL_HOSTS, ofAll.sums(0), into)
    return into.copy()
  }

  /** See `history` of `Answers`. */
  history(span: Span, tier: TierName, filter: PairFilter): Uint8Array<ArrayBuffer> {
    const first = stepOf(tier, span.fromMs) + 1
    const last = stepOf(tier, span.toMs)
    const choice = this.#choiceOf(filter)
    const budget = { rows: MAX_ROWS }
    const written = new Map<number, ByteWriter>()
    const ofAll =
      filter.sumHosts === true ? new SumsOfHosts(this.#reader, this.#options.cells) : undefined
    if (choice !== 'none')
      for (const host of this.#hostsOf(filter, choice))
        for (const [step, segments] of this.#byStep(host, tier, { first, last }, budget)) {
          if (ofAll === undefined)
            this.#writePairs(host.id, this.#sum(segments, choice), writerOf(written, step))
          else this.#addTo(ofAll.sums(step), segments, choice)
          ofAll?.held(bytesOf(segments))
        }
    for (const [step, sums] of ofAll?.all() ?? [])
      this.#writePairs(ALL_HOSTS, sums, writerOf(written, step))
    const reporting = this.#reporting(tier, { first, last }, filter.host)
    const into = new ByteWriter(65_536)
    for (let step = first; step <= last; step += 1) {
      const pairs = written.get(step)
      const hosts = reporting.get(step) ?? 0
      if (hosts === 0 && pairs === undefined) continue
      into.whole(step + 1)
      into.whole(hosts)
      into.whole(pairs?.length ?? 0)
      if (pairs !== undefined) into.bytes(pairs.view())
      this.#checkSize(into)
    }
    return into.copy()
  }

  /** Hosts that had reported by this time. */
  hosts(atMs: number): PastHost[] {
    const found: PastHost[] = []
    for (const host of this.#options.hosts.all()) {
      if (host.firstAtMs > atMs) continue
      found.push({
        name: host.name,
        lastAtMs: host.lastAtMs <= atMs ? host.lastAtMs : this.#lastBefore(host, atMs),
        facts: this.#options.facts.at(host.id, atMs),
      })
    }
    return found
  }

  /** Cells of the host's own columns. */
  hostFigures(span: Span, name: string): Uint8Array<ArrayBuffer> {
    const into = new ByteWriter()
    const host = this.#options.hosts.find(name)
    if (host === undefined) return into.copy()
    const segments = this.#segments(host, this.#rowsOf(host, span), { rows: MAX_ROWS })
    const isLast = lastSegments(segments)
    const pieces = segments.map((segment) => ({
      bytes: segment.bytes,
      start: segment.hostStart,
      end: segment.hostEnd,
      isLast: isLast(segment),
    }))
    this.#options.cells.write(this.#reader, pieces, into)
    return into.copy()
  }

  workloads(span: Span, name: string | undefined): PastWorkload[] {
    const found: PastWorkload[] = []
    const budget = { rows: MAX_ROWS }
    for (const host of this.#options.hosts.all()) {
      if (name !== undefined && host.name !== name) continue
      const sums = new Sums()
      for (const segment of chiefSegments(this.#segments(host, this.#rowsOf(host, span), budget)))
        for (const workload of segment.workloads) sums.addWorkload(workload)
      for (const { service, ...use } of sums.workloads.values())
        found.push({
          host: host.name,
          service: this.#options.registry.textOf(service),
          ...use,
        })
    }
    return found
  }

  #rowsOf(host: StoredHost, span: Span): readonly Rows[] {
    return rowsOfSpan(span.fromMs, span.toMs, this.#options.tiers.reach(host))
  }

  /** The segments of these rows in order of time. */
  #segments(host: StoredHost, wanted: readonly Rows[], budget: Budget): Segment[] {
    const segments: Segment[] = []
    let bytes = 0
    for (const { tier, first, last } of wanted) {
      const rows = this.#options.database.rows(
        `SELECT id, row FROM ${tier} WHERE id BETWEEN ? AND ? ORDER BY id LIMIT ?`,
        rowId(host.id, first),
        rowId(host.id, last),
        budget.rows + 1,
      )
      budget.rows -= rows.length
      if (budget.rows < 0) throw tooLarge()
      for (const [id, row] of rows) {
        if (typeof id !== 'number' || !(row instanceof Uint8Array)) continue
        bytes += row.length
        const atMs = (stepOfRow(id) + 1) * stepMs[tier]
        for (const segment of segmentsOf(this.#reader, row, atMs)) segments.push(segment)
      }
      if (bytes > MAX_BYTES_OF_HOST) throw tooLarge()
    }
    return segments
  }

  /** The segments of a host by steps; steps that are not rolled up yet from finer rows. */
  #byStep(
    host: StoredHost,
    tier: TierName,
    { first, last }: { readonly first: number; readonly last: number },
    budget: Budget,
  ): Map<number, Segment[]> {
    const { minutesToMs, hoursToMs } = host
    const toMs = (last + 1) * stepMs[tier]
    const wanted: Rows[] = []
    let fromMs = first * stepMs[tier]
    const take = (from: TierName, untilMs: number): void => {
      const endMs = Math.min(toMs, untilMs)
      if (endMs <= fromMs) return
      wanted.push({ tier: from, first: fromMs / stepMs[from], last: endMs / stepMs[from] - 1 })
      fromMs = endMs
    }
    if (tier === 'hours') take('hours', hoursToMs)
    if (tier !== 'seconds') take('minutes', minutesToMs)
    take('seconds', Infinity)
    const bySteps = new Map<number, Segment[]>()
    for (const segment of this.#segments(host, wanted, budget)) {
      const step = stepOf(tier, segment.atMs)
      const others = bySteps.get(step)
      if (others === undefined) bySteps.set(step, [segment])
      else others.push(segment)
    }
    return bySteps
  }

  /** How many hosts have a row in these steps. */
  #reporting(
    tier: TierName,
    { first, last }: { readonly first: number; readonly last: number },
    name: string | undefined,
  ): Map<number, number> {
    const counts = new Map<number, number>()
    if (name !== undefined) {
      const host = this.#options.hosts.find(name)
      if (host === undefined) return counts
      for (const step of this.#byStep(host, tier, { first, last }, { rows: MAX_ROWS }).keys())
        counts.set(step, 1)
      return counts
    }
    // A step that is not rolled up has at least as many hosts as its fullest part.
    for (const from of tierNames.slice(0, tierNames.indexOf(tier) + 1)) {
      const scale = stepMs[tier] / stepMs[from]
      const rows = this.#options.database.rows(
        'SELECT number, hosts FROM step WHERE tier = ? AND number BETWEEN ? AND ?',
        tierNames.indexOf(from),
        first * scale,
        (last + 1) * scale - 1,
      )
      for (const [number, hosts] of rows) {
        const step = Math.floor(Number(number) / scale)
        counts.set(step, Math.max(counts.get(step) ?? 0, Number(hosts)))
      }
    }
    return counts
  }

  #sum(segments: readonly Segment[], choice: PairChoice | undefined): Sums {
    const sums = new Sums()
    this.#addTo(sums, segments, choice)
    return sums
  }

  /** @param segments all those of a host */
  #addTo(sums: Sums, segments: readonly Segment[], choice: PairChoice | undefined): void {
    const isLast = lastSegments(segments)
    for (const segment of segments) sums.addSegment(this.#reader, segment, isLast(segment), choice)
  }

  #writePairs(host: number, sums: Sums, into: ByteWriter): void {
    for (const pair of sums.pairs.values()) {
      this.#cellBytes.clear()
      this.#options.cells.write(this.#reader, pair.pieces, this.#cellBytes)
      if (this.#cellBytes.length === 0 && pair.active === 0 && pair.lost === 0) continue
      into.whole(host)
      writePair(into, pair, this.#cellBytes)
    }
    this.#checkSize(into)
  }

  #checkSize(into: ByteWriter): void {
    if (into.length > MAX_ANSWER_BYTES) throw tooLarge()
  }

  /** `none`: a service is asked for that no host has named. */
  #choiceOf({ source, destination }: PairFilter): PairChoice | 'none' | undefined {
    if (source === undefined && destination === undefined) return undefined
    const { registry } = this.#options
    const choice = {
      source: source === undefined ? undefined : registry.findName(source),
      destination: destination === undefined ? undefined : registry.findName(destination),
    }
    const isUnknown =
      (source !== undefined && choice.source === undefined) ||
      (destination !== undefined && choice.destination === undefined)
    return isUnknown ? 'none' : choice
  }

  *#hostsOf({ host: name }: PairFilter, choice: PairChoice | undefined): Generator<StoredHost> {
    const { hosts, registry } = this.#options
    for (const host of hosts.all()) {
      if (name !== undefined && host.name !== name) continue
      if (choice !== undefined && !registry.mayHave(host.id, [choice.source, choice.destination]))
        continue
      yield host
    }
  }

  /** The end of the last step before this time in which the host has reported; its first report if there is none. */
  #lastBefore(host: StoredHost, atMs: number): number {
    for (const tier of tierNames) {
      const id = this.#options.database.number(
        `SELECT max(id) FROM ${tier} WHERE id BETWEEN ? AND ?`,
        rowId(host.id, 0),
        rowId(host.id, stepOf(tier, atMs)),
      )
      if (id !== undefined) return Math.min(atMs, (stepOfRow(id) + 1) * stepMs[tier])
    }
    return host.firstAtMs
  }
}

/** Sums of many hosts, by step, without holding all of their rows. */
class SumsOfHosts {
  readonly #reader: ByteReader
  readonly #cells: CellSums
  readonly #bySteps = new Map<number, Sums>()
  #heldBytes = 0

  constructor(reader: ByteReader, cells: CellSums) {
    this.#reader = reader
    this.#cells = cells
  }

  sums(step: number): Sums {
    let sums = this.#bySteps.get(step)
    if (sums === undefined) this.#bySteps.set(step, (sums = new Sums()))
    return sums
  }

  all(): Iterable<[number, Sums]> {
    return this.#bySteps
  }

  /** Says how much more is held by the sums. */
  held(bytes: number): void {
    this.#heldBytes += bytes
    if (this.#heldBytes < MAX_HELD_BYTES) return
    this.#heldBytes = 0
    for (const sums of this.#bySteps.values()) sums.compact(this.#reader, this.#cells)
  }
}

function bytesOf(segments: readonly Segment[]): number {
  return segments.reduce((sum, { bytes }) => sum + bytes.length, 0)
}

function writerOf(writers: Map<number, ByteWriter>, step: number): ByteWriter {
  let writer = writers.get(step)
  if (writer === undefined) writers.set(step, (writer = new ByteWriter(1_024)))
  return writer
}

/** Whether present values of a segment count: the last one of a run that is still there at the end. */
function lastSegments(segments: readonly Segment[]): (segment: Segment) => boolean {
  const ofRun = new Map<number, Segment>()
  let endMs = 0
  for (const segment of segments) {
    const other = ofRun.get(segment.run)
    if (other === undefined || isLater(segment, other)) ofRun.set(segment.run, segment)
    endMs = Math.max(endMs, segment.atMs)
  }
  return (segment) => segment.atMs >= endMs - SAME_TIME_MS && ofRun.get(segment.run) === segment
}

function isLater(left: Segment, right: Segment): boolean {
  return left.atMs === right.atMs ? left.sequence >= right.sequence : left.atMs > right.atMs
}

/**
 * One segment for each step: two processes of a daemon measure the same control groups, and of these the one that
 * measured for longer is taken, the newer if both did.
 */
function chiefSegments(segments: readonly Segment[]): Iterable<Segment> {
  const chiefs = new Map<number, Segment>()
  for (const segment of segments) {
    const other = chiefs.get(segment.atMs)
    if (
      other === undefined ||
      segment.spanMs > other.spanMs ||
      (segment.spanMs === other.spanMs && segment.run > other.run)
    )
      chiefs.set(segment.atMs, segment)
  }
  return chiefs.values()
}

function tooLarge(): MeshError {
  return new MeshError(
    'HM_STORE_QUESTION_TOO_LARGE',
    'Cannot answer: the figures that are asked for are too many',
    { hint: 'Ask for a shorter span, a coarser step, or one service or host' },
  )
}
