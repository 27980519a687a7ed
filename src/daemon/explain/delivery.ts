/**
 * Station `delivery`: the application's port if it is on this host; otherwise the hosts that deliver.
 */
import { formatAddress, type SocketAddress } from '../../model/address.ts'
import type { Endpoint } from '../../model/endpoint.ts'
import type { HostFacts } from '../../model/facts.ts'
import type { LocalService } from '../../model/service.ts'
import type { MeshService } from '../../model/snapshot.ts'
import type { Draft } from './draft.ts'
import { listed } from './words.ts'

/** Who delivers to `chosen`: this host, to the target in its configuration, or another host to its own instance. */
export function describeDelivery(
  draft: Draft,
  facts: HostFacts,
  service: MeshService,
  chosen: readonly Endpoint[],
): void {
  const local = chosen.filter((endpoint) => endpoint.local)
  const targets = local.map(
    ({ id }) => facts.local.find((each) => each.name === service.name && each.id === id)?.target,
  )
  const known = targets.filter((target) => target !== undefined)
  if (known.length < local.length) {
    draft.station('delivery', 'bad', `This host's configuration has no instance of ${service.name}`)
    draft.fail(
      'unreachable',
      `${service.name} cannot be delivered: this host's configuration does not have the instance`,
      'Compare services[].id with the catalog: hostmesh services',
    )
  } else if (known.length > 0) describeTargets(draft, facts, service.name, known, ' on this host')
  else if (chosen.length > 0)
    draft.station(
      'delivery',
      'none',
      `By ${listed([...new Set(chosen.map(({ node }) => node))])}, to its own instance`,
    )
}

/** For a caller on another host; `instances` are those of this host that it may be given to. */
export function describeOwnDelivery(
  draft: Draft,
  facts: HostFacts,
  instances: readonly LocalService[],
): void {
  const targets = instances.flatMap(({ target }) => (target === undefined ? [] : [target]))
  describeTargets(draft, facts, instances[0]?.name ?? '', targets, '')
}

/** The applications' ports, and whether a process listens there. */
function describeTargets(
  draft: Draft,
  facts: HostFacts,
  service: string,
  targets: readonly SocketAddress[],
  where: string,
): void {
  const addresses = targets.map(formatAddress)
  const silent = addresses.filter((address) =>
    facts.listeners.some((each) => each.address === address && each.isListening === false),
  )
  const details = silent.map((address) => `Nobody listens at ${address}`)
  const isDown = silent.length > 0 && silent.length === addresses.length
  draft.station(
    'delivery',
    isDown ? 'bad' : details.length > 0 ? 'warning' : 'good',
    `To ${listed(addresses)}${where}${isDown ? ', where nobody listens' : ''}`,
    isDown ? [] : details,
  )
  if (isDown)
    draft.fail(
      'unreachable',
      `${service} does not run: nobody listens at ${listed(silent)}`,
      `Start ${service}, or correct services[].port and services[].address`,
    )
}
