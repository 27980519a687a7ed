/**
 * A socket as a byte stream: ends, resets, room, and whose memory is whose. Real TCP and TLS over loopback.
 */
import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { createServer, type Socket } from 'node:net'
import { describe, test } from 'node:test'
import { FULL, KEPT } from '../../src/dataplane/io/byte-stream.ts'
import { resetOnClose } from '../../src/dataplane/io/linger.ts'
import {
  HEADROOM,
  hasHeadroom,
  SocketStream,
  withHeadroom,
} from '../../src/dataplane/io/socket-stream.ts'
import { canReadDirectly, readDirect } from '../../src/lib/node-internals.ts'
import { eventually, within } from '../harness/eventually.ts'
import { Collector, dialAs, openTunnelPort, tcpPair } from '../integration/tunnel-fixtures.ts'

interface Ends extends AsyncDisposable {
  /** Ours, as a stream. */
  readonly stream: SocketStream
  readonly told: Collector
  /** The peer's. */
  readonly far: Socket
}

async function tcp(memory: 'shared' | 'private' = 'private'): Promise<Ends> {
  const pair = await tcpPair()
  // As all connections to applications are, in the daemon.
  resetOnClose(pair.near)
  const stream = new SocketStream(pair.near, memory)
  pair.far.on('error', () => undefined)
  return {
    stream,
    told: new Collector(stream),
    far: pair.far,
    [Symbol.asyncDispose]: () => pair[Symbol.asyncDispose](),
  }
}

async function tls(): Promise<Ends> {
  const port = await openTunnelPort(['db'])
  const [dialed, accepted] = await Promise.all([dialAs(port.port), port.next()])
  resetOnClose(dialed.socket)
  const stream = new SocketStream(dialed.socket, 'private')
  return {
    stream,
    told: new Collector(stream),
    far: accepted.socket,
    [Symbol.asyncDispose]: async () => {
      dialed.socket.destroy()
      await port[Symbol.asyncDispose]()
    },
  }
}

/** Closes a socket under Node. */
function closeNow(handle: unknown): void {
  assert.ok(typeof handle === 'object' && handle !== null && 'close' in handle)
  assert.ok(typeof handle.close === 'function')
  const parent: unknown = Reflect.get(handle, '_parent')
  if (parent !== undefined && parent !== null) closeNow(parent)
  else handle.close()
}

/** How the peer's side ended: `end`, or its error. */
function fate(socket: Socket): Promise<string> {
  return within(
    5_000,
    'the fate of the peer',
    new Promise((resolve) => {
      socket.once('end', () => resolve('end'))
      socket.once('error', (error: NodeJS.ErrnoException) => resolve(error.code ?? error.message))
    }),
  )
}

