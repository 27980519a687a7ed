/**
 * Decodes where the instances of a service listen, from `/v1/catalog/service/<name>`, and what else is registered on a
 * node, from `/v1/catalog/node/<node>`. Pure.
 *
 * A registration is trusted only for its own name: its address counts only when Consul lists it as an address of the
 * same node. What a proxy's registration says about where its application listens does not count: whoever may register
 * a proxy may write any port there.
 */
import { isRecord, member, quoteForMessage } from '../../../lib/json-value.ts'
import {
  canonicalIp,
  formatAddress,
  isPort,
  isUndialable,
  type SocketAddress,
} from '../../../model/address.ts'
import type { Endpoint } from '../../../model/endpoint.ts'
import { decodeWeight, isName, MAX_INSTANCES, malformed, type Place, shortened } from './decode.ts'

/** An instance of a service as registered, with or without a proxy. */
export interface PlainInstance {
  readonly node: string
  readonly id: string
  readonly address: SocketAddress
  /** Consul's index of its registration: grows with time, the same for all readers. */
  readonly since: number
  /** Consul's index of the last change of its registration: it may have got its port only then. */
  readonly changed: number
  /** Its weights; undefined for Consul's default ones. */
  readonly weights: unknown
}

/** The instances of one service. */
export interface DecodedInstances {
  readonly instances: readonly PlainInstance[]
  /** Why instances were left out, one sentence each. */
  readonly problems: readonly string[]
}

/** Ports of the host itself: SSH, DNS, Consul. A registration of a service there is not accepted. */
const HOST_PORTS: ReadonlySet<number> = new Set([
  22, 53, 8300, 8301, 8302, 8500, 8501, 8502, 8503, 8600,
])

/**
 * Reads `/v1/catalog/service/<service>`; no body means no instance.
 * @throws MeshError HM_CONSUL_ANSWER_MALFORMED
 */
export function decodeInstances(
  service: string,
  body: unknown,
  place: Pick<Place, 'isRemote'> = {},
): DecodedInstances {
  if (body === undefined) return { instances: [], problems: [] }
  if (!Array.isArray(body)) throw malformed(`instances of ${service}`, 'a list', body)
  const instances: PlainInstance[] = []
  const problems: string[] = []
  for (const entry of body.slice(0, MAX_INSTANCES)) {
    const kind = member(entry, 'ServiceKind') ?? ''
    if (kind !== '' || member(entry, 'ServiceName') !== service) continue
    const instance = decodePlain(entry, place.isRemote === true)
    if (typeof instance !== 'string') instances.push(instance)
    else if (instance !== '')
      problems.push(
        `Calls to the address of instance ${quoteForMessage(member(entry, 'Node'))}/${quoteForMessage(member(entry, 'ServiceID'))} of ${service} are not captured: ${instance}`,
      )
  }
  return { instances, problems: shortened(problems) }
}

/** The instance; or why its address is not accepted; or an empty string when it has no port. */
function decodePlain(entry: unknown, isRemote: boolean): PlainInstance | string {
  const node = member(entry, 'Node')
  const id = member(entry, 'ServiceID')
  if (!isName(node) || !isName(id)) return 'its node or its ID has no usable name'
  const ofService = isRemote ? member(member(entry, 'ServiceTaggedAddresses'), 'wan') : undefined
  const ofNode = isRemote ? member(member(entry, 'TaggedAddresses'), 'wan') : undefined
  const text = [
    member(ofService, 'Address'),
    member(entry, 'ServiceAddress'),
    ofNode,
    member(entry, 'Address'),
  ].find((candidate) => typeof candidate === 'string' && candidate !== '')
  const ip = typeof text === 'string' ? canonicalIp(text) : undefined
  const wanPort = member(ofService, 'Port')
  const port = isPort(wanPort) ? wanPort : member(entry, 'ServicePort')
  // Without a port it can be called only by name.
  if (port === 0) return ''
  if (ip === undefined || isUndialable(ip))
    return `its address ${quoteForMessage(text)} is no host's`
  if (!isPort(port)) return `its port is ${quoteForMessage(port)}`
  if (HOST_PORTS.has(port)) return `port ${port} is the host's own`
  if (!nodeAddresses(entry).has(ip))
    return `Consul does not have ${ip} as an address of its node (a tagged address of the node would do)`
  return {
    node,
    id,
    address: { ip, port },
    ...timesOf(entry),
    weights: ownWeights(member(entry, 'ServiceWeights')),
  }
}

