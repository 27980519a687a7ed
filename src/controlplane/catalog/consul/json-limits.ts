/**
 * Limits on JSON text before it is parsed: length, depth of nesting, number of values.
 *
 * Counts as the bytes arrive, so that a hostile answer is cut off before all of it is in memory. Malformed JSON is not
 * detected here; the parser rejects it.
 */
import { MeshError } from '../../../lib/errors.ts'

/** Most bytes of one answer, after decompression. */
const MAX_BODY_BYTES = 16 * 1024 * 1024

/** Deepest nesting of objects and arrays; Consul's own answers have fewer than 12 levels. */
const MAX_DEPTH = 32

/**
 * Most values in one answer. The 5,000 instances that a service may have need half of that; sixteen megabytes of
 * `[],[],` would be five million values, and take a gigabyte and seconds.
 */
export const MAX_VALUES = 1_000_000

const QUOTE = 0x22
const BACKSLASH = 0x5c
const OPEN_OBJECT = 0x7b
const CLOSE_OBJECT = 0x7d
const OPEN_ARRAY = 0x5b
const CLOSE_ARRAY = 0x5d
const COMMA = 0x2c

/** Counts the bytes of one JSON text. */
export interface JsonLimiter {
  /**
   * Takes the next bytes.
   * @throws MeshError HM_CONSUL_ANSWER_TOO_LARGE or HM_CONSUL_ANSWER_TOO_DEEP.
   */
  push(chunk: Uint8Array): void
}

/** A limiter for one text. */
export function createJsonLimiter(
  maxBytes: number = MAX_BODY_BYTES,
  maxDepth: number = MAX_DEPTH,
): JsonLimiter {
  let bytes = 0
  let depth = 0
  let values = 0
  let inString = false
  let escaped = false
  return {
    push(chunk) {
      bytes += chunk.length
      if (bytes > maxBytes)
        throw new MeshError(
          'HM_CONSUL_ANSWER_TOO_LARGE',
          `Answer of Consul is longer than ${maxBytes} bytes`,
        )
      for (const byte of chunk) {
        if (inString) {
          if (escaped) escaped = false
          else if (byte === BACKSLASH) escaped = true
          else if (byte === QUOTE) inString = false
        } else if (byte === QUOTE) inString = true
        else if (byte === OPEN_OBJECT || byte === OPEN_ARRAY) {
          depth += 1
          if (depth > maxDepth)
            throw new MeshError(
              'HM_CONSUL_ANSWER_TOO_DEEP',
              `Answer of Consul is nested deeper than ${maxDepth} levels`,
            )
          values += 1
        } else if (byte === COMMA) values += 1
        else if (byte === CLOSE_OBJECT || byte === CLOSE_ARRAY) depth -= 1
      }
      if (values > MAX_VALUES)
        throw new MeshError(
          'HM_CONSUL_ANSWER_TOO_LARGE',
          `Answer of Consul holds more than ${MAX_VALUES} values`,
        )
    },
  }
}
