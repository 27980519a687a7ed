/**
 * Numbers as bytes, as rows of the store have them. Pure.
 *
 * A whole number is written seven bits a byte, the lowest first, the highest bit set in all but the last byte. A value
 * that may be negative or have a fraction is a whole number whose two lowest bits say what it is. Fractions are kept to
 * a millionth: sums of such values are exact in any order, so that all tiers agree.
 */

/** The largest value of a cell; larger ones become this. 2^50, so that a value with its two bits is exact. */
export const MAX_VALUE = 1_125_899_906_842_624

const FRACTION = 1
const NEGATIVE = 2

const MICRO = 1_000_000

/** Bytes that grow. */
export class ByteWriter {
  #bytes: Uint8Array
  #length = 0

  constructor(capacity = 4_096) {
    this.#bytes = new Uint8Array(capacity)
  }

  get length(): number {
    return this.#length
  }

  /** Begins again with nothing; the memory is kept. */
  clear(): void {
    this.#length = 0
  }

  /** A copy of what was written. */
  copy(): Uint8Array<ArrayBuffer> {
    return Uint8Array.from(this.#bytes.subarray(0, this.#length))
  }

  /** What was written, until the next write. */
  view(): Uint8Array {
    return this.#bytes.subarray(0, this.#length)
  }

  /** @param number whole, 0 to 2^53 - 1 */
  whole(number: number): void {
    this.#reserve(8)
    const bytes = this.#bytes
    let at = this.#length
    let rest = number
    while (rest >= 0x8000_0000) {
      bytes[at++] = (rest % 128) | 128
      rest = Math.floor(rest / 128)
    }
    while (rest > 127) {
      bytes[at++] = (rest & 127) | 128
      rest >>>= 7
    }
    bytes[at++] = rest
    this.#length = at
  }

  /** A whole number between -2^31 and 2^31. */
  signed(number: number): void {
    this.whole(number >= 0 ? number * 2 : -number * 2 - 1)
  }

  /** Any finite number; to a millionth, and no larger than {@link MAX_VALUE}. */
  value(number: number): void {
    const size = Math.min(Math.abs(number), MAX_VALUE)
    const sign = number < 0 ? NEGATIVE : 0
    if (Number.isInteger(size)) {
      this.whole(size * 4 + sign)
      return
    }
    const micros = Math.round(size * MICRO)
    if (micros > MAX_VALUE) this.whole(Math.round(size) * 4 + sign)
    else this.whole(micros * 4 + sign + FRACTION)
  }

  bytes(bytes: Uint8Array): void {
    this.#reserve(bytes.length)
    this.#bytes.set(bytes, this.#length)
    this.#length += bytes.length
  }

  #reserve(count: number): void {
    const needed = this.#length + count
    if (needed <= this.#bytes.length) return
    const larger = new Uint8Array(Math.max(needed, this.#bytes.length * 2))
    larger.set(this.#bytes)
    this.#bytes = larger
  }
}

/** Reads what {@link ByteWriter} wrote; beyond the end there are zeros. */
export class ByteReader {
  #bytes: Uint8Array
  at: number

  constructor(bytes: Uint8Array, at = 0) {
    this.#bytes = bytes
    this.at = at
  }

  get bytes(): Uint8Array {
    return this.#bytes
  }

  /** Continues in other bytes. */
  moveTo(bytes: Uint8Array, at: number): void {
    this.#bytes = bytes
    this.at = at
  }

  whole(): number {
    const bytes = this.#bytes
    let byte = bytes[this.at++] ?? 0
    if (byte < 128) return byte
    let number = byte & 127
    let shift = 7
    do {
      byte = bytes[this.at++] ?? 0
      number = shift < 28 ? number | ((byte & 127) << shift) : number + (byte & 127) * 2 ** shift
      shift += 7
    } while (byte > 127 && shift < 56)
    return number
  }

  signed(): number {
    const number = this.whole()
    return number % 2 === 0 ? number / 2 : -(number + 1) / 2
  }

  value(): number {
    const number = this.whole()
    if (number < 0x8000_0000 && (number & 3) === 0) return number >>> 2
    const kind = number % 4
    const size = Math.floor(number / 4)
    const absolute = kind & FRACTION ? size / MICRO : size
    return kind & NEGATIVE ? -absolute : absolute
  }
}
