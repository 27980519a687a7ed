/**
 * An explanation as text: the verdict first, then the stations along the path, then what to do.
 */
import type { Explanation, Station, Verdict } from '../../model/explanation.ts'
import { formatAge, formatSince } from './format.ts'
import { paint, type Tone } from './table.ts'

const VERDICTS: Record<Verdict, { readonly text: string; readonly tone: Tone }> = {
  allowed: { text: 'ALLOWED', tone: 'good' },
  denied: { text: 'DENIED', tone: 'bad' },
  unreachable: { text: 'UNREACHABLE', tone: 'bad' },
  uncaptured: { text: 'NOT CAPTURED', tone: 'bad' },
  undecided: { text: 'UNDECIDED', tone: 'warning' },
  unknownCaller: { text: 'UNKNOWN CALLER', tone: 'bad' },
  unknownService: { text: 'UNKNOWN SERVICE', tone: 'bad' },
}

const MARKS: Record<Station['mark'], { readonly text: string; readonly tone: Tone }> = {
  good: { text: '✓', tone: 'good' },
  warning: { text: '!', tone: 'warning' },
  bad: { text: '✗', tone: 'bad' },
  none: { text: '-', tone: 'faint' },
}

/** Width of the longest station name, and a space. */
const NAME_WIDTH = 12

/** The lines, without a newline at the end. */
export function renderExplanation(explanation: Explanation, nowMs: number): string {
  const { verdict, summary, stations, next } = explanation
  return [
    `${paint(VERDICTS[verdict])}: ${paint(summary)}`,
    '',
    ...stations.flatMap(stationLines),
    ...(next.length === 0 ? [] : ['', 'Next:', ...next.map((step) => `  ${paint(step)}`)]),
    '',
    paint({ text: originOf(explanation, nowMs), tone: 'faint' }),
  ].join('\n')
}

function stationLines({ name, mark, summary, details }: Station): string[] {
  const indent = ' '.repeat(2 + NAME_WIDTH + 2)
  return [
    `${paint(MARKS[mark])} ${name.padEnd(NAME_WIDTH)}${paint(summary)}`,
    ...details.map((detail) => `${indent}${paint({ text: detail, tone: 'faint' })}`),
  ]
}

function originOf({ node, factsAt, catalogAgeMs }: Explanation, nowMs: number): string {
  const catalog =
    catalogAgeMs === null
      ? 'the catalog had not answered'
      : `the last answer of the catalog was ${formatAge(catalogAgeMs)} old`
  return `As ${node} saw it ${formatSince(factsAt, nowMs)} ago (${factsAt}); ${catalog}`
}
