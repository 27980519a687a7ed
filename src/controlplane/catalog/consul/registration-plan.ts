/**
 * Decides what to register and what to deregister, given what the agent has. Pure.
 *
 * Our registrations are recognized by marks in `Meta` together with the tunnel port, so that a daemon finds what it
 * left behind before a crash, and never changes what an operator, or another daemon, registered.
 */
import {
  formatAddress,
  isLoopback,
  isUndialable,
  type SocketAddress,
} from '../../../model/address.ts'
import type { Health } from '../../../model/endpoint.ts'
import type { LocalService } from '../../../model/service.ts'
import { type AgentService, USUAL_WEIGHTS, type Weights } from './decode-agent.ts'

/** A plain service to register. */
export interface PlainRegistration {
  readonly name: string
  readonly id: string
  readonly port: number
  readonly meta: Readonly<Record<string, string>>
  /** The address where the agent checks that the application listens. */
  readonly checkAddress: string
}

/** The body of a proxy's registration, with Consul's keys; only fields that Consul 1.8 supports. */
export interface ConsulProxyRegistration {
  readonly Kind: 'connect-proxy'
  readonly Name: string
  readonly ID: string
  /** Absent: the agent's own address. */
  readonly Address?: string
  readonly Port: number
  /** The tags of the plain service, as a sidecar has them. */
  readonly Tags?: readonly string[]
  /** The weights of the plain service; absent if they are Consul's default ones. */
  readonly Weights?: Weights
  readonly Meta: Readonly<Record<string, string>>
  readonly Proxy: {
    readonly DestinationServiceName: string
    readonly DestinationServiceID: string
    readonly LocalServiceAddress: string
    readonly LocalServicePort: number
  }
  readonly Checks: readonly Readonly<Record<string, string>>[]
}

/** The difference between the wanted registrations and those at the agent. */
export interface RegistrationPlan {
  readonly plain: readonly PlainRegistration[]
  readonly proxies: readonly ConsulProxyRegistration[]
  /** IDs of services that the operator deregistered: their proxies stay, but must be critical. */
  readonly withdrawn: ReadonlySet<string>
  /** IDs to deregister, in order. */
  readonly remove: readonly string[]
  /** What an operator should check, one sentence each. */
  readonly problems: readonly string[]
}

/** Marks a proxy as ours; its value is the version of the tunnel protocol. */
const PROXY_MARK = 'hostmesh-proto'

/** Marks a plain service as ours; its value is the tunnel port. */
const PLAIN_MARK = 'hostmesh-registered'

/** On a proxy: the tunnel port of the host, whatever port the proxy itself has. */
const HOST_MARK = 'hostmesh-tunnel-port'

/** On a proxy: who registered the plain service, `hostmesh` or `operator`. */
const OWNER_MARK = 'hostmesh-plain'

/**
 * On a proxy: `daemon` means that the daemon reports the health of its service. A proxy without the mark is from an
 * earlier version, and has an alias check too.
 */
const HEALTH_MARK = 'hostmesh-health'

/**
 * On a proxy: where `/metrics` of this host is, if it can be reached from others: a port at the address of the node, or
 * an address with port. docs/metrics.md has the Prometheus configuration that reads it.
 */
const METRICS_MARK = 'hostmesh-metrics'

/** Without an update for this long the proxy is critical. */
const TTL = '30s'

/** The agent deregisters a proxy that has been critical for this long. A daemon that is up registers it again. */
const FORGET_AFTER = '72h'

/** The ID of a service's proxy. */
export function proxyIdOf(serviceId: string): string {
  return `${serviceId}-hostmesh`
}

/** The ID of a proxy's TTL check. */
export function ttlCheckIdOf(serviceId: string): string {
  return `hostmesh-ttl:${serviceId}`
}

/** Whether the agent has a proxy of that service, and not something else under its ID. */
export function hasProxy(present: ReadonlyMap<string, AgentService>, serviceId: string): boolean {
  return PROXY_MARK in (present.get(proxyIdOf(serviceId))?.meta ?? {})
}

/** The registration of a proxy that starts with the health of its service: until that is good, callers avoid it. */
export function withInitialHealth(
  health: Health,
  proxy: ConsulProxyRegistration,
): ConsulProxyRegistration {
  return { ...proxy, Checks: proxy.Checks.map((check) => ({ ...check, Status: health })) }
}

