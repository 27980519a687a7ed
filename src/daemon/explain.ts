/**
 * Why a connection goes where it goes: the road of one connection, live, refused or hypothetical, told from
 * a host's facts. Pure: facts in, explanation out, the same from a running daemon and from a file.
 *
 * Nothing is decided here by rules of its own. Every station asks the function that the data plane, or the
 * kernel's rules, decide by: {@link traceCapture}, {@link AddressIndex}, {@link exclusionOf}, {@link evaluate}.
 */
import { type CaptureTrace, traceCapture } from '../controlplane/capture/trace.ts'
import { exclusionOf } from '../dataplane/balance/picker.ts'
import { evaluate } from '../dataplane/policy/evaluate.ts'
import { AddressIndex } from '../dataplane/route/by-address.ts'
import { MeshError } from '../lib/errors.ts'
import { canonicalIp, formatAddress, isLoopback, type SocketAddress } from '../model/address.ts'
import type { ConnectionEntry, RefusedEntry, TunnelEntry } from '../model/admin.ts'
import type { Endpoint } from '../model/endpoint.ts'
import type {
  DoorChoice,
  EndpointChoice,
  Explanation,
  PolicyChoice,
  Station,
  Verdict,
} from '../model/explanation.ts'
import type { HostFacts } from '../model/facts.ts'
import type { Intention } from '../model/intention.ts'
import type { LocalService, WorkloadSelector } from '../model/service.ts'
import type { MeshService, ServicePolicy } from '../model/snapshot.ts'
import { formatServerName, formatSpiffeId } from '../model/spiffe-id.ts'
import { capturedInstances } from './captured-instances.ts'

/** What is asked: about a pair that may or may not be connected, or about a connection that is or was. */
export type Question =
  | { readonly kind: 'pair'; readonly from: string; readonly to: string }
  | { readonly kind: 'connection'; readonly connection: ConnectionEntry | RefusedEntry }

/**
 * Explains. Total but for the question itself.
 * @throws MeshError HM_USAGE_DESTINATION when `to` can be no destination.
 */
export function explain(facts: HostFacts, question: Question): Explanation {
  return question.kind === 'pair'
    ? explainPair(facts, question.from, question.to)
    : explainConnection(facts, question.connection)
}

/**
 * The service that a pair is about; undefined when it is none that this host knows.
 * @param ownerOf knows the virtual addresses of services that are not followed, too
 */
export function serviceAskedFor(
  facts: HostFacts,
  from: string,
  to: string,
  ownerOf: (virtualIp: string) => string | undefined,
): string | undefined {
  if (to === '') return undefined
  const target = readTarget(facts, to)
  if (target.kind === 'service') return target.name
  const door = doorAt(facts, target.address)
  if (door !== undefined && isCalled(door.caller, from)) return door.destination
  return routeOf(facts, target.address)?.service ?? ownerOf(target.address.ip)
}

/** What `--to` says. */
type Target =
  | { readonly kind: 'service'; readonly name: string; readonly port: number | undefined }
  | { readonly kind: 'address'; readonly address: SocketAddress }

/** How a caller's connection gets to the daemon, or why it does not. */
interface Entrance {
  readonly door: DoorChoice
  readonly station: Station
  /** What the daemon hears: a service by the door's name, or an address; undefined when nothing gets in. */
  readonly wanted: string | SocketAddress | undefined
  /** The verdict and sentence when it does not get in. */
  readonly failure: { readonly summary: string; readonly next: readonly string[] } | undefined
}

/** An explanation under way. */
class Draft {
  readonly stations: Station[] = []
  readonly next: string[] = []
  verdict: Verdict = 'allowed'
  summary: string | undefined
  service: string | null = null
  door: DoorChoice | null = null
  endpoints: readonly EndpointChoice[] = []
  policy: PolicyChoice | null = null
  leaf: Explanation['leaf'] = null
  expectedSpiffeId: string | null = null
  serverName: string | null = null
  tunnels: readonly TunnelEntry[] = []

  station(
    name: Station['name'],
    mark: Station['mark'],
    summary: string,
    details: readonly string[] = [],
  ): void {
    this.stations.push({ name, mark, summary, details })
  }

  /** The first failure on the road is the verdict: it is what the application meets. */
  fail(verdict: Verdict, summary: string, ...next: readonly string[]): void {
    this.next.push(...next)
    if (this.verdict !== 'allowed') return
    this.verdict = verdict
    this.summary = summary
  }

  finish(
    facts: HostFacts,
    asked: { readonly from: string; readonly to: string; readonly connection: string | null },
    allowed: string,
  ): Explanation {
    return {
      ...asked,
      node: facts.node,
      factsAt: facts.writtenAt,
      catalogAgeMs: facts.catalog.ageMs,
      verdict: this.verdict,
      summary: this.summary ?? allowed,
      next: [...new Set(this.next)],
      stations: this.stations,
      service: this.service,
      door: this.door,
      endpoints: this.endpoints,
      policy: this.policy,
      leaf: this.leaf,
      expectedSpiffeId: this.expectedSpiffeId,
      serverName: this.serverName,
      tunnels: this.tunnels,
    }
  }
}

