/**
 * What will break before it does: derived from the facts of hosts and the connections of a span. Pure.
 */
import type { Risk, RisksDocument } from '../../model/fleet.ts'
import type { PairFigures } from '../figures.ts'
import type { HostReading } from '../fleet-store.ts'
import { coverageOf, isoTime } from './coverage.ts'
import { byDestination, compare, type SummedPair, summedPairs } from './edges.ts'
import { coveredMs, Fleet, type Moment } from './fleet.ts'
import { usesOf } from './services.ts'
import { compareVersions } from './versions.ts'

/** A certificate whose life is over by less than this share is renewed in time. */
const CERTIFICATE_SHARE = 0.25
const CERTIFICATE_URGENT_SHARE = 0.1

/** A clock that is off by more makes records hard to compare; by more still, certificates fail. */
const CLOCK_OFF_MS = 2_000
const CLOCK_WRONG_MS = 60_000

/** A rule that nobody has used in a shorter span may be used in the next hour. */
const MIN_UNUSED_MS = 3_600_000

/** Most risks of one document; the least severe are left out. */
const MAX_RISKS = 2_000

/** All risks, the worst first. */
export function risksDocument(moment: Moment, rows: readonly PairFigures[]): RisksDocument {
  const fleet = new Fleet(moment)
  const inbound = byDestination(summedPairs(rows))
  const newest = moment.hosts
    .flatMap(({ facts }) => facts?.version ?? [])
    .toSorted(compareVersions)
    .at(-1)
  const order = { high: 0, medium: 1, low: 2 } as const
  const risks = [
    ...moment.hosts.flatMap((host) => hostRisks(fleet, host, newest)),
    ...[...fleet.services].flatMap((service) => [
      ...placementRisks(fleet, service, inbound.get(service) ?? []),
      ...policyRisks(fleet, service, { inbound: inbound.get(service) ?? [], moment }),
    ]),
  ]
  const coverage = coverageOf(moment, fleet, rows.length > 0)
  const omitted = risks.length - MAX_RISKS
  return {
    coverage:
      omitted <= 0
        ? coverage
        : { ...coverage, notes: [...coverage.notes, `${omitted} more risks are left out`] },
    risks: risks
      .toSorted(
        (a, b) =>
          order[a.severity] - order[b.severity] ||
          compare(a.kind, b.kind) ||
          compare(a.subject, b.subject),
      )
      .slice(0, MAX_RISKS),
  }
}

function hostRisks(fleet: Fleet, host: HostReading, newest: string | undefined): Risk[] {
  const { name, facts, clockOffsetMs = 0 } = host
  if (fleet.isSilent(host))
    return [
      {
        kind: 'silentHost',
        severity: 'high',
        subject: name,
        message: `${name} has not reported since ${isoTime(host.lastReportAtMs)}`,
        hint: 'Ask the host itself: hostmesh status; a host that was removed is forgotten with its last figures',
      },
    ]
  const risks: Risk[] = []
  if (Math.abs(clockOffsetMs) > CLOCK_OFF_MS)
    risks.push({
      kind: 'clockOff',
      severity: Math.abs(clockOffsetMs) > CLOCK_WRONG_MS ? 'high' : 'medium',
      subject: name,
      message: `The clock of ${name} is ${seconds(Math.abs(clockOffsetMs))} ${clockOffsetMs > 0 ? 'ahead of' : 'behind'} that of the aggregator`,
      hint: 'Synchronize both (timedatectl): certificates are refused by a wrong clock',
    })
  if (facts === undefined) return risks
  if (newest !== undefined && compareVersions(facts.version, newest) < 0)
    risks.push({
      kind: 'oldVersion',
      severity: 'low',
      subject: name,
      message: `${name} runs ${facts.version}, and others ${newest}`,
      hint: 'Upgrade it: the package, then systemctl reload hostmesh',
    })
  risks.push(...captureRisks(name, facts.capture), ...certificateRisks(fleet, host))
  return risks
}

function captureRisks(
  name: string,
  { mode, inSync, plainInbound = 0 }: NonNullable<HostReading['facts']>['capture'],
): Risk[] {
  const risks: Risk[] = []
  if (mode === 'off' || inSync === false)
    risks.push({
      kind: 'captureOff',
      severity: mode === 'off' ? 'low' : 'high',
      subject: name,
      message:
        mode === 'off'
          ? `Capture is off on ${name}: only explicit upstreams go through the mesh`
          : `The capture rules of ${name} are not in place`,
      hint:
        mode === 'off'
          ? 'Set capture.mode to on (docs/capture.md)'
          : 'hostmesh capture show names the difference',
    })
  if (plainInbound > 0)
    risks.push({
      kind: 'plaintext',
      severity: 'medium',
      subject: name,
      message: `${plainInbound} connections have reached services of ${name} around the mesh`,
      hint: 'When all callers are in the mesh: capture.plainInbound refuses the rest (docs/capture.md)',
    })
  return risks
}

