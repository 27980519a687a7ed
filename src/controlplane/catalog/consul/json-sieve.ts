/**
 * Lets through of a JSON text, as it arrives, what is read of it: nothing that is nested deeper than so many levels, and the
 * beginning of long texts. What is left is JSON of the same shape, with empty lists and objects where something was left out.
 *
 * For answers about many services at once. Whoever may write one of them decides how many tags and how much meta it has, and must
 * not be able to make the answer too large for the others.
 */

/** No name and no address is longer; bytes. */
const MAX_TEXT = 512

const QUOTE = 0x22
const BACKSLASH = 0x5c
const LETTER_U = 0x75
const OPEN_OBJECT = 0x7b
const CLOSE_OBJECT = 0x7d
const OPEN_ARRAY = 0x5b
const CLOSE_ARRAY = 0x5d

/** What the next bytes of an escape are: one that says which it is, or so many hexadecimal digits. */
const AFTER_BACKSLASH = 5

/** Sieves one text. */
export interface JsonSieve {
  /** Takes the next bytes. @returns those that are let through. */
  push(chunk: Buffer): Buffer
}

/** A sieve for one text. The outermost value is at level 1. */
export function createJsonSieve(levels: number): JsonSieve {
  let depth = 0
  let inString = false
  let textBytes = 0
  let isCut = false
  let escape = 0

  function passesText(byte: number): boolean {
    // Never within an escape: half of one is no JSON.
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
      // Copied: a small part must not keep the memory of a large chunk.
      return Buffer.concat(parts)
    },
  }
}
