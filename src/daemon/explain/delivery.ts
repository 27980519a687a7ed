/**
 * Station `delivery`: the application's own port, when it is on this host; else whose host delivers.
 */
import { formatAddress } from '../../model/address.ts'
import type { Endpoint } from '../../model/endpoint.ts'
import type { HostFacts } from '../../model/facts.ts'
import type { LocalService } from '../../model/service.ts'
import type { MeshService } from '../../model/snapshot.ts'
import type { Draft } from './draft.ts'
import { listed } from './words.ts'

/** Who of `chosen` delivers: this host to the target that its configuration has, or another to its own instance. */
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
  } else if (known.length > 0)
    draft.station('delivery', 'good', `To ${listed(known.map(formatAddress))} on this host`)
  else if (chosen.length > 0)
    draft.station(
      'delivery',
      'none',
      `By ${listed([...new Set(chosen.map(({ node }) => node))])}, to its own instance`,
    )
}

/** The caller is elsewhere; `instances` are those of this host that it may be given to. */
export function describeOwnDelivery(draft: Draft, instances: readonly LocalService[]): void {
  const targets = instances.map(({ target }) => (target === undefined ? '' : formatAddress(target)))
  draft.station('delivery', 'good', `To ${listed(targets)}`)
}