function explainPair(facts: HostFacts, from: string, to: string): Explanation {
  const draft = new Draft()
  const asked = { from, to, connection: null }
  const target = readTarget(facts, to)
  const callers = facts.local.filter((service) => isCalled(service, from))
  if (callers.length === 0)
    return explainArrival(
      facts,
      asked,
      target.kind === 'service' ? target.name : routeOf(facts, target.address)?.service,
    )

  const entrances = callers.map((caller) => ({ caller, ...enter(facts, caller, target) }))
  const entered = entrances.find(({ failure }) => failure === undefined) ?? entrances[0]
  if (entered === undefined) return draft.finish(facts, asked, '')
  const { caller, door, wanted, failure } = entered
  const source = caller.name
  describeCaller(draft, callers, caller)
  draft.stations.push(entered.station)
  draft.door = door
  if (failure !== undefined) draft.fail('uncaptured', failure.summary, ...failure.next)

  const found = describeRoute(draft, facts, wanted ?? hint(target), target)
  if (found === undefined) return draft.finish(facts, asked, '')
  const { service } = found
  draft.service = service.name
  const chosen = describeEndpoints(draft, facts, service, found.pinned)
  // When nobody would be picked, the rest is told as if somebody were.
  const meant = chosen.length > 0 ? chosen : firstOf(service.endpoints)
  const reached = reachedBy(service, meant)
  const remote = meant.filter(({ local }) => !local)
  describeCertificate(draft, facts, {
    source,
    service: reached,
    isNeeded: remote.length > 0 || meant.length === 0,
  })
  describeTunnel(draft, facts, { source, service: reached, remote })
  describePolicy(draft, facts, { source, service: reached, chosen: meant })
  describeDelivery(draft, facts, reached, chosen)
  const where = remote.length > 0 ? 'through a tunnel' : 'on this host'
  return draft.finish(facts, asked, `${source} may reach ${service.name}, ${where}`)
}

/** The caller is on another host: what this host knows is its own part, that of the destination. */
function explainArrival(
  facts: HostFacts,
  asked: { readonly from: string; readonly to: string; readonly connection: string | null },
  name: string | undefined,
): Explanation {
  const draft = new Draft()
  const { from } = asked
  const instances = facts.local.filter(
    (service) => service.name === name && service.target !== undefined,
  )
  if (name === undefined || instances.length === 0) {
    const names = [...new Set(facts.local.map((service) => service.name))].join(', ')
    draft.station('caller', 'bad', `No service ${from} runs on ${facts.node}`, [
      `Services of this host: ${names || 'none'}`,
    ])
    draft.fail(
      'unknownCaller',
      `Neither ${from} nor the destination ${asked.to} is on ${facts.node}`,
      `Ask on the host that runs ${from}: it knows how ${from} is recognized and where it is sent`,
    )
    return draft.finish(facts, asked, '')
  }
  draft.service = name
  draft.station(
    'caller',
    'none',
    `${from} is not on ${facts.node}; it proves who it is by its certificate`,
    [`How it gets here is decided on its own host: ask there for ${from} as well`],
  )
  const service = facts.services.find((known) => known.name === name) ?? ownService(facts, name)
  const leaf = facts.certificates.leaves.find((each) => each.service === name)
  describeLeaf(draft, facts, { service: name, role: 'Callers are shown', leaf })
  const tunnels = facts.tunnels.filter(
    (tunnel) =>
      tunnel.direction === 'inbound' && tunnel.source === from && tunnel.destination === name,
  )
  draft.tunnels = tunnels
  if (tunnels.length > 0)
    draft.station('tunnel', 'good', `Open from ${listed(tunnels.map((each) => each.peerAddress))}`)
  else draft.station('tunnel', 'none', `None is open from ${from}`)
  const chosen = service.endpoints.filter(({ local }) => local)
  describePolicy(draft, facts, { source: from, service, chosen, isHere: true })
  draft.station(
    'delivery',
    'good',
    `To ${listed(instances.map(({ target: at }) => (at === undefined ? '' : formatAddress(at))))}`,
  )
  return draft.finish(facts, asked, `${facts.node} lets ${from} reach ${name}`)
}

/** A connection that is open, or was refused: the road again, with what is on record about this one. */
function explainConnection(
  facts: HostFacts,
  connection: ConnectionEntry | RefusedEntry,
): Explanation {
  const refused = 'flag' in connection ? connection : undefined
  const { id, source, destination, direction } = connection
  const now = roadOf(facts, connection)
  const about = recordOf(connection)
  const took =
    refused === undefined ? undefined : Date.parse(refused.endedAt) - Date.parse(refused.openedAt)
  const record: Station =
    refused === undefined
      ? {
          name: 'connection',
          mark: 'good',
          summary: `Open since ${connection.openedAt}, state ${connection.state}`,
          details: about,
        }
      : {
          name: 'connection',
          mark: 'bad',
          summary: `Ended at ${refused.endedAt} with ${refused.flag} after ${took ?? 0} ms: ${refused.reason}`,
          details: about,
        }
  const given = connection.endpoint
  const peer = connection.peerAddress
  const tunnels = now.tunnels.filter(({ peerAddress }) => peerAddress === peer)
  const stations = now.stations.map((station): Station => {
    if (station.name === (direction === 'inbound' ? 'delivery' : 'endpoint') && given !== null)
      return {
        ...station,
        summary: `It was given to ${given}`,
        details: [station.summary, ...station.details],
      }
    if (station.name === 'tunnel' && peer === null && direction === 'outbound' && given !== null)
      return { ...station, mark: 'none', summary: 'None: both ends are on this host', details: [] }
    if (station.name === 'tunnel' && tunnels.length > 0)
      return { ...station, ...tunnelStation(tunnels) }
    return station
  })
  return {
    ...now,
    connection: id,
    to: connection.originalDestination ?? destination,
    verdict: refused === undefined ? 'allowed' : verdictOf(refused),
    summary:
      refused === undefined
        ? `${source} is connected to ${destination}${given === null ? '' : ` at ${given}`}`
        : `${source} -> ${destination} ended with ${refused.flag}: ${refused.reason}`,
    next: refused === undefined ? [] : now.next,
    stations: [record, ...stations],
    tunnels: tunnels.length > 0 ? tunnels : now.tunnels,
  }
}

