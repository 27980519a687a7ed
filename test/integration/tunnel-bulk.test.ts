/**
 * Bulk through the real chain: application socket, stream, mutual TLS, stream, application socket. All memory is
 * reused on the way (shared read buffers, framing in place, pooled blocks), so one premature reuse
 * anywhere changes a hash here.
 */
import assert from 'node:assert/strict'
import { createHash, randomFillSync } from 'node:crypto'
import type { Socket } from 'node:net'
import { test } from 'node:test'
import { KEPT } from '../../src/dataplane/io/byte-stream.ts'
import { SocketStream } from '../../src/dataplane/io/socket-stream.ts'
import { within } from '../harness/eventually.ts'
import { openTunnel, spliced, type Tunnel, tcpPair } from './tunnel-fixtures.ts'

/** Sizes that cross every boundary of the data path: records, batches, blocks, gathers, reads. */
const SIZES = [1, 11, 100, 4_095, 4_097, 8_191, 8_193, 16_385, 65_525, 131_073, 262_143, 700_001]

/** xorshift: the same sizes in every run. */
function dice(seed: number): () => number {
  let state = seed
  return () => {
    state ^= state << 13
    state ^= state >>> 17
    state ^= state << 5
    return (state >>> 0) / 2 ** 32
  }
}

/** Writes `total` bytes in chunks of all sizes, then ends; answers the hash of what was written. */
async function pour(socket: Socket, total: number, seed: number): Promise<string> {
  const random = dice(seed)
  const hash = createHash('sha256')
  const pattern = randomFillSync(Buffer.alloc(1_048_576))
  for (let left = total; left > 0; ) {
    const size = Math.min(left, SIZES[Math.floor(random() * SIZES.length)]!)
    const start = Math.floor(random() * (pattern.length - size))
    const chunk = pattern.subarray(start, start + size)
    hash.update(chunk)
    if (!socket.write(chunk)) await new Promise((resolve) => socket.once('drain', resolve))
    left -= size
  }
  socket.end()
  return hash.digest('hex')
}

/** Reads to the end. Stops now and then, so that every queue on the way fills up. */
async function drink(
  socket: Socket,
  pausesEvery: number,
): Promise<{ hash: string; bytes: number }> {
  const hash = createHash('sha256')
  let bytes = 0
  let untilPause = pausesEvery
  socket.on('data', (chunk: Buffer) => {
    hash.update(chunk)
    bytes += chunk.length
    untilPause -= chunk.length
    if (untilPause > 0) return
    untilPause = pausesEvery
    socket.pause()
    setTimeout(() => socket.resume(), 3)
  })
  socket.resume()
  await new Promise((resolve, reject) => socket.once('end', resolve).once('error', reject))
  return { hash: hash.digest('hex'), bytes }
}

/** An application pair joined through `tunnel`. */
async function joined(
  tunnel: Tunnel,
  undo: AsyncDisposableStack,
): Promise<{ caller: Socket; called: Socket }> {
  const left = undo.use(await tcpPair())
  const right = undo.use(await tcpPair())
  const opened = tunnel.opener.session.open(Buffer.from('preface'))
  const accepted = await tunnel.acceptor.nextStream()
  accepted.receiver = {
    onBytes: () => 0,
    onEnd: () => undefined,
    onClosed: () => undefined,
    onReset: () => undefined,
    onWritable: () => undefined,
  }
  // The preface is read, as inbound.ts does, before the stream is confirmed.
  accepted.resume()
  await new Promise((resolve) => setImmediate(resolve))
  accepted.pause()
  accepted.confirm()
  void spliced(new SocketStream(left.far, 'shared'), opened)
  void spliced(accepted, new SocketStream(right.near, 'shared'))
  return { caller: left.near, called: right.far }
}

for (const [name, mebibytes, pausesEvery] of [
  ['quick readers', 100, Number.POSITIVE_INFINITY],
  ['readers that stall', 100, 1_500_000],
  ['readers that are slower than their writers', 40, 150_000],
] as const)
  test(`${mebibytes} MiB each way at once arrive unchanged, with ${name}`, async () => {
    await using undo = new AsyncDisposableStack()
    const tunnel = undo.use(await openTunnel())
    const { caller, called } = await joined(tunnel, undo)
    const total = mebibytes * 1_048_576
    const [sent, answered, received, heard] = await within(
      40_000,
      'the transfer',
      Promise.all([
        pour(caller, total, 1),
        pour(called, total, 2),
        drink(called, pausesEvery),
        drink(caller, pausesEvery),
      ]),
    )
    assert.deepEqual(received, { hash: sent, bytes: total })
    assert.deepEqual(heard, { hash: answered, bytes: total })
  })

test('a receiver may keep the memory it is given, as long as it says so', async () => {
  await using undo = new AsyncDisposableStack()
  const tunnel = undo.use(await openTunnel())
  const app = undo.use(await tcpPair())
  const opened = tunnel.opener.session.open(Buffer.from('preface'))
  const accepted = await tunnel.acceptor.nextStream()
  const kept: Uint8Array[] = []
  const ended = new Promise<void>((resolve) => {
    accepted.receiver = {
      onBytes: (bytes) => {
        kept.push(bytes)
        // Now and then the queue is delivered from, instead of the read buffer.
        if (kept.length % 50 === 0) {
          accepted.pause()
          setTimeout(() => accepted.resume(), 3)
        }
        return KEPT
      },
      onEnd: resolve,
      onClosed: () => undefined,
      onReset: () => undefined,
      onWritable: () => undefined,
    }
  })
  accepted.confirm()
  accepted.resume()
  void spliced(new SocketStream(app.far, 'shared'), opened)
  const sent = pour(app.near, 20 * 1_048_576, 7)
  await within(20_000, 'the end', ended)
  const received = createHash('sha256')
  let skip = 'preface'.length
  for (const bytes of kept) {
    received.update(bytes.subarray(Math.min(skip, bytes.length)))
    skip = Math.max(0, skip - bytes.length)
  }
  assert.equal(received.digest('hex'), await sent)
})

test('eight streams at once keep their bytes apart', async () => {
  await using undo = new AsyncDisposableStack()
  const tunnel = undo.use(await openTunnel())
  const total = 6 * 1_048_576
  const transfers = Array.from({ length: 8 }, async (_, i) => {
    const { caller, called } = await joined(tunnel, undo)
    const [sent, received, answered, heard] = await Promise.all([
      pour(caller, total, 10 + i),
      drink(called, i % 2 === 0 ? 700_000 : Number.POSITIVE_INFINITY),
      pour(called, total, 30 + i),
      drink(caller, i % 3 === 0 ? 500_000 : Number.POSITIVE_INFINITY),
    ])
    assert.deepEqual(received, { hash: sent, bytes: total })
    assert.deepEqual(heard, { hash: answered, bytes: total })
  })
  await within(30_000, 'the transfers', Promise.all(transfers))
})

test('two local sockets that both write large chunks keep their bytes', async () => {
  await using undo = new AsyncDisposableStack()
  const left = undo.use(await tcpPair())
  const right = undo.use(await tcpPair())
  void spliced(new SocketStream(left.far, 'private'), new SocketStream(right.near, 'private'))
  const total = 40 * 1_048_576
  const [sent, received, answered, heard] = await within(
    20_000,
    'the transfer',
    Promise.all([
      pour(left.near, total, 5),
      drink(right.far, 900_000),
      pour(right.far, total, 6),
      drink(left.near, Number.POSITIVE_INFINITY),
    ]),
  )
  assert.deepEqual(received, { hash: sent, bytes: total })
  assert.deepEqual(heard, { hash: answered, bytes: total })
})
