/**
 * Capture on this host as one thing that can be applied, kept, shown and removed, whatever tools divert.
 *
 * With `maintain` set it keeps the rules: a unit that restarts gets a new cgroup and needs its rule again, and other
 * programs flush tables. Foreign rules are never written, only read. One operation runs at a time.
 */
import { sleep } from '../../lib/abort.ts'
import { describeError, errorCode } from '../../lib/errors.ts'
import { type Log, silentLog } from '../../lib/log.ts'
import { recordOf } from '../../lib/record.ts'
import { type BackendKind, backendKinds, backendTraits } from '../../model/capture-backend.ts'
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
import { HeldGuard } from './held-guard.ts'
import type { WatchKernel } from './kernel-changes.ts'
import { guardOf, readCaptured } from './nft-guard.ts'
import { nftObstacle } from './nft-obstacle.ts'
import { clearRouting } from './routing.ts'
import type { CapturePlan, Family } from './rules.ts'
import type { TableOwner } from './table-owner.ts'
import { pauseAfterLookMs, startUpkeep, type Upkeep } from './upkeep.ts'
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
  /** What diverts; `auto` unless given. */
  readonly backend?: BackendChoice
  readonly nft?: BackendSettings
  /**
   * Keep the rules in place after apply(): look at them this often, and when `watch` tells of a change. Left out: apply
   * once and be done.
   */
  readonly maintain?: {
    readonly verifyEveryMs: number
    readonly cgroupEveryMs: number
    readonly watch?: WatchKernel
    /** Owns a guard of its own ({@link HeldGuard}); left out: there is none. */
    readonly owner?: TableOwner
  }
}

/** What is in the kernel now. */
export interface CaptureState {
  /** Whether the kernel has any rule of ours. */
  readonly present: boolean
  /** What diverts on this host and why; undefined when this process knows no plan. */
  readonly backend: ChosenBackend | undefined
  /** Whether the rules are those of the last plan; undefined when this process knows no plan. */
  readonly inSync: boolean | undefined
  /** The first thing that is not as planned; undefined when all is, or no plan is known. */
  readonly difference: string | undefined
  readonly rules: readonly ShownRule[]
  /** Addresses in each set; undefined when there is no such set. */
  readonly instances: Record<Family, number | undefined>
  readonly counts: CaptureCounts
  /** Connections open since before capture, and spared now. */
  readonly spared: readonly string[]
  /** How often the rules were found changed by others, and applied again, since apply(). */
  readonly repairs: number
  readonly problems: readonly Problem[]
}

/** How capture stands, as the upkeep knows it. */
export interface CaptureCondition {
  /** Whether the rules are those of the plan; undefined before apply(). */
  readonly inSync: boolean | undefined
  readonly backend: ChosenBackend | undefined
  /** As old as the last full look; undefined before the first one. */
  readonly counts: CaptureCounts | undefined
  /** How often the rules were found changed by others, and applied again. */
  readonly repairs: number
  /** What was found changed last, in words. */
  readonly lastRepair: string | undefined
  /** Whether the guard outlives a flush of everything by others. */
  readonly isGuardHeld: boolean
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
  /** The addresses that are to be captured from now on, and those that may pass without the mesh; all of them. */
  updateAddresses(addresses: MeshAddresses): Promise<void>
  /**
   * Nobody carries what begins from now on: who has just started is refused, not kept waiting. The upkeep goes on until
   * this is disposed, for what is open still passes by the rules.
   */
  suspend(): Promise<void>
  /** Removes rules, chains, sets and routes of ours, and nothing else; also those of a dead daemon. */
  clear(): Promise<ClearReport>
  /** What is in the kernel, compared with the plan given or else the one applied by this process. */
  show(plan?: CapturePlan): Promise<CaptureState>
  /** How it stands, as the upkeep has last seen it: asks nobody. */
  condition(): CaptureCondition
  /** What does not work now; empty when all is well. */
  problems(): readonly Problem[]
  /** The plan as it was last applied: users by number, without what does not exist; undefined before. */
  plan(): CapturePlan | undefined
  /** What diverts, and why; undefined before a plan was applied. */
  backend(): ChosenBackend | undefined
}

/** A cgroup may vanish between our look and our change: look again this often. */
const MAX_ATTEMPTS = 10

/** What is heard during an operation of ours, and so long after it, is most likely its echo. */
const OWN_ECHO_MS = 120

/** What others change again and again while it is put back is put back so often before anything else. */
const MAX_REPAIRS = 4

/** Everything is looked at this often where not every change is heard: the legacy variant of iptables tells nobody. */
const UNHEARD_LOOK_MS = 2_000

