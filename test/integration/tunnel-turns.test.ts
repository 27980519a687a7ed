/**
 * How much a session does for its caller in one turn of the event loop, whatever the peer sends: docs/tunnel-protocol.md,
 * "Fair shares". Counted by turns, not by a clock.
 */
import assert from 'node:assert/strict'
import { connect, createServer, type Socket } from 'node:net'
import { describe, test } from 'node:test'
import { setImmediate as nextTurn } from 'node:timers/promises'
import { SocketStream } from '../../src/dataplane/io/socket-stream.ts'
import { TURN_SHARE, TurnShare } from '../../src/dataplane/io/turn-share.ts'
import { RST, resetCodes, SYN, WINDOW_UPDATE } from '../../src/dataplane/tunnel/frame.ts'
import type { TunnelStream } from '../../src/dataplane/tunnel/stream.ts'
import { eventually } from '../harness/eventually.ts'
import { looseAccount } from '../unit/account-fixtures.ts'
import { data, header } from '../unit/tunnel-fixtures.ts'
import { Collector, rawTunnel, type SessionEnd } from './tunnel-fixtures.ts'

const STREAMS = 1_000

/** Somebody else who wants the thread: who is alone may do more. */
const others = new TurnShare()

/** A stream that is broken off costs a twentieth of a millisecond; so many are a share. */
const RESETS_A_TURN = TURN_SHARE / 50_000

/** Counts endings, and the most of them between two turns. */
class Endings {
  total = 0
  most = 0
  private inThisTurn = 0

  count(): void {
    this.total += 1
    this.inThisTurn += 1
    this.most = Math.max(this.most, this.inThisTurn)
  }

  /** Resolves when there have been so many. */
  async until(total: number): Promise<void> {
    while (this.total < total) {
      others.spend(1)
      await nextTurn()
      this.inThisTurn = 0
    }
  }
}

/** Takes streams that the peer opens, and counts how they end. */
async function takeStreams(end: SessionEnd, count: number): Promise<Endings> {
  const endings = new Endings()
  for (let i = 0; i < count; i += 1) {
    const stream = await end.nextStream()
    stream.receiver = {
      onBytes: () => 0,
      onEnd: () => undefined,
      onClosed: () => undefined,
      onWritable: () => undefined,
      onReset: () => endings.count(),
    }
    stream.resume()
  }
  return endings
}

function opened(count: number): Buffer {
  return Buffer.concat(Array.from({ length: count }, (_, i) => data(SYN, 2 * i + 1, 'hello')))
}

describe('streams that end together', () => {
  test('by resets of the peer are told in many turns', async () => {
    await using tunnel = await rawTunnel('acceptor')
    const { end, peer } = tunnel
    peer.send(opened(STREAMS))
    const endings = await takeStreams(end, STREAMS)
    peer.send(
      ...Array.from({ length: STREAMS }, (_, i) =>
        header(WINDOW_UPDATE, RST, 2 * i + 1, resetCodes.aborted),
      ),
    )
    await endings.until(STREAMS)
    assert.ok(endings.most <= 2 * RESETS_A_TURN, `${endings.most} in one turn`)
    assert.equal(end.session.streamCount, 0)
  })

  test('with their session too', async () => {
    await using tunnel = await rawTunnel('acceptor')
    const { end, peer } = tunnel
    peer.send(opened(STREAMS))
    const endings = await takeStreams(end, STREAMS)
    end.socket.destroy()
    await end.closed
    await endings.until(STREAMS)
    assert.ok(endings.most <= 2 * RESETS_A_TURN, `${endings.most} in one turn`)
    assert.equal(end.session.streamCount, 0)
  })

  test('may go on as if nothing had happened until they are told', async () => {
    await using tunnel = await rawTunnel('acceptor')
    const { end, peer } = tunnel
    peer.send(opened(100))
    const streams: TunnelStream[] = []
    for (let i = 0; i < 100; i += 1) streams.push(await end.nextStream())
    end.socket.destroy()
    await end.closed
    const late = streams.filter((stream) => !stream.isClosed)
    assert.ok(late.length > 0)
    for (const stream of late) {
      stream.write(Buffer.from('nobody reads this'))
      stream.resume()
      stream.end()
    }
    await eventually(() => assert.ok(streams.every((stream) => stream.isClosed)))
  })
})

test('what was read beyond the share comes later, in order, and before the end', async () => {
  await using tunnel = await rawTunnel('acceptor')
  const { end, peer } = tunnel
  const words = Array.from({ length: 20_000 }, (_, i) => `${i} `)
  peer.send(data(SYN, 1, ''), ...words.map((word) => data(0, 1, word)))
  peer.end()
  const told = new Collector(await end.nextStream())
  told.stream.resume()
  await told.until(() => told.reset !== undefined)
  assert.equal(told.bytes.toString(), words.join(''))
})

describe('applications that all answer at once', () => {
  const CONNECTIONS = 200
  const ANSWER_BYTES = 200_000

  test('are read from in turns, and none is left out', async () => {
    const server = createServer((socket) => {
      socket.on('error', () => undefined)
      socket.end(Buffer.alloc(ANSWER_BYTES))
    })
    await new Promise<void>((resolve) => {
      server.listen(0, '127.0.0.1', resolve)
    })
    const address = server.address()
    assert.ok(typeof address === 'object' && address !== null)
    const account = looseAccount()
    const sockets: Socket[] = []
    const told: Collector[] = []
    let readInThisTurn = 0
    let most = 0
    for (let i = 0; i < CONNECTIONS; i += 1) {
      const socket = connect({ host: '127.0.0.1', port: address.port, allowHalfOpen: true })
      socket.pause()
      sockets.push(socket)
      await new Promise((resolve) => socket.once('connect', resolve))
      const stream = new SocketStream(socket, 'shared')
      stream.chargeTo(account)
      const collector = new Collector(stream, { keepsBytes: false })
      stream.receiver = {
        onBytes: (bytes) => {
          readInThisTurn += bytes.length
          return collector.onBytes(bytes)
        },
        onEnd: () => collector.onEnd(),
        onClosed: () => collector.onClosed(),
        onReset: (reason) => collector.onReset(reason),
        onWritable: () => collector.onWritable(),
      }
      told.push(collector)
    }
    for (const { stream } of told) stream.resume()
    const perTurn: number[] = []
    while (!told.every(({ ended }) => ended)) {
      others.spend(1)
      await nextTurn()
      perTurn.push(readInThisTurn)
      readInThisTurn = 0
    }
    for (const collector of told) assert.equal(collector.length, ANSWER_BYTES)
    // Each is read from once before it is known how much there is; from then on they take turns.
    most = Math.max(...perTurn.slice(2))
    const whole = CONNECTIONS * ANSWER_BYTES
    assert.ok(most < whole / 4, `${most} of ${whole} bytes in one turn`)
    assert.ok(perTurn.length > 20, `in ${perTurn.length} turns`)
    assert.equal(account.turns.postponed, 0)
    for (const socket of sockets) socket.destroy()
    await new Promise((resolve) => server.close(resolve))
  })
})
