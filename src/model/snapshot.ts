/**
 * The state that one node acts on: compiled by the control plane, replaced as a whole, read by the data plane.
 *
 * A snapshot is plain data (it crosses a thread boundary by structured clone) and is never modified. Each decision
 * about a connection uses the snapshot that is current then. Unchanged services keep their object identity from one
 * snapshot to the next: {@link diffSnapshots} relies on it to send only what changed.
 */
import type { SocketAddress } from './address.ts'
import type { DefaultPolicy, Intention } from './intention.ts'
import type { Routing } from './route.ts'

/** One service of the mesh. Its first cluster receives opaque bytes. */
export interface MeshService extends Routing {
  readonly name: string
  /** This host's own datacenter, in which the name was looked up. Clusters and endpoints have their own. */
  readonly datacenter: string
  /** Addresses that exist only for capture, canonical; empty when the service has none. */
  readonly virtualIps: readonly string[]
  /** From service-defaults; 'tcp' when not configured. Traffic is handled as opaque bytes in any case. */
  readonly protocol: string
  /**
   * Where instances of this service itself listen, with or without a usable endpoint: a connection to one of them is
   * for the mesh. Sorted; unique among the services of a snapshot.
   */
  readonly addresses: readonly SocketAddress[]
}

/** The intentions for a service of this host. */
export interface ServicePolicy {
  readonly destination: string
  /** Sorted by precedence, highest first: the first match decides. */
  readonly intentions: readonly Intention[]
  readonly defaultPolicy: DefaultPolicy
}

/** All data that the data plane decides by. */
export interface Snapshot {
  readonly version: number
  readonly datacenter: string
  /** By name. An absent service is unknown, perhaps only so far: wait or refuse, never pass through. */
  readonly services: ReadonlyMap<string, MeshService>
  /** By local destination. Absent means that the policy is not loaded: deny. */
  readonly policies: ReadonlyMap<string, ServicePolicy>
}

/** The changes from one snapshot to the next. Its size depends on the changes, not on the size of the mesh. */
export interface SnapshotDelta {
  readonly version: number
  readonly datacenter: string
  readonly services: readonly MeshService[]
  readonly removedServices: readonly string[]
  readonly policies: readonly ServicePolicy[]
  readonly removedPolicies: readonly string[]
}

/** The first snapshot. Denies everything. */
export const emptySnapshot: Snapshot = {
  version: 0,
  datacenter: '',
  services: new Map(),
  policies: new Map(),
}

/** The difference between two snapshots; compares their parts by object identity. */
export function diffSnapshots(before: Snapshot, after: Snapshot): SnapshotDelta {
  return {
    version: after.version,
    datacenter: after.datacenter,
    services: changedValues(before.services, after.services),
    removedServices: missingKeys(before.services, after.services),
    policies: changedValues(before.policies, after.policies),
    removedPolicies: missingKeys(before.policies, after.policies),
  }
}

/** The next snapshot. Shares all parts that the delta does not contain. */
export function applyDelta(before: Snapshot, delta: SnapshotDelta): Snapshot {
  return {
    version: delta.version,
    datacenter: delta.datacenter,
    services: replaced(
      before.services,
      delta.services,
      (service) => service.name,
      delta.removedServices,
    ),
    policies: replaced(
      before.policies,
      delta.policies,
      (policy) => policy.destination,
      delta.removedPolicies,
    ),
  }
}

function changedValues<T>(before: ReadonlyMap<string, T>, after: ReadonlyMap<string, T>): T[] {
  const changed: T[] = []
  for (const [key, value] of after) if (before.get(key) !== value) changed.push(value)
  return changed
}

function missingKeys(
  before: ReadonlyMap<string, unknown>,
  after: ReadonlyMap<string, unknown>,
): string[] {
  return [...before.keys()].filter((key) => !after.has(key))
}

function replaced<T>(
  before: ReadonlyMap<string, T>,
  changed: readonly T[],
  keyOf: (value: T) => string,
  removed: readonly string[],
): ReadonlyMap<string, T> {
  if (changed.length === 0 && removed.length === 0) return before
  const after = new Map(before)
  for (const value of changed) after.set(keyOf(value), value)
  for (const key of removed) after.delete(key)
  return after
}
