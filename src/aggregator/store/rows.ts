/**
 * Rows of the store: what one host counted in one step of time. Pure.
 *
 * ```
 *   row      segment …                          one for each run of the host that reported in this step
 *   segment  length, run, sequence, spanMs,
 *            n, workload …, length, cells,      resources; the host's own columns
 *            n, pair …
 *   pair     2 * source + reporter, destination, active, lost, length, cells
 *   cells    (cell - the one before, value) …
 * ```
 *
 * Services, runs and cells are numbers of the registry; a cell may occur twice. Rows are summed by joining them: counts
 * add up, and what is a present value (gauges, open connections, memory) is that of the last segment of a run.
 */
import { type ByteReader, ByteWriter } from './bytes.ts'
import { MAX_CELLS } from './cells.ts'

/** Resources of one service in one segment. */
export interface WorkloadSum {
  readonly service: number
  spanMs: number
  cpuMs: number | undefined
  memoryBytes: number | undefined
  tasks: number | undefined
  sockets: number | undefined
  /** Time in which some task waited, milliseconds. */
  cpuWaitMs: number | undefined
  memoryWaitMs: number | undefined
  ioWaitMs: number | undefined
}

const SUMMED = ['cpuMs', 'cpuWaitMs', 'memoryWaitMs', 'ioWaitMs'] as const
const PRESENT = ['memoryBytes', 'tasks', 'sockets'] as const
const WORKLOAD_VALUES = [...SUMMED, ...PRESENT] as const

/** A run's part of a row. The pairs are read by {@link Sums.addSegment}. */
export interface Segment {
  readonly run: number
  /** Of the last record in it. */
  readonly sequence: number
  readonly spanMs: number
  readonly workloads: readonly WorkloadSum[]
  readonly bytes: Uint8Array
  readonly hostStart: number
  readonly hostEnd: number
  readonly pairsStart: number
  readonly pairCount: number
  /** The end of the step, or anything that orders segments. */
  readonly atMs: number
}

/** Some cells in a row. */
interface Piece {
  readonly bytes: Uint8Array
  readonly start: number
  readonly end: number
  /** Whether present values count: the piece is of the last segment of its run. */
  readonly isLast: boolean
}

/** What is known of a pair. `caller`: 2 * source + reporter. */
export interface PairSum {
  readonly caller: number
  readonly destination: number
  active: number
  lost: number
  readonly pieces: Piece[]
}

/** Services that are asked for, by number; undefined is any. */
export interface PairChoice {
  readonly source: number | undefined
  readonly destination: number | undefined
}

/** Makes room in one number for two: services have numbers below 2^20. */
const PAIR_KEY = 2 ** 21

/** The segments of a row. */
export function* segmentsOf(reader: ByteReader, row: Uint8Array, atMs: number): Generator<Segment> {
  let start = 0
  while (start < row.length) {
    reader.moveTo(row, start)
    const length = reader.whole()
    const end = reader.at + length
    const run = reader.whole()
    const sequence = reader.whole()
    const spanMs = reader.whole()
    const workloads: WorkloadSum[] = []
    for (let count = reader.whole(); count > 0; count -= 1) workloads.push(readWorkload(reader))
    const hostLength = reader.whole()
    const hostStart = reader.at
    const hostEnd = hostStart + hostLength
    reader.at = hostEnd
    const pairCount = reader.whole()
    yield {
      run,
      sequence,
      spanMs,
      workloads,
      bytes: row,
      hostStart,
      hostEnd,
      pairsStart: reader.at,
      pairCount,
      atMs,
    }
    start = end
  }
}

/** Sums of segments. */
export class Sums {
  readonly pairs: Map<number, PairSum> = new Map()
  readonly host: Piece[] = []
  readonly workloads: Map<number, WorkloadSum> = new Map()
  spanMs = 0

