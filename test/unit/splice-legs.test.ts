/**
 * Two streams made one, with streams that only remember what was asked of them.
 */
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { FULL, KEPT } from '../../src/dataplane/io/byte-stream.ts'
import type { Connection, Open } from '../../src/dataplane/proxy/connection.ts'
import { type SpliceEnding, splice } from '../../src/dataplane/proxy/splice.ts'
import { readTraffic, TrafficCounters, trafficLayout } from '../../src/telemetry/counters.ts'
import { looseConnection, openStage } from '../integration/tunnel-fixtures.ts'
import { FakeStream } from './fake-stream.ts'

interface Spliced {
  readonly caller: FakeStream
  readonly called: FakeStream
  readonly connection: Connection
  readonly stage: Open
  readonly endings: SpliceEnding[]
  readonly memory: SharedArrayBuffer
}

function join(
  options: { copies?: boolean; ended?: boolean; before?: (parts: Spliced) => void } = {},
): Spliced {
  const memory = TrafficCounters.createMemory()
  const counters = new TrafficCounters(memory, () => undefined)
  const stage = openStage({ row: counters.row('source', 'web', 'db') })
  const connection = looseConnection(stage)
  const parts: Spliced = {
    caller: new FakeStream(),
    called: new FakeStream(),
    connection,
    stage,
    endings: [],
    memory,
  }
  options.before?.(parts)
  splice(
    {
      connection,
      stage,
      counters,
      downstream: parts.caller,
      upstream: parts.called,
      copies: options.copies ?? false,
      onEnding: (ending) => parts.endings.push(ending),
    },
    options.ended,
  )
  return parts
}

const bytes = (text: string): Buffer => Buffer.from(text)

test('both sides are started, and bytes go through untouched and counted', () => {
  const { caller, called, connection, memory } = join()
  assert.deepEqual([caller.look(), called.look()], [['resume'], ['resume']])
  const request = bytes('request')
  caller.receiver.onBytes(request)
  called.receiver.onBytes(bytes('the answer'))
  assert.equal(called.given[0], request, 'the same memory: no copy')
  assert.deepEqual([caller.look(), called.look()], [['write the answer'], ['write request']])
  assert.deepEqual([connection.sentBytes, connection.receivedBytes], [7, 10])
  const rows = readTraffic(memory, [
    undefined,
    undefined,
    { reporter: 'source', source: 'web', destination: 'db' },
  ])
  assert.ok(rows[0] !== undefined)
  const { sentBytes, receivedBytes } = trafficLayout.read(rows[0].cells)
  assert.deepEqual([sentBytes, receivedBytes], [7, 10])
})

/** How often the splice has counted a first byte. */
function answersIn(memory: SharedArrayBuffer): number {
  const labels = { reporter: 'source', source: 'web', destination: 'db' } as const
  const [row] = readTraffic(memory, [undefined, undefined, labels])
  return row === undefined ? 0 : trafficLayout.total(row.cells, 'firstByte')
}

test('the first byte of an answer is counted once, with early bytes of the caller or without', () => {
  for (const isEarly of [false, true]) {
    const { caller, called, connection, memory } = join({
      before: (parts) => {
        if (!isEarly) return
        parts.connection.sentBytes = 5
        parts.connection.firstSentMs = performance.now()
      },
    })
    const { firstSentMs } = connection
    caller.receiver.onBytes(bytes('request'))
    if (isEarly) assert.equal(connection.firstSentMs, firstSentMs, 'those came first')
    assert.equal(answersIn(memory), 0)
    called.receiver.onBytes(bytes('the'))
    called.receiver.onBytes(bytes('answer'))
    caller.receiver.onBytes(bytes('another request'))
    called.receiver.onBytes(bytes('its answer'))
    assert.equal(answersIn(memory), 1)
  }
})

test('where the called side speaks first no answer is counted, not even a later one', () => {
  const { caller, called, memory } = join()
  called.receiver.onBytes(bytes('220 ready'))
  caller.receiver.onBytes(bytes('request'))
  called.receiver.onBytes(bytes('the answer'))
  assert.equal(answersIn(memory), 0)
})

test('that memory is still in use is passed on to whoever read it', () => {
  const { caller, called } = join()
  called.answer = KEPT
  assert.equal(caller.receiver.onBytes(bytes('x')) & KEPT, KEPT)
  caller.answer = KEPT
  assert.equal(called.receiver.onBytes(bytes('x')) & KEPT, KEPT)
})

