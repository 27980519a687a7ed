/**
 * What a session does with a busy carrier: order, turns, and whose memory is in use. The carrier is a stand-in that
 * takes one write at a time and finishes it when told to.
 */
import assert from 'node:assert/strict'
import type { Socket } from 'node:net'
import { Duplex } from 'node:stream'
import { test } from 'node:test'
import { FULL } from '../../src/dataplane/io/byte-stream.ts'
import { HEADROOM, withHeadroom } from '../../src/dataplane/io/socket-stream.ts'
import {
  ACK,
  DATA,
  FIN,
  GO_AWAY,
  RST,
  SYN,
  WINDOW_UPDATE,
} from '../../src/dataplane/tunnel/frame.ts'
import { data, decode, type Frame, header } from '../unit/tunnel-fixtures.ts'
import { Collector, type SessionEnd, startSession } from './tunnel-fixtures.ts'

class SlowCarrier extends Duplex {
  readonly writes: Buffer[] = []
  private done: (() => void) | undefined

  constructor() {
    super({ allowHalfOpen: true })
  }

  override _read(): void {
    // Bytes are emitted by the test.
  }

  override _write(chunk: Buffer, _encoding: string, done: () => void): void {
    // As TLS does: everything is taken before write() returns.
    this.writes.push(Buffer.from(chunk))
    this.done = done
  }

  get isBusy(): boolean {
    return this.done !== undefined
  }

  /** The write under way is with the kernel. */
  finishWrite(): void {
    const { done } = this
    this.done = undefined
    done?.()
  }

  /** Finishes writes until none follows. */
  async settle(): Promise<void> {
    for (let idle = 0; idle < 3; idle += 1) {
      await turn()
      if (!this.isBusy) continue
      idle = -1
      this.finishWrite()
    }
  }

  get frames(): Frame[] {
    return decode(...this.writes)
  }
}

function turn(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve))
}

async function start(streams: number): Promise<{
  carrier: SlowCarrier
  end: SessionEnd
  opened: ReturnType<SessionEnd['session']['open']>[]
}> {
  const carrier = new SlowCarrier()
  const end = startSession(carrier as unknown as Socket, 'opener')
  const opened = Array.from({ length: streams }, () => end.session.open(Buffer.from('preface')))
  for (const stream of opened)
    carrier.emit('data', header(WINDOW_UPDATE, ACK, stream.id, 4_000_000))
  await carrier.settle()
  carrier.writes.length = 0
  return { carrier, end, opened }
}

/** Bytes as a socket reads them: in the shared memory, with room for a header. */
function readInto(length: number, fill: number): Uint8Array {
  const bytes = withHeadroom(length).subarray(HEADROOM)
  bytes.fill(fill)
  return bytes
}

test('a large chunk in shared memory leaves at once, framed in place, in one write', async () => {
  const { carrier, opened } = await start(1)
  const answer = opened[0]!.write(readInto(50_000, 1))
  assert.equal(carrier.writes.length, 1)
  assert.deepEqual(
    carrier.frames.map(({ type, id, length }) => ({ type, id, length })),
    [{ type: DATA, id: 1, length: 50_000 }],
  )
  const told = new Collector(opened[0]!)
  carrier.finishWrite()
  await turn()
  assert.equal(
    told.writable,
    answer === FULL ? 1 : 0,
    'told of room exactly if it was told of none',
  )
  carrier.destroy()
})

test('memory is free as soon as write() has returned, whether sent or queued', async () => {
  const { carrier, opened } = await start(3)
  for (const [i, stream] of opened.entries())
    for (const size of [50_000, 100, 9_000, 8_192, 1]) stream.write(readInto(size, i + 1))
  readInto(200_000, 0xee)
  await carrier.settle()
  const received = new Map<number, string>()
  for (const { id, payload } of carrier.frames)
    received.set(id, (received.get(id) ?? '') + (payload ?? ''))
  for (const [i, { id }] of opened.entries())
    assert.equal(received.get(id), `0${i + 1}`.repeat(50_000 + 100 + 9_000 + 8_192 + 1))
  carrier.destroy()
})

