/**
 * `hostmesh peers`: the tunnels to and from other hosts.
 */
import type { Command } from 'commander'
import type { PeersDocument, TunnelEntry } from '../model/admin.ts'
import { type AdminOptions, fetchList } from './admin-command.ts'
import type { Answer } from './answer.ts'
import {
  addPairFilter,
  filterNotes,
  filterWords,
  isWanted,
  type PairFilter,
} from './pair-filter.ts'
import { readingCommand, show } from './reading-command.ts'
import { formatBytes, formatRoundTrip, formatSince } from './render/format.ts'
import { type Column, renderList, type Tone } from './render/table.ts'

/** The `peers` command. */
export function peersCommand(): Command {
  return addPairFilter(readingCommand('peers', 'List the tunnels to and from other hosts')).action(
    async (_options: unknown, command: Command) => {
      const options = command.optsWithGlobals<AdminOptions & PairFilter>()
      await show(options, () => readPeers(options))
    },
  )
}

async function readPeers(options: AdminOptions & PairFilter): Promise<Answer> {
  const all = await fetchList<PeersDocument>(options.addr, '/v1/peers', 'tunnels')
  const tunnels = all.tunnels.filter((tunnel) => isWanted(options, tunnel))
  const nowMs = Date.now()
  if (tunnels.length > 0)
    return {
      document: { ...all, tunnels },
      text: (style) => renderList(columns(nowMs), tunnels, style),
    }
  return {
    document: { ...all, tunnels },
    text: () => '',
    notes: [`No tunnels${filterWords(options)} are open`, ...filterNotes(options, all.tunnels)],
  }
}

function columns(nowMs: number): readonly Column<TunnelEntry>[] {
  return [
    { heading: 'SOURCE', cell: ({ source }) => source },
    { heading: 'DESTINATION', cell: ({ destination }) => destination },
    { heading: 'PEER', cell: ({ peerAddress }) => peerAddress },
    { heading: 'DIRECTION', cell: ({ direction }) => direction },
    { heading: 'STATE', cell: ({ state }) => ({ text: state, tone: tunnelTone(state) }) },
    { heading: 'STREAMS', cell: ({ streams }) => String(streams) },
    { heading: 'RTT', cell: ({ rttMs }) => (rttMs === null ? '-' : formatRoundTrip(rttMs)) },
    { heading: 'SENT', cell: ({ sentBytes }) => formatBytes(sentBytes) },
    { heading: 'RECEIVED', cell: ({ receivedBytes }) => formatBytes(receivedBytes) },
    { heading: 'AGE', cell: ({ openedAt }) => formatSince(openedAt, nowMs) },
    { heading: 'SPIFFE ID OF PEER', isWide: true, cell: ({ peerSpiffeId }) => peerSpiffeId ?? '-' },
  ]
}

function tunnelTone(state: TunnelEntry['state']): Tone {
  if (state === 'open') return 'good'
  return state === 'closed' ? 'bad' : 'warning'
}
