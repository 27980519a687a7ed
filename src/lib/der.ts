/**
 * Reads and writes the subset of DER (X.690) that certificates and certificate requests need.
 *
 * The input is not trusted: only definite lengths in their shortest form, limits on everything, no
 * recursion, and input that is not DER to the last byte is rejected as a whole. Independent of any schema.
 */

/** One element: its tag byte, its content, and all its bytes. */
export interface DerElement {
  readonly tag: number
  readonly content: Uint8Array
  readonly whole: Uint8Array
}

/** All elements of `bytes`; undefined when it is not DER to the last byte or has more than `max` elements. */
export function derElements(bytes: Uint8Array, max: number): DerElement[] | undefined {
  const found: DerElement[] = []
  let at = 0
  while (at < bytes.length) {
    const tag = bytes[at] ?? 0
    const header = lengthAt(bytes, at + 1)
    // Tags above 30 take several bytes; certificates have none.
    if ((tag & 0x1f) === 0x1f || header === undefined || found.length === max) return undefined
    const end = header.next + header.length
    if (end > bytes.length) return undefined
    found.push({
      tag,
      content: bytes.subarray(header.next, end),
      whole: bytes.subarray(at, end),
    })
    at = end
  }
  return found
}

/** An element of `tag` that contains `parts` in order; less than 16 MiB of them. */
export function derElement(tag: number, ...parts: readonly Uint8Array[]): Uint8Array {
  const length = parts.reduce((sum, part) => sum + part.length, 0)
  const size = length < 0x80 ? 0 : length < 0x100 ? 1 : length < 0x1_0000 ? 2 : 3
  const whole = new Uint8Array(2 + size + length)
  whole[0] = tag
  whole[1] = size === 0 ? length : 0x80 | size
  for (let i = 0; i < size; i += 1) whole[1 + size - i] = (length >> (8 * i)) & 0xff
  let at = 2 + size
  for (const part of parts) {
    whole.set(part, at)
    at += part.length
  }
  return whole
}

/** A definite length in its shortest form, in at most three bytes. */
function lengthAt(bytes: Uint8Array, at: number): { length: number; next: number } | undefined {
  const first = bytes[at]
  if (first === undefined) return undefined
  if (first < 0x80) return { length: first, next: at + 1 }
  const size = first & 0x7f
  if (size < 1 || size > 3 || at + size >= bytes.length) return undefined
  let length = 0
  for (let i = 1; i <= size; i += 1) length = length * 256 + (bytes[at + i] ?? 0)
  const shortest = length < 0x80 ? 0 : length < 0x100 ? 1 : length < 0x1_0000 ? 2 : 3
  return size === shortest ? { length, next: at + 1 + size } : undefined
}
