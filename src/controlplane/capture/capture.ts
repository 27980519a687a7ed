/**
 * Capture on this host as one thing that can be applied, kept, shown and removed.
 *
 * apply() is all or nothing over both families: it looks at what is there, applies IPv4 then IPv6, reads the
 * rules back, and on any failure puts back what was there before. With `maintain` set it keeps them so:
 * a unit that restarts gets a new cgroup and needs its rule again, and other programs flush tables. Foreign
 * rules are never written, only read. One operation runs at a time.
 */
import { existsSync, type FSWatcher, watch } from 'node:fs'
import { sleep } from '../../lib/abort.ts'
import { describeError, errorCode, MeshError } from '../../lib/errors.ts'
import { type Log, silentLog } from '../../lib/log.ts'
import type { SocketAddress } from '../../model/address.ts'
import { Problem } from '../../model/problem.ts'
import { createCommandRunner, type RunCommand } from './command.ts'
import type { SetMembers } from './ipset.ts'
import { nextSetName, renderCreate, renderReplace, renderUpdate, setMembers } from './ipset.ts'
import {
  allTools,
  applyRules,
  defaultTools,
  type IptablesTools,
  readRules,
  toolError,
} from './iptables.ts'
import { clearRoutes, ensureRoute } from './routes.ts'
import {
  type CapturePlan,
  captureRules,
  type Family,
  families,
  instanceSets,
  type TableRules,
} from './rules.ts'
import {
  firstDifference,
  isEmpty,
  ownRules,
  renderClear,
  renderRestore,
  type SavedRules,
} from './saved-rules.ts'
import {
  cgroupParents,
  findCgroupRoot,
  type ResolvedPlan,
  readCgroupIds,
  resolvePlan,
} from './workloads.ts'

/** What a capture is built from. */
export interface CaptureOptions {
  readonly log?: Log
  /** Runs the kernel's tools; replaced where rules belong into another network namespace. */
  readonly run?: RunCommand
  /** Keep the rules in place after apply(): look at them this often. Left out: apply once and be done. */
  readonly maintain?: { readonly verifyEveryMs: number; readonly cgroupEveryMs: number }
}

/** One rule of ours as the kernel has it. */
export interface ShownRule {
  readonly family: Family
  readonly table: string
  readonly chain: string
  readonly rule: string
  readonly packets: number
  readonly bytes: number
}

/** What is in the kernel now. */
export interface CaptureState {
  /** Whether the kernel has any rule of ours. */
  readonly present: boolean
  /** Whether the rules are those of the last plan; undefined when this process knows no plan. */
  readonly inSync: boolean | undefined
  /** The first thing that is not as planned; undefined when all is, or no plan is known. */
  readonly difference: string | undefined
  readonly rules: readonly ShownRule[]
  /** Addresses in each set; undefined when there is no such set. */
  readonly instances: Record<Family, number | undefined>
  /** How often the rules were found changed by others, and applied again, since apply(). */
  readonly repairs: number
  readonly problems: readonly Problem[]
}

/** What clear() did. */
export interface ClearReport {
  /** Whether anything of ours was there. */
  readonly removed: boolean
  /** What could not be looked at, and why that is no failure. */
  readonly notes: readonly string[]
}

/** Capture of this host. Disposing it stops the upkeep and leaves the rules as they are. */
export interface Capture extends AsyncDisposable {
  /**
   * Makes the kernel capture what the plan says. A workload that does not exist (yet) is left out and
   * named in problems(). @throws MeshError HM_CAPTURE_*; then the rules are those from before.
   */
  apply(plan: CapturePlan): Promise<void>
  /** The addresses of instances that are to be captured from now on, all of them. */
  updateInstances(addresses: Iterable<SocketAddress>): Promise<void>
  /**
   * Captures no new connection, and stops the upkeep. The rules themselves stay until {@link clear}: with the
   * last REDIRECT rule the kernel would stop translating the connections that are open.
   */
  suspend(): Promise<void>
  /** Removes rules, chains, sets and routes of ours, and nothing else; also those of a dead daemon. */
  clear(): Promise<ClearReport>
  /** What is in the kernel, compared with the plan given or else the one applied by this process. */
  show(plan?: CapturePlan): Promise<CaptureState>
  /** What does not work now; empty when all is well. */
  problems(): readonly Problem[]
  /** The plan as it was last applied: users by number, without what does not exist; undefined before. */
  plan(): CapturePlan | undefined
}