test('whoever waits in the round goes before a quick writer that never stops', async () => {
  const { carrier, opened } = await start(2)
  const [bulk, other] = opened
  bulk!.write(readInto(60_000, 1))
  other!.write(readInto(9_000, 2))
  assert.equal(other!.queuedBytes, 9_000)
  for (let i = 0; i < 5 && other!.queuedBytes > 0; i += 1) {
    // The bulk reader is called back in the same turn in which the carrier becomes free.
    carrier.finishWrite()
    await Promise.resolve()
    bulk!.write(readInto(60_000, 1))
    await turn()
  }
  assert.equal(other!.queuedBytes, 0, 'it was sent')
  const order = carrier.frames.map(({ id }) => id)
  assert.ok(order.indexOf(other!.id) <= 2, `frames by stream: ${order.join(', ')}`)
  carrier.destroy()
})

test('waiting streams take turns', async () => {
  const { carrier, opened } = await start(4)
  opened[0]!.write(readInto(60_000, 1))
  for (const stream of opened.slice(1)) stream.write(Buffer.alloc(900_000))
  await carrier.settle()
  const order = carrier.frames.map(({ id }) => id).filter((id) => id !== 1)
  const turns = order.filter((id, i) => id !== order[i - 1])
  assert.equal(new Set(turns.slice(0, 3)).size, 3, `turns by stream: ${turns.join(', ')}`)
  assert.equal(new Set(turns.slice(-3)).size, 3, `turns by stream: ${turns.join(', ')}`)
  carrier.destroy()
})

test('small frames pass a bulk stream that waits', async () => {
  const { carrier, opened } = await start(2)
  opened[0]!.write(readInto(60_000, 1))
  opened[0]!.write(Buffer.alloc(900_000))
  opened[1]!.write(Buffer.from('small'))
  carrier.finishWrite()
  await turn()
  const [, second] = carrier.writes
  assert.equal(decode(second!)[0]?.id, opened[1]!.id)
  carrier.destroy()
})

test('control frames are not lost while the carrier is busy, however many there are', async () => {
  const carrier = new SlowCarrier()
  const { end } = { end: startSession(carrier as unknown as Socket, 'acceptor', { maxStreams: 1 }) }
  carrier.emit('data', data(SYN, 1, 'x'))
  await turn()
  assert.ok(carrier.isBusy)
  // Each of these is refused with a frame; they do not fit into one batch.
  const count = 15_000
  for (let i = 1; i <= count; i += 1) {
    carrier.emit('data', data(SYN, 1 + 2 * i))
    if (i % 5_000 === 0) end.session.tick(performance.now() + (1_001 * i) / 5_000)
  }
  await carrier.settle()
  const resets = carrier.frames.filter(({ flags }) => (flags & RST) !== 0)
  assert.equal(resets.length, count)
  assert.deepEqual(
    resets.map(({ id }) => id),
    Array.from({ length: count }, (_, i) => 3 + 2 * i),
  )
  carrier.destroy()
})

test('a drain while a write is under way still sends the last frames, in memory of their own', async () => {
  const { carrier, end, opened } = await start(1)
  const [stream] = opened
  const reader = new Collector(stream!)
  stream!.resume()
  stream!.write(readInto(60_000, 1))
  assert.ok(carrier.isBusy)
  stream!.write(Buffer.from('last words'))
  stream!.end()
  end.session.drain()
  carrier.emit('data', data(FIN, stream!.id, 'bye'))
  await reader.until(() => reader.closedInOrder)
  assert.equal((await end.closed).code, 'HM_TUNNEL_DRAINED')
  // Others use the pooled memory meanwhile.
  const busy = await Promise.all(Array.from({ length: 20 }, () => start(1)))
  for (const other of busy) other.opened[0]!.write(Buffer.alloc(8_000, 0xee))
  await carrier.settle()
  for (const other of busy) other.carrier.destroy()
  const frames = carrier.frames.slice(1)
  assert.equal(frames[0]?.payload, Buffer.from('last words').toString('hex'))
  assert.ok(frames.some(({ id, flags }) => id === stream!.id && (flags & FIN) !== 0))
  assert.equal(frames.at(-1)?.type, GO_AWAY)
  assert.ok(carrier.writableFinished, 'the connection is ended')
  carrier.destroy()
})

test('a violation while a write is under way is answered with go-away all the same', async () => {
  const { carrier, end, opened } = await start(1)
  opened[0]!.write(readInto(60_000, 1))
  assert.ok(carrier.isBusy)
  carrier.emit('data', Buffer.from('ff0000000000000000000000', 'hex'))
  assert.equal((await end.closed).code, 'HM_TUNNEL_BAD_FRAME')
  await carrier.settle()
  assert.deepEqual(carrier.frames.at(-1), { type: GO_AWAY, flags: 0, id: 0, length: 1 })
  carrier.destroy()
})
