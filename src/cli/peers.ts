/**
 * `hostmesh peers`: the tunnels to and from other hosts.
 */
import type { Command } from 'commander'
import type { PeersDocument, TunnelEntry } from '../model/admin.ts'
import { type AdminOptions, adminCommand, fetchList, printJson } from './admin-command.ts'
import { formatBytes, formatRoundTrip, formatSince } from './render/format.ts'
import { renderTable, type Tone } from './render/table.ts'

/** The `peers` command. */
export function peersCommand(): Command {
  return adminCommand('peers', 'List the tunnels to and from other hosts').action(
    async (_options: unknown, command: Command) => {
      const { addr, output } = command.optsWithGlobals<AdminOptions>()
      const document = await fetchList<PeersDocument>(addr, '/v1/peers', 'tunnels')
      if (output === 'json') printJson(document)
      else if (document.tunnels.length === 0) console.error('No tunnels are open')
      else console.log(renderPeers(document, Date.now()))
    },
  )
}

/** The tunnels as a table. */
function renderPeers(document: PeersDocument, nowMs: number): string {
  return renderTable(
    [
      'SOURCE',
      'DESTINATION',
      'PEER',
      'DIRECTION',
      'STATE',
      'STREAMS',
      'RTT',
      'SENT',
      'RECEIVED',
      'AGE',
    ],
    document.tunnels.map((tunnel) => [
      tunnel.source,
      tunnel.destination,
      tunnel.peerAddress,
      tunnel.direction,
      { text: tunnel.state, tone: tunnelTone(tunnel.state) },
      String(tunnel.streams),
      tunnel.rttMs === null ? '-' : formatRoundTrip(tunnel.rttMs),
      formatBytes(tunnel.sentBytes),
      formatBytes(tunnel.receivedBytes),
      formatSince(tunnel.openedAt, nowMs),
    ]),
  )
}

function tunnelTone(state: TunnelEntry['state']): Tone {
  if (state === 'open') return 'good'
  return state === 'closed' ? 'bad' : 'warning'
}
