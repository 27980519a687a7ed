/**
 * Decodes Consul's JSON into the model. Pure. Trusts none of it: anyone who may register a service may have written
 * any part.
 *
 * Two kinds of bad input. An answer of the wrong shape is rejected as a whole (HM_CONSUL_ANSWER_MALFORMED), and the
 * last good one stays. One bad instance in a good answer is left out and reported in `problems`: the service keeps its
 * other instances. Intentions are different: see decode-intentions.ts. What an agent says of itself: decode-agent.ts.
 */
import { MeshError } from '../../../lib/errors.ts'
import { isRecord, member, quoteForMessage } from '../../../lib/json-value.ts'
import { canonicalIp, isLoopback, isPort, isUndialable } from '../../../model/address.ts'
import type { Endpoint, Health } from '../../../model/endpoint.ts'
import { isServiceName } from '../../../model/spiffe-id.ts'

/** Most instances of one service; decodeHealth() rejects an answer with more, decodeInstances() ignores the rest. */
export const MAX_INSTANCES = 5_000

/** Most problems listed one by one; the rest is counted. */
const MAX_PROBLEMS = 10

/** What the decoder needs to judge an instance. Undefined: not known, so not checked. */
export interface Place {
  /** This host's name in Consul: only its own instances may have loopback addresses. */
  readonly node?: string | undefined
  /** An answer from another datacenter is rejected. */
  readonly datacenter?: string | undefined
  /** Whether that datacenter is not this host's: then `wan` addresses are used, and loopback addresses rejected. */
  readonly isRemote?: boolean | undefined
}

/** The instances of one service. */
export interface DecodedHealth {
  readonly endpoints: readonly Endpoint[]
  /** Consul's virtual addresses for the service, sorted. */
  readonly virtualIps: readonly string[]
  /** For instances that do not pass: the worst check and its output, by key. */
  readonly failing: ReadonlyMap<string, string>
  /** Keys of instances on nodes whose agents are unreachable. */
  readonly awayKeys: ReadonlySet<string>
  /** Why instances were left out, one sentence each. */
  readonly problems: readonly string[]
}

/**
 * Reads `/v1/health/connect/<service>`.
 * @throws MeshError HM_CONSUL_ANSWER_MALFORMED, HM_CONSUL_ANSWER_TOO_LARGE, HM_CONSUL_DATACENTER_WRONG
 */
export function decodeHealth(service: string, body: unknown, place: Place = {}): DecodedHealth {
  if (!Array.isArray(body)) throw malformed(`instances of ${service}`, 'a list', body)
  if (body.length > MAX_INSTANCES)
    throw new MeshError(
      'HM_CONSUL_ANSWER_TOO_LARGE',
      `Consul names ${body.length} instances of ${service}; the limit is ${MAX_INSTANCES}`,
    )
  const problems: string[] = []
  const bestByKey = new Map<string, Instance>()
  const virtualIps = new Set<string>()
  for (const [position, entry] of body.entries()) {
    const instance = decodeInstance(service, entry, place)
    if (typeof instance === 'string') {
      problems.push(`Instance ${nameOf(entry, position)} of ${service} is left out: ${instance}`)
      continue
    }
    const { key } = instance.endpoint
    const other = bestByKey.get(key)
    if (other !== undefined)
      problems.push(
        `Two proxies stand for instance ${key} of ${service}: the healthier, then the newer one is used`,
      )
    if (other === undefined || isBetter(instance, other)) bestByKey.set(key, instance)
    if (instance.virtualIp !== undefined) virtualIps.add(instance.virtualIp)
  }
  return {
    endpoints: [...bestByKey.values()]
      .map((instance) => instance.endpoint)
      .toSorted((a, b) => (a.key < b.key ? -1 : 1)),
    virtualIps: [...virtualIps].toSorted(),
    failing: new Map(
      [...bestByKey].flatMap(([key, { failing }]) =>
        failing === undefined ? [] : [[key, failing]],
      ),
    ),
    awayKeys: new Set([...bestByKey].flatMap(([key, { isAway }]) => (isAway ? [key] : []))),
    problems: shortened(problems),
  }
}