/** Consul writes 1 and 1 where no weights were given. */
function ownWeights(weights: unknown): unknown {
  const shares = [member(weights, 'Passing'), member(weights, 'Warning')]
  return shares.every((share) => share === 1 || share === undefined) ? undefined : weights
}

/** All addresses that Consul lists for the node of an entry. */
function nodeAddresses(entry: unknown): ReadonlySet<string> {
  const tagged = member(entry, 'TaggedAddresses')
  const texts = [member(entry, 'Address'), ...(isRecord(tagged) ? Object.values(tagged) : [])]
  return new Set(
    texts.flatMap((text) => (typeof text === 'string' ? (canonicalIp(text) ?? []) : [])),
  )
}

/** A service registered at one port of a node. */
export interface NodeService {
  readonly service: string
  /** Undefined: any address of the node. */
  readonly ip: string | undefined
  readonly port: number
  readonly since: number
  readonly changed: number
}

/** The indexes of a registration and of its last change. */
function timesOf(entry: unknown): { readonly since: number; readonly changed: number } {
  const [created, modified] = [member(entry, 'CreateIndex'), member(entry, 'ModifyIndex')]
  const since = typeof created === 'number' ? created : 0
  return { since, changed: typeof modified === 'number' ? Math.max(modified, since) : since }
}

/** Reads `/v1/catalog/node/<node>`: its services, without proxies and gateways. An unknown node has none. */
export function decodeNodeServices(body: unknown): readonly NodeService[] {
  const services = member(body, 'Services')
  if (!isRecord(services)) return []
  return Object.values(services).flatMap((entry): NodeService[] => {
    const service = member(entry, 'Service')
    const port = member(entry, 'Port')
    if ((member(entry, 'Kind') ?? '') !== '' || typeof service !== 'string' || !isPort(port))
      return []
    const address = member(entry, 'Address')
    return [
      {
        service,
        ip: typeof address === 'string' && address !== '' ? canonicalIp(address) : undefined,
        port,
        ...timesOf(entry),
      },
    ]
  })
}

/** Whether an answer about a node contains an instance of `service`. */
export function isListed(
  service: string,
  { address }: PlainInstance,
  others: readonly NodeService[],
): boolean {
  return others.some((other) => other.service === service && other.port === address.port)
}

/** A registration of another service at the same address. */
export interface Rival {
  readonly service: string
  /** Whether it was certainly there first: an index tells when it was registered, not its address before a change. */
  readonly wasFirst: boolean
}

/** The registration of another service that was at this address first, or may have been; undefined if there is none. */
export function rivalOf(
  service: string,
  { address, since, changed }: PlainInstance,
  others: readonly NodeService[],
): Rival | undefined {
  const rivals = others
    .filter(
      (other) =>
        other.service !== service &&
        other.port === address.port &&
        (other.ip === undefined || other.ip === address.ip) &&
        other.since < changed,
    )
    .map((other) => ({ service: other.service, wasFirst: other.changed < since }))
  return rivals.find(({ wasFirst }) => wasFirst) ?? rivals[0]
}

/**
 * Sets on each endpoint the address and weights of its instance, as registered. Operators set the weights of a service
 * on the service, not on the proxy that a mesh adds.
 * @returns the endpoints, and a sentence for each proxy at whose address no instance is registered
 */
export function placeEndpoints(
  service: string,
  endpoints: readonly Endpoint[],
  instances: readonly PlainInstance[],
): { readonly endpoints: readonly Endpoint[]; readonly problems: readonly string[] } {
  const byId = new Map(instances.map((each) => [`${each.node}/${each.id}`, each]))
  const byPort = new Map(instances.map((each) => [`${each.node}:${each.address.port}`, each]))
  const problems: string[] = []
  const placed = endpoints.map((endpoint) => {
    const claimed = endpoint.application
    const instance =
      byId.get(`${endpoint.node}/${endpoint.id}`) ??
      (claimed === undefined ? undefined : byPort.get(`${endpoint.node}:${claimed.port}`))
    if (claimed !== undefined && instance?.address.port !== claimed.port)
      problems.push(
        `A proxy for instance ${endpoint.key} of ${service} names ${formatAddress(claimed)}, where no instance of ${service} is registered: calls there do not count as calls of ${service}`,
      )
    const weight =
      instance?.weights === undefined
        ? endpoint.weight
        : decodeWeight(instance.weights, endpoint.health)
    return { ...endpoint, application: instance?.address, weight }
  })
  return { endpoints: placed, problems: shortened(problems) }
}
