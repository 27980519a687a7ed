/**
 * What a peer that breaks the protocol gets: docs/tunnel-protocol.md, "Misbehaviour", "Limits", "Stream".
 * A real session over loopback against a peer that is written by hand.
 */
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import {
  ACK,
  DATA,
  FIN,
  GO_AWAY,
  INITIAL_CREDIT,
  PING,
  RST,
  resetCodes,
  SYN,
  WINDOW_UPDATE,
} from '../../src/dataplane/tunnel/frame.ts'
import { StreamResetError } from '../../src/dataplane/tunnel/stream.ts'
import { eventually, within } from '../harness/eventually.ts'
import { looseLane, makeAccounts } from '../unit/account-fixtures.ts'
import { data, header, vectors } from '../unit/tunnel-fixtures.ts'
import { Collector, type RawPeer, rawTunnel, startSession, tcpPair } from './tunnel-fixtures.ts'

const open = data(SYN, 1, 'hello')
const emptyData = header(DATA, 0, 1, 0)

function repeat(frame: Buffer, times: number): Buffer {
  return Buffer.concat(Array.from({ length: times }, () => frame))
}

interface Row {
  readonly name: string
  /** Sent after stream 1 was opened, on either side. */
  readonly bytes: Buffer
  readonly code: string
}

