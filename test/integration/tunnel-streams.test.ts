/**
 * Streams of a session, over real mutual TLS: docs/tunnel-protocol.md, "Stream", "Credit", "Session".
 */
import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { describe, test } from 'node:test'
import { FULL } from '../../src/dataplane/io/byte-stream.ts'
import {
  ACK,
  DATA,
  FIN,
  GO_AWAY,
  INITIAL_CREDIT,
  MAX_WINDOW,
  PING,
  RST,
  resetCodes,
  SYN,
  WINDOW_UPDATE,
} from '../../src/dataplane/tunnel/frame.ts'
import { StreamResetError, type TunnelStream } from '../../src/dataplane/tunnel/stream.ts'
import { MeshError } from '../../src/lib/errors.ts'
import { eventually, within } from '../harness/eventually.ts'
import { data, header } from '../unit/tunnel-fixtures.ts'
import { Collector, openTunnel, rawTunnel, type Tunnel } from './tunnel-fixtures.ts'

const preface = Buffer.from('preface')

interface Ends {
  readonly near: Collector
  readonly far: Collector
  readonly opened: TunnelStream
  readonly accepted: TunnelStream
}

/** A confirmed stream with its preface read. */
async function openStream(tunnel: Tunnel, options: { keepsBytes?: boolean } = {}): Promise<Ends> {
  const opened = tunnel.opener.session.open(preface)
  const near = new Collector(opened, options)
  const accepted = await tunnel.acceptor.nextStream()
  const hello = new Collector(accepted)
  accepted.resume()
  await hello.until(() => hello.length === preface.length)
  const far = new Collector(accepted, options)
  accepted.confirm()
  await eventually(() => assert.ok(opened.isConfirmed), { everyMs: 1 })
  opened.resume()
  return { near, far, opened, accepted }
}

/** Writes all of `bytes` in pieces, waiting wherever the stream says it is full. */
async function writeAll(from: Collector, bytes: Uint8Array, piece: number): Promise<void> {
  for (let at = 0; at < bytes.length; at += piece) {
    const seen = from.writable
    if ((from.stream.write(bytes.subarray(at, at + piece)) & FULL) !== 0)
      await from.until(() => from.writable > seen || from.reset !== undefined)
  }
}

/** Resolves when nothing is under way in the tunnel any more. */
async function settled({ opener, acceptor }: Tunnel): Promise<void> {
  for (let quietTurns = 0; quietTurns < 10; quietTurns += 1) {
    await new Promise((resolve) => setImmediate(resolve))
    const [near, far] = [opener.session, acceptor.session]
    if (near.sentBytes !== far.receivedBytes || far.sentBytes !== near.receivedBytes) quietTurns = 0
  }
}

function sha256(bytes: Uint8Array): string {
  return createHash('sha256').update(bytes).digest('hex')
}

const large = Buffer.alloc(10 * 1_048_576)
for (let i = 0; i < large.length; i += 4) large.writeUInt32LE((i * 2_654_435_761) >>> 0, i)

