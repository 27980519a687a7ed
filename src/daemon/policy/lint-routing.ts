/**
 * Rules of `hostmesh policy lint` about routers, splitters and resolvers. Pure.
 */
import { isRecord } from '../../lib/json-value.ts'
import { type Entry, type Finding, finding, records, textOf } from './lint-rules.ts'

const HTTP: ReadonlySet<string> = new Set(['http', 'http2', 'grpc'])

/** Kinds as Consul's API and as Kubernetes write them. */
const KINDS: Readonly<Record<string, string>> = {
  ServiceRouter: 'service-router',
  ServiceSplitter: 'service-splitter',
  ServiceResolver: 'service-resolver',
  ServiceDefaults: 'service-defaults',
  ProxyDefaults: 'proxy-defaults',
}

/** Findings in all routing entries of all files. */
export function lintRouting(all: readonly Entry[]): Finding[] {
  const entries = all.map(fromKubernetes)
  const protocols = protocolsOf(entries)
  const subsets = subsetsOf(entries)
  return entries.flatMap((entry) => {
    if (entry.kind === 'service-router')
      return [...onTcp(entry, protocols, 'HM2001'), ...unknownSubsets(entry, subsets)]
    if (entry.kind === 'service-splitter')
      return [
        ...onTcp(entry, protocols, 'HM2007'),
        ...badWeights(entry),
        ...unknownSubsets(entry, subsets),
      ]
    return entry.kind === 'service-resolver' ? lintResolver(entry) : []
  })
}

function fromKubernetes(entry: Entry): Entry {
  const kind = KINDS[entry.kind]
  const { Spec: spec, Metadata: metadata } = entry.value
  if (kind === undefined) return entry
  const name = isRecord(metadata) ? textOf(metadata['Name']) : ''
  return { ...entry, kind, name, value: isRecord(spec) ? spec : {} }
}

/** The protocol of each service of which the files say it; a default for all is that of every service. */
function protocolsOf(entries: readonly Entry[]): (service: string) => string | undefined {
  const global = entries.find(({ kind }) => kind === 'proxy-defaults')
  const config = global?.value['Config']
  const usual = isRecord(config) ? textOf(config['Protocol']) || 'tcp' : 'tcp'
  const named = new Map(
    entries
      .filter(({ kind }) => kind === 'service-defaults')
      .map(({ name, value }) => [name, textOf(value['Protocol']) || usual]),
  )
  return (service) => named.get(service) ?? (global === undefined ? undefined : usual)
}

function onTcp(
  entry: Entry,
  protocolOf: (service: string) => string | undefined,
  code: 'HM2001' | 'HM2007',
): Finding[] {
  const protocol = protocolOf(entry.name)
  if (protocol === undefined || HTTP.has(protocol)) return []
  const message = `${entry.name} has the protocol ${protocol}: Consul accepts this only for http, http2 and grpc`
  return [finding(entry, code, message)]
}

function badWeights(entry: Entry): Finding[] {
  const weights = records(entry.value['Splits']).map(({ Weight: weight }) =>
    typeof weight === 'number' ? weight : 0,
  )
  const sum = weights.reduce((total, weight) => total + weight, 0)
  // Consul keeps hundredths.
  if (Math.abs(sum - 100) < 0.005) return []
  return [finding(entry, 'HM2002', `The weights sum to ${Number(sum.toFixed(2))}, not to 100`)]
}

/** The subsets of each service that has a resolver in the files. Their names have only lower-case letters. */
function subsetsOf(entries: readonly Entry[]): ReadonlyMap<string, ReadonlySet<string>> {
  return new Map(
    entries
      .filter(({ kind }) => kind === 'service-resolver')
      .map(({ name, value: { Subsets: subsets } }) => [
        name,
        new Set(isRecord(subsets) ? Object.keys(subsets).map((key) => key.toLowerCase()) : []),
      ]),
  )
}

function unknownSubsets(entry: Entry, known: ReadonlyMap<string, ReadonlySet<string>>): Finding[] {
  const targets = [
    ...records(entry.value['Splits']),
    ...records(entry.value['Routes']).flatMap(({ Destination: target }) => records([target])),
  ]
  return targets.flatMap((target) => {
    const service = textOf(target['Service']) || entry.name
    const subset = textOf(target['ServiceSubset'])
    const subsets = known.get(service)
    if (subset === '' || subsets === undefined || subsets.has(subset)) return []
    const message = `The resolver of ${service} has no subset ${subset}`
    return [finding(entry, 'HM2005', message)]
  })
}

function lintResolver(entry: Entry): Finding[] {
  const { Redirect: redirect, Subsets: subsets, Failover: failover } = entry.value
  const found: Finding[] = []
  if (isRecord(redirect) && isItself(entry, redirect))
    found.push(finding(entry, 'HM2003', `${entry.name} is redirected to itself`))
  for (const [name, subset] of Object.entries(isRecord(subsets) ? subsets : {})) {
    const { Filter: filter, OnlyPassing: isOnlyPassing } = isRecord(subset) ? subset : {}
    if (textOf(filter) === '' && isOnlyPassing !== true)
      found.push(
        finding(
          entry,
          'HM2004',
          `Subset ${name.toLowerCase()} has no filter: it has all instances`,
          'warning',
        ),
      )
  }
  for (const [subset, target] of Object.entries(isRecord(failover) ? failover : {})) {
    const targets = isRecord(target) && 'Targets' in target ? records(target['Targets']) : [target]
    if (targets.some((one) => isRecord(one) && isItself(entry, one) && !hasPlaces(one)))
      found.push(
        finding(
          entry,
          'HM2006',
          `Failover of ${subset === '*' ? 'all subsets' : subset.toLowerCase()} leads to itself`,
        ),
      )
  }
  return found
}

function isItself({ name }: Entry, target: Readonly<Record<string, unknown>>): boolean {
  const others = ['ServiceSubset', 'Datacenter', 'Namespace', 'Partition', 'Peer', 'SamenessGroup']
  const service = textOf(target['Service'])
  return (service === '' || service === name) && others.every((key) => textOf(target[key]) === '')
}

function hasPlaces({ Datacenters: datacenters }: Readonly<Record<string, unknown>>): boolean {
  return Array.isArray(datacenters) && datacenters.length > 0
}
