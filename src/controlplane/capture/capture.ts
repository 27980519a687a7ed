/**
 * Capture on this host, independent of the backend: applies, maintains, shows and removes the rules.
 *
 * With `maintain` set it keeps the rules in place: a unit that restarts gets a new cgroup and needs a new rule, and
 * other programs flush tables. Foreign rules are read, never changed; rules of ours are added to foreign chains. One
 * operation runs at a time.
 */
import { sleep } from '../../lib/abort.ts'
import { describeError, errorCode } from '../../lib/errors.ts'
import { type Log, silentLog } from '../../lib/log.ts'
import { recordOf } from '../../lib/record.ts'
import { type BackendKind, backendKinds } from '../../model/capture-backend.ts'
import { Problem } from '../../model/problem.ts'
import type {
  BackendChoice,
  BackendSettings,
  CaptureBackend,
  CaptureCounts,
  ChosenBackend,
  MeshAddresses,
  ShownRule,
} from './backend.ts'
import { backends, selectBackend } from './backends.ts'
import { createCommandRunner, ignoreMissingTool, type RunCommand } from './command.ts'
import { GuardCopy } from './guard-copy.ts'
import type { WatchKernel } from './kernel-changes.ts'
import { type Maintenance, pauseAfterCheckMs, startMaintenance } from './maintenance.ts'
import { clearRouting } from './routing.ts'
import type { CapturePlan, Family } from './rules.ts'
import type { TableOwner } from './table-owner.ts'
import {
  cgroupParents,
  findCgroupRoot,
  type ResolvedPlan,
  readCgroupIds,
  resolvePlan,
  sameIds,
} from './workloads.ts'

/** Options of {@link createCapture}. */
export interface CaptureOptions {
  readonly log?: Log
  /** Runs the kernel's tools; replaced when the rules belong to another network namespace. */
  readonly run?: RunCommand
  /** The backend; default `auto`. */
  readonly backend?: BackendChoice
  readonly nft?: BackendSettings
  /**
   * Keeps the rules in place after apply(): verifies them at this interval, and when `watch` reports a change. If
   * absent, the rules are applied once.
   */
  readonly maintain?: {
    readonly verifyEveryMs: number
    readonly cgroupEveryMs: number
    readonly watch?: WatchKernel
    /** Owns a second guard ({@link GuardCopy}); if absent, there is none. */
    readonly owner?: TableOwner
  }
}

/** The state of capture in the kernel. */
export interface CaptureState {
  /** Whether the kernel has any rules of ours. */
  readonly present: boolean
  /** The backend of this host and the reason for it; undefined when this process has no plan. */
  readonly backend: ChosenBackend | undefined
  /** Whether the rules match the last plan; undefined when this process has no plan. */
  readonly inSync: boolean | undefined
  /** The first difference from the plan; undefined when there is none, or when there is no plan. */
  readonly difference: string | undefined
  readonly rules: readonly ShownRule[]
  /** Number of addresses in each set; undefined when the set does not exist. */
  readonly instances: Record<Family, number | undefined>
  readonly counts: CaptureCounts
  /** Connections that were opened before capture, and are spared now. */
  readonly spared: readonly string[]
  /** How often the rules were changed by other programs and applied again, since apply(). */
  readonly repairs: number
  readonly problems: readonly Problem[]
}

/** The condition of capture as the maintenance loop last saw it. */
export interface CaptureCondition {
  /** Whether the rules match the plan; undefined before apply(). */
  readonly inSync: boolean | undefined
  readonly backend: ChosenBackend | undefined
  /** From the last full check; undefined before the first one. */
  readonly counts: CaptureCounts | undefined
  /** How often the rules were changed by other programs and applied again. */
  readonly repairs: number
  /** The last change that was found, in words. */
  readonly lastRepair: string | undefined
  /** Whether the guard survives when another program flushes all tables. */
  readonly isGuardHeld: boolean
}

/** The result of clear(). */
export interface ClearReport {
  /** Whether there were any rules of ours. */
  readonly removed: boolean
  /** What could not be checked, and why that is not a failure. */
  readonly notes: readonly string[]
}