describe('half-close', () => {
  for (const size of [0, 1, large.length])
    for (const [name, pick] of [
      ['the opener', (ends: Ends) => [ends.near, ends.far] as const],
      ['the acceptor', (ends: Ends) => [ends.far, ends.near] as const],
    ] as const)
      test(`${name} ends first; ${size} bytes the other way still arrive, then both are closed`, async () => {
        await using tunnel = await openTunnel()
        const [first, second] = pick(await openStream(tunnel))
        first.stream.write(Buffer.from('last words'))
        first.stream.end()
        await second.until(() => second.ended)
        assert.equal(second.bytes.toString(), 'last words')
        assert.equal(first.ended, false)
        assert.equal(first.stream.isClosed, false)
        await writeAll(second, large.subarray(0, size), 60_000)
        second.stream.end()
        await within(
          10_000,
          'the other end',
          first.until(() => first.closedInOrder),
        )
        await second.until(() => second.closedInOrder)
        assert.equal(sha256(first.bytes), sha256(large.subarray(0, size)))
        assert.equal(first.reset ?? second.reset, undefined)
        assert.equal(tunnel.opener.session.streamCount + tunnel.acceptor.session.streamCount, 0)
      })

  test('both end at once', async () => {
    await using tunnel = await openTunnel()
    const { near, far } = await openStream(tunnel)
    near.stream.write(Buffer.from('a'))
    far.stream.write(Buffer.from('b'))
    near.stream.end()
    far.stream.end()
    await Promise.all([near.until(() => near.closedInOrder), far.until(() => far.closedInOrder)])
    assert.equal(near.bytes.toString() + far.bytes.toString(), 'ba')
  })

  test('an end waits behind bytes that have no credit yet', async () => {
    await using tunnel = await openTunnel()
    const { near, far } = await openStream(tunnel)
    far.stream.pause()
    const bytes = large.subarray(0, MAX_WINDOW + 300_000)
    near.stream.write(bytes)
    near.stream.end()
    await eventually(() => assert.ok((far.stream as TunnelStream).heldBytes >= INITIAL_CREDIT / 2))
    assert.equal(far.ended, false)
    far.stream.resume()
    await far.until(() => far.ended)
    assert.equal(sha256(far.bytes), sha256(bytes))
  })

  test('after its end a stream writes nothing more', async () => {
    await using tunnel = await openTunnel()
    const { near, far } = await openStream(tunnel)
    near.stream.end()
    assert.equal(near.stream.write(Buffer.from('late')), 0)
    near.stream.end()
    await far.until(() => far.ended)
    far.stream.end()
    await near.until(() => near.closedInOrder)
    assert.equal(far.length, 0)
    assert.equal(far.reset, undefined)
  })
})

describe('reset', () => {
  for (const [name, pick] of [
    ['the opener', (ends: Ends) => [ends.near, ends.far] as const],
    ['the acceptor', (ends: Ends) => [ends.far, ends.near] as const],
  ] as const) {
    test(`by ${name} reaches the other side with its reason, and the resetter hears nothing`, async () => {
      await using tunnel = await openTunnel()
      const [first, second] = pick(await openStream(tunnel))
      ;(first.stream as TunnelStream).refuse('timeout')
      await second.until(() => second.reset !== undefined)
      assert.ok(second.reset instanceof StreamResetError)
      assert.equal(second.reset.reason, 'timeout')
      assert.equal(second.ended, false)
      assert.equal(first.reset, undefined)
      assert.equal(tunnel.opener.session.streamCount, 0)
      assert.equal(tunnel.acceptor.session.streamCount, 0)
      assert.deepEqual([tunnel.opener.resets, tunnel.acceptor.resets], [1, 1])
    })

    test(`by ${name} while its own bytes wait for credit`, async () => {
      await using tunnel = await openTunnel()
      const [first, second] = pick(await openStream(tunnel))
      second.stream.pause()
      first.stream.write(large.subarray(0, 3 * 1_048_576))
      await eventually(() => assert.ok((second.stream as TunnelStream).heldBytes > 100_000))
      first.stream.reset()
      await second.until(() => second.reset !== undefined)
      assert.equal((second.stream as TunnelStream).heldBytes, 0)
      assert.equal((first.stream as TunnelStream).queuedBytes, 0)
    })

    test(`by ${name} while the other is paused over what it sent`, async () => {
      await using tunnel = await openTunnel()
      const [first, second] = pick(await openStream(tunnel))
      first.stream.pause()
      second.stream.write(large.subarray(0, 3 * 1_048_576))
      await eventually(() => assert.ok((first.stream as TunnelStream).heldBytes > 100_000))
      first.stream.reset()
      await second.until(() => second.reset !== undefined)
      assert.equal(second.ended, false)
    })
  }

  test('before its first frame has left is silent: the far end never hears of the stream', async () => {
    await using tunnel = await rawTunnel('opener')
    const { end, peer } = tunnel
    // The carrier is busy and its batch full, so the next stream's SYN must wait.
    const filler = end.session.open(preface)
    await peer.next(({ flags }) => flags === SYN)
    while (filler.queuedBytes === 0) filler.write(Buffer.alloc(8_000))
    let late = end.session.open(preface)
    while (late.queuedBytes === 0) late = end.session.open(preface)
    const before = end.session.streamCount
    late.reset()
    const after = end.session.open(preface)
    await peer.until(() => peer.frames.some(({ flags, id }) => flags === SYN && id === after.id))
    assert.ok(!peer.frames.some(({ id }) => id === late.id))
    assert.equal(end.session.streamCount, before)
  })
})

