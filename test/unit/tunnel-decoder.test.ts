/**
 * Bytes to frames and back: docs/tunnel-protocol.md, "Frame" and "Misbehaviour".
 */
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import * as fc from 'fast-check'
import { KEPT } from '../../src/dataplane/io/byte-stream.ts'
import { FrameDecoder } from '../../src/dataplane/tunnel/decoder.ts'
import { HEADER_BYTES } from '../../src/dataplane/tunnel/frame.ts'
import { MeshError } from '../../src/lib/errors.ts'
import { data, decode, type Frame, FrameLog, header, vectors } from './tunnel-fixtures.ts'

const allBytes = Buffer.concat(vectors.frames.map(({ hex }) => Buffer.from(hex, 'hex')))
const allFrames: readonly Frame[] = vectors.frames.map(frameOf)

function frameOf({ type, flags, id, length, payload }: Frame): Frame {
  return { type, flags, id, length, ...(payload !== undefined && { payload }) }
}

function codeOf(action: () => unknown): string {
  try {
    action()
  } catch (error) {
    assert.ok(error instanceof MeshError, String(error))
    return error.code
  }
  return 'nothing was refused'
}

describe('each vector', () => {
  for (const vector of vectors.frames) {
    const bytes = Buffer.from(vector.hex, 'hex')
    test(`${vector.name}: decodes to its meaning`, () => {
      assert.deepEqual(decode(bytes), [frameOf(vector)])
    })
    test(`${vector.name}: is what its meaning encodes to`, () => {
      const { type, flags, id, length, payload = '' } = vector
      const encoded = Buffer.concat([header(type, flags, id, length), Buffer.from(payload, 'hex')])
      assert.equal(encoded.toString('hex'), vector.hex)
    })
  }
  for (const { name, hex, code } of vectors.refused) {
    const bytes = Buffer.from(hex, 'hex')
    test(`${name}: is refused as ${code}`, () => {
      assert.equal(
        codeOf(() => decode(bytes)),
        code,
      )
    })
    test(`${name}: is refused byte by byte, and not before the header is complete`, () => {
      const decoder = new FrameDecoder(new FrameLog())
      for (const byte of bytes.subarray(0, HEADER_BYTES - 1)) decoder.push(Uint8Array.of(byte))
      assert.equal(
        codeOf(() => decoder.push(bytes.subarray(HEADER_BYTES - 1))),
        code,
      )
    })
  }
})

test('every cut in two decodes to the same frames', () => {
  for (let cut = 0; cut <= allBytes.length; cut += 1)
    assert.deepEqual(decode(allBytes.subarray(0, cut), allBytes.subarray(cut)), allFrames)
})

test('single bytes decode to the same frames', () => {
  assert.deepEqual(decode(...Array.from(allBytes, (byte) => Uint8Array.of(byte))), allFrames)
})

test('any cutting decodes to the same frames', () => {
  fc.assert(
    fc.property(fc.array(fc.integer({ min: 0, max: 40 }), { maxLength: 80 }), (sizes) => {
      const chunks: Buffer[] = []
      let at = 0
      for (const size of sizes) {
        chunks.push(allBytes.subarray(at, at + size))
        at += size
      }
      chunks.push(allBytes.subarray(Math.min(at, allBytes.length)))
      assert.deepEqual(decode(...chunks), allFrames)
    }),
    { seed: 3, numRuns: 500 },
  )
})

test('64 KiB of tiny frames in one chunk are all told apart', () => {
  const count = Math.floor(65_536 / 13)
  const bytes = Buffer.concat(Array.from({ length: count }, (_, i) => data(0, 2 * i + 1, 'x')))
  const frames = decode(bytes)
  assert.equal(frames.length, count)
  assert.ok(frames.every(({ id, payload }, i) => id === 2 * i + 1 && payload === '78'))
})

