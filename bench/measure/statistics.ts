/**
 * From samples to rows: medians, spreads, and ratios to the best peer. Pure.
 */
import { METRICS, type MetricName, type Reading } from '../metrics.ts'
import { SCENARIOS, type ScenarioName } from '../scenario-names.ts'
import { PEERS, type SubjectName } from '../subject-names.ts'

/** One measured sample: what one subject did once in one scenario. */
export interface Sample {
  readonly scenario: ScenarioName
  readonly subject: SubjectName
  readonly reading: Reading
}

/** One line of the results file. `ratioToBestPeer` is null when no peer has the figure. */
export interface Row {
  readonly scenario: ScenarioName
  readonly subject: SubjectName
  readonly metric: MetricName
  readonly unit: string
  readonly median: number
  readonly min: number
  readonly max: number
  readonly samples: number
  readonly ratioToBestPeer: number | null
}

/** The middle value; of an even number the mean of the two middle ones. `values` must not be empty. */
export function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b)
  const upper = sorted[Math.floor(sorted.length / 2)]
  const lower = sorted[Math.floor((sorted.length - 1) / 2)]
  if (upper === undefined || lower === undefined)
    throw new RangeError('Cannot take the median of no values')
  return (lower + upper) / 2
}

/** The best of `values` for `metric`: the largest or the smallest; undefined when there are none. */
export function best(metric: MetricName, values: readonly number[]): number | undefined {
  if (values.length === 0) return undefined
  return METRICS[metric].better === 'higher' ? Math.max(...values) : Math.min(...values)
}

/** `value / bestPeer`, or null where that means nothing. */
export function ratioTo(value: number, bestPeer: number | undefined): number | null {
  return bestPeer === undefined || bestPeer <= 0 ? null : value / bestPeer
}

/** Sums up all samples: per scenario, in its metrics' order, one row for every subject that has it. */
export function toRows(samples: readonly Sample[]): readonly Row[] {
  const rows: Row[] = []
  for (const scenario of distinct(samples.map((sample) => sample.scenario)))
    for (const metric of SCENARIOS[scenario].metrics)
      rows.push(
        ...rowsOf(
          scenario,
          metric,
          samples.filter((sample) => sample.scenario === scenario),
        ),
      )
  return rows
}

function rowsOf(scenario: ScenarioName, metric: MetricName, samples: readonly Sample[]): Row[] {
  const values = new Map<SubjectName, number[]>()
  for (const sample of samples) {
    const value = sample.reading[metric]
    if (value === undefined) continue
    const known = values.get(sample.subject)
    if (known === undefined) values.set(sample.subject, [value])
    else known.push(value)
  }
  const peerMedians = PEERS.flatMap((peer) => {
    const measured = values.get(peer)
    return measured === undefined ? [] : [median(measured)]
  })
  const bestPeer = best(metric, peerMedians)
  return [...values].map(([subject, measured]): Row => {
    const middle = median(measured)
    return {
      scenario,
      subject,
      metric,
      unit: METRICS[metric].unit,
      median: round(middle),
      min: round(Math.min(...measured)),
      max: round(Math.max(...measured)),
      samples: measured.length,
      ratioToBestPeer: roundOrNull(ratioTo(middle, bestPeer)),
    }
  })
}

function distinct<T>(values: readonly T[]): readonly T[] {
  return [...new Set(values)]
}

/** Four significant digits: more than any figure here can be trusted to. */
function round(value: number): number {
  return Number(value.toPrecision(4))
}

function roundOrNull(value: number | null): number | null {
  return value === null ? null : Number(value.toFixed(3))
}
