/**
 * Turns everything this node knows of the mesh into the view the data plane acts on.
 *
 * Pure and total: the same input yields an equal snapshot, and bad input never throws. What is wrong
 * with a service costs that service, not the mesh: it is named in `problems`, and the last good version
 * of it stays if there is one. Parts that did not change keep their object identity, and a compile that
 * changes nothing returns the very snapshot it was given: diffSnapshots() relies on both.
 */
import { isStructurallyEqual } from '../../lib/structural-equal.ts'
import { formatAddress, isPort, isUndialable, type SocketAddress } from '../../model/address.ts'
import type { Cluster } from '../../model/cluster.ts'
import type { Endpoint } from '../../model/endpoint.ts'
import type { Intention } from '../../model/intention.ts'
import { DEFAULT_CONNECT_TIMEOUT_MS, opaqueClusterOf } from '../../model/route.ts'
import type { LocalService } from '../../model/service.ts'
import {
  emptySnapshot,
  type MeshService,
  type ServicePolicy,
  type Snapshot,
} from '../../model/snapshot.ts'
import { isServiceName } from '../../model/spiffe-id.ts'
import type { CatalogPolicy, CatalogService, InstanceAddress } from '../catalog/catalog.ts'
import { type InstanceClaims, shareInstanceAddresses } from './instance-addresses.ts'

/** Everything that a snapshot is made of. */
export interface CompileInput {
  readonly datacenter: string
  /** This host's node name in the catalog. */
  readonly nodeName: string
  readonly localServices: readonly LocalService[]
  /** By name; a service without an answer yet is absent. */
  readonly catalogServices: ReadonlyMap<string, CatalogService>
  /** Where instances of services listen that are not followed, by the list; of a followed one its own answer counts. */
  readonly listedAddresses?: ReadonlyMap<string, readonly InstanceAddress[]>
  /** By destination; one without an answer yet is absent. */
  readonly policies: ReadonlyMap<string, CatalogPolicy>
  /** Our own virtual addresses for a service, for when the catalog gives none. */
  readonly virtualIps: (service: string) => readonly string[]
  /** Whether a virtual address that the catalog has for a service is believed; all are unless given. */
  readonly ownsVirtualIp?: (service: string, ip: string) => boolean
  /** Deny where no intention matches, whatever the catalog says; as the catalog says unless given. */
  readonly insistsOnDeny?: boolean
}

/** What is wrong with one service. */
export interface ServiceProblem {
  readonly service: string
  readonly code: 'HM_CATALOG_ENTRY_UNUSABLE' | 'HM_VIRTUAL_ADDRESS_CONFLICT'
  /** One sentence. */
  readonly message: string
}

/** A compiled snapshot, and what could not be compiled as the catalog says it. */
export interface Compiled {
  readonly snapshot: Snapshot
  readonly problems: readonly ServiceProblem[]
  /** Claims on addresses of instances that are not met, one sentence each. */
  readonly warnings: readonly string[]
  /** The addresses of services that are not followed: who dials one means the mesh, and has the service followed. */
  readonly dormant: ReadonlyMap<string, readonly SocketAddress[]>
  /** How each service was compiled, so that the next compile skips those whose input is the same. */
  readonly parts: ReadonlyMap<string, CompiledService>
}

/** One service with the very input it was compiled from. */
export interface CompiledService {
  readonly source: CatalogService
  readonly virtualIps: readonly string[]
  readonly addresses: readonly SocketAddress[]
  /** The host's node, datacenter and own instances, as one comparable text. */
  readonly host: string
  /** Undefined when the service is broken and never was good. */
  readonly service: MeshService | undefined
  readonly problems: readonly ServiceProblem[]
}

/** Before the first compile. */
export const nothingCompiled: Compiled = {
  snapshot: emptySnapshot,
  problems: [],
  warnings: [],
  dormant: new Map(),
  parts: new Map(),
}

/** With more in one cluster a service keeps its last good instances: no real one has so many, a broken catalog may. */
const MAX_ENDPOINTS = 5_000

