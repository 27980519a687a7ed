/**
 * Decodes Consul's compiled discovery chain of a service into routes, clusters and their targets. Pure.
 *
 * ```
 *   StartNode -> router --routes--> splitter --weights--> resolver -> Target, Failover.Targets
 * ```
 *
 * Names of nodes and targets are opaque (three parts on Consul 1.8, four on newer): they are looked up, never parsed.
 * Of a router only the routes that match everything are used: conditions on requests come with HTTP. The heaviest
 * split of the last route, which carries bytes without a protocol, must be usable. Any other leg that is not usable, or
 * for which {@link MAX_TARGETS} leaves no room, is left out: nothing is sent there yet.
 */
import { errorCode, MeshError } from '../../../lib/errors.ts'
import { isRecord, member, quoteForMessage } from '../../../lib/json-value.ts'
import type { Cluster } from '../../../model/cluster.ts'
import {
  catchAllTo,
  DEFAULT_CONNECT_TIMEOUT_MS,
  heaviestOf,
  type Route,
} from '../../../model/route.ts'
import { isServiceName, isSubsetName } from '../../../model/spiffe-id.ts'
import { isPresent } from '../permission.ts'
import { malformed, parseGoDuration } from './decode.ts'

/** A destination of traffic: some instances of one service in one datacenter. */
export interface ChainTarget {
  readonly service: string
  readonly datacenter: string
  /** Whether that is not the datacenter that the chain was compiled for. */
  readonly isRemote: boolean
  /** Consul's name for a subset of the instances; undefined means all. */
  readonly subset: string | undefined
  /** The subset's condition in Consul's filter language; undefined means all. */
  readonly filter: string | undefined
  /** Whether instances with warnings are left out too. */
  readonly onlyPassing: boolean
}

/** A cluster before the instances of its targets have been read. */
export interface ChainCluster extends Omit<Cluster, 'endpoints'> {
  /** The first takes the traffic; the others follow, in order, when it has no instance. */
  readonly targets: readonly [ChainTarget, ...ChainTarget[]]
}

/** A decoded discovery chain. */
export interface DecodedChain {
  readonly protocol: string
  readonly routes: readonly Route[]
  /** The destinations of the routes; the first takes bytes that are not parsed. */
  readonly clusters: readonly [ChainCluster, ...ChainCluster[]]
  /** Parts of the chain that cannot be applied, one sentence each. */
  readonly problems: readonly string[]
}

/** Consul's defaults for a service without config entries: all traffic goes to its own instances. */
export function defaultChain(service: string, datacenter = ''): DecodedChain {
  const itself: ChainTarget = {
    service,
    datacenter,
    isRemote: false,
    subset: undefined,
    filter: undefined,
    onlyPassing: false,
  }
  const cluster = clusterOf([itself], DEFAULT_CONNECT_TIMEOUT_MS)
  return {
    protocol: 'tcp',
    routes: [catchAllTo(cluster.name)],
    clusters: [cluster],
    problems: [],
  }
}

/** Most targets followed for one service, in all its clusters with their failover: each costs a blocking query. */
export const MAX_TARGETS = 8

/** Most legs of splitters examined, over all routes: far more than there can be targets. */
const MAX_LEGS = 100

/** Consul compiles no chain this deep: splitters are flattened. */
const MAX_STEPS = 32

/** Longer filters are a mistake; they are sent in the query of each request. */
const MAX_FILTER_CHARS = 2_048

/**
 * Reads `/v1/discovery-chain/<service>`. A chain without a start means the service itself, in `datacenter`.
 * @throws MeshError HM_CONSUL_ANSWER_MALFORMED if it is not a chain, HM_CONSUL_CHAIN_UNUSABLE if it leads nowhere.
 */
