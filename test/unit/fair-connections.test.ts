/**
 * Nobody keeps others out of a listener by holding its connections: whoever has most gives one up.
 */
import assert from 'node:assert/strict'
import { EventEmitter } from 'node:events'
import { test } from 'node:test'
import * as fc from 'fast-check'
import { FairConnections } from '../../src/lib/fair-connections.ts'

class Connection extends EventEmitter {
  readonly remoteAddress: string
  isOpen = true

  constructor(remoteAddress: string) {
    super()
    this.remoteAddress = remoteAddress
  }

  destroy(): void {
    this.isOpen = false
    // As a socket does it: the event comes later than the call.
    queueMicrotask(() => this.emit('close'))
  }
}

test('a caller with many idle connections loses the oldest of them, the others none', () => {
  const fair = new FairConnections<Connection>(4)
  const greedy = ['a', 'a', 'a'].map((source) => new Connection(source))
  const modest = ['b', 'c', 'd'].map((source) => new Connection(source))
  for (const connection of [...greedy, ...modest]) fair.add(connection)
  assert.deepEqual(
    greedy.map(({ isOpen }) => isOpen),
    [false, false, true],
  )
  assert.ok(modest.every(({ isOpen }) => isOpen))
})

test('among equals the one that did nothing for longest goes', () => {
  const fair = new FairConnections<Connection>(3)
  const [first, second, third] = ['a', 'b', 'c'].map((source) => new Connection(source))
  for (const connection of [first, second, third])
    if (connection !== undefined) fair.add(connection)
  if (first !== undefined) fair.used(first)
  fair.add(new Connection('d'))
  assert.deepEqual([first?.isOpen, second?.isOpen, third?.isOpen], [true, false, true])
})

test('whatever comes and goes, the number is kept and a caller with one connection loses it only to callers with one', async () => {
  const step = fc.record({ source: fc.constantFrom('a', 'b', 'c', 'd', 'e'), closes: fc.boolean() })
  await fc.assert(
    fc.asyncProperty(fc.array(step, { maxLength: 60 }), async (steps) => {
      const fair = new FairConnections<Connection>(5)
      const all: Connection[] = []
      const open = (): Connection[] => all.filter(({ isOpen }) => isOpen)
      for (const { source, closes } of steps) {
        const before = Map.groupBy(open(), ({ remoteAddress }) => remoteAddress)
        if (closes) before.get(source)?.[0]?.destroy()
        else {
          const added = new Connection(source)
          all.push(added)
          fair.add(added)
          const after = open()
          assert.ok(after.length <= 5)
          const mostBefore = Math.max(0, ...[...before.values()].map(({ length }) => length))
          for (const [other, [lone, ...more]] of before)
            if (other !== source && more.length === 0 && lone?.isOpen === false)
              assert.ok(mostBefore <= 1, 'somebody else had more')
        }
        await Promise.resolve()
      }
    }),
  )
})