/** What native tables are made with unless a configuration says otherwise. */
export const defaultNftSettings: BackendSettings = {
  mark: 0x1000,
  priority: 5,
  table: 213,
  spareSeconds: 3_600,
  sparesWhileUsed: false,
}

/** Capture by the tools of this host. */
export function createCapture(options: CaptureOptions = {}): Capture {
  return new KernelCapture(options)
}

class KernelCapture implements Capture {
  readonly #run: RunCommand
  readonly #log: Log
  readonly #options: CaptureOptions
  readonly #backends: Record<BackendKind, CaptureBackend>
  #chosen: ChosenBackend | undefined
  /** Whether what another backend left behind has been looked for. */
  #isAlone = false
  #queue: Promise<unknown> = Promise.resolve()
  #resolved: ResolvedPlan | undefined
  #addresses: MeshAddresses | undefined
  #upkeepProblem: Problem | undefined
  #repairs = 0
  #lastRepair: string | undefined
  #upkeep: Upkeep | undefined
  #held: HeldGuard | undefined
  #canHold = false
  #isChanging = false
  #changedAt = -Infinity
  #inSync: boolean | undefined
  #counts: CaptureCounts | undefined
  /** How long the last look at everything took: tens of thousands of rules of others take seconds. */
  #lookMs = 0

  constructor(options: CaptureOptions) {
    this.#options = options
    this.#run = options.run ?? createCommandRunner()
    this.#log = (options.log ?? silentLog).child('capture')
    const settings = options.nft ?? defaultNftSettings
    this.#backends = recordOf(backendKinds, (kind) =>
      backends[kind].create(this.#run, this.#log, settings),
    )
  }

