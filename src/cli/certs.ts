/**
 * `hostmesh certs`: the certificates of this host's services and the accepted roots. Never a key.
 */
import type { Command } from 'commander'
import type { CertsDocument, LeafEntry } from '../model/admin.ts'
import { type AdminOptions, fetchList } from './admin-command.ts'
import { unknownName } from './known-names.ts'
import { readingCommand, show } from './reading-command.ts'
import { formatAge } from './render/format.ts'
import { type Cell, renderList, renderTable, type TableStyle } from './render/table.ts'

/** A certificate with less than this share of its lifetime left should have been renewed long before. */
const LATE_SHARE = 0.25

/** The `certs` command. */
export function certsCommand(): Command {
  return readingCommand(
    'certs',
    'List the certificates of the local services and the accepted roots',
  )
    .argument('[service]', 'show only the certificate of this service')
    .action(async (service: string | undefined, _options: unknown, command: Command) => {
      const options = command.optsWithGlobals<AdminOptions>()
      await show(options, async () => {
        const all = await fetchList<CertsDocument>(options.addr, '/v1/certs', 'leaves')
        const document = service === undefined ? all : only(all, service)
        return { document, text: (style) => renderCerts(document, Date.now(), style) }
      })
    })
}

function only(document: CertsDocument, service: string): CertsDocument {
  const leaves = document.leaves.filter((leaf) => leaf.service === service)
  if (leaves.length > 0) return { ...document, leaves }
  throw unknownName('service', service, {
    known: document.leaves.map((leaf) => leaf.service),
    message: `Cannot show the certificate of ${service}: this host has none`,
    hint: 'A host has certificates of the services that it runs; see hostmesh services',
  })
}

/** The certificates as a table. */
function renderCerts(document: CertsDocument, nowMs: number, style: TableStyle): string {
  const leaves =
    document.leaves.length === 0
      ? 'This host has no certificates'
      : renderList(
          [
            { heading: 'SERVICE', cell: (leaf) => leaf.service },
            { heading: 'EXPIRES IN', cell: (leaf) => timeLeft(leaf, nowMs) },
            { heading: 'NOT AFTER', isWide: true, cell: (leaf) => leaf.notAfter },
            { heading: 'SPIFFE ID', cell: (leaf) => leaf.spiffeId },
            { heading: 'SERIAL NUMBER', cell: (leaf) => leaf.serialNumber },
          ],
          document.leaves,
          style,
        )
  const roots =
    document.roots.length === 0
      ? 'This host accepts no root'
      : renderTable(
          ['ACCEPTED ROOT', 'EXPIRES IN', 'TRUST DOMAIN'],
          document.roots.map((root) => [
            style.isWide ? `SHA256 ${root.fingerprint}` : shortFingerprint(root.fingerprint),
            formatAge(Date.parse(root.notAfter) - nowMs),
            document.trustDomain ?? '-',
          ]),
          style,
        )
  return `${leaves}\n\n${roots}`
}

function timeLeft(leaf: LeafEntry, nowMs: number): Cell {
  const endMs = Date.parse(leaf.notAfter)
  const leftMs = endMs - nowMs
  if (leftMs <= 0) return { text: `expired ${formatAge(-leftMs)} ago`, tone: 'bad' }
  const isLate = leftMs < (endMs - Date.parse(leaf.notBefore)) * LATE_SHARE
  return { text: formatAge(leftMs), tone: isLate ? 'warning' : 'good' }
}

/** The first eight bytes distinguish roots; JSON output has all. */
function shortFingerprint(fingerprint: string): string {
  return `SHA256 ${fingerprint.slice(0, 23)}…`
}