const toAcceptor: readonly Row[] = [
  ...vectors.refused.map(({ name, hex, code }) => ({ name, bytes: Buffer.from(hex, 'hex'), code })),
  { name: 'SYN with an even id', bytes: data(SYN, 2), code: 'HM_TUNNEL_BAD_STREAM_ID' },
  { name: 'SYN on a live id', bytes: data(SYN, 1), code: 'HM_TUNNEL_BAD_STREAM_ID' },
  {
    name: 'SYN by window update on a live id',
    bytes: header(WINDOW_UPDATE, SYN, 1, 0),
    code: 'HM_TUNNEL_BAD_STREAM_ID',
  },
  {
    name: 'ids that go down',
    bytes: Buffer.concat([data(SYN, 9), data(SYN, 7)]),
    code: 'HM_TUNNEL_BAD_STREAM_ID',
  },
  {
    name: 'an id used again after its stream was reset',
    bytes: Buffer.concat([header(WINDOW_UPDATE, RST, 1, 0), data(SYN, 1)]),
    code: 'HM_TUNNEL_BAD_STREAM_ID',
  },
  { name: 'ACK from the opener', bytes: data(ACK, 1), code: 'HM_TUNNEL_BAD_STREAM_ID' },
  {
    name: 'data for a stream that never was',
    bytes: data(0, 3, 'x'),
    code: 'HM_TUNNEL_BAD_STREAM_ID',
  },
  {
    name: 'data for an even stream below others',
    bytes: Buffer.concat([data(SYN, 9), data(0, 4, 'x')]),
    code: 'HM_TUNNEL_BAD_STREAM_ID',
  },
  {
    name: 'credit for a stream that never was',
    bytes: header(WINDOW_UPDATE, 0, 0x7fff_ffff, 1),
    code: 'HM_TUNNEL_BAD_STREAM_ID',
  },
  {
    name: 'one byte more than credit',
    bytes: header(DATA, 0, 1, INITIAL_CREDIT - 5 + 1),
    code: 'HM_TUNNEL_CREDIT_EXCEEDED',
  },
  {
    name: '4 GiB more than credit',
    bytes: header(DATA, 0, 1, 0xffff_ffff),
    code: 'HM_TUNNEL_CREDIT_EXCEEDED',
  },
  {
    name: 'a first frame larger than the first credit',
    bytes: header(DATA, SYN, 3, INITIAL_CREDIT + 1),
    code: 'HM_TUNNEL_CREDIT_EXCEEDED',
  },
  {
    name: 'credit used up in many frames, and one byte more',
    bytes: Buffer.concat([data(0, 1, Buffer.alloc(INITIAL_CREDIT - 5)), data(0, 1, 'x')]),
    code: 'HM_TUNNEL_CREDIT_EXCEEDED',
  },
  {
    name: 'credit of 2^31 - 1 on top of the first',
    bytes: header(WINDOW_UPDATE, 0, 1, 0x7fff_ffff),
    code: 'HM_TUNNEL_CREDIT_OVERFLOW',
  },
  {
    name: 'credit of 2^32 - 1',
    bytes: header(WINDOW_UPDATE, 0, 1, 0xffff_ffff),
    code: 'HM_TUNNEL_CREDIT_OVERFLOW',
  },
  {
    name: 'credit that overflows by repetition',
    bytes: repeat(header(WINDOW_UPDATE, 0, 1, 0x4000_0000), 2),
    code: 'HM_TUNNEL_CREDIT_OVERFLOW',
  },
  {
    name: 'a SYN that gives too much credit',
    bytes: header(WINDOW_UPDATE, SYN, 3, 0x7fff_ffff),
    code: 'HM_TUNNEL_CREDIT_OVERFLOW',
  },
  {
    name: 'credit of nothing without end',
    bytes: repeat(header(WINDOW_UPDATE, 0, 1, 0), 1_000_000),
    code: 'HM_TUNNEL_FLOOD',
  },
  {
    name: 'credit of next to nothing without end',
    bytes: repeat(header(WINDOW_UPDATE, 0, 1, 1), 10_001),
    code: 'HM_TUNNEL_FLOOD',
  },
  {
    name: 'go-away without end',
    bytes: repeat(header(GO_AWAY, 0, 0, 0), 10_002),
    code: 'HM_TUNNEL_FLOOD',
  },
  { name: 'empty data without end', bytes: repeat(emptyData, 10_001), code: 'HM_TUNNEL_FLOOD' },
  {
    name: 'data for a closed stream without end',
    bytes: Buffer.concat([header(WINDOW_UPDATE, RST, 1, 0), repeat(data(0, 1, 'x'), 10_001)]),
    code: 'HM_TUNNEL_FLOOD',
  },
  {
    name: 'answers to pings that were never asked',
    bytes: repeat(header(PING, ACK, 0, 77), 10_001),
    code: 'HM_TUNNEL_FLOOD',
  },
  { name: 'eleven pings', bytes: repeat(header(PING, SYN, 0, 1), 11), code: 'HM_TUNNEL_FLOOD' },
  {
    name: '50,001 opened streams',
    bytes: Buffer.concat(
      Array.from({ length: 50_001 }, (_, i) =>
        Buffer.concat([data(SYN, 3 + 2 * i), header(WINDOW_UPDATE, RST, 3 + 2 * i, 0)]),
      ),
    ),
    code: 'HM_TUNNEL_FLOOD',
  },
]

const toOpener: readonly Row[] = [
  { name: 'SYN from the accepting side', bytes: data(SYN, 2), code: 'HM_TUNNEL_BAD_STREAM_ID' },
  {
    name: 'SYN with an odd id from the accepting side',
    bytes: data(SYN, 3),
    code: 'HM_TUNNEL_BAD_STREAM_ID',
  },
  {
    name: 'a second ACK',
    bytes: repeat(header(WINDOW_UPDATE, ACK, 1, 1), 2),
    code: 'HM_TUNNEL_BAD_STREAM_ID',
  },
  {
    name: 'data for a stream not opened yet',
    bytes: data(0, 3, 'x'),
    code: 'HM_TUNNEL_BAD_STREAM_ID',
  },
  { name: 'data for an even stream', bytes: data(0, 2, 'x'), code: 'HM_TUNNEL_BAD_STREAM_ID' },
  {
    name: 'more than credit',
    bytes: header(DATA, ACK, 1, INITIAL_CREDIT + 1),
    code: 'HM_TUNNEL_CREDIT_EXCEEDED',
  },
]

