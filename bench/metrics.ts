/**
 * Every figure the benchmark takes: its unit, which way is better, and how it is printed.
 */

/** What a figure means and how to show it. */
export interface Metric {
  readonly title: string
  readonly unit: string
  readonly better: 'higher' | 'lower'
  readonly decimals: number
}

/** All metrics, by the name used in the results file. */
export const METRICS = {
  requestsPerSecond: { title: 'requests/s', unit: '1/s', better: 'higher', decimals: 0 },
  connectionsPerSecond: { title: 'connections/s', unit: '1/s', better: 'higher', decimals: 0 },
  p50: { title: 'p50', unit: 'us', better: 'lower', decimals: 0 },
  p99: { title: 'p99', unit: 'us', better: 'lower', decimals: 0 },
  cpuPerRequest: { title: 'CPU/request', unit: 'us', better: 'lower', decimals: 1 },
  throughput: { title: 'throughput', unit: 'GB/s', better: 'higher', decimals: 3 },
  cpuPerGigabyte: { title: 'CPU/GB', unit: 's', better: 'lower', decimals: 2 },
  bulkThroughput: { title: 'bulk beside', unit: 'GB/s', better: 'higher', decimals: 3 },
  rssIdle: { title: 'RSS idle', unit: 'MB', better: 'lower', decimals: 0 },
  rssPerConnection: { title: 'RSS/connection', unit: 'kB', better: 'lower', decimals: 1 },
  p99OpenReset: { title: 'p99, streams reset at once', unit: 'x', better: 'lower', decimals: 2 },
  p99OpenDenied: { title: 'p99, denied streams', unit: 'x', better: 'lower', decimals: 2 },
  p99ZeroWindow: { title: 'p99, streams without credit', unit: 'x', better: 'lower', decimals: 2 },
  p99Sessions: { title: 'p99, sessions', unit: 'x', better: 'lower', decimals: 2 },
  rssAttacked: { title: 'RSS taken', unit: 'MB', better: 'lower', decimals: 0 },
} as const satisfies Record<string, Metric>

/** Name of a metric. */
export type MetricName = keyof typeof METRICS

/** The figures of one sample. */
export type Reading = Partial<Record<MetricName, number>>

/** `value` with as many decimals as its metric deserves and thousands separated. */
export function formatValue(metric: MetricName, value: number): string {
  return value.toLocaleString('en-US', {
    minimumFractionDigits: METRICS[metric].decimals,
    maximumFractionDigits: METRICS[metric].decimals,
  })
}