describe('a carrier that is lost', () => {
  for (const side of ['opener', 'acceptor'] as const)
    test(`at the ${side} is a reset of every stream on both sides, never an end`, async () => {
      await using tunnel = await openTunnel()
      const all = await Promise.all([openStream(tunnel), openStream(tunnel), openStream(tunnel)])
      const [, half, ended] = all
      half.near.stream.write(Buffer.from('half'))
      ended.near.stream.end()
      await ended.far.until(() => ended.far.ended)
      tunnel[side].socket.destroy()
      const reasons = await Promise.all([tunnel.opener.closed, tunnel.acceptor.closed])
      assert.deepEqual(
        reasons.map(({ code }) => code),
        ['HM_TUNNEL_LOST', 'HM_TUNNEL_LOST'],
      )
      for (const [i, { near, far }] of all.entries()) {
        assert.ok(near.reset instanceof MeshError)
        assert.ok(far.reset instanceof MeshError)
        assert.equal(near.ended, false)
        assert.equal(far.ended, i === 2)
        assert.equal(near.closedInOrder || far.closedInOrder, false)
      }
    })

  test('takes nothing from a stream on which both sides had finished: what is held is delivered, then the end', async () => {
    await using tunnel = await openTunnel()
    const { near, far } = await openStream(tunnel)
    far.stream.pause()
    const bytes = large.subarray(0, 200_000)
    near.stream.write(bytes)
    near.stream.end()
    far.stream.write(Buffer.from('ok'))
    far.stream.end()
    await near.until(() => near.closedInOrder)
    const { heldBytes } = far.stream as TunnelStream
    await eventually(() => assert.ok(heldBytes > 0))
    // The near side has no stream left, so that it may close the carrier, as a draining one does.
    tunnel.opener.session.drain()
    await tunnel.acceptor.closed
    assert.equal(far.reset, undefined)
    far.stream.resume()
    await far.until(() => far.closedInOrder)
    assert.equal(sha256(far.bytes), sha256(bytes))
  })

  test('is a reset even for a reader that is paused before an end it was sent', async () => {
    await using tunnel = await openTunnel()
    const { near, far } = await openStream(tunnel)
    far.stream.pause()
    near.stream.write(Buffer.from('unread'))
    near.stream.end()
    await eventually(() => assert.equal((far.stream as TunnelStream).heldBytes, 6))
    tunnel.opener.socket.destroy()
    await far.until(() => far.reset !== undefined)
    far.stream.resume()
    assert.equal(far.length, 0)
    assert.equal(far.ended, false)
  })
})