for (const [role, rows] of [
  ['acceptor', toAcceptor],
  ['opener', toOpener],
] as const)
  describe(`a session that ${role === 'acceptor' ? 'accepts' : 'opens'} streams`, () => {
    for (const { name, bytes, code } of rows)
      test(`ends with ${code} and go-away 1 at ${name}`, async () => {
        await using tunnel = await rawTunnel(role)
        const { end, peer } = tunnel
        if (role === 'acceptor') peer.send(open)
        const stream =
          role === 'acceptor' ? await end.nextStream() : end.session.open(Buffer.from('hello'))
        const application = new Collector(stream)
        peer.send(bytes)
        const reason = await within(5_000, 'the end of the session', end.closed)
        assert.equal(reason.code, code)
        const goAway = await peer.next(({ type }) => type === GO_AWAY)
        assert.equal(goAway.length, 1)
        assert.equal(end.session.streamCount, 0)
        // After a flood that may be some turns later.
        await eventually(() => assert.ok(stream.isClosed))
        // Where the stream itself was reset before, its owner has been told of that instead.
        assert.ok(application.reset !== undefined)
        assert.equal(application.ended, false)
        await within(3_000, 'the end of the connection', peer.over)
      })
  })

/** An acceptor that confirms stream 1 and shows what its application sees. */
async function confirmed(
  tunnel: Awaited<ReturnType<typeof rawTunnel>>,
): Promise<{ peer: RawPeer; application: Collector }> {
  const { end, peer } = tunnel
  peer.send(open)
  const stream = await end.nextStream()
  const application = new Collector(stream)
  stream.resume()
  stream.confirm()
  await peer.next(({ flags }) => (flags & ACK) !== 0)
  return { peer, application }
}

describe('only the stream is reset, and another goes on', () => {
  for (const [name, bytes] of [
    ['data after FIN', Buffer.concat([data(FIN, 1), data(0, 1, 'late')])],
    ['a second FIN', Buffer.concat([data(FIN, 1), data(FIN, 1)])],
    [
      'a second FIN on a window update',
      Buffer.concat([data(FIN, 1), header(WINDOW_UPDATE, FIN, 1, 0)]),
    ],
  ] as const)
    test(name, async () => {
      await using tunnel = await rawTunnel('acceptor')
      const { peer, application } = await confirmed(tunnel)
      peer.send(bytes, data(SYN, 3, 'next'))
      const reset = await peer.next(({ flags, id }) => (flags & RST) !== 0 && id === 1)
      assert.equal(reset.length, resetCodes.unspecified)
      assert.ok(application.reset instanceof StreamResetError)
      assert.equal(application.bytes.toString(), 'hello')
      const next = await tunnel.end.nextStream()
      const other = new Collector(next)
      next.resume()
      assert.equal(other.bytes.toString(), 'next')
    })

  test('data after RST is ignored, payload and all', async () => {
    await using tunnel = await rawTunnel('acceptor')
    const { peer, application } = await confirmed(tunnel)
    peer.send(header(WINDOW_UPDATE, RST, 1, resetCodes.denied), repeat(data(0, 1, 'late'), 100))
    await peer.settled()
    assert.ok(application.reset instanceof StreamResetError)
    assert.equal(application.reset.reason, 'denied')
    assert.equal(application.bytes.toString(), 'hello')
    assert.equal(tunnel.end.session.streamCount, 0)
  })

  test('an RST on a data frame delivers the data and then resets', async () => {
    await using tunnel = await rawTunnel('acceptor')
    const { peer, application } = await confirmed(tunnel)
    peer.send(data(RST, 1, '!'))
    await peer.settled()
    assert.equal(application.bytes.toString(), 'hello!')
    assert.ok(application.reset instanceof StreamResetError)
    assert.equal(application.ended, false)
  })
})

