/**
 * The interface that each capture backend implements. backends.ts lists the backends and selects one for a host.
 */
import type { SocketAddress } from '../../model/address.ts'
import type { BackendKind } from '../../model/capture-backend.ts'
import type { Problem } from '../../model/problem.ts'
import type { RoutingSettings } from './routing.ts'
import type { Family } from './rules.ts'
import type { ResolvedPlan } from './workloads.ts'

/** The backend that a configuration may select. */
export type BackendChoice = BackendKind | 'auto'

/** The selected backend, and the reason in one sentence. */
export interface ChosenBackend {
  readonly kind: BackendKind
  readonly reason: string
}

/** Settings of the rules that are not part of the plan; a backend uses those that it needs. */
export interface BackendSettings extends RoutingSettings {
  /** How long a connection from before capture is spared, in seconds. */
  readonly spareSeconds: number
  readonly sparesWhileUsed: boolean
}

/** One rule of ours as the kernel reports it. */
export interface ShownRule {
  /** `inet` means both families. */
  readonly family: Family | 'inet'
  readonly table: string
  readonly chain: string
  readonly rule: string
  /** What the rule has matched; null where rules have no counters of their own (nftables). */
  readonly packets: number | null
  readonly bytes: number | null
}

/** Connections counted by the kernel; the counters restart at 0 when the tables are created again. */
export interface CaptureCounts {
  /** Connections of callers without identity that were refused: at virtual addresses, and at instances. */
  readonly refusedVirtual: number
  readonly refusedInstance: number
  /** Passed without the mesh: `capture.permissive`. */
  readonly permitted: number
  /** First segments of newly started processes, delayed until the process was identified. */
  readonly waited: number | undefined
  /** Refused because the sets of open connections were full. */
  readonly full: number | undefined
  /** Refused by the guard; undefined where there is no guard. */
  readonly guarded: number | undefined
  /** Opened before capture, and spared now. */
  readonly spared: number | undefined
}

/** The addresses that rules match by sets. */
export interface MeshAddresses {
  /** Instances of mesh services: connections to them are captured. */
  readonly instances: readonly SocketAddress[]
  /** The subset that may be reached without the mesh now. */
  readonly permitted: readonly SocketAddress[]
}

/** The state of capture in the kernel. */
export interface BackendState {
  readonly rules: readonly ShownRule[]
  /** Number of addresses in each set of instances; undefined when the set does not exist. */
  readonly instances: Record<Family, number | undefined>
  readonly counts: CaptureCounts
  /** Spared connections: `10.0.0.1:40000 > 10.0.0.2:5432`. */
  readonly spared: readonly string[]
}

/** One capture backend. Operations never overlap: capture.ts runs one at a time. */
export interface CaptureBackend {
  readonly kind: BackendKind
  /** Creates guard, rules, sets and routes as planned. @throws MeshError; then the previous state is kept. */
  apply(resolved: ResolvedPlan): Promise<void>
  /** Updates only what depends on cgroups: the same workloads, but units have restarted. */
  renew(resolved: ResolvedPlan): Promise<void>
  /**
   * Sets whether a maintenance loop renews the rules when a unit starts. If so, connections of a newly started process
   * are delayed until then; otherwise they are refused where the process may be a workload.
   */
  setMaintained(isKept: boolean): Promise<void>
  /** Replaces all addresses that the sets hold. */
  setAddresses(addresses: MeshAddresses): Promise<void>
  /** The first difference from the plan, in words; undefined when there is none. */
  drift(resolved: ResolvedPlan): Promise<string | undefined>
  show(): Promise<BackendState>
  /** The counts of {@link show}, at a lower cost. */
  counts(): Promise<CaptureCounts>
  /** Removes our rules and sets, but no routes; returns whether there were any. Notes: what could not be checked. */
  clear(notes: string[]): Promise<boolean>
  problems(): readonly Problem[]
}
