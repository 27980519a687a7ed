/**
 * Claims about src/controlplane/dns/message.ts: any bytes are read, and what is written is a response to
 * what was asked.
 */
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import dnsPacket, { type Answer, type Packet } from 'dns-packet'
import * as fc from 'fast-check'
import {
  failure,
  MAX_MESSAGE_BYTES,
  type Query,
  type Reply,
  rcodes,
  readQuery,
  writeReply,
} from '../../src/controlplane/dns/message.ts'

function request(change: Partial<Packet> = {}): Buffer {
  return dnsPacket.encode({
    type: 'query',
    id: 0x1234,
    flags: dnsPacket.RECURSION_DESIRED,
    questions: [{ type: 'A', name: 'dB.mEsh' }],
    ...change,
  })
}

function edns(change: Partial<Extract<Answer, { type: 'OPT' }>> = {}): Answer {
  return {
    type: 'OPT',
    name: '.',
    udpPayloadSize: 4_096,
    extendedRcode: 0,
    ednsVersion: 0,
    flags: 0,
    flag_do: false,
    options: [],
    ...change,
  }
}

function queryOf(message: Buffer): Query {
  const read = readQuery(message)
  assert.equal(read.kind, 'query')
  return read.kind === 'query' ? read.query : assert.fail()
}

function rcodeOf(message: Buffer): number | 'query' | 'noise' {
  const read = readQuery(message)
  if (read.kind !== 'bad') return read.kind
  assert.equal(read.response.readUInt16BE(0), message.readUInt16BE(0), 'the same id')
  return read.rcode
}

function addresses(count: number): Reply {
  return {
    ...failure(rcodes.noError),
    isAuthoritative: true,
    answers: Array.from({ length: count }, (_, index) => ({
      type: 'A',
      name: 'dB.mEsh',
      ttl: 30,
      data: `240.0.0.${index}`,
    })),
  }
}

describe('reading', () => {
  test('any bytes are read without an exception, and never get an answer larger than a header by themselves', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 600 }), (bytes) => {
        const read = readQuery(Buffer.from(bytes))
        if (read.kind === 'bad') assert.ok(read.response.length <= Math.max(12, bytes.length + 11))
      }),
      { numRuns: 3_000 },
    )
  })

  test('any change of a few bytes of a good question is read, and its answer still holds the question as it was', () => {
    const good = request({
      additionals: [edns({ options: [{ code: 12, length: 4 }] })],
    })
    const change = fc.tuple(fc.nat(good.length - 1), fc.nat(255))
    fc.assert(
      fc.property(fc.array(change, { maxLength: 4 }), fc.nat(good.length), (changes, cut) => {
        const bytes = Buffer.from(good)
        for (const [at, value] of changes) bytes[at] = value
        const message = cut % 3 === 0 ? bytes.subarray(0, cut) : bytes
        const read = readQuery(message)
        if (read.kind !== 'query') return
        const response = writeReply(read.query, addresses(40), 'udp')
        assert.ok(response.length <= 1_232)
        assert.deepEqual(
          response.subarray(12, read.query.head.length),
          message.subarray(12, read.query.head.length),
        )
        dnsPacket.decode(response)
      }),
      { numRuns: 3_000 },
    )
  })

  test('what is no request gets no answer: too short, or itself a response', () => {
    assert.equal(rcodeOf(Buffer.alloc(11)), 'noise')
    assert.equal(rcodeOf(request({ type: 'response' })), 'noise')
  })

  test('an operation other than a query is not implemented', () => {
    for (const opcode of [1, 2, 4, 5, 15]) {
      const message = request()
      message[2] = opcode << 3
      assert.equal(rcodeOf(message), rcodes.notImplemented)
    }
  })

  test('other than one question, records that a question has none of, and two EDNS records are format errors', () => {
    const record: Answer = { type: 'A', name: 'x', data: '1.2.3.4' }
    const malformed: Partial<Packet>[] = [
      { questions: [] },
      {
        questions: [
          { type: 'A', name: 'a.mesh' },
          { type: 'A', name: 'b.mesh' },
        ],
      },
      { answers: [record] },
      { authorities: [record] },
      { additionals: [record, record, record] },
      { additionals: [edns(), edns()] },
    ]
    for (const change of malformed)
      assert.equal(rcodeOf(request(change)), rcodes.formatError, JSON.stringify(change))
  })

  test('a question that is cut off, compressed, too long, or followed by more than its records is a format error', () => {
    const good = request()
    for (let length = 12; length < good.length; length += 1)
      assert.equal(rcodeOf(good.subarray(0, length)), rcodes.formatError)
    assert.equal(rcodeOf(Buffer.concat([good, Buffer.from([0])])), rcodes.formatError)
    const head = good.subarray(0, 12)
    const rest = Buffer.from([0, 1, 0, 1])
    assert.equal(
      rcodeOf(Buffer.concat([head, Buffer.from([0xc0, 0x04]), rest])),
      rcodes.formatError,
    )
    const label = Buffer.concat([Buffer.from([63]), Buffer.alloc(63, 'a')])
    const long = Buffer.concat([head, label, label, label, label, Buffer.from([0]), rest])
    assert.equal(rcodeOf(long), rcodes.formatError)
    assert.equal(
      rcodeOf(Buffer.concat([good, Buffer.alloc(MAX_MESSAGE_BYTES)])),
      rcodes.formatError,
    )
  })

  test('a dot within a label is not one between labels', () => {
    const head = request().subarray(0, 12)
    const name = Buffer.from('\u0007db.mesh\u0000', 'latin1')
    const query = queryOf(Buffer.concat([head, name, Buffer.from([0, 1, 0, 1])]))
    assert.equal(query.question.name, 'db\ufffdmesh')
  })

  test('an EDNS version other than 0 is refused with BADVERS', () => {
    const read = readQuery(request({ additionals: [edns({ ednsVersion: 1 })] }))
    assert.equal(read.kind, 'bad')
    const response = dnsPacket.decode(read.kind === 'bad' ? read.response : Buffer.alloc(0))
    const [option] = response.additionals ?? []
    assert.ok(option?.type === 'OPT')
    assert.equal(option.extendedRcode, 1)
    assert.equal(option.ednsVersion, 0)
  })
})