/** What would become of such a connection now. */
function roadOf(facts: HostFacts, connection: ConnectionEntry): Explanation {
  const { id, source, destination, direction } = connection
  if (direction === 'inbound') {
    const asked = { from: source, to: destination, connection: id }
    return explainArrival(facts, asked, destination)
  }
  const to = askedFor(facts, connection)
  // It has not got so far that anything is known of where it goes.
  if (to === '') return new Draft().finish(facts, { from: source, to, connection: id }, '')
  return explainPair(facts, source, to)
}

function recordOf(connection: ConnectionEntry): string[] {
  const { originalDestination, downstreamAddress, endpoint, peerAddress } = connection
  return [
    `${connection.direction}, from ${downstreamAddress || 'an unknown address'}, asked for ${originalDestination ?? 'an upstream port'}`,
    `Instance ${endpoint ?? 'none'}${peerAddress === null ? '' : `, peer ${peerAddress}`}`,
    `${connection.sentBytes} bytes sent, ${connection.receivedBytes} received`,
  ]
}

function verdictOf({ flag }: RefusedEntry): Verdict {
  return flag === 'DENY' ? 'denied' : 'unreachable'
}

/** What an outbound connection dialed, in the words of a question. */
function askedFor(facts: HostFacts, connection: ConnectionEntry): string {
  if (connection.originalDestination !== null) return connection.originalDestination
  const bind = facts.local
    .filter((service) => service.name === connection.source)
    .flatMap(({ upstreams }) => upstreams)
    .find((upstream) => upstream.destination === connection.destination)?.bind
  return bind === undefined ? connection.destination : formatAddress(bind)
}

function readTarget(facts: HostFacts, text: string): Target {
  const isService = (name: string): boolean =>
    facts.services.some((service) => service.name === name)
  const match = /^(?:\[([0-9a-fA-F:.]+)\]|([^:\s]+))(?::(\d{1,5}))?$/.exec(text)
  const ip = canonicalIp(match?.[1] ?? match?.[2] ?? text)
  const port = match?.[3] === undefined ? undefined : Number(match[3])
  if ((match === null && ip === undefined) || (port !== undefined && (port < 1 || port > 65_535)))
    throw new MeshError(
      'HM_USAGE_DESTINATION',
      `Cannot explain a connection to ${JSON.stringify(text)}: it is no destination`,
      {
        hint: 'Give a service (db), a name (db.mesh), or an address (240.0.0.1:5432), with or without port',
      },
    )
  if (ip !== undefined)
    return { kind: 'address', address: { ip, port: port ?? usualPort(facts, ip) } }
  const name = match?.[2] ?? text
  const plain = name.toLowerCase().replace(/\.$/, '')
  const domain = facts.domains.find((each) => plain.endsWith(`.${each}`))
  return isService(name) || domain === undefined
    ? { kind: 'service', name, port }
    : { kind: 'service', name: plain.slice(0, -domain.length - 1), port }
}

/** The port that is meant when only an address is given. */
function usualPort(facts: HostFacts, ip: string): number {
  for (const { virtualIps, endpoints } of facts.services) {
    const isVirtual = virtualIps.includes(ip)
    for (const { application } of endpoints)
      if (application !== undefined && (isVirtual || application.ip === ip)) return application.port
  }
  return 80
}

/** For a caller that does not get in: what the rest of the road would be if it did. */
function hint(target: Target): string | SocketAddress {
  return target.kind === 'service' ? target.name : target.address
}

function isCalled(service: LocalService, name: string): boolean {
  return service.name === name || service.id === name
}

/** The explicit upstream that listens at an address, and whose it is. */
function doorAt(
  facts: HostFacts,
  address: SocketAddress,
): { readonly caller: LocalService; readonly destination: string } | undefined {
  const key = formatAddress(address)
  for (const caller of facts.local)
    for (const { destination, bind } of caller.upstreams)
      if (bind !== undefined && formatAddress(bind) === key) return { caller, destination }
  return undefined
}

