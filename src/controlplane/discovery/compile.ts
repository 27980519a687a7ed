/**
 * Compiles all data about the mesh that this node has into the snapshot that the data plane acts on.
 *
 * Pure and total: equal input yields an equal snapshot, and bad input never throws. A fault of one service affects only
 * that service: it is reported in `problems`, and the last good version of the service stays if there is one. Unchanged
 * parts keep their object identity, and a compile that changes nothing returns the snapshot it was given:
 * diffSnapshots() relies on both.
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

/** The input of a snapshot. */
export interface CompileInput {
  readonly datacenter: string
  /** This host's node name in the catalog. */
  readonly nodeName: string
  readonly localServices: readonly LocalService[]
  /** By name; a service without an answer so far is absent. */
  readonly catalogServices: ReadonlyMap<string, CatalogService>
  /** Instance addresses from the catalog's list, used for services that are not followed. */
  readonly listedAddresses?: ReadonlyMap<string, readonly InstanceAddress[]>
  /** By destination; one without an answer so far is absent. */
  readonly policies: ReadonlyMap<string, CatalogPolicy>
  /** Our own virtual addresses for a service, used when the catalog has none. */
  readonly virtualIps: (service: string) => readonly string[]
  /** Whether a virtual address from the catalog is accepted for a service; all are by default. */
  readonly ownsVirtualIp?: (service: string, ip: string) => boolean
  /** Deny where no intention matches, whatever the catalog's default; by default the catalog decides. */
  readonly forcesDefaultDeny?: boolean
}

/** A problem of one service. */
export interface ServiceProblem {
  readonly service: string
  readonly code: 'HM_CATALOG_ENTRY_UNUSABLE' | 'HM_VIRTUAL_ADDRESS_CONFLICT'
  /** One sentence. */
  readonly message: string
}

/** A compiled snapshot, and the parts of the catalog that could not be used. */
export interface Compiled {
  readonly snapshot: Snapshot
  readonly problems: readonly ServiceProblem[]
  /** Rejected claims on instance addresses, one sentence each. */
  readonly warnings: readonly string[]
  /** The addresses of services that are not followed: dialing one means the mesh, and has its service followed. */
  readonly dormant: ReadonlyMap<string, readonly SocketAddress[]>
  /** How each service was compiled, so that the next compile skips services with the same input. */
  readonly parts: ReadonlyMap<string, CompiledService>
}

/** One service with the input it was compiled from. */
export interface CompiledService {
  readonly source: CatalogService
  readonly virtualIps: readonly string[]
  readonly addresses: readonly SocketAddress[]
  /** The host's node, datacenter and own instances, as one comparable text. */
  readonly host: string
  /** Undefined when the service is unusable and there is no last good version. */
  readonly service: MeshService | undefined
  readonly problems: readonly ServiceProblem[]
}

/** The state before the first compile. */
export const nothingCompiled: Compiled = {
  snapshot: emptySnapshot,
  problems: [],
  warnings: [],
  dormant: new Map(),
  parts: new Map(),
}

/**
 * Limit of endpoints in one cluster; above it the service keeps its last good instances. No real service has so many, a
 * broken catalog may.
 */
const MAX_ENDPOINTS = 5_000

/** Compiles the next snapshot. `previous` is the result of the last compile, or {@link nothingCompiled}. */
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

/** Returns the previous object while the content is equal. */
function dormantOf(
  byService: ReadonlyMap<string, readonly SocketAddress[]>,
  { catalogServices }: CompileInput,
  previous: Compiled,
): Compiled['dormant'] {
  const dormant = [...byService].filter(([name]) => !catalogServices.has(name))
  return isStructurallyEqual(dormant, [...previous.dormant]) ? previous.dormant : new Map(dormant)
}

/** The data of this host that decide which endpoints are local. */
interface Host {
  readonly nodeName: string
  readonly datacenter: string
  /** `<service>/<service id>` of the instances of this host. */
  readonly instances: ReadonlySet<string>
  /** All of it as text, for comparison. */
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
  // Clusters may share instances, so the same message may occur twice.
  const messages = new Set<string>()
  const compiled = toMeshService(given, (message) => messages.add(message))
  const problems = [...messages].map(
    (message): ServiceProblem => ({ service: name, code: 'HM_CATALOG_ENTRY_UNUSABLE', message }),
  )
  const before = previous?.service
  // An unusable service keeps its instances, but no address that belongs to another service now.
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

/** The service that a cluster belongs to. */
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
      // An address that belongs to another service, or to none, does not identify an instance of this one.
      application:
        application !== undefined &&
        isDialable(application) &&
        (endpoint.service !== service || own.has(formatAddress(application)))
          ? application
          : undefined,
      weight: weight >= 1 && Number.isFinite(weight) ? weight : 1,
      // An instance behind another mesh listener on this host (a sidecar) is not delivered to, but dialed.
      local:
        endpoint.node === host.nodeName &&
        datacenter === host.datacenter &&
        host.instances.has(`${endpoint.service}/${endpoint.id}`),
    })
  }
  // Catalogs list instances in any order; sorted, the same instances make an equal service. The balancer finds its
  // groups by this order.
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
 * Assigns each virtual address to one service. Addresses from the catalog take precedence over ours; of two services
 * that claim the same one, the present owner keeps it, so that a new service cannot attract its callers.
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
      input.forcesDefaultDeny === true ? { ...compiled, defaultPolicy: 'deny' } : compiled
    const before = previous.policies.get(name)
    policies.set(
      name,
      before !== undefined && isStructurallyEqual(before, policy) ? before : policy,
    )
  }
  return policies
}

/** The rules of one destination, `destination`, as the data plane evaluates them. */
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
