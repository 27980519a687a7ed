/**
 * Capture by iptables and ipset: REDIRECT in nat and a guard in filter, for hosts that cannot use native tables.
 *
 * apply() is atomic over both families: it reads the present rules, applies IPv4 and then IPv6, reads the
 * rules back, and on any failure restores the previous rules. Foreign rules are read, never changed; our jumps
 * are added to foreign chains. Addresses are held in sets (kernel-sets.ts).
 */
import { describeError, errorCode, MeshError } from '../../lib/errors.ts'
import type { Log } from '../../lib/log.ts'
import { cidrContains, parseCidr } from '../../model/cidr.ts'
import { Problem } from '../../model/problem.ts'
import type {
  BackendSettings,
  BackendState,
  CaptureBackend,
  CaptureCounts,
  MeshAddresses,
  ShownRule,
} from './backend.ts'
import { ignoreMissingTool, type RunCommand } from './command.ts'
import { EVERY_ADDRESS, ownSets, renderCreate, renderReplace } from './ipset.ts'
import { allTools, applyRules, defaultTools, type IptablesTools, readRules } from './iptables.ts'
import { type IptablesSettings, iptablesRules, type TableRules } from './iptables-rules.ts'
import { REFUSE_CHAIN, UNITS_CHAIN } from './iptables-words.ts'
import { activeFamilies, KernelSets } from './kernel-sets.ts'
import { clearNativeFilters, passNativeFilters, redirectedWords } from './native-filters.ts'
import { countRefusals } from './refusals.ts'
import { ensureRangeRoute, loopbackFamilies, rangeRouteDrift, rangeRoutes } from './routing.ts'
import { type CapturePlan, type Family, families, virtualNetwork } from './rules.ts'
import {
  firstDifference,
  isEmpty,
  ownRules,
  renderClear,
  renderRestore,
  type SavedRules,
} from './saved-rules.ts'
import { destroySockets, listSockets, redirectedPairs } from './sockets.ts'
import { type ResolvedPlan, sameIds } from './workloads.ts'

/** Other programs may change rules between reading and changing them: at most this many attempts. */
const MAX_ATTEMPTS = 4

/** Failures that another attempt cannot repair. */
const FINAL_CODES: ReadonlySet<string> = new Set([
  'HM_CAPTURE_TOOL_MISSING',
  'HM_CAPTURE_PERMISSION_DENIED',
  'HM_CAPTURE_KERNEL_UNSUPPORTED',
  'HM_CAPTURE_TIMEOUT',
])

/** The iptables backend. */
export class IptablesBackend implements CaptureBackend {
  readonly kind = 'iptables'
  readonly #run: RunCommand
  readonly #log: Log
  readonly #settings: BackendSettings
  readonly #sets: KernelSets
  #resolved: ResolvedPlan | undefined
  #routeProblems: readonly Problem[] = []
  /** Native filters of other programs that drop diverted traffic. */
  #blocking: readonly Problem[] = []
  /** Whether a maintenance loop renews the rules when a unit starts. */
  #isKept = false

  constructor(run: RunCommand, log: Log, settings: BackendSettings) {
    this.#run = run
    this.#log = log
    this.#settings = settings
    this.#sets = new KernelSets(run, settings.spareSeconds)
  }

  async apply(resolved: ResolvedPlan): Promise<void> {
    await this.#applyRules(resolved)
    await this.#ensureRoutes(resolved.plan)
    await this.#passFilters()
  }

