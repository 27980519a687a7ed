/**
 * Parses and writes the DNS messages of this resolver; `dns-packet` is the codec of their records.
 *
 * Pure, and total for any bytes: size, counts and question of a message are checked before the codec reads it, and an
 * exception of the codec is a format error. The question is parsed here and returned byte for byte: callers compare its
 * letter case with that of their question (0x20), and a dot within a label is not a separator of labels.
 */
import dnsPacket, { type Answer, type SrvAnswer, type StringAnswer } from 'dns-packet'

/** The response codes in use (RFC 1035, 6891). */
export const rcodes = {
  noError: 0,
  formatError: 1,
  serverFailure: 2,
  nameError: 3,
  notImplemented: 4,
  refused: 5,
  badVersion: 16,
} as const

/** One of {@link rcodes}. */
export type Rcode = (typeof rcodes)[keyof typeof rcodes]

/** The content of a question. */
export interface Question {
  /** As sent, without the last dot. Octets that host names cannot contain are U+FFFD. */
  readonly name: string
  /** In the codec's notation: `A`, `SRV`, `UNKNOWN_300`. */
  readonly type: string
  /** 1 is IN. */
  readonly classNumber: number
}

/** A message with one question. */
export interface Query {
  readonly question: Question
  /** Largest response over UDP, octets. */
  readonly udpBytes: number
  /** Header and question of the request, unchanged. */
  readonly head: Buffer
  readonly hasEdns: boolean
  /** The DO bit, to be returned. */
  readonly wantsDnssec: boolean
}

/** The content of a response. */
export interface Reply {
  readonly rcode: Rcode
  /** False for refusals and failures. */
  readonly isAuthoritative: boolean
  readonly answers: readonly (StringAnswer | SrvAnswer | Answer)[]
  readonly authorities: readonly Answer[]
  readonly additionals: readonly Answer[]
}

/** The result of parsing: a query, a bad request to be answered with this code, or noise that gets no answer. */
export type Read =
  | { readonly kind: 'query'; readonly query: Query }
  | { readonly kind: 'bad'; readonly rcode: Rcode; readonly response: Buffer }
  | { readonly kind: 'noise' }

/** Largest message that is parsed; a question with options is a tenth of this. */
export const MAX_MESSAGE_BYTES = 4_096

/** Largest response over UDP, whatever the caller accepts: a larger one would be fragmented somewhere. */
const MAX_UDP_BYTES = 1_232

const MIN_UDP_BYTES = 512
const HEADER_BYTES = 12

const FLAG_RESPONSE = 0x8000
const FLAG_AUTHORITATIVE = 0x0400
const FLAG_TRUNCATED = 0x0200
/** Copied from the request: operation, recursion desired, checking disabled. */
const FLAGS_ECHOED = 0x7910
const FLAG_DNSSEC_OK = 0x8000

/** Parses a request of any origin. Never throws. */
export function readQuery(bytes: Buffer): Read {
  if (bytes.length < HEADER_BYTES) return { kind: 'noise' }
  const flags = bytes.readUInt16BE(2)
  // Otherwise two servers could answer each other for ever.
  if ((flags & FLAG_RESPONSE) !== 0) return { kind: 'noise' }
  if ((flags & 0x7800) !== 0) return bad(bytes, rcodes.notImplemented)
  const [questions, answers, authorities, additionals] = [4, 6, 8, 10].map((offset) =>
    bytes.readUInt16BE(offset),
  )
  const isCounted = questions === 1 && answers === 0 && authorities === 0 && (additionals ?? 0) <= 2
  if (bytes.length > MAX_MESSAGE_BYTES || !isCounted) return bad(bytes, rcodes.formatError)
  const asked = readQuestion(bytes)
  if (asked === undefined) return bad(bytes, rcodes.formatError)
  let options: readonly Answer[]
  let type: string | undefined
  try {
    const packet = dnsPacket.decode(bytes)
    type = packet.questions?.[0]?.type
    options = (packet.additionals ?? []).filter((record) => record.type === 'OPT')
    if (dnsPacket.decode.bytes !== bytes.length) return bad(bytes, rcodes.formatError)
  } catch {
    return bad(bytes, rcodes.formatError)
  }
  const [option] = options
  if (options.length > 1 || type === undefined || (option !== undefined && option.name !== '.'))
    return bad(bytes, rcodes.formatError)
  const edns = option?.type === 'OPT' ? option : undefined
  const query: Query = {
    question: { name: asked.name, type, classNumber: asked.classNumber },
    udpBytes: Math.min(MAX_UDP_BYTES, Math.max(MIN_UDP_BYTES, edns?.udpPayloadSize ?? 0)),
    head: bytes.subarray(0, asked.endOffset),
    hasEdns: edns !== undefined,
    wantsDnssec: ((edns?.flags ?? 0) & FLAG_DNSSEC_OK) !== 0,
  }
  if ((edns?.ednsVersion ?? 0) === 0) return { kind: 'query', query }
  const response = writeReply(query, failure(rcodes.badVersion), 'tcp')
  return { kind: 'bad', rcode: rcodes.badVersion, response }
}