/** Other programs may change rules between our look and our change: look again this often. */
const MAX_ATTEMPTS = 4

/** A set stays in use for a moment after its last rule went. */
const DESTROY_DEADLINE_MS = 3_000
const DESTROY_RETRY_MS = 20

/** Upkeep never runs more often than this, however many cgroups come and go. */
const MIN_UPKEEP_PAUSE_MS = 20

/** Failures that trying again cannot mend. */
const FINAL_CODES: ReadonlySet<string> = new Set([
  'HM_CAPTURE_TOOL_MISSING',
  'HM_CAPTURE_PERMISSION_DENIED',
  'HM_CAPTURE_KERNEL_UNSUPPORTED',
  'HM_CAPTURE_TIMEOUT',
])

/** Capture by the iptables and ipset of this host. */
export function createCapture(options: CaptureOptions = {}): Capture {
  return new KernelCapture(options)
}

class KernelCapture implements Capture {
  readonly #run: RunCommand
  readonly #log: Log
  readonly #maintain: CaptureOptions['maintain']
  #queue: Promise<unknown> = Promise.resolve()
  #plan: CapturePlan | undefined
  #resolved: ResolvedPlan | undefined
  #applied = false
  #wanted: SetMembersByFamily | undefined
  #synced: Partial<Record<Family, SetMembers>> = {}
  #routeProblems: readonly Problem[] = []
  #upkeepProblem: Problem | undefined
  #repairs = 0
  #upkeep: Upkeep | undefined

  constructor(options: CaptureOptions) {
    this.#run = options.run ?? createCommandRunner()
    this.#log = (options.log ?? silentLog).child('capture')
    this.#maintain = options.maintain
  }

