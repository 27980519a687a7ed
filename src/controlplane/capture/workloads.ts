/**
 * Turns the workloads of a plan into ones that the kernel can match now: user names become numbers,
 * cgroups that do not exist are set aside.
 *
 * A cgroup rule holds on to the cgroup that had the path when the rule was made. When systemd restarts a
 * unit, the unit gets a new cgroup under the old path and the rule matches nothing. So the identity of
 * each cgroup is returned beside the plan: when it changes, the rules must be applied again.
 */
import { readFile, stat } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { MeshError } from '../../lib/errors.ts'
import { Problem } from '../../model/problem.ts'
import type { RunCommand } from './command.ts'
import { type CapturePlan, type CaptureWorkload, describeSelector } from './rules.ts'

/** What of a plan can be applied now. */
export interface ResolvedPlan {
  readonly plan: CapturePlan
  /** What was left out and why. */
  readonly problems: readonly Problem[]
  /** Cgroup paths that exist, with what tells a new cgroup from its predecessor. */
  readonly cgroupIds: ReadonlyMap<string, string>
  /** Where cgroup v2 is mounted; undefined where it is not. */
  readonly cgroupRoot: string | undefined
}

/** Where cgroup v2 is mounted, or undefined on a host that has none. */
export async function findCgroupRoot(): Promise<string | undefined> {
  const mounts = await readFile('/proc/self/mounts', 'utf8')
  for (const line of mounts.split('\n')) {
    const [, path, type] = line.split(' ')
    if (type === 'cgroup2' && path !== undefined)
      return path.replaceAll(/\\([0-7]{3})/g, (_, octal: string) =>
        String.fromCharCode(Number.parseInt(octal, 8)),
      )
  }
  return undefined
}

/** Resolves every workload of a plan; nothing here throws for a workload that cannot be resolved. */
export async function resolvePlan(
  plan: CapturePlan,
  run: RunCommand,
  cgroupRoot: string | undefined,
): Promise<ResolvedPlan> {
  const problems: Problem[] = []
  const cgroupIds = new Map<string, string>()
  const workloads: CaptureWorkload[] = []
  for (const workload of plan.workloads) {
    const { selector } = workload
    const left = (why: string): number =>
      problems.push(
        new Problem(
          'HM_CAPTURE_WORKLOAD_MISSING',
          `Connections of ${describe(workload)} are not captured: ${why}`,
          { subject: describe(workload) },
        ),
      )
    if (selector.kind === 'sourceAddress') {
      workloads.push(workload)
    } else if (selector.kind === 'user') {
      const uid = await findUid(selector.user, run)
      if (uid === undefined) left(`there is no user ${selector.user}`)
      else if (uid === plan.daemonUid) left('the daemon runs as the same user, who is exempt')
      else workloads.push({ ...workload, selector: { kind: 'user', user: String(uid) } })
    } else if (cgroupRoot === undefined) {
      left('no cgroup v2 file system is mounted')
    } else {
      const id = await cgroupId(cgroupRoot, selector.path)
      if (id === undefined) left(`there is no cgroup ${selector.path} (is the unit running?)`)
      else {
        cgroupIds.set(selector.path, id)
        workloads.push(workload)
      }
    }
  }
  return { plan: { ...plan, workloads }, problems, cgroupIds, cgroupRoot }
}

/** The cgroups of a plan as they are now. */
export async function readCgroupIds(
  plan: CapturePlan,
  cgroupRoot: string | undefined,
): Promise<ReadonlyMap<string, string>> {
  const ids = new Map<string, string>()
  if (cgroupRoot === undefined) return ids
  for (const { selector } of plan.workloads) {
    if (selector.kind !== 'cgroup') continue
    const id = await cgroupId(cgroupRoot, selector.path)
    if (id !== undefined) ids.set(selector.path, id)
  }
  return ids
}

/** The folders in which the cgroups of a plan come and go, for a file watcher. */
export function cgroupParents(plan: CapturePlan, cgroupRoot: string | undefined): string[] {
  if (cgroupRoot === undefined) return []
  const parents = plan.workloads.flatMap(({ selector }) =>
    selector.kind === 'cgroup' ? [join(cgroupRoot, dirname(selector.path))] : [],
  )
  return [...new Set(parents)]
}

/**
 * The number of a user given by name or number; undefined when there is none of that name.
 * @throws MeshError when the lookup itself cannot be made.
 */
export async function findUid(user: string, run: RunCommand): Promise<number | undefined> {
  if (/^\d+$/.test(user)) return Number(user)
  const result = await run('id', ['-u', '--', user])
  const uid = Number(result.stdout.trim() || Number.NaN)
  return result.status === 0 && Number.isInteger(uid) ? uid : undefined
}

/**
 * The number of the user the daemon runs as.
 * @throws MeshError HM_CAPTURE_USER_UNKNOWN when the host has no such user.
 */
export async function findDaemonUid(user: string, run: RunCommand): Promise<number> {
  const uid = await findUid(user, run)
  if (uid !== undefined) return uid
  throw new MeshError(
    'HM_CAPTURE_USER_UNKNOWN',
    `Cannot exempt the daemon from capture: there is no user ${user}`,
    { hint: 'Correct capture.daemonUser, or create the user' },
  )
}

function describe({ selector, capturePort }: CaptureWorkload): string {
  return `${describeSelector(selector)} (port ${capturePort})`
}

async function cgroupId(root: string, path: string): Promise<string | undefined> {
  try {
    // The kernel's own number of a cgroup, never given twice.
    const { ino } = await stat(join(root, path), { bigint: true })
    return String(ino)
  } catch {
    return undefined
  }
}