/** Chooses between two proxies of one instance: a sidecar and hostmesh, while a host migrates between them. */
function isBetter(one: Instance, other: Instance): boolean {
  const difference = HEALTH_RANK[one.endpoint.health] - HEALTH_RANK[other.endpoint.health]
  return difference === 0 ? one.modifyIndex >= other.modifyIndex : difference > 0
}

const HEALTH_RANK: Readonly<Record<Health, number>> = { passing: 2, warning: 1, critical: 0 }

/** Milliseconds of a Go duration (`1m30s`, `1.5s`, or nanoseconds as a number); undefined for anything else. */
export function parseGoDuration(value: unknown): number | undefined {
  if (typeof value === 'number')
    return Number.isFinite(value) && value >= 0 ? value / 1_000_000 : undefined
  if (typeof value !== 'string' || !/^(\d+(\.\d+)?(ns|us|µs|ms|s|m|h))+$/.test(value))
    return undefined
  let total = 0
  for (const [, amount, unit = ''] of value.matchAll(/(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)/g))
    total += Number(amount) * (MS_BY_GO_UNIT[unit] ?? 0)
  return total
}

const MS_BY_GO_UNIT: Record<string, number> = {
  ns: 1e-6,
  us: 1e-3,
  µs: 1e-3,
  ms: 1,
  s: 1_000,
  m: 60_000,
  h: 3_600_000,
}

/** Levels of `/v1/catalog/services` that are read: the names, but not their tags, which others may make any size. */
export const NAME_LEVELS = 1

/**
 * The names in `/v1/catalog/services` that can be mesh services, sorted.
 * @throws MeshError HM_CONSUL_ANSWER_MALFORMED
 */
export function decodeServiceNames(body: unknown): readonly string[] {
  if (!isRecord(body)) throw malformed('service names', 'an object', body)
  return Object.keys(body).filter(isServiceName).toSorted()
}

/** Which instances accept Connect for a name. */
export interface DecodedConnect {
  /** Whether there are any. */
  readonly isMesh: boolean
  /** Consul's virtual addresses for the service, sorted; at most {@link MAX_VIRTUAL_IPS}. */
  readonly virtualIps: readonly string[]
}

/** Consul gives a service one address, and may show an older one on instances that it has not updated since. */
const MAX_VIRTUAL_IPS = 4

/**
 * Reads `/v1/catalog/connect/<service>`. Only entries that represent this service alone supply an address.
 * @throws MeshError HM_CONSUL_ANSWER_MALFORMED
 */
export function decodeConnect(service: string, body: unknown): DecodedConnect {
  if (!Array.isArray(body)) throw malformed(`who answers for ${service}`, 'a list', body)
  const virtualIps = new Set<string>()
  for (const entry of body) {
    if (!standsFor(service, entry)) continue
    const ip = decodeVirtualIp(member(entry, 'ServiceTaggedAddresses'))
    if (ip !== undefined) virtualIps.add(ip)
  }
  return {
    isMesh: body.length > 0,
    virtualIps: [...virtualIps].toSorted().slice(0, MAX_VIRTUAL_IPS),
  }
}

/** Whether it is the service itself, connect-native, or a proxy of it; not a gateway, which serves others too. */
function standsFor(service: string, entry: unknown): boolean {
  const kind = member(entry, 'ServiceKind') ?? ''
  if (kind === '')
    return (
      member(member(entry, 'ServiceConnect'), 'Native') === true &&
      member(entry, 'ServiceName') === service
    )
  return (
    kind === 'connect-proxy' &&
    member(member(entry, 'ServiceProxy'), 'DestinationServiceName') === service
  )
}

interface Instance {
  readonly endpoint: Endpoint
  readonly failing: string | undefined
  readonly isAway: boolean
  readonly virtualIp: string | undefined
  readonly modifyIndex: number
}

