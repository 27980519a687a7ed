/**
 * Collects the facts of the running daemon that explain() reasons from, on each request.
 *
 * Public facts only: certificates by name, serial number and dates, never a key. Rules of destinations on other hosts
 * are requested from the catalog, within {@link POLICY_TIMEOUT_MS}; rules that do not arrive in time are left out.
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
import type { MeshService, Snapshot } from '../model/snapshot.ts'
import type { Host } from './host.ts'

/** Timeout of the catalog's answer with the rules of other hosts' services, milliseconds. */
const POLICY_TIMEOUT_MS = 3_000

/** Timeout of the first answer about a service that was not followed, milliseconds. */
const FIRST_ANSWER_MS = 2_000

/** Maximum destinations whose rules one document requests. */
const MAX_POLICIES = 1_000

/** Domains of the resolver in which the names are service names. */
const SERVICE_DOMAINS = ['mesh', 'virtual.consul']

/** Documents that the admin API has made already. */
export interface FactSources {
  readonly status: StatusDocument
  readonly certs: CertsDocument
  readonly tunnels: readonly TunnelEntry[]
}

/** What to collect besides the host's own facts: everything, or what concerns one service. */
export type FactScope =
  | 'all'
  | {
      readonly service: string | undefined
      /** The instances whose daemons to probe now, and the service in whose name. */
      readonly probe?:
        | {
            readonly source: string
            readonly service: string
            readonly endpoints: readonly string[]
          }
        | undefined
    }

/** Collects the facts. */
export async function collectFacts(
  host: Host,
  sources: FactSources,
  scope: FactScope,
): Promise<HostFacts> {
  const { status, certs, tunnels } = sources
  // Like a connection to the service, a question about one makes this host follow it.
  if (scope !== 'all' && scope.service !== undefined)
    await host.now().mesh.discovery.lookup(scope.service, FIRST_ANSWER_MS)
  const { mesh, rules: hostRules, bundle } = host.now()
  const snapshot = mesh.discovery.current()
  const own = [...snapshot.policies.values()]
  const [rules, loads, outcomes, listeners, probes] = await Promise.all([
    askPolicies(mesh.catalog, destinationsElsewhere(snapshot, host.services, scope)),
    scope === 'all' || scope.service !== undefined
      ? host.pool.views.loads(scope === 'all' ? undefined : scope.service)
      : [],
    host.pool.views.outcomes(),
    listenersOf(host.services),
    scope === 'all' || scope.probe === undefined
      ? []
      : host.pool.views.probe(scope.probe.source, scope.probe.service, scope.probe.endpoints),
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
    services: [...snapshot.services.values()],
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

/** Destinations on other hosts that the scope concerns, and whose rules the snapshot does not have. */
function destinationsElsewhere(
  { services, policies }: Snapshot,
  local: readonly LocalService[],
  scope: FactScope,
): readonly string[] {
  const asked =
    scope === 'all' ? [...services.values()] : [services.get(scope.service ?? '')].filter(isKnown)
  // A redirect leads to another service, whose rules decide.
  const wanted = new Set([
    ...(scope === 'all' ? [] : [scope.service ?? '']),
    ...asked.flatMap(({ name, clusters }) => [
      name,
      ...clusters[0].endpoints.map((each) => each.service),
    ]),
  ])
  // Rules of a local service must come from the snapshot only: if they are not loaded, the answer must show it.
  const offered = new Set(
    local.filter(({ target }) => target !== undefined).map(({ name }) => name),
  )
  return [...wanted]
    .filter((name) => name !== '' && !policies.has(name) && !offered.has(name))
    .slice(0, MAX_POLICIES)
}

/** Whether a process listens at each application's address. */
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

/** The catalog's rules for destinations of other hosts; empty when no answer arrives in time. */
function askPolicies(
  catalog: Pick<Catalog, 'watchPolicies'>,
  destinations: readonly string[],
): Promise<readonly CatalogPolicy[]> {
  if (destinations.length === 0) return Promise.resolve([])
  return new Promise((resolve) => {
    const settle = (policies: readonly CatalogPolicy[]): void => {
      clearTimeout(deadline)
      // settle may run before watchPolicies() has returned the watch.
      setImmediate(() => watch[Symbol.dispose]())
      resolve(policies)
    }
    const deadline = setTimeout(() => settle([]), POLICY_TIMEOUT_MS)
    const watch = catalog.watchPolicies(destinations, settle)
  })
}