export function decodeChain(service: string, body: unknown, datacenter = ''): DecodedChain {
  const chain = member(body, 'Chain')
  if (!isRecord(chain)) throw malformed(`chain of ${service}`, 'an object "Chain"', body)
  const given = member(chain, 'Protocol')
  const protocol = typeof given === 'string' && /^[a-z0-9._-]{1,32}$/.test(given) ? given : 'tcp'
  const start = member(chain, 'StartNode')
  if (start === undefined || start === '') return { ...defaultChain(service, datacenter), protocol }

  const routes = routesOf(chain, start)
  const problems: string[] = []
  const main = heaviestOf(routes.at(-1) ?? [])?.next
  const first = clusterAt(service, chain, main, problems)
  const clusters: [ChainCluster, ...ChainCluster[]] = [first]
  const nameByNode = new Map<unknown, string>([[main, first.name]])
  let room = MAX_TARGETS - first.targets.length
  for (const { next } of routes.toReversed().flat().slice(0, MAX_LEGS)) {
    const cluster = nameByNode.has(next) ? undefined : clusterUnlessUnusable(service, chain, next)
    if (cluster === undefined) continue
    if (!clusters.some(({ name }) => name === cluster.name)) {
      if (cluster.targets.length > room) continue
      room -= cluster.targets.length
      clusters.push(cluster)
    }
    nameByNode.set(next, cluster.name)
  }
  const catchAll = routes.flatMap((legs): Route[] => {
    const shares = legs.flatMap(({ next, weight }) => {
      const cluster = nameByNode.get(next)
      return cluster === undefined ? [] : [{ cluster, weight }]
    })
    return shares.length === 0 ? [] : [{ match: { kind: 'any' }, clusters: shares }]
  })
  return { protocol, routes: catchAll, clusters, problems }
}

/** One branch of a splitter. */
interface Leg {
  /** The name of a node, if the chain is valid. */
  readonly next: unknown
  readonly weight: number
}

/** The legs of each route that matches everything. Consul always ends a router with such a route. */
function routesOf(chain: unknown, start: unknown): readonly (readonly Leg[])[] {
  const node = nodeAt(chain, start)
  if (member(node, 'Type') !== 'router') return [legsOf(chain, start)]
  const routes = listOf(member(node, 'Routes'))
  return routes
    .filter((route, position) => position === routes.length - 1 || matchesAll(route))
    .map((route) => legsOf(chain, member(route, 'NextNode')))
}

/** Whether a route has no condition except the path prefix that every path has. */
function matchesAll(route: unknown): boolean {
  const http = member(member(member(route, 'Definition'), 'Match'), 'HTTP')
  if (!isPresent(http)) return true
  return (
    isRecord(http) &&
    Object.entries(http).every(([key, value]) =>
      key === 'PathPrefix' ? value === '/' || value === '' : !isPresent(value),
    )
  )
}

function legsOf(chain: unknown, name: unknown): readonly Leg[] {
  const node = nodeAt(chain, name)
  if (member(node, 'Type') !== 'splitter') return [{ next: name, weight: 1 }]
  return listOf(member(node, 'Splits')).map((split) => {
    // Consul omits a weight of 0.
    const weight = member(split, 'Weight')
    return {
      next: member(split, 'NextNode'),
      weight: typeof weight === 'number' && Number.isFinite(weight) ? Math.max(0, weight) : 0,
    }
  })
}

function nodeAt(chain: unknown, name: unknown): unknown {
  return typeof name === 'string' ? member(member(chain, 'Nodes'), name) : undefined
}

/** The cluster of the resolver at a node, or behind it. */
function clusterAt(
  service: string,
  chain: Record<string, unknown>,
  node: unknown,
  problems: string[],
): ChainCluster {
  const resolver = resolverFrom(service, chain, node)
  const timeoutMs = parseGoDuration(member(resolver, 'ConnectTimeout')) ?? 0
  return clusterOf(
    targetsOf(service, chain, resolver, problems),
    timeoutMs === 0 ? DEFAULT_CONNECT_TIMEOUT_MS : Math.min(timeoutMs, 300_000),
  )
}

function clusterUnlessUnusable(
  service: string,
  chain: Record<string, unknown>,
  node: unknown,
): ChainCluster | undefined {
  try {
    return clusterAt(service, chain, node, [])
  } catch (error) {
    if (errorCode(error) === 'HM_CONSUL_CHAIN_UNUSABLE') return undefined
    throw error
  }
}

function clusterOf(targets: ChainCluster['targets'], connectTimeoutMs: number): ChainCluster {
  const [{ service, datacenter, isRemote, subset }] = targets
  const part = subset === undefined ? '' : `:${subset}`
  return {
    name: `${isRemote ? `${datacenter}/` : ''}${service}${part}`,
    service,
    datacenter,
    subset,
    connectTimeoutMs,
    targets,
  }
}