/** A reply with a response code only. */
export function failure(rcode: Rcode): Reply {
  return { rcode, isAuthoritative: false, answers: [], authorities: [], additionals: [] }
}

/** The message to send. Over UDP, records that do not fit are omitted: first the additional ones, then all (TC). */
export function writeReply(query: Query, reply: Reply, over: 'udp' | 'tcp'): Buffer {
  const limit = over === 'udp' ? query.udpBytes : 65_535
  const whole = encode(query, reply, 0)
  if (whole.length <= limit) return whole
  const lean = encode(query, { ...reply, additionals: [] }, 0)
  if (lean.length <= limit) return lean
  const nothing = { ...reply, answers: [], authorities: [], additionals: [] }
  return encode(query, nothing, FLAG_TRUNCATED)
}

function encode(query: Query, reply: Reply, extraFlags: number): Buffer {
  const { head } = query
  const edns: Answer = {
    type: 'OPT',
    name: '.',
    udpPayloadSize: MAX_UDP_BYTES,
    extendedRcode: reply.rcode >> 4,
    ednsVersion: 0,
    flags: query.wantsDnssec ? FLAG_DNSSEC_OK : 0,
    flag_do: query.wantsDnssec,
    options: [],
  }
  const records = dnsPacket.encode({
    type: 'response',
    questions: [],
    answers: [...reply.answers],
    authorities: [...reply.authorities],
    additionals: [...reply.additionals, ...(query.hasEdns ? [edns] : [])],
  })
  // The codec does not compress names, so the records may be moved.
  const message = Buffer.concat([
    records.subarray(0, HEADER_BYTES),
    head.subarray(HEADER_BYTES),
    records.subarray(HEADER_BYTES),
  ])
  writeHead(message, head, {
    rcode: reply.rcode,
    flags: extraFlags | (reply.isAuthoritative ? FLAG_AUTHORITATIVE : 0),
  })
  message.writeUInt16BE(1, 4)
  return message
}

function bad(request: Buffer, rcode: Rcode): Read {
  const response = Buffer.alloc(HEADER_BYTES)
  writeHead(response, request, { rcode, flags: 0 })
  return { kind: 'bad', rcode, response }
}

function writeHead(
  message: Buffer,
  request: Buffer,
  { rcode, flags }: { readonly rcode: Rcode; readonly flags: number },
): void {
  message.writeUInt16BE(request.readUInt16BE(0), 0)
  const echoed = request.readUInt16BE(2) & FLAGS_ECHOED
  message.writeUInt16BE(FLAG_RESPONSE | flags | echoed | (rcode & 0x0f), 2)
}

interface AskedQuestion {
  readonly name: string
  readonly classNumber: number
  /** The offset of the end of the question in the message. */
  readonly endOffset: number
}

/** The one question of a message; undefined when it is truncated, too long or compressed. */
function readQuestion(bytes: Buffer): AskedQuestion | undefined {
  const labels: string[] = []
  let offset = HEADER_BYTES
  for (;;) {
    const length = bytes[offset]
    if (length === undefined || length > 63) return undefined
    offset += 1
    if (length === 0) break
    if (offset + length > bytes.length || offset + length - HEADER_BYTES > 254) return undefined
    labels.push(
      bytes.toString('latin1', offset, offset + length).replace(/[^A-Za-z0-9_-]/g, '\ufffd'),
    )
    offset += length
  }
  if (offset + 4 > bytes.length) return undefined
  return {
    name: labels.join('.'),
    classNumber: bytes.readUInt16BE(offset + 2),
    endOffset: offset + 4,
  }
}
