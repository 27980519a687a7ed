/**
 * Figures over time. Pure.
 */
import type { HistoryDocument, HistorySeries } from '../../model/fleet.ts'
import type { Step } from '../fleet-store.ts'
import { coverageOf, isoTime } from './coverage.ts'
import { Fleet, type Moment } from './fleet.ts'
import type { Sides } from './pairs.ts'
import { TrafficSum } from './traffic.ts'

/** What one step comes down to. */
export interface StepFigures {
  readonly atMs: number
  readonly reporting: number
  readonly hasRows: boolean
  readonly values: Readonly<Record<keyof HistorySeries, number | null>>
}

/**
 * The figures of one step; null throughout where no host has reported. `sides` has the side of each pair in the whole
 * span: records of both sides do not end at the same moment, so a step alone may have one side, and the next the other.
 */
export function stepFigures(
  { atMs, pairs: rows, reporting }: Step,
  stepMs: number,
  sides: Sides,
): StepFigures {
  const seconds = stepMs / 1_000
  const sum = new TrafficSum()
  for (const row of rows)
    if (row.reporter === sides.get(row.source)?.get(row.destination)) sum.add(row)
  const isKnown = reporting > 0
  const known = (value: number): number | null => (isKnown ? value : null)
  const connect = sum.quantiles('connectLatency')
  const firstByte = sum.quantiles('firstByte')
  return {
    atMs,
    reporting,
    hasRows: rows.length > 0,
    values: {
      openedPerSecond: known(sum.count('opened') / seconds),
      errorsPerSecond: known(sum.endings().failed / seconds),
      deniedPerSecond: known(sum.closed('DENY') / seconds),
      active: known(sum.active),
      sentBytesPerSecond: known(sum.count('sentBytes') / seconds),
      receivedBytesPerSecond: known(sum.count('receivedBytes') / seconds),
      connectP50Ms: connect?.p50 ?? null,
      connectP99Ms: connect?.p99 ?? null,
      firstByteP50Ms: firstByte?.p50 ?? null,
      firstByteP99Ms: firstByte?.p99 ?? null,
    },
  }
}

/**
 * The history.
 * @param host the one host that was asked for
 */
export function historyDocument(
  moment: Moment,
  steps: readonly StepFigures[],
  { stepMs, host }: { readonly stepMs: number; readonly host?: string | undefined },
): HistoryDocument {
  const fleet = new Fleet(moment)
  const series = (name: keyof HistorySeries): (number | null)[] =>
    steps.map(({ values }) => values[name])
  const asked = moment.hosts.filter(({ name }) => host === undefined || name === host)
  return {
    coverage: coverageOf(
      moment,
      fleet,
      steps.some(({ hasRows }) => hasRows),
    ),
    stepMs,
    at: steps.map(({ atMs }) => isoTime(atMs)),
    series: {
      openedPerSecond: series('openedPerSecond'),
      errorsPerSecond: series('errorsPerSecond'),
      deniedPerSecond: series('deniedPerSecond'),
      active: series('active'),
      sentBytesPerSecond: series('sentBytesPerSecond'),
      receivedBytesPerSecond: series('receivedBytesPerSecond'),
      connectP50Ms: series('connectP50Ms'),
      connectP99Ms: series('connectP99Ms'),
      firstByteP50Ms: series('firstByteP50Ms'),
      firstByteP99Ms: series('firstByteP99Ms'),
    },
    missing: steps.map(({ atMs, reporting }) => {
      const known = asked.filter(({ firstReportAtMs }) => firstReportAtMs < atMs).length
      return Math.max(0, known - reporting)
    }),
  }
}