function certificateRisks(fleet: Fleet, { name, facts, factsAtMs = 0 }: HostReading): Risk[] {
  return (facts?.services ?? []).flatMap(({ id, certificate }): Risk[] => {
    if (certificate === undefined) return []
    const leftMs = certificate.leftMs - (fleet.atMs - factsAtMs)
    const share = leftMs / certificate.lifeMs
    if (share >= CERTIFICATE_SHARE) return []
    return [
      {
        kind: 'certificateLife',
        severity: share < CERTIFICATE_URGENT_SHARE ? 'high' : 'medium',
        subject: `${id} on ${name}`,
        message:
          leftMs <= 0
            ? `The certificate of ${id} on ${name} has expired`
            : `The certificate of ${id} on ${name} ends in ${seconds(leftMs)}, and was not renewed in time`,
        hint: 'hostmesh certs on the host says why it is not renewed',
      },
    ]
  })
}

/** Risks of where the instances of a service are; only of services that somebody calls. */
function placementRisks(fleet: Fleet, service: string, inbound: readonly SummedPair[]): Risk[] {
  const instances = fleet
    .instancesOf(service)
    .filter(({ service: { target } }) => target !== undefined)
  const [first] = instances
  if (first === undefined || inbound.length === 0) return []
  const callers = `${inbound.length} ${inbound.length === 1 ? 'service calls' : 'services call'} it`
  if (instances.length === 1)
    return [
      {
        kind: 'singleInstance',
        severity: 'medium',
        subject: service,
        message: `${service} has one instance, on ${first.host.name}; ${callers}`,
        hint: 'Run a second instance on another host',
      },
    ]
  const hosts = fleet.hostsOf(service)
  if (hosts.length === 1)
    return [
      {
        kind: 'oneHost',
        severity: 'medium',
        subject: service,
        message: `All ${instances.length} instances of ${service} are on ${first.host.name}; ${callers}`,
        hint: 'Run an instance on another host',
      },
    ]
  const zones = new Set(instances.map(({ host }) => host.facts?.zone))
  const [zone] = zones
  const all = new Set([...fleet.hosts.values()].flatMap(({ facts }) => facts?.zone ?? []))
  if (zones.size > 1 || zone === undefined || all.size < 2) return []
  return [
    {
      kind: 'oneZone',
      severity: 'low',
      subject: service,
      message: `All hosts of ${service} are in zone ${zone}; ${callers}`,
      hint: 'Run an instance in another zone',
    },
  ]
}

function policyRisks(
  fleet: Fleet,
  service: string,
  { inbound, moment }: { readonly inbound: readonly SummedPair[]; readonly moment: Moment },
): Risk[] {
  const policy = fleet.policies.of(service)
  if (policy === undefined) return []
  const risks: Risk[] = []
  if (policy.defaultPolicy === 'allow')
    for (const { source } of inbound) {
      const decision = fleet.policies.decide(source, service)
      if (decision === null || decision.rule !== null) continue
      risks.push({
        kind: 'defaultDenyWouldCut',
        severity: 'low',
        subject: `${source} -> ${service}`,
        message: `${source} calls ${service} by the default policy alone: a default of deny would cut it`,
        hint: `Add an intention before the default changes: consul intention create -allow ${source} ${service}`,
      })
    }
  const coversAll = moment.oldestMs !== undefined && moment.oldestMs <= moment.span.fromMs
  if (coveredMs(moment) < MIN_UNUSED_MS || !coversAll) return risks
  const used = usesOf(policy.intentions, inbound)
  for (const rule of policy.intentions) {
    // A rule for all destinations may be used elsewhere.
    if (rule.action !== 'allow' || rule.destination === '*' || (used.get(rule) ?? 0) > 0) continue
    risks.push({
      kind: 'unusedAllow',
      severity: 'low',
      subject: `${rule.source} -> ${service}`,
      message: `Nobody has used the intention that allows ${rule.source} -> ${service} since ${isoTime(moment.span.fromMs)}`,
      hint: 'Remove it, if a longer look back says the same',
    })
  }
  return risks
}

function seconds(ms: number): string {
  if (ms < 120_000) return `${Math.round(ms / 1_000)} s`
  return ms < 7_200_000 ? `${Math.round(ms / 60_000)} min` : `${Math.round(ms / 3_600_000)} h`
}
