/**
 * Frames for tests: building them, the shared vectors, and what a decoder makes of bytes.
 */
import { readFileSync } from 'node:fs'
import { FrameDecoder, type FrameSink } from '../../src/dataplane/tunnel/decoder.ts'
import { DATA, HEADER_BYTES, writeHeader } from '../../src/dataplane/tunnel/frame.ts'

/** One frame, as the wire has it. */
export interface Frame {
  readonly type: number
  readonly flags: number
  readonly id: number
  readonly length: number
  /** Hexadecimal; only data frames have one. */
  readonly payload?: string
}

interface Vectors {
  readonly frames: readonly (Frame & { readonly name: string; readonly hex: string })[]
  readonly refused: readonly {
    readonly name: string
    readonly hex: string
    readonly code: string
  }[]
}

/** test/vectors/tunnel/frames.json. */
export const vectors: Vectors = JSON.parse(
  readFileSync(new URL('../vectors/tunnel/frames.json', import.meta.url), 'utf8'),
) as Vectors

/** The bytes of a header. */
export function header(type: number, flags: number, id: number, length: number): Buffer {
  const bytes = Buffer.alloc(HEADER_BYTES, 0xee)
  writeHeader(bytes, 0, type, flags, id, length)
  return bytes
}

/** The bytes of a data frame. */
export function data(flags: number, id: number, payload: Uint8Array | string = ''): Buffer {
  const bytes = Buffer.from(payload)
  return Buffer.concat([header(DATA, flags, id, bytes.length), bytes])
}

/** Collects frames, payloads joined. */
export class FrameLog implements FrameSink {
  readonly frames: Frame[] = []
  private payload: Buffer[] = []
  private length = 0

  onData(_id: number, _flags: number, length: number): void {
    this.payload = []
    this.length = length
  }

  onPayload(bytes: Uint8Array): number {
    this.payload.push(Buffer.from(bytes))
    return 0
  }

  onDataEnd(id: number, flags: number): void {
    const payload = Buffer.concat(this.payload).toString('hex')
    const { length } = this
    this.frames.push({ type: 0, flags, id, length, ...(length > 0 && { payload }) })
  }

  onWindowUpdate(id: number, flags: number, length: number): void {
    this.frames.push({ type: 1, flags, id, length })
  }

  onPing(flags: number, length: number): void {
    this.frames.push({ type: 2, flags, id: 0, length })
  }

  onGoAway(length: number): void {
    // Go-away frames carry no flags that mean anything.
    this.frames.push({ type: 3, flags: 0, id: 0, length })
  }
}

/** The frames in `chunks`, whatever their boundaries. */
export function decode(...chunks: readonly Uint8Array[]): Frame[] {
  const log = new FrameLog()
  const decoder = new FrameDecoder(log)
  for (const chunk of chunks) decoder.push(chunk)
  return log.frames
}
