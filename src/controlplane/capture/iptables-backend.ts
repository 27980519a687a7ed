/**
 * Capture by iptables and ipset: REDIRECT in nat, for hosts on which native tables cannot be used.
 *
 * apply() is all or nothing over both families: it looks at what is there, applies IPv4 then IPv6, reads the
 * rules back, and on any failure puts back what was there before. Foreign rules are never written, only read.
 */
import { existsSync } from 'node:fs'
import { sleep } from '../../lib/abort.ts'
import { describeError, errorCode, MeshError } from '../../lib/errors.ts'
import type { Log } from '../../lib/log.ts'
import { Problem } from '../../model/problem.ts'
import type {
  BackendState,
  CaptureBackend,
  CaptureCounts,
  MeshAddresses,
  ShownRule,
} from './backend.ts'
import { ignoreMissingTool, type RunCommand } from './command.ts'
import {
  nextSetName,
  ownSets,
  renderCreate,
  renderReplace,
  renderUpdate,
  type SetMembers,
  setMembers,
  setName,
} from './ipset.ts'
import {
  allTools,
  applyRules,
  defaultTools,
  type IptablesTools,
  readRules,
  toolError,
} from './iptables.ts'
import { iptablesRules, type TableRules } from './iptables-rules.ts'
import { countRefusals } from './refusals.ts'
import { ensureRoute } from './routes.ts'
import { type CapturePlan, type Family, families } from './rules.ts'
import {
  firstDifference,
  isEmpty,
  ownRules,
  renderClear,
  renderRestore,
  type SavedRules,
} from './saved-rules.ts'
import type { ResolvedPlan } from './workloads.ts'

/** Other programs may change rules between our look and our change: look again this often. */
const MAX_ATTEMPTS = 4

/** A set stays in use for a moment after its last rule went. */
const DESTROY_DEADLINE_MS = 3_000
const DESTROY_RETRY_MS = 20

/** Failures that trying again cannot mend. */
const FINAL_CODES: ReadonlySet<string> = new Set([
  'HM_CAPTURE_TOOL_MISSING',
  'HM_CAPTURE_PERMISSION_DENIED',
  'HM_CAPTURE_KERNEL_UNSUPPORTED',
  'HM_CAPTURE_TIMEOUT',
])

/** The sets that rules look addresses up in. */
type SetKind = 'instances' | 'permitted'
const SET_KINDS: readonly SetKind[] = ['instances', 'permitted']

/** The iptables backend. */
export class IptablesBackend implements CaptureBackend {
  readonly kind = 'iptables'
  readonly #run: RunCommand
  readonly #log: Log
  #wanted: Record<SetKind, Record<Family, SetMembers>> | undefined
  #synced = new Map<string, SetMembers>()
  #resolved: ResolvedPlan | undefined
  #routeProblems: readonly Problem[] = []

  constructor(run: RunCommand, log: Log) {
    this.#run = run
    this.#log = log
  }

  async apply(resolved: ResolvedPlan): Promise<void> {
    await this.#applyRules(resolved, () => this.#syncSets())
    await this.#ensureRoutes(resolved.plan)
  }