for (const [kind, open] of [
  ['TCP', tcp],
  ['TLS', tls],
] as const)
  describe(`over ${kind}`, () => {
    test('we end first: the peer may still send, then all is closed in order', async () => {
      await using ends = await open()
      const { stream, told, far } = ends
      stream.resume()
      stream.write(Buffer.from('question'))
      stream.end()
      far.resume()
      assert.equal(await fate(far), 'end')
      far.write('a long ')
      await told.until(() => told.length > 0)
      assert.equal(told.ended, false)
      far.end('answer')
      await told.until(() => told.closedInOrder)
      assert.equal(told.bytes.toString(), 'a long answer')
      assert.ok(told.ended && stream.isClosed)
      assert.equal(told.reset, undefined)
    })

    test('the peer ends first: we may still send, then all is closed in order', async () => {
      await using ends = await open()
      const { stream, told, far } = ends
      stream.resume()
      far.end('question')
      await told.until(() => told.ended)
      assert.equal(stream.isClosed, false)
      const heard: Buffer[] = []
      far.on('data', (chunk: Buffer) => heard.push(chunk)).resume()
      stream.write(Buffer.alloc(300_000, 7))
      stream.end()
      assert.equal(await fate(far), 'end')
      await told.until(() => told.closedInOrder)
      assert.equal(Buffer.concat(heard).length, 300_000)
    })

    for (const first of ['we', 'the peer'] as const)
      test(`${first} ended first, and a slow reader gets the last byte, though nobody waits for it`, async () => {
        await using ends = await open()
        const { stream, told, far } = ends
        stream.resume()
        const bytes = 1_500_000
        if (first === 'the peer') far.end()
        stream.write(Buffer.alloc(bytes, 7))
        stream.end()
        if (first === 'we') {
          far.end()
          await once(far, 'finish')
        }
        let heard = 0
        far.on('data', (chunk: Buffer) => {
          heard += chunk.length
          far.pause()
          setTimeout(() => far.resume(), 1)
        })
        const ending = fate(far)
        far.resume()
        assert.equal(await ending, 'end')
        assert.equal(heard, bytes)
        await told.until(() => told.closedInOrder)
      })

    for (const state of ['open', 'ended by us', 'ended by the peer'] as const)
      test(`closed by the kernel while it is ${state}, the peer sees a reset`, async () => {
        await using ends = await open()
        const { stream, told, far } = ends
        stream.resume()
        stream.write(Buffer.from('x'))
        await once(far, 'readable')
        if (state === 'ended by us') {
          stream.end()
          await eventually(() => assert.ok(stream.socket.writableFinished))
        }
        if (state === 'ended by the peer') {
          far.end()
          await told.until(() => told.ended)
        }
        const ending = new Promise<string>((resolve) => {
          far.once('error', (error: NodeJS.ErrnoException) => resolve(error.code ?? ''))
          far.once('close', () => resolve('closed'))
        })
        far.resume()
        // What the kernel does with the descriptors of a process that was killed.
        const handle: unknown = Reflect.get(stream.socket, '_handle')
        closeNow(handle)
        // A write is how one that has heard our end hears of anything further.
        if (state === 'ended by us') far.write('y')
        // The kernel's name for the reset of a connection whose other side has ended already.
        const reset = state === 'ended by us' ? 'EPIPE' : 'ECONNRESET'
        assert.equal(await within(5_000, 'the fate of the peer', ending), reset)
      })

    test('a reset by the peer is told once, as a reset', async () => {
      await using ends = await open()
      const { stream, told, far } = ends
      stream.resume()
      far.write('x')
      await told.until(() => told.length > 0)
      if (kind === 'TCP') far.resetAndDestroy()
      else new SocketStream(far, 'private').reset()
      await within(
        5_000,
        'the reset',
        told.until(() => told.reset !== undefined),
      )
      assert.equal(told.ended, false)
      assert.ok(stream.isClosed)
      assert.equal(stream.write(Buffer.from('late')), 0)
    })

    for (const [name, prepare] of [
      ['an idle stream', async () => undefined],
      ['a stream that was never read', async () => undefined],
      ['a stream whose end is on its way', async (stream: SocketStream) => stream.end()],
      [
        'a stream that has ended',
        async (stream: SocketStream) => {
          stream.end()
          await eventually(() => assert.ok(stream.socket.writableFinished))
        },
      ],
      [
        'a stream with bytes on their way',
        async (stream: SocketStream) => {
          while ((stream.write(Buffer.alloc(60_000)) & FULL) === 0)
            await new Promise((resolve) => setImmediate(resolve))
        },
      ],
      [
        'a stream with gathered bytes',
        async (stream: SocketStream) => stream.write(Buffer.alloc(20_000)),
      ],
    ] as const)
      test(`reset of ${name} closes the socket, tells the peer and not the owner`, async () => {
        await using ends = await open()
        const { stream, told, far } = ends
        if (!name.includes('never')) stream.resume()
        // So that handshake and tickets are over on both sides.
        stream.write(Buffer.from('x'))
        await once(far, 'readable')
        await prepare(stream)
        stream.reset()
        assert.ok(stream.isClosed)
        await eventually(() => assert.ok(stream.socket.closed, 'the socket is closed'))
        if (!name.includes('end')) {
          far.resume()
          assert.equal(await fate(far), 'ECONNRESET')
        }
        assert.equal(told.reset, undefined)
        assert.equal(told.closedInOrder, false)
      })

    test('memory that is not said to be kept may be overwritten at once', async () => {
      await using ends = await open()
      const { stream, told, far } = ends
      stream.resume()
      const sent = createHash('sha256')
      const received = createHash('sha256')
      let total = 0
      let arrived = 0
      far.on('data', (chunk: Buffer) => {
        received.update(chunk)
        arrived += chunk.length
        // A slow reader, so that all kinds of writes are met by a busy socket.
        far.pause()
        setTimeout(() => far.resume(), 1)
      })
      far.resume()
      const heardAll = once(far, 'end')
      const memory = Buffer.alloc(400_000)
      const sizes = [1, 100, 8_191, 8_192, 20_000, 131_072, 131_073, 262_132, 5, 65_536, 400_000]
      for (let round = 0; round < 12; round += 1)
        for (const size of sizes) {
          const chunk = memory.subarray(0, size)
          for (let i = 0; i < size; i += 97) chunk[i] = (total + i * 31) & 0xff
          sent.update(chunk)
          total += size
          const seen = told.writable
          const result = stream.write((round & 1) === 0 ? chunk : Buffer.from(chunk))
          // Where it is kept, this writer would get other memory; here the bytes are saved instead.
          if ((result & KEPT) !== 0 && (round & 1) === 0) await drained(stream)
          chunk.fill(0xee)
          if ((result & FULL) !== 0)
            await within(
              5_000,
              'room',
              told.until(() => told.writable > seen || told.reset !== undefined),
            )
        }
      stream.end()
      far.end()
      await within(10_000, 'the end', Promise.all([heardAll, told.until(() => told.closedInOrder)]))
      assert.equal(arrived, total)
      assert.equal(received.digest('hex'), sent.digest('hex'))
    })

    test('a peer that does not read stops the writer soon, and reading lets it go on', async () => {
      await using ends = await open()
      const { stream, told, far } = ends
      stream.resume()
      let written = 0
      for (;;) {
        const seen = told.writable
        const result = stream.write(Buffer.alloc(30_000))
        written += 30_000
        if ((result & FULL) === 0) continue
        await Promise.race([
          told.until(() => told.writable > seen),
          new Promise((resolve) => setTimeout(resolve, 200)),
        ])
        if (told.writable === seen) break
        assert.ok(written < 64 * 1_048_576, 'the kernel cannot take that much')
      }
      assert.ok(stream.socket.writableLength < 1_048_576, `${stream.socket.writableLength} waiting`)
      const seen = told.writable
      far.resume()
      await within(
        5_000,
        'room',
        told.until(() => told.writable > seen),
      )
    })

    test('small writes to a busy socket keep none of the memory they are read into', async () => {
      await using ends = await open()
      const { stream } = ends
      stream.resume()
      while (stream.socket.writableLength === 0) {
        stream.write(Buffer.alloc(262_000))
        await new Promise((resolve) => setImmediate(resolve))
      }
      const shared = Buffer.alloc(16_384)
      for (let i = 0; i < 100; i += 1)
        assert.equal(stream.write(shared.subarray(i, i + 100)) & KEPT, 0)
    })

    test('a paused stream is not read, and resuming reads on', async () => {
      await using ends = await open()
      const { stream, told, far } = ends
      stream.resume()
      far.write('one')
      await told.until(() => told.length === 3)
      stream.pause()
      far.write(Buffer.alloc(200_000))
      await eventually(() => assert.equal(far.writableLength, 0))
      await new Promise((resolve) => setTimeout(resolve, 20))
      // TLS may hand out what it has decrypted already.
      assert.ok(told.length <= 3 + 65_536, `${told.length} bytes came while paused`)
      stream.resume()
      await within(
        5_000,
        'the rest',
        told.until(() => told.length === 200_003),
      )
    })
  })

