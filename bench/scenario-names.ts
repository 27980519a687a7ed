/**
 * What is measured: the scenarios by name, with the figures each one yields.
 */
import type { MetricName } from './metrics.ts'

/** What reports say of a scenario. */
export interface ScenarioTitle {
  readonly title: string
  /** A few words, for labels. */
  readonly label: string
  readonly metrics: readonly MetricName[]
}

const REQUEST_METRICS = ['requestsPerSecond', 'p50', 'p99', 'cpuPerRequest'] as const

/** All scenarios, in the order in which they run. */
export const SCENARIOS = {
  'requests-1': {
    title: 'small requests, 1 connection',
    label: '1 connection',
    metrics: REQUEST_METRICS,
  },
  'requests-64': {
    title: 'small requests, 64 connections',
    label: '64 connections',
    metrics: REQUEST_METRICS,
  },
  'requests-256': {
    title: 'small requests, 256 connections',
    label: '256 connections',
    metrics: REQUEST_METRICS,
  },
  connections: {
    title: 'a new connection for every request, 64 at a time',
    label: 'new connections',
    metrics: ['connectionsPerSecond', 'p50', 'p99', 'cpuPerRequest'],
  },
  bulk: { title: 'bulk, one connection', label: 'bulk', metrics: ['throughput', 'cpuPerGigabyte'] },
  mixed: {
    title: 'two bulk downloads beside 16 connections of small requests',
    label: 'mixed load',
    metrics: ['requestsPerSecond', 'p50', 'p99', 'bulkThroughput'],
  },
  memory: {
    title: 'memory, 5,000 idle connections',
    label: 'memory',
    metrics: ['rssIdle', 'rssPerConnection'],
  },
  fair: {
    title: 'small requests of one pair beside a peer that misbehaves, to beside a CPU burner',
    label: 'misbehaving peer',
    metrics: ['p99OpenReset', 'p99OpenDenied', 'p99ZeroWindow', 'p99Sessions', 'rssAttacked'],
  },
} as const satisfies Record<string, ScenarioTitle>

/** Name of a scenario. */
export type ScenarioName = keyof typeof SCENARIOS

/** All scenario names in order. */
export const SCENARIO_NAMES: readonly ScenarioName[] = Object.keys(SCENARIOS) as ScenarioName[]
