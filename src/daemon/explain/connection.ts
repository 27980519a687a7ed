/**
 * Station `connection`: the record of a connection that is open, was refused or was broken off, combined with the path
 * that such a connection would take now. Where the two differ, the record wins: the instance, the tunnel, the ending.
 */
import { formatAddress } from '../../model/address.ts'
import type { ConnectionEntry, RefusedEntry } from '../../model/admin.ts'
import type { Explanation, Station, Verdict } from '../../model/explanation.ts'
import type { HostFacts } from '../../model/facts.ts'
import { tunnelStation } from './tunnel.ts'

/** The destination that an outbound connection dialed, as in a question; empty when it is not known yet. */
export function dialedBy(facts: HostFacts, connection: ConnectionEntry): string {
  if (connection.originalDestination !== null) return connection.originalDestination
  const bind = facts.local
    .filter((service) => service.name === connection.source)
    .flatMap(({ upstreams }) => upstreams)
    .find((upstream) => upstream.destination === connection.destination)?.bind
  return bind === undefined ? connection.destination : formatAddress(bind)
}

/** The present path, preceded by the record and corrected by it. */
export function withRecord(
  explanation: Explanation,
  connection: ConnectionEntry | RefusedEntry,
): Explanation {
  const { id, source, destination, endpoint } = connection
  const refused = 'flag' in connection ? connection : undefined
  const tunnels = explanation.tunnels.filter(
    ({ peerAddress }) => peerAddress === connection.peerAddress,
  )
  const record = refused === undefined ? openStation(connection) : endedStation(refused)
  const stations = explanation.stations.map((station) => asRecorded(station, connection, tunnels))
  return {
    ...explanation,
    connection: id,
    to: connection.originalDestination ?? destination,
    verdict: refused === undefined ? 'allowed' : verdictOf(refused),
    summary:
      refused === undefined
        ? `${source} is connected to ${destination}${endpoint === null ? '' : ` at ${endpoint}`}`
        : `${source} -> ${destination} ended with ${refused.flag}: ${refused.reason}`,
    next: refused === undefined ? [] : explanation.next,
    stations: [record, ...stations],
    tunnels: tunnels.length > 0 ? tunnels : explanation.tunnels,
  }
}

function openStation(connection: ConnectionEntry): Station {
  return {
    name: 'connection',
    mark: 'good',
    summary: `Open since ${connection.openedAt}, state ${connection.state}`,
    details: recordOf(connection),
  }
}

function endedStation(refused: RefusedEntry): Station {
  const { openedAt, endedAt, flag, reason } = refused
  const tookMs = Date.parse(endedAt) - Date.parse(openedAt)
  return {
    name: 'connection',
    mark: 'bad',
    summary: `Ended at ${endedAt} with ${flag} after ${tookMs} ms: ${reason}`,
    details: recordOf(refused),
  }
}

function recordOf(connection: ConnectionEntry): string[] {
  const { originalDestination, downstreamAddress, endpoint, peerAddress } = connection
  return [
    `${connection.direction}, from ${downstreamAddress || 'an unknown address'}, asked for ${originalDestination ?? 'an upstream port'}`,
    `Instance ${endpoint ?? 'none'}${peerAddress === null ? '' : `, peer ${peerAddress}`}`,
    `${connection.sentBytes} bytes sent, ${connection.receivedBytes} received`,
  ]
}

/** The station to which an ending belongs. */
const BROKEN_AT: Partial<Record<RefusedEntry['flag'], Station['name']>> = {
  DENY: 'policy',
  TLS: 'certificate',
  NC: 'route',
  UH: 'endpoint',
}

/** One station, corrected by the record; `tunnels` are the open ones to the peer of this connection. */
function asRecorded(
  station: Station,
  connection: ConnectionEntry | RefusedEntry,
  tunnels: Explanation['tunnels'],
): Station {
  const { direction, endpoint, peerAddress } = connection
  if (station.name === (direction === 'inbound' ? 'delivery' : 'endpoint') && endpoint !== null)
    return {
      ...station,
      summary: `It was given to ${endpoint}`,
      details: [station.summary, ...station.details],
    }
  const refused = 'flag' in connection ? connection : undefined
  if (refused !== undefined && station.name === BROKEN_AT[refused.flag] && station.mark !== 'bad')
    return {
      ...station,
      mark: 'bad',
      summary: `It ended here: ${refused.reason}`,
      details: [`As it looks now: ${station.summary}`, ...station.details],
    }
  if (station.name !== 'tunnel') return station
  if (peerAddress === null && direction === 'outbound' && endpoint !== null)
    return { ...station, mark: 'none', summary: 'None: both ends are on this host', details: [] }
  return tunnels.length > 0 ? { ...station, ...tunnelStation(tunnels) } : station
}

function verdictOf({ flag }: RefusedEntry): Verdict {
  return flag === 'DENY' ? 'denied' : 'unreachable'
}
