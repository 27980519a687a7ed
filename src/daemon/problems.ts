/**
 * The problems of this host: the one list from which the status, its exit code, the metrics, the log and the status
 * line of systemd are made.
 */
import { type Clock, systemClock } from '../lib/clock.ts'
import { formatDuration } from '../lib/duration.ts'
import type { Log } from '../lib/log.ts'
import type { ProblemEntry, StatePart, WorkerStatus } from '../model/admin.ts'
import { Problem } from '../model/problem.ts'

/** The reports of the daemon's parts at one moment. */
export interface HostCondition {
  /** What the host still waits for before it serves. */
  readonly awaited: readonly string[]
  readonly isDraining: boolean
  readonly workers: readonly Pick<WorkerStatus, 'id' | 'state'>[]
  /** Undefined while capture is off or before the first check. */
  readonly captureInSync: boolean | undefined
  readonly captureProblems: readonly Problem[]
  readonly stateParts: readonly StatePart[]
  /** Problems of all other parts: catalog, certificates, discovery, memory, configuration, limits. */
  readonly others: readonly Problem[]
}

/** Interval of the checks for the log and systemd, milliseconds. */
const CHECK_EVERY_MS = 1_000

/** All problems, most important first. Pure. */
export function hostProblems(condition: HostCondition): readonly Problem[] {
  const { awaited, captureInSync, captureProblems } = condition
  const problems: Problem[] = []
  if (condition.isDraining) problems.push(new Problem('HM_HOST_DRAINING', 'The host is draining'))
  else if (awaited.length > 0)
    problems.push(new Problem('HM_HOST_NOT_READY', `Not ready: waiting for ${awaited.join(', ')}`))
  problems.push(...captureProblems)
  if (captureInSync === false && captureProblems.length === 0)
    problems.push(
      new Problem('HM_CAPTURE_DRIFT', 'The capture rules in the kernel are not the wanted ones'),
    )
  for (const { id, state } of condition.workers)
    if (state === 'stopped')
      problems.push(
        new Problem('HM_WORKER_STOPPED', `Worker ${id} is stopped`, { subject: String(id) }),
      )
  problems.push(...condition.others, ...condition.stateParts.flatMap(partProblem))
  // Two parts may report the same problem: a remembered certificate and the one of its source, both expired.
  return [
    ...new Map(problems.map((problem) => [`${problem.key} ${problem.message}`, problem])).values(),
  ]
}

function partProblem({ part, state, remembered, ageMs }: StatePart): Problem[] {
  if (state === 'live' || state === 'none') return []
  const says = (what: string): Problem[] => [
    new Problem('HM_STATE_REMEMBERED', what + age, { subject: part }),
  ]
  const age = ageMs === null ? '' : `, last confirmed ${formatDuration(wholeSeconds(ageMs))} ago`
  if (remembered === 0) return says(`What is known of ${part} is stale`)
  const stale = state === 'stale' ? ' and stale' : ''
  return says(`${remembered} ${part} are remembered from an earlier run${stale}`)
}

function wholeSeconds(ms: number): number {
  return Math.max(1, Math.round(ms / 1_000)) * 1_000
}

/** Options of a {@link ProblemWatch}. */
export interface ProblemWatchOptions {
  readonly list: () => readonly Problem[]
  readonly log: Log
  /** Called when a problem appears or ends. */
  readonly onChange?: ((problems: readonly ProblemEntry[]) => void) | undefined
  readonly clock?: Clock
}

/** Remembers when each problem appeared, and logs each once when it appears and once when it ends. */
export class ProblemWatch implements Disposable {
  private readonly options: ProblemWatchOptions
  private readonly clock: Clock
  private readonly timer: NodeJS.Timeout
  private standing: ReadonlyMap<string, { readonly problem: Problem; readonly sinceMs: number }> =
    new Map()

  constructor(options: ProblemWatchOptions) {
    this.options = options
    this.clock = options.clock ?? systemClock
    this.timer = setInterval(() => this.check(), CHECK_EVERY_MS)
    this.timer.unref()
  }

  /** The current problems. */
  check(): readonly ProblemEntry[] {
    const { log } = this.options
    const before = this.standing
    const problems = this.options.list()
    const now = new Map<string, { problem: Problem; sinceMs: number }>()
    for (const problem of problems) {
      const sinceMs = before.get(problem.key)?.sinceMs ?? this.clock.wallMs()
      now.set(problem.key, { problem, sinceMs })
    }
    this.standing = now
    const came = [...now].filter(([key]) => !before.has(key))
    const gone = [...before].filter(([key]) => !now.has(key))
    for (const [, { problem }] of came) {
      // Info, because they occur at every start and stop.
      const level = problem.code.startsWith('HM_HOST_') ? 'info' : 'warn'
      log[level](problem.message, { code: problem.code, hint: problem.hint })
    }
    for (const [, { problem, sinceMs }] of gone)
      log.info('A problem is over', {
        code: problem.code,
        was: problem.message,
        since: new Date(sinceMs).toISOString(),
      })
    const entries = problems.map(({ code, message, hint, blocks, key }) => ({
      code,
      message,
      hint,
      blocks,
      since: new Date(now.get(key)?.sinceMs ?? 0).toISOString(),
    }))
    if (came.length > 0 || gone.length > 0) this.options.onChange?.(entries)
    return entries
  }

  [Symbol.dispose](): void {
    clearInterval(this.timer)
  }
}

/** One line for `systemctl status`. */
export function problemLine(
  services: readonly string[],
  problems: readonly ProblemEntry[],
): string {
  const doing = `serving ${services.join(', ') || 'no services'}`
  const [first] = problems
  if (first === undefined) return doing
  const more = problems.length > 1 ? ` (and ${problems.length - 1} more: hostmesh status)` : ''
  return `${first.code}: ${first.message}${more}`
}
