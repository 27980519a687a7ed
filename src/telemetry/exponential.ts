/**
 * Buckets whose width grows with the value, for latencies from microseconds to minutes with the same relative error:
 * those of OpenTelemetry's exponential histogram
 * (https://opentelemetry.io/docs/specs/otel/metrics/data-model/#exponentialhistogram). Pure.
 */

/** A number of buckets for each doubling between two powers of two. */
export interface ExponentialRange {
  /** 2^scale buckets for each doubling, at most 2^6. */
  readonly scale: number
  /** The buckets cover 2^fromPower to 2^toPower. */
  readonly fromPower: number
  readonly toPower: number
}

/** Number of buckets. */
export function bucketCount({ scale, fromPower, toPower }: ExponentialRange): number {
  return (toPower - fromPower) * 2 ** scale
}

/** Explicit bits of a number in the upper half of a 64-bit float, and what is added to its exponent. */
const FRACTION_BITS = 20
const EXPONENT_BIAS = 1_023

// The exponent of a number is its logarithm, rounded down, at the cost of a memory access: Math.log2 takes as long as
// everything else that is done to record a value.
const float = new Float64Array(1)
const halves = new Uint32Array(float.buffer)
float[0] = 1
const UPPER_HALF = halves[1] === 0 ? 0 : 1

/**
 * Finds the bucket of a value. Bucket `i` has the values in (2^(fromPower + i / 2^scale), next]; the first also those
 * below, the last also those above.
 */
export class ExponentialBuckets {
  readonly #bounds: Float64Array
  readonly #last: number
  readonly #scale: number
  readonly #fromPower: number
  readonly #fractionShift: number
  readonly #fractionMask: number
  /**
   * A doubling is cut into slices of equal width, narrow enough for one bucket bound at most: the bucket of the lowest
   * value of each slice, relative to the first bucket of the doubling.
   */
  readonly #lowest: Int8Array

  constructor(range: ExponentialRange) {
    const { scale, fromPower } = range
    const perDoubling = 2 ** scale
    const slices = 2 * perDoubling
    this.#last = bucketCount(range) - 1
    this.#scale = scale
    this.#fromPower = fromPower
    this.#fractionShift = FRACTION_BITS - scale - 1
    this.#fractionMask = slices - 1
    this.#bounds = Float64Array.from(
      { length: this.#last + 1 },
      (_, bucket) => 2 ** (fromPower + (bucket + 1) / perDoubling),
    )
    this.#lowest = Int8Array.from(
      { length: slices },
      (_, slice) => Math.ceil(perDoubling * Math.log2(1 + slice / slices)) - 1,
    )
  }

  /** The bucket of a value that is not negative. */
  bucketOf(value: number): number {
    const bounds = this.#bounds
    const last = this.#last
    // Negated, so that what is no number is in some bucket, too.
    if (!(value > (bounds[0] ?? 0))) return 0
    if (value > (bounds[last - 1] ?? 0)) return last
    float[0] = value
    const half = halves[UPPER_HALF] ?? 0
    const doubling = (half >>> FRACTION_BITS) - EXPONENT_BIAS - this.#fromPower
    const slice = (half >>> this.#fractionShift) & this.#fractionMask
    const bucket = (doubling << this.#scale) + (this.#lowest[slice] ?? 0)
    return value > (bounds[bucket] ?? 0) ? bucket + 1 : bucket
  }
}
