/**
 * The report as Markdown, for docs/performance.md. Pure.
 */
import { environmentLines } from '../environment.ts'
import type { Row } from '../measure/statistics.ts'
import { judge } from '../measure/verdicts.ts'
import { formatValue, METRICS } from '../metrics.ts'
import type { Results } from '../results.ts'
import { SCENARIO_NAMES, SCENARIOS, type ScenarioName } from '../scenario-names.ts'
import { JUDGED, SUBJECT_NAMES, SUBJECTS } from '../subject-names.ts'
import { TARGETS } from '../targets.ts'
import { boundSign, formatBound, formatRatio, targetTitle } from './text.ts'

/** Between these two lines of a document the report is put. */
export const BEGIN_MARKER = '<!-- bench report: begin -->'
export const END_MARKER = '<!-- bench report: end -->'

/** The whole report; `pictureFile` is the link to the picture as seen from the document. */
export function markdownReport(results: Results, pictureFile: string): string {
  const parts = [
    `Run of ${results.header.environment.date.slice(0, 10)}, ${roundsOf(results)}${commitOf(results)}:`,
    ['```text', ...environmentLines(results.header.environment), '```'].join('\n'),
    `![hostmesh beside its peers](${pictureFile})`,
    targetsTable(results.rows),
    ...SCENARIO_NAMES.map((scenario) => scenarioSection(scenario, results.rows)),
    absences(results),
  ]
  return parts.filter((part) => part !== '').join('\n\n')
}

function roundsOf({ header: { rounds } }: Results): string {
  return rounds === 1 ? '1 round' : `${rounds} rounds`
}

function commitOf(results: Results): string {
  const { commit } = results.header.environment
  return commit === null ? '' : `, commit ${commit}`
}

function targetsTable(rows: readonly Row[]): string {
  const verdicts = judge(rows, JUDGED)
  if (verdicts.length === 0) return ''
  const lines = TARGETS.flatMap((target) => {
    const own = JUDGED.map((subject) =>
      verdicts.find((verdict) => verdict.target === target && verdict.subject === subject),
    )
    if (own.every((verdict) => verdict === undefined)) return []
    return [
      [
        targetTitle(target),
        `${boundSign(target)} ${formatBound(target, target.must)}`,
        `${boundSign(target)} ${formatBound(target, target.aim)}`,
        ...own.map((verdict) =>
          verdict === undefined
            ? ''
            : `${formatBound(target, verdict.value)}${verdict.passed ? '' : ' **short**'}`,
        ),
      ],
    ]
  })
  return [
    '### Targets',
    'Ratio to the best of all peers in this run, unless another is named or there is a unit.',
    table([['target', 'must', 'aim', ...JUDGED], ...lines]),
  ].join('\n\n')
}

function scenarioSection(scenario: ScenarioName, rows: readonly Row[]): string {
  const own = rows.filter((row) => row.scenario === scenario)
  if (own.length === 0) return ''
  const metrics = SCENARIOS[scenario].metrics.filter((metric) =>
    own.some((row) => row.metric === metric),
  )
  const lines = SUBJECT_NAMES.filter((subject) => own.some((row) => row.subject === subject)).map(
    (subject) => [
      SUBJECTS[subject].title,
      ...metrics.map((metric) => {
        const row = own.find((each) => each.subject === subject && each.metric === metric)
        return row === undefined ? '-' : cell(row)
      }),
    ],
  )
  const headings = metrics.map((metric) => `${METRICS[metric].title} (${METRICS[metric].unit})`)
  return [
    `### ${capitalized(SCENARIOS[scenario].title)}`,
    'Median (least to most), ratio to the best peer.',
    table([['', ...headings], ...lines]),
  ].join('\n\n')
}

function cell(row: Row): string {
  const spread = `${formatValue(row.metric, row.min)} to ${formatValue(row.metric, row.max)}`
  const ratio =
    SUBJECTS[row.subject].kind === 'reference' || row.ratioToBestPeer === null
      ? ''
      : `, ${formatRatio(row.ratioToBestPeer)}`
  return `${formatValue(row.metric, row.median)} (${spread})${ratio}`
}

function absences(results: Results): string {
  const { absent, failures } = results.header
  return [
    ...Object.entries(absent).map(([subject, reason]) => `* absent: ${subject}: ${reason}`),
    ...failures.map(
      ({ subject, scenario, message }) =>
        `* failed: ${subject}${scenario === null ? '' : ` in ${scenario}`}: ${message}`,
    ),
  ].join('\n')
}

function table(lines: readonly (readonly string[])[]): string {
  const [heading = [], ...body] = lines
  const rule = heading.map((_, column) => (column === 0 ? '---' : '--:'))
  return [heading, rule, ...body].map((cells) => `| ${cells.join(' | ')} |`).join('\n')
}

function capitalized(text: string): string {
  return text.charAt(0).toUpperCase() + text.slice(1)
}

/** `document` with what is between the markers replaced; undefined when it has no such markers. */
export function insertReport(document: string, report: string): string | undefined {
  const begin = document.indexOf(BEGIN_MARKER)
  const end = document.indexOf(END_MARKER)
  if (begin === -1 || end < begin) return undefined
  const before = document.slice(0, begin + BEGIN_MARKER.length)
  return `${before}\n\n${report}\n\n${document.slice(end)}`
}
