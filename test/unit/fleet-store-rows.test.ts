/** Numbers, rows and spans of the aggregator's store, without a file. */
import assert from 'node:assert/strict'
import test from 'node:test'
import * as fc from 'fast-check'
import { ByteReader, ByteWriter, MAX_VALUE } from '../../src/aggregator/store/bytes.ts'
import {
  CellSums,
  RowJoiner,
  Sums,
  segmentsOf,
  writePair,
} from '../../src/aggregator/store/rows.ts'
import { type Reach, rowsOfSpan, stepMs, stepOf } from '../../src/aggregator/store/steps.ts'

test('whole numbers and values come back as they were written', () => {
  const whole = fc.integer({ min: 0, max: Number.MAX_SAFE_INTEGER })
  const value = fc.oneof(
    fc.integer({ min: -MAX_VALUE, max: MAX_VALUE }),
    fc.integer({ min: -1e9, max: 1e9 }).map((micros) => micros / 1e6),
  )
  fc.assert(
    fc.property(fc.array(fc.tuple(whole, value, fc.integer())), (numbers) => {
      const writer = new ByteWriter(1)
      for (const [number, any, signed] of numbers) {
        writer.whole(number)
        writer.value(any)
        writer.signed(signed)
      }
      const reader = new ByteReader(writer.copy())
      for (const [number, any, signed] of numbers) {
        assert.equal(reader.whole(), number)
        assert.equal(reader.value(), any)
        assert.equal(reader.signed(), signed)
      }
    }),
  )
})

test('a value that is too large becomes the largest', () => {
  const writer = new ByteWriter()
  writer.value(1e300)
  writer.value(2 ** 45 + 0.5)
  const reader = new ByteReader(writer.copy())
  assert.equal(reader.value(), MAX_VALUE)
  assert.equal(reader.value(), 2 ** 45 + 1)
})

test('any bytes can be read as rows without an error or an endless loop', () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 60 }), (bytes) => {
      const reader = new ByteReader(bytes)
      let count = 0
      while (reader.at < bytes.length && count < 100) {
        reader.whole()
        reader.value()
        count += 1
      }
      assert.ok(count < 100)
    }),
  )
})

const GAUGE = 7

/** Cells, and which of two processes counted them. */
const cellsOfRow = fc.record({
  run: fc.integer({ min: 1, max: 2 }),
  cells: fc.array(fc.tuple(fc.integer({ min: 0, max: 9 }), fc.integer({ min: 1, max: 70_000 }))),
  active: fc.integer({ min: 0, max: 300 }),
})

test('rows may be joined in any grouping: the sums are the same, present values are those of the last', () => {
  const isGauge = new Uint8Array(8_192)
  isGauge[GAUGE] = 1
  const cellSums = new CellSums(isGauge)
  const reader = new ByteReader(new Uint8Array())
  const joiner = new RowJoiner(cellSums, reader)
  fc.assert(
    fc.property(fc.array(cellsOfRow, { minLength: 1, maxLength: 8 }), fc.nat(7), (records, cut) => {
      const rows = records.map((record, i) => rowOf({ ...record, sequence: i + 1 }))
      const left = rows.slice(0, cut)
      const grouped = [...(left.length > 0 ? [joiner.join(left)] : []), ...rows.slice(cut)]
      const sums = new Sums()
      const last = new Map<number, number>()
      for (const [i, { run }] of records.entries()) last.set(run, i + 1)
      for (const segment of segmentsOf(reader, joiner.join(grouped), 0))
        sums.addSegment(reader, segment, true)
      const expected = new Map<number, number>()
      let active = 0
      for (const [i, record] of records.entries()) {
        const isLast = last.get(record.run) === i + 1
        if (isLast) active += record.active
        for (const [cell, value] of record.cells)
          if (cell !== GAUGE || isLast) expected.set(cell, (expected.get(cell) ?? 0) + value)
      }
      const [pair] = sums.pairs.values()
      assert.ok(pair !== undefined)
      assert.equal(pair.active, active)
      assert.equal(sums.spanMs, records.length * 10_000)
      const into = new ByteWriter()
      cellSums.write(reader, pair.pieces, into)
      assert.deepEqual(readCells(into.copy()), expected)
    }),
  )
})

interface TestRecord {
  readonly run: number
  readonly sequence: number
  readonly cells: readonly (readonly [number, number])[]
  readonly active: number
}

function rowOf({ run, sequence, cells, active }: TestRecord): Uint8Array {
  const bytes = new ByteWriter()
  let before = 0
  for (const [cell, value] of cells) {
    bytes.signed(cell - before)
    bytes.value(value)
    before = cell
  }
  const body = new ByteWriter()
  // Run, sequence, span, no workloads, no cells of the host, one pair.
  for (const number of [run, sequence, 10_000, 0, 0, 1]) body.whole(number)
  writePair(body, { caller: 2, destination: 5, active, lost: 0 }, bytes)
  const row = new ByteWriter()
  row.whole(body.length)
  row.bytes(body.view())
  return row.copy()
}

function readCells(bytes: Uint8Array): Map<number, number> {
  const reader = new ByteReader(bytes)
  const cells = new Map<number, number>()
  let cell = 0
  while (reader.at < bytes.length) {
    cell += reader.signed()
    cells.set(cell, (cells.get(cell) ?? 0) + reader.value())
  }
  return cells
}

test('the end of a step belongs to it', () => {
  assert.equal(stepOf('seconds', 10_000), 0)
  assert.equal(stepOf('seconds', 10_001), 1)
  assert.equal(stepOf('minutes', 60_000), 0)
})

const HOUR_MS = 3_600_000

/** Marks as the tiers make them. */
const reach: fc.Arbitrary<Reach> = fc
  .record({
    hours: fc.nat(5),
    minutes: fc.nat(300),
    keptHours: fc.nat(3),
    keptMinutes: fc.nat(200),
  })
  .map(({ hours, minutes, keptHours, keptMinutes }) => {
    const hoursToMs = hours * HOUR_MS
    const minutesToMs = hoursToMs + minutes * 60_000
    const minutesFromMs = Math.min(keptHours * HOUR_MS, hoursToMs)
    return {
      hoursToMs,
      minutesToMs,
      keptFromMs: {
        hours: 0,
        minutes: minutesFromMs,
        seconds: Math.min(minutesFromMs + keptMinutes * 60_000, minutesToMs),
      },
    }
  })

test('a span is covered without gaps or overlaps, only by rows that exist', () => {
  fc.assert(
    fc.property(reach, fc.nat(10 * HOUR_MS), fc.nat(10 * HOUR_MS), (marks, fromMs, lengthMs) => {
      const toMs = fromMs + lengthMs
      const rows = rowsOfSpan(fromMs, toMs, marks)
      let at: number | undefined
      for (const { tier, first, last } of rows) {
        assert.ok(last >= first)
        const startMs = first * stepMs[tier]
        assert.equal(startMs, at ?? startMs)
        at = (last + 1) * stepMs[tier]
        assert.ok(startMs >= marks.keptFromMs[tier], `${tier} of ${startMs} are gone`)
        if (tier === 'minutes') assert.ok(at <= marks.minutesToMs)
        if (tier === 'hours') assert.ok(at <= marks.hoursToMs)
      }
      if (at !== undefined) assert.ok(at >= toMs)
    }),
    { numRuns: 5_000 },
  )
})
