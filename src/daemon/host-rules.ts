/**
 * The daemon's own rules in the kernel of this host: capture of its workloads' connections, and the guard of its ports
 * while no process serves them. A network namespace has one writer: see kernel-lock.ts.
 *
 * {@link HostRules.hold} takes the rules. Disposing `owned` ends their maintenance, so that another process can own
 * them.
 */
import type { Config } from '../config/schema.ts'
import type { MeshAddresses } from '../controlplane/capture/backend.ts'
import {
  type Capture,
  type CaptureCondition,
  createCapture,
} from '../controlplane/capture/capture.ts'
import { watchKernel } from '../controlplane/capture/kernel-changes.ts'
import { PortGuard, removePortGuard } from '../controlplane/capture/port-guard.ts'
import type { CapturePlan } from '../controlplane/capture/rules.ts'
import { TableOwner } from '../controlplane/capture/table-owner.ts'
import type { Discovery } from '../controlplane/discovery/publisher.ts'
import { describeError } from '../lib/errors.ts'
import type { Log } from '../lib/log.ts'
import type { Problem } from '../model/problem.ts'
import type { LocalService } from '../model/service.ts'
import type { Snapshot } from '../model/snapshot.ts'
import { captureOptions, capturePlan, nftSettings, plainInbound } from './capture-operations.ts'
import { instanceSets } from './captured-instances.ts'
import { holdKernelRules } from './kernel-lock.ts'
import type { ListeningSockets } from './listening-sockets.ts'
import type { HostState } from './memory.ts'

/** How often the rules in the kernel are compared with the plan; new cgroups are noticed sooner. Milliseconds. */
const CAPTURE_MAINTENANCE = {
  verifyEveryMs: 10_000,
  cgroupEveryMs: 1_000,
  watch: watchKernel,
}

/** What the rules are made from. */
export interface HostRulesOptions {
  readonly config: Config
  readonly services: readonly LocalService[]
  readonly sockets: ListeningSockets
  /** Whether to keep other programs from receiving what is sent to our ports, also while this daemon is stopped. */
  readonly guardsPorts: boolean
  /** Whether an earlier daemon may have left rules that this one does not want. */
  readonly hadCapture: boolean
  readonly log: Log
  /** Called when the catalog's first answer is in the kernel's sets. */
  readonly onInPlace: () => void
}

/** The state of the rules at the last check. */
export interface RulesView {
  /** Undefined while capture is off. */
  readonly condition: CaptureCondition | undefined
  readonly problems: readonly Problem[]
  readonly plan: CapturePlan | undefined
  /** Connections that bypassed the mesh; undefined where they are not counted. */
  readonly plainInbound: number | undefined
  /** Ports that no other program may use as a source port; empty while capture is off. */
  readonly ownPorts: readonly number[]
}

/** The rules of one daemon. */
export class HostRules {
  readonly #options: HostRulesOptions
  readonly #tableOwner = new TableOwner()
  #capture: Capture | undefined
  #plan: CapturePlan | undefined
  #portGuard: PortGuard | undefined
  /** False once new connections are refused: permissive connections then pass without the mesh. */
  #acceptsConnections = true

  constructor(options: HostRulesOptions) {
    this.#options = options
  }

  /** Whether connections are captured now. */
  get isCapturing(): boolean {
    return this.#capture !== undefined
  }

  /** The current state of the rules. */
  view(): RulesView {
    return {
      condition: this.#capture?.condition(),
      problems: this.#capture?.problems() ?? [],
      plan: this.#capture?.plan(),
      plainInbound: this.#portGuard?.plainInbound,
      ownPorts: this.#plan?.ownPorts ?? [],
    }
  }