  async renew(resolved: ResolvedPlan): Promise<void> {
    if (sameIds(resolved.unitIds, this.#resolved?.unitIds ?? new Map())) {
      await this.#renewUnits(resolved)
      this.#resolved = resolved
    } else await this.#applyRules(resolved)
  }

  async setMaintained(isKept: boolean): Promise<void> {
    if (this.#isKept === isKept) return
    this.#isKept = isKept
    if (this.#resolved !== undefined) await this.#renewUnits(this.#resolved)
  }

  async setAddresses(addresses: MeshAddresses): Promise<void> {
    this.#sets.want(addresses)
    if (this.#resolved === undefined) return
    await this.#sets.divert()
    await this.#sets.guard(this.#resolved.plan)
  }

  async drift(resolved: ResolvedPlan): Promise<string | undefined> {
    const { plan } = resolved
    for (const family of activeFamilies()) {
      const present = ownRules(await readRules(this.#run, defaultTools[family]))
      const difference =
        this.#ruleDrift(resolved, family, present) ??
        (loopbackFamilies().includes(family)
          ? await rangeRouteDrift(this.#run, family, virtualNetwork(plan, family))
          : undefined)
      if (difference !== undefined) return `IP${family}: ${difference}`
    }
    // A process that only reports changes nothing.
    if (this.#resolved !== undefined) await this.#passFilters()
    return this.#sets.drift()
  }

  async show(): Promise<BackendState> {
    const rules = await this.#shownRules()
    const instances = {
      v4: await this.#sets.instances('v4'),
      v6: await this.#sets.instances('v6'),
    }
    const spared = await this.#sets.spared()
    return { rules, instances, counts: await this.#countsOf(rules), spared }
  }

  async counts(): Promise<CaptureCounts> {
    return this.#countsOf(await this.#shownRules())
  }

  async clear(notes: string[]): Promise<boolean> {
    this.#resolved = undefined
    this.#routeProblems = []
    this.#blocking = []
    let removed = await clearNativeFilters(this.#run, redirectedWords)
    for (const family of activeFamilies())
      if (await this.#clearFamily(family, notes)) removed = true
    if (await this.#sets.destroy(notes)) removed = true
    return removed
  }

  problems(): readonly Problem[] {
    return [...this.#routeProblems, ...this.#blocking]
  }

  async #passFilters(): Promise<void> {
    this.#blocking = (await passNativeFilters(this.#run, redirectedWords)).problems
  }

  #rulesOf(resolved: ResolvedPlan, family: Family, waits = this.#isKept): readonly TableRules[] {
    return iptablesRules(resolved.plan, family, { ...this.#iptablesSettings(resolved), waits })
  }

  #ruleDrift(
    resolved: ResolvedPlan,
    family: Family,
    present: readonly TableRules[],
  ): string | undefined {
    const difference = firstDifference(this.#rulesOf(resolved, family), present)
    // The rules may be those of another process, with or without a maintenance loop.
    if (difference === undefined || this.#resolved !== undefined) return difference
    const others = this.#rulesOf(resolved, family, !this.#isKept)
    return firstDifference(others, present) === undefined ? undefined : difference
  }

  /** Settings with the cgroups for which this process made the rules, or else those of `resolved`. */
  #iptablesSettings(resolved: ResolvedPlan): IptablesSettings {
    const { cgroups } = this.#resolved ?? resolved
    return { ...this.#settings, cgroups, waits: this.#isKept, refusesUnseen: false }
  }

  async #applyRules(resolved: ResolvedPlan): Promise<void> {
    const active = activeFamilies()
    const former = this.#resolved
    this.#resolved = resolved
    const before = new Map<Family, readonly TableRules[]>()
    try {
      const wanted = {
        v4: this.#rulesOf(resolved, 'v4'),
        v6: this.#rulesOf(resolved, 'v6'),
      }
      // The text of a rule does not identify its cgroup, so a new cgroup always needs a new rule.
      const hasUnits = wanted.v4.some(({ chains }) => chains.has(UNITS_CHAIN))
      const ids = hasUnits ? 'cgroupIds' : 'unitIds'
      const isRenewed = !sameIds(resolved[ids], former?.[ids] ?? new Map())
      for (const family of active)
        before.set(family, ownRules(await readRules(this.#run, defaultTools[family])))
      await this.#sets.divert()
      for (const family of active) {
        const present = before.get(family) ?? []
        if (isRenewed || firstDifference(wanted[family], present) !== undefined)
          await this.#converge(family, wanted[family], present)
      }
      await this.#sets.guard(resolved.plan)
    } catch (error) {
      this.#resolved = former
      await this.#rollBack(before)
      throw error
    }
  }

  /** Renews the one chain that separates newly started processes from known ones. */
  async #renewUnits(resolved: ResolvedPlan): Promise<void> {
    const settings = { ...this.#iptablesSettings(resolved), cgroups: resolved.cgroups }
    for (const family of activeFamilies()) {
      const [filter] = iptablesRules(resolved.plan, family, settings)
      const lines = filter?.chains.get(UNITS_CHAIN)
      if (lines === undefined) continue
      const text = [`*filter`, `:${UNITS_CHAIN} - [0:0]`, ...lines, 'COMMIT', ''].join('\n')
      await applyRules(this.#run, defaultTools[family], text)
    }
  }

  /** Changes the rules of a family until they read back as wanted. */
  async #converge(
    family: Family,
    wanted: readonly TableRules[],
    before: readonly TableRules[],
  ): Promise<void> {
    const tools = defaultTools[family]
    let present = before
    let failure: unknown
    for (let attempt = 1; attempt <= MAX_ATTEMPTS; attempt += 1) {
      try {
        await applyRules(this.#run, tools, renderRestore(wanted, present))
        present = ownRules(await readRules(this.#run, tools))
        const difference = firstDifference(wanted, present)
        if (difference === undefined) return
        failure = new MeshError(
          'HM_CAPTURE_VERIFY_FAILED',
          `The capture rules did not read back as applied: ${difference}`,
          {
            hint: 'See whether another program rewrites the firewall, or two iptables variants are mixed',
          },
        )
      } catch (error) {
        if (FINAL_CODES.has(errorCode(error))) throw error
        failure = error
        present = ownRules(await readRules(this.#run, tools))
      }
    }
    throw failure
  }

  async #ensureRoutes(plan: CapturePlan): Promise<void> {
    const problems: Problem[] = []
    for (const family of loopbackFamilies()) {
      const range = virtualNetwork(plan, family)
      const problem = await ensureRangeRoute(this.#run, family, range)
      if (problem !== undefined)
        problems.push(new Problem('HM_CAPTURE_ROUTE_MISSING', problem, { subject: family }))
    }
    this.#routeProblems = problems
  }

  /** Best effort: the caller must receive the failure that caused the rollback. */
  async #rollBack(before: ReadonlyMap<Family, readonly TableRules[]>): Promise<void> {
    for (const [family, rules] of before) {
      try {
        const present = ownRules(await readRules(this.#run, defaultTools[family]))
        if (firstDifference(rules, present) !== undefined)
          await applyRules(this.#run, defaultTools[family], renderRestore(rules, present))
      } catch (error) {
        this.#log.error('Cannot put back the rules from before', {
          family,
          error: describeError(error),
        })
      }
    }
    if ([...before.values()].every(isEmpty)) await this.#sets.destroy([]).catch(() => undefined)
  }

  async #shownRules(): Promise<ShownRule[]> {
    const rules: ShownRule[] = []
    for (const family of activeFamilies())
      rules.push(...shownRules(family, await readRules(this.#run, defaultTools[family])))
    return rules
  }

  async #countsOf(rules: readonly ShownRule[]): Promise<CaptureCounts> {
    return { ...countRefusals(rules), full: undefined, spared: await this.#sets.sparedCount() }
  }

  async #clearFamily(family: Family, notes: string[]): Promise<boolean> {
    let removed = false
    const [used, ...others] = allTools[family]
    if (used !== undefined)
      await ignoreMissingTool(notes, async () => {
        removed = await this.#clearWith(used, notes)
      })
    for (const tools of others) {
      try {
        if (await this.#clearWith(tools, notes)) removed = true
      } catch (error) {
        // A variant that is not installed, or that only root may read, is not the one in use.
        const code = errorCode(error)
        if (code !== 'HM_CAPTURE_TOOL_MISSING' && code !== 'HM_CAPTURE_PERMISSION_DENIED')
          throw error
      }
    }
    return removed
  }

  async #clearWith(tools: IptablesTools, notes: string[]): Promise<boolean> {
    let present = ownRules(await readRules(this.#run, tools))
    if (isEmpty(present)) return false
    await this.#endCaptured(tools, present, notes)
    present = ownRules(await readRules(this.#run, tools))
    let failure: unknown
    for (let attempt = 1; attempt <= MAX_ATTEMPTS; attempt += 1) {
      try {
        await applyRules(this.#run, tools, renderClear(present))
      } catch (error) {
        if (FINAL_CODES.has(errorCode(error))) throw error
        failure = error
      }
      present = ownRules(await readRules(this.#run, tools))
      if (isEmpty(present)) return true
    }
    throw new MeshError('HM_CAPTURE_CLEAR_FAILED', 'Cannot remove all capture rules', {
      cause: failure,
      hint: `See what still refers to them: ${tools.save} | grep HOSTMESH_`,
    })
  }

  /** Captured connections could continue in plaintext: resets them, and destroys their sockets. */
  async #endCaptured(
    tools: IptablesTools,
    present: readonly TableRules[],
    notes: string[],
  ): Promise<void> {
    const nat = present.find(({ table }) => table === 'nat')
    const filter = present.find(({ table }) => table === 'filter')
    const ports = new Set(
      [...(nat?.chains.values() ?? [])]
        .flat()
        .flatMap((line) => / --to-ports (\d+)$/.exec(line)?.[1] ?? [])
        .map(Number),
    )
    if (ports.size === 0) return
    if (filter?.chains.has(REFUSE_CHAIN) === true) {
      const lines = ['OUTPUT', 'INPUT'].flatMap((chain) =>
        [...ports].map(
          (port) =>
            `-I ${chain} 1 -p tcp -m tcp --dport ${port} -m conntrack --ctstate DNAT -m comment --comment hostmesh -j ${REFUSE_CHAIN}`,
        ),
      )
      await applyRules(this.#run, tools, ['*filter', ...lines, 'COMMIT', ''].join('\n'))
    }
    const ranges = (filter?.jumps ?? []).flatMap(({ line }) => {
      const cidr = parseCidr(/ -d (\S+) /.exec(line)?.[1] ?? '')
      return cidr === undefined ? [] : [cidr]
    })
    const guarded = await this.#sets.guardedAddresses()
    const isMesh = (peer: string): boolean =>
      guarded.has(peer) || ranges.some((range) => cidrContains(range, peer.split(' . ')[0] ?? ''))
    await ignoreMissingTool(notes, async () => {
      const pairs = redirectedPairs(await listSockets(this.#run), ports, isMesh)
      const problem = pairs.length === 0 ? undefined : await destroySockets(this.#run, pairs)
      if (problem !== undefined) notes.push(problem)
    })
  }
}

/** The shell commands that would apply a plan on a host that has no rules of ours. */
export function previewIptables(
  { plan, cgroups }: ResolvedPlan,
  { spareSeconds, sparesWhileUsed }: BackendSettings,
): string {
  const sets = ownSets
    .map((set) =>
      set.kind === 'intact' ? renderReplace(set, EVERY_ADDRESS[set.family]) : renderCreate(set),
    )
    .join('')
  const settings = { spareSeconds, sparesWhileUsed, cgroups, waits: false, refusesUnseen: false }
  const [v4 = '', v6 = ''] = families.map((family) =>
    renderRestore(iptablesRules(plan, family, settings), []),
  )
  const routes = families.flatMap((family) =>
    rangeRoutes(virtualNetwork(plan, family)).map(
      (words) => `# ip ${family === 'v4' ? '-4' : '-6'} ${words.join(' ')}\n`,
    ),
  )
  return `${routes.join('')}# ipset restore -exist\n${sets}\n# iptables-restore --noflush\n${v4}\n# ip6tables-restore --noflush\n${v6}`
}

function shownRules(family: Family, saved: SavedRules): ShownRule[] {
  const own = ownRules(saved)
  return own.flatMap(({ table, chains, jumps }) => {
    const lines = new Set(jumps.map((jump) => jump.line))
    const rules = saved.get(table)?.rules ?? []
    return rules
      .filter((rule) => chains.has(rule.chain) || lines.has(rule.line))
      .map(({ chain, line, packets, bytes }) => ({
        family,
        table,
        chain,
        rule: line.slice(`-A ${chain} `.length),
        packets,
        bytes,
      }))
  })
}