function enter(facts: HostFacts, caller: LocalService, target: Target): Entrance {
  if (target.kind === 'address') {
    const door = doorAt(facts, target.address)
    if (door === undefined) return divert(facts, caller, target.address)
    return door.caller.name === caller.name
      ? throughUpstream(target.address, door.destination)
      : throughForeignDoor(caller, door.caller, target.address)
  }
  const { name } = target
  const bind = caller.upstreams.find((upstream) => upstream.destination === name)?.bind
  const service = facts.services.find((known) => known.name === name)
  const address = addressOf(service, target.port)
  if (address !== undefined) {
    const diverted = divert(facts, caller, address)
    if (diverted.failure === undefined || bind === undefined)
      return bind === undefined
        ? diverted
        : withDetail(diverted, `Also by its upstream port ${formatAddress(bind)}`)
  }
  if (bind !== undefined) return throughUpstream(bind, name)
  return {
    door: { kind: 'none', address: null, port: null, rules: [] },
    station: {
      name: 'capture',
      mark: 'none',
      summary: `No address of ${name} is known that ${caller.name} could dial`,
      details: [],
    },
    wanted: name,
    failure:
      service === undefined || service.endpoints.length === 0
        ? undefined
        : {
            summary: `${caller.name} has no way to dial ${name}`,
            next: [`Give it an upstream port: services[].upstreams with destination ${name}`],
          },
  }
}

/** Where an application that means the service would dial: a virtual address, else an instance. */
function addressOf(
  service: MeshService | undefined,
  port: number | undefined,
): SocketAddress | undefined {
  const applications = service?.endpoints.flatMap(({ application, local }) =>
    application === undefined ? [] : [{ ...application, local }],
  )
  const usual = port ?? applications?.[0]?.port ?? 80
  const virtual = service?.virtualIps.find((ip) => !ip.includes(':')) ?? service?.virtualIps[0]
  if (virtual !== undefined) return { ip: virtual, port: usual }
  const instance = applications?.find(({ local }) => !local)
  return instance === undefined ? undefined : { ip: instance.ip, port: instance.port }
}

function withDetail(entrance: Entrance, detail: string): Entrance {
  const { station } = entrance
  return { ...entrance, station: { ...station, details: [...station.details, detail] } }
}

function throughUpstream(bind: SocketAddress, destination: string): Entrance {
  const address = formatAddress(bind)
  return {
    door: { kind: 'upstream', address, port: bind.port, rules: [] },
    station: {
      name: 'capture',
      mark: 'good',
      summary: `Its upstream port ${address} leads to ${destination}; no iptables rule is involved`,
      details: ['Whoever can dial that port speaks in its name'],
    },
    wanted: destination,
    failure: undefined,
  }
}

function throughForeignDoor(
  caller: LocalService,
  owner: LocalService,
  address: SocketAddress,
): Entrance {
  const text = formatAddress(address)
  return shutOut(text, [], {
    station: `${text} is an upstream port of ${owner.name}: who dials it is taken for ${owner.name}`,
    summary: `The connection would go in the name of ${owner.name}, not of ${caller.name}`,
    next: [`Give ${caller.name} an upstream port of its own, or let it dial the virtual address`],
  })
}

/** A connection that does not get in, or not in the caller's name. */
function shutOut(
  address: string,
  rules: readonly string[],
  why: { readonly station: string; readonly summary: string; readonly next: readonly string[] },
): Entrance {
  return {
    door: { kind: 'none', address, port: null, rules },
    station: { name: 'capture', mark: 'bad', summary: why.station, details: rules },
    wanted: undefined,
    failure: { summary: why.summary, next: why.next },
  }
}

/** A caller that no rule names. */
const STRANGER: WorkloadSelector = { kind: 'user', user: 'none' }

/** What the capture rules do with a connection of this caller to an address. */
function divert(facts: HostFacts, caller: LocalService, address: SocketAddress): Entrance {
  const { capture } = facts
  const text = formatAddress(address)
  const past = `A connection of ${caller.name} to ${text} would not enter the mesh`
  if (capture.mode === 'off')
    return shutOut(text, [], {
      station: 'Capture is off on this host',
      summary: `${past}: capture is off`,
      next: [
        'Set capture.mode: on, or give the caller an upstream port (services[].upstreams[].bindPort)',
      ],
    })
  const workload = capture.plan?.workloads.find(
    ({ capturePort }) => capturePort === caller.capturePort,
  )
  const isKnownInstance = capturedInstances(facts.services).map(formatAddress).includes(text)
  const trace =
    capture.plan === null
      ? undefined
      : traceCapture(capture.plan, {
          caller: workload?.selector ?? STRANGER,
          destination: address,
          isOwnAddress: isLoopback(address.ip) || facts.addresses.includes(address.ip),
          isKnownInstance,
        })
  // Not recognized: no rule is its own. The default identity's may still take it.
  if (trace === undefined || (workload === undefined && trace.outcome !== 'diverted')) {
    const why =
      caller.selector === undefined
        ? `${caller.name} has no identity in the configuration`
        : `there is no rule for ${selectorText(caller.selector)} now`
    const advice =
      caller.selector === undefined
        ? ['Set services[].identity, or give it an upstream port (services[].upstreams[].bindPort)']
        : capture.problems
    return shutOut(text, trace?.rules ?? [], {
      station: `Nothing recognizes it: ${why}`,
      summary: `${past}: ${why}`,
      next: [...advice, 'hostmesh status says what is wrong with capture'],
    })
  }
  return traced(facts, { caller, address, trace, isKnownInstance })
}

