/**
 * Whether a service or a host is well, with a sentence for each reason why not. Pure.
 */
import type { GraphNode } from '../../model/fleet.ts'
import type { HostReading } from '../fleet-store.ts'
import { isoTime } from './coverage.ts'
import type { SummedPair } from './edges.ts'
import type { Fleet, Instance } from './fleet.ts'
import { endingsOf } from './traffic.ts'

type Health = GraphNode['health']

/** Health and its reasons. */
export interface Judgement {
  readonly health: Health
  readonly reasons: readonly string[]
}

/** From this share of failed connections a service is degraded, and failing. */
const DEGRADED_SHARE = 0.05
const FAILING_SHARE = 0.5

/** Ended connections below which a share of failures says nothing, unless most have failed. */
const MIN_ENDED = 10

/** Reasons for one service; the rest is counted. */
const MAX_REASONS = 8

/**
 * Judges a service by its instances and by the connections to it. The figures of both sides are looked at, each for
 * itself: a caller that reaches no host of the service is counted by nobody else.
 */
export function serviceHealth(
  fleet: Fleet,
  service: string,
  inbound: readonly SummedPair[],
): Judgement {
  const instances = fleet.instancesOf(service)
  if (instances.length === 0)
    return { health: 'unknown', reasons: ['No host has reported that it runs this service'] }
  const findings = [
    ...instances.flatMap((instance) => instanceFindings(fleet, instance)),
    ...trafficFindings(inbound),
  ]
  const usable = instances.filter((instance) => isUsable(fleet, instance))
  const isFailing = usable.length === 0 || findings.some(({ health }) => health === 'failing')
  if (findings.length === 0) return { health: 'healthy', reasons: [] }
  return {
    health: isFailing ? 'failing' : 'degraded',
    reasons: limited(findings.map(({ reason }) => reason)),
  }
}

/** Judges a host by what it reports of itself. */
export function hostHealth(fleet: Fleet, host: HostReading): Judgement {
  const state = fleet.stateOf(host)
  switch (state) {
    case 'ready':
      return { health: 'healthy', reasons: [] }
    case 'silent':
    case 'conflicting':
      return { health: 'failing', reasons: [hostReason(fleet, host)] }
    case 'starting':
    case 'degraded':
    case 'draining':
      return { health: 'degraded', reasons: [hostReason(fleet, host)] }
    default:
      return state satisfies never
  }
}

/** The worst of several judgements, with the reasons of all. */
export function worstOf(judgements: readonly Judgement[]): Judgement {
  const order: readonly Health[] = ['failing', 'degraded', 'unknown', 'healthy']
  const health = order.find((one) => judgements.some((other) => other.health === one))
  return {
    health: health ?? 'unknown',
    reasons: limited(judgements.flatMap(({ reasons }) => reasons)),
  }
}

interface Finding {
  readonly health: 'degraded' | 'failing'
  readonly reason: string
}

function isUsable(fleet: Fleet, { host, service }: Instance): boolean {
  return !fleet.isSilent(host) && service.health !== 'critical'
}

function instanceFindings(fleet: Fleet, { host, service }: Instance): Finding[] {
  const state = fleet.stateOf(host)
  const findings: Finding[] = []
  const add = (reason: string): void => void findings.push({ health: 'degraded', reason })
  if (state !== 'ready') add(hostReason(fleet, host))
  if (service.health === 'critical' || service.health === 'warning')
    add(`${service.id} on ${host.name} is ${service.health} in the catalog`)
  const { certificate } = service
  if (certificate !== undefined && certificate.leftMs < fleet.atMs - (host.factsAtMs ?? 0))
    add(`The certificate of ${service.id} on ${host.name} has expired`)
  return findings
}

function hostReason(fleet: Fleet, host: HostReading): string {
  const state = fleet.stateOf(host)
  if (state === 'silent')
    return `${host.name} has not reported since ${isoTime(host.lastReportAtMs)}`
  if (state === 'conflicting') return `Two hosts report with the name ${host.name}`
  const codes = (host.facts?.problems ?? []).filter(({ blocks }) => blocks).map(({ code }) => code)
  return `${host.name} is ${state}${codes.length === 0 ? '' : ` (${codes.slice(0, 3).join(', ')})`}`
}

function trafficFindings(inbound: readonly SummedPair[]): Finding[] {
  return (['destination', 'source'] as const).flatMap((side) => {
    let ended = 0
    let failed = 0
    for (const { pair, reporter, sum } of inbound) {
      const endings = reporter === side ? sum.endings() : endingsOf(pair.rows[side])
      ended += endings.ended
      failed += endings.failed
    }
    const share = ended === 0 ? 0 : failed / ended
    if (share < (ended < MIN_ENDED ? FAILING_SHARE : DEGRADED_SHARE)) return []
    const who = side === 'destination' ? 'by its own hosts' : 'by the hosts of its callers'
    const health = share >= FAILING_SHARE && ended >= MIN_ENDED ? 'failing' : 'degraded'
    const percent = `${(share * 100).toFixed(share < 0.1 ? 1 : 0)} %`
    return [{ health, reason: `${percent} of the connections to it failed, as counted ${who}` }]
  })
}

function limited(reasons: readonly string[]): readonly string[] {
  const distinct = [...new Set(reasons)]
  if (distinct.length <= MAX_REASONS) return distinct
  return [...distinct.slice(0, MAX_REASONS), `${distinct.length - MAX_REASONS} more reasons`]
}
