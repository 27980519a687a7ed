/**
 * What the capture rules do with one connection: evaluates the neutral rules of {@link captureRules} as the kernel
 * evaluates the rendered ones, and reports which rule decided. Pure.
 */
import { isIpv6, type SocketAddress } from '../../model/address.ts'
import { cidrContains, parseCidr } from '../../model/cidr.ts'
import type { WorkloadSelector } from '../../model/service.ts'
import {
  type CaptureMatch,
  type CapturePlan,
  captureRules,
  describeRule,
  type Family,
  loopbackRange,
  virtualNetwork,
} from './rules.ts'

/** A connection that a workload is about to make. */
export interface TracedConnection {
  /** As in the plan: users by number. */
  readonly caller: WorkloadSelector
  readonly destination: SocketAddress
  /** Whether the destination is an address of this host. */
  readonly isOwnAddress: boolean
  /** Whether the daemon has put the destination into the set of instance addresses. */
  readonly isKnownInstance: boolean
  /** Whether the destination may be reached without the mesh now; default false. */
  readonly isPermitted?: boolean
}

/** What happens to the connection, and the rule that decided; none when no rule matched. */
export type CaptureTrace =
  | { readonly outcome: 'diverted'; readonly port: number; readonly rules: readonly string[] }
  /** It goes to the destination that the application chose, without the mesh. */
  | { readonly outcome: 'passed'; readonly rules: readonly string[] }
  /** It is answered with a reset. */
  | { readonly outcome: 'rejected'; readonly rules: readonly string[] }

/**
 * Evaluates the rules of a plan.
 * @throws MeshError HM_CAPTURE_PLAN_INVALID as {@link captureRules} does.
 */
export function traceCapture(plan: CapturePlan, connection: TracedConnection): CaptureTrace {
  const family: Family = isIpv6(connection.destination.ip) ? 'v6' : 'v4'
  const range = virtualNetwork(plan, family)
  const hook = connection.caller.kind === 'sourceAddress' ? 'prerouting' : 'output'
  for (const rule of captureRules(plan, family)) {
    if (rule.hook !== hook) continue
    if (!rule.matches.every((match) => isMatch(match, connection, { family, range }))) continue
    const rules = [describeRule(rule)]
    const { action } = rule
    if (action.kind === 'divert') return { outcome: 'diverted', port: action.port, rules }
    return { outcome: action.kind === 'pass' ? 'passed' : 'rejected', rules }
  }
  return { outcome: 'passed', rules: [] }
}

function isMatch(
  match: CaptureMatch,
  connection: TracedConnection,
  where: { readonly family: Family; readonly range: string },
): boolean {
  const { caller, destination } = connection
  switch (match.kind) {
    case 'mesh': {
      const isVirtual = isWithin(destination.ip, where.range)
      const isInstance = connection.isKnownInstance
      if (match.what === 'virtual') return isVirtual
      return match.what === 'instance' ? isInstance : isVirtual || isInstance
    }
    case 'permitted':
      return connection.isPermitted === true
    case 'loopback':
      return isWithin(destination.ip, loopbackRange[where.family])
    case 'ownPort':
      return connection.isOwnAddress && match.ports.includes(destination.port)
    case 'daemon':
      return caller.kind === 'user' && Number(caller.user) === match.uid
    case 'caller':
      return isCaller(match.selector, caller)
  }
}

/** Whether a selector covers a caller. A cgroup includes everything below it. */
function isCaller(selector: WorkloadSelector, caller: WorkloadSelector): boolean {
  if (selector.kind === 'cgroup')
    return caller.kind === 'cgroup' && `${caller.path}/`.startsWith(`${selector.path}/`)
  if (selector.kind === 'user')
    return caller.kind === 'user' && Number(caller.user) === Number(selector.user)
  return caller.kind === 'sourceAddress' && caller.ip === selector.ip
}

function isWithin(ip: string, range: string): boolean {
  const cidr = parseCidr(range)
  return cidr !== undefined && cidrContains(cidr, ip)
}