/** What a plan depends on beside the wanted registrations and those at the agent. */
export interface RegistrationContext {
  /** Where other hosts reach this one, if that is not the agent's address. */
  readonly nodeAddress?: string | undefined
  /** Where this host listens for scrapes, if it does. */
  readonly metrics?: SocketAddress | undefined
  /** {@link RegistrationPlan.withdrawn} of the plan before: the agent may have removed those proxies since. */
  readonly withdrawn?: ReadonlySet<string>
}

/** Compares `desired` with what the agent has. With nothing desired it removes everything that is ours. */
export function planRegistration(
  desired: readonly LocalService[],
  tunnelPort: number,
  present: ReadonlyMap<string, AgentService>,
  { nodeAddress, metrics, withdrawn: before }: RegistrationContext = {},
): RegistrationPlan {
  const plain: PlainRegistration[] = []
  const proxies: ConsulProxyRegistration[] = []
  const withdrawn = new Set<string>()
  const problems: string[] = []
  const wanted = new Set<string>()
  const configured = new Set(desired.map(({ name }) => name))
  const others = [...present.values()].filter(({ name }) => !configured.has(name))
  for (const service of desired) {
    if (service.target === undefined) continue
    const { name, id, target } = service
    const there = present.get(id)
    if (there !== undefined && there.name !== name) {
      problems.push(
        `Service ${name} is not registered: the agent knows its ID "${id}" as service ${there.name}`,
      )
      continue
    }
    wanted.add(id)
    wanted.add(proxyIdOf(id))
    const registration: PlainRegistration = {
      name,
      id,
      port: target.port,
      meta: { [PLAIN_MARK]: String(tunnelPort), 'hostmesh-target': formatAddress(target) },
      checkAddress: formatAddress(target),
    }
    const proxyThere = present.get(proxyIdOf(id))
    // What the operator registered and then removed stays removed. An agent that lost everything has no proxy with
    // the mark of the operator, so all of it is registered again.
    const isOperators =
      there === undefined
        ? proxyThere?.meta[OWNER_MARK] === 'operator' || before?.has(id) === true
        : !isOurPlain(there)
    if (!isOperators && (there === undefined || !isSamePlain(there, registration))) {
      plain.push(registration)
      problems.push(...otherIds(registration, present))
    }
    if (isOperators && there === undefined) withdrawn.add(id)
    problems.push(...foreigners(name, target, others))
    const owner = isOperators ? 'operator' : 'hostmesh'
    const proxy = proxyRegistration(service, target, {
      tunnelPort,
      owner,
      nodeAddress,
      metrics,
      plain: isOperators ? there : undefined,
    })
    if (proxyThere !== undefined && !hasProxy(present, id))
      problems.push(
        `Service ${name} has no proxy: the agent has another service with ID "${proxy.ID}"`,
      )
    else if (proxyThere === undefined || !isSameProxy(proxyThere, proxy)) proxies.push(proxy)
  }
  const ours = [...present.values()].filter((service) => !wanted.has(service.id))
  return {
    plain,
    proxies,
    withdrawn,
    remove: [
      ...ours.filter((service) => isOurProxy(service, tunnelPort)),
      ...ours.filter((service) => service.meta[PLAIN_MARK] === String(tunnelPort)),
    ].map((service) => service.id),
    problems,
  }
}

function proxyRegistration(
  service: LocalService,
  target: SocketAddress,
  place: {
    readonly tunnelPort: number
    readonly owner: 'hostmesh' | 'operator'
    readonly nodeAddress: string | undefined
    readonly metrics: SocketAddress | undefined
    /** The operator's registration, if there is one. */
    readonly plain: AgentService | undefined
  },
): ConsulProxyRegistration {
  const { tunnelPort, owner, nodeAddress, metrics, plain } = place
  const scrapedAt = metrics === undefined ? undefined : scrapeAddress(metrics)
  return {
    Kind: 'connect-proxy',
    Name: `${service.name}-hostmesh`,
    ID: proxyIdOf(service.id),
    ...(nodeAddress !== undefined && { Address: nodeAddress }),
    Port: service.connectPort ?? tunnelPort,
    ...(plain !== undefined && plain.tags.length > 0 && { Tags: plain.tags }),
    ...(plain !== undefined && !isSameWeights(plain.weights) && { Weights: plain.weights }),
    Meta: {
      ...inherited(plain),
      [PROXY_MARK]: '1',
      [HOST_MARK]: String(tunnelPort),
      [OWNER_MARK]: owner,
      [HEALTH_MARK]: 'daemon',
      ...(scrapedAt !== undefined && { [METRICS_MARK]: scrapedAt }),
    },
    Proxy: {
      DestinationServiceName: service.name,
      DestinationServiceID: service.id,
      LocalServiceAddress: target.ip,
      LocalServicePort: target.port,
    },
    Checks: [
      {
        CheckID: ttlCheckIdOf(service.id),
        Name: `hostmesh serves ${service.id}`,
        TTL,
        DeregisterCriticalServiceAfter: FORGET_AFTER,
      },
    ],
  }
}