test('a reset code that nobody knows is unspecified', async () => {
  await using tunnel = await rawTunnel('acceptor')
  const { peer, application } = await confirmed(tunnel)
  peer.send(header(WINDOW_UPDATE, RST, 1, 0xffff_ffff))
  await peer.settled()
  assert.ok(application.reset instanceof StreamResetError)
  assert.equal(application.reset.reason, 'unspecified')
})

test('ten pings are answered with their values', async () => {
  await using tunnel = await rawTunnel('acceptor')
  for (let value = 1; value <= 10; value += 1) tunnel.peer.send(header(PING, SYN, 0, value))
  await tunnel.peer.until(
    () => tunnel.peer.frames.filter(({ flags }) => flags === ACK).length === 10,
  )
  assert.deepEqual(
    tunnel.peer.frames.filter(({ flags }) => flags === ACK).map(({ length }) => length),
    [1, 2, 3, 4, 5, 6, 7, 8, 9, 10],
  )
})

test('the rate windows begin anew with each second', async () => {
  await using tunnel = await rawTunnel('acceptor')
  const { end, peer } = tunnel
  const { peer: raw } = await confirmed(tunnel)
  let nowMs = performance.now()
  for (let second = 0; second < 3; second += 1) {
    raw.send(repeat(emptyData, 9_000), repeat(header(PING, SYN, 0, 5), 8))
    await peer.settled()
    nowMs += 1_001
    end.session.tick(nowMs)
  }
  assert.equal(end.session.streamCount, 1)
})

test('of 10,000 streams opened and reset in one write some are looked at, and all are forgotten', async () => {
  await using tunnel = await rawTunnel('acceptor')
  const { end, peer } = tunnel
  peer.send(
    ...Array.from({ length: 10_000 }, (_, i) =>
      Buffer.concat([data(SYN, 1 + 2 * i, 'x'), header(WINDOW_UPDATE, RST, 1 + 2 * i, 0)]),
    ),
  )
  await within(5_000, 'an answer to a ping', peer.settled())
  assert.equal(end.session.streamCount, 0)
  assert.equal(end.streams.length + end.shed.streams, 10_000)
  assert.ok(end.streams.length >= 5_000 && end.shed.streams > 3_000, `${end.shed.streams} shed`)
  const resets = peer.frames.filter(({ flags }) => (flags & RST) !== 0)
  assert.equal(resets.length, end.shed.streams, 'each of the others is told')
  assert.ok(resets.every(({ length }) => length === resetCodes.overloaded))
  assert.ok(end.streams.every(({ isClosed, heldBytes }) => isClosed && heldBytes === 0))
})

test('a peer that opens and resets without end is thrown out, and banned the third time', async () => {
  const lane = looseLane()
  for (let session = 1; session <= 3; session += 1) {
    assert.equal(lane.bannedForMs(performance.now(), undefined), 0)
    await using tunnel = await rawTunnel('acceptor', { lane })
    const { end, peer } = tunnel
    for (let id = 1; !end.session.isRetired; ) {
      const frames: Buffer[] = []
      for (let i = 0; i < 2_000; i += 1, id += 2)
        frames.push(data(SYN, id, 'x'), header(WINDOW_UPDATE, RST, id, 0))
      peer.send(...frames)
      await new Promise((resolve) => setImmediate(resolve))
    }
    assert.equal((await end.closed).code, 'HM_TUNNEL_FLOOD')
  }
  assert.ok(lane.bannedForMs(performance.now(), undefined) > 0)
  const other = lane.account.lane('another destination', performance.now())
  assert.equal(other.bannedForMs(performance.now(), undefined), 0)
})

test('an aborted stream that stood is no futile one: 2,000 of them after another change nothing', async () => {
  await using tunnel = await rawTunnel('acceptor')
  const { end, peer } = tunnel
  for (let i = 0; i < 2_000; i += 1) {
    const id = 1 + 2 * i
    peer.send(data(SYN, id, 'x'))
    const stream = await end.nextStream()
    stream.confirm()
    peer.send(header(WINDOW_UPDATE, RST, id, resetCodes.aborted))
    if (i % 100 === 99) await peer.settled()
  }
  await peer.settled()
  assert.equal(end.shed.streams, 0)
  assert.equal(end.session.streamCount, 0)
})

