/**
 * What the admin API says of services: instances, routes, and the intentions of those of this host. Pure.
 */
import { formatAddress } from '../model/address.ts'
import type {
  DestinationPolicy,
  EjectionEntry,
  EndpointEntry,
  IntentionEntry,
  ServiceEntry,
  ServiceRoutes,
} from '../model/admin.ts'
import type { Endpoint } from '../model/endpoint.ts'
import { unenforcedPart } from '../model/evaluate.ts'
import type { Intention } from '../model/intention.ts'
import type { LocalService } from '../model/service.ts'
import type { MeshService, Snapshot } from '../model/snapshot.ts'

/** What is known of instances beside the snapshot, by the key of an endpoint. */
export interface InstanceKnowledge {
  readonly ejections: ReadonlyMap<string, EjectionEntry>
  /** The failing health check, with its output. */
  readonly failing: ReadonlyMap<string, string>
}

/** What one worker has ejected. */
interface Ejection {
  readonly key: string
  readonly reason: string
  readonly leftMs: number
}

/** The ejections of all workers, merged. */
export function ejectionsByKey(
  byWorker: readonly (readonly Ejection[])[],
): ReadonlyMap<string, EjectionEntry> {
  const entries = new Map<string, EjectionEntry>()
  for (const { key, reason, leftMs } of byWorker.flat()) {
    const before = entries.get(key)
    entries.set(key, {
      workers: (before?.workers ?? 0) + 1,
      ofWorkers: byWorker.length,
      reason,
      leftMs: Math.round(Math.max(before?.leftMs ?? 0, leftMs)),
    })
  }
  return entries
}

/** A service with the instances that receive its connections. */
export function serviceEntry(service: MeshService, known: InstanceKnowledge): ServiceEntry {
  return {
    name: service.name,
    datacenter: service.datacenter,
    protocol: service.protocol,
    virtualIps: service.virtualIps,
    endpoints: service.clusters[0].endpoints.map((endpoint) => endpointEntry(endpoint, known)),
  }
}

/** A service with all its clusters. */
export function serviceRoutes(service: MeshService, known: InstanceKnowledge): ServiceRoutes {
  return {
    name: service.name,
    protocol: service.protocol,
    routes: service.routes,
    clusters: service.clusters.map((cluster, index) => ({
      name: cluster.name,
      service: cluster.service,
      datacenter: cluster.datacenter,
      subset: cluster.subset ?? null,
      connectTimeoutMs: cluster.connectTimeoutMs,
      // The data plane sends opaque bytes to the first cluster.
      isUsed: index === 0,
      endpoints: cluster.endpoints.map((endpoint) => endpointEntry(endpoint, known)),
    })),
  }
}

function endpointEntry(
  endpoint: Endpoint,
  { ejections, failing }: InstanceKnowledge,
): EndpointEntry {
  return {
    id: endpoint.id,
    node: endpoint.node,
    address: formatAddress(endpoint.tunnel),
    health: endpoint.health,
    failingCheck: failing.get(endpoint.key) ?? null,
    local: endpoint.local,
    service: endpoint.service,
    datacenter: endpoint.datacenter,
    priority: endpoint.priority,
    ejected: ejections.get(endpoint.key) ?? null,
  }
}

/** What a host decides by for each of its services that can be called. */
export function policiesOf(
  services: readonly Pick<LocalService, 'name' | 'target'>[],
  { policies }: Pick<Snapshot, 'policies'>,
): DestinationPolicy[] {
  const called = services.filter(({ target }) => target !== undefined)
  const names = new Set([...policies.keys(), ...called.map(({ name }) => name)])
  return [...names].toSorted().map((destination) => {
    const policy = policies.get(destination)
    return {
      destination,
      defaultPolicy: policy?.defaultPolicy ?? null,
      intentions: (policy?.intentions ?? []).map(intentionEntry),
    }
  })
}

function intentionEntry(rule: Intention): IntentionEntry {
  const notEnforced = unenforcedPart(rule) ?? null
  const isAllowed = notEnforced === null && rule.action === 'allow'
  return {
    ...rule,
    action: rule.action ?? null,
    effect: isAllowed ? 'allow' : 'deny',
    notEnforced,
  }
}
