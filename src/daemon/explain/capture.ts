/**
 * Station `capture`: how a caller's connection reaches the daemon, or why it does not. This file evaluates the capture
 * rules for an address with {@link traceCapture}, which walks them as the kernel does; entry.ts chooses the address and
 * handles the ways that need no rule.
 */
import { type CaptureTrace, traceCapture } from '../../controlplane/capture/trace.ts'
import { formatAddress, isIpv6, isLoopback, type SocketAddress } from '../../model/address.ts'
import { backendTraits } from '../../model/capture-backend.ts'
import { cidrContains, parseCidr } from '../../model/cidr.ts'
import type { EntryChoice, Station } from '../../model/explanation.ts'
import type { HostFacts } from '../../model/facts.ts'
import type { LocalService, WorkloadSelector } from '../../model/service.ts'
import { instanceSets } from '../captured-instances.ts'
import type { Draft } from './draft.ts'
import { selectorText } from './words.ts'

/** How a caller's connection reaches the daemon, or why it does not. */
export interface EntryResult {
  readonly entry: EntryChoice
  readonly station: Station
  /** The destination as the daemon sees it: a service name or an address; undefined when nothing reaches the daemon. */
  readonly wanted: string | SocketAddress | undefined
  /** The verdict's sentence and the advice if the connection does not reach the daemon; otherwise undefined. */
  readonly failure: { readonly summary: string; readonly next: readonly string[] } | undefined
}

/** Adds the station. */
export function describeEntry(draft: Draft, result: EntryResult): void {
  const { entry, station, failure } = result
  draft.stations.push(station)
  draft.entry = entry
  if (failure !== undefined) draft.fail('uncaptured', failure.summary, ...failure.next)
}

/** A connection that does not reach the daemon, or not in the caller's name. */
export function notCaptured(
  address: string,
  rules: readonly string[],
  why: { readonly station: string; readonly summary: string; readonly next: readonly string[] },
): EntryResult {
  return {
    entry: { kind: 'none', address, port: null, rules },
    station: { name: 'capture', mark: 'bad', summary: why.station, details: rules },
    wanted: undefined,
    failure: { summary: why.summary, next: why.next },
  }
}

/** Used for a caller that no rule names: the rules are walked as for any such process. */
const UNMATCHED_CALLER: WorkloadSelector = { kind: 'user', user: 'none' }

/** What the capture rules do with a connection of this caller to an address. */
export function divert(
  facts: HostFacts,
  caller: LocalService,
  address: SocketAddress,
): EntryResult {
  const { capture } = facts
  const text = formatAddress(address)
  const past = `A connection of ${caller.name} to ${text} would not enter the mesh`
  if (capture.mode === 'off')
    return notCaptured(text, [], {
      station: 'Capture is off on this host',
      summary: `${past}: capture is off`,
      next: [
        'Set capture.mode: on, or give the caller an upstream port (services[].upstreams[].bindPort)',
      ],
    })
  if (isNeighbor(facts, caller, address.ip))
    return notCaptured(text, [], {
      station: `${text} is in the network of the caller: what it sends there is not forwarded, and meets no rule`,
      summary: `${past}: both are on one bridge or wire, whatever the rules say`,
      next: ['Dial the virtual address of the service: hostmesh services'],
    })
  const workload = capture.plan?.workloads.find(
    ({ capturePort }) => capturePort === caller.capturePort,
  )
  const isKnownInstance = instanceSets(facts.services).captured.map(formatAddress).includes(text)
  const trace =
    capture.plan === null
      ? undefined
      : traceCapture(capture.plan, {
          caller: workload?.selector ?? UNMATCHED_CALLER,
          destination: address,
          isOwnAddress: isLoopback(address.ip) || facts.addresses.includes(address.ip),
          isKnownInstance,
        })
  // Not recognized: no rule names the caller. The rule of the default identity may still apply.
  if (trace === undefined || (workload === undefined && trace.outcome !== 'diverted')) {
    const why =
      caller.selector === undefined
        ? `${caller.name} has no identity in the configuration`
        : `there is no rule for ${selectorText(caller.selector)} now`
    const advice =
      caller.selector === undefined
        ? ['Set services[].identity, or give it an upstream port (services[].upstreams[].bindPort)']
        : capture.problems
    return notCaptured(text, trace?.rules ?? [], {
      station: `Nothing recognizes it: ${why}`,
      summary: `${past}: ${why}`,
      next: [...advice, 'hostmesh status says what is wrong with capture'],
    })
  }
  return traced(facts, { caller, address, trace, isKnownInstance })
}

/** Whether a container reaches another without the host. With iptables the rules see bridged traffic, too. */
function isNeighbor(
  { capture, networks, addresses }: HostFacts,
  caller: LocalService,
  ip: string,
): boolean {
  const { selector } = caller
  if (selector?.kind !== 'sourceAddress' || addresses.includes(ip)) return false
  if (capture.backend !== null && backendTraits[capture.backend].seesBridges) return false
  return networks.some((text) => {
    const network = parseCidr(text)
    return network !== undefined && [selector.ip, ip].every((each) => cidrContains(network, each))
  })
}

/** The entry for the result of the evaluation. */
function traced(
  facts: HostFacts,
  asked: {
    readonly caller: LocalService
    readonly address: SocketAddress
    readonly trace: CaptureTrace
    readonly isKnownInstance: boolean
  },
): EntryResult {
  const { caller, address, trace } = asked
  const { rules } = trace
  const text = formatAddress(address)
  if (trace.outcome === 'diverted' && trace.port === caller.capturePort) {
    const isDrifted = facts.capture.inSync === false
    return {
      entry: { kind: 'captured', address: text, port: trace.port, rules },
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
    return notCaptured(text, rules, {
      station: `It is not recognized as ${caller.name}: diverted to capture port ${trace.port}, that of ${taker}`,
      summary: `The connection would go in the name of ${taker}, not of ${caller.name}`,
      next: [
        'Set services[].identity to what the process really runs as; hostmesh status names what is missing',
      ],
    })
  }
  if (trace.outcome === 'rejected')
    return notCaptured(text, rules, {
      station: `${text} is a virtual address, and no rule diverts ${caller.name} there: reset`,
      summary: `A connection of ${caller.name} to ${text} would be reset by the firewall`,
      next: ['hostmesh status says what is wrong with capture'],
    })
  const isOtherFamily = asked.isKnownInstance && rules.length === 0
  return notCaptured(text, rules, {
    station: isOtherFamily
      ? `${text} is in the set of instance addresses, but no rule recognizes ${caller.name} by IPv${isIpv6(address.ip) ? 6 : 4}: left alone`
      : `${text} is neither a virtual address nor an instance of a mesh service: left alone`,
    summary: `A connection of ${caller.name} to ${text} goes past the mesh, in plaintext`,
    next: ['Dial the virtual address of the service: hostmesh services'],
  })
}