test('bytes for closed streams: what an aborted upload has under way is ignored, more than that ends the session', async () => {
  await using tunnel = await rawTunnel('acceptor')
  const { end, peer } = tunnel
  peer.send(open, header(WINDOW_UPDATE, RST, 1, 0))
  const chunk = data(0, 1, Buffer.alloc(1_048_576))
  peer.send(chunk, chunk, chunk, chunk)
  await peer.settled()
  assert.equal(end.session.isRetired, false)
  peer.send(header(DATA, 0, 1, 0xffff_ffff))
  assert.equal((await end.closed).code, 'HM_TUNNEL_CREDIT_EXCEEDED')
})

test('bytes for closed streams without end are a flood', async () => {
  await using tunnel = await rawTunnel('acceptor')
  const { end, peer } = tunnel
  peer.send(open, header(WINDOW_UPDATE, RST, 1, 0))
  const chunk = data(0, 1, Buffer.alloc(1_048_576))
  for (let i = 0; i < 1_000 && !end.session.isRetired; i += 1) {
    peer.send(chunk)
    await new Promise((resolve) => setImmediate(resolve))
  }
  assert.equal((await within(20_000, 'the end', end.closed)).code, 'HM_TUNNEL_FLOOD')
})

test('a peer that reads no answers is thrown out before they pile up', async () => {
  await using pair = await tcpPair()
  const end = startSession(pair.far, 'acceptor')
  pair.near.on('error', () => undefined)
  // As if the buffers of the kernel were full already.
  pair.far.write = () => false
  let id = 1
  for (let round = 1; !end.session.isRetired && round <= 60; round += 1) {
    const frames: Buffer[] = []
    for (let i = 0; i < 2_000; i += 1, id += 2) frames.push(data(SYN, id, 'x'))
    pair.near.write(Buffer.concat(frames))
    await new Promise((resolve) => setTimeout(resolve, 110))
    end.session.tick(performance.now())
    for (const stream of end.streams.splice(0)) stream.refuse('malformed')
  }
  const reason = await within(20_000, 'the end', end.closed)
  assert.equal(reason.code, 'HM_TUNNEL_FLOOD')
  assert.match(reason.message, /answers/)
  assert.ok(id < 2 * 60_000, `${id}: not before 40,000 answers, and soon after`)
})

test('a caller for which much is held gets no more held: its stream is reset, those of others are not', async () => {
  const { accounts } = makeAccounts({ heldBytes: 3 * 1_048_576 }, performance.now())
  const laneOf = (caller: string) =>
    accounts.of(caller, performance.now()).lane('db', performance.now())
  await using hog = await rawTunnel('acceptor', { lane: laneOf('hog') })
  await using meek = await rawTunnel('acceptor', { lane: laneOf('meek') })
  const applications: Collector[] = []
  for (let i = 0; i < 12; i += 1) {
    hog.peer.send(data(SYN, 1 + 2 * i, Buffer.alloc(200_000)))
    applications.push(new Collector(await hog.end.nextStream()))
  }
  await hog.peer.settled()
  assert.ok(hog.end.shed.memory > 0)
  assert.equal(applications.filter(({ stream }) => stream.isClosed).length, hog.end.shed.memory)
  const { held } = accounts.shared
  assert.ok(held.used <= 3 * 1_048_576, `${held.used} held`)
  meek.peer.send(data(SYN, 1, Buffer.alloc(200_000, 'm')))
  const stream = await meek.end.nextStream()
  const application = new Collector(stream)
  await meek.peer.settled()
  assert.equal(meek.end.shed.memory, 0)
  stream.resume()
  assert.equal(application.length, 200_000)
  hog.end.session.expire()
  meek.end.session.expire()
  // Streams are told in turns.
  await eventually(() => assert.equal(held.used, 0, 'nothing remains'))
})

