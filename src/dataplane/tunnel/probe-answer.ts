/**
 * The acceptor's answer to a probe: docs/tunnel-protocol.md, "Probe". Pure: value to bytes and back.
 */
import type { ResetReason } from '../../model/ending.ts'
import { resetCodes, resetReason } from './frame.ts'

/** What would happen to a connection, as reported by the destination's daemon. */
export interface ProbeAnswer {
  /** `delivered`, or the reason of the reset. */
  readonly verdict: ResetReason | 'delivered'
  /** Whether a process listens on the application's port. */
  readonly application: 'unknown' | 'listens' | 'silent'
  /** One sentence for people; empty when there is nothing to add. */
  readonly reason: string
}

const VERSION = 1
const DELIVERED = 255
const HEAD_BYTES = 4
const MAX_REASON_BYTES = 250
const applicationStates = ['unknown', 'listens', 'silent'] as const

/** Largest answer, bytes. */
export const MAX_ANSWER_BYTES: number = HEAD_BYTES + MAX_REASON_BYTES

/** Encodes an answer. A reason that is too long is cut. */
export function encodeProbeAnswer({ verdict, application, reason }: ProbeAnswer): Buffer {
  const text = cut(reason)
  return Buffer.concat([
    Buffer.from([
      VERSION,
      verdict === 'delivered' ? DELIVERED : resetCodes[verdict],
      applicationStates.indexOf(application),
      text.length,
    ]),
    text,
  ])
}

/** Decodes a complete answer; undefined when it is malformed. Never throws. */
export function readProbeAnswer(bytes: Uint8Array): ProbeAnswer | undefined {
  const [version, verdict = 0, state = 0, length = 0] = bytes
  const application = applicationStates[state]
  if (version !== VERSION || application === undefined) return undefined
  if (length > MAX_REASON_BYTES || bytes.length !== HEAD_BYTES + length) return undefined
  return {
    verdict: verdict === DELIVERED ? 'delivered' : resetReason(verdict),
    application,
    reason: Buffer.from(bytes.subarray(HEAD_BYTES)).toString('utf8'),
  }
}

/** At most {@link MAX_REASON_BYTES}, always valid UTF-8. */
function cut(reason: string): Buffer {
  let end = reason.length
  let text = Buffer.from(reason, 'utf8')
  while (text.length > MAX_REASON_BYTES) {
    end -= 1
    text = Buffer.from(reason.slice(0, end), 'utf8')
  }
  return text
}