function resolverFrom(
  service: string,
  chain: Record<string, unknown>,
  start: unknown,
): Record<string, unknown> {
  const seen = new Set<unknown>()
  let name = start
  while (typeof name === 'string' && seen.size < MAX_STEPS) {
    if (seen.has(name))
      throw unusable(service, `it comes back to its node ${quoteForMessage(name)}`)
    seen.add(name)
    const node = nodeAt(chain, name)
    if (!isRecord(node))
      throw unusable(service, `it names a node ${quoteForMessage(name)} that it does not have`)
    const resolver = member(node, 'Resolver')
    switch (member(node, 'Type')) {
      case 'resolver':
        if (!isRecord(resolver))
          throw unusable(service, `its node ${quoteForMessage(name)} has no resolver`)
        return resolver
      case 'router':
        name = member(listOf(member(node, 'Routes')).at(-1), 'NextNode')
        break
      case 'splitter':
        name = heaviestOf(legsOf(chain, name))?.next
        break
      default:
        throw unusable(
          service,
          `its node ${quoteForMessage(name)} is of type ${quoteForMessage(member(node, 'Type'))}`,
        )
    }
  }
  throw unusable(
    service,
    typeof name === 'string' ? `it has more than ${MAX_STEPS} steps` : 'it ends before a resolver',
  )
}

function targetsOf(
  service: string,
  chain: Record<string, unknown>,
  resolver: Record<string, unknown>,
  problems: string[],
): ChainCluster['targets'] {
  const primary = targetOf(service, chain, member(resolver, 'Target'), problems)
  if (typeof primary === 'string') throw unusable(service, primary)
  const targets: [ChainTarget, ...ChainTarget[]] = [primary]
  const failover = listOf(member(member(resolver, 'Failover'), 'Targets'))
  for (const name of failover.slice(0, MAX_TARGETS - 1)) {
    const target = targetOf(service, chain, name, problems)
    if (typeof target === 'string')
      problems.push(`Failover of ${service} leaves one out: ${target}`)
    else targets.push(target)
  }
  if (failover.length >= MAX_TARGETS)
    problems.push(
      `Failover of ${service} has ${failover.length} targets; the first ${MAX_TARGETS - 1} are used`,
    )
  return targets
}

/** The target, or the reason why it cannot be used. */
function targetOf(
  service: string,
  chain: Record<string, unknown>,
  name: unknown,
  problems: string[],
): ChainTarget | string {
  const target = typeof name === 'string' ? member(member(chain, 'Targets'), name) : undefined
  if (!isRecord(target)) return `it names a target ${quoteForMessage(name)} that it does not have`
  const to = member(target, 'Service')
  const datacenter = member(target, 'Datacenter')
  if (typeof to !== 'string' || !isServiceName(to))
    return `no certificate can carry the name of its target ${quoteForMessage(to)}`
  if (typeof datacenter !== 'string' || !/^[a-z0-9_-]{1,64}$/.test(datacenter))
    return `its target ${quoteForMessage(name)} has no usable datacenter`
  for (const key of ['Namespace', 'Partition', 'Peer'])
    if (!['', 'default', undefined].includes(asText(member(target, key))))
      return `its target ${quoteForMessage(name)} is in another ${key.toLowerCase()}, which is not supported`
  const subset = member(target, 'ServiceSubset') ?? ''
  if (typeof subset !== 'string' || (subset !== '' && !isSubsetName(subset)))
    return `its target ${quoteForMessage(name)} has no usable subset`
  const instances = member(target, 'Subset')
  const filter = member(instances, 'Filter') ?? ''
  if (typeof filter !== 'string' || filter.length > MAX_FILTER_CHARS)
    return `the filter of its target ${quoteForMessage(name)} is not usable`
  const home = member(chain, 'Datacenter')
  const isRemote = typeof home === 'string' && datacenter !== home
  const mode = member(member(target, 'MeshGateway'), 'Mode')
  if (isRemote && (mode === 'local' || mode === 'remote'))
    problems.push(
      `Target ${to} in ${datacenter} of ${service} asks for a mesh gateway, which is not supported: its instances are dialed directly`,
    )
  return {
    service: to,
    datacenter,
    isRemote,
    subset: subset === '' ? undefined : subset,
    filter: filter === '' ? undefined : filter,
    onlyPassing: member(instances, 'OnlyPassing') === true,
  }
}

function asText(value: unknown): string | undefined {
  if (value === undefined || value === null) return undefined
  return typeof value === 'string' ? value : 'other'
}

function listOf(value: unknown): readonly unknown[] {
  return Array.isArray(value) ? value : []
}

function unusable(service: string, why: string): MeshError {
  return new MeshError(
    'HM_CONSUL_CHAIN_UNUSABLE',
    `Cannot follow the discovery chain of ${service}: ${why}`,
    { hint: `Look at it with: curl $CONSUL_HTTP_ADDR/v1/discovery-chain/${service}` },
  )
}