test('a writer for whose caller much is held is stopped before it has bytes that nobody gives credit for', async () => {
  const { accounts } = makeAccounts({ heldBytes: 1_048_576 }, performance.now())
  const account = accounts.of('web', performance.now())
  const lane = account.lane('db', performance.now())
  await using tunnel = await rawTunnel('acceptor', { lane })
  const { end, peer } = tunnel
  account.hold(300_000)
  peer.send(open)
  const stream = await end.nextStream()
  const application = new Collector(stream)
  stream.confirm()
  const chunk = Buffer.alloc(8_000)
  let chunks = 1
  while (stream.write(chunk) === 0 && chunks < 50) {
    chunks += 1
    await peer.settled()
  }
  assert.equal(chunks, 25, 'of 262,144 bytes of credit it leaves what a socket may read at once')
  assert.equal(stream.queuedBytes, 0)
  peer.send(header(WINDOW_UPDATE, 0, 1, 60_000))
  await application.until(() => application.writable === 1)
  account.hold(-300_000)
})

test('streams beyond the limit are reset as overloaded, those below live', async () => {
  await using tunnel = await rawTunnel('acceptor', { maxStreams: 3 })
  const { end, peer } = tunnel
  for (let id = 1; id <= 9; id += 2) peer.send(data(SYN, id, 'x'))
  await peer.settled()
  assert.equal(end.session.streamCount, 3)
  const resets = peer.frames.filter(({ flags }) => (flags & RST) !== 0)
  assert.deepEqual(
    resets.map(({ id, length }) => ({ id, length })),
    [
      { id: 7, length: resetCodes.overloaded },
      { id: 9, length: resetCodes.overloaded },
    ],
  )
})

describe('go-away', () => {
  test('in order: new streams are refused as draining, the open one finishes, then the session ends', async () => {
    await using tunnel = await rawTunnel('acceptor')
    const { peer, application } = await confirmed(tunnel)
    peer.send(header(GO_AWAY, 0, 0, 0), data(SYN, 3, 'x'))
    const refusal = await peer.next(({ id, flags }) => id === 3 && (flags & RST) !== 0)
    assert.equal(refusal.length, resetCodes.draining)
    peer.send(data(FIN, 1, ' there'))
    await application.until(() => application.ended)
    assert.equal(application.bytes.toString(), 'hello there')
    application.stream.end()
    assert.equal((await tunnel.end.closed).code, 'HM_TUNNEL_DRAINED')
    await peer.next(({ id, flags }) => id === 1 && (flags & FIN) !== 0)
  })

  for (const code of [1, 2, 3, 0xffff_ffff])
    test(`with code ${code} ends the session and resets its streams`, async () => {
      await using tunnel = await rawTunnel('acceptor')
      const { peer, application } = await confirmed(tunnel)
      peer.send(header(GO_AWAY, 0, 0, code))
      const reason = await tunnel.end.closed
      assert.equal(reason.code, 'HM_TUNNEL_REJECTED')
      assert.match(reason.message, new RegExp(`${code}`))
      assert.equal(application.reset, reason)
    })
})

