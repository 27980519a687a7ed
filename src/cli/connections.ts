/**
 * `hostmesh connections`: the connections that go through this host now.
 */
import type { Command } from 'commander'
import type { ConnectionsDocument } from '../model/admin.ts'
import { type AdminOptions, adminCommand, fetchList, printJson } from './admin-command.ts'
import { formatBytes, formatSince } from './render/format.ts'
import { renderTable } from './render/table.ts'

/** The `connections` command. */
export function connectionsCommand(): Command {
  return adminCommand('connections', 'List the connections that are open now').action(
    async (_options: unknown, command: Command) => {
      const { addr, output } = command.optsWithGlobals<AdminOptions>()
      const document = await fetchList<ConnectionsDocument>(addr, '/v1/connections', 'connections')
      if (output === 'json') {
        printJson(document)
        return
      }
      if (document.connections.length === 0) console.error('No connections are open')
      else console.log(renderConnections(document, Date.now()))
      if (document.omitted > 0) console.error(`${document.omitted} more are open and not listed`)
    },
  )
}

/** The connections for people. */
export function renderConnections(document: ConnectionsDocument, nowMs: number): string {
  return renderTable(
    [
      'ID',
      'DIRECTION',
      'SOURCE',
      'DESTINATION',
      'FROM',
      'ASKED FOR',
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