/** The next snapshot. `previous` is the outcome of the last compile, or {@link nothingCompiled}. */
export function compile(input: CompileInput, previous: Compiled): Compiled {
  const virtual = shareVirtualIps(input, previous.snapshot)
  const instances = shareInstanceAddresses({ ...input, catalogServices: allClaims(input) })
  const host = hostOf(input)
  const parts = new Map<string, CompiledService>()
  const services = new Map<string, MeshService>()
  for (const [name, source] of input.catalogServices) {
    const part = compileService(
      {
        host,
        name,
        source,
        virtualIps: virtual.byService.get(name) ?? [],
        addresses: instances.byService.get(name) ?? [],
      },
      previous.parts.get(name),
    )
    parts.set(name, part)
    if (part.service !== undefined) services.set(name, part.service)
  }
  const policies = compilePolicies(input, previous.snapshot)
  return {
    snapshot: nextSnapshot(input.datacenter, services, policies, previous.snapshot),
    problems: [...virtual.problems, ...[...parts.values()].flatMap((part) => part.problems)],
    warnings: instances.problems.map(({ message }) => message),
    dormant: dormantOf(instances.byService, input, previous),
    parts,
  }
}

function allClaims(input: CompileInput): InstanceClaims['catalogServices'] {
  const listed = [...(input.listedAddresses ?? [])].map(
    ([name, addresses]) => [name, { addresses }] as const,
  )
  return new Map([...listed, ...input.catalogServices])
}

/** The same object while it says the same. */
function dormantOf(
  byService: ReadonlyMap<string, readonly SocketAddress[]>,
  { catalogServices }: CompileInput,
  previous: Compiled,
): Compiled['dormant'] {
  const dormant = [...byService].filter(([name]) => !catalogServices.has(name))
  return isStructurallyEqual(dormant, [...previous.dormant]) ? previous.dormant : new Map(dormant)
}

/** What of this host decides which endpoints are its own. */
interface Host {
  readonly nodeName: string
  readonly datacenter: string
  /** `<service>/<service id>` of the instances that it runs. */
  readonly instances: ReadonlySet<string>
  /** All of it, to compare. */
  readonly text: string
}

function hostOf({ nodeName, datacenter, localServices }: CompileInput): Host {
  const instances = localServices
    .filter((service) => service.target !== undefined)
    .map((service) => `${service.name}/${service.id}`)
  return {
    nodeName,
    datacenter,
    instances: new Set(instances),
    text: [nodeName, datacenter, ...instances].join(' '),
  }
}

interface ServiceInput {
  readonly host: Host
  readonly name: string
  readonly source: CatalogService
  readonly virtualIps: readonly string[]
  readonly addresses: readonly SocketAddress[]
}

function compileService(
  given: ServiceInput,
  previous: CompiledService | undefined,
): CompiledService {
  const { name, source, virtualIps, addresses } = given
  const host = given.host.text
  if (
    previous !== undefined &&
    previous.source === source &&
    previous.host === host &&
    isStructurallyEqual(previous.virtualIps, virtualIps) &&
    isStructurallyEqual(previous.addresses, addresses)
  )
    return previous
  // Clusters may have instances in common.
  const messages = new Set<string>()
  const compiled = toMeshService(given, (message) => messages.add(message))
  const problems = [...messages].map(
    (message): ServiceProblem => ({ service: name, code: 'HM_CATALOG_ENTRY_UNUSABLE', message }),
  )
  const before = previous?.service
  // A service that broke keeps its instances, but never an address that is another's by now.
  const service =
    compiled ?? (before === undefined ? undefined : { ...before, virtualIps, addresses })
  const isSame = before !== undefined && isStructurallyEqual(before, service)
  return { source, virtualIps, addresses, host, service: isSame ? before : service, problems }
}