describe('a header that is cut off', () => {
  for (let cut = 0; cut < 12; cut += 1)
    test(`after ${cut} bytes and then an end resets the open streams`, async () => {
      await using tunnel = await rawTunnel('acceptor')
      const { peer, application } = await confirmed(tunnel)
      peer.send(data(0, 1, '!').subarray(0, cut))
      peer.end()
      const reason = await tunnel.end.closed
      assert.equal(reason.code, 'HM_TUNNEL_LOST')
      assert.equal(application.reset, reason)
      assert.equal(application.ended, false)
    })

  test('and then silence is ended by keepalive', async () => {
    await using tunnel = await rawTunnel('acceptor', { keepaliveMs: 1_000 })
    const { peer, application } = await confirmed(tunnel)
    const startedMs = performance.now()
    peer.send(data(0, 1, '!').subarray(0, 7))
    tunnel.end.session.tick(startedMs + 900)
    assert.equal(application.reset, undefined)
    tunnel.end.session.tick(startedMs + 1_001)
    assert.equal((await tunnel.end.closed).code, 'HM_TUNNEL_SILENT')
    assert.ok(application.reset !== undefined)
  })

  test('a payload that is cut off resets the stream too', async () => {
    await using tunnel = await rawTunnel('acceptor')
    const { peer, application } = await confirmed(tunnel)
    peer.send(header(DATA, FIN, 1, 10), Buffer.from('12345'))
    peer.end()
    assert.equal((await tunnel.end.closed).code, 'HM_TUNNEL_LOST')
    assert.equal(application.bytes.toString(), 'hello12345')
    assert.equal(application.ended, false)
    assert.ok(application.reset !== undefined)
  })
})

test('one byte a segment has the same effect as all at once', async () => {
  await using tunnel = await rawTunnel('acceptor')
  const { peer, application } = await confirmed(tunnel)
  const bytes = Buffer.concat([
    data(0, 1, ' one'),
    header(WINDOW_UPDATE, 0, 1, 5),
    data(SYN, 3, 'two'),
    data(FIN, 1, ' more'),
    data(FIN, 3),
  ])
  for (const byte of bytes) {
    peer.send(Uint8Array.of(byte))
    await new Promise((resolve) => setImmediate(resolve))
  }
  await application.until(() => application.ended)
  assert.equal(application.bytes.toString(), 'hello one more')
  const second = await tunnel.end.nextStream()
  const other = new Collector(second)
  second.resume()
  await other.until(() => other.ended)
  assert.equal(other.bytes.toString(), 'two')
})

test('beyond 64 MiB held, a stream that holds much is reset and its owner told; others stay', async () => {
  await using tunnel = await rawTunnel('acceptor')
  const { end, peer } = tunnel
  const window = Buffer.alloc(INITIAL_CREDIT)
  const small = 1
  peer.send(data(SYN, small, 'little'))
  const little = new Collector(await end.nextStream())
  const hogs: Collector[] = []
  // 256 streams of 256 KiB are exactly the limit; the little one is beyond it.
  for (let i = 0; i < 256; i += 1) {
    peer.send(data(SYN, 3 + 2 * i, window.subarray(0, INITIAL_CREDIT - 1)))
    hogs.push(new Collector(await end.nextStream()))
  }
  peer.send(data(SYN, 1_001, Buffer.alloc(1_000)))
  await peer.settled()
  assert.equal(end.session.streamCount, 258)
  peer.send(data(0, 3, 'x'), data(0, small, '!'))
  const reset = await peer.next(({ flags }) => (flags & RST) !== 0)
  assert.deepEqual({ id: reset.id, code: reset.length }, { id: 3, code: resetCodes.overloaded })
  await peer.settled()
  assert.ok(hogs[0]!.reset instanceof StreamResetError, 'the owner is told')
  assert.equal(hogs[1]!.reset, undefined)
  little.stream.resume()
  assert.equal(little.bytes.toString(), 'little!')
})

test('a peer that hangs up before its first word has refused, and one that has spoken is lost', async () => {
  await using silent = await rawTunnel('opener')
  silent.peer.end()
  assert.equal((await silent.end.closed).code, 'HM_TUNNEL_REFUSED')
  await using known = await rawTunnel('opener')
  known.peer.send(header(PING, SYN, 0, 7))
  await known.peer.until(() =>
    known.peer.frames.some(({ type, flags }) => type === PING && flags === ACK),
  )
  known.peer.end()
  assert.equal((await known.end.closed).code, 'HM_TUNNEL_LOST')
})