describe('credit', () => {
  test('bounds what a paused reader holds and what its writer queues', async () => {
    await using tunnel = await openTunnel()
    const { near, far, accepted } = await openStream(tunnel)
    far.stream.pause()
    let written = 0
    let isFull = false
    while (!isFull && written < 4 * MAX_WINDOW) {
      isFull = (near.stream.write(large.subarray(0, 60_000)) & FULL) !== 0
      written += 60_000
      if (isFull) {
        const seen = near.writable
        // Full for now, or for good: a round trip tells.
        await Promise.race([near.until(() => near.writable > seen), settled(tunnel)])
        isFull = near.writable === seen
      }
    }
    assert.ok(isFull, 'the writer was told to stop')
    assert.ok(accepted.heldBytes > 0)
    assert.ok(accepted.heldBytes <= MAX_WINDOW, `${accepted.heldBytes} held`)
    assert.ok(written <= MAX_WINDOW + 400_000, `${written} written`)
  })

  test('that was used up is given back as the reader goes on, and the writer is told', async () => {
    await using tunnel = await openTunnel()
    const { near, far } = await openStream(tunnel)
    far.stream.pause()
    near.stream.write(large.subarray(0, 6 * 1_048_576))
    assert.ok(near.writable === 0)
    far.stream.resume()
    await far.until(() => far.length === 6 * 1_048_576)
    await near.until(() => near.writable > 0)
    assert.equal(sha256(far.bytes), sha256(large.subarray(0, 6 * 1_048_576)))
  })

  test('begins at 256 KiB; a reader that takes half of it gives more, within the largest window', async () => {
    await using tunnel = await rawTunnel('acceptor')
    const { end, peer } = tunnel
    peer.send(data(SYN, 1, Buffer.alloc(INITIAL_CREDIT)))
    const stream = await end.nextStream()
    stream.confirm()
    await peer.settled()
    assert.equal(stream.heldBytes, INITIAL_CREDIT)
    const takeCredit = (): number =>
      peer.frames
        .splice(0)
        .reduce((sum, { type, length }) => sum + (type === WINDOW_UPDATE ? length : 0), 0)
    assert.equal(takeCredit(), 0)
    void new Collector(stream, { keepsBytes: false })
    stream.resume()
    await peer.settled()
    const credit = takeCredit()
    assert.ok(credit >= INITIAL_CREDIT / 2 && credit <= MAX_WINDOW, `${credit} of credit`)
    stream.pause()
    // What was given may be used to the last byte; one more is too much.
    for (let left = credit; left > 0; left -= 60_000)
      peer.send(data(0, 1, Buffer.alloc(Math.min(left, 60_000))))
    await peer.settled()
    assert.equal(stream.heldBytes, credit)
    peer.send(header(DATA, 0, 1, 1))
    assert.equal((await end.closed).code, 'HM_TUNNEL_CREDIT_EXCEEDED')
  })

  test('is never more than the largest window, however long a reader reads', async () => {
    await using tunnel = await rawTunnel('acceptor')
    const { end, peer } = tunnel
    peer.send(data(SYN, 1))
    const stream = await end.nextStream()
    void new Collector(stream, { keepsBytes: false })
    stream.confirm()
    stream.resume()
    let credit = INITIAL_CREDIT
    const takeCredit = (): void => {
      for (const { type, length } of peer.frames.splice(0))
        if (type === WINDOW_UPDATE) credit += length
    }
    const chunk = Buffer.alloc(65_000)
    for (let sent = 0; sent < 40 * 1_048_576; sent += chunk.length) {
      if (credit < chunk.length) {
        await peer.settled()
        takeCredit()
      }
      assert.ok(credit >= chunk.length, 'credit comes back')
      assert.ok(credit <= MAX_WINDOW, `${credit} of credit at once`)
      peer.send(data(0, 1, chunk))
      credit -= chunk.length
    }
  })

  test('is spent to the last byte and not beyond', async () => {
    await using tunnel = await rawTunnel('opener')
    const { end, peer } = tunnel
    const stream = end.session.open(preface)
    stream.write(Buffer.alloc(INITIAL_CREDIT))
    stream.end()
    const bytesOf = (): number =>
      peer.frames.filter(({ type }) => type === DATA).reduce((sum, { length }) => sum + length, 0)
    await peer.until(() => bytesOf() >= INITIAL_CREDIT)
    await peer.settled()
    assert.equal(bytesOf(), INITIAL_CREDIT)
    assert.equal(stream.queuedBytes, preface.length)
    peer.send(header(WINDOW_UPDATE, ACK, 1, 3))
    await peer.until(() => bytesOf() === INITIAL_CREDIT + 3)
    assert.ok(!peer.frames.some(({ flags }) => (flags & FIN) !== 0))
    peer.send(header(WINDOW_UPDATE, 0, 1, 100))
    await peer.next(({ flags }) => (flags & FIN) !== 0)
    assert.equal(bytesOf(), INITIAL_CREDIT + preface.length)
  })
})

