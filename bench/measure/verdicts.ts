/**
 * Holds rows against the targets: PASS or short, one verdict for each judged subject and target. Pure.
 */
import { EXPLICIT_PORT, isCaptured, PEERS, type SubjectName } from '../subject-names.ts'
import { isComparedWith, reaches, TARGETS, type Target } from '../targets.ts'
import { best, type Row, ratioTo } from './statistics.ts'

/** How one subject stands to one target. */
export interface Verdict {
  readonly target: Target
  readonly subject: SubjectName
  /** The ratio, or for absolute targets the figure. */
  readonly value: number
  readonly passed: boolean
  readonly aimReached: boolean
}

/** The verdicts for `subjects`; targets whose figure or peers were not measured are left out. */
export function judge(rows: readonly Row[], subjects: readonly SubjectName[]): readonly Verdict[] {
  const verdicts: Verdict[] = []
  for (const target of TARGETS)
    for (const subject of subjects) {
      const value = valueFor(target, subject, rows)
      if (value === undefined) continue
      verdicts.push({
        target,
        subject,
        value,
        passed: reaches(target.metric, value, target.must),
        aimReached: reaches(target.metric, value, target.aim),
      })
    }
  return verdicts
}

function valueFor(target: Target, subject: SubjectName, rows: readonly Row[]): number | undefined {
  const medianOf = (name: SubjectName): number | undefined =>
    rows.find(
      (row) =>
        row.scenario === target.scenario && row.metric === target.metric && row.subject === name,
    )?.median
  const own = medianOf(subject)
  if (own === undefined || target.against === 'absolute') return own
  if (target.against === 'explicit-port')
    return isCaptured(subject) ? (ratioTo(own, medianOf(EXPLICIT_PORT)) ?? undefined) : undefined
  const peers = PEERS.filter((peer) => isComparedWith(target, peer)).flatMap(
    (peer) => medianOf(peer) ?? [],
  )
  return ratioTo(own, best(target.metric, peers)) ?? undefined
}