/** The instance, or the reason why it cannot be used. */
function decodeInstance(service: string, entry: unknown, place: Place): Instance | string {
  const node = member(entry, 'Node')
  const registration = member(entry, 'Service')
  if (!isRecord(node) || !isRecord(registration)) return 'its entry has no Node or no Service'
  if (place.datacenter !== undefined && member(node, 'Datacenter') !== place.datacenter)
    throw new MeshError(
      'HM_CONSUL_DATACENTER_WRONG',
      `Consul answers for datacenter ${quoteForMessage(member(node, 'Datacenter'))}, not "${place.datacenter}"`,
      {
        hint: 'Set `datacenter` to the datacenter of the agent, or point `catalog.address` at another',
      },
    )
  const nodeName = member(node, 'Node')
  if (!isName(nodeName) || nodeName.includes('/')) return 'its node has no usable name'
  const who = decodeDestination(service, registration)
  if (typeof who === 'string') return who
  const isRemote = place.isRemote === true
  const wan = isRemote ? member(member(registration, 'TaggedAddresses'), 'wan') : undefined
  const ip = decodeAddress(registration, node, isRemote)
  if (typeof ip === 'string') return ip
  if (isLoopback(ip.ip) && (isRemote || (place.node !== undefined && nodeName !== place.node)))
    return `it is on another host, at the loopback address ${ip.ip}`
  const wanPort = member(wan, 'Port')
  const port = isPort(wanPort) ? wanPort : member(registration, 'Port')
  if (!isPort(port)) return `its port is ${quoteForMessage(port)}`
  const health = worstHealth(member(entry, 'Checks'))
  if (health === undefined) return 'its Checks are not a list'
  const tunnel = { ip: ip.ip, port }
  const applicationPort = who.isNative ? port : who.localPort
  const modifyIndex = member(registration, 'ModifyIndex')
  return {
    endpoint: {
      key: isRemote ? `${place.datacenter ?? ''}/${nodeName}/${who.id}` : `${nodeName}/${who.id}`,
      service,
      datacenter: place.datacenter ?? nodeDatacenter(node),
      priority: 0,
      id: who.id,
      node: nodeName,
      tunnel,
      // From the proxy's registration; instances.ts takes from the catalog whether an instance listens there.
      application: isPort(applicationPort) ? { ip: ip.ip, port: applicationPort } : undefined,
      health,
      weight: decodeWeight(member(registration, 'Weights'), health),
      local: false,
    },
    virtualIp: decodeVirtualIp(member(registration, 'TaggedAddresses')),
    failing: worstCheck(member(entry, 'Checks'), health),
    isAway: isAgentAway(member(entry, 'Checks')),
    modifyIndex: typeof modifyIndex === 'number' ? modifyIndex : 0,
  }
}

/** Which instance of the service the registration represents. */
function decodeDestination(
  service: string,
  registration: Record<string, unknown>,
): { id: string; isNative: boolean; localPort: unknown } | string {
  const ownId = member(registration, 'ID')
  if (!isName(ownId))
    return 'its ID is missing, longer than 255 characters or has control characters'
  const kind = member(registration, 'Kind') ?? ''
  if (kind === '') {
    if (member(member(registration, 'Connect'), 'Native') !== true)
      return 'it is neither a proxy nor connect-native'
    if (member(registration, 'Service') !== service) return 'it is an instance of another service'
    return { id: ownId, isNative: true, localPort: undefined }
  }
  if (kind !== 'connect-proxy') return `kind ${quoteForMessage(kind)} is not supported`
  const proxy = member(registration, 'Proxy')
  if (member(proxy, 'DestinationServiceName') !== service) return 'it is a proxy of another service'
  const destinationId = member(proxy, 'DestinationServiceID')
  const id = destinationId === undefined || destinationId === '' ? ownId : destinationId
  if (!isName(id)) return 'the ID of its destination is not usable'
  return { id, isNative: false, localPort: member(proxy, 'LocalServicePort') }
}

function nodeDatacenter(node: Record<string, unknown>): string {
  const datacenter = member(node, 'Datacenter')
  return typeof datacenter === 'string' ? datacenter : ''
}

/** Same order as Consul's own proxies: service before node; from another datacenter, `wan` first. */
function decodeAddress(
  registration: Record<string, unknown>,
  node: Record<string, unknown>,
  isRemote: boolean,
): { ip: string } | string {
  const ofService = member(member(registration, 'TaggedAddresses'), 'wan')
  const text = [
    isRemote ? member(ofService, 'Address') : undefined,
    member(registration, 'Address'),
    isRemote ? member(member(node, 'TaggedAddresses'), 'wan') : undefined,
    member(node, 'Address'),
  ].find((candidate) => candidate !== undefined && candidate !== null && candidate !== '')
  if (typeof text !== 'string') return 'it has no address'
  const ip = canonicalIp(text)
  if (ip === undefined)
    return `its address ${quoteForMessage(text)} is not an IP address (host names are not resolved)`
  if (isUndialable(ip)) return `its address ${ip} is no host's`
  return { ip }
}