function traced(
  facts: HostFacts,
  asked: {
    readonly caller: LocalService
    readonly address: SocketAddress
    readonly trace: CaptureTrace
    readonly isKnownInstance: boolean
  },
): Entrance {
  const { caller, address, trace } = asked
  const { rules } = trace
  const text = formatAddress(address)
  if (trace.outcome === 'diverted' && trace.port === caller.capturePort) {
    const isDrifted = facts.capture.inSync === false
    return {
      door: { kind: 'captured', address: text, port: trace.port, rules },
      station: {
        name: 'capture',
        mark: isDrifted ? 'warning' : 'good',
        summary: `${text} is ${asked.isKnownInstance ? 'in the set of instance addresses' : 'a virtual address'}: diverted to capture port ${trace.port}${isDrifted ? ', but the rules in the kernel are not the planned ones' : ''}`,
        details: rules,
      },
      wanted: address,
      failure: undefined,
    }
  }
  if (trace.outcome === 'diverted') {
    const taker =
      facts.local.find(({ capturePort }) => capturePort === trace.port)?.name ??
      'the default identity'
    return shutOut(text, rules, {
      station: `It is not recognized as ${caller.name}: diverted to capture port ${trace.port}, that of ${taker}`,
      summary: `The connection would go in the name of ${taker}, not of ${caller.name}`,
      next: [
        'Set services[].identity to what the process really runs as; hostmesh status names what is missing',
      ],
    })
  }
  if (trace.outcome === 'rejected')
    return shutOut(text, rules, {
      station: `${text} is a virtual address, and no rule diverts ${caller.name} there: reset`,
      summary: `A connection of ${caller.name} to ${text} would be reset by the firewall`,
      next: ['hostmesh status says what is wrong with capture'],
    })
  if (trace.outcome === 'unreadable')
    return shutOut(text, rules, {
      station: 'The last of these rules is one that this version cannot follow',
      summary: `Cannot say what the rules do with ${text}`,
      next: ['hostmesh capture show counts what each rule catches'],
    })
  return shutOut(text, rules, {
    station: `${text} is neither a virtual address nor an instance of another host: left alone`,
    summary: `A connection of ${caller.name} to ${text} goes past the mesh, in plaintext`,
    next: ['Dial the virtual address of the service: hostmesh services'],
  })
}

function describeCaller(
  draft: Draft,
  callers: readonly LocalService[],
  caller: LocalService,
): void {
  const { name, id, selector, capturePort } = caller
  const who = id === name ? name : `${name} (instance ${id})`
  const others = callers.filter((other) => other !== caller).map((other) => other.id)
  const details = others.length === 0 ? [] : [`Also on this host: ${others.join(', ')}`]
  if (selector === undefined && capturePort !== undefined)
    draft.station(
      'caller',
      'good',
      `${who}, whom every local process without an identity is taken for, capture port ${capturePort}`,
      details,
    )
  else if (selector === undefined)
    draft.station('caller', 'good', `${who}, recognized by the upstream ports it dials`, details)
  else
    draft.station(
      'caller',
      'good',
      `${who}, recognized by ${selectorText(selector)}, capture port ${capturePort}`,
      details,
    )
}

/** A selector in the words of the configuration. */
export function selectorText(selector: WorkloadSelector): string {
  switch (selector.kind) {
    case 'cgroup':
      return `cgroup ${selector.path}`
    case 'user':
      return `user ${selector.user}`
    case 'sourceAddress':
      return `source ${selector.ip}`
    default:
      return selector satisfies never
  }
}

function routeOf(facts: HostFacts, address: SocketAddress): ReturnType<AddressIndex['find']> {
  const index = new AddressIndex()
  index.apply({
    version: facts.snapshotVersion,
    datacenter: facts.datacenter,
    services: facts.services,
    removedServices: [],
    policies: [],
    removedPolicies: [],
  })
  return index.find(address)
}

function describeRoute(
  draft: Draft,
  facts: HostFacts,
  wanted: string | SocketAddress,
  target: Target,
): { readonly service: MeshService; readonly pinned: Endpoint | undefined } | undefined {
  const text = typeof wanted === 'string' ? wanted : formatAddress(wanted)
  if (facts.snapshotVersion === 0) {
    draft.station('route', 'bad', 'This host has no snapshot of the mesh yet', facts.awaited)
    draft.fail('unreachable', 'This host knows nothing of the mesh yet', ...facts.catalog.problems)
    return undefined
  }
  const route =
    typeof wanted === 'string'
      ? { service: wanted, endpointKey: undefined }
      : routeOf(facts, wanted)
  const service = facts.services.find(({ name }) => name === route?.service)
  if (route === undefined || service === undefined) {
    draft.station('route', 'bad', `No mesh service is known at ${text}`, [
      'To be known it must be in the catalog; with catalog.watch: upstreams also offered or named as upstream here',
    ])
    draft.fail(
      target.kind === 'service' ? 'unknownService' : 'unreachable',
      `${facts.node} knows no mesh service ${target.kind === 'service' ? target.name : `at ${text}`}`,
      'hostmesh services lists what this host knows',
      'Is it in the catalog, with a mesh listener? With catalog.watch: upstreams, name it under services[].upstreams',
    )
    return undefined
  }
  const pinned = service.endpoints.find(({ key }) => key === route.endpointKey)
  const how =
    typeof wanted === 'string'
      ? 'by name'
      : pinned === undefined
        ? 'by its virtual address, at any port'
        : `by the address of its instance ${pinned.key}`
  const what = typeof wanted === 'string' ? '' : `${text} is `
  draft.station('route', 'good', `${what}service ${service.name}, ${how}`, [
    `Protocol ${service.protocol}, datacenter ${service.datacenter}, connect timeout ${service.connectTimeoutMs} ms`,
  ])
  return { service, pinned }
}

