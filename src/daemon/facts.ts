/**
 * Collects the facts that explain() reasons from, of the running daemon, at the moment they are asked for.
 *
 * Public facts only: certificates by name, serial number and dates, never a key. Rules of destinations on
 * other hosts are asked of the catalog, within {@link POLICY_TIMEOUT_MS}; what does not come is left out.
 */
import type { Catalog, CatalogPolicy } from '../controlplane/catalog/catalog.ts'
import { compilePolicy } from '../controlplane/discovery/compile.ts'
import { isListening } from '../lib/listening.ts'
import { ownAddresses, ownNetworks } from '../lib/own-addresses.ts'
import { canonicalIp, formatAddress } from '../model/address.ts'
import type { CertsDocument, StatusDocument, TunnelEntry } from '../model/admin.ts'
import {
  FACTS_FORMAT,
  FACTS_VERSION,
  type HostFacts,
  type ListenerFacts,
  type PolicyFacts,
} from '../model/facts.ts'
import type { LocalService } from '../model/service.ts'
import type { MeshService } from '../model/snapshot.ts'
import type { Host } from './host.ts'

/** How long the catalog may take to tell the rules of other hosts' services, milliseconds. */
const POLICY_TIMEOUT_MS = 3_000

/** How long the first answer about a service that was not followed may take, milliseconds. */
const FIRST_ANSWER_MS = 2_000

/** Destinations whose rules one document asks for. */
const MAX_POLICIES = 1_000

/** Domains of the resolver whose names are names of services. */
const SERVICE_DOMAINS = ['mesh', 'virtual.consul']

/** What the admin API has made already. */
export interface FactSources {
  readonly status: StatusDocument
  readonly certs: CertsDocument
  readonly tunnels: readonly TunnelEntry[]
}

/** What is wanted beside the host's own facts: everything, or what concerns one service. */
export type FactScope =
  | 'all'
  | {
      readonly service: string | undefined
      /** The instances whose daemons are to be asked now, and in whose name. */
      readonly probe?:
        | {
            readonly source: string
            readonly service: string
            readonly endpoints: readonly string[]
          }
        | undefined
    }

/** The facts now. */
export async function collectFacts(
  host: Host,
  sources: FactSources,
  scope: FactScope,
): Promise<HostFacts> {
  const { status, certs, tunnels } = sources
  // A connection would make this host follow the service: so does the question what would become of one.
  if (scope !== 'all' && scope.service !== undefined)
    await host.now().mesh.discovery.lookup(scope.service, FIRST_ANSWER_MS)
  const { mesh, rules: hostRules, bundle } = host.now()
  const snapshot = mesh.discovery.current()
  const known = [...snapshot.services.values()]
  const own = [...snapshot.policies.values()]
  const asked =
    scope === 'all' ? known : [snapshot.services.get(scope.service ?? '')].filter(isKnown)
  // A redirect leads to another service, and the rules for that one decide.
  const wanted = new Set([
    ...(scope === 'all' ? [] : [scope.service ?? '']),
    ...asked.flatMap(({ name, clusters }) => [
      name,
      ...clusters[0].endpoints.map((each) => each.service),
    ]),
  ])
  const elsewhere = [...wanted].filter((name) => name !== '' && !snapshot.policies.has(name))
  // A service of this host whose rules are not loaded must show as such.
  const offered = new Set(
    host.services.filter(({ target }) => target !== undefined).map(({ name }) => name),
  )
  const [rules, loads, outcomes, listeners, probes] = await Promise.all([
    askPolicies(
      mesh.catalog,
      elsewhere.filter((name) => !offered.has(name)).slice(0, MAX_POLICIES),
    ),
    scope === 'all' || scope.service !== undefined
      ? host.pool.loads(scope === 'all' ? undefined : scope.service)
      : [],
    host.pool.outcomes(),
    listenersOf(host.services),
    scope === 'all' || scope.probe === undefined
      ? []
      : host.pool.probe(scope.probe.source, scope.probe.service, scope.probe.endpoints),
  ])
  return {
    format: FACTS_FORMAT,
    formatVersion: FACTS_VERSION,
    writtenAt: new Date().toISOString(),
    version: host.version,
    node: status.node,
    datacenter: status.datacenter,
    addresses: [...ownAddresses()].flatMap((ip) => canonicalIp(ip) ?? []),
    networks: ownNetworks(),
    ready: status.ready,
    awaited: status.awaited,
    draining: status.draining,
    catalog: status.catalog,
    snapshotVersion: status.snapshotVersion,
    services: known,
    policies: [
      ...own.map((policy): PolicyFacts => ({ ...policy, origin: 'snapshot' })),
      ...rules.map((policy): PolicyFacts => ({ ...compilePolicy(policy), origin: 'catalog' })),
    ],
    local: host.services,
    domains: SERVICE_DOMAINS,
    capture: {
      ...status.capture,
      plan: hostRules.plan ?? null,
      backend: hostRules.condition?.backend?.kind ?? null,
    },
    certificates: {
      ...certs,
      revokedSerials: bundle?.revokedSerials ?? [],
      problems: status.certificates.problems,
    },
    tunnels,
    loads,
    problems: status.problems,
    outcomes,
    listeners,
    probes,
  }
}

/** Whether somebody listens at each application's address. */
function listenersOf(services: readonly LocalService[]): Promise<readonly ListenerFacts[]> {
  const targets = services.flatMap(({ target }) => (target === undefined ? [] : [target]))
  return Promise.all(
    targets.map(async (target) => ({
      address: formatAddress(target),
      isListening: (await isListening(target.ip, target.port)) ?? null,
    })),
  )
}

function isKnown(service: MeshService | undefined): service is MeshService {
  return service !== undefined
}

/** The catalog's rules for destinations of other hosts; empty when it does not say in time. */
function askPolicies(
  catalog: Pick<Catalog, 'watchPolicies'>,
  destinations: readonly string[],
): Promise<readonly CatalogPolicy[]> {
  if (destinations.length === 0) return Promise.resolve([])
  return new Promise((resolve) => {
    const settle = (policies: readonly CatalogPolicy[]): void => {
      clearTimeout(deadline)
      // The answer may come before watchPolicies() has returned the watch.
      setImmediate(() => watch[Symbol.dispose]())
      resolve(policies)
    }
    const deadline = setTimeout(() => settle([]), POLICY_TIMEOUT_MS)
    const watch = catalog.watchPolicies(destinations, settle)
  })
}