  /** @param isLast whether present values of this segment count */
  addSegment(reader: ByteReader, segment: Segment, isLast: boolean, choice?: PairChoice): void {
    const { bytes, hostStart, hostEnd } = segment
    this.spanMs += segment.spanMs
    this.host.push({ bytes, start: hostStart, end: hostEnd, isLast })
    reader.moveTo(bytes, segment.pairsStart)
    for (let count = segment.pairCount; count > 0; count -= 1) {
      const caller = reader.whole()
      const destination = reader.whole()
      const active = reader.whole()
      const lost = reader.whole()
      const length = reader.whole()
      const start = reader.at
      const end = start + length
      reader.at = end
      if (choice !== undefined && !isChosen(choice, caller, destination)) continue
      const sum = this.#pair(caller, destination)
      if (isLast) sum.active += active
      sum.lost += lost
      if (length > 0) sum.pieces.push({ bytes, start, end, isLast })
    }
  }

  /** Replaces what was added by its sums, so that the rows can be freed. */
  compact(reader: ByteReader, cells: CellSums): void {
    const bytes = new ByteWriter()
    for (const { pieces } of this.pairs.values()) {
      if (pieces.length === 0) continue
      bytes.clear()
      cells.write(reader, pieces, bytes)
      pieces.length = 0
      pieces.push({ bytes: bytes.copy(), start: 0, end: bytes.length, isLast: true })
    }
  }

  addWorkload(more: WorkloadSum): void {
    const sum = this.workloads.get(more.service)
    if (sum === undefined) {
      this.workloads.set(more.service, { ...more })
      return
    }
    sum.spanMs += more.spanMs
    for (const name of SUMMED) {
      const value = more[name]
      if (value !== undefined) sum[name] = (sum[name] ?? 0) + value
    }
    for (const name of PRESENT) sum[name] = more[name] ?? sum[name]
  }

  #pair(caller: number, destination: number): PairSum {
    const key = caller * PAIR_KEY + destination
    let sum = this.pairs.get(key)
    if (sum === undefined) {
      sum = { caller, destination, active: 0, lost: 0, pieces: [] }
      this.pairs.set(key, sum)
    }
    return sum
  }
}

/** Adds up the cells of pieces, again and again in the same memory. */
export class CellSums {
  readonly #values = new Float64Array(MAX_CELLS)
  readonly #isUsed = new Uint8Array(MAX_CELLS)
  readonly #used = new Uint16Array(MAX_CELLS)
  readonly #isGauge: Uint8Array
  #count = 0

  /** @param isGauge 1 for each cell that is a present value; may change later */
  constructor(isGauge: Uint8Array) {
    this.#isGauge = isGauge
  }