/** The worst of all checks of node and service; undefined when they are not a list. */
export function worstHealth(checks: unknown): Health | undefined {
  if (checks === undefined || checks === null) return 'passing'
  if (!Array.isArray(checks)) return undefined
  let worst: Health = 'passing'
  for (const check of checks) {
    const status = member(check, 'Status')
    if (status === 'passing') continue
    // An unknown status means that something is wrong.
    if (status !== 'warning') return 'critical'
    worst = 'warning'
  }
  return worst
}

/** Whether Consul's servers cannot reach the node's agent: they have one check for that on every node. */
function isAgentAway(checks: unknown): boolean {
  return (
    Array.isArray(checks) &&
    checks.some(
      (check) =>
        member(check, 'CheckID') === 'serfHealth' && member(check, 'Status') === 'critical',
    )
  )
}

/** Most characters of a check's name and output. */
const MAX_CHECK_NAME = 64
const MAX_CHECK_OUTPUT = 200

/** The first check that determines the health, in one line for a terminal; undefined when the health is passing. */
export function worstCheck(checks: unknown, health: Health): string | undefined {
  if (health === 'passing' || !Array.isArray(checks)) return undefined
  const check: unknown = checks.find((each) => {
    const status = member(each, 'Status')
    return health === 'warning'
      ? status === 'warning'
      : status !== 'passing' && status !== 'warning'
  })
  const name = oneLine(member(check, 'Name'), MAX_CHECK_NAME)
  const output = oneLine(member(check, 'Output'), MAX_CHECK_OUTPUT)
  const title = name === '' ? oneLine(member(check, 'CheckID'), MAX_CHECK_NAME) : name
  return output === '' ? title : `${title}: ${output}`
}

/** Check output is arbitrary text: removes everything that could control a terminal. */
function oneLine(text: unknown, most: number): string {
  if (typeof text !== 'string') return ''
  // Shortened before the search: an output may have megabytes.
  const line = text
    .slice(0, most * 4)
    .replace(/[\p{C}\p{Z}]+/gu, ' ')
    .trim()
  return line.length > most ? `${line.slice(0, most)}…` : line
}

/** The weight of an instance with that health: at least 1. */
export function decodeWeight(weights: unknown, health: Health): number {
  const weight = member(weights, health === 'warning' ? 'Warning' : 'Passing')
  if (typeof weight !== 'number' || !Number.isFinite(weight)) return 1
  return Math.min(65_535, Math.max(1, Math.round(weight)))
}

/** Consul assigns virtual addresses from 240.0.0.0/4 only; any other would divert traffic that is not ours. */
function decodeVirtualIp(taggedAddresses: unknown): string | undefined {
  const text = member(member(taggedAddresses, 'consul-virtual'), 'Address')
  const ip = typeof text === 'string' ? canonicalIp(text) : undefined
  if (ip === undefined || ip.includes(':') || isUndialable(ip)) return undefined
  return Number(ip.slice(0, ip.indexOf('.'))) >= 240 ? ip : undefined
}

/** Whether it can be the name of a node or the ID of a service. */
export function isName(value: unknown): value is string {
  return (
    typeof value === 'string' && value.length >= 1 && value.length <= 255 && !/\p{Cc}/u.test(value)
  )
}

function nameOf(entry: unknown, position: number): string {
  const node = member(member(entry, 'Node'), 'Node')
  const id = member(member(entry, 'Service'), 'ID')
  return isName(node) && isName(id) ? `${node}/${id}` : `number ${position}`
}

/** The error for an answer of the wrong shape. */
export function malformed(what: string, expected: string, got: unknown): MeshError {
  return new MeshError(
    'HM_CONSUL_ANSWER_MALFORMED',
    `Answer of Consul about ${what} should have ${expected}, not ${quoteForMessage(got)}`,
  )
}

/** The first problems, and the number of the rest. */
export function shortened(problems: readonly string[]): readonly string[] {
  if (problems.length <= MAX_PROBLEMS) return problems
  return [
    ...problems.slice(0, MAX_PROBLEMS),
    `${problems.length - MAX_PROBLEMS} more of the same kind`,
  ]
}
