/**
 * The report on the terminal: one table a scenario, then the verdicts. Pure.
 */
import type { Row } from '../measure/statistics.ts'
import type { Verdict } from '../measure/verdicts.ts'
import { formatValue, METRICS, type MetricName } from '../metrics.ts'
import { SCENARIOS, type ScenarioName } from '../scenario-names.ts'
import { SUBJECTS } from '../subject-names.ts'
import type { Target } from '../targets.ts'

/** Minutes and seconds. */
export function formatDuration(seconds: number): string {
  const whole = Math.max(0, Math.round(seconds))
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, '0')}`
}

/** A ratio as `1.42x`. */
export function formatRatio(ratio: number | null): string {
  return ratio === null ? '-' : `${ratio.toFixed(2)}x`
}

/** The table of one scenario; empty when nothing was measured in it. */
export function scenarioTable(scenario: ScenarioName, rows: readonly Row[]): string {
  const own = rows.filter((row) => row.scenario === scenario)
  if (own.length === 0) return ''
  const lines = [
    ['', 'median', 'min', 'max', 'to best peer'],
    ...SCENARIOS[scenario].metrics.flatMap((metric) => metricLines(metric, own)),
  ]
  return `\n${SCENARIOS[scenario].title}\n${alignColumns(lines)}\n`
}

function metricLines(metric: MetricName, rows: readonly Row[]): readonly (readonly string[])[] {
  const own = rows.filter((row) => row.metric === metric)
  if (own.length === 0) return []
  const heading = [`  ${METRICS[metric].title} (${METRICS[metric].unit})`]
  return [
    heading,
    ...own.map((row) => [
      `    ${row.subject}`,
      formatValue(metric, row.median),
      formatValue(metric, row.min),
      formatValue(metric, row.max),
      SUBJECTS[row.subject].kind === 'reference' ? '-' : formatRatio(row.ratioToBestPeer),
    ]),
  ]
}

/** Joins cells to lines: the first column to the left, the others to the right. */
function alignColumns(lines: readonly (readonly string[])[]): string {
  const widths: number[] = []
  for (const cells of lines)
    for (const [column, cell] of cells.entries())
      widths[column] = Math.max(widths[column] ?? 0, cell.length)
  return lines
    .map((cells) =>
      cells
        .map((cell, column) =>
          column === 0 ? cell.padEnd(widths[0] ?? 0) : cell.padStart(widths[column] ?? 0),
        )
        .join('  ')
        .trimEnd(),
    )
    .join('\n')
}

/** What a ratio is taken to, where it is not the best of all peers. */
const AGAINST: Readonly<Record<Target['against'], string>> = {
  'best-peer': '',
  'tls-per-connection': ', to TLS per connection',
  'explicit-port': ', captured to explicit port',
  absolute: '',
}

/** What a target is, in a few words: `mixed load: p99`. */
export function targetTitle(target: Target): string {
  return `${SCENARIOS[target.scenario].label}: ${METRICS[target.metric].title}${AGAINST[target.against]}`
}

/** The value of a verdict or a bound of its target: a ratio, or the figure with its unit. */
export function formatBound(target: Target, value: number): string {
  return target.against === 'absolute'
    ? `${formatValue(target.metric, value)} ${METRICS[target.metric].unit}`
    : formatRatio(value)
}

/** The sign between a value and its bound. */
export function boundSign(target: Target): string {
  return METRICS[target.metric].better === 'higher' ? '>=' : '<='
}

/** PASS or short for every target that could be judged; empty when none could. */
export function verdictTable(verdicts: readonly Verdict[]): string {
  if (verdicts.length === 0) return ''
  const lines = verdicts.map(({ target, subject, value, passed, aimReached }) => [
    `  ${targetTitle(target)}`,
    subject,
    formatBound(target, value),
    `must ${boundSign(target)} ${formatBound(target, target.must)}`,
    verdictWord(passed, aimReached),
  ])
  return `\ntargets: ratio to the best peer of this run, unless another is named\n${alignColumns(lines)}\n`
}

/** One word for a verdict. */
function verdictWord(passed: boolean, aimReached: boolean): string {
  if (aimReached) return 'PASS, aim'
  return passed ? 'PASS' : 'short'
}
