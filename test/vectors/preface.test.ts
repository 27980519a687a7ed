/**
 * The first bytes of a stream: docs/tunnel-protocol.md, "Preface".
 */
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { describe, test } from 'node:test'
import * as fc from 'fast-check'
import {
  encodePreface,
  MAX_PREFACE_BYTES,
  type Preface,
  readPreface,
} from '../../src/dataplane/tunnel/preface.ts'
import { canonicalIp, ipFromBytes } from '../../src/model/address.ts'

interface Vector {
  readonly name: string
  readonly hex: string
  readonly preface: Partial<Preface>
}

const vectors = JSON.parse(
  readFileSync(new URL('./tunnel/prefaces.json', import.meta.url), 'utf8'),
) as {
  readonly prefaces: readonly Vector[]
  readonly also: readonly Vector[]
  readonly refused: readonly { readonly name: string; readonly hex: string }[]
}

function bytesOf({ hex }: { readonly hex: string }): Buffer {
  return Buffer.from(hex.replaceAll(' ', ''), 'hex')
}

function whole(parts: Partial<Preface>): Preface {
  return {
    source: undefined,
    destination: undefined,
    instance: undefined,
    traceparent: undefined,
    ...parts,
  }
}

const application = Buffer.from('application bytes behind the preface')

describe('each vector', () => {
  for (const vector of vectors.prefaces) {
    const bytes = bytesOf(vector)
    test(`${vector.name}: is written as its bytes`, () => {
      assert.equal(encodePreface(whole(vector.preface)).toString('hex'), bytes.toString('hex'))
    })
  }
  for (const vector of [...vectors.prefaces, ...vectors.also]) {
    const bytes = bytesOf(vector)
    test(`${vector.name}: is read as its meaning, and application bytes begin behind it`, () => {
      assert.deepEqual(readPreface(Buffer.concat([bytes, application])), {
        state: 'complete',
        preface: whole(vector.preface),
        length: bytes.length,
      })
    })
    test(`${vector.name}: is incomplete until its last byte`, () => {
      for (let length = 0; length < bytes.length; length += 1)
        assert.deepEqual(readPreface(bytes.subarray(0, length)), { state: 'incomplete' })
      assert.equal(readPreface(bytes).state, 'complete')
    })
  }
  for (const vector of vectors.refused)
    test(`${vector.name}: is refused, and stays so whatever follows`, () => {
      const bytes = bytesOf(vector)
      assert.equal(readPreface(bytes).state, 'malformed')
      assert.equal(readPreface(Buffer.concat([bytes, Buffer.alloc(100)])).state, 'malformed')
    })
})

test('a preface of exactly the largest size is read, one byte more is refused', () => {
  const filled = (body: number): Buffer => {
    const bytes = Buffer.alloc(16 + body)
    Buffer.from('0d0a0d0a000d0a515549540a2000', 'hex').copy(bytes)
    bytes.writeUInt16BE(body, 14)
    bytes[16] = 0x04
    bytes.writeUInt16BE(body - 3, 17)
    return bytes
  }
  assert.equal(readPreface(filled(MAX_PREFACE_BYTES - 16)).state, 'complete')
  assert.equal(readPreface(filled(MAX_PREFACE_BYTES - 15)).state, 'malformed')
})

test('instances of 1 and 128 characters are read, 129 are refused', () => {
  const reading = (length: number): string =>
    readPreface(encodePreface(whole({ instance: 'x'.repeat(length) }))).state
  assert.deepEqual([reading(1), reading(128), reading(129)], ['complete', 'complete', 'malformed'])
})

test('an instance called __proto__ is a name like any other', () => {
  for (const instance of ['__proto__', 'constructor', 'toString', '../x', '*']) {
    const reading = readPreface(encodePreface(whole({ instance })))
    assert.ok(reading.state === 'complete')
    assert.equal(reading.preface.instance, instance)
    assert.equal(Object.getPrototypeOf(reading.preface), Object.prototype)
  }
})

test('reading depends only on the bytes given, wherever they lie in memory', () => {
  const bytes = bytesOf(vectors.prefaces[5]!)
  const memory = Buffer.alloc(bytes.length + 64, 0xff)
  bytes.copy(memory, 33)
  const reading = readPreface(memory.subarray(33, 33 + bytes.length))
  assert.ok(reading.state === 'complete')
  assert.deepEqual(reading.preface, whole(vectors.prefaces[5]!.preface))
})

const ip = fc.oneof(
  fc.uint8Array({ minLength: 4, maxLength: 4 }),
  fc.uint8Array({ minLength: 16, maxLength: 16 }),
)
const address = fc
  .tuple(ip, fc.integer({ min: 1, max: 65_535 }))
  .map(([bytes, port]) => ({ ip: ipFromBytes(bytes)!, port }))
const hex = (length: number) =>
  fc
    .array(
      fc.nat(15).map((digit) => digit.toString(16)),
      { minLength: length, maxLength: length },
    )
    .map((digits) => digits.join(''))
const prefaces: fc.Arbitrary<Preface> = fc
  .record({
    addresses: fc.option(fc.tuple(address, address), { nil: undefined }),
    instance: fc.option(
      fc
        .array(fc.integer({ min: 0x21, max: 0x7e }), { minLength: 1, maxLength: 128 })
        .map((codes) => String.fromCharCode(...codes)),
      { nil: undefined },
    ),
    traceparent: fc.option(
      fc.tuple(hex(2), hex(32), hex(16), hex(2)).map((parts) => parts.join('-')),
      { nil: undefined },
    ),
  })
  .map(({ addresses, instance, traceparent }) => ({
    source: addresses?.[0],
    destination: addresses?.[1],
    instance,
    traceparent,
  }))

test('what is written is read back', () => {
  fc.assert(
    fc.property(prefaces, fc.uint8Array({ maxLength: 40 }), (preface, rest) => {
      const bytes = encodePreface(preface)
      assert.ok(bytes.length <= MAX_PREFACE_BYTES)
      const reading = readPreface(Buffer.concat([bytes, rest]))
      assert.deepEqual(reading, { state: 'complete', preface, length: bytes.length })
    }),
    { seed: 5, numRuns: 2_000 },
  )
})

test('one address without the other is written as none', () => {
  const source = { ip: '10.0.0.1', port: 1 }
  assert.deepEqual(encodePreface(whole({ source })), encodePreface(whole({})))
})

test('changed bytes and nonsense are read without a throw, and never beyond the bytes', () => {
  fc.assert(
    fc.property(
      prefaces,
      fc.array(fc.tuple(fc.nat(200), fc.nat(255)), { maxLength: 5 }),
      fc.uint8Array({ maxLength: 100 }),
      (preface, changes, rest) => {
        const bytes = Buffer.concat([encodePreface(preface), rest])
        for (const [at, value] of changes) bytes[at % bytes.length] = value
        const reading = readPreface(bytes)
        if (reading.state !== 'complete') return
        assert.ok(reading.length <= bytes.length)
        const { source, destination, instance } = reading.preface
        assert.equal(source === undefined, destination === undefined)
        for (const found of [source, destination])
          if (found !== undefined) {
            assert.equal(canonicalIp(found.ip), found.ip)
            assert.ok(found.port >= 1 && found.port <= 65_535)
          }
        if (instance !== undefined) assert.match(instance, /^[\x21-\x7e]{1,128}$/)
        // Growing the input never turns complete into something else.
        assert.deepEqual(readPreface(Buffer.concat([bytes, application])), reading)
      },
    ),
    { seed: 6, numRuns: 4_000 },
  )
})
