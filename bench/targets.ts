/**
 * What hostmesh must reach, and what we want: the project's performance targets as one typed table.
 *
 * A ratio is hostmesh divided by the best of its peers in the same run, or what is captured by what is not; memory
 * and fairness are absolute. The
 * benchmark prints PASS or short beside a row; nothing else reads this.
 */
import type { MetricName } from './metrics.ts'
import { METRICS } from './metrics.ts'
import type { ScenarioName } from './scenario-names.ts'
import { SUBJECTS, type SubjectName } from './subject-names.ts'

/** One target. For a metric where higher is better the bound is a least, else a most. */
export interface Target {
  readonly scenario: ScenarioName
  readonly metric: MetricName
  readonly must: number
  readonly aim: number
  /**
   * `best-peer`: all peers. `tls-per-connection`: those peers only. `explicit-port`: hostmesh without capture, for
   * captured subjects. `absolute`: the figure itself.
   */
  readonly against: 'best-peer' | 'tls-per-connection' | 'explicit-port' | 'absolute'
}

/** The table. */
export const TARGETS: readonly Target[] = [
  ratio('requests-1', 'p50', 1.3, 1.0),
  ratio('requests-64', 'requestsPerSecond', 1.1, 1.5),
  ratio('requests-64', 'p99', 1.0, 0.7),
  ratio('requests-64', 'cpuPerRequest', 0.95, 0.7),
  ratio('requests-256', 'requestsPerSecond', 1.1, 1.5),
  ratio('requests-256', 'p99', 1.0, 0.7),
  ratio('requests-256', 'cpuPerRequest', 0.95, 0.7),
  ratio('connections', 'connectionsPerSecond', 1.1, 2),
  {
    scenario: 'connections',
    metric: 'connectionsPerSecond',
    must: 4,
    aim: 4,
    against: 'tls-per-connection',
  },
  ratio('bulk', 'throughput', 0.8, 1.2),
  ratio('mixed', 'requestsPerSecond', 1.5, 3),
  ratio('mixed', 'p99', 1.0, 0.5),
  captured('requests-64', 'requestsPerSecond'),
  captured('connections', 'connectionsPerSecond'),
  captured('bulk', 'throughput'),
  { scenario: 'memory', metric: 'rssIdle', must: 120, aim: 80, against: 'absolute' },
  { scenario: 'memory', metric: 'rssPerConnection', must: 10, aim: 6, against: 'absolute' },
  fair('p99OpenReset', 1.5, 1.2),
  fair('p99OpenDenied', 1.5, 1.2),
  fair('p99ZeroWindow', 1.5, 1.2),
  fair('p99Sessions', 1.5, 1.2),
  fair('rssAttacked', 128, 32),
]

function ratio(scenario: ScenarioName, metric: MetricName, must: number, aim: number): Target {
  return { scenario, metric, must, aim, against: 'best-peer' }
}

function fair(metric: MetricName, must: number, aim: number): Target {
  return { scenario: 'fair', metric, must, aim, against: 'absolute' }
}

/** Capture may cost 6 %. */
function captured(scenario: ScenarioName, metric: MetricName): Target {
  return { scenario, metric, must: 0.94, aim: 0.98, against: 'explicit-port' }
}

/** Whether `value` (a ratio, or for absolute targets the figure) reaches `bound` of `metric`. */
export function reaches(metric: MetricName, value: number, bound: number): boolean {
  return METRICS[metric].better === 'higher' ? value >= bound : value <= bound
}

/** Whether `peer` counts for `target`. */
export function isComparedWith(target: Target, peer: SubjectName): boolean {
  if (SUBJECTS[peer].kind !== 'peer') return false
  if (target.against === 'tls-per-connection') return SUBJECTS[peer].tlsPerConnection
  return target.against === 'best-peer'
}
