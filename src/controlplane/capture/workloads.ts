/**
 * Resolves the workloads of a plan into ones that the kernel can match now: user names become numbers, and cgroups
 * that do not exist are left out.
 *
 * A cgroup rule refers to the cgroup that had the path when the rule was created. When systemd restarts a unit, the
 * unit gets a new cgroup under the old path, and the rule matches nothing. So the ids of the cgroups are returned with
 * the plan: when one changes, the rules must be applied again. Until then, a new cgroup is recognized because it is not
 * among the known ones beside it.
 */
import { readdirSync, statSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { MeshError } from '../../lib/errors.ts'
import { Problem } from '../../model/problem.ts'
import type { RunCommand } from './command.ts'
import { type CapturePlan, type CaptureWorkload, describeSelector } from './rules.ts'

/** A known cgroup that is not a workload, or has workloads below it. */
export interface KnownCgroup {
  readonly path: string
  /** Whether workloads may be below it. */
  readonly isAbove: boolean
}

/** The part of a plan that can be applied now. */
export interface ResolvedPlan {
  readonly plan: CapturePlan
  /**
   * The existing cgroups above workloads, and all beside them: a process in any other one has just started, and has not
   * been identified yet. Empty when no workload is a cgroup.
   */
  readonly cgroups: readonly KnownCgroup[]
  /** What was left out and why. */
  readonly problems: readonly Problem[]
  /** Existing cgroups of workloads, by path, with an id that differs between a cgroup and its successor. */
  readonly unitIds: ReadonlyMap<string, string>
  /** The same for all relevant cgroups: those of workloads, and {@link cgroups}. */
  readonly cgroupIds: ReadonlyMap<string, string>
  /** Where cgroup v2 is mounted; undefined where it is not. */
  readonly cgroupRoot: string | undefined
}

/** Where cgroup v2 is mounted; undefined on a host without it. */
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

/** Resolves every workload of a plan; one that cannot be resolved is a problem, not an error. */
export async function resolvePlan(
  plan: CapturePlan,
  run: RunCommand,
  cgroupRoot: string | undefined,
): Promise<ResolvedPlan> {
  const problems: Problem[] = []
  const cgroupIds = readCgroupIds(plan, cgroupRoot)
  const unitIds = new Map<string, string>()
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
      const id = cgroupIds.get(selector.path)
      if (id === undefined) left(`there is no cgroup ${selector.path} (is the unit running?)`)
      else {
        unitIds.set(selector.path, id)
        workloads.push(workload)
      }
    }
  }
  const cgroups = knownCgroups(plan, cgroupIds)
  return { plan: { ...plan, workloads }, problems, cgroups, unitIds, cgroupIds, cgroupRoot }
}

/**
 * The cgroups that are relevant to a plan, as they are now: all in the folders above those of workloads. Synchronous:
 * the kernel has them in memory, and the purpose is to find processes that start between two checks.
 */
export function readCgroupIds(
  plan: CapturePlan,
  cgroupRoot: string | undefined,
): ReadonlyMap<string, string> {
  const ids = new Map<string, string>()
  if (cgroupRoot === undefined) return ids
  for (const folder of foldersAbove(plan))
    for (const name of childrenOf(join(cgroupRoot, folder))) {
      const path = folder === '' ? name : `${folder}/${name}`
      const id = cgroupId(cgroupRoot, path)
      // nft reads names in quotes and has no escape.
      if (id !== undefined && !path.includes('"')) ids.set(path, id)
    }
  return ids
}

/** Whether both have the same cgroups: none is new, gone, or the successor of another one. */
export function sameIds(a: ReadonlyMap<string, string>, b: ReadonlyMap<string, string>): boolean {
  return a.size === b.size && [...a].every(([path, id]) => b.get(path) === id)
}

/** The folders in which the cgroups of a plan are created and removed, for a file watcher. */
export function cgroupParents(plan: CapturePlan, cgroupRoot: string | undefined): string[] {
  if (cgroupRoot === undefined) return []
  return [...foldersAbove(plan)].map((folder) => join(cgroupRoot, folder))
}

/** The existing cgroups that are not workloads, or have workloads below them. */
function knownCgroups(plan: CapturePlan, ids: ReadonlyMap<string, string>): KnownCgroup[] {
  const units = new Set(cgroupPaths(plan))
  const above = foldersAbove(plan)
  return [...ids.keys()].flatMap((path): KnownCgroup[] =>
    units.has(path) && !above.has(path) ? [] : [{ path, isAbove: above.has(path) }],
  )
}

function cgroupPaths(plan: CapturePlan): string[] {
  return plan.workloads.flatMap(({ selector }) =>
    selector.kind === 'cgroup' ? [selector.path] : [],
  )
}

/** Every folder above the cgroup of a workload; the empty path is the root. */
function foldersAbove(plan: CapturePlan): Set<string> {
  const folders = new Set<string>()
  for (const path of cgroupPaths(plan)) {
    const segments = path.split('/')
    for (let depth = 0; depth < segments.length; depth += 1)
      folders.add(segments.slice(0, depth).join('/'))
  }
  return folders
}

/**
 * The number of a user given by name or number; undefined when no user has that name.
 * @throws MeshError when the lookup itself fails.
 */
async function findUid(user: string, run: RunCommand): Promise<number | undefined> {
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

function childrenOf(folder: string): string[] {
  try {
    return readdirSync(folder, { withFileTypes: true })
      .filter((entry) => entry.isDirectory())
      .map(({ name }) => name)
  } catch {
    return []
  }
}

function cgroupId(root: string, path: string): string | undefined {
  try {
    // The kernel's number of a cgroup, which is never reused.
    return String(statSync(join(root, path), { bigint: true }).ino)
  } catch {
    return undefined
  }
}