/** Resolves when the kernel has taken everything, so that no memory of ours is in use. */
async function drained(stream: SocketStream): Promise<void> {
  await eventually(() => assert.equal(stream.socket.writableLength, 0), { everyMs: 1 })
}

test('a chunk larger than anything gathered goes out whole', async () => {
  await using ends = await tcp()
  const { stream, told, far } = ends
  stream.resume()
  let arrived = 0
  far.on('data', (chunk: Buffer) => {
    arrived += chunk.length
  })
  far.resume()
  stream.write(Buffer.alloc(20_000))
  stream.write(Buffer.alloc(3_000_000))
  stream.write(Buffer.from('!'))
  await eventually(() => assert.equal(arrived, 3_020_001))
  assert.equal(told.reset, undefined)
})

test('bytes read into shared memory have room for a frame header before them', async () => {
  await using ends = await tcp('shared')
  const { stream, far } = ends
  const seen = new Promise<boolean>((resolve) => {
    stream.receiver = {
      onBytes: (bytes) => {
        assert.ok(hasHeadroom(bytes))
        const framed = withHeadroom(bytes.length)
        assert.equal(framed.length, HEADROOM + bytes.length)
        framed.fill(0xff, 0, HEADROOM)
        resolve(
          Buffer.from(bytes).toString() === 'payload' && framed.subarray(HEADROOM).equals(bytes),
        )
        return 0
      },
      onEnd: () => undefined,
      onClosed: () => undefined,
      onReset: () => undefined,
      onWritable: () => undefined,
    }
  })
  stream.resume()
  far.write('payload')
  assert.equal(await seen, true)
  assert.equal(hasHeadroom(Buffer.alloc(10)), false)
})

