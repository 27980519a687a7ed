/**
 * OTLP metrics as protobuf (https://github.com/open-telemetry/opentelemetry-proto,
 * opentelemetry/proto/metrics/v1/metrics.proto). Only what a batch contains; the numbers of fields are those of the
 * definition. Pure.
 */
import type { Labels } from '../metrics.ts'
import type { BucketPoint, ExponentialPoint, MetricData, NumberPoint, OtlpBatch } from './batch.ts'
import { ProtobufWriter } from './protobuf-writer.ts'

/** AGGREGATION_TEMPORALITY_CUMULATIVE. */
const CUMULATIVE = 2

/** The body of one request. */
export function encodeProtobuf(batch: OtlpBatch): Buffer {
  return new Encoder(batch).encode()
}

class Encoder {
  readonly #out = new ProtobufWriter()
  readonly #batch: OtlpBatch
  readonly #startNanoseconds: bigint
  readonly #nanoseconds: bigint

  constructor(batch: OtlpBatch) {
    this.#batch = batch
    this.#startNanoseconds = BigInt(Math.round(batch.startMs)) * 1_000_000n
    this.#nanoseconds = BigInt(Math.round(batch.timeMs)) * 1_000_000n
  }

  encode(): Buffer {
    const { resource, version, metrics } = this.#batch
    const out = this.#out
    out.message(1, () => {
      out.message(1, () => this.#attributes(1, resource))
      out.message(2, () => {
        out.message(1, () => {
          out.text(1, 'hostmesh')
          out.text(2, version)
        })
        for (const { name, description, unit, data } of metrics)
          out.message(2, () => {
            out.text(1, name)
            out.text(2, description)
            out.text(3, unit)
            this.#data(data)
          })
      })
    })
    return out.finish()
  }

  #data(data: MetricData): void {
    const out = this.#out
    switch (data.kind) {
      case 'gauge':
        out.message(5, () => {
          for (const point of data.points) this.#number(point, 'gauge')
        })
        break
      case 'sum':
        out.message(7, () => {
          for (const point of data.points) this.#number(point, 'sum')
          out.varint(2, CUMULATIVE)
          out.varint(3, 1)
        })
        break
      case 'histogram':
        out.message(9, () => {
          for (const point of data.points) this.#histogram(point, data.bounds)
          out.varint(2, CUMULATIVE)
        })
        break
      case 'exponential':
        out.message(10, () => {
          for (const point of data.points) this.#exponential(point)
          out.varint(2, CUMULATIVE)
        })
        break
    }
  }

  #number({ attributes, value }: NumberPoint, kind: 'gauge' | 'sum'): void {
    const out = this.#out
    out.message(1, () => {
      if (kind === 'sum') out.fixed64(2, this.#startNanoseconds)
      out.fixed64(3, this.#nanoseconds)
      out.double(4, value)
      this.#attributes(7, attributes)
    })
  }

  #histogram(point: BucketPoint, bounds: readonly number[]): void {
    const out = this.#out
    out.message(1, () => {
      this.#times()
      out.fixed64(4, BigInt(point.count))
      out.double(5, point.sum)
      out.fixed64s(6, point.bucketCounts)
      out.doubles(7, bounds)
      this.#attributes(9, point.attributes)
    })
  }

  #exponential(point: ExponentialPoint): void {
    const out = this.#out
    out.message(1, () => {
      this.#attributes(1, point.attributes)
      this.#times()
      out.fixed64(4, BigInt(point.count))
      out.double(5, point.sum)
      out.signed(6, point.scale)
      out.message(8, () => {
        out.signed(1, point.offset)
        out.varints(2, point.bucketCounts)
      })
    })
  }

  /** Of a point that is cumulative. */
  #times(): void {
    this.#out.fixed64(2, this.#startNanoseconds)
    this.#out.fixed64(3, this.#nanoseconds)
  }

  #attributes(field: number, labels: Labels): void {
    const out = this.#out
    for (const [key, value] of Object.entries(labels))
      out.message(field, () => {
        out.text(1, key)
        out.message(2, () => out.text(1, value))
      })
  }
}