function toMeshService(
  { host, name, source, virtualIps, addresses }: ServiceInput,
  report: (message: string) => void,
): MeshService | undefined {
  if (!isServiceName(name) || source.name !== name) {
    report(`Service ${JSON.stringify(name)} is left out: no certificate can carry that name`)
    return undefined
  }
  const count = Math.max(...source.clusters.map(({ endpoints }) => endpoints.length))
  if (count > MAX_ENDPOINTS) {
    report(
      `Service ${name} has ${count} instances; at most ${MAX_ENDPOINTS} are taken, so the last good ones stay`,
    )
    return undefined
  }
  const { protocol, routes, clusters } = source
  const compiled = (cluster: Cluster): Cluster =>
    toCluster(cluster, host, { service: name, addresses, report })
  const opaque = opaqueClusterOf(routes)
  const first = clusters.find((cluster) => cluster.name === opaque) ?? clusters[0]
  const others = clusters.filter((cluster) => cluster !== first)
  return {
    name,
    datacenter: host.datacenter,
    virtualIps,
    protocol,
    routes,
    clusters: [compiled(first), ...others.map(compiled)],
    addresses,
  }
}

/** What is known of the service that a cluster serves. */
interface ClusterContext {
  readonly service: string
  readonly addresses: readonly SocketAddress[]
  readonly report: (message: string) => void
}

function toCluster(cluster: Cluster, host: Host, context: ClusterContext): Cluster {
  const { name, service, subset } = cluster
  let { connectTimeoutMs } = cluster
  if (!(connectTimeoutMs > 0 && Number.isFinite(connectTimeoutMs))) {
    context.report(
      `Service ${context.service} has no usable connect timeout; ${DEFAULT_CONNECT_TIMEOUT_MS} ms is used`,
    )
    connectTimeoutMs = DEFAULT_CONNECT_TIMEOUT_MS
  }
  return {
    name,
    service,
    datacenter: cluster.datacenter === '' ? host.datacenter : cluster.datacenter,
    subset,
    connectTimeoutMs,
    endpoints: toEndpoints(cluster.endpoints, host, context),
  }
}

function toEndpoints(
  listed: readonly Endpoint[],
  host: Host,
  { service, addresses, report }: ClusterContext,
): readonly Endpoint[] {
  const own = new Set(addresses.map(formatAddress))
  const endpointByKey = new Map<string, Endpoint>()
  for (const endpoint of listed) {
    const { key, tunnel, application, weight } = endpoint
    if (!isDialable(tunnel)) {
      report(`Instance ${key} is left out: no host answers at ${formatAddress(tunnel)}`)
      continue
    }
    if (!isServiceName(endpoint.service)) {
      report(
        `Instance ${key} is left out: no certificate can carry the name ${JSON.stringify(endpoint.service)}`,
      )
      continue
    }
    if (endpointByKey.has(key)) {
      report(`Instance ${key} is listed twice; the first one is used`)
      continue
    }
    const datacenter = endpoint.datacenter === '' ? host.datacenter : endpoint.datacenter
    endpointByKey.set(key, {
      ...endpoint,
      datacenter,
      // By an address that is another service's, or nobody's, no instance of this one is meant.
      application:
        application !== undefined &&
        isDialable(application) &&
        (endpoint.service !== service || own.has(formatAddress(application)))
          ? application
          : undefined,
      weight: weight >= 1 && Number.isFinite(weight) ? weight : 1,
      // Another mesh listener on this host (a sidecar) is not ours to deliver for: it is dialed.
      local:
        endpoint.node === host.nodeName &&
        datacenter === host.datacenter &&
        host.instances.has(`${endpoint.service}/${endpoint.id}`),
    })
  }
  // Catalogs list instances in any order; in one order, the same instances are the same service. The
  // balancer finds its groups by this order.
  return [...endpointByKey.values()].toSorted(
    (a, b) => a.priority - b.priority || compareText(a.key, b.key),
  )
}

function isDialable(address: SocketAddress): boolean {
  return isPort(address.port) && !isUndialable(address.ip)
}

interface SharedVirtualIps {
  readonly byService: ReadonlyMap<string, readonly string[]>
  readonly problems: readonly ServiceProblem[]
}

