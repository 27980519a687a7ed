/**
 * The frame header of docs/tunnel-protocol.md, "Frame": constants, encoding, and the protocol violations by name.
 * decoder.ts decodes.
 */
import { MeshError } from '../../lib/errors.ts'
import { recordOf } from '../../lib/record.ts'
import { type ResetReason, resetReasons } from '../../model/ending.ts'

/** Bytes of a header. */
export const HEADER_BYTES = 12

/** Frame types. */
export const DATA = 0
/** See {@link DATA}. */
export const WINDOW_UPDATE = 1
/** See {@link DATA}. */
export const PING = 2
/** See {@link DATA}. */
export const GO_AWAY = 3

/** Flag bits. */
export const SYN = 1
/** See {@link SYN}. */
export const ACK = 2
/** See {@link SYN}. */
export const FIN = 4
/** See {@link SYN}. */
export const RST = 8

/** Initial credit of each direction of a stream, bytes. */
export const INITIAL_CREDIT = 262_144

/** Largest receive window, bytes. */
export const MAX_WINDOW = 4_194_304

/** Largest payload that we send in one frame: with its header 64 KiB, four whole TLS records. */
export const MAX_PAYLOAD = 65_536 - HEADER_BYTES

/** Largest credit that a stream may have, bytes. */
export const CREDIT_LIMIT = 2 ** 31 - 1

/** Go-away codes. */
export const goAwayCodes = { normal: 0, protocolError: 1, internalError: 2 } as const

/** Reset codes on the wire: each is the index of its reason in the list. */
export const resetCodes: Readonly<Record<ResetReason, number>> = recordOf(
  resetReasons,
  (_reason, code) => code,
)

/** The reason for a code from the wire; `unspecified` for an unknown one. */
export function resetReason(code: number): ResetReason {
  return resetReasons[code] ?? 'unspecified'
}

/** Writes one header at `offset`. The caller has checked that there is room. */
export function writeHeader(
  target: Uint8Array,
  offset: number,
  type: number,
  flags: number,
  id: number,
  length: number,
): void {
  target[offset] = 0
  target[offset + 1] = type
  target[offset + 2] = 0
  target[offset + 3] = flags
  target[offset + 4] = id >>> 24
  target[offset + 5] = (id >>> 16) & 0xff
  target[offset + 6] = (id >>> 8) & 0xff
  target[offset + 7] = id & 0xff
  target[offset + 8] = length >>> 24
  target[offset + 9] = (length >>> 16) & 0xff
  target[offset + 10] = (length >>> 8) & 0xff
  target[offset + 11] = length & 0xff
}

const violations = [
  'HM_TUNNEL_BAD_FRAME',
  'HM_TUNNEL_BAD_STREAM_ID',
  'HM_TUNNEL_CREDIT_EXCEEDED',
  'HM_TUNNEL_CREDIT_OVERFLOW',
  'HM_TUNNEL_FLOOD',
] as const

/** Protocol violations by a peer; each ends the session. */
export type ProtocolViolation = (typeof violations)[number]

/** Whether an error code is a protocol violation by the peer. */
export function isViolation(code: string): boolean {
  return violations.some((violation) => violation === code)
}

/** The error with which a violation closes the session. */
export function protocolError(code: ProtocolViolation, what: string): MeshError {
  return new MeshError(code, `The peer broke the tunnel protocol: ${what}`)
}
