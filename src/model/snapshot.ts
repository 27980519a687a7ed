/**
 * The view one node acts on: compiled by the control plane, swapped whole, read by the data plane.
 *
 * A snapshot is plain data (it crosses a thread boundary by structured clone) and is never modified.
 * A connection takes the current one when it is accepted and keeps it to the end, so that it never
 * sees two worlds. Unchanged services keep their object identity from one snapshot to the next: that
 * is what {@link diffSnapshots} relies on to send only what changed.
 */
import type { SocketAddress } from './address.ts'
import type { DefaultPolicy, Intention } from './intention.ts'
import type { Routing } from './route.ts'

/** One service of the mesh: its first cluster takes bytes that nobody parses. */
export interface MeshService extends Routing {
  readonly name: string
  /** This host's own: where the name was looked up. Clusters and endpoints say their own. */
  readonly datacenter: string
  /** Addresses that exist only for capture, canonical; empty when the service has none. */
  readonly virtualIps: readonly string[]
  /** From service-defaults; 'tcp' when nothing says otherwise. Traffic is opaque bytes whatever it says. */
  readonly protocol: string
  /**
   * Where instances of this very service listen, with a usable endpoint or without: callers that dial one mean the
   * mesh. Sorted; no two services of a snapshot have the same one.
   */
  readonly addresses: readonly SocketAddress[]
}

/** Who may reach a service of this host. */
export interface ServicePolicy {
  readonly destination: string
  /** Sorted by precedence, highest first: the first match decides. */
  readonly intentions: readonly Intention[]
  readonly defaultPolicy: DefaultPolicy
}

/** Everything the data plane decides by. */
export interface Snapshot {
  readonly version: number
  readonly datacenter: string
  /** By name. A service that is absent is not known (yet): wait or refuse, never pass through. */
  readonly services: ReadonlyMap<string, MeshService>
  /** By local destination. Absent means policy is not loaded: deny. */
  readonly policies: ReadonlyMap<string, ServicePolicy>
}

/** What turns one snapshot into the next. Small when little changed, whatever the size of the mesh. */
export interface SnapshotDelta {
  readonly version: number
  readonly datacenter: string
  readonly services: readonly MeshService[]
  readonly removedServices: readonly string[]
  readonly policies: readonly ServicePolicy[]
  readonly removedPolicies: readonly string[]
}

/** The snapshot before anything is known. Denies everything. */
export const emptySnapshot: Snapshot = {
  version: 0,
  datacenter: '',
  services: new Map(),
  policies: new Map(),
}

/** The difference between two snapshots, by object identity of their parts. */
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

/** The next snapshot. Shares everything that the delta does not name. */
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
