/**
 * What a way of diverting connections must be able to do. Which there are, and which one a host uses, is backends.ts.
 */
import type { SocketAddress } from '../../model/address.ts'
import type { BackendKind } from '../../model/capture-backend.ts'
import type { Problem } from '../../model/problem.ts'
import type { RoutingSettings } from './routing.ts'
import type { Family } from './rules.ts'
import type { ResolvedPlan } from './workloads.ts'

/** What a configuration may ask for. */
export type BackendChoice = BackendKind | 'auto'

/** Which way is used, and why, in one sentence. */
export interface ChosenBackend {
  readonly kind: BackendKind
  readonly reason: string
}

/** What a configuration says of the rules beside the plan; a backend takes what it has a use for. */
export interface BackendSettings extends RoutingSettings {
  /** How long a connection from before capture is spared, seconds. */
  readonly spareSeconds: number
  readonly sparesWhileUsed: boolean
}

/** One rule of ours as the kernel has it. */
export interface ShownRule {
  /** `inet` is both families. */
  readonly family: Family | 'inet'
  readonly table: string
  readonly chain: string
  readonly rule: string
  /** What the rule has caught; null where rules are not counted one by one (nftables). */
  readonly packets: number | null
  readonly bytes: number | null
}

/** Connections counted by the kernel; from 0 again when tables are made anew. */
export interface CaptureCounts {
  /** Of callers without identity, refused at virtual addresses and at instances. */
  readonly refusedVirtual: number
  readonly refusedInstance: number
  /** Let out without the mesh: `capture.permissive`. */
  readonly permitted: number
  /** First segments of processes that had just started, kept waiting until it was known who they are. */
  readonly waited: number | undefined
  /** Refused because more connections were open than sets hold. */
  readonly full: number | undefined
  /** Refused by the guard; undefined where there is none. */
  readonly guarded: number | undefined
  /** Open since before capture, and spared now. */
  readonly spared: number | undefined
}

/** Addresses that rules know by sets. */
export interface MeshAddresses {
  /** Instances of mesh services: captured. */
  readonly instances: readonly SocketAddress[]
  /** Those of them that may be reached without the mesh now. */
  readonly permitted: readonly SocketAddress[]
}

/** What is in the kernel. */
export interface BackendState {
  readonly rules: readonly ShownRule[]
  /** Addresses in each set of instances; undefined when there is no such set. */
  readonly instances: Record<Family, number | undefined>
  readonly counts: CaptureCounts
  /** Connections that are spared: `10.0.0.1:40000 > 10.0.0.2:5432`. */
  readonly spared: readonly string[]
}

/** One way of diverting. Operations never overlap: capture.ts runs one at a time. */
export interface CaptureBackend {
  readonly kind: BackendKind
  /** Makes everything as planned: guard, rules, sets, routes. @throws MeshError; then all is as it was. */
  apply(resolved: ResolvedPlan): Promise<void>
  /** Brings up to date what depends on cgroups alone: the same workloads, units that have restarted. */
  renew(resolved: ResolvedPlan): Promise<void>
  /**
   * Whether somebody renews the rules when a unit starts: then who has just started is kept waiting for that, else
   * refused where he may be a workload.
   */
  setUpkeep(isKept: boolean): Promise<void>
  /** The addresses that sets are to hold from now on, all of them. */
  setAddresses(addresses: MeshAddresses): Promise<void>
  /** The first thing that is not as planned, in words; undefined when all is. */
  drift(resolved: ResolvedPlan): Promise<string | undefined>
  show(): Promise<BackendState>
  /** What {@link show} counts, for less. */
  counts(): Promise<CaptureCounts>
  /** Removes rules and sets of ours, but no routes; returns whether there were any. Notes say what could not be looked at. */
  clear(notes: string[]): Promise<boolean>
  problems(): readonly Problem[]
}