  apply(plan: CapturePlan): Promise<void> {
    return this.#exclusive(async () => {
      const cgroupRoot = await findCgroupRoot()
      await this.#applyPlan(plan, cgroupRoot, 'all')
      this.#plan = plan
      this.#applied = true
      this.#upkeepProblem = undefined
      if (this.#maintain !== undefined) this.#startUpkeep(this.#maintain, cgroupRoot)
    })
  }

  updateInstances(addresses: Iterable<SocketAddress>): Promise<void> {
    const wanted = setMembers(addresses)
    this.#wanted = wanted
    return this.#exclusive(async () => {
      if (this.#applied) await this.#syncSets()
    })
  }

  suspend(): Promise<void> {
    this.#stopUpkeep()
    return this.#exclusive(async () => {
      for (const family of activeFamilies()) {
        const present = ownRules(await readRules(this.#run, defaultTools[family]))
        const unreachable = present.map((table) => ({ ...table, jumps: [] }))
        if (!isEmpty(present))
          await applyRules(this.#run, defaultTools[family], renderRestore(unreachable, present))
      }
    })
  }

  clear(): Promise<ClearReport> {
    this.#stopUpkeep()
    return this.#exclusive(async () => {
      this.#plan = undefined
      this.#resolved = undefined
      this.#applied = false
      this.#synced = {}
      this.#routeProblems = []
      this.#upkeepProblem = undefined
      const notes: string[] = []
      let removed = false
      for (const family of activeFamilies())
        if (await this.#clearFamily(family, notes)) removed = true
      if (await this.#destroySets(notes)) removed = true
      await ignoreMissingTool(notes, async () => {
        for (const family of families) await clearRoutes(this.#run, family)
      })
      return { removed, notes }
    })
  }

  show(plan?: CapturePlan): Promise<CaptureState> {
    return this.#exclusive(async () => {
      const resolved =
        plan === undefined
          ? this.#resolved
          : await resolvePlan(plan, this.#run, await findCgroupRoot())
      const rules: ShownRule[] = []
      for (const family of activeFamilies())
        rules.push(...shownRules(family, await readRules(this.#run, defaultTools[family])))
      const difference = await this.#drift(resolved)
      return {
        present: rules.length > 0,
        inSync: resolved === undefined ? undefined : difference === undefined,
        difference,
        rules,
        instances: { v4: await this.#countSet('v4'), v6: await this.#countSet('v6') },
        repairs: this.#repairs,
        problems: plan === undefined ? this.problems() : (resolved?.problems ?? []),
      }
    })
  }

  plan(): CapturePlan | undefined {
    return this.#resolved?.plan
  }

  problems(): readonly Problem[] {
    const upkeep = this.#upkeepProblem === undefined ? [] : [this.#upkeepProblem]
    return [...(this.#resolved?.problems ?? []), ...this.#routeProblems, ...upkeep]
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stopUpkeep()
    await this.#queue
  }

  /** Runs operations one after another; a failed one does not stop the next. */
  #exclusive<T>(operation: () => Promise<T>): Promise<T> {
    const result = this.#queue.then(operation)
    this.#queue = result.catch(() => undefined)
    return result
  }

  /** Applies what of the plan exists now. A cgroup may vanish between look and change: then once more. */
  async #applyPlan(plan: CapturePlan, root: string | undefined, part: Part): Promise<void> {
    for (let attempt = 1; ; attempt += 1) {
      const resolved = await resolvePlan(plan, this.#run, root)
      try {
        await this.#applyResolved(resolved, part)
        this.#resolved = resolved
        return
      } catch (error) {
        const ids = await readCgroupIds(resolved.plan, root)
        if (attempt === MAX_ATTEMPTS || sameIds(ids, resolved.cgroupIds)) throw error
      }
    }
  }

  async #applyResolved(resolved: ResolvedPlan, part: Part): Promise<void> {
    const active = activeFamilies()
    const wanted = { v4: captureRules(resolved.plan, 'v4'), v6: captureRules(resolved.plan, 'v6') }
    const before = new Map<Family, readonly TableRules[]>()
    for (const family of active)
      before.set(family, ownRules(await readRules(this.#run, defaultTools[family])))
    // The text of a rule does not tell which cgroup it holds on to, so a new one always means a new rule.
    const isRenewed = !sameIds(resolved.cgroupIds, this.#resolved?.cgroupIds ?? new Map())
    try {
      if (part === 'all') await this.#syncSets()
      for (const family of active) {
        const present = before.get(family) ?? []
        if (isRenewed || firstDifference(wanted[family], present) !== undefined)
          await this.#converge(family, wanted[family], present)
      }
    } catch (error) {
      await this.#rollBack(before)
      throw error
    }
    if (part === 'all') await this.#ensureRoutes(resolved.plan)
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
      this.#synced = {}
      await this.#destroySets([]).catch(() => undefined)
    }
  }

  /** Makes the sets exist and, once the instances are known, hold exactly these. */
  async #syncSets(): Promise<void> {
    for (const family of activeFamilies()) {
      const wanted = this.#wanted?.[family]
      const synced = this.#synced[family]
      if (wanted === undefined) {
        await this.#restoreSets(renderCreate(family))
        continue
      }
      const isIntact = synced !== undefined && (await this.#countSet(family)) === synced.size
      const update = isIntact ? renderUpdate(family, synced, wanted) : undefined
      if (update === '') continue
      delete this.#synced[family]
      await this.#restoreSets(update ?? renderReplace(family, wanted))
      this.#synced[family] = wanted
    }
  }

  async #restoreSets(text: string): Promise<void> {
    const result = await this.#run('ipset', ['restore', '-exist'], text)
    if (result.status !== 0) throw toolError('ipset', 'fill the sets', result, text)
  }

  async #countSet(family: Family): Promise<number | undefined> {
    try {
      const result = await this.#run('ipset', ['list', '-terse', instanceSets[family]])
      const count = /^Number of entries: (\d+)$/m.exec(result.stdout)?.[1]
      return result.status === 0 && count !== undefined ? Number(count) : undefined
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
      const own = families.flatMap((family) => [nextSetName(family), instanceSets[family]])
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

  #startUpkeep(every: NonNullable<CaptureOptions['maintain']>, root: string | undefined): void {
    this.#stopUpkeep()
    const plan = this.#plan
    if (plan === undefined) return
    const upkeep = startUpkeep({
      folders: cgroupParents(plan, root),
      everyMs: every.cgroupEveryMs,
      pass: (sinceVerifyMs) =>
        this.#exclusive(async () => {
          if (this.#upkeep !== upkeep) return false
          return await this.#keep(plan, root, sinceVerifyMs >= every.verifyEveryMs)
        }),
    })
    this.#upkeep = upkeep
  }

  #stopUpkeep(): void {
    this.#upkeep?.stop()
    this.#upkeep = undefined
  }

  /** The first thing that is not as planned; undefined when all is, or there is no plan. */
  async #drift(resolved: ResolvedPlan | undefined): Promise<string | undefined> {
    if (resolved === undefined) return undefined
    for (const family of activeFamilies()) {
      const present = ownRules(await readRules(this.#run, defaultTools[family]))
      const difference = firstDifference(captureRules(resolved.plan, family), present)
      if (difference !== undefined) return `IP${family}: ${difference}`
    }
    return undefined
  }

  /**
   * One look at the cgroups, and at everything when `isDue`. Returns whether it looked at everything. A
   * cgroup that went away needs no haste: its rule matches nobody until the next full look drops it.
   */
  async #keep(plan: CapturePlan, root: string | undefined, isDue: boolean): Promise<boolean> {
    try {
      const ids = await readCgroupIds(plan, root)
      const applied = this.#resolved?.cgroupIds
      const isNew = [...ids].some(([path, id]) => applied?.get(path) !== id)
      if (!isDue && !isNew) return false
      const drift = isDue ? await this.#drift(this.#resolved) : undefined
      await this.#applyPlan(plan, root, isDue ? 'all' : 'rules')
      if (drift !== undefined) {
        this.#repairs += 1
        this.#log.warn('Capture rules were changed by another program; applied again', { drift })
      }
      this.#upkeepProblem = undefined
    } catch (error) {
      const message = `Capture rules could not be kept in place: ${describeError(error)}`
      this.#upkeepProblem = Problem.of(error, 'HM_CAPTURE_FAILED', { message })
      this.#log.error(message, { code: errorCode(error) })
    }
    return isDue
  }
}

/** What to bring up to date: the rules alone, or sets and routes too. */
type Part = 'all' | 'rules'

type SetMembersByFamily = Record<Family, SetMembers>

interface Upkeep {
  stop(): void
}

/** Calls `pass` every `everyMs` and at once when something in a folder comes or goes. */
function startUpkeep(options: {
  readonly folders: readonly string[]
  readonly everyMs: number
  readonly pass: (sinceVerifyMs: number) => Promise<boolean>
}): Upkeep {
  const stopped = new AbortController()
  let wake = new AbortController()
  const watchers: FSWatcher[] = []
  const loop = async (): Promise<void> => {
    let verifiedAt = performance.now()
    while (!stopped.signal.aborted) {
      watchFolders(options.folders, watchers, () => wake.abort())
      await sleep(options.everyMs, AbortSignal.any([stopped.signal, wake.signal]))
      if (stopped.signal.aborted) break
      wake = new AbortController()
      if (await options.pass(performance.now() - verifiedAt)) verifiedAt = performance.now()
      await sleep(Math.min(MIN_UPKEEP_PAUSE_MS, options.everyMs), stopped.signal)
    }
  }
  void loop()
  return {
    stop: () => {
      stopped.abort()
      for (const watcher of watchers) watcher.close()
    },
  }
}

/** Watches folders that are not watched yet; one that does not exist yet is found at a later pass. */
function watchFolders(
  folders: readonly string[],
  watchers: FSWatcher[],
  onEvent: () => void,
): void {
  if (watchers.length >= folders.length) return
  for (const watcher of watchers.splice(0)) watcher.close()
  for (const folder of folders) {
    try {
      const watcher = watch(folder, { persistent: false }, onEvent)
      watcher.on('error', () => watcher.close())
      watchers.push(watcher)
    } catch {
      // Not there, or no watch left on this host: the regular look finds the change.
    }
  }
}

/** IPv6 is left out on a host whose kernel has it switched off: nobody can open such a socket. */
function activeFamilies(): readonly Family[] {
  return existsSync('/proc/net/if_inet6') ? families : ['v4']
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

function sameIds(a: ReadonlyMap<string, string>, b: ReadonlyMap<string, string>): boolean {
  return a.size === b.size && [...a].every(([path, id]) => b.get(path) === id)
}

async function ignoreMissingTool(
  notes: string[],
  operation: () => Promise<unknown>,
): Promise<void> {
  try {
    await operation()
  } catch (error) {
    if (errorCode(error) !== 'HM_CAPTURE_TOOL_MISSING') throw error
    notes.push(`${describeError(error)}; nothing of that kind can be in place`)
  }
}