/** Capture of this host. Disposing it stops the maintenance loop and leaves the rules in place. */
export interface Capture extends AsyncDisposable {
  /**
   * Makes the kernel capture as planned. A workload that does not exist (yet) is left out and
   * reported in problems(). @throws MeshError HM_CAPTURE_*; then the previous rules are kept.
   */
  apply(plan: CapturePlan): Promise<void>
  /** Replaces all addresses: those that are captured, and those that may be reached without the mesh. */
  updateAddresses(addresses: MeshAddresses): Promise<void>
  /**
   * No daemon accepts new connections from now on: those of newly started processes are refused instead of delayed. The
   * maintenance continues until this is disposed, because open connections still depend on the rules.
   */
  suspend(): Promise<void>
  /** Removes only our rules, chains, sets and routes, including those of a dead daemon. */
  clear(): Promise<ClearReport>
  /** The state in the kernel, compared with the given plan, or with the plan that this process applied. */
  show(plan?: CapturePlan): Promise<CaptureState>
  /** The condition as the maintenance loop last saw it, without I/O. */
  condition(): CaptureCondition
  /** What does not work now; empty when there are no problems. */
  problems(): readonly Problem[]
  /** The plan as last applied: users by number, without workloads that do not exist; undefined before. */
  plan(): CapturePlan | undefined
  /** The backend and the reason for it; undefined before a plan was applied. */
  backend(): ChosenBackend | undefined
}

/** A cgroup may disappear between reading it and changing the rules: at most this many attempts. */
const MAX_ATTEMPTS = 10

/** A change reported during an operation of ours, or this long after it, is most likely our own. Milliseconds. */
const OWN_ECHO_MS = 120

/** When other programs change the rules again during a repair, the repair is repeated at most this often. */
const MAX_REPAIRS = 4

/** Interval of full checks where not all changes are reported: legacy iptables reports none. Milliseconds. */
const UNHEARD_LOOK_MS = 2_000

/** Default settings of native tables. */
export const defaultNftSettings: BackendSettings = {
  mark: 0x1000,
  priority: 5,
  table: 213,
  spareSeconds: 3_600,
  sparesWhileUsed: false,
}

/** Creates capture with the tools of this host. */
export function createCapture(options: CaptureOptions = {}): Capture {
  return new KernelCapture(options)
}

class KernelCapture implements Capture {
  readonly #run: RunCommand
  readonly #log: Log
  readonly #options: CaptureOptions
  readonly #backends: Record<BackendKind, CaptureBackend>
  readonly #copy: GuardCopy | undefined
  #chosen: ChosenBackend | undefined
  /** Whether rules left by another backend have been searched for. */
  #isAlone = false
  #queue: Promise<unknown> = Promise.resolve()
  #resolved: ResolvedPlan | undefined
  #addresses: MeshAddresses | undefined
  #maintenanceProblem: Problem | undefined
  #repairs = 0
  #lastRepair: string | undefined
  #maintenance: Maintenance | undefined
  #isChanging = false
  #changedAt = -Infinity
  #inSync: boolean | undefined
  #counts: CaptureCounts | undefined
  /** Duration of the last full check: with tens of thousands of foreign rules it takes seconds. */
  #lookMs = 0

