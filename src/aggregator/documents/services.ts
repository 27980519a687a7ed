/**
 * All services, and one of them. Pure.
 */

import { appliesTo } from '../../model/evaluate.ts'
import type {
  FleetServiceDocument,
  FleetServicesDocument,
  InstanceEntry,
  ServiceSummary,
} from '../../model/fleet.ts'
import type { Intention } from '../../model/intention.ts'
import type { PairFigures } from '../figures.ts'
import type { WorkloadReading } from '../fleet-store.ts'
import { coverageOf, isoTime } from './coverage.ts'
import { byDestination, compare, edgeOf, type SummedPair, summedPairs } from './edges.ts'
import { coveredMs, Fleet, type Instance, type Moment } from './fleet.ts'
import { serviceHealth } from './health.ts'
import { policyRule } from './policy-book.ts'
import { TrafficSum } from './traffic.ts'
import { workloadEntry } from './workloads.ts'

/** All services that hosts run, or that were called in the span. */
export function servicesDocument(
  moment: Moment,
  rows: readonly PairFigures[],
): FleetServicesDocument {
  const fleet = new Fleet(moment)
  const pairs = summedPairs(rows)
  const inbound = byDestination(pairs)
  const outbound = Map.groupBy(pairs, ({ source }) => source)
  const names = new Set([...fleet.services, ...inbound.keys(), ...outbound.keys()])
  const services = [...names].toSorted(compare).map((name) =>
    summaryOf(fleet, name, {
      inbound: inbound.get(name) ?? [],
      outbound: outbound.get(name) ?? [],
      spanMs: coveredMs(moment),
    }),
  )
  return { coverage: coverageOf(moment, fleet, rows.length > 0), services }
}

/** What the document of one service is made from. */
export interface ServiceReadings {
  readonly name: string
  /** At least the rows in which the service has a part. */
  readonly rows: readonly PairFigures[]
  readonly workloads: readonly WorkloadReading[]
}

/** One service; undefined when no host runs it and nothing was counted of it. */
export function serviceDocument(
  moment: Moment,
  { name, rows, workloads }: ServiceReadings,
): FleetServiceDocument | undefined {
  const fleet = new Fleet(moment)
  const own = rows.filter(({ source, destination }) => source === name || destination === name)
  const pairs = summedPairs(own)
  const instances = fleet.instancesOf(name)
  if (instances.length === 0 && pairs.length === 0) return undefined
  const spanMs = coveredMs(moment)
  const inbound = pairs.filter(({ destination }) => destination === name)
  const outbound = pairs.filter(({ source }) => source === name)
  return {
    coverage: coverageOf(moment, fleet, own.length > 0),
    service: summaryOf(fleet, name, { inbound, outbound, spanMs }),
    instances: instances
      .map((instance) => instanceEntry(fleet, instance, workloads))
      .toSorted((a, b) => compare(a.host, b.host) || compare(a.id, b.id)),
    callers: inbound
      .map((pair) => edgeOf(fleet, pair, spanMs))
      .toSorted((a, b) => compare(a.source, b.source)),
    destinations: outbound
      .map((pair) => edgeOf(fleet, pair, spanMs))
      .toSorted((a, b) => compare(a.destination, b.destination)),
    policy: policyOf(fleet, name, inbound),
  }
}

/** An instance of a service on a host. */
export function instanceEntry(
  fleet: Fleet,
  { host, service }: Instance,
  workloads: readonly WorkloadReading[],
): InstanceEntry {
  const { certificate } = service
  const workload = workloads.find(
    (reading) => reading.host === host.name && reading.use.service === service.name,
  )
  return {
    host: host.name,
    id: service.id,
    target: service.target ?? null,
    captured: service.captured,
    health: service.health ?? null,
    certificateNotAfter:
      certificate === undefined ? null : isoTime((host.factsAtMs ?? 0) + certificate.leftMs),
    hostState: fleet.stateOf(host),
    resources: workload === undefined ? null : workloadEntry(workload),
  }
}

interface ServiceTraffic {
  readonly inbound: readonly SummedPair[]
  readonly outbound: readonly SummedPair[]
  readonly spanMs: number
}

function summaryOf(
  fleet: Fleet,
  name: string,
  { inbound, outbound, spanMs }: ServiceTraffic,
): ServiceSummary {
  const instances = fleet.instancesOf(name)
  const sum = new TrafficSum()
  for (const pair of inbound) sum.addSum(pair.sum)
  return {
    name,
    protocol: instances[0]?.service.protocol ?? 'tcp',
    instances: instances.length,
    hosts: fleet.hostsOf(name),
    ...serviceHealth(fleet, name, inbound),
    inbound: sum.over(spanMs),
    callers: inbound.length,
    destinations: outbound.length,
  }
}

function policyOf(
  fleet: Fleet,
  name: string,
  inbound: readonly SummedPair[],
): FleetServiceDocument['policy'] {
  const policy = fleet.policies.of(name)
  if (policy === undefined) return { defaultAction: null, intentions: [] }
  // A silent host may have decided by a rule, too.
  const isKnown = fleet.instancesOf(name).some(({ host }) => !fleet.isSilent(host))
  const used = usesOf(policy.intentions, inbound)
  return {
    defaultAction: policy.defaultPolicy,
    intentions: policy.intentions.map((rule) => ({
      ...policyRule(rule),
      used: isKnown ? (used.get(rule) ?? 0) : null,
    })),
  }
}

/** How many connections each rule has decided. Rules are in order of precedence. */
export function usesOf(
  rules: readonly Intention[],
  inbound: readonly SummedPair[],
): ReadonlyMap<Intention, number> {
  const used = new Map<Intention, number>()
  for (const pair of inbound) {
    const rule = rules.find((one) => appliesTo(one, pair.source, pair.destination))
    if (rule === undefined) continue
    used.set(rule, (used.get(rule) ?? 0) + pair.sum.count('opened'))
  }
  return used
}
