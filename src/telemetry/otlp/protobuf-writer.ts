/**
 * Writes fields of protobuf messages one after the other into one growing buffer
 * (https://protobuf.dev/programming-guides/encoding/). Pure.
 */

const VARINT = 0
const FIXED64 = 1
const LENGTH = 2

const FIRST_SIZE = 65_536

/** One message. Fields are written in the order of the calls. */
export class ProtobufWriter {
  #buffer = Buffer.allocUnsafe(FIRST_SIZE)
  #end = 0

  /** What was written. The writer cannot be used afterwards. */
  finish(): Buffer {
    return this.#buffer.subarray(0, this.#end)
  }

  /** A message in a message; `write` writes its fields. */
  message(field: number, write: () => void): void {
    this.#varint(field * 8 + LENGTH)
    const begin = this.#end
    write()
    const length = this.#end - begin
    const prefix = varintLength(length)
    this.#reserve(prefix)
    this.#buffer.copyWithin(begin + prefix, begin, this.#end)
    this.#end = begin
    this.#varint(length)
    this.#end = begin + prefix + length
  }

  text(field: number, text: string): void {
    const length = Buffer.byteLength(text)
    this.#varint(field * 8 + LENGTH)
    this.#varint(length)
    this.#reserve(length)
    this.#buffer.write(text, this.#end)
    this.#end += length
  }

  /** An integer that is not negative, up to 2^53. */
  varint(field: number, value: number): void {
    this.#varint(field * 8 + VARINT)
    this.#varint(value)
  }

  /** A sint32. */
  signed(field: number, value: number): void {
    this.varint(field, value < 0 ? -2 * value - 1 : 2 * value)
  }

  double(field: number, value: number): void {
    this.#varint(field * 8 + FIXED64)
    this.#double(value)
  }

  fixed64(field: number, value: bigint): void {
    this.#varint(field * 8 + FIXED64)
    this.#fixed64(value)
  }

  /** Packed, each as {@link varint}. */
  varints(field: number, values: readonly number[]): void {
    this.message(field, () => {
      for (const value of values) this.#varint(value)
    })
  }

  /** Packed. */
  doubles(field: number, values: readonly number[]): void {
    this.message(field, () => {
      for (const value of values) this.#double(value)
    })
  }

  /** Packed, integers that are not negative. */
  fixed64s(field: number, values: readonly number[]): void {
    this.message(field, () => {
      for (const value of values) this.#fixed64(BigInt(value))
    })
  }

  #varint(value: number): void {
    this.#reserve(8)
    let rest = value
    // Division, because 32-bit operators do not reach 2^53.
    while (rest >= 128) {
      this.#buffer[this.#end] = (rest % 128) + 128
      this.#end += 1
      rest = Math.floor(rest / 128)
    }
    this.#buffer[this.#end] = rest
    this.#end += 1
  }

  #double(value: number): void {
    this.#reserve(8)
    this.#end = this.#buffer.writeDoubleLE(value, this.#end)
  }

  #fixed64(value: bigint): void {
    this.#reserve(8)
    this.#end = this.#buffer.writeBigUInt64LE(value, this.#end)
  }

  #reserve(bytes: number): void {
    const needed = this.#end + bytes
    if (needed <= this.#buffer.length) return
    const larger = Buffer.allocUnsafe(Math.max(needed, 2 * this.#buffer.length))
    this.#buffer.copy(larger, 0, 0, this.#end)
    this.#buffer = larger
  }
}

function varintLength(value: number): number {
  let length = 1
  for (let rest = value; rest >= 128; rest = Math.floor(rest / 128)) length += 1
  return length
}
