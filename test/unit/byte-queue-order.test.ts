/**
 * ByteQueue: first in, first out, in little memory.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import * as fc from 'fast-check'
import { BLOCK_BYTES, ByteQueue } from '../../src/dataplane/io/byte-queue.ts'

/** The pieces that the queue is made of; their number is what its memory and time depend on. */
function piecesOf(queue: ByteQueue): number {
  return (Reflect.get(queue, 'pieces') as unknown[]).length
}

function counting(from: number, length: number): Buffer {
  return Buffer.from(Array.from({ length }, (_, i) => (from + i) & 0xff))
}

/** Takes the front piece out and keeps its memory. */
function takeFront(queue: ByteQueue): Uint8Array | undefined {
  return queue.takeFront()?.bytes
}

test('any mix of pushes and both ways of taking out keeps every byte in order', () => {
  const step = fc.oneof(
    fc.record({ do: fc.constant('push' as const), bytes: fc.nat(10_000) }),
    fc.record({
      do: fc.constant('push' as const),
      bytes: fc.integer({ min: 60_000, max: 140_000 }),
    }),
    fc.record({ do: fc.constant('push' as const), bytes: fc.integer({ min: 0, max: 3 }) }),
    fc.record({ do: fc.constant('move' as const), bytes: fc.nat(100_000) }),
    fc.record({ do: fc.constant('drop' as const), bytes: fc.constant(0) }),
  )
  fc.assert(
    fc.property(fc.array(step, { maxLength: 60 }), (steps) => {
      const queue = new ByteQueue()
      let pushed = 0
      let taken = 0
      const target = Buffer.alloc(100_010)
      const check = (bytes: Uint8Array): void => {
        for (let i = 0; i < bytes.length; i += 1)
          if (bytes[i] !== ((taken + i) & 0xff)) assert.fail(`byte ${taken + i} is out of order`)
        taken += bytes.length
      }
      for (const { do: action, bytes } of steps) {
        if (action === 'push') {
          const chunk = counting(pushed, bytes)
          queue.push(chunk)
          // The giver reuses its memory at once.
          chunk.fill(0xee)
          pushed += bytes
        } else if (action === 'move') {
          const length = queue.moveInto(target, 7, bytes)
          assert.ok(length <= bytes && length <= BLOCK_BYTES)
          assert.ok(length > 0 || bytes === 0 || queue.length === 0)
          check(target.subarray(7, 7 + length))
        } else {
          const piece = takeFront(queue)
          assert.equal(piece === undefined, pushed === taken)
          if (piece !== undefined) check(piece)
        }
        assert.equal(queue.length, pushed - taken)
      }
      for (let rest = takeFront(queue); rest !== undefined; rest = takeFront(queue)) check(rest)
      assert.equal(taken, pushed)
    }),
    { seed: 9, numRuns: 300 },
  )
})

test('memory that was kept is never written to again', () => {
  const queue = new ByteQueue()
  const kept: { bytes: Uint8Array; copy: Buffer }[] = []
  for (let i = 0; i < 400; i += 1) {
    queue.push(counting(i, (i * 7_919) % 50_000))
    const bytes = i % 3 === 0 ? takeFront(queue) : undefined
    if (bytes !== undefined) kept.push({ bytes, copy: Buffer.from(bytes) })
  }
  queue.clear()
  const other = new ByteQueue()
  for (let i = 0; i < 100; i += 1) other.push(Buffer.alloc(60_000, 0xaa))
  for (const { bytes, copy } of kept) assert.ok(copy.equals(bytes))
})

test('a million single bytes become a few blocks, not a million pieces', () => {
  const queue = new ByteQueue()
  for (let i = 0; i < 1_000_000; i += 1) queue.push(Uint8Array.of(i & 0xff))
  assert.equal(queue.length, 1_000_000)
  assert.ok(piecesOf(queue) <= 20, `${piecesOf(queue)} pieces`)
  const target = Buffer.alloc(100)
  let at = 0
  while (queue.length > 0) {
    const length = queue.moveInto(target, 0, 100)
    for (let i = 0; i < length; i += 1)
      if (target[i] !== ((at + i) & 0xff)) assert.fail(`byte ${at + i}`)
    at += length
  }
  assert.equal(at, 1_000_000)
})

test('a queue of a few bytes holds a few bytes', () => {
  const queue = new ByteQueue()
  queue.push(Buffer.alloc(10))
  const [piece] = Reflect.get(queue, 'pieces') as { memory: Uint8Array }[]
  assert.equal(piece!.memory.length, 10)
})

test('blocks that nobody has kept are used again', () => {
  const queue = new ByteQueue()
  queue.push(Buffer.alloc(BLOCK_BYTES, 1))
  const taken = queue.takeFront()!
  const memory = taken.bytes.buffer
  taken.release()
  queue.push(Buffer.alloc(BLOCK_BYTES, 2))
  assert.equal(queue.takeFront()!.bytes.buffer, memory)
})

test('clear empties it, and it can be used again', () => {
  const queue = new ByteQueue()
  queue.push(Buffer.alloc(100_000, 1))
  queue.clear()
  assert.equal(queue.length, 0)
  assert.equal(takeFront(queue), undefined)
  assert.equal(queue.moveInto(Buffer.alloc(10), 0, 10), 0)
  queue.push(Buffer.from('again'))
  assert.equal(Buffer.from(takeFront(queue)!).toString(), 'again')
})