/**
 * Gives each virtual address to one service. The catalog's own win over ours; of two services that
 * claim the same one, the service that has it keeps it, so that a newcomer cannot attract its callers.
 */
function shareVirtualIps(input: CompileInput, previous: Snapshot): SharedVirtualIps {
  const claims = new Map<string, readonly string[]>()
  const { ownsVirtualIp = () => true } = input
  for (const [name, source] of input.catalogServices) {
    const given = source.virtualIps.filter((ip) => ownsVirtualIp(name, ip))
    claims.set(name, given.length > 0 ? given : input.virtualIps(name))
  }
  const ownerByIp = new Map<string, string>()
  const settle = (name: string, ips: readonly string[]): void => {
    for (const ip of ips) if (!ownerByIp.has(ip)) ownerByIp.set(ip, name)
  }
  for (const [name, service] of previous.services) {
    const claimed = claims.get(name) ?? []
    settle(
      name,
      service.virtualIps.filter((ip) => claimed.includes(ip)),
    )
  }
  const names = [...claims.keys()].toSorted(compareText)
  for (const name of names) settle(name, claims.get(name) ?? [])

  const byService = new Map<string, readonly string[]>()
  const problems: ServiceProblem[] = []
  for (const name of names) {
    const claimed = claims.get(name) ?? []
    const own = [...new Set(claimed)].filter((ip) => ownerByIp.get(ip) === name)
    byService.set(name, own.toSorted(compareText))
    for (const ip of claimed)
      if (ownerByIp.get(ip) !== name)
        problems.push({
          service: name,
          code: 'HM_VIRTUAL_ADDRESS_CONFLICT',
          message: `Virtual address ${ip} of service ${name} belongs to service ${ownerByIp.get(ip)}; ${name} does not get it`,
        })
  }
  return { byService, problems }
}

function compilePolicies(
  input: CompileInput,
  previous: Snapshot,
): ReadonlyMap<string, ServicePolicy> {
  const policies = new Map<string, ServicePolicy>()
  for (const { name, target } of input.localServices) {
    const source = input.policies.get(name)
    if (target === undefined || source === undefined || policies.has(name)) continue
    const compiled = compilePolicy(source)
    const policy: ServicePolicy =
      input.insistsOnDeny === true ? { ...compiled, defaultPolicy: 'deny' } : compiled
    const before = previous.policies.get(name)
    policies.set(
      name,
      before !== undefined && isStructurallyEqual(before, policy) ? before : policy,
    )
  }
  return policies
}

/** The rules of one destination, as the data plane evaluates them. `destination` names what they are for. */
export function compilePolicy({
  destination,
  intentions,
  defaultPolicy,
}: CatalogPolicy): ServicePolicy {
  return {
    destination,
    intentions: intentions
      .filter((rule) => rule.destination === destination || rule.destination === '*')
      .toSorted(byPrecedence),
    defaultPolicy,
  }
}

/** Highest first. Of equal ones at most one matches a source, unless two are the same rule: deny first. */
function byPrecedence(left: Intention, right: Intention): number {
  return (
    right.precedence - left.precedence ||
    compareText(left.source, right.source) ||
    Number(left.action === 'allow') - Number(right.action === 'allow')
  )
}

function nextSnapshot(
  datacenter: string,
  services: ReadonlyMap<string, MeshService>,
  policies: ReadonlyMap<string, ServicePolicy>,
  previous: Snapshot,
): Snapshot {
  const isSame =
    previous.datacenter === datacenter &&
    hasSameParts(previous.services, services) &&
    hasSameParts(previous.policies, policies)
  if (isSame) return previous
  return { version: previous.version + 1, datacenter, services, policies }
}

function hasSameParts<T>(left: ReadonlyMap<string, T>, right: ReadonlyMap<string, T>): boolean {
  if (left.size !== right.size) return false
  for (const [key, value] of left) if (right.get(key) !== value) return false
  return true
}

function compareText(left: string, right: string): number {
  if (left === right) return 0
  return left < right ? -1 : 1
}