  /**
   * Locks the rules of this network namespace if this daemon writes any.
   * @throws MeshError HM_CAPTURE_HELD when another daemon holds the lock
   */
  async hold(owned: AsyncDisposableStack): Promise<void> {
    if (!this.#writes) return
    const lock = await holdKernelRules(this.#options.log)
    if (lock !== undefined) owned.use(lock)
  }

  /** Guards the ports of this daemon, and its services against callers that bypass the mesh. */
  async guardPorts(owned: AsyncDisposableStack, memory: HostState): Promise<void> {
    const { config, services, sockets, guardsPorts, log } = this.#options
    if (!guardsPorts) return
    const guard = owned.use(new PortGuard({ log, watch: watchKernel, owner: this.#tableOwner }))
    const plan = { ports: sockets.ports(), plainInbound: plainInbound(config, services) }
    await guard.apply(plan)
    this.#portGuard = guard
    await memory.keepPorts(plan)
  }

  /** Captures, with the kept addresses until the catalog answers; or removes what an earlier daemon left behind. */
  async capture(
    owned: AsyncDisposableStack,
    { memory, discovery }: { readonly memory: HostState; readonly discovery: Discovery },
  ): Promise<void> {
    const { config, services, hadCapture, guardsPorts, log } = this.#options
    // Rules left by an earlier daemon with capture refuse connections until they are removed.
    const isLeftOver = hadCapture || memory.keptCapture() !== undefined
    if (config.capture.mode === 'off' && !isLeftOver) return
    // Rules of another daemon in this namespace are not ours to remove.
    await using _ = this.#writes ? undefined : await holdKernelRules(log)
    const capture = owned.use(
      createCapture({
        log,
        maintain: { ...CAPTURE_MAINTENANCE, owner: this.#tableOwner },
        ...captureOptions(config),
      }),
    )
    if (config.capture.mode === 'off') {
      await capture.clear()
      await memory.forgetCapture()
      if (!guardsPorts) {
        await removePortGuard()
        await memory.keepPorts(undefined)
      }
      return
    }
    this.#capture = capture
    const plan = await capturePlan(config, services)
    this.#plan = plan
    const kept = memory.keptCapture()?.addresses.instances ?? []
    await capture.updateAddresses({ instances: kept, permitted: [] })
    await capture.apply(plan)
    const snapshot = discovery.current()
    if (snapshot.version > 0) await this.follow(snapshot, { memory, discovery })
  }

  /** Captures the instances of a snapshot, and those of services that are not followed. Never rejects. */
  async follow(
    snapshot: Snapshot,
    { memory, discovery }: { readonly memory: HostState; readonly discovery: Discovery },
  ): Promise<void> {
    const capture = this.#capture
    if (capture === undefined) return
    const addresses = this.#addresses(snapshot, discovery)
    try {
      await capture.updateAddresses(addresses)
      this.#keep(addresses, memory)
      // A ready host has the catalog's first answer in its sets.
      if (snapshot.version > 0) this.#options.onInPlace()
    } catch (error) {
      this.#options.log.error('Cannot update the captured addresses', {
        error: describeError(error),
      })
    }
  }

  /** Stops carrying connections: the rules stay and refuse; only permissive connections pass. */
  async suspend(parts: {
    readonly memory: HostState
    readonly discovery: Discovery
  }): Promise<void> {
    const capture = this.#capture
    if (capture === undefined) return
    this.#acceptsConnections = false
    const snapshot = parts.discovery.current()
    if (snapshot.version > 0) await this.follow(snapshot, parts)
    try {
      await capture.suspend()
    } catch (error) {
      this.#options.log.error('Cannot have who starts now refused', { error: describeError(error) })
    }
  }

  /** Forgets the rules: another process owns them now. */
  release(): void {
    this.#capture = undefined
  }

  /** Whether this daemon keeps rules in the kernel, instead of only removing old ones once. */
  get #writes(): boolean {
    return this.#options.config.capture.mode !== 'off' || this.#options.guardsPorts
  }

  #addresses(snapshot: Snapshot, discovery: Discovery): MeshAddresses {
    const { captured, permitted } = instanceSets(snapshot.services.values(), {
      permissive: this.#options.config.capture.permissive,
      dormant: discovery.dormant(),
      acceptsConnections: this.#acceptsConnections,
    })
    return { instances: [...captured, ...permitted], permitted }
  }

  #keep(addresses: MeshAddresses, memory: HostState): void {
    const backend = this.#capture?.backend()?.kind
    if (this.#plan === undefined || backend === undefined) return
    memory.keepCapture({
      backend,
      plan: this.#plan,
      settings: nftSettings(this.#options.config),
      addresses,
    })
  }
}