describe('writing', () => {
  test('the question comes back in its own case, RD and CD as they were, RA and AD off', () => {
    const message = request()
    message[3] = 0x30 // AD and CD
    const response = writeReply(queryOf(message), addresses(1), 'udp')
    const decoded = dnsPacket.decode(response)
    assert.deepEqual(response.subarray(12, message.length), message.subarray(12))
    assert.equal(decoded.id, 0x1234)
    assert.equal(response.readUInt16BE(2), 0x8000 | 0x0400 | 0x0100 | 0x0010)
    assert.deepEqual(decoded.answers?.[0], {
      name: 'dB.mEsh',
      type: 'A',
      ttl: 30,
      class: 'IN',
      flush: false,
      data: '240.0.0.0',
    })
  })

  test('without EDNS at most 512 octets go over UDP, with it what the caller takes, at most 1232', () => {
    const over = (message: Buffer, transport: 'udp' | 'tcp' = 'udp'): Buffer =>
      writeReply(queryOf(message), addresses(60), transport)
    const isTruncated = (response: Buffer): boolean => (response.readUInt16BE(2) & 0x0200) !== 0
    for (const [size, limit] of [
      [undefined, 512],
      [0, 512],
      [600, 600],
      [65_535, 1_232],
    ] as const) {
      const additionals = size === undefined ? [] : [edns({ udpPayloadSize: size })]
      const response = over(request({ additionals }))
      assert.ok(isTruncated(response) && response.length <= limit)
      assert.equal(dnsPacket.decode(response).answers?.length, 0)
    }
    const fitting = writeReply(
      queryOf(request({ additionals: [edns({ udpPayloadSize: 1_000 })] })),
      addresses(40),
      'udp',
    )
    assert.ok(!isTruncated(fitting) && fitting.length > 900)
    const whole = over(request(), 'tcp')
    assert.ok(!isTruncated(whole))
    assert.equal(dnsPacket.decode(whole).answers?.length, 60)
  })

  test('additional records are left out before the answer is cut', () => {
    const reply = { ...addresses(1), additionals: addresses(60).answers as Answer[] }
    const response = writeReply(queryOf(request()), reply, 'udp')
    const decoded = dnsPacket.decode(response)
    assert.equal(decoded.answers?.length, 1)
    assert.equal(decoded.additionals?.length, 0)
    assert.equal(decoded.flag_tc, false)
  })

  test('who sends EDNS gets EDNS, with the DO bit that was sent; who does not gets none', () => {
    const option = (additionals: Answer[]): Answer | undefined =>
      dnsPacket.decode(writeReply(queryOf(request({ additionals })), addresses(1), 'udp'))
        .additionals?.[0]
    assert.equal(option([]), undefined)
    for (const flags of [0, 0x8000]) {
      const answered = option([edns({ flags, flag_do: flags !== 0 })])
      assert.ok(answered?.type === 'OPT')
      assert.equal(answered.flag_do, flags !== 0)
      assert.equal(answered.udpPayloadSize, 1_232)
    }
  })
})
