/**
 * Rules and sets by which native tables find the cgroup of a caller. Pure.
 */
import type { NftElements } from './nft-elements.ts'
import { CAPTURE_TABLE, GUARD_TABLE, type NftSettings, SYN } from './nft-words.ts'
import type { CapturePlan } from './rules.ts'

/** How the cgroup of a caller is found: from the root down, with one map for each depth. */
export interface CgroupTree {
  /** Depth of the deepest map; 0 when no workload is a cgroup. */
  readonly levels: number
  readonly sets: readonly string[]
  /** One chain for each depth and each workload that is the nearest one above it. */
  chains(unclassified: string): readonly { readonly name: string; readonly lines: string[] }[]
  /** Elements of the maps, by depth from 1 on; `divert` returns the verdict for a workload. */
  elements(divert: (port: number) => string): readonly (readonly string[])[]
}

/** A set that is always empty: a caller that is not in it has a cgroup of that depth. */
const NO_CGROUPS = 'no_cgroups'

/**
 * Each cgroup is in exactly one map, so that nft looks it up once: it is a workload, has workloads below, or neither.
 * A cgroup in no map is new, and may be a workload that restarts.
 */
export function cgroupTree(plan: CapturePlan, { cgroups, cgroupPrefix }: NftSettings): CgroupTree {
  const ports = new Map(
    plan.workloads.flatMap(({ selector, capturePort }) =>
      selector.kind === 'cgroup' ? [[selector.path, capturePort]] : [],
    ),
  )
  const nearest = (path: string): number | undefined => {
    for (let at = path; at !== ''; at = at.slice(0, Math.max(0, at.lastIndexOf('/')))) {
      const port = ports.get(at)
      if (port !== undefined) return port
    }
    return undefined
  }
  const chainBelow = (path: string): string => {
    const port = nearest(path)
    return `below_${levelOf(path) + 1}${port === undefined ? '' : `_${port}`}`
  }
  const above = cgroups.flatMap(({ path, isAbove }) => (isAbove ? [path] : []))
  const levels = cgroups.length === 0 ? 0 : 1 + Math.max(0, ...above.map(levelOf))
  const chainsBelow = new Map(
    levels === 0
      ? []
      : ['', ...above].map((path) => [
          path === '' ? 'below_1' : chainBelow(path),
          { level: path === '' ? 1 : levelOf(path) + 1, port: nearest(path) },
        ]),
  )
  const depths = Array.from({ length: levels }, (_, index) => index + 1)
  return {
    levels,
    sets:
      levels === 0
        ? []
        : [
            `  set ${NO_CGROUPS} {\n    type cgroupsv2\n  }\n`,
            ...depths.map(
              (level) => `  map cgroups_${level} {\n    type cgroupsv2 : verdict\n  }\n`,
            ),
          ],
    chains: (unclassified) =>
      [...chainsBelow].map(([name, { level, port }]) => ({
        name,
        lines: [
          `socket cgroupv2 level ${level} vmap @cgroups_${level}`,
          // A process whose cgroup is gone may still send; only a first segment is treated as a new process.
          `socket cgroupv2 level ${level} != @${NO_CGROUPS} ${SYN} goto ${unclassified}`,
          `goto ${port === undefined ? 'others' : `caller_${port}`}`,
        ],
      })),
    elements: (divert) => {
      const verdicts = new Map([...ports].map(([path, port]) => [path, divert(port)]))
      for (const { path, isAbove } of cgroups) {
        const port = nearest(path)
        const verdict = port === undefined ? 'goto others' : divert(port)
        verdicts.set(path, isAbove ? `goto ${chainBelow(path)}` : verdict)
      }
      return depths.map((level) =>
        [...verdicts].flatMap(([path, verdict]) =>
          levelOf(path) === level ? [`"${cgroupPrefix}${path}" : ${verdict}`] : [],
        ),
      )
    },
  }
}

/** Elements of the maps of cgroups: renewed when a unit has started. */
export function cgroupElements(plan: CapturePlan, settings: NftSettings): readonly NftElements[] {
  const tree = cgroupTree(plan, settings)
  return [CAPTURE_TABLE, GUARD_TABLE].flatMap((table) =>
    tree.elements(callerVerdict).map((elements, index) => ({
      table,
      kind: 'map' as const,
      name: `cgroups_${index + 1}`,
      elements,
    })),
  )
}

function callerVerdict(port: number): string {
  return `goto caller_${port}`
}

function levelOf(path: string): number {
  return path.split('/').length
}
