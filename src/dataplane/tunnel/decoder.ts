/**
 * Decodes bytes to frames, with any chunk boundaries: docs/tunnel-protocol.md, "Frame".
 *
 * Handles only the header, not streams or credit. Payload is passed on as it arrives and never collected. The state is
 * twelve bytes, so a peer cannot make it grow.
 *
 * ```
 *   HEADER --12 bytes--> (data with length > 0) --> PAYLOAD --last byte--> HEADER
 * ```
 */
import { KEPT } from '../io/byte-stream.ts'
import {
  ACK,
  DATA,
  FIN,
  GO_AWAY,
  HEADER_BYTES,
  PING,
  protocolError,
  RST,
  SYN,
  WINDOW_UPDATE,
} from './frame.ts'

/** Receives the frames. Each method may throw a protocol error; push() passes it on. */
export interface FrameSink {
  /** A data frame begins; `length` bytes follow through onPayload before onDataEnd. */
  onData(id: number, flags: number, length: number): void
  /** A part of the payload. push() passes on the KEPT bit of the result. */
  onPayload(bytes: Uint8Array): number
  /** The payload is complete. */
  onDataEnd(id: number, flags: number): void
  onWindowUpdate(id: number, flags: number, amount: number): void
  onPing(flags: number, value: number): void
  onGoAway(code: number): void
}

/** Decodes the frames of one session. */
export class FrameDecoder {
  private readonly sink: FrameSink
  private readonly header = Buffer.alloc(HEADER_BYTES)
  private headerBytes = 0
  private payloadLeft = 0
  private id = 0
  private flags = 0
  private frames = 0

  constructor(sink: FrameSink) {
    this.sink = sink
  }

  /**
   * Decodes the next bytes of the connection.
   * @returns whether a receiver kept part of that memory.
   * @throws MeshError HM_TUNNEL_… when the peer broke the protocol; the decoder must not be used afterwards.
   */
  push(bytes: Uint8Array): boolean {
    let kept = 0
    let at = 0
    const end = bytes.length
    while (at < end) {
      if (this.payloadLeft > 0) {
        const take = Math.min(this.payloadLeft, end - at)
        kept |= this.sink.onPayload(
          at === 0 && take === end ? bytes : bytes.subarray(at, at + take),
        )
        at += take
        this.payloadLeft -= take
        if (this.payloadLeft === 0) this.sink.onDataEnd(this.id, this.flags)
      } else if (this.headerBytes === 0 && end - at >= HEADER_BYTES) {
        this.readHeader(bytes, at)
        at += HEADER_BYTES
      } else {
        const take = Math.min(HEADER_BYTES - this.headerBytes, end - at)
        this.header.set(bytes.subarray(at, at + take), this.headerBytes)
        this.headerBytes += take
        at += take
        if (this.headerBytes === HEADER_BYTES) {
          this.headerBytes = 0
          this.readHeader(this.header, 0)
        }
      }
    }
    return (kept & KEPT) !== 0
  }

  /** Number of frames that have begun since the last call. */
  takeFrames(): number {
    const { frames } = this
    this.frames = 0
    return frames
  }

  private readHeader(bytes: Uint8Array, at: number): void {
    this.frames += 1
    const type = bytes[at + 1] ?? 0
    const flags = ((bytes[at + 2] ?? 0) << 8) | (bytes[at + 3] ?? 0)
    const id = readUint32(bytes, at + 4)
    const length = readUint32(bytes, at + 8)
    if (bytes[at] !== 0) throw protocolError('HM_TUNNEL_BAD_FRAME', `version ${bytes[at]}`)
    if (flags > 15 || ((flags & SYN) !== 0 && (flags & (ACK | FIN | RST)) !== 0))
      throw protocolError('HM_TUNNEL_BAD_FRAME', `flags ${flags}`)
    if (type === DATA || type === WINDOW_UPDATE) {
      if (id === 0) throw protocolError('HM_TUNNEL_BAD_FRAME', 'stream 0')
    } else if (id !== 0) throw protocolError('HM_TUNNEL_BAD_FRAME', `type ${type} on stream ${id}`)
    switch (type) {
      case DATA:
        this.id = id
        this.flags = flags
        this.payloadLeft = length
        this.sink.onData(id, flags, length)
        if (length === 0) this.sink.onDataEnd(id, flags)
        return
      case WINDOW_UPDATE:
        this.sink.onWindowUpdate(id, flags, length)
        return
      case PING:
        this.sink.onPing(flags, length)
        return
      case GO_AWAY:
        this.sink.onGoAway(length)
        return
      default:
        throw protocolError('HM_TUNNEL_BAD_FRAME', `type ${type}`)
    }
  }
}

function readUint32(bytes: Uint8Array, at: number): number {
  return (
    (((bytes[at] ?? 0) << 24) |
      ((bytes[at + 1] ?? 0) << 16) |
      ((bytes[at + 2] ?? 0) << 8) |
      (bytes[at + 3] ?? 0)) >>>
    0
  )
}
