/**
 * What the watch for plaintext makes of a capture: packets read from a stream cut anywhere, canaries found in them.
 */
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'

import { type Packet, PacketReader } from '../harness/packet-reader.ts'
import { CanarySearch } from '../harness/plaintext-watch.ts'
import { parseCalls, summarizeCalls } from '../harness/steady-calls.ts'

describe('reading a capture', () => {
  const file = Buffer.concat([
    fileHeader(),
    record(3, 4, 0x0800, ipv4Tcp('10.0.0.1', '10.0.0.2', 40_000, 80, 'hello')),
    record(2, 0, 0x0806, Buffer.alloc(28)),
    record(2, 0, 0x86dd, ipv6Udp(9, 53, 'query')),
  ])

  test('packets come out with device, direction, flow and bytes, wherever the stream is cut', () => {
    for (const size of [1, 7, 24, 61, file.length]) {
      const seen: (Omit<Packet, 'payload' | 'atMs'> & { text: string })[] = []
      const reader = new PacketReader(({ deviceIndex, isOutgoing, flow, payload }) =>
        seen.push({ deviceIndex, isOutgoing, flow, text: payload.toString('latin1') }),
      )
      for (let at = 0; at < file.length; at += size) reader.push(file.subarray(at, at + size))
      assert.deepEqual(seen, [
        { deviceIndex: 3, isOutgoing: true, flow: '10.0.0.1:40000 > 10.0.0.2:80', text: 'hello' },
        {
          deviceIndex: 2,
          isOutgoing: false,
          flow: '[fd88:0:0:0:0:0:0:1]:9 > [fd88:0:0:0:0:0:0:2]:53',
          text: 'query',
        },
      ])
    }
  })

  test('fill bytes of a short frame are not taken for what it carries', () => {
    const packet = ipv4Tcp('10.0.0.1', '10.0.0.2', 1, 2, '')
    let bytes = -1
    const reader = new PacketReader(({ payload }) => {
      bytes = payload.length
    })
    reader.push(
      Buffer.concat([fileHeader(), record(2, 0, 0x0800, Buffer.concat([packet, Buffer.alloc(6)]))]),
    )
    assert.equal(bytes, 0)
  })

  test('another kind of capture is refused', () => {
    const reader = new PacketReader(() => undefined)
    assert.throws(() => reader.push(Buffer.alloc(24)), /Not a capture/)
  })
})

describe('searching for a canary', () => {
  const find = (search: CanarySearch, text: string, flow = 'a > b'): (number | undefined)[] =>
    search.find({ flow, payload: Buffer.from(text) })

  test('every occurrence is found, with its number where it has one', () => {
    const search = new CanarySearch('canary')
    assert.deepEqual(find(search, 'x canary-7\ncanary-12\ncanary\n'), [7, 12, undefined])
    assert.deepEqual(find(search, 'nothing'), [])
  })

  test('one that two packets of a flow share is found once, one of two flows is none', () => {
    const search = new CanarySearch('canary')
    assert.deepEqual(find(search, 'GET can'), [])
    assert.deepEqual(find(search, 'ary-3\n', 'c > d'), [])
    assert.deepEqual(find(search, ''), [])
    assert.deepEqual(find(search, 'ary-3\n'), [3])
    assert.deepEqual(find(search, 'ary-3\n'), [])
  })
})

test('connections are summed up by what became of them, waits by those that were served', () => {
  const line = (number: number, outcome: string, waitedMs: number): string =>
    JSON.stringify({ number, target: '10.0.0.1:80', atMs: 1, outcome, waitedMs })
  const calls = parseCalls([line(0, 'served', 5), line(1, 'refused', 900), '', line(2, 'EPERM', 1)])
  assert.deepEqual(summarizeCalls([...calls, ...parseCalls([line(3, 'served', 9)])]), {
    calls: 4,
    served: 2,
    refused: 1,
    reset: 0,
    timeout: 0,
    cut: 0,
    outcomes: { served: 2, refused: 1, EPERM: 1 },
    longestMs: 9,
    p99Ms: 9,
  })
})

function fileHeader(): Buffer {
  const header = Buffer.alloc(24)
  header.writeUInt32LE(0xa1b2c3d4, 0)
  header.writeUInt32LE(276, 20)
  return header
}

function record(device: number, type: number, protocol: number, packet: Buffer): Buffer {
  const header = Buffer.alloc(36)
  header.writeUInt32LE(1_700_000_000, 0)
  header.writeUInt32LE(20 + packet.length, 8)
  header.writeUInt32LE(20 + packet.length, 12)
  header.writeUInt16BE(protocol, 16)
  header.writeUInt32BE(device, 20)
  header[26] = type
  return Buffer.concat([header, packet])
}

function ipv4Tcp(from: string, to: string, fromPort: number, toPort: number, text: string): Buffer {
  const header = Buffer.alloc(40)
  header[0] = 0x45
  header.writeUInt16BE(40 + text.length, 2)
  header[9] = 6
  header.set(from.split('.').map(Number), 12)
  header.set(to.split('.').map(Number), 16)
  header.writeUInt16BE(fromPort, 20)
  header.writeUInt16BE(toPort, 22)
  header[32] = 0x50
  return Buffer.concat([header, Buffer.from(text)])
}

function ipv6Udp(fromPort: number, toPort: number, text: string): Buffer {
  const header = Buffer.alloc(48)
  header[0] = 0x60
  header[6] = 17
  for (const [at, last] of [
    [8, 1],
    [24, 2],
  ] as const) {
    header.writeUInt16BE(0xfd88, at)
    header[at + 15] = last
  }
  header.writeUInt16BE(fromPort, 40)
  header.writeUInt16BE(toPort, 42)
  return Buffer.concat([header, Buffer.from(text)])
}
