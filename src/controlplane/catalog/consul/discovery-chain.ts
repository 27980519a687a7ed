/**
 * From Consul's compiled discovery chain of a service to the targets that its traffic goes to. Pure.
 *
 * ```
 *   StartNode -> router --last route--> splitter --heaviest split--> resolver -> Target, Failover.Targets
 * ```
 *
 * Names of nodes and targets are opaque (three parts on Consul 1.8, four on newer): they are looked up,
 * never taken apart. Bytes are not parsed yet, so only one way through routers and splitters can be taken: the
 * route that catches everything, and the split that gets most.
 */
import { MeshError } from '../../../lib/errors.ts'
import { isRecord, member, shown } from '../../../lib/json-value.ts'
import { isServiceName } from '../../../model/spiffe-id.ts'
import { malformed, parseGoDuration } from './decode.ts'

/** Where traffic goes: some instances of one service in one datacenter. */
export interface ChainTarget {
  readonly service: string
  readonly datacenter: string
  /** Whether that is another datacenter than the chain was compiled for. */
  readonly isRemote: boolean
  /** Which instances, in Consul's filter language; undefined means all. */
  readonly filter: string | undefined
  /** Whether instances with warnings are left out as well. */
  readonly onlyPassing: boolean
}

/** What a discovery chain says of a service. */
export interface DecodedChain {
  readonly protocol: string
  readonly connectTimeoutMs: number
  /** The first takes the traffic, the others in their order when it has nobody. Undefined: the service itself. */
  readonly targets: readonly ChainTarget[] | undefined
  /** What cannot be done as the chain says, one sentence each. */
  readonly problems: readonly string[]
}

/** Consul's own defaults, for a service without config entries. */
export const defaultChain: DecodedChain = {
  protocol: 'tcp',
  connectTimeoutMs: 5_000,
  targets: undefined,
  problems: [],
}

/** Targets followed for one service, failover included: each costs a blocking query. */
export const MAX_TARGETS = 8

/** No chain that Consul compiles is as deep: splitters are flattened. */
const MAX_STEPS = 32

/** Longer filters are a mistake; they travel in the query of each request. */
const MAX_FILTER_CHARS = 2_048

/**
 * Reads `/v1/discovery-chain/<service>`. A chain without a start means the service itself.
 * @throws MeshError HM_CONSUL_ANSWER_MALFORMED for what is no chain, HM_CONSUL_CHAIN_UNUSABLE for one that leads nowhere.
 */
export function decodeChain(service: string, body: unknown): DecodedChain {
  const chain = member(body, 'Chain')
  if (!isRecord(chain)) throw malformed(`chain of ${service}`, 'an object "Chain"', body)
  const protocol = member(chain, 'Protocol')
  const common = {
    protocol:
      typeof protocol === 'string' && /^[a-z0-9._-]{1,32}$/.test(protocol)
        ? protocol
        : defaultChain.protocol,
  }
  const start = member(chain, 'StartNode')
  if (start === undefined || start === '') return { ...defaultChain, ...common }
  const resolver = resolverFrom(service, chain, start)
  const timeoutMs = parseGoDuration(member(resolver, 'ConnectTimeout')) ?? 0
  const problems: string[] = []
  return {
    ...common,
    connectTimeoutMs:
      timeoutMs === 0 ? defaultChain.connectTimeoutMs : Math.min(timeoutMs, 300_000),
    targets: targetsOf(service, chain, resolver, problems),
    problems,
  }
}

function resolverFrom(
  service: string,
  chain: Record<string, unknown>,
  start: unknown,
): Record<string, unknown> {
  const nodes = member(chain, 'Nodes')
  const seen = new Set<unknown>()
  let name = start
  while (typeof name === 'string' && seen.size < MAX_STEPS) {
    if (seen.has(name)) throw unusable(service, `it comes back to its node ${shown(name)}`)
    seen.add(name)
    const node = member(nodes, name)
    if (!isRecord(node))
      throw unusable(service, `it names a node ${shown(name)} that it does not have`)
    const resolver = member(node, 'Resolver')
    switch (member(node, 'Type')) {
      case 'resolver':
        if (!isRecord(resolver)) throw unusable(service, `its node ${shown(name)} has no resolver`)
        return resolver
      case 'router':
        name = member(listOf(member(node, 'Routes')).at(-1), 'NextNode')
        break
      case 'splitter':
        name = member(heaviestOf(listOf(member(node, 'Splits'))), 'NextNode')
        break
      default:
        throw unusable(service, `its node ${shown(name)} is of type ${shown(member(node, 'Type'))}`)
    }
  }
  throw unusable(
    service,
    typeof name === 'string' ? `it has more than ${MAX_STEPS} steps` : 'it ends before a resolver',
  )
}

/** Of equal ones the first. */
function heaviestOf(splits: readonly unknown[]): unknown {
  let heaviest: unknown
  let most = Number.NEGATIVE_INFINITY
  for (const split of splits) {
    const weight = member(split, 'Weight')
    // Consul leaves a weight of 0 out.
    const share = typeof weight === 'number' ? weight : 0
    if (share <= most) continue
    most = share
    heaviest = split
  }
  return heaviest
}

function targetsOf(
  service: string,
  chain: Record<string, unknown>,
  resolver: Record<string, unknown>,
  problems: string[],
): readonly ChainTarget[] {
  const primary = targetOf(service, chain, member(resolver, 'Target'), problems)
  if (typeof primary === 'string') throw unusable(service, primary)
  const targets = [primary]
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
  if (!isRecord(target)) return `it names a target ${shown(name)} that it does not have`
  const to = member(target, 'Service')
  const datacenter = member(target, 'Datacenter')
  if (typeof to !== 'string' || !isServiceName(to))
    return `no certificate can carry the name of its target ${shown(to)}`
  if (typeof datacenter !== 'string' || !/^[a-z0-9_-]{1,64}$/.test(datacenter))
    return `its target ${shown(name)} has no usable datacenter`
  for (const key of ['Namespace', 'Partition', 'Peer'])
    if (!['', 'default', undefined].includes(asText(member(target, key))))
      return `its target ${shown(name)} is in another ${key.toLowerCase()}, which is not supported`
  const subset = member(target, 'Subset')
  const filter = member(subset, 'Filter') ?? ''
  if (typeof filter !== 'string' || filter.length > MAX_FILTER_CHARS)
    return `the filter of its target ${shown(name)} is not usable`
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
    filter: filter === '' ? undefined : filter,
    onlyPassing: member(subset, 'OnlyPassing') === true,
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