  constructor(options: CaptureOptions) {
    this.#options = options
    this.#run = options.run ?? createCommandRunner()
    this.#log = (options.log ?? silentLog).child('capture')
    const settings = options.nft ?? defaultNftSettings
    this.#backends = recordOf(backendKinds, (kind) =>
      backends[kind].create(this.#run, this.#log, settings),
    )
    const owner = options.maintain?.owner
    this.#copy =
      owner === undefined ? undefined : new GuardCopy(this.#run, this.#log, owner, settings)
  }

  apply(plan: CapturePlan): Promise<void> {
    return this.#exclusive(async () => {
      this.#resolved = undefined
      const cgroupRoot = await findCgroupRoot()
      const { maintain } = this.#options
      try {
        await this.#applyFirst(plan, cgroupRoot)
      } finally {
        // A failed apply is tried again, unless the caller gives up.
        if (maintain !== undefined) this.#startMaintenance(maintain, plan, cgroupRoot)
      }
    })
  }

  async #applyFirst(plan: CapturePlan, cgroupRoot: string | undefined): Promise<void> {
    this.#chosen = await this.#choose(plan)
    await this.#copy?.choose(this.#chosen, cgroupRoot)
    if (this.#addresses !== undefined) await this.#backend().setAddresses(this.#addresses)
    await this.#backend().setMaintained(this.#options.maintain !== undefined)
    await this.#applyPlan(plan, cgroupRoot)
    if (!this.#isAlone) await this.#clearOthers()
    this.#isAlone = true
    this.#inSync = true
    this.#maintenanceProblem = undefined
  }

  updateAddresses(addresses: MeshAddresses): Promise<void> {
    return this.#exclusive(async () => {
      this.#addresses = addresses
      if (this.#chosen !== undefined)
        await this.#change(() => this.#backend().setAddresses(addresses))
      await this.#hold()
    })
  }

  suspend(): Promise<void> {
    return this.#exclusive(async () => {
      if (this.#chosen !== undefined) await this.#change(() => this.#backend().setMaintained(false))
    })
  }

  clear(): Promise<ClearReport> {
    this.#stopMaintenance()
    return this.#exclusive(async () => {
      this.#copy?.release()
      this.#resolved = undefined
      this.#chosen = undefined
      this.#maintenanceProblem = undefined
      const notes: string[] = []
      let removed = false
      for (const backend of Object.values(this.#backends))
        await ignoreMissingTool(notes, async () => {
          if (await backend.clear(notes)) removed = true
        })
      await ignoreMissingTool(notes, async () => {
        if (await clearRouting(this.#run)) removed = true
      })
      return { removed, notes }
    })
  }

  show(plan?: CapturePlan): Promise<CaptureState> {
    return this.#exclusive(async () => {
      const chosen = plan === undefined ? this.#chosen : await this.#choose(plan)
      const resolved =
        plan === undefined
          ? this.#resolved
          : await resolvePlan(plan, this.#run, await findCgroupRoot())
      const backend =
        chosen === undefined ? await this.#presentBackend() : this.#backends[chosen.kind]
      const { rules, instances, counts, spared } = await backend.show()
      const difference = resolved === undefined ? undefined : await backend.drift(resolved)
      return {
        present: rules.length > 0,
        backend: chosen,
        inSync: resolved === undefined ? undefined : difference === undefined,
        difference,
        rules,
        instances,
        counts,
        spared,
        repairs: this.#repairs,
        problems: plan === undefined ? this.problems() : (resolved?.problems ?? []),
      }
    })
  }

  plan(): CapturePlan | undefined {
    return this.#resolved?.plan
  }

  backend(): ChosenBackend | undefined {
    return this.#chosen
  }

  condition(): CaptureCondition {
    return {
      inSync: this.#inSync,
      backend: this.#chosen,
      counts: this.#counts,
      repairs: this.#repairs,
      lastRepair: this.#lastRepair,
      isGuardHeld: this.#copy?.isHeld ?? false,
    }
  }

  problems(): readonly Problem[] {
    const maintenance = this.#maintenanceProblem === undefined ? [] : [this.#maintenanceProblem]
    const own = this.#chosen === undefined ? [] : this.#backend().problems()
    return [...(this.#resolved?.problems ?? []), ...own, ...maintenance]
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stopMaintenance()
    await this.#queue
    this.#copy?.release()
  }

  /** Updates the guard that no other program can flush. */
  async #hold(resolved = this.#resolved): Promise<void> {
    const addresses = this.#addresses ?? { instances: [], permitted: [] }
    if (resolved !== undefined) await this.#copy?.hold(resolved, addresses)
  }

  #backend(): CaptureBackend {
    return this.#backends[this.#chosen?.kind ?? 'nftables']
  }

  #choose(plan: CapturePlan): Promise<ChosenBackend> {
    return selectBackend(this.#options.backend ?? 'auto', plan, this.#run)
  }

  /** For a process without a plan: the backend whose rules exist. */
  async #presentBackend(): Promise<CaptureBackend> {
    const { iptables, ...others } = this.#backends
    for (const backend of Object.values(others))
      try {
        if ((await backend.show()).rules.length > 0) return backend
      } catch (error) {
        if (errorCode(error) !== 'HM_CAPTURE_TOOL_MISSING') throw error
      }
    return iptables
  }

  /** Removes the rules that another backend left, because they would divert, too. */
  async #clearOthers(): Promise<void> {
    let removed = false
    for (const backend of Object.values(this.#backends))
      if (backend !== this.#backend())
        await ignoreMissingTool([], async () => {
          removed = await backend.clear([])
        })
    if (!removed || this.#resolved === undefined) return
    // Both backends use the same kind of routes: those still needed are created again.
    await clearRouting(this.#run)
    await this.#backend().apply(this.#resolved)
  }

  /** Runs a change of the kernel's state, so that reports of it are recognized as our own. */
  async #change(operation: () => Promise<void>): Promise<void> {
    this.#isChanging = true
    try {
      await operation()
    } finally {
      this.#isChanging = false
      this.#changedAt = performance.now()
    }
  }

  /** Runs operations one after another; a failed one does not stop the next one. */
  #exclusive<T>(operation: () => Promise<T>): Promise<T> {
    const result = this.#queue.then(operation)
    this.#queue = result.catch(() => undefined)
    return result
  }

  /** Applies the part of the plan that exists now. Tries again when a cgroup disappears between check and change. */
  async #applyPlan(plan: CapturePlan, root: string | undefined): Promise<void> {
    for (let attempt = 1; ; attempt += 1) {
      const resolved = await resolvePlan(plan, this.#run, root)
      try {
        const isRenewal = isSamePlan(this.#resolved, resolved)
        // Guard first, because it refuses unknown processes; until then the rules delay a newly started unit.
        if (isRenewal) await this.#hold(resolved)
        await this.#change(() => this.#backend()[isRenewal ? 'renew' : 'apply'](resolved))
        this.#resolved = resolved
        if (!isRenewal) await this.#hold()
        return
      } catch (error) {
        const ids = readCgroupIds(plan, root)
        if (attempt === MAX_ATTEMPTS || sameIds(ids, resolved.cgroupIds)) throw error
      }
    }
  }

  #startMaintenance(
    every: NonNullable<CaptureOptions['maintain']>,
    plan: CapturePlan,
    root: string | undefined,
  ): void {
    this.#stopMaintenance()
    const maintenance = startMaintenance({
      folders: cgroupParents(plan, root),
      everyMs: every.cgroupEveryMs,
      watch: every.watch,
      isOwn: () => this.#isChanging || performance.now() - this.#changedAt < OWN_ECHO_MS,
      pass: (sinceVerifyMs, isChanged) =>
        this.#exclusive(async () => {
          if (this.#maintenance !== maintenance) return false
          const isHeard =
            this.#resolved !== undefined &&
            backends[this.#backend().kind].hearsChanges &&
            every.watch !== undefined
          const dueMs = isHeard
            ? Math.max(every.verifyEveryMs, pauseAfterCheckMs(this.#lookMs))
            : Math.min(every.verifyEveryMs, UNHEARD_LOOK_MS)
          return await this.#keep(plan, root, isChanged || sinceVerifyMs >= dueMs)
        }),
    })
    this.#maintenance = maintenance
  }

  #stopMaintenance(): void {
    this.#maintenance?.stop()
    this.#maintenance = undefined
  }

  /**
   * Checks the cgroups, and everything when `isDue`. Returns whether it checked everything. A cgroup that
   * disappeared is not urgent: its rule matches no process until the next full check removes it.
   */
  async #keep(plan: CapturePlan, root: string | undefined, isDue: boolean): Promise<boolean> {
    try {
      if (this.#resolved === undefined) {
        // The plan could not be applied before: apply all of it again.
        if (isDue) await this.#applyFirst(plan, root)
        return isDue
      }
      const ids = readCgroupIds(plan, root)
      const applied = this.#resolved.cgroupIds
      const isNew = [...ids].some(([path, id]) => applied.get(path) !== id)
      if (!isDue && !isNew) return false
      if (isNew || !sameIds(ids, applied)) await this.#applyPlan(plan, root)
      if (isDue) {
        const beganAt = performance.now()
        await this.#repair(plan, root)
        this.#counts = await this.#backend().counts()
        this.#lookMs = performance.now() - beganAt
      }
      this.#maintenanceProblem = undefined
    } catch (error) {
      const message = `Capture rules could not be kept in place: ${describeError(error)}`
      this.#inSync = false
      this.#maintenanceProblem = Problem.of(error, 'HM_CAPTURE_FAILED', { message })
      this.#log.error(message, { code: errorCode(error) })
    }
    return isDue
  }

  /** Repairs the rules: users may have been added since the last check, and other programs may have changed rules. */
  async #repair(plan: CapturePlan, root: string | undefined): Promise<void> {
    const resolved = await resolvePlan(plan, this.#run, root)
    if (!isSamePlan(this.#resolved, resolved)) return this.#applyPlan(plan, root)
    for (let attempt = 1; attempt <= MAX_REPAIRS; attempt += 1) {
      const drift = await this.#backend().drift(resolved)
      this.#inSync = drift === undefined
      if (drift === undefined) break
      await this.#change(() => this.#backend().apply(resolved))
      await this.#hold()
      this.#inSync = true
      this.#repairs += 1
      this.#lastRepair = drift
      this.#log.warn('Capture rules were changed by another program; applied again', { drift })
      // A program that changes much (a firewall reload) may not be finished, and its changes are taken for our own.
      await sleep(OWN_ECHO_MS)
      if (this.#maintenance === undefined) return
    }
    // The nft process that holds the guard may have been killed.
    if (this.#copy?.isHeld !== true) await this.#hold()
  }
}

/** Whether two plans differ at most in cgroups that are not above workloads. */
function isSamePlan(a: ResolvedPlan | undefined, b: ResolvedPlan): boolean {
  const shape = ({ plan, cgroups }: ResolvedPlan): string =>
    JSON.stringify([plan, cgroups.filter(({ isAbove }) => isAbove)])
  return a !== undefined && shape(a) === shape(b)
}