test('where downstream memory must not be kept, upstream gets copies', () => {
  const { caller, called } = join({ copies: true })
  called.answer = KEPT
  const shared = bytes('shared')
  assert.equal(caller.receiver.onBytes(shared), 0)
  shared.fill('!')
  assert.equal(Buffer.from(called.given[0]!).toString(), 'shared')
})

for (const copies of [false, true])
  test(`a full side stops the other until it has room${copies ? ', with copies' : ''}`, () => {
    const { caller, called } = join({ copies })
    caller.look()
    called.look()
    called.answer = FULL
    caller.receiver.onBytes(bytes('a'))
    assert.deepEqual(caller.look(), ['pause'])
    called.receiver.onWritable()
    assert.deepEqual(caller.look(), ['resume'])
    caller.answer = FULL | KEPT
    called.receiver.onBytes(bytes('b'))
    assert.ok(called.look().includes('pause'))
    caller.receiver.onWritable()
    assert.deepEqual(called.look(), ['resume'])
  })

describe('an end', () => {
  for (const first of ['caller', 'called'] as const)
    test(`of the ${first} is passed on; the connection is done when both sides are closed`, () => {
      const parts = join()
      const second = first === 'caller' ? 'called' : 'caller'
      parts.caller.look()
      parts.called.look()
      parts[first].receiver.onEnd()
      assert.deepEqual(parts[second].look(), ['end'])
      assert.deepEqual(parts[first].look(), [])
      assert.equal(parts.stage.state, 'half-closed')
      parts[second].receiver.onBytes(bytes('after'))
      assert.deepEqual(parts[first].look(), ['write after'])
      parts[second].receiver.onEnd()
      assert.deepEqual(parts[first].look(), ['end'])
      assert.deepEqual(parts.endings, [], 'bytes may still be on their way')
      parts[first].receiver.onClosed()
      assert.deepEqual(parts.endings, [])
      parts[second].receiver.onClosed()
      assert.deepEqual(parts.endings, [{ kind: 'done' }])
    })

  test('of the caller before the splice counts', () => {
    const { caller, called, stage, endings } = join({ ended: true })
    assert.equal(stage.state, 'half-closed')
    called.receiver.onEnd()
    assert.ok(caller.look().includes('end'))
    called.receiver.onClosed()
    caller.receiver.onClosed()
    assert.deepEqual(endings, [{ kind: 'done' }])
  })

  test('that could not be flushed is a reset after all', () => {
    const { caller, called, endings } = join()
    caller.receiver.onEnd()
    called.receiver.onEnd()
    called.receiver.onClosed()
    const reason = new Error('ECONNRESET')
    caller.receiver.onReset(reason)
    assert.deepEqual(endings, [{ kind: 'broken', side: 'downstream', reason }])
  })
})

describe('a reset', () => {
  for (const [from, to, side] of [
    ['caller', 'called', 'downstream'],
    ['called', 'caller', 'upstream'],
  ] as const) {
    test(`of the ${from} resets the other side and ends the connection once`, () => {
      const parts = join()
      parts[to].look()
      const reason = new Error('gone')
      parts[from].receiver.onReset(reason)
      assert.deepEqual(parts[to].look(), ['reset'])
      assert.deepEqual(parts.endings, [{ kind: 'broken', side, reason }])
      parts[to].receiver.onReset(new Error('late'))
      assert.equal(parts.endings.length, 1)
    })

    test(`of the ${from} after its end is one too`, () => {
      const parts = join()
      parts[from].receiver.onEnd()
      parts[from].receiver.onReset(new Error('gone'))
      assert.equal(parts.endings[0]?.kind, 'broken')
      assert.deepEqual(parts[to].look().slice(-2), ['end', 'reset'])
    })

    test(`of the ${from} before the splice is noticed`, () => {
      const parts = join({
        before: (all) => {
          all[from].isClosed = true
        },
      })
      assert.deepEqual(parts[to].look(), ['reset'])
      assert.deepEqual(parts[from].look(), [])
      const [ending] = parts.endings
      assert.ok(ending?.kind === 'broken')
      assert.equal(ending.side, side)
    })
  }
})
