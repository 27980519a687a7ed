/**
 * Station `tunnel`: the open sessions that the connection would use, and where a new one would be dialed.
 */
import { formatAddress } from '../../model/address.ts'
import type { TunnelEntry } from '../../model/admin.ts'
import type { Endpoint } from '../../model/endpoint.ts'
import type { Station } from '../../model/explanation.ts'
import type { HostFacts } from '../../model/facts.ts'
import type { MeshService } from '../../model/snapshot.ts'
import type { Draft } from './draft.ts'
import { listed } from './words.ts'

/** The caller's side: sessions of `source` with `service` at the mesh listeners of `remote`. */
export function describeTunnel(
  draft: Draft,
  facts: HostFacts,
  asked: {
    readonly source: string
    readonly service: MeshService
    readonly remote: readonly Endpoint[]
  },
): void {
  const { source, service, remote } = asked
  if (remote.length === 0) {
    const isNobody = service.clusters[0].endpoints.length === 0
    draft.station(
      'tunnel',
      'none',
      isNobody ? 'None: there is nobody to dial' : 'None: no other host is involved',
    )
    return
  }
  const addresses = [...new Set(remote.map(({ tunnel }) => formatAddress(tunnel)))]
  const open = facts.tunnels.filter(
    (tunnel) =>
      tunnel.direction === 'outbound' &&
      tunnel.source === source &&
      tunnel.destination === service.name &&
      addresses.includes(tunnel.peerAddress),
  )
  draft.tunnels = open
  const missing = addresses.filter((address) => open.every((each) => each.peerAddress !== address))
  if (open.length === 0)
    draft.station('tunnel', 'none', `None is open: one would be dialed to ${listed(addresses)}`)
  else {
    const station = tunnelStation(open)
    const rest = missing.length === 0 ? [] : [`Would be dialed: ${listed(missing)}`]
    draft.station('tunnel', 'good', station.summary, [...station.details, ...rest])
  }
}

/** The destination's side: sessions that the caller's host has opened to this one. */
export function describeArrivingTunnel(
  draft: Draft,
  facts: HostFacts,
  pair: { readonly source: string; readonly destination: string },
): void {
  const { source, destination } = pair
  const open = facts.tunnels.filter(
    (tunnel) =>
      tunnel.direction === 'inbound' &&
      tunnel.source === source &&
      tunnel.destination === destination,
  )
  draft.tunnels = open
  if (open.length > 0)
    draft.station('tunnel', 'good', `Open from ${listed(open.map((each) => each.peerAddress))}`)
  else draft.station('tunnel', 'none', `None is open from ${source}`)
}

/** The station for open sessions. */
export function tunnelStation(
  open: readonly TunnelEntry[],
): Pick<Station, 'mark' | 'summary' | 'details'> {
  return {
    mark: 'good',
    summary: `Open to ${listed([...new Set(open.map((each) => each.peerAddress))])}`,
    details: open.map(
      (each) =>
        `${each.peerSpiffeId ?? 'no identity yet'}, ${each.state} since ${each.openedAt}, ${each.streams} streams, round trip ${each.rttMs === null ? 'not measured' : `${each.rttMs.toFixed(1)} ms`}`,
    ),
  }
}
