/**
 * `hostmesh connections`: the connections that are open through this host now.
 */
import type { Command } from 'commander'
import type {
  ConnectionEntry,
  ConnectionsDocument,
  RefusedDocument,
  RefusedEntry,
} from '../model/admin.ts'
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
import { formatBytes, formatSince } from './render/format.ts'
import { type Column, renderList } from './render/table.ts'

type Options = AdminOptions & PairFilter & { readonly refused?: true }

/** The `connections` command. */
export function connectionsCommand(): Command {
  return addPairFilter(readingCommand('connections', 'List the connections that are open now'))
    .option('--refused', 'the last ones that were refused or broken off, with the reason')
    .action(async (_options: unknown, command: Command) => {
      const options = command.optsWithGlobals<Options>()
      await show(options, () => (options.refused === true ? readRefused : readOpen)(options))
    })
}

async function readOpen(options: Options): Promise<Answer> {
  const all = await fetchList<ConnectionsDocument>(options.addr, '/v1/connections', 'connections')
  const connections = all.connections.filter((connection) => isWanted(options, connection))
  const nowMs = Date.now()
  const omitted = all.omitted > 0 ? [`${all.omitted} more are open and not listed`] : []
  const empty = [
    `No connections${filterWords(options)} are open`,
    ...filterNotes(options, all.connections),
  ]
  return {
    document: { ...all, connections },
    text: (style) =>
      connections.length === 0 ? '' : renderList(openColumns(nowMs), connections, style),
    notes: [...(connections.length === 0 ? empty : []), ...omitted],
  }
}

async function readRefused(options: Options): Promise<Answer> {
  const all = await fetchList<RefusedDocument>(options.addr, '/v1/refused', 'refused')
  const refused = all.refused.filter((connection) => isWanted(options, connection))
  const nowMs = Date.now()
  return {
    document: { ...all, refused },
    text: (style) =>
      refused.length === 0 ? '' : renderList(refusedColumns(nowMs), refused, style),
    notes:
      refused.length === 0
        ? [
            `No connection${filterWords(options)} was refused lately`,
            ...filterNotes(options, all.refused),
          ]
        : [],
  }
}

const pairColumns: readonly Column<ConnectionEntry>[] = [
  { heading: 'ID', cell: ({ id }) => id },
  { heading: 'DIRECTION', cell: ({ direction }) => direction },
  { heading: 'SOURCE', cell: ({ source }) => source },
  { heading: 'DESTINATION', cell: ({ destination }) => destination || '-' },
  { heading: 'FROM', cell: ({ downstreamAddress }) => downstreamAddress },
  { heading: 'REQUESTED', cell: ({ originalDestination }) => originalDestination ?? '-' },
]

function openColumns(nowMs: number): readonly Column<ConnectionEntry>[] {
  return [
    ...pairColumns,
    { heading: 'INSTANCE', cell: ({ endpoint }) => endpoint ?? '-' },
    { heading: 'PEER', isWide: true, cell: ({ peerAddress }) => peerAddress ?? '-' },
    { heading: 'STATE', cell: ({ state }) => state },
    { heading: 'SENT', cell: ({ sentBytes }) => formatBytes(sentBytes) },
    { heading: 'RECEIVED', cell: ({ receivedBytes }) => formatBytes(receivedBytes) },
    { heading: 'AGE', cell: ({ openedAt }) => formatSince(openedAt, nowMs) },
  ]
}

/** The refused connections, newest first. */
function refusedColumns(nowMs: number): readonly Column<RefusedEntry>[] {
  return [
    ...pairColumns,
    { heading: 'INSTANCE', isWide: true, cell: ({ endpoint }) => endpoint ?? '-' },
    { heading: 'AGE', cell: ({ endedAt }) => formatSince(endedAt, nowMs) },
    { heading: 'FLAG', cell: ({ flag }) => flag },
    { heading: 'CODE', isWide: true, cell: ({ code }) => code },
    { heading: 'REASON', cell: ({ reason }) => reason },
  ]
}
