/**
 * `hostmesh connections`: the connections that are open through this host now.
 */
import type { Command } from 'commander'
import type { ConnectionsDocument, RefusedDocument } from '../model/admin.ts'
import { type AdminOptions, adminCommand, fetchList, printJson } from './admin-command.ts'
import { formatBytes, formatSince } from './render/format.ts'
import { renderTable } from './render/table.ts'

/** The `connections` command. */
export function connectionsCommand(): Command {
  return adminCommand('connections', 'List the connections that are open now')
    .option('--refused', 'the last ones that were refused or broken off, with the reason')
    .action(async (_options: unknown, command: Command) => {
      const { addr, output, refused } = command.optsWithGlobals<AdminOptions & { refused?: true }>()
      if (refused === true) {
        await showRefused(addr, output)
        return
      }
      const document = await fetchList<ConnectionsDocument>(addr, '/v1/connections', 'connections')
      if (output === 'json') {
        printJson(document)
        return
      }
      if (document.connections.length === 0) console.error('No connections are open')
      else console.log(renderConnections(document, Date.now()))
      if (document.omitted > 0) console.error(`${document.omitted} more are open and not listed`)
    })
}

async function showRefused(addr: string, output: AdminOptions['output']): Promise<void> {
  const document = await fetchList<RefusedDocument>(addr, '/v1/refused', 'refused')
  if (output === 'json') printJson(document)
  else if (document.refused.length === 0) console.error('No connection was refused lately')
  else console.log(renderRefused(document, Date.now()))
}

/** The refused connections as a table, newest first. */
function renderRefused(document: RefusedDocument, nowMs: number): string {
  return renderTable(
    ['ID', 'DIRECTION', 'SOURCE', 'DESTINATION', 'FROM', 'REQUESTED', 'AGE', 'FLAG', 'REASON'],
    document.refused.map((refused) => [
      refused.id,
      refused.direction,
      refused.source,
      refused.destination || '-',
      refused.downstreamAddress,
      refused.originalDestination ?? '-',
      formatSince(refused.endedAt, nowMs),
      refused.flag,
      refused.reason,
    ]),
  )
}

/** The connections as a table. */
function renderConnections(document: ConnectionsDocument, nowMs: number): string {
  return renderTable(
    [
      'ID',
      'DIRECTION',
      'SOURCE',
      'DESTINATION',
      'FROM',
      'REQUESTED',
      'INSTANCE',
      'STATE',
      'SENT',
      'RECEIVED',
      'AGE',
    ],
    document.connections.map((connection) => [
      connection.id,
      connection.direction,
      connection.source,
      connection.destination,
      connection.downstreamAddress,
      connection.originalDestination ?? '-',
      connection.endpoint ?? '-',
      connection.state,
      formatBytes(connection.sentBytes),
      formatBytes(connection.receivedBytes),
      formatSince(connection.openedAt, nowMs),
    ]),
  )
}