/** Those of the first priority that there is. */
function firstOf(endpoints: readonly Endpoint[]): readonly Endpoint[] {
  const first = Math.min(...endpoints.map(({ priority }) => priority))
  return endpoints.filter(({ priority }) => priority === first)
}

/** The service as its peers prove it: endpoints of one priority are of one service in one datacenter. */
function reachedBy(service: MeshService, endpoints: readonly Endpoint[]): MeshService {
  const [first] = endpoints
  if (first === undefined) return service
  return { ...service, name: first.service, datacenter: first.datacenter }
}

/** Leaves out, as the balancer does, what comes later than the first priority that has somebody. */
function withoutLater(choices: readonly EndpointChoice[]): readonly EndpointChoice[] {
  const healthy = choices.filter(({ excluded }) => excluded === null)
  // When nobody else remains, those that failed are used.
  const isPanic = healthy.length === 0
  const candidates = isPanic ? choices.filter(({ health }) => health !== 'critical') : healthy
  const first = Math.min(...candidates.map(({ priority }) => priority))
  return choices.map((choice) => {
    if (!candidates.includes(choice)) return choice
    if (choice.priority === first) return { ...choice, excluded: null }
    return { ...choice, excluded: `it is for failover (step ${choice.priority})` }
  })
}

/** Returns the endpoints of which one would be taken. */
function describeEndpoints(
  draft: Draft,
  facts: HostFacts,
  service: MeshService,
  pinned: Endpoint | undefined,
): readonly Endpoint[] {
  const all = service.endpoints.map((endpoint) => choiceOf(facts, endpoint, pinned))
  const choices = pinned === undefined ? withoutLater(all) : all
  const byCost = (left: EndpointChoice, right: EndpointChoice): number =>
    Number(left.excluded !== null) - Number(right.excluded !== null) ||
    (left.cost ?? 0) - (right.cost ?? 0)
  draft.endpoints = choices.toSorted(byCost)
  const keys = new Set(
    choices.filter(({ excluded }) => excluded === null).map(({ endpoint }) => endpoint),
  )
  const chosen = service.endpoints.filter(({ key }) => keys.has(key))
  const details = draft.endpoints.map((choice) => endpointText(choice, service))
  const [first] = chosen
  if (first === undefined) {
    const why = choices.length === 0 ? 'it has no instance' : 'none of its instances may be picked'
    draft.station('endpoint', 'bad', `Nobody would be picked: ${why}`, details)
    draft.fail(
      'unreachable',
      `${service.name} cannot be reached: ${why}`,
      `hostmesh services ${service.name}; the health checks say why`,
    )
  } else if (pinned !== undefined)
    draft.station(
      'endpoint',
      pinned.health === 'critical' ? 'warning' : 'good',
      `${pinned.key}: the caller asked for this very instance, whatever its health`,
      details,
    )
  else if (chosen.length === 1)
    draft.station('endpoint', 'good', `${first.key}: the only candidate`, details)
  else
    draft.station(
      'endpoint',
      'good',
      `One of ${chosen.length}: two are drawn at random, the one of lower cost is taken`,
      details,
    )
  return chosen
}

function choiceOf(
  facts: HostFacts,
  endpoint: Endpoint,
  pinned: Endpoint | undefined,
): EndpointChoice {
  const loads = facts.loads.filter((load) => load.endpoint === endpoint.key)
  const isOther = pinned !== undefined && pinned.key !== endpoint.key
  return {
    endpoint: endpoint.key,
    node: endpoint.node,
    service: endpoint.service,
    datacenter: endpoint.datacenter,
    priority: endpoint.priority,
    address: formatAddress(endpoint.tunnel),
    health: endpoint.health,
    weight: endpoint.weight,
    local: endpoint.local,
    excluded:
      pinned === undefined
        ? (exclusionOf(endpoint) ?? ejectionOf(loads))
        : isOther
          ? 'another instance was asked for'
          : null,
    cost: loads.length === 0 ? null : Math.min(...loads.map(({ cost }) => cost)),
    inFlight: loads.reduce((sum, load) => sum + load.inFlight, 0),
    failures: loads.reduce((sum, load) => sum + load.failures, 0),
  }
}

/** Why no worker would pick it for its failures; null when one would. */
function ejectionOf(loads: HostFacts['loads']): string | null {
  const [first] = loads
  if (first === undefined || loads.some(({ ejectedFor }) => ejectedFor === null)) return null
  return `connections to it failed (${first.ejectedFor})`
}

