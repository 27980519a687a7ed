/**
 * What a host reports of itself beside its counters: made from the same moment as its status.
 */

import { formatAddress } from '../../model/address.ts'
import type { Leaf } from '../../model/certificate.ts'
import {
  type HostState,
  type ReportedFacts,
  type ReportedPolicy,
  type ReportedService,
  reportLimits,
} from '../../model/report.ts'
import type { LocalService } from '../../model/service.ts'
import type { ServicePolicy, Snapshot } from '../../model/snapshot.ts'
import { type Host, type HostMoment, readinessOf } from '../host.ts'

/** What of the facts the host's moment does not say. */
export interface FactsOptions {
  readonly zone: string | undefined
  readonly nodeVersion: string
  readonly backend: string | undefined
  /** Tunnels that are open, and hosts that they lead to. */
  readonly tunnels: ReportedFacts['tunnels']
  readonly nowMs: number
}

/** The facts of a host. */
export function reportedFacts(
  host: Host,
  moment: HostMoment,
  options: FactsOptions,
): ReportedFacts {
  const { zone, backend, nodeVersion, nowMs, tunnels } = options
  const { rules, bundle, problems, mesh } = moment
  const snapshot = mesh.discovery.current()
  const leaves = new Map(moment.leaves.map((leaf) => [leaf.service, leaf]))
  return {
    version: host.version,
    nodeVersion,
    datacenter: host.datacenter,
    ...(zone !== undefined && { zone }),
    startedMsAgo: Math.max(0, nowMs - host.startedAtMs),
    state: hostState(moment),
    workers: host.pool.statuses(() => 0).filter(({ state }) => state === 'running').length,
    ...(bundle !== undefined && { trustDomain: bundle.trustDomain }),
    problems: problems.slice(0, reportLimits.problems).map(({ code, message, blocks }) => ({
      code,
      message: message.slice(0, reportLimits.textLength),
      blocks,
    })),
    services: host.services
      .slice(0, reportLimits.services)
      .map((service) => reportedService(service, leaves.get(service.name), snapshot, nowMs)),
    capture: {
      mode: host.captureMode,
      ...(backend !== undefined && { backend }),
      ...(rules.condition?.inSync !== undefined && { inSync: rules.condition.inSync }),
      ...(rules.plainInbound !== undefined && { plainInbound: rules.plainInbound }),
    },
    tunnels,
  }
}

/** The state in one word. */
export function hostState(moment: HostMoment): HostState {
  if (moment.isDraining) return 'draining'
  const { ready, serving } = readinessOf(moment)
  if (!serving) return 'starting'
  return ready ? 'ready' : 'degraded'
}

function reportedService(
  { name, id, target, selector, upstreams }: LocalService,
  leaf: Leaf | undefined,
  snapshot: Snapshot,
  nowMs: number,
): ReportedService {
  const known = snapshot.services.get(name)
  const health = known?.clusters[0].endpoints.find(
    (endpoint) => endpoint.local && endpoint.id === id,
  )?.health
  const policy = snapshot.policies.get(name)
  return {
    name,
    id,
    ...(target !== undefined && { target: formatAddress(target) }),
    protocol: known?.protocol ?? 'tcp',
    captured: selector !== undefined,
    ...(leaf !== undefined && {
      certificate: {
        leftMs: leaf.notAfterMs - nowMs,
        lifeMs: leaf.notAfterMs - leaf.notBeforeMs,
        spiffeId: leaf.spiffeId,
      },
    }),
    ...(health !== undefined && { health }),
    upstreams: upstreams.map(({ destination }) => destination),
    ...(policy !== undefined && { policy: reportedPolicy(policy) }),
  }
}

function reportedPolicy({ defaultPolicy, intentions }: ServicePolicy): ReportedPolicy {
  return {
    defaultAction: defaultPolicy,
    intentions: intentions
      .slice(0, reportLimits.intentions)
      .map(({ source, destination, action, undecidable, precedence }) => ({
        source,
        destination,
        action: undecidable === undefined && action === 'allow' ? 'allow' : 'deny',
        precedence,
      })),
  }
}