test('100,000 one-byte writes arrive in order', async () => {
  await using tunnel = await openTunnel()
  const { near, far } = await openStream(tunnel)
  const bytes = large.subarray(0, 100_000)
  await Promise.all([
    writeAll(near, bytes, 1),
    within(
      20_000,
      'the bytes',
      far.until(() => far.length === bytes.length),
    ),
  ])
  assert.equal(sha256(far.bytes), sha256(bytes))
})

test('250,000 one-byte frames to a paused reader cost a few times their size, not a piece each', async () => {
  await using tunnel = await rawTunnel('acceptor')
  const { end, peer } = tunnel
  peer.send(data(SYN, 1))
  const stream = await end.nextStream()
  stream.confirm()
  const frames = Buffer.concat(Array.from({ length: 10_000 }, () => data(0, 1, 'x')))
  globalThis.gc?.()
  const before = process.memoryUsage()
  for (let i = 0; i < 25; i += 1) {
    peer.send(frames)
    await peer.settled()
  }
  assert.equal(stream.heldBytes, 250_000)
  const after = process.memoryUsage()
  const grown = after.heapUsed + after.arrayBuffers - before.heapUsed - before.arrayBuffers
  assert.ok(grown < 10 * 1_048_576, `grew by ${grown} bytes`)
  const reader = new Collector(stream)
  stream.resume()
  assert.equal(reader.length, 250_000)
})

test('a bulk stream does not starve sixteen small ones', async () => {
  await using tunnel = await openTunnel()
  const bulk = await openStream(tunnel, { keepsBytes: false })
  const over = new AbortController()
  const pump = async (): Promise<void> => {
    while (!over.signal.aborted) await writeAll(bulk.near, large.subarray(0, 262_144), 65_000)
  }
  const pumping = pump()
  const rounds = 30
  const small = Array.from({ length: 16 }, async () => {
    const { near, accepted } = await openStream(tunnel)
    accepted.receiver = {
      onBytes: (bytes) => {
        accepted.write(Uint8Array.prototype.slice.call(bytes))
        return 0
      },
      onEnd: () => accepted.end(),
      onClosed: () => undefined,
      onReset: () => undefined,
      onWritable: () => undefined,
    }
    for (let i = 1; i <= rounds; i += 1) {
      near.stream.write(Buffer.from('a small request, say of sixty-four bytes, and its answer'))
      await near.until(() => near.length === i * 56)
    }
  })
  // In order, not in time: they finish while the bulk stream never stops wanting to send.
  await within(20_000, 'the small streams', Promise.all(small))
  const perRound = bulk.far.length / rounds
  over.abort()
  await pumping
  assert.ok(perRound < 16 * 1_048_576, `${perRound} bulk bytes went by in one round of small ones`)
})

test('when all streams are bulk, none gets ahead by more than a few windows', async () => {
  await using tunnel = await openTunnel()
  const streams = await Promise.all(
    Array.from({ length: 6 }, () => openStream(tunnel, { keepsBytes: false })),
  )
  const over = new AbortController()
  const pumps = streams.map(async ({ near }) => {
    while (!over.signal.aborted) await writeAll(near, large.subarray(0, 262_144), 65_000)
  })
  await eventually(() => assert.ok(streams.every(({ far }) => far.length > 8 * 1_048_576)), {
    withinMs: 20_000,
  })
  const lengths = streams.map(({ far }) => far.length)
  over.abort()
  await Promise.all(pumps)
  assert.ok(
    Math.max(...lengths) - Math.min(...lengths) < 4 * MAX_WINDOW,
    `bytes by stream: ${lengths.join(', ')}`,
  )
})

