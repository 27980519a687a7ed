/**
 * The way by which a caller reaches a destination: one of its upstream ports, or an address that the rules of
 * capture.ts divert. If a service has both, the address is preferred, because that is what applications dial.
 */
import { formatAddress, isLoopback, type SocketAddress } from '../../model/address.ts'
import type { HostFacts } from '../../model/facts.ts'
import type { LocalService } from '../../model/service.ts'
import type { MeshService } from '../../model/snapshot.ts'
import { divert, type EntryResult, notCaptured } from './capture.ts'
import type { Target } from './target.ts'

/**
 * How the callers get in: the first of several instances that does, otherwise the first one with the reason why not.
 * Undefined when there is no caller.
 */
export function entryOf(
  facts: HostFacts,
  callers: readonly LocalService[],
  target: Target,
): { readonly caller: LocalService; readonly result: EntryResult } | undefined {
  const results = callers.map((caller) => ({
    caller,
    result: entryOfCaller(facts, caller, target),
  }))
  return results.find(({ result }) => result.failure === undefined) ?? results[0]
}

/** The explicit upstream that listens at an address, and its owner. */
export function listenerAt(
  facts: HostFacts,
  address: SocketAddress,
): { readonly caller: LocalService; readonly destination: string } | undefined {
  const key = formatAddress(address)
  for (const caller of facts.local)
    for (const { destination, bind } of caller.upstreams)
      if (bind !== undefined && formatAddress(bind) === key) return { caller, destination }
  return undefined
}

function entryOfCaller(facts: HostFacts, caller: LocalService, target: Target): EntryResult {
  if (target.kind === 'address') {
    const listener = listenerAt(facts, target.address)
    if (listener === undefined) return divert(facts, caller, target.address)
    return listener.caller.name === caller.name
      ? throughUpstream(target.address, listener.destination)
      : throughOtherListener(caller, listener.caller, target.address)
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
    entry: { kind: 'none', address: null, port: null, rules: [] },
    station: {
      name: 'capture',
      mark: 'none',
      summary: `No address of ${name} is known that ${caller.name} could dial`,
      details: [],
    },
    wanted: name,
    // An unknown service, or one without instances, fails at a later station with better advice.
    failure:
      service === undefined || service.clusters[0].endpoints.length === 0
        ? undefined
        : {
            summary: `${caller.name} has no way to dial ${name}`,
            next: [`Give it an upstream port: services[].upstreams with destination ${name}`],
          },
  }
}

/** The address that an application dials for the service: a virtual address, otherwise an instance. */
function addressOf(
  service: MeshService | undefined,
  port: number | undefined,
): SocketAddress | undefined {
  const applications = service?.clusters[0].endpoints.flatMap(({ application }) =>
    application === undefined ? [] : [application],
  )
  const usual = port ?? applications?.[0]?.port ?? 80
  const virtual = service?.virtualIps.find((ip) => !ip.includes(':')) ?? service?.virtualIps[0]
  if (virtual !== undefined) return { ip: virtual, port: usual }
  const instance = applications?.find(({ ip }) => !isLoopback(ip))
  return instance === undefined ? undefined : { ip: instance.ip, port: instance.port }
}

function withDetail(result: EntryResult, detail: string): EntryResult {
  const { station } = result
  return { ...result, station: { ...station, details: [...station.details, detail] } }
}

/** By an upstream port of the caller: no rule is needed. */
function throughUpstream(bind: SocketAddress, destination: string): EntryResult {
  const address = formatAddress(bind)
  return {
    entry: { kind: 'upstream', address, port: bind.port, rules: [] },
    station: {
      name: 'capture',
      mark: 'good',
      summary: `Its upstream port ${address} leads to ${destination}; no capture rule is involved`,
      details: ['Whoever can dial that port speaks in its name'],
    },
    wanted: destination,
    failure: undefined,
  }
}

/** By an upstream port of another service: the caller would be recognized as that service. */
function throughOtherListener(
  caller: LocalService,
  owner: LocalService,
  address: SocketAddress,
): EntryResult {
  const text = formatAddress(address)
  return notCaptured(text, [], {
    station: `${text} is an upstream port of ${owner.name}: who dials it is taken for ${owner.name}`,
    summary: `The connection would go in the name of ${owner.name}, not of ${caller.name}`,
    next: [`Give ${caller.name} an upstream port of its own, or let it dial the virtual address`],
  })
}