  async renew(resolved: ResolvedPlan): Promise<void> {
    if (isSameMap(resolved.unitIds, this.#resolved?.unitIds ?? new Map())) return
    await this.#applyRules(resolved, async () => undefined)
  }

  /** It has no way to tell who has just started from anybody else. */
  async setUpkeep(): Promise<void> {}

  async setAddresses({ instances, permitted }: MeshAddresses): Promise<void> {
    this.#wanted = { instances: setMembers(instances), permitted: setMembers(permitted) }
    if (this.#resolved !== undefined) await this.#syncSets()
  }

  async drift({ plan }: ResolvedPlan): Promise<string | undefined> {
    for (const family of activeFamilies()) {
      const present = ownRules(await readRules(this.#run, defaultTools[family]))
      const difference = firstDifference(iptablesRules(plan, family), present)
      if (difference !== undefined) return `IP${family}: ${difference}`
      for (const kind of SET_KINDS) {
        const name = setName(kind, family)
        const synced = this.#synced.get(name)
        if (synced === undefined || isSameSet(await this.#readSet(name), synced)) continue
        this.#synced.delete(name)
        return `the set ${name} holds other addresses`
      }
    }
    return undefined
  }

  async show(): Promise<BackendState> {
    const rules: ShownRule[] = []
    for (const family of activeFamilies())
      rules.push(...shownRules(family, await readRules(this.#run, defaultTools[family])))
    const instances = {
      v4: (await this.#readSet(setName('instances', 'v4')))?.size,
      v6: (await this.#readSet(setName('instances', 'v6')))?.size,
    }
    const refused = countRefusals(rules)
    const counts = {
      refusedVirtual: refused.virtual,
      refusedInstance: refused.instance,
      permitted: refused.permitted,
      waited: undefined,
      full: undefined,
      guarded: undefined,
      spared: undefined,
    }
    return { rules, instances, counts, spared: [] }
  }

  async counts(): Promise<CaptureCounts> {
    return (await this.show()).counts
  }

  async clear(notes: string[]): Promise<boolean> {
    this.#resolved = undefined
    this.#synced.clear()
    this.#routeProblems = []
    let removed = false
    for (const family of activeFamilies())
      if (await this.#clearFamily(family, notes)) removed = true
    if (await this.#destroySets(notes)) removed = true
    return removed
  }

  problems(): readonly Problem[] {
    return this.#routeProblems
  }

  async #applyRules(resolved: ResolvedPlan, syncSets: () => Promise<void>): Promise<void> {
    const active = activeFamilies()
    const wanted = {
      v4: iptablesRules(resolved.plan, 'v4'),
      v6: iptablesRules(resolved.plan, 'v6'),
    }
    const before = new Map<Family, readonly TableRules[]>()
    for (const family of active)
      before.set(family, ownRules(await readRules(this.#run, defaultTools[family])))
    // The text of a rule does not tell which cgroup it holds on to, so a new one always means a new rule.
    const isRenewed = !isSameMap(resolved.unitIds, this.#resolved?.unitIds ?? new Map())
    try {
      await syncSets()
      for (const family of active) {
        const present = before.get(family) ?? []
        if (isRenewed || firstDifference(wanted[family], present) !== undefined)
          await this.#converge(family, wanted[family], present)
      }
    } catch (error) {
      await this.#rollBack(before)
      throw error
    }
    this.#resolved = resolved
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
    for (const family of activeFamilies()) {
      const range = family === 'v4' ? plan.virtualRange : plan.virtualRange6
      const problem = await ensureRoute(this.#run, family, range).catch(describeError)
      if (problem !== undefined)
        problems.push(new Problem('HM_CAPTURE_ROUTE_MISSING', problem, { subject: family }))
    }
    this.#routeProblems = problems
  }

  /** Best effort: the failure that led here is what the caller must hear about. */
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
    if ([...before.values()].every(isEmpty)) {
      this.#synced.clear()
      await this.#destroySets([]).catch(() => undefined)
    }
  }

  /** Makes the sets exist and, once the instances are known, hold exactly these. */
  async #syncSets(): Promise<void> {
    for (const family of activeFamilies())
      for (const kind of SET_KINDS) {
        const name = setName(kind, family)
        const wanted = this.#wanted?.[kind][family]
        const synced = this.#synced.get(name)
        if (wanted === undefined) {
          await this.#restoreSets(renderCreate(name, family))
          continue
        }
        const isIntact = synced !== undefined && isSameSet(await this.#readSet(name), synced)
        const update = isIntact ? renderUpdate(name, synced, wanted) : undefined
        if (update === '') continue
        this.#synced.delete(name)
        await this.#restoreSets(update ?? renderReplace(name, family, wanted))
        this.#synced.set(name, wanted)
      }
  }

  async #restoreSets(text: string): Promise<void> {
    const result = await this.#run('ipset', ['restore', '-exist'], text)
    if (result.status !== 0) throw toolError('ipset', 'fill the sets', result, text)
  }

  /** Members of a set; undefined when there is none. */
  async #readSet(name: string): Promise<SetMembers | undefined> {
    try {
      const result = await this.#run('ipset', ['save', name])
      if (result.status !== 0) return undefined
      return new Set(
        [...result.stdout.matchAll(/^add \S+ (\S+)/gm)].map(([, member = '']) => member),
      )
    } catch (error) {
      if (errorCode(error) === 'HM_CAPTURE_TOOL_MISSING') return undefined
      throw error
    }
  }

  async #clearFamily(family: Family, notes: string[]): Promise<boolean> {
    let removed = false
    const [used, ...others] = allTools[family]
    if (used !== undefined)
      await ignoreMissingTool(notes, async () => {
        removed = await this.#clearWith(used)
      })
    for (const tools of others) {
      try {
        if (await this.#clearWith(tools)) removed = true
      } catch (error) {
        // A variant that is not installed, or that only root may look at, is not the one in use.
        const code = errorCode(error)
        if (code !== 'HM_CAPTURE_TOOL_MISSING' && code !== 'HM_CAPTURE_PERMISSION_DENIED')
          throw error
      }
    }
    return removed
  }

  async #clearWith(tools: IptablesTools): Promise<boolean> {
    let present = ownRules(await readRules(this.#run, tools))
    if (isEmpty(present)) return false
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

  async #destroySets(notes: string[]): Promise<boolean> {
    let removed = false
    await ignoreMissingTool(notes, async () => {
      const listed = await this.#run('ipset', ['list', '-name'])
      if (listed.status !== 0) throw toolError('ipset', 'list the sets', listed)
      const present = new Set(listed.stdout.split('\n'))
      const own = ownSets.flatMap((name) => [nextSetName(name), name])
      for (const name of own) {
        if (!present.has(name)) continue
        await this.#destroySet(name)
        removed = true
      }
    })
    return removed
  }

  async #destroySet(name: string): Promise<void> {
    const deadline = performance.now() + DESTROY_DEADLINE_MS
    for (;;) {
      const result = await this.#run('ipset', ['destroy', name])
      if (result.status === 0 || /does not exist/.test(result.stderr)) return
      if (!/in use/.test(result.stderr) || performance.now() > deadline)
        throw toolError('ipset', `destroy the set ${name}`, result)
      await sleep(DESTROY_RETRY_MS, new AbortController().signal)
    }
  }
}

/** IPv6 is left out on a host whose kernel has it switched off: nobody can open such a socket. */
function activeFamilies(): readonly Family[] {
  return existsSync('/proc/net/if_inet6') ? families : ['v4']
}

function isSameSet(a: ReadonlySet<string> | undefined, b: ReadonlySet<string>): boolean {
  return a?.size === b.size && [...b].every((member) => a.has(member))
}

function isSameMap(a: ReadonlyMap<string, string>, b: ReadonlyMap<string, string>): boolean {
  return a.size === b.size && [...a].every(([path, id]) => b.get(path) === id)
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
