/**
 * OTLP metrics as JSON (https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding): lower camel case, 64-bit
 * integers as decimal text, enumerations as numbers. Pure.
 */
import type { Labels } from '../metrics.ts'
import type { MetricData, OtlpBatch } from './batch.ts'

/** AGGREGATION_TEMPORALITY_CUMULATIVE. */
const CUMULATIVE = 2

/** The body of one request. */
export function encodeJson({ resource, version, startMs, timeMs, metrics }: OtlpBatch): string {
  const gaugeTime = { timeUnixNano: nanoseconds(timeMs) }
  const time = { startTimeUnixNano: nanoseconds(startMs), ...gaugeTime }
  return JSON.stringify({
    resourceMetrics: [
      {
        resource: { attributes: attributesOf(resource) },
        scopeMetrics: [
          {
            scope: { name: 'hostmesh', version },
            metrics: metrics.map(({ name, description, unit, data }) => ({
              name,
              description,
              unit,
              ...encodeData(data, data.kind === 'gauge' ? gaugeTime : time),
            })),
          },
        ],
      },
    ],
  })
}

function encodeData(data: MetricData, time: object): object {
  switch (data.kind) {
    case 'gauge':
    case 'sum': {
      const dataPoints = data.points.map(({ attributes, value }) => ({
        attributes: attributesOf(attributes),
        ...time,
        asDouble: value,
      }))
      return data.kind === 'gauge'
        ? { gauge: { dataPoints } }
        : { sum: { dataPoints, aggregationTemporality: CUMULATIVE, isMonotonic: true } }
    }
    case 'histogram':
      return {
        histogram: {
          dataPoints: data.points.map(({ attributes, count, sum, bucketCounts }) => ({
            attributes: attributesOf(attributes),
            ...time,
            count: String(count),
            sum,
            bucketCounts: bucketCounts.map(String),
            explicitBounds: data.bounds,
          })),
          aggregationTemporality: CUMULATIVE,
        },
      }
    case 'exponential':
      return {
        exponentialHistogram: {
          dataPoints: data.points.map(
            ({ attributes, count, sum, scale, offset, bucketCounts }) => ({
              attributes: attributesOf(attributes),
              ...time,
              count: String(count),
              sum,
              scale,
              positive: { offset, bucketCounts: bucketCounts.map(String) },
            }),
          ),
          aggregationTemporality: CUMULATIVE,
        },
      }
  }
}

function attributesOf(labels: Labels): readonly object[] {
  return Object.entries(labels).map(([key, text]) => ({ key, value: { stringValue: text } }))
}

function nanoseconds(ms: number): string {
  return String(BigInt(Math.round(ms)) * 1_000_000n)
}
