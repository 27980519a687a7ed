/**
 * Station `endpoint`: the instances among which the balancer would choose, by its own {@link candidates}, and why not
 * the others. The balancers' measurements come with the facts.
 */
import { candidates } from '../../dataplane/balance/picker.ts'
import { formatAddress } from '../../model/address.ts'
import type { Endpoint } from '../../model/endpoint.ts'
import type { EndpointChoice } from '../../model/explanation.ts'
import type { HostFacts } from '../../model/facts.ts'
import type { MeshService } from '../../model/snapshot.ts'
import type { Draft } from './draft.ts'
import { listed } from './words.ts'

/**
 * Adds the station and returns the endpoints of which one would be picked; with `pinned`, the instance that the caller
 * dialed, only that one.
 */
export function describeEndpoints(
  draft: Draft,
  facts: HostFacts,
  service: MeshService,
  pinned: Endpoint | undefined,
): readonly Endpoint[] {
  const choices = choicesOf(facts, service.clusters[0].endpoints, pinned)
  const byCost = (left: EndpointChoice, right: EndpointChoice): number =>
    Number(left.excluded !== null) - Number(right.excluded !== null) ||
    (left.cost ?? 0) - (right.cost ?? 0)
  draft.endpoints = choices.toSorted(byCost)
  const keys = new Set(
    choices.filter(({ excluded }) => excluded === null).map(({ endpoint }) => endpoint),
  )
  const chosen = service.clusters[0].endpoints.filter(({ key }) => keys.has(key))
  const details = draft.endpoints.map((choice) => endpointText(choice, service))
  const [first] = chosen
  if (first === undefined) {
    const why = choices.length === 0 ? 'it has no instance' : 'none of its instances may be picked'
    draft.station('endpoint', 'bad', `Nobody would be picked: ${why}`, details)
    draft.fail('unreachable', `${service.name} cannot be reached: ${why}`, ...nextOf(service))
  } else if (pinned !== undefined)
    draft.station(
      'endpoint',
      pinned.health === 'critical' ? 'warning' : 'good',
      `${pinned.key}: the caller asked for this very instance, whatever its health`,
      details,
    )
  else if (chosen.length === 1)
    draft.station('endpoint', 'good', `${first.key}: the only candidate`, details)
  else
    draft.station(
      'endpoint',
      'good',
      `One of ${chosen.length}: turns go by weight, one that is much slower than another passes its turn on`,
      details,
    )
  return chosen
}

/** Advice when no endpoint would be picked. */
function nextOf({ name, clusters }: MeshService): readonly string[] {
  const [{ endpoints }] = clusters
  const critical = endpoints.filter(({ health }) => health === 'critical')
  if (endpoints.length === 0)
    return [`See whether ${name} is registered: hostmesh services ${name}`]
  if (critical.length === 0) return [`hostmesh services ${name}`]
  const nodes = listed([...new Set(critical.map(({ node }) => node))])
  return [
    `Which health check fails, as far as the catalog says: hostmesh services ${name}`,
    `Whether ${name} runs: hostmesh explain --from <caller> --to ${name} on ${nodes}`,
  ]
}

/** The endpoints of the first priority in use. */
export function firstOf(endpoints: readonly Endpoint[]): readonly Endpoint[] {
  const first = Math.min(...endpoints.map(({ priority }) => priority))
  return endpoints.filter(({ priority }) => priority === first)
}

/** The service that its peers must prove: endpoints of one priority belong to one service in one datacenter. */
export function reachedBy(service: MeshService, endpoints: readonly Endpoint[]): MeshService {
  const [first] = endpoints
  if (first === undefined) return service
  return { ...service, name: first.service, datacenter: first.datacenter }
}

function choicesOf(
  facts: HostFacts,
  endpoints: readonly Endpoint[],
  pinned: Endpoint | undefined,
): readonly EndpointChoice[] {
  const loadsOf = ({ key }: Endpoint): HostFacts['loads'] =>
    facts.loads.filter((load) => load.endpoint === key)
  const candidacies =
    pinned === undefined
      ? candidates(endpoints, (endpoint) => ejectionOf(loadsOf(endpoint)))
      : endpoints.map((endpoint) => ({
          endpoint,
          exclusionReason:
            endpoint.key === pinned.key ? undefined : 'another instance was asked for',
        }))
  return candidacies.map(({ endpoint, exclusionReason }) => {
    const loads = loadsOf(endpoint)
    return {
      endpoint: endpoint.key,
      node: endpoint.node,
      service: endpoint.service,
      datacenter: endpoint.datacenter,
      priority: endpoint.priority,
      address: formatAddress(endpoint.tunnel),
      health: endpoint.health,
      weight: endpoint.weight,
      local: endpoint.local,
      excluded: exclusionReason ?? null,
      cost: loads.length === 0 ? null : Math.min(...loads.map(({ cost }) => cost)),
      inFlight: loads.reduce((sum, load) => sum + load.inFlight, 0),
      failures: loads.reduce((sum, load) => sum + load.failures, 0),
    }
  })
}

/** Why all workers have ejected the endpoint; null when at least one has not. */
function ejectionOf(loads: HostFacts['loads']): string | null {
  return loads.some(({ ejectionReason }) => ejectionReason === null)
    ? null
    : (loads[0]?.ejectionReason ?? null)
}

/** A choice in one line, with service and datacenter if they differ from the requested ones. */
function endpointText(choice: EndpointChoice, asked: MeshService): string {
  const isOther = choice.service !== asked.name || choice.datacenter !== asked.datacenter
  const role = isOther ? ` of ${choice.service} in ${choice.datacenter}` : ''
  const where = choice.local ? 'on this host' : choice.address
  const known =
    choice.cost === null
      ? 'not tried yet'
      : `cost ${choice.cost.toFixed(2)}, ${choice.inFlight} in flight${choice.failures > 0 ? `, ${choice.failures} failures` : ''}`
  const out = choice.excluded === null ? '' : `: left out, ${choice.excluded}`
  return `${choice.endpoint}${role} ${where}, ${choice.health}, weight ${choice.weight}, ${known}${out}`
}