function endpointText(choice: EndpointChoice, asked: MeshService): string {
  const isOther = choice.service !== asked.name || choice.datacenter !== asked.datacenter
  const role = isOther ? ` of ${choice.service} in ${choice.datacenter}` : ''
  const where = choice.local ? 'on this host' : choice.address
  const known =
    choice.cost === null
      ? 'not tried yet'
      : `cost ${choice.cost.toFixed(2)}, ${choice.inFlight} in flight${choice.failures > 0 ? `, ${choice.failures} failures` : ''}`
  const out = choice.excluded === null ? '' : `: left out, ${choice.excluded}`
  return `${choice.endpoint}${role} ${where}, ${choice.health}, weight ${choice.weight}, ${known}${out}`
}

function describeCertificate(
  draft: Draft,
  facts: HostFacts,
  asked: { readonly source: string; readonly service: MeshService; readonly isNeeded: boolean },
): void {
  const { source, service, isNeeded } = asked
  if (!isNeeded) {
    draft.station('certificate', 'none', 'None is needed: no other host is involved')
    return
  }
  const leaf = facts.certificates.leaves.find((each) => each.service === source)
  const { trustDomain } = facts.certificates
  if (trustDomain !== null) {
    const wanted = { trustDomain, datacenter: service.datacenter, service: service.name }
    draft.expectedSpiffeId = formatSpiffeId(wanted)
    draft.serverName = formatServerName(wanted)
  }
  describeLeaf(draft, facts, { service: source, role: 'It shows', leaf })
}

function describeLeaf(
  draft: Draft,
  facts: HostFacts,
  shown: {
    readonly service: string
    readonly role: string
    readonly leaf: HostFacts['certificates']['leaves'][number] | undefined
  },
): void {
  const { service, leaf } = shown
  const { certificates } = facts
  const expected =
    draft.expectedSpiffeId === null
      ? []
      : [`Expects ${draft.expectedSpiffeId}, server name ${draft.serverName}`]
  const trust = [
    ...expected,
    `Trust domain ${certificates.trustDomain ?? 'not known yet'}, roots accepted: ${certificates.roots.length}`,
  ]
  const bad = (why: string): void => {
    draft.station('certificate', 'bad', `The certificate of ${service} ${why}`, [
      ...trust,
      ...certificates.problems,
    ])
    draft.fail(
      'unreachable',
      `No tunnel can be made for ${service}: its certificate ${why}`,
      ...certificates.problems,
      'hostmesh certs and hostmesh status say what is missing',
    )
  }
  if (leaf === undefined || certificates.trustDomain === null) return bad('is missing')
  draft.leaf = leaf
  const nowMs = Date.parse(facts.writtenAt)
  if (nowMs >= Date.parse(leaf.notAfter)) return bad(`has expired at ${leaf.notAfter}`)
  if (nowMs < Date.parse(leaf.notBefore)) return bad(`is not valid before ${leaf.notBefore}`)
  if (certificates.revokedSerials.includes(leaf.serialNumber)) return bad('is revoked')
  draft.station('certificate', 'good', `${shown.role} ${leaf.spiffeId}`, [
    `Serial number ${leaf.serialNumber}, valid until ${leaf.notAfter}`,
    ...trust,
  ])
}

function describeTunnel(
  draft: Draft,
  facts: HostFacts,
  asked: {
    readonly source: string
    readonly service: MeshService
    readonly remote: readonly Endpoint[]
  },
): void {
  const { source, service, remote } = asked
  if (remote.length === 0) {
    const isNobody = service.endpoints.length === 0
    draft.station(
      'tunnel',
      'none',
      isNobody ? 'None: there is nobody to dial' : 'None: no other host is involved',
    )
    return
  }
  const addresses = [...new Set(remote.map(({ tunnel }) => formatAddress(tunnel)))]
  const open = facts.tunnels.filter(
    (tunnel) =>
      tunnel.direction === 'outbound' &&
      tunnel.source === source &&
      tunnel.destination === service.name &&
      addresses.includes(tunnel.peerAddress),
  )
  draft.tunnels = open
  const missing = addresses.filter((address) => open.every((each) => each.peerAddress !== address))
  if (open.length === 0)
    draft.station('tunnel', 'none', `None is open: one would be dialed to ${listed(addresses)}`)
  else {
    const station = tunnelStation(open)
    const rest = missing.length === 0 ? [] : [`Would be dialed: ${listed(missing)}`]
    draft.station('tunnel', 'good', station.summary, [...station.details, ...rest])
  }
}

function tunnelStation(
  open: readonly TunnelEntry[],
): Pick<Station, 'mark' | 'summary' | 'details'> {
  return {
    mark: 'good',
    summary: `Open to ${listed([...new Set(open.map((each) => each.peerAddress))])}`,
    details: open.map(
      (each) =>
        `${each.peerSpiffeId ?? 'no identity yet'}, ${each.state} since ${each.openedAt}, ${each.streams} streams, round trip ${each.rttMs === null ? 'not measured' : `${each.rttMs.toFixed(1)} ms`}`,
    ),
  }
}

