/**
 * Reads what `tcpdump -i any -y LINUX_SLL2 -w -` writes, as it comes: which device, which flow, which bytes. Pure.
 */

/** One packet of IP. */
export interface Packet {
  readonly deviceIndex: number
  /** Sent by this host; otherwise it came to it. */
  readonly isOutgoing: boolean
  /** `10.88.0.1:40000 > 10.88.0.2:5432`; without ports for what is neither TCP nor UDP. */
  readonly flow: string
  /** What TCP or UDP carries, or everything after the address header. Valid only until the call returns. */
  readonly payload: Buffer
  /** Wall clock. */
  readonly atMs: number
}

const FILE_HEADER_BYTES = 24
const RECORD_HEADER_BYTES = 16
const COOKED_HEADER_BYTES = 20
const MAGIC_LITTLE_ENDIAN = 0xa1b2c3d4
const LINK_TYPE_SLL2 = 276
const OUTGOING = 4
const IPV4 = 0x0800
const IPV6 = 0x86dd
const TCP = 6
const UDP = 17

/** Takes the stream in pieces of any size and gives its packets one by one. */
export class PacketReader {
  private readonly onPacket: (packet: Packet) => void
  private rest: Buffer = Buffer.alloc(0)
  private isPastHeader = false

  constructor(onPacket: (packet: Packet) => void) {
    this.onPacket = onPacket
  }

  /** @throws when this is not the kind of stream that it should be. */
  push(chunk: Buffer): void {
    let bytes = this.rest.length === 0 ? chunk : Buffer.concat([this.rest, chunk])
    if (!this.isPastHeader) {
      if (bytes.length < FILE_HEADER_BYTES) {
        this.rest = bytes
        return
      }
      if (
        bytes.readUInt32LE(0) !== MAGIC_LITTLE_ENDIAN ||
        bytes.readUInt32LE(20) !== LINK_TYPE_SLL2
      )
        throw new Error('Not a capture of LINUX_SLL2 in this byte order')
      this.isPastHeader = true
      bytes = bytes.subarray(FILE_HEADER_BYTES)
    }
    while (bytes.length >= RECORD_HEADER_BYTES) {
      const end = RECORD_HEADER_BYTES + bytes.readUInt32LE(8)
      if (bytes.length < end) break
      const atMs = bytes.readUInt32LE(0) * 1_000 + bytes.readUInt32LE(4) / 1_000
      const packet = parsePacket(bytes.subarray(RECORD_HEADER_BYTES, end), atMs)
      if (packet !== undefined) this.onPacket(packet)
      bytes = bytes.subarray(end)
    }
    this.rest = Buffer.from(bytes)
  }
}

function parsePacket(record: Buffer, atMs: number): Packet | undefined {
  if (record.length < COOKED_HEADER_BYTES) return undefined
  const found = parseIp(record.readUInt16BE(0), record.subarray(COOKED_HEADER_BYTES))
  if (found === undefined) return undefined
  return {
    deviceIndex: record.readUInt32BE(4),
    isOutgoing: record[10] === OUTGOING,
    atMs,
    ...found,
  }
}

function parseIp(protocol: number, packet: Buffer): Pick<Packet, 'flow' | 'payload'> | undefined {
  if (protocol === IPV4 && packet.length >= 20) {
    const headerBytes = ((packet[0] ?? 0) & 0x0f) * 4
    // Fill bytes of a short Ethernet frame are not part of it; a length of 0 stands for "by the hardware".
    const totalBytes = packet.readUInt16BE(2) || packet.length
    const isFirstPart = (packet.readUInt16BE(6) & 0x1fff) === 0
    return parseTransport(
      isFirstPart ? packet[9] : undefined,
      packet.subarray(headerBytes, totalBytes),
      [[...packet.subarray(12, 16)].join('.'), [...packet.subarray(16, 20)].join('.')],
    )
  }
  if (protocol === IPV6 && packet.length >= 40)
    return parseTransport(packet[6], packet.subarray(40), [
      `[${words(packet.subarray(8, 24))}]`,
      `[${words(packet.subarray(24, 40))}]`,
    ])
  return undefined
}

function parseTransport(
  protocol: number | undefined,
  segment: Buffer,
  [from, to]: readonly [string, string],
): Pick<Packet, 'flow' | 'payload'> {
  const isTcp = protocol === TCP && segment.length >= 20
  const isUdp = protocol === UDP && segment.length >= 8
  if (!isTcp && !isUdp) return { flow: `${from} > ${to}`, payload: segment }
  const headerBytes = isTcp ? ((segment[12] ?? 0) >> 4) * 4 : 8
  return {
    flow: `${from}:${segment.readUInt16BE(0)} > ${to}:${segment.readUInt16BE(2)}`,
    payload: segment.subarray(headerBytes),
  }
}

function words(address: Buffer): string {
  return Array.from({ length: 8 }, (_, i) => address.readUInt16BE(2 * i).toString(16)).join(':')
}