  /** Writes the sums of the pieces as cells. */
  write(reader: ByteReader, pieces: readonly Piece[], into: ByteWriter): void {
    const [only] = pieces
    if (only === undefined) return
    if (pieces.length === 1 && only.isLast) {
      into.bytes(only.bytes.subarray(only.start, only.end))
      return
    }
    for (const piece of pieces) this.#add(reader, piece)
    let before = 0
    // In order, so that the differences are small and the buckets of a histogram ascend.
    for (const cell of this.#used.subarray(0, this.#count).toSorted()) {
      into.signed(cell - before)
      into.value(this.#values[cell] ?? 0)
      before = cell
      this.#isUsed[cell] = 0
      this.#values[cell] = 0
    }
    this.#count = 0
  }

  // The reader's work is repeated here for numbers of one and two bytes: most time of a large answer is spent here.
  #add(reader: ByteReader, { bytes, start, end, isLast }: Piece): void {
    const values = this.#values
    const isUsed = this.#isUsed
    let count = this.#count
    let cell = 0
    let at = start
    while (at < end) {
      let number = bytes[at++] ?? 0
      if (number > 127) {
        reader.moveTo(bytes, at - 1)
        number = reader.whole()
        at = reader.at
      }
      cell += (number & 1) === 0 ? number >>> 1 : -((number + 1) >>> 1)
      number = bytes[at++] ?? 0
      const second = number > 127 ? (bytes[at] ?? 0) : 0
      let value: number
      if (second > 127 || (number & 3) !== 0) {
        reader.moveTo(bytes, at - 1)
        value = reader.value()
        at = reader.at
      } else if (number > 127) {
        at += 1
        value = ((number & 127) | (second << 7)) >>> 2
      } else value = number >>> 2
      if (cell < 0 || cell >= MAX_CELLS || (!isLast && this.#isGauge[cell] === 1)) continue
      if (isUsed[cell] === 0) {
        isUsed[cell] = 1
        this.#used[count++] = cell
      }
      values[cell] = (values[cell] ?? 0) + value
    }
    this.#count = count
  }
}

/** Joins rows of the same host: one segment for each run, which is what both rows together say. */
export class RowJoiner {
  readonly #cells: CellSums
  readonly #reader: ByteReader
  readonly #body = new ByteWriter()
  readonly #cellBytes = new ByteWriter()
  readonly #row = new ByteWriter()

  constructor(cells: CellSums, reader: ByteReader) {
    this.#cells = cells
    this.#reader = reader
  }

  /** @param rows in order of time */
  join(rows: readonly Uint8Array[]): Uint8Array<ArrayBuffer> {
    const byRun = new Map<number, Segment[]>()
    for (const [index, row] of rows.entries())
      for (const segment of segmentsOf(this.#reader, row, index)) {
        const others = byRun.get(segment.run)
        if (others === undefined) byRun.set(segment.run, [segment])
        else others.push(segment)
      }
    this.#row.clear()
    for (const segments of byRun.values()) this.#writeSum(segments)
    return this.#row.copy()
  }

  #writeSum(segments: Segment[]): void {
    segments.sort((left, right) => left.sequence - right.sequence)
    const last = segments.at(-1)
    if (last === undefined) return
    const sums = new Sums()
    for (const segment of segments) {
      sums.addSegment(this.#reader, segment, segment === last)
      for (const workload of segment.workloads) sums.addWorkload(workload)
    }
    const body = this.#body
    body.clear()
    body.whole(last.run)
    body.whole(last.sequence)
    body.whole(sums.spanMs)
    body.whole(sums.workloads.size)
    for (const workload of sums.workloads.values()) writeWorkload(body, workload)
    this.#cellBytes.clear()
    this.#cells.write(this.#reader, sums.host, this.#cellBytes)
    body.whole(this.#cellBytes.length)
    body.bytes(this.#cellBytes.view())
    body.whole(sums.pairs.size)
    for (const pair of sums.pairs.values()) {
      this.#cellBytes.clear()
      this.#cells.write(this.#reader, pair.pieces, this.#cellBytes)
      writePair(body, pair, this.#cellBytes)
    }
    this.#row.whole(body.length)
    this.#row.bytes(body.view())
  }
}

/** Writes a pair with its cells. */
export function writePair(
  into: ByteWriter,
  { caller, destination, active, lost }: Omit<PairSum, 'pieces'>,
  cells: ByteWriter,
): void {
  into.whole(caller)
  into.whole(destination)
  into.whole(active)
  into.whole(lost)
  into.whole(cells.length)
  into.bytes(cells.view())
}

/** Writes resources. */
export function writeWorkload(into: ByteWriter, workload: WorkloadSum): void {
  let mask = 0
  for (const [bit, name] of WORKLOAD_VALUES.entries())
    if (workload[name] !== undefined) mask |= 1 << bit
  into.whole(workload.service)
  into.whole(workload.spanMs)
  into.whole(mask)
  for (const name of WORKLOAD_VALUES) {
    const value = workload[name]
    if (value !== undefined) into.value(value)
  }
}

function readWorkload(reader: ByteReader): WorkloadSum {
  const service = reader.whole()
  const spanMs = reader.whole()
  const mask = reader.whole()
  const workload: WorkloadSum = {
    service,
    spanMs,
    cpuMs: undefined,
    memoryBytes: undefined,
    tasks: undefined,
    sockets: undefined,
    cpuWaitMs: undefined,
    memoryWaitMs: undefined,
    ioWaitMs: undefined,
  }
  for (const [bit, name] of WORKLOAD_VALUES.entries())
    if ((mask & (1 << bit)) !== 0) workload[name] = reader.value()
  return workload
}

function isChosen(choice: PairChoice, caller: number, destination: number): boolean {
  return (
    (choice.source === undefined || choice.source === Math.floor(caller / 2)) &&
    (choice.destination === undefined || choice.destination === destination)
  )
}