describe('opening streams', () => {
  test('256 may wait for confirmation; each answer lets the next opener go on, in order', async () => {
    await using tunnel = await rawTunnel('opener')
    const { end, peer } = tunnel
    const streams = Array.from({ length: 256 }, () => end.session.open(preface))
    assert.equal(end.session.canOpen, false)
    assert.throws(() => end.session.open(preface), { code: 'HM_TUNNEL_RETIRED' })
    const order: number[] = []
    const waiters = [1, 2, 3].map((n) =>
      end.session.room(10_000).then(() => {
        order.push(n)
        return end.session.open(preface)
      }),
    )
    peer.send(header(WINDOW_UPDATE, ACK, 1, 1))
    await waiters[0]
    assert.deepEqual(order, [1])
    assert.ok(streams[0]!.isConfirmed)
    peer.send(header(WINDOW_UPDATE, ACK | RST, 3, resetCodes.unreachable))
    await waiters[1]
    // A stream that is given up here makes room as well.
    streams[5]!.refuse('timeout')
    await waiters[2]
    assert.deepEqual(order, [1, 2, 3])
    assert.equal(end.session.canOpen, false)
  })

  test('one that waits in vain is told when its time is over', async () => {
    await using tunnel = await rawTunnel('opener', { maxStreams: 1 })
    tunnel.end.session.open(preface)
    await within(3_000, 'the end of the wait', tunnel.end.session.room(50))
    assert.equal(tunnel.end.session.canOpen, false)
  })

  for (const [name, retire] of [
    ['the session drains', (tunnel) => tunnel.end.session.drain()],
    ['the peer goes away', (tunnel) => tunnel.peer.send(header(GO_AWAY, 0, 0, 0))],
    ['the carrier is lost', (tunnel) => tunnel.end.socket.destroy()],
  ] as const satisfies readonly (readonly [
    string,
    (tunnel: Awaited<ReturnType<typeof rawTunnel>>) => void,
  ])[])
    test(`all that wait are told when ${name}`, async () => {
      await using tunnel = await rawTunnel('opener', { maxStreams: 1 })
      tunnel.end.session.open(preface)
      const waits = Promise.all(Array.from({ length: 20 }, () => tunnel.end.session.room(60_000)))
      retire(tunnel)
      await within(3_000, 'all openers', waits)
      assert.ok(tunnel.end.session.isRetired)
    })

  test('ids go up by two and end below 2^31: then the session is retired and says go-away', async () => {
    await using tunnel = await rawTunnel('opener')
    const { end, peer } = tunnel
    assert.deepEqual([end.session.open(preface).id, end.session.open(preface).id], [1, 3])
    Reflect.set(end.session, 'nextId', 2 ** 31 - 3)
    const last = end.session.open(preface)
    assert.equal(last.id, 2 ** 31 - 3)
    assert.ok(end.session.isRetired && !end.session.canOpen)
    end.session.drain()
    assert.equal((await peer.next(({ type }) => type === GO_AWAY)).length, 0)
    // The last stream works on.
    peer.send(data(ACK, last.id, 'answer'))
    const reader = new Collector(last)
    last.resume()
    await reader.until(() => reader.bytes.toString() === 'answer')
  })
})

describe('drain', () => {
  test('lets open streams finish, takes no new ones and ends the session after the last', async () => {
    await using tunnel = await openTunnel()
    const { near, far } = await openStream(tunnel)
    tunnel.acceptor.session.drain()
    await eventually(() => assert.ok(tunnel.opener.session.isRetired))
    assert.throws(() => tunnel.opener.session.open(preface), { code: 'HM_TUNNEL_RETIRED' })
    far.stream.write(large)
    far.stream.end()
    near.stream.end()
    await within(
      10_000,
      'the last bytes',
      near.until(() => near.closedInOrder),
    )
    assert.equal(sha256(near.bytes), sha256(large))
    const reasons = await Promise.all([tunnel.opener.closed, tunnel.acceptor.closed])
    assert.deepEqual(
      reasons.map(({ code }) => code),
      ['HM_TUNNEL_DRAINED', 'HM_TUNNEL_DRAINED'],
    )
    await eventually(() =>
      assert.ok(tunnel.opener.session.isGone && tunnel.acceptor.session.isGone),
    )
  })

  test('of a session without streams closes it at once', async () => {
    await using tunnel = await openTunnel()
    tunnel.opener.session.drain()
    assert.equal((await tunnel.opener.closed).code, 'HM_TUNNEL_DRAINED')
    await tunnel.acceptor.closed
    await eventually(() =>
      assert.ok(tunnel.opener.session.isGone && tunnel.acceptor.session.isGone),
    )
  })

  test('closes the connection even if the peer never ends its side', async () => {
    await using tunnel = await rawTunnel('opener', { keepaliveMs: 100 })
    tunnel.end.session.drain()
    await tunnel.end.closed
    await eventually(() => assert.ok(tunnel.end.session.isGone))
  })
})

