/**
 * Filters a JSON text as it arrives: removes what is nested deeper than a given level, and the end of long strings. The
 * result is JSON of the same shape, with empty lists and objects where something was removed.
 *
 * For answers about many services at once. Each owner of a service decides how many tags and how much meta it has, and
 * must not be able to make the answer too large for the others.
 */

/** Longer than any name or address; bytes. */
const MAX_TEXT = 512

const QUOTE = 0x22
const BACKSLASH = 0x5c
const LETTER_U = 0x75
const OPEN_OBJECT = 0x7b
const CLOSE_OBJECT = 0x7d
const OPEN_ARRAY = 0x5b
const CLOSE_ARRAY = 0x5d

/** The state after a backslash: the next byte names the escape; smaller numbers count remaining hexadecimal digits. */
const AFTER_BACKSLASH = 5

/** Filters one text. */
export interface JsonFilter {
  /** Takes the next bytes. @returns those that are kept */
  push(chunk: Buffer): Buffer
}

/** A filter for one text. The outermost value is at level 1. */
export function createJsonFilter(levels: number): JsonFilter {
  let depth = 0
  let inString = false
  let textBytes = 0
  let isCut = false
  let escape = 0

  function passesText(byte: number): boolean {
    // Never cut within an escape: half of one is not JSON.
    if (textBytes >= MAX_TEXT && escape === 0) isCut = true
    textBytes += 1
    if (escape === AFTER_BACKSLASH) escape = byte === LETTER_U ? 4 : 0
    else if (escape > 0) escape -= 1
    else if (byte === BACKSLASH) escape = AFTER_BACKSLASH
    else if (byte === QUOTE) {
      inString = false
      return depth <= levels
    }
    return !isCut && depth <= levels
  }

  function passes(byte: number): boolean {
    if (inString) return passesText(byte)
    if (byte === QUOTE) {
      inString = true
      textBytes = 0
      isCut = false
    } else if (byte === OPEN_OBJECT || byte === OPEN_ARRAY) {
      depth += 1
      return depth <= levels + 1
    } else if (byte === CLOSE_OBJECT || byte === CLOSE_ARRAY) {
      depth -= 1
      return depth <= levels
    }
    return depth <= levels
  }

  return {
    push(chunk) {
      const parts: Buffer[] = []
      let start = -1
      for (let at = 0; at < chunk.length; at += 1) {
        if (passes(chunk[at] ?? 0)) {
          if (start < 0) start = at
        } else if (start >= 0) {
          parts.push(chunk.subarray(start, at))
          start = -1
        }
      }
      if (start === 0) return chunk
      if (start > 0) parts.push(chunk.subarray(start))
      // Copied, so that a small part does not keep a large chunk in memory.
      return Buffer.concat(parts)
    },
  }
}