test('payload is handed on as it arrives: a frame of 4 GiB holds no memory', () => {
  let largest = 0
  let total = 0
  const sink = new FrameLog()
  sink.onPayload = (bytes) => {
    largest = Math.max(largest, bytes.length)
    total += bytes.length
    return 0
  }
  const decoder = new FrameDecoder(sink)
  decoder.push(header(0, 0, 1, 0xffff_ffff))
  const chunk = Buffer.alloc(16_384)
  for (let i = 0; i < 1_000; i += 1) decoder.push(chunk)
  assert.equal(total, 16_384_000)
  assert.equal(largest, 16_384)
  assert.deepEqual(sink.frames, [])
})

test('push says that memory is kept exactly when a receiver kept some', () => {
  const sink = new FrameLog()
  let answer = 0
  sink.onPayload = () => answer
  const decoder = new FrameDecoder(sink)
  assert.equal(decoder.push(data(0, 1, 'a')), false)
  answer = KEPT
  assert.equal(decoder.push(Buffer.concat([data(0, 1, 'a'), header(2, 1, 0, 1)])), true)
  assert.equal(decoder.push(header(2, 1, 0, 1)), false)
})

describe('a decoder that is fed nonsense', () => {
  const chunks = fc.array(fc.uint8Array({ maxLength: 64 }), { maxLength: 40 })
  /** Headers that look right in most fields, so that the fuzz gets past the version byte. */
  const frames = fc
    .array(
      fc.tuple(
        fc.constantFrom(0, 0, 0, 0, 0, 0, 0, 1),
        fc.integer({ min: 0, max: 4 }),
        fc.oneof(fc.integer({ min: 0, max: 15 }), fc.integer({ min: 0, max: 65_535 })),
        fc.constantFrom(0, 1, 2, 3, 5, 0x7fff_ffff, 0xffff_ffff),
        fc.constantFrom(0, 1, 5, 64, 262_144, 0x7fff_ffff, 0xffff_ffff),
        fc.uint8Array({ maxLength: 80 }),
      ),
      { maxLength: 40 },
    )
    .map((parts) =>
      parts.map(([version, type, flags, id, length, payload]) => {
        const head = header(type, flags & 0xff, id, length)
        head[0] = version
        head[2] = flags >> 8
        return Buffer.concat([head, payload])
      }),
    )

  for (const [name, input] of [
    ['random bytes', chunks],
    ['random fields', frames],
  ] as const)
    test(`throws nothing but protocol errors at ${name}, and holds at most a header`, () => {
      fc.assert(
        fc.property(input, (pieces) => {
          const log = new FrameLog()
          const decoder = new FrameDecoder(log)
          try {
            for (const piece of pieces) decoder.push(piece)
          } catch (error) {
            assert.ok(error instanceof MeshError)
            assert.equal(error.code, 'HM_TUNNEL_BAD_FRAME')
          }
          const fed = pieces.reduce((sum, { length }) => sum + length, 0)
          assert.ok(log.frames.length <= fed / HEADER_BYTES)
        }),
        { seed: 7, numRuns: 4_000 },
      )
    })

  test('mutated captures decode to the original up to the first changed frame, or are refused', () => {
    const ends: number[] = []
    let end = 0
    for (const { hex } of vectors.frames) {
      end += hex.length / 2
      ends.push(end)
    }
    fc.assert(
      fc.property(
        fc.integer({ min: 0, max: allBytes.length - 1 }),
        fc.integer({ min: 1, max: 255 }),
        (at, change) => {
          const bytes = Buffer.from(allBytes)
          bytes[at]! ^= change
          const log = new FrameLog()
          try {
            new FrameDecoder(log).push(bytes)
          } catch (error) {
            assert.ok(error instanceof MeshError)
          }
          const intact = ends.filter((limit) => limit <= at).length
          assert.deepEqual(log.frames.slice(0, intact), allFrames.slice(0, intact))
        },
      ),
      { seed: 11, numRuns: 4_000 },
    )
  })
})