test('memory of its own can be asked for only before reading has begun', async () => {
  await using ends = await tcp('shared')
  ends.stream.useOwnMemory()
  ends.stream.resume()
  assert.throws(() => ends.stream.useOwnMemory())
})

test('a receiver may keep what it was given, as long as it likes', async () => {
  await using ends = await tcp('private')
  const { stream, far } = ends
  const kept: Uint8Array[] = []
  let length = 0
  stream.receiver = {
    onBytes: (bytes) => {
      kept.push(bytes)
      length += bytes.length
      return KEPT
    },
    onEnd: () => undefined,
    onClosed: () => undefined,
    onReset: () => undefined,
    onWritable: () => undefined,
  }
  stream.resume()
  const bytes = Buffer.alloc(2_000_000)
  for (let i = 0; i < bytes.length; i += 1) bytes[i] = (i * 7) & 0xff
  far.write(bytes)
  await eventually(() => assert.equal(length, bytes.length))
  assert.ok(Buffer.concat(kept).equals(bytes))
})

describe('reading directly', () => {
  test('works on this runtime: without it the data path copies more', () => {
    assert.equal(canReadDirectly, true)
  })

  test('puts bytes where it was told, and into the next buffer when one is given', async () => {
    const pair = await tcpPair()
    const first = Buffer.alloc(4)
    const second = Buffer.alloc(100)
    const reads: string[] = []
    let current = first
    const ok = readDirect(pair.near, first, {
      onRead: (length) => reads.push(current.toString('latin1', 0, length)),
      nextBuffer: () => {
        if (current === second) return undefined
        current = second
        return second
      },
    })
    assert.equal(ok, true)
    pair.near.resume()
    pair.far.write('abcdefgh')
    await eventually(() => assert.deepEqual(reads, ['abcd', 'efgh']))
    const ended = once(pair.near, 'end')
    pair.far.end()
    await ended
    await pair[Symbol.asyncDispose]()
  })

  test('is refused for a socket that has no handle, and changes nothing', async () => {
    const server = createServer()
    const pair = await tcpPair()
    pair.near.destroy()
    await once(pair.near, 'close')
    const reader = { onRead: () => undefined, nextBuffer: () => undefined }
    assert.equal(readDirect(pair.near, Buffer.alloc(10), reader), false)
    server.close()
    await pair[Symbol.asyncDispose]()
  })
})