function describePolicy(
  draft: Draft,
  facts: HostFacts,
  asked: {
    readonly source: string
    readonly service: MeshService
    readonly chosen: readonly Endpoint[]
    readonly isHere?: boolean
  },
): void {
  const { source, service, chosen } = asked
  const isHere = asked.isHere ?? (chosen.length > 0 && chosen.every(({ local }) => local))
  const known = facts.policies.find(
    ({ destination, origin }) => destination === service.name && (!isHere || origin === 'snapshot'),
  )
  const hosts = [...new Set(chosen.filter(({ local }) => !local).map(({ node }) => node))]
  const decidedAt = isHere ? 'here' : 'destination'
  if (known === undefined && !isHere) {
    const reason = `the rules for ${service.name} could not be asked of the catalog`
    draft.policy = { allow: null, decidedAt, reason, intention: null }
    draft.station('policy', 'warning', `Not known here: ${reason}`, [
      `The destination decides: ${listed(hosts) || 'its host'}`,
    ])
    draft.fail(
      'undecided',
      `Whether ${source} may reach ${service.name} is decided at the destination, and is not known here`,
      `On ${listed(hosts) || 'its host'}: hostmesh explain --from ${source} --to ${service.name}`,
    )
    return
  }
  const decision = evaluate(source, known)
  const rule = known === undefined ? undefined : decidingRule(source, known)
  draft.policy = {
    allow: decision.allow,
    decidedAt,
    reason: decision.reason,
    intention:
      rule === undefined
        ? null
        : {
            source: rule.source,
            destination: rule.destination,
            action: rule.action ?? null,
            precedence: rule.precedence,
          },
  }
  const details = [
    isHere
      ? 'Decided on this host, the destination'
      : `Decided at the destination${hosts.length === 0 ? '' : ` (${listed(hosts)})`}; these are the rules that the catalog has for it`,
    ...(known === undefined ? [] : overruled(source, known, rule)),
  ]
  const verb = decision.allow ? 'Allowed' : 'Denied'
  draft.station('policy', decision.allow ? 'good' : 'bad', `${verb}: ${decision.reason}`, details)
  if (!decision.allow)
    draft.fail(
      'denied',
      `${source} may not reach ${service.name}: ${decision.reason}`,
      known === undefined
        ? 'hostmesh status says why the intentions are not loaded'
        : allowingAdvice(facts, source, service.name, rule),
    )
}

/** The rule that decides, found by asking {@link evaluate} about each alone. */
function decidingRule(source: string, policy: ServicePolicy): Intention | undefined {
  return matchingRules(source, policy)[0]
}

function matchingRules(source: string, policy: ServicePolicy): readonly Intention[] {
  const unmatched = evaluate(source, { ...policy, intentions: [] }).reason
  return policy.intentions.filter(
    (intention) => evaluate(source, { ...policy, intentions: [intention] }).reason !== unmatched,
  )
}

function overruled(
  source: string,
  policy: ServicePolicy,
  rule: Intention | undefined,
): readonly string[] {
  const text = (intention: Intention): string =>
    `${intention.source} -> ${intention.destination} ${intention.action ?? 'by permissions'} (precedence ${intention.precedence})`
  return matchingRules(source, policy)
    .filter((other) => other !== rule)
    .map((other) => `Would match too, and comes later: ${text(other)}`)
}

function allowingAdvice(
  facts: HostFacts,
  source: string,
  destination: string,
  rule: Intention | undefined,
): string {
  const isThere = rule?.source === source && rule.destination === destination
  if (facts.catalog.description.startsWith('file'))
    return isThere
      ? `To allow it, set Action: allow of the intention ${source} -> ${destination} in the catalog file`
      : `To allow it, add an intention ${source} -> ${destination} with Action: allow to the catalog file`
  return `To allow it: consul intention create -allow ${isThere ? '-replace ' : ''}${source} ${destination}`
}

function describeDelivery(
  draft: Draft,
  facts: HostFacts,
  service: MeshService,
  chosen: readonly Endpoint[],
): void {
  const local = chosen.filter((endpoint) => endpoint.local)
  const targets = local.map(
    ({ id }) => facts.local.find((each) => each.name === service.name && each.id === id)?.target,
  )
  const known = targets.filter((target) => target !== undefined)
  if (known.length < local.length) {
    draft.station('delivery', 'bad', `This host's configuration has no instance of ${service.name}`)
    draft.fail(
      'unreachable',
      `${service.name} cannot be delivered: this host's configuration does not have the instance`,
      'Compare services[].id with the catalog: hostmesh services',
    )
  } else if (known.length > 0)
    draft.station('delivery', 'good', `To ${listed(known.map(formatAddress))} on this host`)
  else if (chosen.length > 0)
    draft.station(
      'delivery',
      'none',
      `By ${listed([...new Set(chosen.map(({ node }) => node))])}, to its own instance`,
    )
}

/** A service that runs here and that the catalog does not have (yet). */
function ownService(facts: HostFacts, name: string): MeshService {
  return {
    name,
    datacenter: facts.datacenter,
    virtualIps: [],
    protocol: 'tcp',
    connectTimeoutMs: 0,
    endpoints: [],
  }
}

/** At most five of a list, in words. */
function listed(items: readonly string[]): string {
  const rest = items.length - 5
  return rest > 0 ? `${items.slice(0, 5).join(', ')} and ${rest} more` : items.join(', ')
}
