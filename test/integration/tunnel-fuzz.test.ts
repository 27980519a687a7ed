/**
 * A session fed nonsense: it may end with a protocol error, and do nothing else. Seeded; the carrier is a
 * stand-in, so that a run costs microseconds.
 */
import assert from 'node:assert/strict'
import type { Socket } from 'node:net'
import { Duplex } from 'node:stream'
import { describe, test } from 'node:test'
import * as fc from 'fast-check'
import { FrameDecoder } from '../../src/dataplane/tunnel/decoder.ts'
import { ACK, FIN, isViolation, MAX_WINDOW, RST, SYN } from '../../src/dataplane/tunnel/frame.ts'
import type { TunnelStream } from '../../src/dataplane/tunnel/stream.ts'
import { data, FrameLog, header } from '../unit/tunnel-fixtures.ts'
import { type SessionEnd, startSession } from './tunnel-fixtures.ts'

/** A carrier in memory: what the session writes can be looked at, what it reads is emitted. */
class StandIn extends Duplex {
  readonly sent: Buffer[] = []

  constructor() {
    super({ allowHalfOpen: true })
  }

  override _read(): void {
    // Bytes are emitted by the test.
  }

  override _write(chunk: Buffer, _encoding: string, done: () => void): void {
    // Copied: the session reuses memory once write() has returned.
    this.sent.push(Buffer.from(chunk))
    done()
  }
}

interface Fed {
  readonly end: SessionEnd
  readonly carrier: StandIn
  readonly code: string | undefined
  readonly streams: readonly TunnelStream[]
}

/** What an application may do with a stream, by turns. */
const habits: readonly ((stream: TunnelStream) => void)[] = [
  (stream) => {
    stream.confirm()
    stream.resume()
  },
  (stream) => stream.confirm(),
  (stream) => stream.refuse('denied'),
  () => undefined,
  (stream) => {
    stream.confirm()
    stream.resume()
    stream.write(Buffer.alloc(5_000))
    stream.end()
  },
]

async function feed(role: 'opener' | 'acceptor', pieces: readonly Uint8Array[]): Promise<Fed> {
  const carrier = new StandIn()
  const end = startSession(carrier as unknown as Socket, role, { maxStreams: 8 })
  let code: string | undefined
  void end.closed.then((reason) => {
    code = reason.code
  })
  const streams: TunnelStream[] = []
  if (role === 'opener')
    for (let i = 0; i < 3; i += 1) streams.push(end.session.open(Buffer.from('preface')))
  for (const [i, piece] of pieces.entries()) {
    carrier.emit('data', Buffer.from(piece))
    for (const stream of end.streams.splice(0)) {
      habits[(streams.length + i) % habits.length]?.(stream)
      streams.push(stream)
    }
  }
  await new Promise((resolve) => setImmediate(resolve))
  return { end, carrier, code, streams }
}

function check({ end, carrier, code, streams }: Fed): void {
  assert.ok(
    code === undefined ||
      code === 'HM_TUNNEL_REJECTED' ||
      code === 'HM_TUNNEL_DRAINED' ||
      isViolation(code),
    `ended with ${code}`,
  )
  assert.ok(end.session.streamCount <= 8)
  for (const stream of streams) {
    assert.ok(stream.heldBytes <= MAX_WINDOW)
    assert.ok(code === undefined || stream.isClosed)
    if (stream.isClosed) assert.equal(stream.heldBytes + stream.queuedBytes, 0)
  }
  // Whatever came in, what goes out are proper frames.
  const log = new FrameLog()
  new FrameDecoder(log).push(Buffer.concat(carrier.sent))
  const goAways = log.frames.filter(({ type }) => type === 3)
  if (code !== undefined && isViolation(code)) assert.equal(goAways.at(-1)?.length, 1)
  carrier.destroy()
}

/** A conversation in which everything is allowed. */
const capture: readonly Buffer[] = [
  header(2, SYN, 0, 1),
  data(SYN, 1, 'first'),
  data(0, 1, 'more'),
  header(1, 0, 1, 1_000),
  data(SYN, 3, Buffer.alloc(3_000)),
  data(FIN, 1, 'last'),
  data(SYN, 5),
  header(1, RST, 5, 6),
  data(0, 3, Buffer.alloc(9_000)),
  header(1, FIN, 3, 0),
  header(1, SYN, 7, 0),
  data(0, 7, 'yamux style'),
  header(2, ACK, 0, 1),
]

const answers: readonly Buffer[] = [
  header(2, ACK, 0, 1),
  header(1, ACK, 1, 100),
  data(ACK, 3, 'banner'),
  data(0, 1, Buffer.alloc(2_000)),
  header(1, 0, 1, 50_000),
  header(1, ACK | RST, 5, 3),
  data(FIN, 1, 'bye'),
  data(0, 3, 'x'),
  header(1, FIN, 3, 0),
]

for (const [role, valid] of [
  ['acceptor', capture],
  ['opener', answers],
] as const)
  describe(`a session that is ${role}`, () => {
    const bytes = Buffer.concat(valid)

    test('takes the whole capture', async () => {
      const fed = await feed(role, valid)
      assert.equal(fed.code, undefined)
      check(fed)
    })

    test('survives random bytes', async () => {
      await fc.assert(
        fc.asyncProperty(
          fc.array(fc.uint8Array({ maxLength: 60 }), { maxLength: 20 }),
          async (pieces) => {
            check(await feed(role, pieces))
          },
        ),
        { seed: 21, numRuns: 1_000 },
      )
    })

    test('survives captures with changed bytes, at any cutting', async () => {
      await fc.assert(
        fc.asyncProperty(
          fc.array(fc.tuple(fc.nat(bytes.length - 1), fc.integer({ min: 1, max: 255 })), {
            minLength: 1,
            maxLength: 4,
          }),
          fc.array(fc.nat(400), { maxLength: 20 }),
          async (changes, sizes) => {
            const changed = Buffer.from(bytes)
            for (const [at, change] of changes) changed[at]! ^= change
            check(await feed(role, cut(changed, sizes)))
          },
        ),
        { seed: 22, numRuns: 2_000 },
      )
    })

    test('survives frames in any order, doubled and left out', async () => {
      const frame = fc.oneof(
        fc.constantFrom(...capture, ...answers),
        fc
          .tuple(
            fc.constantFrom(0, 1, 1, 2, 3),
            fc.constantFrom(0, 0, SYN, ACK, FIN, RST, ACK | FIN, ACK | RST),
            fc.constantFrom(0, 1, 3, 5, 7, 9, 2),
            fc.constantFrom(0, 0, 1, 5, 1_000, 262_144, 0x7fff_ffff),
          )
          .map(([type, flags, id, length]) =>
            type === 0
              ? data(flags, id, Buffer.alloc(Math.min(length, 2_000)))
              : header(type, flags, id, length),
          ),
      )
      await fc.assert(
        fc.asyncProperty(fc.array(frame, { maxLength: 60 }), async (frames) => {
          check(await feed(role, frames))
        }),
        { seed: 23, numRuns: 2_000 },
      )
    })
  })

function cut(bytes: Buffer, sizes: readonly number[]): Buffer[] {
  const pieces: Buffer[] = []
  let at = 0
  for (const size of sizes) {
    pieces.push(bytes.subarray(at, at + size))
    at += size
  }
  pieces.push(bytes.subarray(Math.min(at, bytes.length)))
  return pieces
}
