/**
 * The picture: for every target with a ratio, one bar a subject, as "how many times better than the best
 * peer". Longer is better in every group, also where the figure itself should be small. Pure.
 */
import type { Row } from '../measure/statistics.ts'
import { METRICS } from '../metrics.ts'
import { JUDGED, PEERS, SUBJECTS, type SubjectName } from '../subject-names.ts'
import { TARGETS, type Target } from '../targets.ts'
import { targetTitle } from './text.ts'

const SHOWN: readonly SubjectName[] = [...JUDGED, ...PEERS]
const COLORS: Readonly<Partial<Record<SubjectName, string>>> = {
  'hostmesh-capture': '#c2410c',
  'hostmesh-capture-instance': '#e2661a',
  'hostmesh-upstream': '#f59e0b',
  haproxy: '#1e3a5f',
  nginx: '#3f6d9b',
  'envoy-tls': '#7a9cbd',
  'envoy-h2': '#b5c7d8',
  ztunnel: '#6b8e6b',
}

const WIDTH = 860
const LABEL_WIDTH = 230
const TOP = 104
const BAR = 9
const GROUP_GAP = 14
const VALUE_WIDTH = 60

/** Bars end here: a longer one is cut and says its number. */
const MOST = 4

/** One bar: `advantage` is 1 for the best peer, more for whoever is better. */
interface Bar {
  readonly subject: SubjectName
  readonly advantage: number
}

/** The picture as an SVG document. */
export function ratioPicture(rows: readonly Row[]): string {
  const groups = TARGETS.filter((target) => target.against === 'best-peer').flatMap((target) => {
    const bars = barsOf(target, rows)
    return bars.length === 0 ? [] : [{ target, bars }]
  })
  const longest = Math.max(2, ...groups.flatMap(({ bars }) => bars.map((bar) => bar.advantage)))
  const scale = (WIDTH - LABEL_WIDTH - VALUE_WIDTH) / Math.min(MOST, longest)
  const body: string[] = []
  let y = TOP
  for (const { target, bars } of groups) {
    body.push(drawGroup(target, bars, y, scale))
    y += bars.length * BAR + GROUP_GAP
  }
  const onePeer = LABEL_WIDTH + scale
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${y + 10}" width="${WIDTH}" height="${y + 10}" font-family="system-ui, sans-serif" font-size="12">
<rect width="100%" height="100%" fill="#ffffff"/>
<text x="16" y="24" font-size="16" font-weight="600" fill="#111827">How many times better than the best peer</text>
<text x="16" y="43" fill="#4b5563">Two hops with mutual TLS, one thread a hop, all in one run. Longer is better in every group.</text>
<text x="16" y="59" fill="#4b5563">The dashed line is the best of the peers, the black tick what hostmesh must reach.</text>
${legend()}
<line x1="${onePeer}" y1="${TOP - 8}" x2="${onePeer}" y2="${y - GROUP_GAP + 4}" stroke="#9ca3af" stroke-dasharray="3 3"/>
${body.join('\n')}
</svg>
`
}

function barsOf(target: Target, rows: readonly Row[]): readonly Bar[] {
  return SHOWN.flatMap((subject): Bar[] => {
    const row = rows.find(
      (each) =>
        each.scenario === target.scenario &&
        each.metric === target.metric &&
        each.subject === subject,
    )
    const ratio = row?.ratioToBestPeer
    return ratio === undefined || ratio === null || ratio <= 0
      ? []
      : [{ subject, advantage: advantage(target, ratio) }]
  })
}

/** A ratio turned so that more is better. */
function advantage(target: Target, ratio: number): number {
  return METRICS[target.metric].better === 'higher' ? ratio : 1 / ratio
}

function drawGroup(target: Target, bars: readonly Bar[], y: number, scale: number): string {
  const middle = y + (bars.length * BAR) / 2
  const tick = LABEL_WIDTH + advantage(target, target.must) * scale
  const own = bars.filter((bar) => JUDGED.includes(bar.subject)).length
  return [
    `<text x="${LABEL_WIDTH - 10}" y="${middle + 4}" text-anchor="end" fill="#111827">${targetTitle(target)}</text>`,
    ...bars.map((bar, index) => drawBar(bar, y + index * BAR, scale)),
    own === 0
      ? ''
      : `<line x1="${round(tick)}" y1="${y - 2}" x2="${round(tick)}" y2="${y + own * BAR + 1}" stroke="#000000" stroke-width="2"/>`,
  ].join('\n')
}

function drawBar(bar: Bar, y: number, scale: number): string {
  const length = Math.min(bar.advantage, MOST) * scale
  const isOurs = SUBJECTS[bar.subject].kind === 'hostmesh'
  return [
    `<rect x="${LABEL_WIDTH}" y="${y}" width="${round(length)}" height="${BAR - 1}" fill="${COLORS[bar.subject] ?? '#999999'}"><title>${bar.subject} ${bar.advantage.toFixed(2)}</title></rect>`,
    isOurs
      ? `<text x="${round(LABEL_WIDTH + length + 4)}" y="${y + BAR - 1}" font-size="10" fill="#111827">${bar.advantage.toFixed(2)}</text>`
      : '',
  ].join('')
}

function legend(): string {
  let x = 16
  return SHOWN.map((subject) => {
    const entry = `<rect x="${x}" y="72" width="10" height="10" fill="${COLORS[subject] ?? '#999999'}"/><text x="${x + 14}" y="81" fill="#111827">${subject}</text>`
    x += 34 + subject.length * 6.8
    return entry
  }).join('\n')
}

function round(value: number): number {
  return Math.round(value * 10) / 10
}
