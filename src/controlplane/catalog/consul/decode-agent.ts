/**
 * Decodes what Consul's agent on this host says of itself and of the services registered at it. Pure.
 */
import { isRecord, member } from '../../../lib/json-value.ts'
import { canonicalIp } from '../../../model/address.ts'
import type { DefaultPolicy } from '../../../model/intention.ts'
import { isName, malformed } from './decode.ts'

/** What an agent reports about itself. */
export interface AgentSelf {
  readonly nodeName: string
  readonly datacenter: string
  /** The address of this node for the rest of the fleet, canonical; undefined when it is not an IP address. */
  readonly nodeAddress: string | undefined
  readonly version: string
  /** The decision where no intention matches, as this agent is configured; undefined when it is not reported. */
  readonly defaultPolicy: DefaultPolicy | undefined
}

/**
 * Reads `/v1/agent/self`.
 * @throws MeshError HM_CONSUL_ANSWER_MALFORMED
 */
export function decodeAgentSelf(body: unknown): AgentSelf {
  const config = member(body, 'Config')
  const debug = member(body, 'DebugConfig')
  const nodeName = member(config, 'NodeName')
  const datacenter = member(config, 'Datacenter')
  if (typeof nodeName !== 'string' || typeof datacenter !== 'string' || nodeName === '')
    throw malformed('agent', 'Config.NodeName and Config.Datacenter', body)
  const address = member(member(body, 'Member'), 'Addr') ?? member(debug, 'AdvertiseAddrLAN')
  const version = member(config, 'Version')
  return {
    nodeName,
    datacenter,
    nodeAddress: typeof address === 'string' ? canonicalIp(address) : undefined,
    version: typeof version === 'string' ? version : 'unknown',
    defaultPolicy:
      member(debug, 'ACLsEnabled') === false
        ? 'allow'
        : parseDefaultPolicy(member(debug, 'ACLDefaultPolicy')),
  }
}

/** `allow` or `deny`, also from the `X-Consul-Default-Acl-Policy` header; undefined for anything else. */
export function parseDefaultPolicy(value: unknown): DefaultPolicy | undefined {
  return value === 'allow' || value === 'deny' ? value : undefined
}

/** Shares of traffic, in Consul's spelling. */
export interface Weights {
  readonly Passing: number
  readonly Warning: number
}

/** Consul's default. */
export const USUAL_WEIGHTS: Weights = { Passing: 1, Warning: 1 }

/** One service as its own agent lists it. */
export interface AgentService {
  readonly id: string
  readonly name: string
  /** Empty for a plain service. */
  readonly kind: string
  /** Empty: the agent's own address. */
  readonly address: unknown
  readonly port: number
  readonly meta: Readonly<Record<string, unknown>>
  readonly tags: readonly string[]
  readonly weights: Weights
  readonly proxy: {
    readonly destinationName: unknown
    readonly destinationId: unknown
    readonly localAddress: unknown
    readonly localPort: unknown
  }
}

/**
 * Reads `/v1/agent/services`, by ID. Entries without a name are left out: they are not ours.
 * @throws MeshError HM_CONSUL_ANSWER_MALFORMED
 */
export function decodeAgentServices(body: unknown): ReadonlyMap<string, AgentService> {
  if (!isRecord(body)) throw malformed('services of the agent', 'an object', body)
  const services = new Map<string, AgentService>()
  for (const [id, entry] of Object.entries(body)) {
    const name = member(entry, 'Service')
    if (!isName(name)) continue
    const kind = member(entry, 'Kind')
    const port = member(entry, 'Port')
    const proxy = member(entry, 'Proxy')
    services.set(id, {
      id,
      name,
      kind: typeof kind === 'string' ? kind : '',
      address: member(entry, 'Address'),
      port: typeof port === 'number' ? port : 0,
      meta: asRecord(member(entry, 'Meta')),
      tags: textsOf(member(entry, 'Tags')),
      weights: weightsOf(member(entry, 'Weights')),
      proxy: {
        destinationName: member(proxy, 'DestinationServiceName'),
        destinationId: member(proxy, 'DestinationServiceID'),
        localAddress: member(proxy, 'LocalServiceAddress'),
        localPort: member(proxy, 'LocalServicePort'),
      },
    })
  }
  return services
}

function weightsOf(weights: unknown): Weights {
  const share = (key: 'Passing' | 'Warning'): number => {
    const value = member(weights, key)
    return typeof value === 'number' && Number.isInteger(value) ? value : USUAL_WEIGHTS[key]
  }
  return { Passing: share('Passing'), Warning: share('Warning') }
}

function asRecord(value: unknown): Record<string, unknown> {
  return isRecord(value) ? value : {}
}

function textsOf(value: unknown): readonly string[] {
  return Array.isArray(value) ? value.filter((one) => typeof one === 'string') : []
}