/** Meta copied to the proxy: the filters of a resolver's subsets are applied to proxies. */
function inherited(plain: AgentService | undefined): Record<string, string> {
  const entries = Object.entries(plain?.meta ?? {}).filter(
    (entry): entry is [string, string] => typeof entry[1] === 'string' && entry[0] !== METRICS_MARK,
  )
  // Consul accepts 64 pairs, and five of them are ours.
  return Object.fromEntries(entries.slice(0, 59))
}

function scrapeAddress(metrics: SocketAddress): string | undefined {
  if (isLoopback(metrics.ip)) return undefined
  return isUndialable(metrics.ip) ? String(metrics.port) : formatAddress(metrics)
}

function isOurPlain(service: AgentService): boolean {
  return service.kind === '' && PLAIN_MARK in service.meta
}

function isOurProxy(service: AgentService, tunnelPort: number): boolean {
  return (
    service.kind === 'connect-proxy' &&
    PROXY_MARK in service.meta &&
    service.meta[HOST_MARK] === String(tunnelPort)
  )
}

function isSamePlain(there: AgentService, wanted: PlainRegistration): boolean {
  return there.port === wanted.port && isSameMeta(there.meta, wanted.meta)
}

function isSameProxy(there: AgentService, wanted: ConsulProxyRegistration): boolean {
  return (
    there.name === wanted.Name &&
    there.kind === wanted.Kind &&
    there.port === wanted.Port &&
    (there.address ?? '') === (wanted.Address ?? '') &&
    isSameMeta(there.meta, wanted.Meta) &&
    there.meta[METRICS_MARK] === wanted.Meta[METRICS_MARK] &&
    isSameWeights(there.weights, wanted.Weights) &&
    there.tags.toSorted().join('\n') === (wanted.Tags ?? []).toSorted().join('\n') &&
    there.proxy.destinationName === wanted.Proxy.DestinationServiceName &&
    there.proxy.destinationId === wanted.Proxy.DestinationServiceID &&
    there.proxy.localAddress === wanted.Proxy.LocalServiceAddress &&
    there.proxy.localPort === wanted.Proxy.LocalServicePort
  )
}

function isSameWeights(there: Weights, wanted = USUAL_WEIGHTS): boolean {
  return there.Passing === wanted.Passing && there.Warning === wanted.Warning
}

function isSameMeta(
  there: Readonly<Record<string, unknown>>,
  wanted: Readonly<Record<string, string>>,
): boolean {
  return Object.entries(wanted).every(([key, value]) => there[key] === value)
}

/** The operator's own registration under another ID: then two plain services represent one process. */
function otherIds(
  wanted: PlainRegistration,
  present: ReadonlyMap<string, AgentService>,
): readonly string[] {
  return [...present.values()]
    .filter((service) => service.kind === '' && service.id !== wanted.id && !isOurPlain(service))
    .filter((service) => service.name === wanted.name && service.port === wanted.port)
    .map(
      (service) =>
        `Service ${wanted.name} is registered twice: the agent already has it under ID "${service.id}" ` +
        `(set \`id: ${service.id}\` in its entry of \`services\`)`,
    )
}

/** Other services registered here at the address of one of ours: whoever may write them could receive its callers. */
function foreigners(
  name: string,
  target: SocketAddress,
  others: readonly AgentService[],
): readonly string[] {
  if (!isLoopback(target.ip)) return []
  return others
    .filter((other) => other.kind === '' && other.port === target.port && !isOurPlain(other))
    .map(
      (other) =>
        `Service ${other.name} (ID "${other.id}") is registered at port ${target.port} of this host, where ${name} listens`,
    )
}