  apply(plan: CapturePlan): Promise<void> {
    return this.#exclusive(async () => {
      this.#resolved = undefined
      const cgroupRoot = await findCgroupRoot()
      const { maintain } = this.#options
      try {
        await this.#applyFirst(plan, cgroupRoot)
      } finally {
        // What could not be applied is tried again, unless the caller gives up.
        if (maintain !== undefined) this.#startUpkeep(maintain, plan, cgroupRoot)
      }
    })
  }

  async #applyFirst(plan: CapturePlan, cgroupRoot: string | undefined): Promise<void> {
    this.#chosen = await this.#choose(plan)
    // By iptables, too, it refuses what begins while rules and guard are gone, where there is an nft to hold it.
    this.#canHold =
      this.#options.maintain?.owner !== undefined &&
      (this.#chosen.kind === 'nftables' || (await nftObstacle(this.#run, cgroupRoot)) === undefined)
    if (this.#addresses !== undefined) await this.#backend().setAddresses(this.#addresses)
    await this.#backend().setUpkeep(this.#options.maintain !== undefined)
    await this.#applyPlan(plan, cgroupRoot)
    if (!this.#isAlone) await this.#clearOthers()
    this.#isAlone = true
    this.#inSync = true
    this.#upkeepProblem = undefined
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
      if (this.#chosen !== undefined) await this.#change(() => this.#backend().setUpkeep(false))
    })
  }

  clear(): Promise<ClearReport> {
    this.#stopUpkeep()
    return this.#exclusive(async () => {
      this.#release()
      this.#resolved = undefined
      this.#chosen = undefined
      this.#upkeepProblem = undefined
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
      isGuardHeld: this.#held?.isHeld ?? false,
    }
  }

  problems(): readonly Problem[] {
    const upkeep = this.#upkeepProblem === undefined ? [] : [this.#upkeepProblem]
    const own = this.#chosen === undefined ? [] : this.#backend().problems()
    return [...(this.#resolved?.problems ?? []), ...own, ...upkeep]
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stopUpkeep()
    await this.#queue
    this.#release()
  }

  /** Brings the guard that nobody else can flush up to date. */
  async #hold(resolved = this.#resolved): Promise<void> {
    const owner = this.#options.maintain?.owner
    if (owner === undefined || resolved === undefined) return
    if (!this.#canHold) return this.#release()
    const held = (this.#held ??= new HeldGuard(owner, (words) => {
      this.#log.warn('The guard is not held against a flush by others', { words })
    }))
    const given = {
      settings: this.#options.nft ?? defaultNftSettings,
      addresses: this.#addresses ?? { instances: [], permitted: [] },
      by: backendTraits[this.#backend().kind].divertsBy,
    }
    const isNew = !held.isHeld || owner.isWornOut
    const open = isNew ? await readCaptured(this.#run, resolved.plan, given) : []
    if (owner.isWornOut) owner.replace()
    held.update((table) => guardOf(resolved, { ...given, table }), open)
  }

  #release(): void {
    this.#held?.[Symbol.dispose]()
    this.#held = undefined
  }

  #backend(): CaptureBackend {
    return this.#backends[this.#chosen?.kind ?? 'nftables']
  }

  #choose(plan: CapturePlan): Promise<ChosenBackend> {
    return selectBackend(this.#options.backend ?? 'auto', plan, this.#run)
  }

  /** For a process that knows no plan: the one whose rules are there. */
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

  /** What another backend left behind would divert, too. */
  async #clearOthers(): Promise<void> {
    let removed = false
    for (const backend of Object.values(this.#backends))
      if (backend !== this.#backend())
        await ignoreMissingTool([], async () => {
          removed = await backend.clear([])
        })
    if (!removed || this.#resolved === undefined) return
    // Both use the same kind of routes: those that are still needed are made again.
    await clearRouting(this.#run)
    await this.#backend().apply(this.#resolved)
  }

  /** Runs what changes the kernel: its echo is no news. */
  async #change(operation: () => Promise<void>): Promise<void> {
    this.#isChanging = true
    try {
      await operation()
    } finally {
      this.#isChanging = false
      this.#changedAt = performance.now()
    }
  }

  /** Runs operations one after another; a failed one does not stop the next. */
  #exclusive<T>(operation: () => Promise<T>): Promise<T> {
    const result = this.#queue.then(operation)
    this.#queue = result.catch(() => undefined)
    return result
  }

  /** Applies what of the plan exists now. A cgroup may vanish between look and change: then once more. */
  async #applyPlan(plan: CapturePlan, root: string | undefined): Promise<void> {
    for (let attempt = 1; ; attempt += 1) {
      const resolved = await resolvePlan(plan, this.#run, root)
      try {
        const isRenewal = isSamePlan(this.#resolved, resolved)
        // The guard first: it refuses whom it does not know, and the rules keep a unit that has just started waiting.
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

  #startUpkeep(
    every: NonNullable<CaptureOptions['maintain']>,
    plan: CapturePlan,
    root: string | undefined,
  ): void {
    this.#stopUpkeep()
    const upkeep = startUpkeep({
      folders: cgroupParents(plan, root),
      everyMs: every.cgroupEveryMs,
      watch: every.watch,
      isOwn: () => this.#isChanging || performance.now() - this.#changedAt < OWN_ECHO_MS,
      pass: (sinceVerifyMs, isChanged) =>
        this.#exclusive(async () => {
          if (this.#upkeep !== upkeep) return false
          const isHeard =
            this.#resolved !== undefined &&
            backends[this.#backend().kind].hearsChanges &&
            every.watch !== undefined
          const dueMs = isHeard
            ? Math.max(every.verifyEveryMs, pauseAfterLookMs(this.#lookMs))
            : Math.min(every.verifyEveryMs, UNHEARD_LOOK_MS)
          return await this.#keep(plan, root, isChanged || sinceVerifyMs >= dueMs)
        }),
    })
    this.#upkeep = upkeep
  }

  #stopUpkeep(): void {
    this.#upkeep?.stop()
    this.#upkeep = undefined
  }

  /**
   * One look at the cgroups, and at everything when `isDue`. Returns whether it looked at everything. A
   * cgroup that went away needs no haste: its rule matches nobody until the next full look drops it.
   */
  async #keep(plan: CapturePlan, root: string | undefined, isDue: boolean): Promise<boolean> {
    try {
      if (this.#resolved === undefined) {
        // It could not be applied: all of it once more.
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
      this.#upkeepProblem = undefined
    } catch (error) {
      const message = `Capture rules could not be kept in place: ${describeError(error)}`
      this.#inSync = false
      this.#upkeepProblem = Problem.of(error, 'HM_CAPTURE_FAILED', { message })
      this.#log.error(message, { code: errorCode(error) })
    }
    return isDue
  }

  /** Users may have come since the last look, and other programs may have changed rules. */
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
      // Who changes much, as a firewall does that is reloaded, is not done yet, and what came meanwhile passes for our echo.
      await sleep(OWN_ECHO_MS)
      if (this.#upkeep === undefined) return
    }
    // Somebody may have ended the nft that holds it.
    if (this.#held?.isHeld !== true) await this.#hold()
  }
}

/** Whether only what cgroups are there differs, if anything. */
function isSamePlan(a: ResolvedPlan | undefined, b: ResolvedPlan): boolean {
  const shape = ({ plan, cgroups }: ResolvedPlan): string =>
    JSON.stringify([plan, cgroups.filter(({ isAbove }) => isAbove)])
  return a !== undefined && shape(a) === shape(b)
}

function sameIds(a: ReadonlyMap<string, string>, b: ReadonlyMap<string, string>): boolean {
  return a.size === b.size && [...a].every(([path, id]) => b.get(path) === id)
}
