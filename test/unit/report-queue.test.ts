/** The queue of undelivered records: order, bounds, and that nothing is lost or doubled. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import * as fc from 'fast-check'
import { type KeptRecord, RecordQueue } from '../../src/daemon/reports/record-queue.ts'
import type { ReportRecord } from '../../src/model/report.ts'

const RUN = { run: 'r', layout: 'l', columns: { pair: [], host: [] } }

function record(sequence: number, count: number): KeptRecord {
  return {
    endMs: sequence * 10_000,
    record: {
      sequence,
      spanMs: 10_000,
      merged: 1,
      names: ['web', 'db'],
      pairs: [[0, 0, 1, 0, 0, count === 0 ? [] : [0, count]]],
      host: [],
      workloads: [{ service: 'web', cpuMs: count, memoryBytes: sequence }],
    },
  }
}

function countIn(records: readonly Pick<ReportRecord, 'pairs'>[]): number {
  return records
    .flatMap(({ pairs }) => pairs)
    .reduce((sum, [, , , , , cells]) => sum + (cells[1] ?? 0), 0)
}

test('records are sent oldest first, with their age, until they are accepted', () => {
  const queue = new RecordQueue(RUN, { records: 10, weight: 1e9, batch: 2 })
  for (const sequence of [1, 2, 3]) queue.add(record(sequence, 1))
  const sent = queue.next(32_000)
  assert.deepEqual(
    sent.map(({ sequence, ageMs }) => [sequence, ageMs]),
    [
      [1, 22_000],
      [2, 12_000],
    ],
  )
  queue.accepted(1)
  assert.deepEqual(
    queue.next(32_000).map(({ sequence }) => sequence),
    [2, 3],
  )
  queue.accepted(3)
  assert.equal(queue.length, 0)
})

test('a clock that went back gives an age of zero', () => {
  const queue = new RecordQueue(RUN, { records: 10, weight: 1e9, batch: 2 })
  queue.add(record(5, 1))
  assert.equal(queue.next(0)[0]?.ageMs, 0)
})

test('beyond the limit records that were never sent are merged, the oldest first, and their use of CPU is added', () => {
  const queue = new RecordQueue(RUN, { records: 6, weight: 1e9, batch: 1 })
  queue.add(record(1, 1))
  queue.next(0)
  for (let sequence = 2; sequence <= 7; sequence += 1) queue.add(record(sequence, 1))
  const [sent, merged] = queue.all
  assert.equal(sent?.record.merged, 1, 'what was sent stays as it was')
  assert.equal(merged?.record.merged, 2)
  assert.equal(merged?.record.sequence, 3)
  assert.equal(merged?.record.spanMs, 20_000)
  assert.deepEqual(merged?.record.workloads, [{ service: 'web', cpuMs: 2, memoryBytes: 3 }])
})

test('with an aggregator that stores each record once, nothing is lost and nothing doubled', () => {
  const step = fc.oneof(
    fc.record({ kind: fc.constant('count' as const), count: fc.nat(5) }),
    // Stored, and the answer arrives or is lost; or not even stored.
    fc.record({
      kind: fc.constant('send' as const),
      most: fc.integer({ min: 1, max: 3 }),
      end: fc.constantFrom('accepted', 'answerLost', 'notStored'),
    }),
  )
  fc.assert(
    fc.property(fc.array(step, { maxLength: 80 }), (steps) => {
      const queue = new RecordQueue(RUN, { records: 5, weight: 1e9, batch: 3 })
      let sequence = 0
      let counted = 0
      let last = 0
      let stored = 0
      let lost = 0
      const send = (most: number, end: string): void => {
        const records = queue.next(0, most)
        if (end === 'notStored') return
        for (const one of records) {
          if (one.sequence <= last) continue
          lost += one.sequence - last - one.merged
          last = one.sequence
          stored += countIn([one])
        }
        if (end === 'accepted') queue.accepted(last)
      }
      for (const one of steps)
        if (one.kind === 'count') {
          sequence += 1
          counted += one.count
          queue.add(record(sequence, one.count))
          assert.ok(queue.length <= 6)
        } else send(one.most, one.end)
      for (let i = 0; i < 100 && queue.length > 0; i += 1) send(3, 'accepted')
      assert.equal(stored, counted)
      assert.equal(lost, 0)
    }),
  )
})

/** A record of `pairs` busy pairs, whose names begin with `prefix`. */
function busy(sequence: number, pairs: number, prefix = 'service'): KeptRecord {
  const names = Array.from({ length: pairs }, (_, i) => `${prefix}-${i}`)
  return {
    endMs: sequence * 10_000,
    record: {
      ...record(sequence, 1).record,
      names,
      pairs: names.map((_, i) => [0, i, i, 0, 0, [0, 1, 1, 1]]),
    },
  }
}

test('the size of all records is bounded, and what is merged for it is not lost', () => {
  const queue = new RecordQueue(RUN, { records: 360, weight: 10_000, batch: 1 })
  for (let sequence = 1; sequence <= 300; sequence += 1) {
    assert.equal(queue.add(busy(sequence, 100)), 0)
    assert.ok(queue.weight <= 10_000, `${queue.weight}`)
  }
  assert.equal(queue.spans, 300)
  assert.equal(
    countIn(queue.next(0, 1_000)),
    300 * 100,
    'every connection of every record is still there',
  )
})

test('records that would be too long for a report are not merged; what has no room is counted', () => {
  const queue = new RecordQueue(RUN, { records: 8, weight: 1e9, batch: 1 })
  let givenUp = 0
  for (let sequence = 1; sequence <= 20; sequence += 1)
    givenUp += queue.add(busy(sequence, 4_000, `s${sequence}`))
  assert.equal(queue.length, 8)
  assert.equal(queue.spans + givenUp, 20)
  for (const { record: kept } of queue.all) assert.ok(kept.pairs.length <= 4_200)
})

test('an aggregator can have no record forgotten that was not sent', () => {
  const queue = new RecordQueue(RUN, { records: 10, weight: 1e9, batch: 2 })
  for (const sequence of [1, 2, 3, 4]) queue.add(record(sequence, 1))
  queue.next(0)
  assert.equal(queue.accepted(Number.MAX_SAFE_INTEGER), 2)
  assert.deepEqual(
    queue.all.map(({ record: { sequence } }) => sequence),
    [3, 4],
  )
  assert.equal(queue.accepted(Number.MAX_SAFE_INTEGER), 0)
  assert.equal(queue.drop(1), 0)
  assert.equal(queue.length, 2)
})