describe('keepalive', () => {
  test('measures the round trip', async () => {
    await using tunnel = await openTunnel()
    await eventually(() => assert.ok((tunnel.opener.session.roundTripMs ?? -1) > 0))
    await eventually(() => assert.ok((tunnel.acceptor.session.roundTripMs ?? -1) > 0))
  })

  test('pings again only after silence', async () => {
    await using tunnel = await rawTunnel('opener', { keepaliveMs: 1_000 })
    const { end, peer } = tunnel
    const isPing = ({ type, flags }: { type: number; flags: number }): boolean =>
      type === PING && flags === SYN
    // The first few are sent whatever the traffic; each has a value of its own.
    const values = new Set<number>()
    for (let i = 0; i < 5; i += 1) {
      const { length } = await peer.next(isPing)
      values.add(length)
      peer.send(header(PING, ACK, 0, length))
      await peer.settled()
      end.session.tick(performance.now())
    }
    assert.equal(values.size, 5)
    assert.ok(end.session.roundTripMs !== undefined)
    const nowMs = performance.now()
    end.session.tick(nowMs + 500)
    await peer.settled()
    assert.ok(!peer.frames.some(isPing))
    end.session.tick(performance.now() + 1_001)
    await peer.next(isPing)
  })

  test('ends the session, its streams and its connection when the peer is frozen', async () => {
    await using tunnel = await openTunnel({ keepaliveMs: 60 })
    const { near } = await openStream(tunnel)
    // Frozen: the kernel still takes bytes, nobody reads them.
    tunnel.acceptor.socket.pause()
    near.stream.write(large)
    const ticker = setInterval(() => tunnel.opener.session.tick(performance.now()), 10)
    const reason = await within(5_000, 'the end', tunnel.opener.closed)
    clearInterval(ticker)
    assert.equal(reason.code, 'HM_TUNNEL_SILENT')
    assert.equal(near.reset, reason)
    assert.ok(tunnel.opener.session.isGone, 'nothing waits for a peer that does not read')
  })

  test('a certificate that expires ends the session at once', async () => {
    await using tunnel = await openTunnel()
    const { near, far } = await openStream(tunnel)
    tunnel.opener.session.expire()
    assert.equal((await tunnel.opener.closed).code, 'HM_TUNNEL_EXPIRED')
    assert.ok(near.reset instanceof MeshError)
    await far.until(() => far.reset !== undefined)
  })

  test('an acceptor that retires still serves what the opener sent before it knew', async () => {
    await using tunnel = await openTunnel()
    const { opener, acceptor } = tunnel
    acceptor.session.retire()
    assert.ok(acceptor.session.isRetired && !opener.session.isRetired)
    const late = opener.session.open(preface)
    const far = await within(5_000, 'the late stream', acceptor.nextStream())
    const ends = [new Collector(late), new Collector(far)]
    far.confirm()
    await eventually(() => assert.ok(opener.session.isRetired && late.isConfirmed))
    for (const end of ends) end.stream.resume()
    for (const end of ends) end.stream.end()
    assert.equal((await within(5_000, 'the end', opener.closed)).code, 'HM_TUNNEL_DRAINED')
    assert.equal((await within(5_000, 'the end', acceptor.closed)).code, 'HM_TUNNEL_DRAINED')
    assert.ok(ends.every(({ reset }) => reset === undefined))
  })
})
